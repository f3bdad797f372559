//! TDH.MNG leaves: a TD from its creation to the release of its key.

use super::keys::HkidState;
use super::leaf::Leaf;
use super::lock::{LockId, Mode};
use super::machine::{Injected, Seam};
use super::mutants;
use super::pamt::{PageType, PamtEntry};
use super::params::{TD_PARAMS_BYTES, TdParams};
use super::sept::SeptEntry;
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::td::{Lifecycle, MSR_BITMAPS, OpState, SEPT_ROOT, Td};
use super::types::{Hkid, Hpa, PageSize};
use sim_kernel::{Cx, PAGE_SHIFT, PAGE_SIZE, Pfn};

const KOT_BUSY: SeamFail = SeamFail::new(StatusName::OperandBusy, OperandId::KOT);

impl Seam<'_> {
    /// TDH.MNG.CREATE: a TD with its TDR in this page and this HKID.
    ///
    /// # Errors
    /// OPERAND_INVALID|RDX for no private KeyID; the page's (|RCX); BUSY|KOT; HKID_NOT_FREE; RND_NO_ENTROPY, and then the page is zeroed.
    pub fn mng_create(self, cx: &Cx<'_>, tdr: Hpa, hkid: Hkid) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        if !self.tdx.config.is_private(hkid) {
            return Err(SeamFail::new(StatusName::OperandInvalid, OperandId::RDX));
        }
        let page = state.new_page(&mut held, tdr, PageSize::Size4K, OperandId::RCX)?;
        state.take(&mut held, LockId::Kot, Mode::Exclusive).map_err(|_| KOT_BUSY)?;
        if state.kot.entries.contains_key(&hkid) {
            return Err(StatusName::HkidNotFree.into());
        }
        drop(state);
        self.tdx.commit_pages(cx, page.base, 1);
        let mut state = self.tdx.state.lock();
        state.memory.zero_page(self.tdx.config.global_hkid(), page.base);
        state.draw()?;
        // A TDR has no owner.
        state.assign(page, PamtEntry { page_type: PageType::Tdr, owner: None, bepoch: 0 });
        state.kot.entries.insert(hkid, HkidState::Assigned);
        state.tds.insert(page.base, Td::new(hkid));
        Ok(())
    }

    /// TDH.MNG.KEY.CONFIG: the TD's key on this processor's package. With the last package the TD can be used.
    ///
    /// # Errors
    /// The TDR's (|RCX); TD_FATAL; LIFECYCLE_STATE_INCORRECT; KEY_CONFIGURED, which is no error; BUSY|KET; RND_NO_ENTROPY; KEY_GENERATION_FAILED.
    pub fn mng_key_config(self, cx: &Cx<'_>, tdr: Hpa) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let package = state.package(self.lp);
        let tdr = state.open_tdr(&mut held, Leaf::MngKeyConfig, tdr, OperandId::RCX)?;
        let td = state.td(tdr);
        if td.fatal {
            return Err(StatusName::TdFatal.into());
        }
        if td.lifecycle != Lifecycle::HkidAssigned {
            return Err(StatusName::LifecycleStateIncorrect.into());
        }
        if td.packages >> package & 1 != 0 {
            return Err(StatusName::KeyConfigured.into());
        }
        let ket = LockId::Ket(package);
        state
            .take(&mut held, ket, Mode::Exclusive)
            .map_err(|_| SeamFail::new(StatusName::OperandBusy, OperandId::KET))?;
        state.draw()?;
        if state.happens(Injected::KeyGenerationFailed) {
            return Err(StatusName::KeyGenerationFailed.into());
        }
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        let td = state.td_mut(tdr);
        let hkid = td.hkid;
        if td.packages == 0 {
            state.memory.configure_key(hkid);
        }
        let td = state.td_mut(tdr);
        td.packages |= 1 << package;
        if td.packages.count_ones() == self.tdx.config.packages {
            td.set_lifecycle(Lifecycle::KeysConfigured);
        }
        Ok(())
    }

    /// TDH.MNG.ADDCX: a page for TDCS.
    ///
    /// # Errors
    /// The TDR's (|RDX); TD_FATAL; TD_KEYS_NOT_CONFIGURED; TDCX_NUM_INCORRECT if there are enough; the page's (|RCX). Afterwards the page is written:
    /// RND_NO_ENTROPY for the one that completes TDCS, OP_STATE_INCORRECT for those after it.
    pub fn mng_addcx(self, cx: &Cx<'_>, page: Hpa, tdr: Hpa) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_tdr(&mut held, Leaf::MngAddcx, tdr, OperandId::RDX)?;
        let td = state.td(tdr);
        if td.fatal {
            return Err(StatusName::TdFatal.into());
        }
        if td.lifecycle != Lifecycle::KeysConfigured {
            return Err(StatusName::TdKeysNotConfigured.into());
        }
        let (fewest, most) = self.tdx.config.tdcs_pages;
        let (index, hkid) = (td.tdcx.len(), td.hkid);
        if index >= most as usize {
            return Err(StatusName::TdcxNumIncorrect.into());
        }
        let page = state.new_page(&mut held, page, PageSize::Size4K, OperandId::RCX)?;
        drop(state);
        self.tdx.commit_pages(cx, page.base, 1);
        let mut state = self.tdx.state.lock();
        match index {
            MSR_BITMAPS => state.memory.fill_page(hkid, page.base, u64::MAX),
            SEPT_ROOT => state.memory.fill_page(hkid, page.base, SeptEntry::FREE.0),
            _ => state.memory.zero_page(hkid, page.base),
        }
        if index + 1 == fewest as usize {
            state.draw()?;
        } else if index + 1 > fewest as usize && !Leaf::MngAddcx.is_allowed_in(state.td(tdr).op_state) {
            return Err(StatusName::OpStateIncorrect.into());
        }
        state.assign(page, PamtEntry::owned(PageType::Tdcx, tdr));
        let td = state.td_mut(tdr);
        td.tdcx.push(page.base);
        td.chldcnt += 1;
        Ok(())
    }

    /// TDH.MNG.INIT: what the TD is, from TD_PARAMS in memory of the host.
    ///
    /// # Errors
    /// The TDR's (|RCX); the TD's; the address's (|RDX); TD_FATAL if poison is there; then those of [`TdParams`], each field with its operand.
    pub fn mng_init(self, cx: &Cx<'_>, tdr: Hpa, params: Hpa) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_tdr(&mut held, Leaf::MngInit, tdr, OperandId::RCX)?;
        state.check_state(&mut held, Leaf::MngInit, tdr)?;
        let at = state.shared_operand(params, TD_PARAMS_BYTES as u64, OperandId::RDX)?;
        let (pfn, offset) = (Pfn(at.0 >> PAGE_SHIFT), at.0 & (PAGE_SIZE - 1));
        drop(state);
        self.tdx.commit_bytes(cx, sim_kernel::sched::Access::Load, pfn, offset, TD_PARAMS_BYTES);
        let mut state = self.tdx.state.lock();
        let mut bytes = [0; TD_PARAMS_BYTES];
        let read = state.memory.read(Hkid::HOST, pfn, offset as usize, &mut bytes);
        if read.is_err() {
            // A machine check in the module.
            return Err(state.consume(tdr));
        }
        let (params, is_clean) = TdParams::from_bytes(&bytes);
        params.check(is_clean, &self.tdx.config, state.td(tdr).tdcx.len())?;
        let td = state.td_mut(tdr);
        td.params = params;
        td.epoch.epoch = 1;
        td.op_state = OpState::Initialized;
        Ok(())
    }

    /// TDH.MNG.VPFLUSHDONE: no vCPU can use the key any more; every package may still have lines of it.
    ///
    /// # Errors
    /// The TDR's (|RCX); BUSY|KOT; LIFECYCLE_STATE_INCORRECT; FLUSHVP_NOT_DONE while a vCPU is associated with a processor.
    pub fn mng_vpflushdone(self, cx: &Cx<'_>, tdr: Hpa) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_tdr(&mut held, Leaf::MngVpflushdone, tdr, OperandId::RCX)?;
        state.take(&mut held, LockId::Kot, Mode::Exclusive).map_err(|_| KOT_BUSY)?;
        let td = state.td(tdr);
        if td.lifecycle > Lifecycle::KeysConfigured {
            return Err(StatusName::LifecycleStateIncorrect.into());
        }
        if td.num_assoc != 0 && !state.is_off(mutants::VPFLUSH) {
            return Err(StatusName::FlushvpNotDone.into());
        }
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        let packages = u64::MAX >> (64 - self.tdx.config.packages);
        let hkid = state.hkid(tdr);
        state.td_mut(tdr).set_lifecycle(Lifecycle::Blocked);
        state.kot.entries.insert(hkid, HkidState::Flushed { packages });
        state.kot.unwritten.insert(hkid, packages);
        Ok(())
    }

    /// TDH.MNG.KEY.FREEID: the HKID is free, and the TD's pages can be reclaimed.
    ///
    /// # Errors
    /// The TDR's (|RCX); LIFECYCLE_STATE_INCORRECT; BUSY|KOT; WBCACHE_NOT_COMPLETE before all packages wrote back.
    pub fn mng_key_freeid(self, cx: &Cx<'_>, tdr: Hpa) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_tdr(&mut held, Leaf::MngKeyFreeid, tdr, OperandId::RCX)?;
        if state.td(tdr).lifecycle != Lifecycle::Blocked {
            return Err(StatusName::LifecycleStateIncorrect.into());
        }
        state.take(&mut held, LockId::Kot, Mode::Exclusive).map_err(|_| KOT_BUSY)?;
        let hkid = state.hkid(tdr);
        let is_written_back = state.kot.entries.get(&hkid) == Some(&HkidState::Flushed { packages: 0 });
        if !is_written_back && !state.is_off(mutants::WBCACHE) {
            return Err(StatusName::WbcacheNotComplete.into());
        }
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        state.kot.entries.remove(&hkid);
        state.td_mut(tdr).set_lifecycle(Lifecycle::Teardown);
        Ok(())
    }
}
