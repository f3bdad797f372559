//! TDCALL leaves that are not about pages: what a guest asks of the module, and TDG.VP.VMCALL, by which it asks the host.

use super::accept::{TDCALL_BYTES, Tdcall};
use super::enter::{GuestStop, InTd};
use super::exit::{self, TdExit, VmCall};
use super::lock::{Held, LockId, Mode, Side};
use super::machine::Tdx;
use super::params::{CONFIG_FLEXIBLE_PENDING_VE, CONFIG_NO_RBP_MOD};
use super::status::{OperandId, Status, StatusName};
use super::vp::{LastCall, VeInfo};
use crate::AccessKind;
use sim_kernel::sched::Access;
use sim_kernel::{Cx, Pfn};
use sim_mmu::Gpa;

/// Bytes that TDG.MR.RTMR.EXTEND adds.
const RTMR_BYTES: usize = 48;

/// What TDG.VP.INFO answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TdgVpInfo {
    /// RCX: the width of guest physical addresses, 48 or 52.
    pub gpaw: u32,
    /// RDX.
    pub attributes: u64,
    /// R8 bits 31:0.
    pub num_vcpus: u32,
    /// R8 bits 63:32.
    pub max_vcpus: u32,
    /// R9.
    pub vcpu_index: u32,
}

impl InTd<'_> {
    /// TDG.VP.INFO.
    ///
    /// # Errors
    /// None.
    ///
    /// # Panics
    /// If the vCPU has left its TD.
    #[track_caller]
    pub fn vp_info(&mut self, cx: &Cx<'_>) -> Tdcall<TdgVpInfo> {
        self.instruction(cx, Access::Load)?;
        let mut state = self.tdx.state.lock();
        let (td, vp) = (state.td(self.tdr), state.vp(self.tdvpr));
        let info = TdgVpInfo {
            gpaw: td.gpaw().shared_bit() + 1,
            attributes: td.params.attributes,
            num_vcpus: td.num_vcpus,
            max_vcpus: u32::from(td.params.max_vcpus),
            vcpu_index: vp.index,
        };
        self.complete(&mut state, Ok(info))
    }

    /// TDG.VP.VEINFO.GET: what the last `#VE` was about. Another can be raised from then on.
    ///
    /// # Errors
    /// NO_VALID_VE_INFO.
    ///
    /// # Panics
    /// If the vCPU has left its TD.
    #[track_caller]
    pub fn vp_veinfo_get(&mut self, cx: &Cx<'_>) -> Tdcall<VeInfo> {
        self.instruction(cx, Access::Load)?;
        let mut state = self.tdx.state.lock();
        let info = state.vp_mut(self.tdvpr).ve_info.take();
        self.complete(&mut state, info.ok_or(StatusName::NoValidVeInfo.into()))
    }

    /// TDG.VP.WR of TD_CTLS bit 0: whether an access to a pending page exits instead of raising `#VE`.
    ///
    /// # Errors
    /// OPERAND_INVALID|RDX unless the TD was made with FLEXIBLE_PENDING_VE.
    ///
    /// # Panics
    /// If the vCPU has left its TD.
    #[track_caller]
    pub fn vp_wr_pending_ve_disable(&mut self, cx: &Cx<'_>, on: bool) -> Tdcall<()> {
        self.instruction(cx, Access::Load)?;
        let mut state = self.tdx.state.lock();
        if state.td(self.tdr).params.config_flags & CONFIG_FLEXIBLE_PENDING_VE == 0 {
            return self.complete(&mut state, Err(Status::of(StatusName::OperandInvalid, OperandId::RDX)));
        }
        state.vp_mut(self.tdvpr).pending_ve_disable = on;
        self.complete(&mut state, Ok(()))
    }

    /// TDG.VM.WR of NOTIFY_ENABLES bit 0: whether the guest is told that it was zero-stepped.
    ///
    /// # Errors
    /// None.
    ///
    /// # Panics
    /// If the vCPU has left its TD.
    #[track_caller]
    pub fn vm_wr_notify_zero_step(&mut self, cx: &Cx<'_>, on: bool) -> Tdcall<()> {
        self.instruction(cx, Access::Rmw)?;
        let mut state = self.tdx.state.lock();
        state.td_mut(self.tdr).notify_zero_step = on;
        self.complete(&mut state, Ok(()))
    }

    /// TDG.MR.RTMR.EXTEND of a register with 48 bytes of private memory.
    ///
    /// # Errors
    /// OPERAND_INVALID|RCX for a buffer that is not 64-byte aligned, or not private; where reading it stops the guest; OPERAND_INVALID|RDX if there is no such register;
    /// BUSY|RTMR.
    ///
    /// # Panics
    /// If the vCPU has left its TD.
    #[track_caller]
    pub fn mr_rtmr_extend(&mut self, cx: &Cx<'_>, buffer: Gpa, index: u64) -> Tdcall<()> {
        self.instruction(cx, Access::Rmw)?;
        let tdx = self.tdx;
        let mut state = tdx.state.lock();
        if !buffer.0.is_multiple_of(64) || !state.td(self.tdr).gpaw().is_private(buffer) {
            return self.complete(&mut state, Err(Status::of(StatusName::OperandInvalid, OperandId::RCX)));
        }
        drop(state);
        let entry = self.translate(cx, buffer, AccessKind::Read)?;
        // A translation only reads.
        tdx.changes(cx);
        let mut held = Held::new(tdx);
        let mut state = tdx.state.lock();
        if index > 3 {
            return self.complete(&mut state, Err(Status::of(StatusName::OperandInvalid, OperandId::RDX)));
        }
        if let Err(denied) = state.take_as(&mut held, LockId::Rtmr(self.tdr), Mode::Exclusive, Side::Guest) {
            return self.busy(&mut state, denied, OperandId::RTMR);
        }
        drop(state);
        let pfn = entry.frame(buffer.gfn());
        tdx.commit_bytes(cx, Access::Load, pfn, buffer.offset(), RTMR_BYTES);
        let mut state = tdx.state.lock();
        let (hkid, mut data) = (state.hkid(self.tdr), [0; RTMR_BYTES]);
        if state.memory.read(hkid, pfn, buffer.offset() as usize, &mut data).is_err() {
            return Err(GuestStop::Exit(self.machine_check(cx, &mut state)));
        }
        let extended = state.td_mut(self.tdr).measurement.extend_rtmr(index, &data);
        debug_assert!(extended.is_some(), "there are four registers");
        self.complete(&mut state, Ok(()))
    }

    /// TDG.VP.VMCALL: the guest asks the host, and is behind the instruction when it is entered again ([`InTd::vmcall_answer`]). The answer is the exit, unless the mask is refused.
    ///
    /// # Errors
    /// OPERAND_INVALID|RCX, inside; else always the exit.
    ///
    /// # Panics
    /// If the vCPU has left its TD.
    #[track_caller]
    pub fn vp_vmcall(&mut self, cx: &Cx<'_>, call: VmCall) -> Tdcall<()> {
        self.instruction(cx, Access::Rmw)?;
        let mut state = self.tdx.state.lock();
        // RAX, RCX and RSP are nobody's to show; RBP neither if the TD says so; RCX above bit 31 is reserved.
        let no_rbp = state.td(self.tdr).params.config_flags & CONFIG_NO_RBP_MOD != 0;
        let illegal = 0xffff_ffff_0000_0013 | u64::from(no_rbp) << 5;
        if call.mask & illegal != 0 {
            return self.complete(&mut state, Err(Status::of(StatusName::OperandInvalid, OperandId::RCX)));
        }
        let vp = state.vp_mut(self.tdvpr);
        vp.vmcall = Some(LastCall::Asked(VmCall::shown(call.mask, &call.registers)));
        vp.host_priority_busy = 0;
        vp.rip = vp.rip.wrapping_add(TDCALL_BYTES);
        let exit = TdExit::reason(exit::TDCALL);
        Err(GuestStop::Exit(self.leave(&mut state, exit, None)))
    }

    /// What the host put into the registers that the last TDG.VP.VMCALL showed, once; `None` if there was none.
    pub fn vmcall_answer(&mut self) -> Option<VmCall> {
        let mut state = self.tdx.state.lock();
        let last = &mut state.vp_mut(self.tdvpr).vmcall;
        let Some(LastCall::Answered(answer)) = *last else { return None };
        *last = None;
        Some(answer)
    }
}

impl Tdx {
    /// What a vCPU that has left by TDG.VP.VMCALL shows the host, in the registers that VP.ENTER leaves. `None` once it was entered again: that answers the call.
    pub fn vmcall(&self, tdvpr: Pfn) -> Option<VmCall> {
        match self.state.lock().vps.get(&tdvpr)?.vmcall {
            Some(LastCall::Asked(call)) => Some(call),
            _ => None,
        }
    }
}
