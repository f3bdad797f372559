//! Shadow page-table entries: states, construction and the permission test (`arch/x86/kvm/mmu/spte.c`, `spte.h`).
//!
//! An [`Spte`] is the raw word; what depends on the vendor's format is a method of [`SpteMasks`]. Simplified: no write tracking, no host
//! C-bit, only write-back memory.

use crate::addr::{Gfn, Level};
use crate::stage2::{
    ACC_SAVED_SHIFT, FROZEN_SPTE, PT_PAGE_SIZE_MASK, PT_WRITABLE_MASK, SHADOW_NONPRESENT_VALUE, SPTE_BASE_ADDR_MASK,
    SPTE_MMU_PRESENT_MASK, SpteMasks,
};
use sim_kernel::{PAGE_SHIFT, Pfn};
use std::fmt;

/// Low bits of the generation, kept at 9:3.
const GEN_LOW_BITS: u32 = 7;
const GEN_LOW_START: u32 = 3;
/// High bits of the generation, kept at 62:52.
const GEN_HIGH_BITS: u32 = 11;
const GEN_HIGH_START: u32 = 52;
/// `MMIO_SPTE_GEN_MASK`: the bits of a memslot generation that an MMIO entry remembers.
pub const MMIO_SPTE_GEN_MASK: u64 = (1 << (GEN_LOW_BITS + GEN_HIGH_BITS)) - 1;
/// `KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS`: set in a generation while memslots are being swapped.
pub const MEMSLOT_GEN_UPDATE_IN_PROGRESS: u64 = 1 << 63;

/// How memory is accessed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Exec,
}

/// What an entry is, as a recording shows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SpteState {
    /// Not present.
    None,
    /// Present, maps memory.
    Leaf {
        /// The hardware's write bit.
        writable: bool,
    },
    /// Present, points to a lower table.
    Table,
    /// Belongs to a table that was unlinked.
    Frozen,
    /// Caches that no memslot is here.
    Mmio,
}

/// A stage-2 entry as KVM sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Spte(pub u64);

impl Spte {
    /// What a new table is filled with.
    pub const NONPRESENT: Spte = Spte(SHADOW_NONPRESENT_VALUE);
    /// `FROZEN_SPTE`: nobody may install anything here.
    pub const FROZEN: Spte = Spte(FROZEN_SPTE);

    /// `is_shadow_present_pte`.
    #[inline]
    pub const fn is_present(self) -> bool {
        self.0 & SPTE_MMU_PRESENT_MASK != 0
    }

    /// `is_frozen_spte`.
    #[inline]
    pub const fn is_frozen(self) -> bool {
        self.0 == FROZEN_SPTE
    }

    /// `is_last_spte`: whether a present entry of `level` maps memory.
    #[inline]
    pub const fn is_last(self, level: Level) -> bool {
        matches!(level, Level::L4K) || self.0 & PT_PAGE_SIZE_MASK != 0
    }

    /// Whether the entry is present and maps memory.
    #[inline]
    pub const fn is_leaf(self, level: Level) -> bool {
        self.is_present() && self.is_last(level)
    }

    /// Whether the entry is present and points to a table.
    #[inline]
    pub const fn is_table(self, level: Level) -> bool {
        self.is_present() && !self.is_last(level)
    }

    /// `is_writable_pte`: the hardware's write bit.
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.0 & PT_WRITABLE_MASK != 0
    }

    /// `spte_to_pfn`.
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn((self.0 & SPTE_BASE_ADDR_MASK) >> PAGE_SHIFT)
    }

    /// The entry without these bits.
    #[inline]
    pub const fn without(self, bits: u64) -> Spte {
        Spte(self.0 & !bits)
    }

    /// The entry with these bits.
    #[inline]
    pub const fn with(self, bits: u64) -> Spte {
        Spte(self.0 | bits)
    }

    /// Whether all these bits are set.
    #[inline]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// The entry write-protected in hardware.
    #[inline]
    pub const fn write_protected(self) -> Spte {
        self.without(PT_WRITABLE_MASK)
    }

    const fn with_pfn(self, pfn: Pfn) -> Spte {
        Spte(self.0 & !SPTE_BASE_ADDR_MASK | pfn.0 << PAGE_SHIFT)
    }
}

impl fmt::Debug for Spte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spte({:#018x})", self.0)
    }
}

impl SpteMasks {
    /// `make_spte`: a leaf of `level` for `pfn`. A speculative mapping has not been accessed yet.
    #[inline]
    pub fn make_spte(&self, pfn: Pfn, level: Level, host_writable: bool, prefetch: bool) -> Spte {
        let mut spte = self.leaf | pfn.0 << PAGE_SHIFT;
        if level > Level::L4K {
            spte |= PT_PAGE_SIZE_MASK;
        }
        if !prefetch {
            spte |= self.accessed;
        }
        if host_writable {
            // D at once: the first write is reported when the entry is made, not by the hardware.
            spte |= self.host_writable | self.mmu_writable | PT_WRITABLE_MASK | self.dirty;
        }
        // Without A bits of the hardware, a mapping that nobody asked for waits for its first access.
        if prefetch && self.acc_track != 0 { self.mark_spte_for_access_track(Spte(spte)) } else { Spte(spte) }
    }

    /// Whether the hardware sets A and D in this VM's entries (`kvm_ad_enabled`).
    #[inline]
    pub const fn ad_enabled(&self) -> bool {
        self.ad_disabled == 0
    }

    /// `is_access_track_spte`: a present leaf that hardware takes for absent, so that KVM sees its next access.
    #[inline]
    pub const fn is_access_track(&self, spte: Spte) -> bool {
        self.acc_track != 0 && spte.is_present() && spte.0 & self.acc_track == 0
    }

    /// `mark_spte_for_access_track`: the leaf has not been accessed. Where the hardware sets A, that bit says so; elsewhere the leaf gives up
    /// its rights until the next access.
    #[inline]
    pub const fn mark_spte_for_access_track(&self, spte: Spte) -> Spte {
        if self.acc_track == 0 || self.is_access_track(spte) {
            return spte.without(self.accessed);
        }
        let saved = (spte.0 & self.acc_saved) << ACC_SAVED_SHIFT;
        Spte(spte.0 & !(self.acc_track | self.accessed) | saved)
    }

    /// `restore_acc_track_spte`: gives the rights back; W is not among them.
    #[inline]
    pub const fn restore_acc_track_spte(&self, spte: Spte) -> Spte {
        let saved = spte.0 >> ACC_SAVED_SHIFT & self.acc_saved;
        Spte(spte.0 & !(self.acc_track | self.acc_saved << ACC_SAVED_SHIFT) | saved)
    }

    /// `is_accessed_spte`. Where the hardware sets no A bits, the same bit is KVM's own.
    #[inline]
    pub const fn is_accessed(&self, spte: Spte) -> bool {
        spte.0 & self.accessed != 0
    }

    /// `change_spte_executable`, to take the right away; an entry that waits for its next access will not get the right either.
    #[inline]
    pub const fn make_nonexecutable(&self, spte: Spte) -> Spte {
        let exec = self.exec | self.user_exec;
        if self.is_access_track(spte) {
            return spte.without(exec << ACC_SAVED_SHIFT);
        }
        spte.without(exec).with(self.nx)
    }

    /// `change_spte_executable`, to give it back; an entry that waits for its next access gets the right with the others.
    #[inline]
    pub const fn make_executable(&self, spte: Spte) -> Spte {
        let exec = self.exec | self.user_exec;
        if self.is_access_track(spte) {
            return spte.with(exec << ACC_SAVED_SHIFT);
        }
        spte.with(exec).without(self.nx)
    }

    /// `make_nonleaf_spte`.
    #[inline]
    pub const fn make_nonleaf_spte(&self, table: Pfn) -> Spte {
        Spte(self.nonleaf | table.0 << PAGE_SHIFT)
    }

    /// `make_small_spte`: child `index` of the huge leaf `huge` of `level`. W, D, A, H and M are inherited.
    pub fn make_small_spte(&self, huge: Spte, level: Level, index: usize) -> Spte {
        let child = level.down().expect("a huge leaf has a level below");
        let small = huge.with_pfn(huge.pfn() + index as u64 * child.span());
        if child == Level::L4K { small.without(PT_PAGE_SIZE_MASK) } else { small }
    }

    /// `make_huge_spte`: the leaf of `level` that contains what `small` maps.
    pub fn make_huge_spte(&self, small: Spte, level: Level) -> Spte {
        small.with_pfn(Pfn(small.pfn().0 & !(level.span() - 1))).with(PT_PAGE_SIZE_MASK)
    }

    /// `make_mmio_spte`: remembers that no memslot contains `gfn` as of `generation`.
    ///
    /// # Panics
    /// If MMIO caching is off.
    pub fn make_mmio_spte(&self, gfn: Gfn, generation: u64) -> Spte {
        assert!(self.mmio_caching(), "an MMIO entry is made while MMIO caching is off");
        let generation = generation & MMIO_SPTE_GEN_MASK;
        let low = generation & ((1 << GEN_LOW_BITS) - 1);
        let high = generation >> GEN_LOW_BITS;
        Spte(low << GEN_LOW_START | high << GEN_HIGH_START | self.mmio_value | self.mmio_access | gfn.0 << PAGE_SHIFT)
    }

    /// `is_mmio_spte`.
    #[inline]
    pub const fn is_mmio(&self, spte: Spte) -> bool {
        self.mmio_mask != 0 && spte.0 & self.mmio_mask == self.mmio_value
    }

    /// `get_mmio_spte_generation`.
    pub const fn mmio_generation(&self, spte: Spte) -> u64 {
        let low = spte.0 >> GEN_LOW_START & ((1 << GEN_LOW_BITS) - 1);
        let high = spte.0 >> GEN_HIGH_START & ((1 << GEN_HIGH_BITS) - 1);
        low | high << GEN_LOW_BITS
    }

    /// `get_mmio_spte_gfn`.
    pub const fn mmio_gfn(&self, spte: Spte) -> Gfn {
        Gfn((spte.0 & SPTE_BASE_ADDR_MASK & !self.mmio_value) >> PAGE_SHIFT)
    }

    /// `check_mmio_spte`: whether the MMIO entry still holds in memslot generation `generation`. Never while an update runs.
    pub const fn check_mmio_spte(&self, spte: Spte, generation: u64) -> bool {
        generation & MEMSLOT_GEN_UPDATE_IN_PROGRESS == 0
            && self.mmio_generation(spte) == generation & MMIO_SPTE_GEN_MASK
    }

    /// `spte_permission_fault`, the other way round: the permission test on a present leaf.
    #[inline]
    pub const fn is_access_allowed(&self, spte: Spte, access: Access) -> bool {
        spte.is_present() && self.hw_allows(spte.0, access)
    }

    /// Whether the hardware permits the access by this one present entry.
    #[inline]
    pub(crate) const fn hw_allows(&self, entry: u64, access: Access) -> bool {
        match access {
            Access::Read => entry & self.read == self.read,
            Access::Write => entry & PT_WRITABLE_MASK != 0,
            Access::Exec => entry & self.exec == self.exec && entry & self.nx == 0,
        }
    }

    /// `spte_needs_atomic_update`: whether others may change the entry without mmu_lock so that the change must not be lost.
    #[inline]
    pub const fn needs_atomic_update(&self, spte: Spte) -> bool {
        (!spte.is_writable() && spte.has(self.mmu_writable))
            || !self.ad_enabled()
            || (spte.is_writable() && !spte.has(self.dirty))
    }

    /// What the entry is.
    pub const fn classify(&self, spte: Spte, level: Level) -> SpteState {
        if spte.is_frozen() {
            SpteState::Frozen
        } else if spte.is_leaf(level) {
            SpteState::Leaf { writable: spte.is_writable() }
        } else if spte.is_present() {
            SpteState::Table
        } else if self.is_mmio(spte) {
            SpteState::Mmio
        } else {
            SpteState::None
        }
    }

    /// Asserts what holds for every entry that is written (MMU-INV-010, 013, 015, 016).
    pub(crate) fn assert_well_formed(&self, spte: Spte, level: Level) {
        if !spte.is_present() {
            let known = spte == Spte::NONPRESENT || spte.is_frozen() || self.is_mmio(spte);
            assert!(known, "MMU-INV-013: {spte:?} is in no state");
            assert!(level == Level::L4K || !self.is_mmio(spte), "MMU-INV-013: an MMIO entry at {level:?}");
            return;
        }
        assert!(!self.is_malformed(spte.0), "MMU-INV-015: reserved bits in {spte:?}");
        assert!(!self.is_mmio(spte), "MMU-INV-013: {spte:?} is present and an MMIO entry");
        if self.nx == 0 {
            assert!(spte.has(SHADOW_NONPRESENT_VALUE), "MMU-INV-016: {spte:?} does not suppress #VE");
        }
        if spte.is_last(level) {
            assert!(level <= Level::L1G, "MMU-INV-014: a leaf at {level:?}");
            assert!(!spte.is_writable() || spte.has(self.mmu_writable), "MMU-INV-010: W without M in {spte:?}");
            let h = spte.has(self.host_writable);
            assert!(h || !spte.has(self.mmu_writable), "MMU-INV-010: M without H in {spte:?}");
            assert!(spte.pfn().0.is_multiple_of(level.span()), "MMU-INV-014: {:?} at {level:?}", spte.pfn());
            let rights = spte.0 & (self.hw_present | self.user_exec);
            let saved = spte.0 >> ACC_SAVED_SHIFT & self.acc_saved;
            let tracked = self.is_access_track(spte) && saved & self.read != 0;
            assert!(rights != 0 || tracked, "MMU-INV-020: {spte:?} has no rights and keeps none");
            assert!(rights == 0 || saved == 0, "MMU-INV-020: {spte:?} has rights and keeps some");
            assert!(spte.has(self.ad_disabled), "MMU-INV-020: {spte:?} is of the other A/D kind");
        }
    }
}
