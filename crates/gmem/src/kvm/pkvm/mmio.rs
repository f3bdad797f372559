//! Accesses of guests to what no slot has (`arch/arm64/kvm/mmio.c`): the processor says in the syndrome what the instruction was, and user space does it.
//!
//! Of an atomic instruction the syndrome says nothing: then a protected guest gets an abort, and for another the run fails.

use crate::kvm::guest::GuestInsn;
use crate::kvm::run::Next;
use crate::kvm::uapi::KVM_SYSTEM_EVENT_RESET;
use crate::kvm::vcpu::{ExitInfo, Vcpu, VcpuState};
use sim_coco::AccessKind;
use sim_coco::pkvm::GuestAbort;
use sim_kernel::Errno;

/// What the syndrome says of the instruction: bytes, and the value of a store.
fn syndrome(state: &VcpuState) -> Option<(u32, u64)> {
    match *state.program.get(state.regs.rip)? {
        GuestInsn::Read { .. } => Some((4, 0)),
        GuestInsn::Read64 { .. } | GuestInsn::ReadLinear { .. } => Some((8, 0)),
        GuestInsn::Write { value, .. } => Some((4, u64::from(value))),
        GuestInsn::Write64 { value, .. } | GuestInsn::WriteLinear { value, .. } => Some((8, value)),
        _ => None,
    }
}

impl Vcpu {
    /// `io_mem_abort`.
    ///
    /// # Errors
    /// `ENOSYS` if nothing is known of the instruction, and the guest is not protected.
    pub(super) fn pkvm_io_mem_abort(&self, state: &mut VcpuState, abort: &GuestAbort) -> Result<Next, Errno> {
        let Some((len, data)) = syndrome(state).filter(|_| abort.access != AccessKind::Fetch) else {
            return if self.vm.is_pvm() { Ok(self.pkvm_guest_dies(state)) } else { Err(Errno::ENOSYS) };
        };
        state.exit = ExitInfo::Mmio { gpa: abort.ipa, len, data, is_write: abort.access == AccessKind::Write };
        state.pending_exit = Some(state.exit);
        Ok(Next::Exit)
    }

    /// `kvm_handle_mmio_return`: the instruction is done.
    pub(super) fn pkvm_mmio_return(&self, state: &mut VcpuState, pending: ExitInfo) {
        if let ExitInfo::Mmio { len, data, is_write, .. } = pending {
            if !is_write {
                state.regs.rbx = if len == 4 { data & 0xffff_ffff } else { data };
            }
            state.regs.rip += 1;
        }
    }

    /// The guest got an exception, for which it has no handler: it panics, and asks PSCI to reset it.
    pub(super) fn pkvm_guest_dies(&self, state: &mut VcpuState) -> Next {
        state.exit = ExitInfo::SystemEvent { kind: KVM_SYSTEM_EVENT_RESET, data: 0 };
        Next::Exit
    }
}
