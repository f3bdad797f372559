//! One cached translation, in 32 bytes: two to a cache line.

use crate::addr::{Gfn, Level};
use crate::guest_paging::Stage1Rights;
use crate::walker::{GuestLeaf, Stage2Leaf, Stage2Rights};
use sim_kernel::Pfn;

const DIRTY_1: u8 = 1 << 3;
const KEY_SHIFT: u32 = 4;
const DIRTY_2: u8 = 1 << 5;
const PRIVATE: u8 = 1 << 6;
const GLOBAL: u8 = 1 << 7;
/// Levels of leaves take two bits each.
const LEVEL: u8 = 0b11;
const STAGE2_LEVEL_SHIFT: u32 = 2;
const GUEST_LEVEL_SHIFT: u32 = 4;

/// A combined mapping (gva to hpa) or a guest-physical one (gpa to hpa). Stamp 0 is an empty entry.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(C, align(32))]
pub(crate) struct Entry {
    /// First 4 KiB page of the mapping: gva or gpa / 4096.
    page: u64,
    /// Frame of that page.
    pfn: u64,
    /// Guest frame of that page.
    gfn: u64,
    /// Which life of which context the entry belongs to.
    pub(super) stamp: u32,
    /// Level of the mapping; above, levels of stage 2's leaf and of the guest's page, either of which may be larger.
    levels: u8,
    /// [`Stage1Rights`], the guest's D, the protection key.
    stage1: u8,
    /// [`Stage2Rights`], stage 2's D, the C-bit, G.
    stage2: u8,
}

/// The first page of the mapping of `level` that contains `page`.
#[inline]
pub(super) const fn base(page: u64, level: Level) -> u64 {
    page & !(level.span() - 1)
}

impl Entry {
    #[inline(always)]
    pub(super) fn combined(page: u64, leaf: &GuestLeaf, stamp: u32) -> Entry {
        let level = if leaf.level < leaf.stage2.level { leaf.level } else { leaf.stage2.level };
        let inside = page & (level.span() - 1);
        let Stage2Leaf { pfn, rights, dirty, .. } = leaf.stage2;
        let flag = |set, bit| if set { bit } else { 0 };
        Entry {
            page: page - inside,
            pfn: pfn.0 - inside,
            gfn: leaf.gfn.0 - inside,
            stamp,
            levels: level.number()
                | leaf.stage2.level.number() << STAGE2_LEVEL_SHIFT
                | leaf.level.number() << GUEST_LEVEL_SHIFT,
            stage1: leaf.rights.0 | flag(leaf.dirty, DIRTY_1) | leaf.key << KEY_SHIFT,
            stage2: rights.bits() | flag(dirty, DIRTY_2) | flag(leaf.private, PRIVATE) | flag(leaf.global, GLOBAL),
        }
    }

    #[inline(always)]
    pub(super) fn guest_physical(page: u64, leaf: &Stage2Leaf, stamp: u32) -> Entry {
        let inside = page & (leaf.level.span() - 1);
        Entry {
            page: page - inside,
            pfn: leaf.pfn.0 - inside,
            gfn: page - inside,
            stamp,
            levels: leaf.level.number() * (1 | 1 << STAGE2_LEVEL_SHIFT | 1 << GUEST_LEVEL_SHIFT),
            stage1: 0,
            stage2: leaf.rights.bits() | if leaf.dirty { DIRTY_2 } else { 0 },
        }
    }

    /// First page of the mapping.
    #[inline]
    pub(super) const fn page(&self) -> u64 {
        self.page
    }

    #[inline]
    pub(crate) const fn level(&self) -> Level {
        match Level::from_number(self.levels & LEVEL) {
            Some(level) => level,
            None => Level::L4K,
        }
    }

    /// Level of stage 2's leaf.
    #[inline]
    pub(crate) const fn stage2_level(&self) -> Level {
        match Level::from_number(self.levels >> STAGE2_LEVEL_SHIFT & LEVEL) {
            Some(level) => level,
            None => Level::L4K,
        }
    }

    #[inline]
    pub(crate) const fn guest_level(&self) -> Level {
        match Level::from_number(self.levels >> GUEST_LEVEL_SHIFT) {
            Some(level) => level,
            None => Level::L4K,
        }
    }

    /// The guest's page is larger than the mapping.
    #[inline]
    pub(super) const fn is_fragment(&self) -> bool {
        self.levels >> GUEST_LEVEL_SHIFT > self.levels & LEVEL
    }

    /// Whether the mapping covers a page.
    #[inline]
    pub(super) const fn covers(&self, page: u64) -> bool {
        base(page, self.level()) == self.page
    }

    /// Whether the *guest's* page, of which the mapping is a part, covers a page.
    #[inline]
    pub(super) const fn guest_page_covers(&self, page: u64) -> bool {
        let level = self.guest_level();
        base(page, level) == base(self.page, level)
    }

    /// The frame of a page that the mapping covers.
    #[inline]
    pub(crate) const fn pfn(&self, page: u64) -> Pfn {
        Pfn(self.pfn + (page - self.page))
    }

    /// The guest frame of a page that the mapping covers.
    #[inline]
    pub(crate) const fn gfn(&self, page: u64) -> Gfn {
        Gfn(self.gfn + (page - self.page))
    }

    #[inline]
    pub(crate) const fn stage1(&self) -> Stage1Rights {
        Stage1Rights(self.stage1 & 0b111)
    }

    #[inline]
    pub(crate) const fn key(&self) -> u8 {
        self.stage1 >> KEY_SHIFT
    }

    #[inline]
    pub(crate) const fn stage2(&self) -> Stage2Rights {
        Stage2Rights::from_bits_truncate(self.stage2)
    }

    /// Both stages have D: a write needs no walk.
    #[inline]
    pub(crate) const fn is_dirty(&self) -> bool {
        self.stage1 & DIRTY_1 != 0 && self.stage2 & DIRTY_2 != 0
    }

    /// All that decides who may do what through the entry: two entries with the same word allow the same.
    #[inline]
    pub(crate) const fn rights_word(&self) -> u16 {
        u16::from_le_bytes([self.stage1, self.stage2])
    }

    /// The leaf's C-bit.
    #[inline]
    pub(crate) const fn is_private(&self) -> bool {
        self.stage2 & PRIVATE != 0
    }

    #[inline]
    pub(super) const fn is_global(&self) -> bool {
        self.stage2 & GLOBAL != 0
    }

    /// A guest-physical mapping as the walker wants it.
    #[inline]
    pub(super) const fn stage2_leaf(&self, page: u64) -> Stage2Leaf {
        let dirty = self.stage2 & DIRTY_2 != 0;
        Stage2Leaf { pfn: self.pfn(page), level: self.level(), rights: self.stage2(), dirty }
    }

    /// The same mapping, of the same context.
    #[inline]
    pub(super) const fn is_same_place(&self, other: &Entry) -> bool {
        self.page == other.page && self.stamp == other.stamp && self.levels & LEVEL == other.levels & LEVEL
    }
}
