//! Transparent huge pages (`mm/huge_memory.c`): faults that fill a whole 2 MiB entry, copy on write of the huge zero page,
//! splitting, and `MADV_COLLAPSE` (`mm/khugepaged.c`).
//!
//! Huge pages are only for private anonymous memory. Simplified: the setting is that of all sizes at once; a huge page is 512 independent frames from
//! the start, so splitting changes page tables only; nothing collapses in the background.

use super::fault::VmFault;
use super::mm::Mm;
use super::pgtable::{Look, MmuGather, PageTables, Pte, PteFlags};
use super::vma::{HugeAdvice, Vma};
use crate::{Cx, Errno, Hva, HvaRange, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE};

/// When a fault makes a huge page (`/sys/kernel/mm/transparent_hugepage/enabled`). `MADV_COLLAPSE` does not ask.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Thp {
    /// Wherever one fits, unless the area is advised against it.
    #[default]
    Always,
    /// Where the area is advised (`MADV_HUGEPAGE`).
    Madvise,
    /// Nowhere.
    Never,
}

/// How a host treats transparent huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct HugePageRules {
    /// When a fault makes one.
    pub enabled: Thp,
    /// Collapsing a range that ends in the block in which it begins fails with `EINVAL`, instead of having nothing to do: an unsigned
    /// difference in `madvise_collapse` that wrapped, up to 6.18 at least.
    pub collapse_needs_block: bool,
}

impl Thp {
    /// Every setting with the word that the file has for it.
    pub const ALL: [(&'static str, Thp); 3] =
        [("always", Thp::Always), ("madvise", Thp::Madvise), ("never", Thp::Never)];
}

/// The block around an address.
pub(super) fn block_of(hva: Hva) -> HvaRange {
    HvaRange::new(hva.pmd_base(), hva.pmd_base() + PMD_SIZE)
}

impl Mm {
    /// Whether a fault may fill the whole 2 MiB entry (`thp_vma_allowable_order`), given that the entry is empty.
    pub(super) fn is_huge_capable(&self, vma: &Vma, hva: Hva) -> bool {
        let advised = match self.huge_pages.enabled {
            Thp::Always => vma.advice != HugeAdvice::NoHuge,
            Thp::Madvise => vma.advice == HugeAdvice::Huge,
            Thp::Never => false,
        };
        vma.backing.is_none() && advised && vma.contains_block(hva)
    }

    /// `do_huge_pmd_anonymous_page`: fills an empty 2 MiB entry. False if no huge page can be had.
    pub(super) fn do_huge_pmd_anonymous_page(&self, cx: &Cx<'_>, hva: Hva, write: bool) -> bool {
        let new = if write {
            self.phys.alloc_huge_zeroed().map(|base| Pte::new(base, PteFlags::READ | PteFlags::WRITE | PteFlags::ANON))
        } else {
            self.phys.huge_zero_page().map(|base| Pte::new(base, PteFlags::READ | PteFlags::ZERO))
        };
        let Ok(new) = new else { return false };
        let mut tables = self.page_table_lock.lock(cx);
        if tables.look(hva) == Look::NoTable {
            tables.set_huge(&self.phys, hva, new);
            return true;
        }
        drop(tables);
        if write {
            self.phys.put_huge(cx, new.pfn());
        }
        true
    }

    /// `do_huge_pmd_wp_page`: a write to a huge page that is mapped read-only. An own page becomes writable in place, the huge
    /// zero page is replaced by a new huge page, or split if there is none.
    pub(super) fn do_huge_pmd_wp_page(&self, cx: &Cx<'_>, hva: Hva, old: Pte) {
        if !old.has(PteFlags::ZERO) {
            let mut tables = self.page_table_lock.lock(cx);
            if tables.look(hva) == Look::Huge(old) {
                tables.set_huge(&self.phys, hva, old.with_access(true, true));
            }
            return;
        }
        let Ok(base) = self.phys.alloc_huge_zeroed() else {
            self.split_huge_pmd(cx, hva);
            return;
        };
        let new = Pte::new(base, PteFlags::READ | PteFlags::WRITE | PteFlags::ANON);
        let invalidation = self.invalidate_start(cx, block_of(hva));
        let mut tables = self.page_table_lock.lock(cx);
        let unchanged = tables.look(hva) == Look::Huge(old);
        if unchanged {
            tables.set_huge(&self.phys, hva, new);
        }
        drop(tables);
        self.invalidate_end(cx, invalidation);
        if !unchanged {
            self.phys.put_huge(cx, base);
        }
    }

    /// `__split_huge_pmd`: raises a notifier over the block of the address and, if a huge page is there, splits it.
    pub(super) fn split_huge_pmd(&self, cx: &Cx<'_>, hva: Hva) {
        let invalidation = self.invalidate_start(cx, block_of(hva));
        self.page_table_lock.lock(cx).split(&self.phys, hva, self.zero);
        self.invalidate_end(cx, invalidation);
    }

    /// `split_huge_pmd_if_needed`: the area is about to be cut at the address. If a huge page *could* lie across the cut, the
    /// block is split, and told to listeners, whether or not one does; only the upper tables must exist.
    pub(super) fn split_huge_pmd_if_needed(&self, cx: &Cx<'_>, vma: &Vma, at: Hva) {
        if !at.0.is_multiple_of(PMD_SIZE) && vma.contains_block(at) {
            let reaches = self.page_table_lock.lock(cx).reaches(at);
            if reaches {
                self.split_huge_pmd(cx, at);
            }
        }
    }

    /// `madvise_collapse`: makes a huge page of each whole block of the range inside the area.
    ///
    /// # Errors
    /// `EINVAL` if the area cannot have huge pages, never had memory of its own, or a block has nothing to collapse; `ENOMEM` if no huge page is left.
    pub(super) fn madvise_collapse(&self, cx: &Cx<'_>, vma: &Vma, range: HvaRange) -> Result<(), Errno> {
        let round_up = |hva: Hva| hva.0.checked_next_multiple_of(PMD_SIZE).unwrap_or(u64::MAX);
        let has_block = round_up(vma.range.start).saturating_add(PMD_SIZE) <= vma.range.end.0;
        let eligible = vma.backing.is_none() && vma.advice != HugeAdvice::NoHuge && vma.anon_vma.is_prepared();
        if !eligible || !has_block {
            return Err(Errno::EINVAL);
        }
        let mut at = Hva(round_up(range.start));
        let end = range.end.pmd_base();
        if at > end && self.huge_pages.collapse_needs_block {
            return Err(Errno::EINVAL);
        }
        let mut result = Ok(());
        while at < end {
            // Empty stretches fail as a whole: every block in them would.
            let next = self.page_table_lock.lock(cx).next_block(at, end);
            let Some(block) = next else { return Err(Errno::EINVAL) };
            if block.start > at {
                result = Err(Errno::EINVAL);
            }
            if let Err(errno) = self.collapse_huge_page(cx, block.start) {
                result = Err(errno);
            }
            at = block.end;
        }
        result
    }

    /// Whether somebody else has a reference to a page of the block, which then stays where it is (`SCAN_PAGE_COUNT`). Looked at only where pages are pinned for long and copying
    /// one would be noticed: on a host under a stage 2.
    fn is_pinned(&self, tables: &PageTables, at: Hva) -> bool {
        let pinned = |pte: Pte| pte.has(PteFlags::ANON) && self.phys.refcount(pte.pfn()) > 1;
        self.phys.has_host_stage2() && (0..PAGES_PER_PMD).any(|i| pinned(tables.pte(at + i * PAGE_SIZE)))
    }

    /// `collapse_huge_page`: copies the 512 pages of a block into one huge page.
    fn collapse_huge_page(&self, cx: &Cx<'_>, at: Hva) -> Result<(), Errno> {
        match self.page_table_lock.lock(cx).look(at) {
            Look::NoTable => return Err(Errno::EINVAL),
            Look::Huge(_) => return Ok(()),
            Look::Small(_) => {}
        }
        let base = self.phys.alloc_huge_zeroed()?;
        let mut gather = MmuGather::default();
        let invalidation = self.invalidate_start(cx, block_of(at));
        let mut tables = self.page_table_lock.lock(cx);
        let pinned = self.is_pinned(&tables, at);
        let collapses = matches!(tables.look(at), Look::Small(_)) && !pinned;
        if collapses {
            let mut writable = false;
            for i in 0..PAGES_PER_PMD {
                let pte = tables.pte(at + i * PAGE_SIZE);
                writable |= pte.has(PteFlags::WRITE);
                if pte.has(PteFlags::ANON) {
                    self.phys.copy(cx, pte.pfn(), base + i);
                }
            }
            let new = Pte::new(base, PteFlags::ANON).with_access(true, writable);
            tables.collapse(&self.phys, at, new, &mut gather);
        }
        drop(tables);
        self.invalidate_end(cx, invalidation);
        gather.finish(cx, &self.phys);
        if !collapses {
            self.phys.put_huge(cx, base);
        }
        if pinned { Err(Errno::EAGAIN) } else { Ok(()) }
    }
}

impl From<Errno> for VmFault {
    /// Allocation is all that fails with an error number inside a fault.
    fn from(errno: Errno) -> VmFault {
        assert_eq!(errno, Errno::ENOMEM, "a fault fails to allocate");
        VmFault::Oom
    }
}
