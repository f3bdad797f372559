//! Paging-structure caches: for each level, which table an address leads to (Intel SDM vol. 3, 5.10.3 and 30.4).

use crate::addr::LEVEL_BITS;
use sim_kernel::Pfn;

/// Levels of tables that can be cached: roots of five-level trees cannot.
const LEVELS: usize = 4;

/// A table that addresses with this prefix lead to.
#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
pub(super) struct Structure {
    /// The address's page number above the bits that the table resolves.
    prefix: u64,
    /// The table's frame.
    pub(super) table: Pfn,
    /// Its guest frame, of guests' tables.
    pub(super) gfn: u64,
    /// Which life of which context; 0 is empty.
    stamp: u32,
    /// What the entries above grant, in the stage's own bits.
    pub(super) rights: u8,
}

/// Direct-mapped caches, one for each level of tables.
#[derive(Default)]
pub(super) struct StructureCaches {
    /// Empty until the first fill.
    levels: [Vec<Structure>; LEVELS],
    slots: usize,
    /// Bit `n - 1` is set if tables of level `n` were ever cached.
    filled: u8,
}

/// The slot of a prefix. Addresses that differ by gigabytes alone are told apart too.
#[inline]
const fn slot(prefix: u64, slots: usize) -> usize {
    (prefix ^ prefix >> LEVEL_BITS) as usize & slots.wrapping_sub(1)
}

#[inline]
const fn prefix(page: u64, level: u8) -> u64 {
    page >> (level as u32 * LEVEL_BITS)
}

impl StructureCaches {
    /// Caches of so many slots, a power of two, or none at all.
    pub(super) fn new(slots: usize) -> StructureCaches {
        StructureCaches { slots, ..StructureCaches::default() }
    }

    /// The lowest table that a page is known to lead to, with its level.
    #[inline]
    pub(super) fn lookup(&self, page: u64, stamp: u32) -> Option<(u8, &Structure)> {
        if self.filled == 0 { None } else { self.find(page, stamp) }
    }

    fn find(&self, page: u64, stamp: u32) -> Option<(u8, &Structure)> {
        for (level, cache) in (1..).zip(&self.levels) {
            let prefix = prefix(page, level);
            if let Some(found) = cache.get(slot(prefix, cache.len()))
                && found.prefix == prefix
                && found.stamp == stamp
            {
                return Some((level, found));
            }
        }
        None
    }

    /// Remembers a table of `level`.
    #[inline]
    pub(super) fn insert(&mut self, page: u64, level: u8, table: Pfn, gfn: u64, rights: u8, stamp: u32) {
        if self.slots != 0 {
            self.keep(page, level, table, gfn, rights, stamp);
        }
    }

    // Apart, so that a walk without caches has its registers for itself; with them, few walks find a new table.
    #[inline(never)]
    fn keep(&mut self, page: u64, level: u8, table: Pfn, gfn: u64, rights: u8, stamp: u32) {
        let cache = &mut self.levels[usize::from(level) - 1];
        if cache.is_empty() {
            *cache = vec![Structure::default(); self.slots];
        }
        self.filled |= 1 << (level - 1);
        let prefix = prefix(page, level);
        let index = slot(prefix, cache.len());
        cache[index] = Structure { prefix, table, gfn, stamp, rights };
    }

    /// Forgets the tables that a page of a context leads to.
    pub(super) fn remove(&mut self, page: u64, stamp: u32) {
        for (level, cache) in (1..).zip(&mut self.levels) {
            let prefix = prefix(page, level);
            let index = slot(prefix, cache.len());
            if let Some(slot) = cache.get_mut(index)
                && slot.prefix == prefix
                && slot.stamp == stamp
            {
                slot.stamp = 0;
            }
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        for cache in &mut self.levels {
            cache.fill(Structure::default());
        }
        self.filled = 0;
    }

    /// How many tables of a context are cached.
    pub(super) fn count(&self, stamp: u32) -> usize {
        self.levels.iter().flatten().filter(|slot| slot.stamp == stamp && stamp != 0).count()
    }
}
