//! Set-associative storage for translations of all page sizes.
//!
//! Replacement is by age of the fill, not of the use: a hit changes nothing, so a hit in the acceleration TLB in front is not
//! missed here, and results are the same with it and without it.

use super::entry::{Entry, base};
use crate::addr::{LEVEL_BITS, Level};

const WAYS: usize = 4;

/// Entries of all sizes; the set is chosen by the lowest bits of the page number in units of the entry's size.
#[derive(Default)]
pub(super) struct SetAssociative {
    /// Empty until the first fill.
    sets: Vec<[Entry; WAYS]>,
    /// The way that is filled next, by set.
    victims: Vec<u8>,
    sets_max: usize,
    /// Bit `n` is set if level `n` was ever filled.
    levels: u8,
}

impl SetAssociative {
    /// Storage for so many sets, a power of two, or none at all.
    pub(super) fn new(sets: usize) -> SetAssociative {
        SetAssociative { sets_max: sets, ..SetAssociative::default() }
    }

    #[inline]
    fn set(&self, page: u64, level: Level) -> usize {
        let number = page >> ((u32::from(level.number()) - 1) * LEVEL_BITS);
        number as usize & (self.sets.len().wrapping_sub(1))
    }

    /// The entry for a page in a context; smaller pages first.
    #[inline]
    pub(super) fn lookup(&self, page: u64, stamps: [u32; 2]) -> Option<&Entry> {
        if self.levels == 0 { None } else { self.find(page, stamps) }
    }

    fn find(&self, page: u64, stamps: [u32; 2]) -> Option<&Entry> {
        for level in [Level::L4K, Level::L2M, Level::L1G] {
            if self.levels & 1 << level.number() == 0 {
                continue;
            }
            let first = base(page, level);
            for entry in self.sets.get(self.set(page, level))? {
                // The page first: it alone tells nearly all of them apart.
                if entry.page() == first
                    && (entry.stamp == stamps[0] || entry.stamp == stamps[1])
                    && entry.level() == level
                {
                    return Some(entry);
                }
            }
        }
        None
    }

    /// Puts an entry in the place of the same one, or of an empty one, or of the oldest. Returns what was there.
    // Into its caller, always: an entry that is passed through memory is written in parts and read as a whole, which a processor waits for.
    #[inline(always)]
    pub(super) fn insert(&mut self, entry: Entry) -> Option<Entry> {
        if self.sets.is_empty() {
            if self.sets_max == 0 {
                return None;
            }
            self.sets = vec![[Entry::default(); WAYS]; self.sets_max];
            self.victims = vec![0; self.sets_max];
        }
        self.levels |= 1 << entry.level().number();
        let index = self.set(entry.page(), entry.level());
        let set = &mut self.sets[index];
        let mut empty = None;
        let mut way = None;
        for (at, old) in (0u8..).zip(&*set) {
            if old.stamp == 0 {
                empty = empty.or(Some(at));
            } else if old.is_same_place(&entry) {
                way = Some(at);
                break;
            }
        }
        let way = way.or(empty).unwrap_or_else(|| {
            let way = self.victims[index] % WAYS as u8;
            self.victims[index] = (way + 1) % WAYS as u8;
            way
        });
        let old = std::mem::replace(&mut set[usize::from(way)], entry);
        (old.stamp != 0).then_some(old)
    }

    /// Removes the entries of a context that cover a page.
    pub(super) fn remove_page(&mut self, page: u64, stamp: u32, mut removed: impl FnMut(&Entry)) {
        for level in [Level::L4K, Level::L2M, Level::L1G] {
            if self.levels & 1 << level.number() == 0 {
                continue;
            }
            let index = self.set(page, level);
            for entry in self.sets.get_mut(index).into_iter().flatten() {
                if entry.stamp == stamp && entry.level() == level && entry.covers(page) {
                    removed(entry);
                    entry.stamp = 0;
                }
            }
        }
    }

    /// Removes the entries for which `condition` holds, wherever they are.
    pub(super) fn sweep(&mut self, condition: impl Fn(&Entry) -> bool, mut removed: impl FnMut(&Entry)) {
        for entry in self.sets.iter_mut().flatten() {
            if entry.stamp != 0 && condition(entry) {
                removed(entry);
                entry.stamp = 0;
            }
        }
    }

    /// Empties the storage.
    pub(super) fn clear(&mut self) {
        self.sets.fill([Entry::default(); WAYS]);
        self.victims.fill(0);
        self.levels = 0;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.sets.iter().flatten().filter(|entry| entry.stamp != 0)
    }
}
