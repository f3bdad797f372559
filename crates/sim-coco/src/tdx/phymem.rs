//! TDH.PHYMEM leaves: pages are read about, reclaimed, and written back; and the caches of a package are.

use super::lock::{LockId, Mode};
use super::machine::{Seam, State};
use super::mutants;
use super::pamt::{PageType, PamtAt, PamtEntry};
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::td::Lifecycle;
use super::types::{Hkid, Hpa, PageSize};
use sim_kernel::{Cx, Pfn};

/// Metadata of a page as PHYMEM leaves answer it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageMetadata {
    /// RCX.
    pub page_type: PageType,
    /// RDX: the TDR of the owner; of a free page, and of a TDR, there is none.
    pub owner: Option<Hpa>,
    /// R8.
    pub size: PageSize,
    /// R9, only of RDMD: the epoch of the last BLOCK.
    pub bepoch: u64,
}

impl PageMetadata {
    fn of(at: PamtAt, entry: PamtEntry) -> PageMetadata {
        let is_free = matches!(entry.page_type, PageType::Nda | PageType::Rsvd);
        let owner = entry.owner.filter(|_| !is_free).map(Hpa::of);
        PageMetadata {
            page_type: entry.page_type,
            owner,
            size: at.size,
            bepoch: if is_free { 0 } else { entry.bepoch },
        }
    }

    fn fail(&self, name: StatusName, operand: Option<OperandId>) -> SeamFail {
        let fail = operand.map_or(SeamFail::bare(name), |operand| SeamFail::new(name, operand));
        let rdx = self.owner.map_or(0, |owner| owner.0);
        SeamFail { rcx: self.page_type as u64, rdx, r8: self.size as u64, ..fail }
    }
}

impl Seam<'_> {
    /// TDH.PHYMEM.PAGE.RDMD: metadata of the page that contains the address.
    ///
    /// # Errors
    /// The page's (|RCX).
    pub fn phymem_page_rdmd(self, cx: &Cx<'_>, page: Hpa) -> Seamcall<PageMetadata> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let pfn = state.page_operand(page, OperandId::RCX)?;
        let at = state.pamt_walk(&mut held, pfn, PageSize::Size4K, Mode::Shared, OperandId::RCX)?;
        let metadata = PageMetadata::of(at, state.pamt.get(at));
        drop(state);
        self.tdx.window(cx);
        Ok(metadata)
    }

    /// TDH.PHYMEM.PAGE.RECLAIM: takes a page of a TD whose key was freed. Contents stay as they are.
    ///
    /// # Errors
    /// The page's (|RCX), of which free and reserved ones are PAGE_METADATA_INCORRECT. Then with metadata in the registers: OPERAND_INVALID|RCX inside a large page;
    /// BUSY|TDR; LIFECYCLE_STATE_INCORRECT; TD_ASSOCIATED_PAGES_EXIST for a TDR of which pages are left.
    pub fn phymem_page_reclaim(self, cx: &Cx<'_>, page: Hpa) -> Seamcall<PageMetadata> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let pfn = state.page_operand(page, OperandId::RCX)?;
        let at = state.pamt_walk(&mut held, pfn, PageSize::Size4K, Mode::Exclusive, OperandId::RCX)?;
        let entry = state.pamt.get(at);
        let metadata = PageMetadata::of(at, entry);
        if matches!(entry.page_type, PageType::Nda | PageType::Rsvd | PageType::Pamt) {
            return Err(SeamFail::new(StatusName::PageMetadataIncorrect, OperandId::RCX));
        }
        if at.base != pfn {
            return Err(metadata.fail(StatusName::OperandInvalid, Some(OperandId::RCX)));
        }
        let tdr = entry.owner.unwrap_or(at.base);
        if entry.page_type != PageType::Tdr {
            let lock = LockId::Pamt(PageSize::Size4K, tdr);
            let busy = metadata.fail(StatusName::OperandBusy, Some(OperandId::TDR));
            state.take(&mut held, lock, Mode::Shared).map_err(|_| busy)?;
        }
        // Without a rule the TDR may have gone before.
        let Some(td) = state.tds.get(&tdr) else {
            return Err(SeamFail::new(StatusName::PageMetadataIncorrect, OperandId::RCX));
        };
        let (lifecycle, chldcnt) = (td.lifecycle, td.chldcnt);
        if lifecycle != Lifecycle::Teardown && !state.is_off(mutants::TEARDOWN) {
            return Err(metadata.fail(StatusName::LifecycleStateIncorrect, None));
        }
        let has_children = entry.page_type == PageType::Tdr && chldcnt != 0;
        if has_children && !state.is_off(mutants::CHILDREN) {
            return Err(metadata.fail(StatusName::TdAssociatedPagesExist, None));
        }
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        state.forget(tdr, at, entry);
        Ok(metadata)
    }

    /// TDH.PHYMEM.CACHE.WB: writes back the caches of this processor's package for all HKIDs whose TDs were flushed. `resume`: goes on after an interrupt.
    ///
    /// # Errors
    /// BUSY|WBCACHE; BUSY|KOT; NO_HKID_READY_TO_WBCACHE, which is no error; WBCACHE_RESUME_ERROR; INTERRUPTED_RESUMABLE while an interrupt of the host waits.
    pub fn phymem_cache_wb(self, cx: &Cx<'_>, resume: bool) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let package = state.package(self.lp);
        let busy = |operand| SeamFail::new(StatusName::OperandBusy, operand);
        state.take(&mut held, LockId::Wbcache(package), Mode::Exclusive).map_err(|_| busy(OperandId::WBCACHE))?;
        state.take(&mut held, LockId::Kot, Mode::Shared).map_err(|_| busy(OperandId::KOT))?;
        let interrupted = state.wbcache[package as usize].interrupted.clone();
        let hkids = if resume {
            interrupted.ok_or(SeamFail::bare(StatusName::WbcacheResumeError))?
        } else {
            state.kot.to_write_back(package)
        };
        if hkids.is_empty() {
            return Err(StatusName::NoHkidReadyToWbcache.into());
        }
        if state.lp_mut(self.lp).interrupt {
            state.wbcache[package as usize].interrupted = Some(hkids);
            return Err(StatusName::InterruptedResumable.into());
        }
        drop(state);
        if self.tdx.config.caches {
            // Any frame may have a line there.
            self.tdx.commit_pages(cx, Pfn(0), self.tdx.phys().total_frames());
        } else {
            self.tdx.window(cx);
        }
        let mut state = self.tdx.state.lock();
        state.memory.write_back_package(package);
        state.wbcache[package as usize].interrupted = None;
        state.kot.written_back(package, &hkids);
        state.kot.unwritten.values_mut().for_each(|packages| *packages &= !(1 << package));
        Ok(())
    }

    /// TDH.PHYMEM.PAGE.WBINVD: writes back the lines of a free page that were written through the KeyID in the address.
    ///
    /// # Errors
    /// The page's (|RCX): PAGE_METADATA_INCORRECT unless it is free.
    pub fn phymem_page_wbinvd(self, cx: &Cx<'_>, page: Hpa) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let shift = self.tdx.config.keyid_shift;
        let keyid = page.0 >> shift;
        if keyid >= u64::from(self.tdx.config.hkids.end) {
            return Err(SeamFail::new(StatusName::OperandInvalid, OperandId::RCX));
        }
        let plain = Hpa(page.0 & ((1 << shift) - 1));
        let pfn = state.page_operand(plain, OperandId::RCX)?;
        // Of a large page that is free, any part: with dynamic PAMT there may be no metadata of its own for it.
        let at = state.pamt_walk(&mut held, pfn, PageSize::Size4K, Mode::Shared, OperandId::RCX)?;
        if state.pamt.get(at).page_type != PageType::Nda {
            return Err(SeamFail::new(StatusName::PageMetadataIncorrect, OperandId::RCX));
        }
        drop(state);
        self.tdx.commit_pages(cx, pfn, 1);
        self.tdx.state.lock().memory.write_back_page(pfn, Hkid(keyid as u16));
        Ok(())
    }
}

impl State {
    /// A page of a TD is not one any more.
    fn forget(&mut self, tdr: Pfn, at: PamtAt, entry: PamtEntry) {
        self.pamt.free(at);
        for i in 0..at.size.pages() {
            self.memory.set_undefined(at.base + i);
        }
        match entry.page_type {
            PageType::Tdr => {
                self.tds.remove(&tdr);
                return;
            }
            PageType::Tdvpr => {
                self.vps.remove(&at.base);
            }
            PageType::Tdcx => {
                for vp in self.vps.values_mut().filter(|vp| vp.tdr == tdr) {
                    vp.tdcx.retain(|page| *page != at.base);
                }
            }
            _ => {}
        }
        let td = self.td_mut(tdr);
        td.chldcnt -= at.size.pages();
    }
}
