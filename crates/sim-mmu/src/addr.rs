//! Guest physical addresses, guest frame numbers and page-table levels (`gpa_t`, `gfn_t`, `enum pg_level` of
//! `include/linux/kvm_types.h` and `arch/x86/include/asm/pgtable_types.h`).

use sim_kernel::{PAGE_SHIFT, PAGE_SIZE};
use std::fmt;

/// Entries in a page table.
pub const PT_ENTRIES: usize = 512;
/// Address bits that one level resolves.
pub const LEVEL_BITS: u32 = 9;

sim_kernel::address_type! {
    /// Guest physical address, in bytes.
    pub struct Gpa;
}

sim_kernel::address_type! {
    /// Guest frame number: guest physical address / 4096.
    pub struct Gfn;
}

impl Gpa {
    /// The frame that contains the address.
    #[inline]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }

    /// The byte within its 4 KiB page.
    #[inline]
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
}

impl Gfn {
    /// The address of the frame's first byte.
    #[inline]
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }

    /// The gfn rounded down to a page of `level` (`gfn_round_for_level`).
    #[inline]
    pub const fn round_down(self, level: Level) -> Gfn {
        Gfn(self.0 & !(level.span() - 1))
    }

    /// Whether a page of `level` can start here.
    #[inline]
    pub const fn is_aligned(self, level: Level) -> bool {
        self.0 & (level.span() - 1) == 0
    }

    /// Index of the entry for this gfn in a table of `level`.
    #[inline]
    pub const fn index(self, level: Level) -> usize {
        (self.0 >> ((level.number() as u32 - 1) * LEVEL_BITS)) as usize & (PT_ENTRIES - 1)
    }

    /// The page of `level` that contains the gfn.
    #[inline]
    pub const fn block(self, level: Level) -> GfnRange {
        let start = self.round_down(level);
        GfnRange { start, end: Gfn(start.0 + level.span()) }
    }
}

/// A level of a page table, named by what one of its entries maps; the number is KVM's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Level {
    /// 4 KiB pages: the lowest tables.
    L4K = 1,
    /// 2 MiB pages.
    L2M = 2,
    /// 1 GiB pages.
    L1G = 3,
    /// 512 GiB: the root of a 4-level tree; never a leaf.
    L512G = 4,
    /// 256 TiB: the root of a 5-level tree; never a leaf.
    L256T = 5,
}

impl Level {
    /// KVM's number, 1 for 4 KiB.
    #[inline]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The level with this number.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Level> {
        match number {
            1 => Some(Level::L4K),
            2 => Some(Level::L2M),
            3 => Some(Level::L1G),
            4 => Some(Level::L512G),
            5 => Some(Level::L256T),
            _ => None,
        }
    }

    /// 4 KiB pages that one entry covers (`KVM_PAGES_PER_HPAGE`).
    #[inline]
    pub const fn span(self) -> u64 {
        1 << ((self as u32 - 1) * LEVEL_BITS)
    }

    /// The next smaller level.
    #[inline]
    pub const fn down(self) -> Option<Level> {
        Level::from_number(self as u8 - 1)
    }

    /// The next larger level.
    #[inline]
    pub const fn up(self) -> Option<Level> {
        Level::from_number(self as u8 + 1)
    }
}

/// A half-open range of guest frames, `start..end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GfnRange {
    /// First frame.
    pub start: Gfn,
    /// First frame after the range.
    pub end: Gfn,
}

impl GfnRange {
    /// Every gfn there is.
    pub const ALL: GfnRange = GfnRange { start: Gfn(0), end: Gfn(u64::MAX) };

    /// The range `start..end`; empty if `end <= start`.
    #[inline]
    pub const fn new(start: Gfn, end: Gfn) -> GfnRange {
        GfnRange { start, end }
    }

    /// `npages` frames from `start` on.
    #[inline]
    pub const fn with_len(start: Gfn, npages: u64) -> GfnRange {
        GfnRange { start, end: Gfn(start.0 + npages) }
    }

    /// Frames in the range.
    #[inline]
    pub const fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether the range contains no frame.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.end.0 <= self.start.0
    }

    /// Whether the range contains the frame.
    #[inline]
    pub const fn contains(&self, gfn: Gfn) -> bool {
        self.start.0 <= gfn.0 && gfn.0 < self.end.0
    }

    /// Whether the range contains all of `other`.
    #[inline]
    pub const fn covers(&self, other: &GfnRange) -> bool {
        self.start.0 <= other.start.0 && other.end.0 <= self.end.0
    }

    /// Whether the two ranges share a frame.
    #[inline]
    pub const fn intersects(&self, other: &GfnRange) -> bool {
        self.start.0 < other.end.0 && other.start.0 < self.end.0
    }

    /// The frames that both ranges contain.
    #[inline]
    pub fn clip(&self, other: &GfnRange) -> GfnRange {
        GfnRange::new(self.start.max(other.start), self.end.min(other.end))
    }

    /// The smallest range that contains both.
    #[inline]
    pub fn hull(&self, other: &GfnRange) -> GfnRange {
        GfnRange::new(self.start.min(other.start), self.end.max(other.end))
    }
}

impl fmt::Debug for GfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.0, self.end.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_indexes() {
        assert_eq!([Level::L4K, Level::L2M, Level::L1G].map(Level::span), [1, 512, 262_144]);
        let gfn = Gfn(0x12_3456_789a);
        let rebuilt = (1..=5).map(|n| {
            let level = Level::from_number(n).unwrap();
            (gfn.index(level) as u64) << ((u32::from(n) - 1) * LEVEL_BITS)
        });
        assert_eq!(rebuilt.sum::<u64>(), gfn.0);
        assert_eq!(Gfn(513).block(Level::L2M), GfnRange::new(Gfn(512), Gfn(1024)));
        assert_eq!(Level::L4K.down(), None);
        assert_eq!(Level::L256T.up(), None);
    }
}
