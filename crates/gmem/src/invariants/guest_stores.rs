//! MMU-INV-040 from beside the machine: which stores of guests user space has not been told of yet.
//!
//! What dirty logging promises is about stores, not about entries: once `KVM_SET_USER_MEMORY_REGION` has switched it on, each page that a guest
//! writes is handed out by `KVM_GET_DIRTY_LOG` or `KVM_CLEAR_DIRTY_LOG` afterwards, by a call that returns after the store. So the record has every store of a vCPU,
//! its processor's updates of A and D bits and KVM's own writes in its place, until a call that takes the page's bit has returned; whatever entries and
//! TLBs say. A store without a mark is a store that is lost.
//!
//! Who made an entry writable marks the page a moment later, and a processor's log is drained when its vCPU has left the guest: so a store may be
//! without a mark while a run of a vCPU goes on that had begun before it. Such a page may be missing in the log that is read meanwhile, and is in the next.
//!
//! Nothing of it is in Linux. Recorded only where somebody asks ([`Host::watch_guests`](crate::kvm::host::Host::watch_guests)).

use std::collections::BTreeSet;

/// A moment, in runs of vCPUs that had begun.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Moment(u64);

/// The runs of a VM's vCPUs that go on.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    begun: Moment,
    open: BTreeSet<Moment>,
}

impl Runs {
    /// A run begins. Its number.
    pub(crate) fn begin(&mut self) -> Moment {
        self.begun.0 += 1;
        self.open.insert(self.begun);
        self.begun
    }

    /// A run has ended: all that it had to mark is marked.
    pub(crate) fn end(&mut self, run: Moment) {
        assert!(self.open.remove(&run), "a run ends once");
    }

    /// Now.
    pub(crate) fn now(&self) -> Moment {
        self.begun
    }

    /// Whether every run has ended that had begun by then.
    fn has_settled(&self, moment: Moment) -> bool {
        self.open.first().is_none_or(|oldest| *oldest > moment)
    }
}

/// The stores to the pages of one dirty bitmap that user space has not been told of.
#[derive(Debug, Default)]
pub(crate) struct Unreported {
    /// User space was told that the slot is logged.
    promised: bool,
    /// By page, counted from the slot's start.
    stores: BTreeSet<(u64, Moment)>,
    /// Bits of words that were taken by a call that has not returned.
    in_flight: Vec<(u64, u64)>,
}

const fn word_and_bit(page: u64) -> (u64, u64) {
    (page / 64, 1 << (page % 64))
}

impl Unreported {
    /// The call that switches logging on returns.
    pub(crate) fn promise(&mut self) {
        self.promised = true;
    }

    /// A guest has written to a page.
    pub(crate) fn store(&mut self, page: u64, now: Moment) {
        if self.promised {
            self.stores.insert((page, now));
        }
    }

    /// Bits of a word are being taken, which had this value.
    ///
    /// # Errors
    /// The page of a store that is not marked by now.
    pub(crate) fn take(&mut self, word: u64, value: u64, taken: u64, runs: &Runs) -> Result<(), u64> {
        let pages = self.stores.range((word * 64, Moment(0))..((word + 1) * 64, Moment(0)));
        let lost = pages.into_iter().find(|(page, at)| runs.has_settled(*at) && !self.is_known(*page, value));
        if let Some((page, _)) = lost {
            return Err(*page);
        }
        self.in_flight.push((word, taken));
        Ok(())
    }

    /// The call returns: user space knows, and looks at the pages from now on.
    pub(crate) fn handed_out(&mut self) {
        for (word, taken) in self.in_flight.drain(..) {
            let is_told = |page: u64| word_and_bit(page).0 == word && word_and_bit(page).1 & taken != 0;
            self.stores.retain(|(page, _)| !is_told(*page));
        }
    }

    /// Looks at every store that ought to be marked. `word` has the words of the bitmap.
    ///
    /// # Errors
    /// The page of one that is not.
    pub(crate) fn check(&self, word: impl Fn(u64) -> u64, runs: &Runs) -> Result<(), u64> {
        let is_lost =
            |&&(page, at): &&(u64, Moment)| runs.has_settled(at) && !self.is_known(page, word(word_and_bit(page).0));
        self.stores.iter().find(is_lost).map_or(Ok(()), |(page, _)| Err(*page))
    }

    /// The page's bit is set in its word, or was taken by a call that has not returned.
    fn is_known(&self, page: u64, value: u64) -> bool {
        let (word, bit) = word_and_bit(page);
        value & bit != 0 || self.in_flight.iter().any(|(taken, bits)| *taken == word && bits & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Moment, Runs, Unreported};

    fn logged() -> Unreported {
        let mut log = Unreported::default();
        log.promise();
        log
    }

    #[test]
    fn a_store_may_be_without_a_mark_while_a_run_goes_on_that_had_begun_before_it() {
        let (mut runs, mut log) = (Runs::default(), logged());
        let marker = runs.begin();
        let writer = runs.begin();
        log.store(70, runs.now());
        runs.end(writer);
        let later = runs.begin();
        assert_eq!(log.check(|_| 0, &runs), Ok(()));
        runs.end(marker);
        assert_eq!(log.check(|_| 0, &runs), Err(70));
        assert_eq!(log.check(|word| if word == 1 { 1 << 6 } else { 0 }, &runs), Ok(()));
        runs.end(later);
    }

    #[test]
    fn a_call_covers_the_stores_before_it_returns_and_no_others() {
        let (runs, mut log) = (Runs::default(), logged());
        log.store(3, Moment(0));
        assert_eq!(log.take(0, 0b1000, 0b1000, &runs), Ok(()));
        // Through a TLB that is about to be flushed.
        log.store(3, Moment(0));
        assert_eq!(log.check(|_| 0, &runs), Ok(()));
        log.handed_out();
        assert_eq!(log.check(|_| 0, &runs), Ok(()));
        log.store(3, Moment(0));
        assert_eq!(log.check(|_| 0, &runs), Err(3));
    }

    #[test]
    fn a_word_that_is_taken_has_the_marks_of_all_stores() {
        let (runs, mut log) = (Runs::default(), logged());
        log.store(64, Moment(0));
        assert_eq!(log.take(0, 0, 0, &runs), Ok(()));
        assert_eq!(log.take(1, 0b10, 0b10, &runs), Err(64));
    }

    #[test]
    fn before_logging_is_on_nothing_was_promised() {
        let (runs, mut log) = (Runs::default(), Unreported::default());
        log.store(1, Moment(0));
        assert_eq!(log.check(|_| 0, &runs), Ok(()));
    }
}
