//! What a processor remembers of translations of TDs: tagged by the HKID, as the module tags them, so that all vCPUs of a TD share what is in one processor.
//!
//! Entries never leave by themselves; a translation that should have been flushed is therefore seen as data.

use super::types::Hkid;
use sim_kernel::Pfn;
use sim_mmu::{Gfn, Level};
use std::collections::BTreeMap;

/// A translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TlbEntry {
    /// First frame of the page.
    pub pfn: Pfn,
    /// Size of the page.
    pub level: Level,
    /// Whether the guest may write.
    pub writable: bool,
    /// Whether it came from the host's tables. The address has the shared bit then.
    pub shared: bool,
}

impl TlbEntry {
    /// The frame for an address of the page.
    pub fn frame(&self, gfn: Gfn) -> Pfn {
        self.pfn + (gfn.0 & (self.level.span() - 1))
    }
}

/// The translations of a processor.
#[derive(Clone, Debug, Default)]
pub(super) struct Tlb(BTreeMap<(Hkid, Gfn, Level), TlbEntry>);

impl Tlb {
    /// The translation of an address, of whatever size.
    pub(super) fn lookup(&self, hkid: Hkid, gfn: Gfn) -> Option<TlbEntry> {
        let sizes = [Level::L4K, Level::L2M, Level::L1G];
        sizes.into_iter().find_map(|level| self.0.get(&(hkid, gfn.round_down(level), level)).copied())
    }

    pub(super) fn fill(&mut self, hkid: Hkid, gfn: Gfn, entry: TlbEntry) {
        self.0.insert((hkid, gfn.round_down(entry.level), entry.level), entry);
    }

    /// A violation drops what was known of the address.
    pub(super) fn drop_address(&mut self, hkid: Hkid, gfn: Gfn) {
        for level in [Level::L4K, Level::L2M, Level::L1G] {
            self.0.remove(&(hkid, gfn.round_down(level), level));
        }
    }

    pub(super) fn flush(&mut self, hkid: Hkid) {
        self.0.retain(|(of, _, _), _| *of != hkid);
    }

    pub(super) fn flush_all(&mut self) {
        self.0.clear();
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (Hkid, Gfn, TlbEntry)> {
        self.0.iter().map(|((hkid, gfn, _), entry)| (*hkid, *gfn, *entry))
    }
}
