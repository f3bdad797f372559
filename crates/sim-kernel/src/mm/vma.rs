//! Virtual memory areas (`struct vm_area_struct`, `mm/vma.c`): what a process mapped where, sorted by address.
//!
//! Neighbours that are equal in everything are one area: an area is cut where a call changes part of it and merges back when
//! the parts become equal again. Who cuts must first split huge pages across the cut ([`super::Mm`] does).
//!
//! Simplified: a `BTreeMap` for the maple tree, no per-area locks, no limit on the number of areas, no stack that grows.

use crate::fs::File;
use crate::{Hva, HvaRange, PAGE_SIZE, PMD_SIZE, Pgoff};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

bitflags::bitflags! {
    /// Access rights of a mapping (`PROT_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Prot: u8 {
        /// `PROT_READ`.
        const READ = 1;
        /// `PROT_WRITE`.
        const WRITE = 2;
        /// `PROT_EXEC`.
        const EXEC = 4;
    }
}

impl Prot {
    /// Reading and writing, the rights of ordinary memory.
    pub const RW: Prot = Prot::READ.union(Prot::WRITE);

    /// Rights from the letters `r`, `w` and `x`, in any order; `None` if there is another letter.
    ///
    /// ```
    /// use sim_kernel::mm::Prot;
    /// assert_eq!(Prot::from_letters("rw"), Some(Prot::RW));
    /// assert_eq!(Prot::from_letters(""), Some(Prot::empty()));
    /// assert_eq!(Prot::from_letters("q"), None);
    /// ```
    pub fn from_letters(letters: &str) -> Option<Prot> {
        letters.chars().try_fold(Prot::empty(), |prot, letter| match letter {
            'r' => Some(prot | Prot::READ),
            'w' => Some(prot | Prot::WRITE),
            'x' => Some(prot | Prot::EXEC),
            _ => None,
        })
    }

    /// `vma_is_accessible`: the processor lets the process read, as it does with any right at all.
    pub(super) fn is_accessible(self) -> bool {
        !self.is_empty()
    }
}

/// What `MADV_HUGEPAGE` and `MADV_NOHUGEPAGE` left (`VM_HUGEPAGE`, `VM_NOHUGEPAGE`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum HugeAdvice {
    #[default]
    None,
    Huge,
    NoHuge,
}

/// What `MADV_NORMAL`, `MADV_SEQUENTIAL` and `MADV_RANDOM` left (`VM_SEQ_READ`, `VM_RAND_READ`). Nothing here reads ahead: it only
/// tells areas apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum ReadAdvice {
    #[default]
    Normal,
    Sequential,
    Random,
}

/// The file part behind an area.
#[derive(Clone, Debug)]
pub(super) struct Backing {
    /// The area holds one reference.
    pub(super) file: Arc<File>,
    /// File page at the area's start.
    pub(super) pgoff: Pgoff,
}

/// The `anon_vma` of an area, which the first fault makes that maps memory of the area's own: which one, and 0 for none. A fault only reads the
/// areas, so it is set behind a shared reference.
///
/// Parts of an area that is cut share theirs. Areas that got different ones never become one again, however equal they are.
#[derive(Debug, Default)]
pub(super) struct AnonVma(AtomicU64);

impl AnonVma {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, number: u64) {
        self.0.store(number, Ordering::Relaxed);
    }

    pub(super) fn is_prepared(&self) -> bool {
        self.get() != 0
    }

    /// `is_mergeable_anon_vma`
    fn merges_with(&self, other: &AnonVma) -> bool {
        !self.is_prepared() || !other.is_prepared() || self.get() == other.get()
    }
}

impl Clone for AnonVma {
    fn clone(&self) -> AnonVma {
        AnonVma(AtomicU64::new(self.get()))
    }
}

/// One area.
#[derive(Clone, Debug)]
pub(super) struct Vma {
    pub(super) range: HvaRange,
    pub(super) prot: Prot,
    pub(super) shared: bool,
    pub(super) advice: HugeAdvice,
    pub(super) reads: ReadAdvice,
    pub(super) locked: bool,
    /// `VM_ACCOUNT`: the area is or once was private and writable, so that its memory counts as promised. Nothing is counted here: it only tells
    /// areas apart.
    pub(super) account: bool,
    /// Pages of its own, or the huge zero page, were ever mapped here.
    pub(super) anon_vma: AnonVma,
    /// `None`: anonymous memory.
    pub(super) backing: Option<Backing>,
}

impl Vma {
    /// The file page at an address of the area.
    pub(super) fn pgoff(&self, hva: Hva) -> Option<Pgoff> {
        let backing = self.backing.as_ref()?;
        Some(backing.pgoff + (hva.page() - self.range.start.page()))
    }

    /// Whether the 2 MiB block around the address lies inside the area.
    pub(super) fn contains_block(&self, hva: Hva) -> bool {
        let base = hva.pmd_base();
        self.range.start <= base && base + PMD_SIZE <= self.range.end
    }

    /// `anon_vma_compatible`: `next` continues this area in all but its rights.
    fn shares_with(&self, next: &Vma) -> bool {
        let same_backing = match (&self.backing, &next.backing) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(&a.file, &b.file) && self.pgoff(self.range.end) == Some(b.pgoff),
            _ => false,
        };
        self.range.end == next.range.start
            && self.shared == next.shared
            && self.advice == next.advice
            && self.reads == next.reads
            && self.locked == next.locked
            && self.account == next.account
            && same_backing
    }

    /// `can_vma_merge_after`: `next` continues this area.
    fn continues_in(&self, next: &Vma) -> bool {
        self.shares_with(next) && self.prot == next.prot && self.anon_vma.merges_with(&next.anon_vma)
    }
}

/// The areas of one process.
#[derive(Debug, Default)]
pub(super) struct VmaTree {
    areas: BTreeMap<Hva, Vma>,
    /// How many `anon_vma`s there were.
    anon_vmas: AtomicU64,
    /// What the last search for unmapped addresses found out; forgotten when an area goes.
    searched: Option<Searched>,
}

/// Above `ceiling` nothing fits that is as long and as aligned as this.
#[derive(Clone, Copy, Debug)]
struct Searched {
    len: u64,
    align: u64,
    ceiling: Hva,
}

impl VmaTree {
    /// `vma_lookup`: the area that contains the address.
    pub(super) fn find(&self, hva: Hva) -> Option<&Vma> {
        self.areas.range(..=hva).next_back().map(|(_, vma)| vma).filter(|vma| hva < vma.range.end)
    }

    /// `find_vma`: the first area that ends after the address.
    pub(super) fn find_from(&self, hva: Hva) -> Option<&Vma> {
        self.find(hva).or_else(|| self.areas.range(hva..).next().map(|(_, vma)| vma))
    }

    /// The last area that starts before the address.
    pub(super) fn find_before(&self, hva: Hva) -> Option<&Vma> {
        self.areas.range(..hva).next_back().map(|(_, vma)| vma)
    }

    /// `anon_vma_prepare`: memory of the area's own is about to be mapped. It takes the `anon_vma` of a neighbour that it could be one area with but
    /// for their rights, of the next one first.
    pub(super) fn prepare_anon_vma(&self, vma: &Vma) {
        if vma.anon_vma.is_prepared() {
            return;
        }
        let next = self.areas.get(&vma.range.end).filter(|next| vma.shares_with(next));
        let previous = self.find_before(vma.range.start).filter(|previous| previous.shares_with(vma));
        let known = [next, previous].into_iter().flatten().map(|area| area.anon_vma.get()).find(|number| *number != 0);
        vma.anon_vma.set(known.unwrap_or_else(|| self.anon_vmas.fetch_add(1, Ordering::Relaxed) + 1));
    }

    /// How many areas there are.
    pub(super) fn len(&self) -> usize {
        self.areas.len()
    }

    /// `vm_unmapped_area`: the highest address below `top` where `len` bytes fit, a multiple of `align`, at least `gap` away from
    /// every area and not below `lowest`.
    pub(super) fn unmapped_area(&mut self, len: u64, align: u64, gap: u64, lowest: u64, top: Hva) -> Option<Hva> {
        let fits = |floor: u64, ceiling: u64| {
            let start = ceiling.checked_sub(len)? & !(align - 1);
            (start >= floor).then_some(Hva(start))
        };
        // Without this, mapping many small files would look at all of them each time.
        let known = self.searched.filter(|known| len >= known.len && align >= known.align);
        let mut ceiling = known.map_or(top, |known| known.ceiling);
        let mut found = None;
        for vma in self.areas.range(..ceiling).rev().map(|(_, vma)| vma) {
            found = fits(vma.range.end.0 + gap, ceiling.0);
            if found.is_some() {
                break;
            }
            ceiling = Hva(vma.range.start.0.saturating_sub(gap));
        }
        found = found.or_else(|| fits(lowest, ceiling.0));
        if found.is_some() {
            self.searched = Some(Searched { len, align, ceiling });
        }
        found
    }

    /// Whether an area shares a byte with the range.
    pub(super) fn intersects(&self, range: HvaRange) -> bool {
        self.find_from(range.start).is_some_and(|vma| vma.range.start < range.end)
    }

    pub(super) fn insert(&mut self, vma: Vma) {
        assert!(!vma.range.is_empty() && vma.range.start.is_page_aligned() && vma.range.end.is_page_aligned());
        assert!(!self.intersects(vma.range), "a mapping at {:?} overlaps another", vma.range);
        self.areas.insert(vma.range.start, vma);
    }

    pub(super) fn remove(&mut self, start: Hva) -> Vma {
        self.searched = None;
        self.areas.remove(&start).expect("an area starts there")
    }

    pub(super) fn get_mut(&mut self, start: Hva) -> &mut Vma {
        self.areas.get_mut(&start).expect("an area starts there")
    }

    /// Cuts the area that contains the address in its inside; returns the upper part, for which the caller takes a file reference.
    pub(super) fn split(&mut self, at: Hva) -> Option<&Vma> {
        let start = self.find(at)?.range.start;
        if start == at {
            return None;
        }
        let lower = self.get_mut(start);
        let mut upper = lower.clone();
        let pgoff = lower.pgoff(at);
        lower.range.end = at;
        upper.range.start = at;
        if let (Some(backing), Some(pgoff)) = (&mut upper.backing, pgoff) {
            backing.pgoff = pgoff;
        }
        self.areas.insert(at, upper);
        self.areas.get(&at)
    }

    /// Joins the areas that meet at the address, if they are equal; returns the upper one, whose file reference is left over.
    pub(super) fn merge(&mut self, at: Hva) -> Option<Vma> {
        let lower = self.find_before(at)?;
        let upper = self.areas.get(&at)?;
        if !lower.continues_in(upper) {
            return None;
        }
        let (start, upper) = (lower.range.start, self.remove(at));
        let merged = self.get_mut(start);
        merged.range.end = upper.range.end;
        if upper.anon_vma.is_prepared() {
            merged.anon_vma.set(upper.anon_vma.get());
        }
        Some(upper)
    }

    /// Whether areas cover the whole range without a hole.
    pub(super) fn covers(&self, range: HvaRange) -> bool {
        let mut at = range.start;
        while at < range.end {
            match self.find(at) {
                Some(vma) => at = vma.range.end,
                None => return false,
            }
        }
        true
    }
}

/// A length rounded up to pages; `None` if that does not fit.
pub(super) fn page_align(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(PAGE_SIZE)
}
