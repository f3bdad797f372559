//! Dynamic PAMT (the machine's `tdx_dynamic_pamt`): KVM gives the module two pages for the metadata of each 2 MiB of memory of which a page of 4 KiB is a TD's, and takes them
//! back with the last one (`tdx_pamt_get`, `tdx_pamt_put`, `tdx_pamt_refcounts` of "TDX: Enable Dynamic PAMT", version 6 of May 2026; 7.3 has no such thing).
//!
//! Pages that a TD consists of, its tables, and its memory in pages of 4 KiB count; a page of 2 MiB needs nothing until it is split. All counts are under one lock, and so
//! are PAMT.ADD and PAMT.REMOVE. Whoever maps a page under mmu_lock has a spare pair, which was allocated before.
//!
//! Simplified: a spare pair is the task's, not the vCPU's, which the hooks of the mirror do not know.

use super::host::TdxHost;
use super::vm::KvmTdx;
use crate::kvm::mutants::{BUG_78, TDX_PAMT_NO_PUT};
use sim_coco::tdx::{Hpa, Leaf, PamtNode, SeptInfo, StatusName};
use sim_kernel::sync::Mutex;
use sim_kernel::{Cx, Errno, PAGE_SHIFT, PAGES_PER_PMD, Pfn};
use sim_mmu::{Gfn, Level};
use std::collections::BTreeMap;

/// Pages of 2 MiB, by their first frame.
fn region(pfn: Pfn) -> Pfn {
    Pfn(pfn.0 & !(PAGES_PER_PMD - 1))
}

/// A region as PAMT leaves are told of it.
fn operand(region: Pfn) -> SeptInfo {
    SeptInfo::new(Gfn(region.0).gpa(), Level::L2M)
}

/// What the host knows of the metadata.
#[derive(Debug)]
pub(super) struct PamtCounts {
    /// `pamt_lock`, and for each region how many of its pages the module has, or is about to get.
    counts: Mutex<BTreeMap<Pfn, u64>>,
}

impl PamtCounts {
    pub(super) fn new(cx: &Cx<'_>) -> PamtCounts {
        PamtCounts { counts: Mutex::new(cx, "pamt_lock", BTreeMap::new()) }
    }
}

impl KvmTdx {
    /// `tdx_topup_external_pamt_cache`: the task has a spare pair afterwards. Before any lock under which no memory must be allocated.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn pamt_topup(&self, cx: &Cx<'_>) -> Result<(), Errno> {
        if self.host.has_dynamic_pamt() && !self.pamt_spare.lock().contains_key(&cx.task().0) {
            let pages = self.host.pamt_alloc(cx)?;
            self.pamt_spare.lock().insert(cx.task().0, pages);
        }
        Ok(())
    }

    /// The task's spare pair; `None` if metadata needs no pages.
    ///
    /// # Panics
    /// Without [`KvmTdx::pamt_topup`].
    pub(super) fn pamt_take_spare(&self, cx: &Cx<'_>) -> Option<[Pfn; 2]> {
        let pages = self.host.has_dynamic_pamt().then(|| self.pamt_spare.lock().remove(&cx.task().0))?;
        Some(pages.expect("the task has a spare pair for what it does under mmu_lock"))
    }

    /// `tdx_pamt_get` with the task's spare pair, which it keeps if there is metadata already.
    ///
    /// # Errors
    /// As [`TdxHost::pamt_get`].
    pub(super) fn pamt_get_spare(&self, cx: &Cx<'_>, page: Pfn) -> Result<(), Errno> {
        let Some(pages) = self.pamt_take_spare(cx) else { return Ok(()) };
        let (got, unused) = self.host.pamt_get_with(cx, page, pages);
        if let Some(pages) = unused {
            self.pamt_spare.lock().insert(cx.task().0, pages);
        }
        got
    }

    /// `tdx_pamt_put` of a page that was not mapped after all: the next try, which allocates nothing, has its pair again.
    pub(super) fn pamt_put_spare(&self, cx: &Cx<'_>, page: Pfn) {
        let Some(pages) = self.host.pamt_put_pages(cx, page) else { return };
        let spare = self.pamt_spare.lock().insert(cx.task().0, pages);
        if let Some(pages) = spare {
            self.host.pamt_free(cx, pages);
        }
    }

    /// The TD ends: nobody needs a spare pair any more.
    pub(super) fn pamt_drop_spare(&self, cx: &Cx<'_>) {
        let spare = std::mem::take(&mut *self.pamt_spare.lock());
        spare.into_values().for_each(|pages| self.host.pamt_free(cx, pages));
    }
}

impl TdxHost {
    fn has_dynamic_pamt(&self) -> bool {
        self.tdx().config().dynamic_pamt
    }

    /// `alloc_pamt_array`.
    fn pamt_alloc(&self, cx: &Cx<'_>) -> Result<[Pfn; 2], Errno> {
        let first = self.phys().alloc()?;
        let second = self.phys().alloc().inspect_err(|_| self.phys().put(cx, first))?;
        Ok([first, second])
    }

    /// `free_pamt_array`: also of pages that the module has written.
    fn pamt_free(&self, cx: &Cx<'_>, pages: [Pfn; 2]) {
        for page in pages {
            self.quirk_reset_page(cx, page);
            self.phys().put(cx, page);
        }
    }

    /// `tdx_pamt_get` of a page that is allocated outside of mmu_lock.
    ///
    /// # Errors
    /// `ENOMEM`; `EBUSY` if a lock of the module is in the way; `EIO` for what else it answers.
    pub(super) fn pamt_get(&self, cx: &Cx<'_>, page: Pfn) -> Result<(), Errno> {
        if !self.has_dynamic_pamt() {
            return Ok(());
        }
        let pages = self.pamt_alloc(cx)?;
        let (got, unused) = self.pamt_get_with(cx, page, pages);
        if let Some(pages) = unused {
            self.pamt_free(cx, pages);
        }
        got
    }

    /// `tdx_pamt_get`: the module has metadata for a page that it is about to get, or `EBUSY` if a lock of the module is in the way, `EIO` for what else it answers. The pair
    /// comes back if it was not needed, or not taken.
    fn pamt_get_with(&self, cx: &Cx<'_>, page: Pfn, pages: [Pfn; 2]) -> (Result<(), Errno>, Option<[Pfn; 2]>) {
        let region = region(page);
        let mut counts = self.pamt.counts.lock(cx);
        let count = counts.entry(region).or_default();
        if *count > 0 {
            *count += 1;
            return (Ok(()), Some(pages));
        }
        let [first, second] = pages.map(Hpa::of);
        let added =
            self.call(cx, Leaf::PhymemPamtAdd, |seam| seam.phymem_pamt_add(cx, operand(region), [first, second]));
        match added {
            Ok(()) => {
                *count = 1;
                (Ok(()), None)
            }
            Err(fail) => {
                let counted = fail.name() != StatusName::HpaRangeNotFree;
                assert!(counted, "TDX-INV-018: {region:?} has metadata, and KVM knows of no page in it");
                let errno = if fail.is_operand_busy() { Errno::EBUSY } else { Errno::EIO };
                (Err(errno), Some(pages))
            }
        }
    }

    /// A page of 2 MiB was split: DEMOTE was given its metadata, and all its pages count.
    pub(super) fn pamt_note_split(&self, cx: &Cx<'_>, first: Pfn) {
        if self.has_dynamic_pamt() {
            let before = self.pamt.counts.lock(cx).insert(region(first), PAGES_PER_PMD);
            assert!(
                before.is_none_or(|count| count == 0),
                "TDX-INV-018: a page of 2 MiB with {before:?} small ones in it"
            );
        }
    }

    /// `tdx_pamt_put`: the module has not the page any more. With the last page of a region its metadata goes; if the module refuses, it stays, and the page counts on.
    pub(super) fn pamt_put(&self, cx: &Cx<'_>, page: Pfn) {
        if let Some(pages) = self.pamt_put_pages(cx, page) {
            self.pamt_free(cx, pages);
        }
    }

    /// The same; the answer is what held the metadata, if it went.
    fn pamt_put_pages(&self, cx: &Cx<'_>, page: Pfn) -> Option<[Pfn; 2]> {
        if !self.has_dynamic_pamt() || cx.has_mutant(TDX_PAMT_NO_PUT) {
            return None;
        }
        let region = region(page);
        let mut counts = self.pamt.counts.lock(cx);
        let count = counts.get_mut(&region).filter(|count| **count > 0);
        let count =
            count.unwrap_or_else(|| panic!("TDX-INV-018: {page:?} goes, and KVM counted no page of {region:?}"));
        *count -= 1;
        if *count > 0 {
            return None;
        }
        if cx.has_mutant(BUG_78) {
            // As if the count were outside of the lock, and nobody looked at it again.
            drop(counts);
            counts = self.pamt.counts.lock(cx);
        }
        match self.call(cx, Leaf::PhymemPamtRemove, |seam| seam.phymem_pamt_remove(cx, operand(region))) {
            Ok(pages) => {
                counts.remove(&region);
                Some(pages.map(|page| Pfn(page.0 >> PAGE_SHIFT)))
            }
            Err(_) => {
                *counts.entry(region).or_default() += 1;
                None
            }
        }
    }

    /// Regions of which pages count, and how many: for checkers.
    pub(super) fn peek_pamt_counts(&self) -> BTreeMap<Pfn, u64> {
        self.pamt
            .counts
            .peek(|counts| counts.iter().filter(|(_, count)| **count > 0).map(|(at, n)| (*at, *n)).collect())
    }

    /// Pages that hold metadata of TDs' pages now: two for each region of which a page of 4 KiB is a TD's.
    pub fn pamt_pages(&self) -> u64 {
        2 * self.peek_pamt_counts().len() as u64
    }

    /// TDX-INV-018 of metadata: the module has some where KVM counts pages, for as many as KVM counts, and in pages that are allocated. `is_whole`: no page was lost, and no VM
    /// is broken, both of which leave pages with the module.
    ///
    /// # Panics
    /// If it has not.
    pub(super) fn check_pamt(&self, is_whole: bool) {
        if !self.has_dynamic_pamt() {
            return;
        }
        let nodes = self.tdx().peek_pamt_nodes();
        for PamtNode { pages, .. } in nodes.values() {
            for page in pages {
                assert!(self.phys().is_allocated(*page), "TDX-INV-018: {page:?} is free, and holds metadata");
            }
        }
        if is_whole {
            let used: BTreeMap<Pfn, u64> = nodes.iter().map(|(at, node)| (*at, u64::from(node.used))).collect();
            assert_eq!(
                used,
                self.peek_pamt_counts(),
                "TDX-INV-018: pages in regions with metadata, and those that KVM counts"
            );
        }
    }

    /// After the last TD: no metadata is left.
    pub(super) fn check_pamt_end(&self) {
        let left = self.tdx().peek_pamt_nodes();
        assert!(left.is_empty(), "TDX-INV-018: metadata is left: {left:?}");
    }
}
