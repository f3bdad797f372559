//! Taking pages out of page tables (`zap_page_range`, `unmap_page_range` in `mm/memory.c`).
//!
//! The page-table lock is taken once per 2 MiB block that has anything, never around a notifier, and empty stretches cost
//! nothing.

use super::mm::Mm;
use super::notifier::Invalidation;
use super::pgtable::{MmuGather, PageTables, PteFlags, Zap};
use crate::{Cx, Hva, HvaRange, PAGE_SIZE};

/// The page around an address.
pub(super) fn page_of(hva: Hva) -> HvaRange {
    HvaRange::new(hva.page_base(), hva.page_base() + PAGE_SIZE)
}

impl Mm {
    pub(super) fn invalidate_start(&self, cx: &Cx<'_>, range: HvaRange) -> Invalidation {
        self.notifiers.start(cx, range)
    }

    pub(super) fn invalidate_end(&self, cx: &Cx<'_>, invalidation: Invalidation) {
        self.notifiers.end(cx, invalidation);
    }

    /// Runs `work` on the part of the range in each block that has a page table or huge page, in ascending order, with the
    /// page-table lock held. A huge page that the range covers only partly is split before, which raises a notifier of its own.
    pub(super) fn for_each_block(&self, cx: &Cx<'_>, range: HvaRange, mut work: impl FnMut(&mut PageTables, HvaRange)) {
        let mut at = range.start;
        while at < range.end {
            let mut tables = self.page_table_lock.lock(cx);
            let Some(block) = tables.next_block(at, range.end) else { return };
            if tables.needs_split(block, range) {
                drop(tables);
                // Looked at anew afterwards: the block may have become a huge page again meanwhile.
                self.split_huge_pmd(cx, block.start);
                continue;
            }
            work(&mut tables, block.clip(&range));
            at = block.end;
        }
    }

    /// Whether the address has a page of the file mapped there, rather than a private copy or nothing.
    pub(super) fn maps_file_page(&self, cx: &Cx<'_>, hva: Hva) -> bool {
        let pte = self.page_table_lock.lock(cx).pte(hva);
        !pte.is_none() && !pte.has(PteFlags::ANON)
    }

    /// `unmap_page_range`: empties the entries of the range; the caller runs the notifiers around it.
    pub(super) fn unmap_page_range(&self, cx: &Cx<'_>, range: HvaRange, how: Zap, gather: &mut MmuGather) {
        self.for_each_block(cx, range, |tables, part| tables.zap(&self.phys, part, how, gather));
    }

    /// `zap_page_range_single`: notifier start over exactly the range, entries emptied, notifier end, pages freed.
    pub(super) fn zap_page_range(&self, cx: &Cx<'_>, range: HvaRange, how: Zap) {
        let mut gather = MmuGather::default();
        let invalidation = self.invalidate_start(cx, range);
        self.unmap_page_range(cx, range, how, &mut gather);
        self.invalidate_end(cx, invalidation);
        gather.finish(cx, &self.phys);
    }
}
