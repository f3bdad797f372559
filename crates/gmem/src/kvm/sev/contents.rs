//! What an SNP guest knows of its private memory, kept beside the memory itself: what it wrote last, and which pages it has accepted. For SNP-INV-004,
//! SNP-INV-006 and SNP-INV-033. Not KVM, and not there in native runs.
//!
//! Contents are forgotten when a page is accepted, because until the next write it may read anything, and when RMPADJUST changes it, because a processor writes to a
//! VMSA that it runs with. What was launched is not known here.

use sim_coco::snp::Rmp;
use sim_kernel::{Cx, PAGE_SIZE, Pfn};
use sim_mmu::{Gfn, Gpa};
use std::collections::{BTreeMap, BTreeSet};

const WORD: u64 = 8;

/// A word of the guest's memory, as far as it is known: a bit for each byte.
#[derive(Clone, Copy, Default, Debug)]
struct Word {
    bytes: [u8; WORD as usize],
    known: u8,
}

#[derive(Default, Debug)]
struct Known {
    /// By address / 8.
    words: BTreeMap<u64, Word>,
    accepted: BTreeMap<Gfn, Accepted>,
    /// Pages that were accepted again before they were rescinded: the guest's own mistake, or somebody talked it into that.
    accepted_twice: BTreeSet<Gfn>,
}

/// Where a page was that the guest has accepted, and how often the RMP's entry had changed by then.
#[derive(Clone, Copy, Debug)]
struct Accepted {
    pfn: Pfn,
    changes: [u64; 2],
}

/// What one guest knows.
#[derive(Default, Debug)]
pub(super) struct GuestContents(parking_lot::Mutex<Known>);

impl GuestContents {
    /// The guest has written these bytes; part of the step that writes.
    pub(super) fn wrote(&self, cx: &Cx<'_>, gpa: Gpa, bytes: &[u8]) {
        if cx.is_native() {
            return;
        }
        let mut known = self.0.lock();
        for (at, byte) in (gpa.0..).zip(bytes) {
            let word = known.words.entry(at / WORD).or_default();
            word.bytes[(at % WORD) as usize] = *byte;
            word.known |= 1 << (at % WORD);
        }
    }

    /// The guest has read these bytes; part of the step that reads.
    ///
    /// # Panics
    /// SNP-INV-006: if it has last written others there.
    pub(super) fn assert_read(&self, cx: &Cx<'_>, gpa: Gpa, pfn: Pfn, bytes: &[u8]) {
        if cx.is_native() {
            return;
        }
        let known = self.0.lock();
        for (at, byte) in (gpa.0..).zip(bytes) {
            let Some(word) = known.words.get(&(at / WORD)) else { continue };
            let (bit, wrote) = (1 << (at % WORD), word.bytes[(at % WORD) as usize]);
            assert!(
                word.known & bit == 0 || wrote == *byte,
                "SNP-INV-006: a guest reads {byte:#x} at {:?} from {pfn:?}, and has written {wrote:#x}",
                Gpa(at)
            );
        }
    }

    /// The guest has accepted these pages, or rescinded that; the first of them is at `pfn`.
    pub(super) fn pvalidated(&self, cx: &Cx<'_>, rmp: &Rmp, first: Gfn, pfn: Pfn, pages: u64, accepted: bool) {
        if cx.is_native() {
            return;
        }
        self.forget(cx, first, pages);
        let mut known = self.0.lock();
        for (gfn, pfn) in (0..pages).map(|i| (first + i, pfn + i)) {
            if !accepted {
                known.accepted.remove(&gfn);
            } else if known.accepted.insert(gfn, Accepted { pfn, changes: rmp.changes(pfn) }).is_some() {
                known.accepted_twice.insert(gfn);
            }
        }
    }

    /// The guest is told by `#VC` that it has not accepted the page.
    ///
    /// # Panics
    /// SNP-INV-033: if it has, in this frame, and the host has not changed the entry since.
    pub(super) fn assert_not_validated(&self, cx: &Cx<'_>, rmp: &Rmp, gfn: Gfn, pfn: Pfn) {
        if cx.is_native() {
            return;
        }
        let accepted = self.0.lock().accepted.get(&gfn).copied();
        let is_lost = accepted.is_some_and(|at| at.pfn == pfn && at.changes == rmp.changes(pfn));
        assert!(
            !is_lost,
            "SNP-INV-033: #VC at {gfn:?}, which the guest has accepted, and the host has not changed {pfn:?} since"
        );
    }

    /// Whatever the guest has written to these pages, it may read something else.
    pub(super) fn forget(&self, cx: &Cx<'_>, first: Gfn, pages: u64) {
        if cx.is_native() {
            return;
        }
        let words_of = |gfn: Gfn| gfn.0 * (PAGE_SIZE / WORD);
        let mut known = self.0.lock();
        let gone: Vec<u64> =
            known.words.range(words_of(first)..words_of(first + pages)).map(|(word, _)| *word).collect();
        for word in gone {
            known.words.remove(&word);
        }
    }

    /// Whether the guest has accepted the page only ever once at a time.
    pub(super) fn was_accepted_in_order(&self, gfn: Gfn) -> bool {
        !self.0.lock().accepted_twice.contains(&gfn)
    }
}
