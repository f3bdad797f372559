//! TDH.PHYMEM.PAMT leaves of module 2.0: the host gives pages for the metadata of 2 MiB, and takes them back.

use super::lock::Mode;
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
        let mut given = [Pfn(0); 2];
        for ((pfn, page), operand) in given.iter_mut().zip(pages).zip(operands) {
            *pfn = state.page_operand(page, operand)?;
            if !state.memory.has_frame(*pfn) || !state.pamt.covers(*pfn) {
                return Err(SeamFail::new(StatusName::OperandAddrRangeError, operand));
            }
        }
        let at = state.pamt_walk(&mut held, region, PageSize::Size2M, Mode::Exclusive, OperandId::RCX)?;
        if at.size != PageSize::Size2M || state.pamt.get(at).page_type != PageType::Nda {
            return Err(SeamFail::new(StatusName::HpaRangeNotFree, OperandId::RCX));
        }
        for (pfn, operand) in given.into_iter().zip(operands) {
            let not_free = SeamFail::new(StatusName::PageNotFree, operand);
            // Of the region itself nothing is in use.
            if PageSize::Size2M.base(pfn) != region {
                let at = state.pamt_walk(&mut held, pfn, PageSize::Size4K, Mode::Shared, operand)?;
                if state.pamt.get(at).page_type != PageType::Nda {
                    return Err(not_free);
                }
            }
            let is_reserved = state.pamt.get(PamtAt { size: PageSize::Size4K, base: pfn }).page_type == PageType::Rsvd;
            if state.pamt.is_node_page(pfn) || is_reserved || (operand == OperandId::R8 && given[0] == given[1]) {
                return Err(not_free);
            }
        }
        drop(state);
        let global = self.tdx.config.global_hkid();
        for pfn in given {
            self.tdx.commit_pages(cx, pfn, 1);
            let mut state = self.tdx.state.lock();
            state.memory.note_handed_over(pfn, 1);
            state.memory.zero_page(global, pfn);
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
