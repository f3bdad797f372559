//! The reverse map table: one entry for every frame that it covers.
//!
//! An entry is two words that are kept as Zen 3 keeps them, in an array that grows where it is written: frames that nobody was ever given cost
//! nothing. The upper half of the second word, which the processors leave empty, has the transient marks of [`super::lock`]. The
//! pages of the table itself are the firmware's once it has been initialised; that is computed, not stored.
//!
//! Natively an entry is read as two words: who needs both reads the first one again.

use super::entry::{ASSIGNED, IMMUTABLE, PAGE_SIZE_2M, RmpEntry, RmpReadout};
use super::layout::RmpLayout;
use super::state::PageState;
use super::types::{RmpSize, head_of};
use bytemuck::Zeroable;
use sim_kernel::{Arena, PAGES_PER_PMD, Pfn};
use sim_mmu::Level;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// In the second word of a head: the region is listed as written.
const LISTED: u64 = 1 << 63;
/// In the second word: how often RMPUPDATE gave the entry a new owner, address or size, counted modulo 2^13. The simulator's own.
const CHANGES_SHIFT: u32 = 50;
const CHANGES_MASK: u64 = 0x1fff << CHANGES_SHIFT;
/// The permissions in the second word.
const PERMS_MASK: u64 = 0xffff_ffff;

/// The two words of an entry.
#[derive(Zeroable)]
#[repr(C)]
pub(super) struct Slot {
    pub(super) low: AtomicU64,
    pub(super) high: AtomicU64,
}

/// The table.
pub struct Rmp {
    layout: RmpLayout,
    slots: Arena<Slot, 6>,
    /// Regions, by the frame number of their heads, in which an entry was written.
    regions: parking_lot::Mutex<BTreeSet<u64>>,
    /// The firmware was initialised: the pages of the table are its own.
    protects_itself: AtomicBool,
}

impl Rmp {
    pub(super) fn new(layout: RmpLayout) -> Rmp {
        Rmp { layout, slots: Arena::new(), regions: Default::default(), protects_itself: AtomicBool::new(false) }
    }

    /// Coverage and place.
    pub fn layout(&self) -> &RmpLayout {
        &self.layout
    }

    /// Whether the frame has an entry (*COVERED*).
    #[inline]
    pub fn covers(&self, pfn: Pfn) -> bool {
        self.layout.covers(pfn)
    }

    /// Whether every frame of the region has.
    pub(super) fn covers_region(&self, head: Pfn) -> bool {
        // Segments begin and end at a whole GiB; a contiguous table has one end.
        self.covers(head) && self.covers(head + (PAGES_PER_PMD - 1))
    }

    #[inline]
    fn own(&self, pfn: Pfn) -> bool {
        self.protects_itself.load(Ordering::Relaxed) && self.layout.is_rmp_page(pfn)
    }

    /// Whether the firmware was initialised since the table was zeroed.
    pub(super) fn is_own_protected(&self) -> bool {
        self.protects_itself.load(Ordering::Relaxed)
    }

    pub(super) fn protect_itself(&self, on: bool) {
        self.protects_itself.store(on, Ordering::Relaxed);
    }

    /// The words of an entry, if it was ever written.
    #[inline]
    pub(super) fn slot(&self, pfn: Pfn) -> Option<&Slot> {
        self.slots.get_if_present(u32::try_from(pfn.0).ok()?)
    }

    /// The words of an entry that is to be written, or marked.
    ///
    /// # Panics
    /// If the RMP does not cover the frame.
    pub(super) fn slot_mut(&self, pfn: Pfn) -> &Slot {
        assert!(self.covers(pfn), "the RMP has no entry for {pfn:?}");
        let index = pfn.0 as u32;
        self.slots.ensure(index);
        let head = head_of(pfn);
        self.slots.ensure(head.0 as u32);
        let old = self.slots.get(head.0 as u32).high.fetch_or(LISTED, Ordering::Relaxed);
        if old & LISTED == 0 {
            self.regions.lock().insert(head.0);
        }
        self.slots.get(index)
    }

    /// The entry of this frame, as it stands: a tail's own fields where the page is 2 MiB. Not covered reads as the hypervisor's.
    #[inline]
    pub fn entry(&self, pfn: Pfn) -> RmpEntry {
        if self.own(pfn) {
            return RmpEntry::FIRMWARE;
        }
        let Some(slot) = self.slot(pfn) else { return RmpEntry::HYPERVISOR };
        loop {
            let low = slot.low.load(Ordering::Acquire);
            let high = slot.high.load(Ordering::Acquire);
            if slot.low.load(Ordering::Acquire) == low {
                return RmpEntry::from_raw([low, high & PERMS_MASK]).0;
            }
        }
    }

    /// Whether somebody else than the hypervisor owns the frame.
    #[inline]
    pub fn is_assigned(&self, pfn: Pfn) -> bool {
        self.low(pfn) & ASSIGNED != 0
    }

    pub(super) fn is_immutable(&self, pfn: Pfn) -> bool {
        self.low(pfn) & IMMUTABLE != 0
    }

    #[inline]
    fn low(&self, pfn: Pfn) -> u64 {
        if self.own(pfn) {
            return RmpEntry::FIRMWARE.to_raw(0)[0];
        }
        self.slot(pfn).map_or(0, |slot| slot.low.load(Ordering::Acquire))
    }

    /// Whether the region around the frame is one page of 2 MiB.
    #[inline]
    pub(super) fn is_2m(&self, pfn: Pfn) -> bool {
        self.low(head_of(pfn)) & PAGE_SIZE_2M != 0
    }

    /// Whether any frame of the region around this one is assigned.
    pub(super) fn any_assigned_in_region(&self, pfn: Pfn) -> bool {
        let head = head_of(pfn);
        let written = self.slot(head).is_some_and(|slot| slot.high.load(Ordering::Relaxed) & LISTED != 0);
        // The table has its pages from one end of a region on, or up to one.
        let may_be = written || self.own(head) || self.own(head + (PAGES_PER_PMD - 1));
        may_be && (0..PAGES_PER_PMD).any(|i| self.is_assigned(head + i))
    }

    /// The page that contains the frame, as its owner may use the frame: for a tail, the fields of the head, at the address of the
    /// tail. This is what the checks compare with.
    #[inline]
    pub fn page(&self, pfn: Pfn) -> RmpEntry {
        if !self.is_2m(pfn) {
            return self.entry(pfn);
        }
        let head = head_of(pfn);
        let entry = self.entry(head);
        RmpEntry { gpa: entry.gpa + ((pfn - head) << sim_kernel::PAGE_SHIFT), ..entry }
    }

    /// The state of the page that contains the frame; `None` breaks SNP-INV-001.
    pub fn state(&self, pfn: Pfn) -> Option<PageState> {
        let page = self.page(pfn);
        // A head's address is never 0 for the pages of it that follow; the state is the head's.
        let head = if self.is_2m(pfn) { self.entry(head_of(pfn)) } else { page };
        PageState::of(&head)
    }

    /// What Linux looks up: whether the frame itself is assigned, and the size, which is its head's. `None` if it has no entry.
    pub fn lookup(&self, pfn: Pfn) -> Option<(bool, Level)> {
        let level = if self.is_2m(pfn) { Level::L2M } else { Level::L4K };
        self.covers(pfn).then(|| (self.is_assigned(pfn), level))
    }

    /// What RMPREAD shows of the frame.
    pub(super) fn readout(&self, pfn: Pfn) -> RmpReadout {
        let entry = self.entry(pfn);
        RmpReadout {
            gpa: entry.gpa,
            assigned: entry.assigned,
            page_size: entry.page_size,
            hpage_region: self.is_2m(pfn),
            immutable: entry.immutable,
            asid: entry.asid,
        }
    }

    /// The 16 bytes in memory, as two little-endian quadwords; heads have the count of the other assigned entries (SNP-INV-026).
    pub fn raw(&self, pfn: Pfn) -> Option<[u64; 2]> {
        let head = head_of(pfn);
        let count = if pfn == head && self.slot(pfn).is_some() {
            (1..PAGES_PER_PMD).filter(|i| self.is_assigned(head + *i)).count() as u16
        } else {
            0
        };
        self.covers(pfn).then(|| self.entry(pfn).to_raw(count))
    }

    /// Replaces an entry. The caller has its lock, or that of the region.
    pub(super) fn store(&self, pfn: Pfn, entry: &RmpEntry) {
        let slot = self.slot_mut(pfn);
        let [low, perms] = entry.to_raw(0);
        // Readers take the first word first: a page is never seen with the permissions of its last owner.
        let _ = slot.high.fetch_update(Ordering::AcqRel, Ordering::Acquire, |high| Some(high & !PERMS_MASK | perms));
        slot.low.store(low, Ordering::Release);
    }

    /// Replaces the page at `pfn`: the entry, and where it is 2 MiB (or was, if `was` says so) the tails.
    pub(super) fn store_page(&self, pfn: Pfn, entry: &RmpEntry, size: RmpSize) {
        if size == RmpSize::Size2M {
            let tail = RmpEntry { assigned: entry.assigned, ..RmpEntry::HYPERVISOR };
            for i in 1..PAGES_PER_PMD {
                self.store(pfn + i, &tail);
            }
        }
        self.store(pfn, entry);
    }

    /// Changes the page that contains the frame, without touching tails.
    pub(super) fn change_page(&self, pfn: Pfn, change: impl FnOnce(&mut RmpEntry)) {
        let at = if self.is_2m(pfn) { head_of(pfn) } else { pfn };
        let mut entry = self.entry(at);
        change(&mut entry);
        self.store(at, &entry);
    }

    /// Counts that RMPUPDATE has changed the entry. The caller has its lock.
    pub(super) fn count_change(&self, pfn: Pfn) {
        let next = |high: u64| high & !CHANGES_MASK | high.wrapping_add(1 << CHANGES_SHIFT) & CHANGES_MASK;
        let _ = self.slot_mut(pfn).high.fetch_update(Ordering::AcqRel, Ordering::Acquire, |high| Some(next(high)));
    }

    /// How often RMPUPDATE has changed the entry of the frame or that of its head, modulo 2^13: for checkers, who ask whether it has in between.
    pub fn changes(&self, pfn: Pfn) -> [u64; 2] {
        let count = |pfn| self.slot(pfn).map_or(0, |slot| slot.high.load(Ordering::Relaxed)) & CHANGES_MASK;
        [pfn, head_of(pfn)].map(|pfn| count(pfn) >> CHANGES_SHIFT)
    }

    /// The heads of all regions in which an entry was ever written, ascending: for checkers.
    pub fn written_regions(&self) -> Vec<Pfn> {
        self.regions.lock().iter().map(|head| Pfn(*head)).collect()
    }

    /// Forgets every entry: a reset, or what software does before SNP is enabled.
    pub(super) fn clear(&self) {
        for head in self.written_regions() {
            for i in 0..PAGES_PER_PMD {
                if self.slot(head + i).is_some() && self.covers(head + i) {
                    self.store(head + i, &RmpEntry::HYPERVISOR);
                }
            }
        }
        self.protect_itself(false);
    }
}

impl fmt::Debug for Rmp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rmp").field("regions", &self.regions.lock().len()).finish_non_exhaustive()
    }
}
