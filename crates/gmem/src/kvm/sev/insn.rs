//! Instructions of a guest that only SNP guests have, and what Linux makes of their results. Not KVM.
//!
//! Programs of such guests run with paging off unless they say otherwise, and there every access is private; [`SnpInsn::SetShared`] stands for the tables of a
//! guest that maps its memory one to one, with or without the C-bit.

use super::access::VC_VECTOR;
use super::info::SevInfo;
use super::protocol::msr::{MsrRequest, TermReason};
use crate::kvm::cpu::AccessFault;
use crate::kvm::exception::Exception;
use crate::kvm::guest::Visit;
use crate::kvm::kernel::KernelInsn;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use crate::linux_guest::{Trap, Vc};
use sim_coco::snp::{RmpAdjust, RmpFail};
use sim_kernel::Cx;
use sim_mmu::{Gpa, Gva};

/// An instruction of an SNP guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SnpInsn {
    /// The data accesses that follow go through mappings without the C-bit, or with it.
    SetShared {
        /// Without.
        shared: bool,
    },
    /// `pvalidate`; `rbx` receives EAX, or 255 if there was nothing to do.
    Pvalidate {
        /// The page.
        gpa: Gpa,
        /// 0 for 4 KiB, 1 for 2 MiB.
        size: u64,
        /// 1 to accept, 0 to take back.
        validate: u32,
    },
    /// `rmpadjust`; `rbx` receives EAX.
    Rmpadjust {
        /// The page.
        gpa: Gpa,
        /// 0 for 4 KiB, 1 for 2 MiB.
        size: u64,
        /// Target VMPL, permissions, VMSA flag.
        rdx: u64,
    },
    /// `wrmsr` of the GHCB MSR.
    WriteGhcbMsr {
        /// An address, or a request.
        value: u64,
    },
    /// `rdmsr` of it, into `rbx`.
    ReadGhcbMsr,
    /// `vmgexit`.
    Vmgexit,
}

/// `ud2`'s vector.
const UD_VECTOR: u8 = 6;

/// What Linux says instead of EAX if PVALIDATE changed nothing (`PVALIDATE_FAIL_NOUPDATE`).
pub const PVALIDATE_NO_UPDATE: u64 = 255;

fn eax(result: Result<(), RmpFail>) -> u64 {
    result.err().and_then(RmpFail::code).map_or(0, u64::from)
}

impl Vcpu {
    pub(crate) fn perform_snp(&self, cx: &Cx<'_>, state: &mut VcpuState, insn: SnpInsn) -> Result<Visit, AccessFault> {
        if self.vm.sev().is_none() {
            return Ok(self.deliver(cx, state, Exception::of_vector(UD_VECTOR)));
        }
        match insn {
            SnpInsn::SetShared { shared } => es(state).shared_mapping = shared,
            SnpInsn::WriteGhcbMsr { value } => es(state).ghcb_msr = value,
            SnpInsn::ReadGhcbMsr => state.regs.rbx = es(state).ghcb_msr,
            SnpInsn::Vmgexit => {
                cx.note("guest", "VMGEXIT");
                state.regs.rip += 1;
                return Ok(Visit::Vmgexit);
            }
            SnpInsn::Pvalidate { gpa, size, validate } => {
                let done = match self.snp_pvalidate_inputs(state, Gva(gpa.0), size, validate)? {
                    Some(failed) => failed,
                    None => {
                        let operand = self.snp_operand(cx, state, Gva(gpa.0), size)?;
                        cx.note("guest", "PVALIDATE");
                        self.snp_pvalidate(cx, state, &operand, validate)?
                    }
                };
                state.regs.rbx = if done.unchanged { PVALIDATE_NO_UPDATE } else { eax(done.result) };
                state.regs.rip += 1;
                return Ok(Visit::Done);
            }
            SnpInsn::Rmpadjust { gpa, size, rdx } => {
                let result = match self.snp_rmpadjust_inputs(state, Gva(gpa.0), size, RmpAdjust(rdx))? {
                    Some(fail) => Err(fail),
                    None => {
                        let operand = self.snp_operand(cx, state, Gva(gpa.0), size)?;
                        cx.note("guest", "RMPADJUST");
                        self.snp_rmpadjust(cx, state, &operand, RmpAdjust(rdx))?
                    }
                };
                state.regs.rbx = eax(result);
                state.regs.rip += 1;
                return Ok(Visit::Done);
            }
        }
        // Nobody sees registers: the next instruction is in the same visit.
        state.regs.rip += 1;
        Ok(self.guest(cx, state))
    }

    /// An instruction of a kernel.
    pub(crate) fn perform_kernel(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        insn: KernelInsn,
    ) -> Result<Visit, AccessFault> {
        // TDs perform theirs themselves.
        let Some(SevInfo { spinners, .. }) = self.vm.sev() else {
            return Ok(self.deliver(cx, state, Exception::of_vector(UD_VECTOR)));
        };
        match insn {
            KernelInsn::CompareExchange { gpa, old, new } => {
                let mut found = 0;
                let exchange = |bytes: &mut [u8]| {
                    found = u64::from_le_bytes((&*bytes).try_into().expect("eight bytes"));
                    if found == old {
                        bytes.copy_from_slice(&new.to_le_bytes());
                    }
                };
                self.snp_modify(cx, state, Gva(gpa.0), None, &mut [0; 8], exchange)?;
                state.regs.rbx = found;
            }
            KernelInsn::SpinWhile { gpa, value } => {
                // Before the look: a release after it ends the wait.
                let seen = spinners.seen();
                if self.read_quad(cx, state, Gva(gpa.0), None)? == value {
                    return Ok(Visit::Spins { seen });
                }
            }
            KernelInsn::Release { gpa, value } => {
                self.write_quad(cx, state, Gva(gpa.0), None, value)?;
                spinners.release(cx);
            }
            KernelInsn::WriteBlock { gpa, block } => {
                let block = state.blocks[block].clone();
                let mut bytes = block.clone();
                self.snp_modify(cx, state, Gva(gpa.0), None, &mut bytes, |bytes| bytes.copy_from_slice(&block))?;
            }
        }
        state.regs.rip += 1;
        Ok(Visit::Done)
    }

    /// VMMCALL, which the processor makes a `#VC`: KVM does not see registers of an SNP guest, which has to ask by its GHCB.
    pub(crate) fn snp_vmmcall(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Visit {
        /// `SVM_EXIT_VMMCALL`, as error code.
        const VC_VMMCALL: u32 = 0x81;
        self.deliver(cx, state, Exception { vector: VC_VECTOR, error: Some(VC_VMMCALL), cr2: None })
    }

    /// `#VC` of a guest without a table of handlers: as Linux has it, an exception that has no handler in its kernel ends the guest, by the MSR protocol.
    pub(crate) fn default_vc_handler(&self, state: &mut VcpuState, exception: Exception) -> Option<Visit> {
        let (error, cr2) = (u64::from(exception.error.unwrap_or(0)), exception.cr2.map_or(0, |cr2| cr2.0));
        if exception.vector == VC_VECTOR && state.trap_to_kernel(Trap::Vc(Vc { error, cr2 })) {
            return Some(Visit::Done);
        }
        let has_table = state.sregs.idt.limit != 0;
        let sev = state.sev.as_deref_mut().filter(|_| exception.vector == VC_VECTOR && !has_table)?;
        sev.ghcb_msr = MsrRequest::terminate(TermReason::Unspecified).encode();
        Some(Visit::Vmgexit)
    }
}

fn es(state: &mut VcpuState) -> &mut super::vcpu::SevState {
    state.sev.as_deref_mut().expect("a vCPU of an SNP VM")
}
