//! Why a vCPU left its TD, and what KVM does about it (`tdx_handle_exit`).

use super::enter::TdVisit;
use super::protocol::leaf;
use super::vcpu::tdx_state_mut;
use crate::kvm::run::Next;
use crate::kvm::uapi::{KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_TDX_FATAL};
use crate::kvm::vcpu::{ExitInfo, Vcpu, VcpuState};
use sim_coco::tdx::{Status, StatusName, TdExit, exit};
use sim_kernel::sync::{SrcuReadGuard, Until};
use sim_kernel::{Cx, Errno};

impl Vcpu {
    /// `__tdx_handle_exit`.
    ///
    /// # Errors
    /// What `KVM_RUN` answers.
    pub(super) fn tdx_handle_exit(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        srcu: &mut SrcuReadGuard<'_>,
        visit: TdVisit,
    ) -> Result<Next, Errno> {
        let exit = match visit {
            // Linux spins through the entry until it succeeds: here whoever is in the way goes on first.
            TdVisit::KeptOut => {
                let tdx = self.vm.tdx().expect("a vCPU of a TD");
                srcu.outside(|| tdx.wait_for_sept_zap.wait_until(cx, Until::Equal(0)));
                return Ok(Next::Enter);
            }
            TdVisit::Busy => {
                let tdx = self.vm.tdx().expect("a vCPU of a TD");
                srcu.outside(|| tdx.host.wait_for_lock(cx));
                return Ok(Next::Enter);
            }
            TdVisit::Spins(_) => return Ok(Next::Enter),
            TdVisit::Failed(status) => return Ok(self.tdx_unhandled_exit(state, status)),
            TdVisit::Halted => {
                self.tdx_take_vmcall(state);
                state.exit = ExitInfo::Hlt;
                return Ok(Next::Exit);
            }
            TdVisit::Exit(exit) => exit,
        };
        let is_triple_fault = exit.exit_reason() == exit::TRIPLE_FAULT;
        let is_bad = exit.status.is_error() || is_non_recoverable(exit.status.name);
        if is_bad && !is_triple_fault {
            return Ok(self.tdx_unhandled_exit(state, exit.status));
        }
        match exit.exit_reason() {
            exit::TRIPLE_FAULT => {
                state.exit = ExitInfo::Shutdown;
                Ok(Next::Exit)
            }
            exit::EXTERNAL_INTERRUPT | exit::EXCEPTION_NMI => {
                if let Some(tdx) = self.vm.tdx() {
                    tdx.host.tdx().ack_interrupt(tdx.host.lp(cx));
                }
                Ok(Next::Enter)
            }
            exit::EPT_VIOLATION => self.tdx_handle_ept_violation(cx, state, srcu, &exit),
            exit::EPT_MISCONFIG => {
                self.vm.bug(cx);
                Err(Errno::EIO)
            }
            exit::TDCALL => {
                self.tdx_take_vmcall(state);
                self.handle_tdcall_exit(state)
            }
            _ => Ok(self.tdx_unhandled_exit(state, exit.status)),
        }
    }

    /// `kvm_prepare_unexpected_reason_exit`, with `vp_enter_ret`.
    fn tdx_unhandled_exit(&self, state: &mut VcpuState, status: Status) -> Next {
        let suberror = KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON;
        state.exit = ExitInfo::InternalError { suberror, gpa: None, reason: Some(status.raw()) };
        Next::Exit
    }

    /// The registers that the guest has shown.
    fn tdx_take_vmcall(&self, state: &mut VcpuState) {
        let (Some(tdx), Some(tdvpr)) = (self.vm.tdx(), self.tdx().and_then(|vcpu| vcpu.tdvpr())) else { return };
        let call = tdx.host.tdx().vmcall(tdvpr).unwrap_or_default();
        tdx_state_mut(state).args = call.registers;
    }

    /// A TDG.VP.VMCALL, by what is in R10 and R11.
    fn handle_tdcall_exit(&self, state: &mut VcpuState) -> Result<Next, Errno> {
        let args = tdx_state_mut(state).args;
        if args[10] != 0 {
            return Ok(self.tdx_emulate_vmcall(state));
        }
        match args[11] {
            leaf::HLT => {
                state.exit = ExitInfo::Hlt;
                Ok(Next::Exit)
            }
            leaf::IO => Ok(self.tdx_emulate_io(state)),
            leaf::MMIO => Ok(self.tdx_emulate_mmio(state)),
            leaf::REPORT_FATAL_ERROR => {
                state.exit = ExitInfo::SystemEvent { kind: KVM_SYSTEM_EVENT_TDX_FATAL, data: args[12] };
                Ok(Next::Exit)
            }
            _ => Ok(self.handle_tdvmcall(state)),
        }
    }
}

/// Bit 62 of the status.
fn is_non_recoverable(name: StatusName) -> bool {
    name.code() >> 62 & 1 != 0
}

/// What KVM needs of an EPT violation.
pub(super) fn is_unexpected_pending(exit: &TdExit) -> bool {
    /// `TDX_EXT_EXIT_QUAL_TYPE_PENDING_EPT_VIOLATION`.
    const PENDING: u8 = 6;
    exit.eeq_type() == PENDING && exit.qualification >> 3 & 7 == 0
}
