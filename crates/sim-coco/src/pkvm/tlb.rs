//! The TLBs of all processors: stage-2 translations by VMID, filled by accesses and emptied by nothing but TLB maintenance, so that a missing TLBI is
//! seen as stale data.
//!
//! Simplified: entries are never evicted, and stage 1 is not cached. EL2's own mappings are not in here: unmapping at EL2 includes its invalidation.
//!
//! The lock around the entries is the machine's: whoever accesses memory holds it from the look-up to the access, so that when a TLBI returns no access by
//! an old translation is on its way (what `DSB` waits for).

use super::pte::{Pte, S2Level};
use super::trace::Tlbi;
use super::types::{CpuId, Pa, Vmid};
use sim_kernel::Pfn;
use std::collections::BTreeMap;

/// A translation that a processor remembers: for one page, of whatever size the descriptor was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlbEntry {
    /// What the page translates to.
    pub pfn: Pfn,
    /// The descriptor, as it was.
    pub pte: Pte,
    /// Its level.
    pub level: S2Level,
}

/// Entries by processor, VMID and page.
pub(super) type Entries = BTreeMap<(CpuId, Vmid, Pfn), TlbEntry>;

#[derive(Debug, Default)]
pub(super) struct Tlbs {
    entries: parking_lot::Mutex<Entries>,
}

impl Tlbs {
    /// The entries, for an access that looks up, fills and touches memory at once.
    pub(super) fn access(&self) -> parking_lot::MutexGuard<'_, Entries> {
        self.entries.lock()
    }

    /// What the processor remembers of a page.
    pub(super) fn lookup(&self, cpu: CpuId, vmid: Vmid, page: Pfn) -> Option<TlbEntry> {
        self.entries.lock().get(&(cpu, vmid, page)).copied()
    }

    pub(super) fn invalidate(&self, cpu: CpuId, vmid: Vmid, op: Tlbi) {
        let mut entries = self.entries.lock();
        entries.retain(|(on, of, page), entry| {
            // Of the leaf that translates the address, all pages go.
            let leaf = |ipa: Pa, level: Option<S2Level>| {
                level.is_none_or(|level| level == entry.level)
                    && ipa.pfn().0 / entry.level.pages() == page.0 / entry.level.pages()
            };
            let hit = match op {
                Tlbi::Ipa { ipa, level } => leaf(ipa, level),
                Tlbi::IpaLocal { ipa, level } => *on == cpu && leaf(ipa, level),
                Tlbi::Range { ipa, pages } => (ipa.pfn()..ipa.pfn() + pages).contains(page),
                Tlbi::Vmid => true,
                Tlbi::VmidLocal => *on == cpu,
            };
            *of != vmid || !hit
        });
    }

    /// All of them, for checkers.
    pub(super) fn all(&self) -> Entries {
        self.entries.lock().clone()
    }
}
