//! Folios of 2 MiB in a guest_memfd, where the machine says `gmem_2m_enabled`: as trees of vendors have them, not Linux 7.3, whose folios are of one page.
//!
//! A folio is allocated where a block of 512 pages lies in the file as a whole and nothing of it is there. Frames of a guest are mapped by it as one if its
//! slot has all of the folio, and has guest frame and page of the file congruent. Taking away a part of a folio splits it; the frames of all of it are
//! zapped before, because a fault on another part may be about to map the whole.
//!
//! Simplified: contents are defined page by page, as after a launch that populated some of them only; no folios in files that the host may map; a folio that
//! was split stays so until its pages are gone.

use super::GmemInode;
use crate::kvm::memslots::Memslot;
use crate::kvm::mutants::GMEM_2M_INCONGRUENT;
use sim_kernel::mm::FrameFlags;
use sim_kernel::{Cx, PAGE_SHIFT, PAGES_PER_PMD, Pfn, Pgoff};
use sim_mmu::{Gfn, Level};
use std::ops::Range;

impl GmemInode {
    /// Whether a new page at `index` may be one of a large folio.
    pub(super) fn has_large_folio_at(&self, index: Pgoff) -> bool {
        let end = (index.0 & !(PAGES_PER_PMD - 1)).saturating_add(PAGES_PER_PMD);
        self.host.config.gmem_2m_enabled && !self.is_mappable() && end <= self.size >> PAGE_SHIFT
    }

    /// The range of pages, and what large folios may have around it.
    pub(super) fn whole_folios(&self, pages: &Range<u64>) -> Range<u64> {
        if !self.host.config.gmem_2m_enabled || self.is_mappable() {
            return pages.clone();
        }
        let end = pages.end.checked_next_multiple_of(PAGES_PER_PMD).unwrap_or(u64::MAX);
        pages.start & !(PAGES_PER_PMD - 1)..end
    }

    /// First exposure of a page of a large folio, which is locked: the contents of all of it become defined, as far as they are not. One step.
    pub(super) fn make_folio_uptodate(&self, cx: &Cx<'_>, pfn: Pfn) {
        let phys = &self.host.phys;
        let head = phys.folio(pfn);
        let undefined = |i: &u64| !phys.flags(head + *i).contains(FrameFlags::UPTODATE);
        let pages: Vec<Pfn> = (0..PAGES_PER_PMD).filter(undefined).map(|i| head + i).collect();
        if pages.is_empty() {
            return;
        }
        phys.zero_all(cx, head, &pages);
        for pfn in pages {
            let twice = phys.flags(pfn).contains(FrameFlags::UPTODATE);
            assert!(!twice, "INV-107: {pfn:?} is cleared after it was exposed");
            phys.set_flags(pfn, FrameFlags::UPTODATE);
        }
    }

    /// Whether the page that backs this frame of the slot may be mapped together with the rest of its folio (`max_order`).
    pub(super) fn allows_large(&self, slot: &Memslot, gfn: Gfn, pfn: Pfn, cx: &Cx<'_>) -> bool {
        if !self.host.phys.is_large(pfn) {
            return false;
        }
        // Without it, the frames of the guest and the pages of the folio do not begin at the same place.
        let is_congruent = (slot.base_gfn.0 ^ slot.gmem.pgoff.0) & (PAGES_PER_PMD - 1) == 0;
        let (block, slot) = (gfn.block(Level::L2M), slot.gfns());
        (is_congruent || cx.has_mutant(GMEM_2M_INCONGRUENT)) && slot.start <= block.start && block.end <= slot.end
    }
}
