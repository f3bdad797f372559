//! TDH.PHYMEM.PAMT leaves of module 2.0: the host gives pages for the metadata of 2 MiB, and takes them back.

use super::lock::{Held, Mode};
use super::machine::{Seam, State};
use super::pamt::{PageType, PamtAt, PamtNode};
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::types::{Hpa, PageSize, SeptInfo};
use sim_kernel::{Cx, PAGE_SHIFT, Pfn};
use sim_mmu::Level;

impl State {
    /// The 2 MiB page of the operand.
    fn pamt_region(&self, page: SeptInfo) -> Seamcall<Pfn> {
        if !self.pamt.is_dynamic {
            return Err(SeamFail::new(StatusName::OperandInvalid, OperandId::RAX));
        }
        let address = page.gpa().0;
        let is_legal = page.is_clean()
            && page.level() == Some(Level::L2M)
            && address.is_multiple_of(PageSize::Size2M.pages() << PAGE_SHIFT)
            && address >> self.config.keyid_shift == 0;
        if is_legal {
            Ok(Pfn(address >> PAGE_SHIFT))
        } else {
            Err(SeamFail::new(StatusName::OperandInvalid, OperandId::RCX))
        }
    }

    /// Two pages that the host gives for metadata, as operands.
    fn node_operands(&self, pages: [Hpa; 2], operands: [OperandId; 2]) -> Seamcall<[Pfn; 2]> {
        let mut given = [Pfn(0); 2];
        for ((pfn, page), operand) in given.iter_mut().zip(pages).zip(operands) {
            *pfn = self.page_operand(page, operand)?;
            if !self.memory.has_frame(*pfn) || !self.pamt.covers(*pfn) {
                return Err(SeamFail::new(StatusName::OperandAddrRangeError, operand));
            }
        }
        Ok(given)
    }

    /// The same, free, whether or not there is metadata for them. `region`: a page of 2 MiB of which nothing is in use, and which is locked.
    pub(super) fn node_pages(
        &mut self,
        held: &mut Held<'_>,
        pages: [Hpa; 2],
        operands: [OperandId; 2],
        region: Option<Pfn>,
    ) -> Seamcall<[Pfn; 2]> {
        let given = self.node_operands(pages, operands)?;
        for (i, (pfn, operand)) in given.into_iter().zip(operands).enumerate() {
            let not_free = SeamFail::new(StatusName::PageNotFree, operand);
            if region != Some(PageSize::Size2M.base(pfn)) {
                let at = self.pamt_walk(held, pfn, PageSize::Size4K, Mode::Shared, operand)?;
                if self.pamt.get(at).page_type != PageType::Nda {
                    return Err(not_free);
                }
            }
            let is_reserved = self.pamt.get(PamtAt { size: PageSize::Size4K, base: pfn }).page_type == PageType::Rsvd;
            if self.pamt.is_node_page(pfn) || is_reserved || (i == 1 && given[0] == given[1]) {
                return Err(not_free);
            }
        }
        Ok(given)
    }
}

impl Seam<'_> {
    /// A page becomes one of metadata: it is zero, under the global key.
    pub(super) fn zero_node_page(self, cx: &Cx<'_>, pfn: Pfn) {
        self.tdx.commit_pages(cx, pfn, 1);
        let mut state = self.tdx.state.lock();
        state.memory.note_handed_over(pfn, 1);
        state.memory.zero_page(self.tdx.config.global_hkid(), pfn);
    }
}

impl Seam<'_> {
    /// TDH.PHYMEM.PAMT.ADD: two pages for the metadata of the 4 KiB pages of a 2 MiB page. The operand is a host address with a level.
    ///
    /// # Errors
    /// OPERAND_INVALID|RAX without dynamic PAMT; the operand's (|RCX); HPA_RANGE_NOT_FREE|RCX if the page is in use, or has metadata; those of the two pages
    /// (|RDX, |R8): PAGE_NOT_FREE if they are in use.
    pub fn phymem_pamt_add(self, cx: &Cx<'_>, page: SeptInfo, pages: [Hpa; 2]) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let region = state.pamt_region(page)?;
        let operands = [OperandId::RDX, OperandId::R8];
        state.node_operands(pages, operands)?;
        let at = state.pamt_walk(&mut held, region, PageSize::Size2M, Mode::Exclusive, OperandId::RCX)?;
        if at.size != PageSize::Size2M || state.pamt.get(at).page_type != PageType::Nda {
            return Err(SeamFail::new(StatusName::HpaRangeNotFree, OperandId::RCX));
        }
        let given = state.node_pages(&mut held, pages, operands, Some(region))?;
        drop(state);
        for pfn in given {
            self.zero_node_page(cx, pfn);
        }
        let mut state = self.tdx.state.lock();
        let entry = state.pamt.get(at);
        state.pamt.set(at, super::pamt::PamtEntry { page_type: PageType::Pamt, ..entry });
        state.pamt.nodes.insert(region, PamtNode { pages: given, used: 0 });
        Ok(())
    }

    /// TDH.PHYMEM.PAMT.REMOVE: takes the pages back.
    ///
    /// # Errors
    /// As [`Seam::phymem_pamt_add`] for the operand; NO_PAMT_PAGE_PAIR|RCX; PAMT_PAGE_NOT_EMPTY with the number of the page while 4 KiB pages are in use.
    pub fn phymem_pamt_remove(self, cx: &Cx<'_>, page: SeptInfo) -> Seamcall<[Hpa; 2]> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let region = state.pamt_region(page)?;
        let at = state.pamt_walk(&mut held, region, PageSize::Size2M, Mode::Exclusive, OperandId::RCX)?;
        let node = state.pamt.nodes.get(&region).copied().filter(|_| at.size == PageSize::Size2M);
        let node = node.ok_or(SeamFail::new(StatusName::NoPamtPagePair, OperandId::RCX))?;
        let is_used = |i: &u64| {
            let at = PamtAt { size: PageSize::Size4K, base: region + *i };
            !matches!(state.pamt.get(at).page_type, PageType::Nda | PageType::Rsvd)
        };
        if let Some(used) = (0..PageSize::Size2M.pages()).find(is_used) {
            return Err(SeamFail::new(StatusName::PamtPageNotEmpty, OperandId((used / 256) as u32)));
        }
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        let entry = state.pamt.get(at);
        state.pamt.nodes.remove(&region);
        state.pamt.set(at, super::pamt::PamtEntry { page_type: PageType::Nda, ..entry });
        Ok(node.pages.map(Hpa::of))
    }
}
