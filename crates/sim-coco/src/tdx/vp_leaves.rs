//! TDH.VP leaves except VP.ENTER: a vCPU is made, initialised, and leaves its processor.

use super::leaf::{Leaf, LeafLocks};
use super::lock::{Held, LockId, Mode};
use super::machine::{Seam, State};
use super::pamt::{PageType, PamtEntry};
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::types::{Hpa, PageSize};
use super::vp::{VcpuState, Vp};
use sim_kernel::{Cx, Pfn};

impl State {
    /// The vCPU of an operand, and its TD, both locked as these say.
    pub(super) fn open_vp(
        &mut self,
        held: &mut Held<'_>,
        tdvpr: Hpa,
        operand: OperandId,
        locks: LeafLocks,
    ) -> Seamcall<(Pfn, Pfn)> {
        let LeafLocks { tdvpr: Some(of_vp), tdr: Some(of_td), .. } = locks else { unreachable!("a leaf of a vCPU") };
        let tdvpr = self.lock_page(held, tdvpr, PageType::Tdvpr, of_vp, operand)?.base;
        let tdr = self.vp(tdvpr).tdr;
        let busy = SeamFail::new(StatusName::OperandBusy, OperandId::TDR);
        self.take(held, LockId::Pamt(PageSize::Size4K, tdr), of_td).map_err(|_| busy)?;
        Ok((tdvpr, tdr))
    }

    pub(super) fn check_tdvps(&self, tdvpr: Pfn) -> Seamcall<()> {
        let is_complete = self.vp(tdvpr).tdcx.len() >= self.config.tdvps_tdcx as usize;
        if is_complete { Ok(()) } else { Err(StatusName::TdcxNumIncorrect.into()) }
    }
}

impl Seam<'_> {
    /// TDH.VP.CREATE: a page becomes the TDVPR of a vCPU.
    ///
    /// # Errors
    /// The TD's (|RDX); the page's (|RCX).
    pub fn vp_create(self, cx: &Cx<'_>, tdvpr: Hpa, tdr: Hpa) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, Leaf::VpCreate, tdr, OperandId::RDX)?;
        let page = state.new_page(&mut held, tdvpr, PageSize::Size4K, OperandId::RCX)?;
        drop(state);
        self.tdx.commit_pages(cx, page.base, 1);
        let mut state = self.tdx.state.lock();
        let hkid = state.hkid(tdr);
        state.memory.zero_page(hkid, page.base);
        state.assign(page, PamtEntry::owned(PageType::Tdvpr, tdr));
        state.vps.insert(page.base, Vp::new(tdr));
        state.td_mut(tdr).chldcnt += 1;
        Ok(())
    }

    /// TDH.VP.ADDCX: a page for TDVPS.
    ///
    /// # Errors
    /// The vCPU's (|RDX); BUSY|TDR; the TD's; VCPU_STATE_INCORRECT once it is initialised; TDCX_NUM_INCORRECT if there are enough; the page's (|RCX).
    pub fn vp_addcx(self, cx: &Cx<'_>, page: Hpa, tdvpr: Hpa) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let (tdvpr, tdr) = state.open_vp(&mut held, tdvpr, OperandId::RDX, Leaf::VpAddcx.locks())?;
        state.check_state(&mut held, Leaf::VpAddcx, tdr)?;
        if state.vp(tdvpr).state != VcpuState::Uninit {
            return Err(StatusName::VcpuStateIncorrect.into());
        }
        if state.vp(tdvpr).tdcx.len() >= self.tdx.config.tdvps_tdcx as usize {
            return Err(StatusName::TdcxNumIncorrect.into());
        }
        let page = state.new_page(&mut held, page, PageSize::Size4K, OperandId::RCX)?;
        drop(state);
        self.tdx.commit_pages(cx, page.base, 1);
        let mut state = self.tdx.state.lock();
        let hkid = state.hkid(tdr);
        state.memory.zero_page(hkid, page.base);
        state.assign(page, PamtEntry::owned(PageType::Tdcx, tdr));
        state.vp_mut(tdvpr).tdcx.push(page.base);
        state.td_mut(tdr).chldcnt += 1;
        Ok(())
    }

    /// TDH.VP.INIT: the vCPU can run, and belongs to this processor. `x2apic_id`: that of version 1, which has the TD for itself; version 0 has none.
    ///
    /// # Errors
    /// The vCPU's (|RCX); BUSY|TDR; the TD's; OPERAND_INVALID|R8; TDCX_NUM_INCORRECT; VCPU_STATE_INCORRECT; MAX_VCPUS_EXCEEDED; X2APIC_ID_NOT_UNIQUE.
    pub fn vp_init(self, cx: &Cx<'_>, tdvpr: Hpa, rcx: u64, x2apic_id: Option<u64>) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let mut locks = Leaf::VpInit.locks();
        if x2apic_id.is_some() {
            locks.tdr = Some(Mode::Exclusive);
        }
        let (tdvpr, tdr) = state.open_vp(&mut held, tdvpr, OperandId::RCX, locks)?;
        state.check_state(&mut held, Leaf::VpInit, tdr)?;
        let x2apic_id = match x2apic_id.map(u32::try_from) {
            None => None,
            Some(Ok(id)) => Some(id),
            Some(Err(_)) => return Err(SeamFail::new(StatusName::OperandInvalid, OperandId::R8)),
        };
        state.check_tdvps(tdvpr)?;
        if state.vp(tdvpr).state != VcpuState::Uninit {
            return Err(StatusName::VcpuStateIncorrect.into());
        }
        let td = state.td(tdr);
        if td.num_vcpus >= u32::from(td.params.max_vcpus) {
            return Err(StatusName::MaxVcpusExceeded.into());
        }
        let mut others = state.vps.values().filter(|vp| vp.tdr == tdr);
        if x2apic_id.is_some() && others.any(|vp| vp.x2apic_id == x2apic_id) {
            return Err(StatusName::X2apicIdNotUnique.into());
        }
        // Counted before others can run: version 0 does not have the TD for itself.
        let td = state.td_mut(tdr);
        let index = td.num_vcpus;
        td.num_vcpus += 1;
        td.num_assoc += 1;
        let pending_ve_disable = td.attributes().contains(super::td::TdAttributes::SEPT_VE_DISABLE);
        let lp = self.lp;
        let vp = state.vp_mut(tdvpr);
        vp.state = VcpuState::Ready;
        vp.index = index;
        vp.x2apic_id = x2apic_id;
        vp.initial_rcx = rcx;
        vp.pending_ve_disable = pending_ve_disable;
        vp.assoc = Some(lp);
        drop(state);
        self.tdx.window(cx);
        Ok(())
    }

    /// TDH.VP.FLUSH: the vCPU leaves this processor, which forgets all translations of the TD.
    ///
    /// # Errors
    /// The vCPU's (|RCX); BUSY|TDR; TD_KEYS_NOT_CONFIGURED; TDCX_NUM_INCORRECT; VCPU_NOT_ASSOCIATED with this processor.
    pub fn vp_flush(self, cx: &Cx<'_>, tdvpr: Hpa) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let (tdvpr, tdr) = state.open_vp(&mut held, tdvpr, OperandId::RCX, Leaf::VpFlush.locks())?;
        if state.td(tdr).lifecycle != super::td::Lifecycle::KeysConfigured {
            return Err(StatusName::TdKeysNotConfigured.into());
        }
        state.check_tdvps(tdvpr)?;
        if state.vp(tdvpr).assoc != Some(self.lp) {
            return Err(StatusName::VcpuNotAssociated.into());
        }
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        let hkid = state.hkid(tdr);
        state.lp_mut(self.lp).tlb.flush(hkid);
        state.vp_mut(tdvpr).assoc = None;
        state.td_mut(tdr).num_assoc -= 1;
        Ok(())
    }

    /// TDH.VP.WR of the Shared EPT pointer: what the vCPU's shared addresses are translated by.
    ///
    /// # Errors
    /// The vCPU's (|RDX); BUSY|TDR; the TD's.
    pub fn vp_wr_shared_eptp(
        self,
        cx: &Cx<'_>,
        tdvpr: Hpa,
        tables: std::sync::Arc<dyn super::shared::SharedEpt>,
    ) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let locks = LeafLocks { tdvpr: Some(Mode::Exclusive), tdr: Some(Mode::Shared), ..LeafLocks::default() };
        let (tdvpr, tdr) = state.open_vp(&mut held, tdvpr, OperandId::RDX, locks)?;
        state.check_usable(tdr)?;
        state.vp_mut(tdvpr).shared_ept = Some(tables);
        Ok(())
    }
}
