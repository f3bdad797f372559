//! Who is operating on an entry right now: the transient marks that make a second operation fail, and the vCPUs that use a page.
//!
//! An operation on one entry marks that entry; one on a 2 MiB page marks the head for the whole region and requires that no entry of it
//! is marked. VMRUN marks the pages of a running vCPU as in use, which is no obstacle to data accesses (a guest may clear PCPU_ID in a
//! VMSA that runs) and one to every instruction. Nobody waits for a mark: the second one fails, and software tries again.
//!
//! Simulated, an instruction is one step and never meets another's mark, except with
//! [`SnpConfig::contention`](super::SnpConfig): then another task may run between mark and commit.

use super::rmp::Rmp;
use super::types::head_of;
use sim_kernel::sched::TaskId;
use sim_kernel::{PAGES_PER_PMD, Pfn};
use std::sync::atomic::Ordering;

const IN_USE_SHIFT: u32 = 32;
const IN_USE_MASK: u64 = 0xff << IN_USE_SHIFT;
const HOLDER_SHIFT: u32 = 40;
const HOLDER_MASK: u64 = 0xff << HOLDER_SHIFT;
/// The mark is for the region, not for the entry alone.
const REGION: u64 = 1 << 48;
/// On a head: an RMPUPDATE of one of the 4 KiB pages is under way.
const UPDATING: u64 = 1 << 49;

/// Who marks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Holder {
    Cpu(TaskId),
    Firmware,
}

impl Holder {
    fn bits(self) -> u64 {
        let number = match self {
            Holder::Cpu(task) => u64::from(task.0) + 1,
            Holder::Firmware => 0xff,
        };
        number << HOLDER_SHIFT
    }
}

/// What is to be marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Span {
    Entry,
    Region,
}

impl Span {
    /// Frames that it marks.
    pub(super) const fn pages(self) -> u64 {
        match self {
            Span::Entry => 1,
            Span::Region => PAGES_PER_PMD,
        }
    }
}

/// Why a mark could not be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Conflict {
    /// A vCPU runs with the page.
    InUse,
    /// Somebody operates on the entry.
    Entry,
    /// Somebody operates on the 2 MiB region, or on another entry of it that the operation needs.
    Region,
}

/// A mark; dropping it takes it away.
#[derive(Debug)]
#[must_use = "the entry is free again when this is dropped"]
pub(super) struct RmpLock<'a> {
    rmp: &'a Rmp,
    pfn: Pfn,
    bits: u64,
}

impl Drop for RmpLock<'_> {
    fn drop(&mut self) {
        self.rmp.slot_mut(self.pfn).high.fetch_and(!self.bits, Ordering::SeqCst);
    }
}

impl Rmp {
    fn marks(&self, pfn: Pfn) -> u64 {
        self.slot(pfn).map_or(0, |slot| slot.high.load(Ordering::SeqCst))
    }

    /// Marks an entry, or the region at a head.
    pub(super) fn lock(&self, pfn: Pfn, span: Span, holder: Holder) -> Result<RmpLock<'_>, Conflict> {
        // The firmware is not stopped by a vCPU that runs: its own tests of the state are.
        let heeded = if holder == Holder::Firmware { HOLDER_MASK } else { HOLDER_MASK | IN_USE_MASK };
        let region = if span == Span::Region { REGION } else { 0 };
        let bits = holder.bits() | region;
        let conflict = |high: u64| match high {
            _ if high & heeded & IN_USE_MASK != 0 => Some(Conflict::InUse),
            _ if high & HOLDER_MASK == 0 => None,
            _ if high & REGION != 0 => Some(Conflict::Region),
            _ => Some(Conflict::Entry),
        };
        let slot = self.slot_mut(pfn);
        let set = |high: u64| conflict(high).is_none().then_some(high | bits);
        slot.high
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, set)
            .map_err(|high| conflict(high).expect("as above"))?;
        let lock = RmpLock { rmp: self, pfn, bits: HOLDER_MASK | REGION };
        match span {
            Span::Entry if pfn != head_of(pfn) && self.marks(head_of(pfn)) & REGION != 0 => Err(Conflict::Region),
            Span::Entry => Ok(lock),
            Span::Region => {
                if self.marks(pfn) & UPDATING != 0 {
                    return Err(Conflict::Region);
                }
                let other = (1..PAGES_PER_PMD).find_map(|i| conflict(self.marks(pfn + i)));
                match other {
                    Some(Conflict::InUse) => Err(Conflict::InUse),
                    Some(_) => Err(Conflict::Region),
                    None => Ok(lock),
                }
            }
        }
    }

    /// Marks the head: a 4 KiB RMPUPDATE is under way somewhere in the region.
    pub(super) fn lock_updating(&self, pfn: Pfn) -> Result<RmpLock<'_>, Conflict> {
        let pfn = head_of(pfn);
        let old = self.slot_mut(pfn).high.fetch_or(UPDATING, Ordering::SeqCst);
        if old & UPDATING != 0 {
            return Err(Conflict::Region);
        }
        Ok(RmpLock { rmp: self, pfn, bits: UPDATING })
    }

    /// Whether an instruction or the firmware is operating on the entry, or on its region.
    #[inline]
    pub(super) fn is_busy(&self, pfn: Pfn) -> bool {
        let region = |marks: u64| marks & REGION != 0 && marks & HOLDER_MASK != 0;
        self.marks(pfn) & HOLDER_MASK != 0 || region(self.marks(head_of(pfn)))
    }

    /// Whether a vCPU runs with the page.
    pub fn is_in_use(&self, pfn: Pfn) -> bool {
        self.marks(pfn) & IN_USE_MASK != 0
    }

    /// A vCPU begins to run with the page.
    pub(super) fn begin_use(&self, pfn: Pfn) {
        let old = self.slot_mut(pfn).high.fetch_add(1 << IN_USE_SHIFT, Ordering::SeqCst);
        assert!(old & IN_USE_MASK != IN_USE_MASK, "{pfn:?} is used by 255 vCPUs at once");
    }

    /// A vCPU that ran with the page has left the guest.
    pub(super) fn end_use(&self, pfn: Pfn) {
        let old = self.slot_mut(pfn).high.fetch_sub(1 << IN_USE_SHIFT, Ordering::SeqCst);
        assert!(old & IN_USE_MASK != 0, "{pfn:?} was not in use");
    }
}
