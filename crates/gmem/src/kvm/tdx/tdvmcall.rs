//! What a TD asks its host for by TDG.VP.VMCALL (`handle_tdvmcall` and its like; Guest-Host Communication Interface).
//!
//! MapGPA changes nothing by itself: user space is told, in pieces of 2 MiB, and may convert the memory, or refuse.

use super::protocol::{leaf, status};
use super::vcpu::{tdx_state, tdx_state_mut};
use crate::kvm::run::Next;
use crate::kvm::uapi::KVM_HC_MAP_GPA_RANGE;
use crate::kvm::vcpu::{CpuMode, ExitInfo, Vcpu, VcpuState};
use sim_kernel::{Cx, Errno, PAGE_SIZE, PMD_SIZE};
use sim_mmu::Gpa;

/// `TDX_MAP_GPA_MAX_LEN`.
const MAP_GPA_MAX_LEN: u64 = PMD_SIZE;
/// `KVM_MAP_GPA_RANGE_ENCRYPTED`.
const ENCRYPTED: u64 = 1 << 4;

/// What goes on when user space has answered (`complete_userspace_io`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum TdCall {
    /// Nothing.
    #[default]
    None,
    /// A hypercall of KVM's own.
    Hypercall,
    /// MapGPA: `map_gpa_next` and `map_gpa_end`.
    MapGpa {
        /// Where the piece starts that user space was told.
        next: u64,
        /// Where the range ends.
        end: u64,
    },
    /// A read of a device, of so many bytes.
    MmioRead(u32),
    /// A read of a port, of so many bytes.
    IoRead(u8),
    /// An access after which there is nothing to do.
    Done,
}

/// The bits of so many bytes, 1 to 8.
const fn mask(bytes: u32) -> u64 {
    u64::MAX >> (64 - 8 * bytes)
}

impl Vcpu {
    /// `tdvmcall_set_return_code`.
    fn set_return_code(&self, state: &mut VcpuState, code: u64) {
        tdx_state_mut(state).args[10] = code;
    }

    /// `tdx_emulate_vmcall`: one of KVM's hypercalls.
    pub(super) fn tdx_emulate_vmcall(&self, state: &mut VcpuState) -> Next {
        let args = tdx_state(state).args;
        match self.hypercall_exit(args[10], [args[11], args[12], args[13]], CpuMode::Long64) {
            Ok(exit) => {
                state.exit = exit;
                self.ask_user(state, TdCall::Hypercall)
            }
            Err(answer) => {
                self.set_return_code(state, answer.cast_unsigned());
                Next::Enter
            }
        }
    }

    fn ask_user(&self, state: &mut VcpuState, call: TdCall) -> Next {
        state.pending_exit = Some(state.exit);
        tdx_state_mut(state).call = call;
        Next::Exit
    }

    /// `tdx_emulate_io`. What is too large for a port is cut.
    pub(super) fn tdx_emulate_io(&self, state: &mut VcpuState) -> Next {
        let args = tdx_state(state).args;
        let (size, direction, port, value) = (args[12], args[13], args[14], args[15]);
        self.set_return_code(state, status::SUCCESS);
        if !matches!(size, 1 | 2 | 4) || direction > 1 {
            self.set_return_code(state, status::INVALID_OPERAND);
            return Next::Enter;
        }
        let (len, is_write) = (size as u8, direction == 1);
        let data = if is_write { (value & mask(size as u32)) as u32 } else { 0 };
        state.exit = ExitInfo::Io { port: port as u16, len, data, is_write };
        self.ask_user(state, if is_write { TdCall::Done } else { TdCall::IoRead(len) })
    }

    /// `tdx_emulate_mmio`: only of shared memory, which user space has. Of size and direction KVM looks at 32 bits.
    pub(super) fn tdx_emulate_mmio(&self, state: &mut VcpuState) -> Next {
        let args = tdx_state(state).args;
        let (size, direction, gpa, value) = (args[12] as u32, args[13] as u32, Gpa(args[14]), args[15]);
        let tdx = self.vm.tdx().expect("a vCPU of a TD");
        let last = Gpa(gpa.0.wrapping_add(size.into()).wrapping_sub(1));
        if !matches!(size, 1 | 2 | 4 | 8) || direction > 1 || tdx.is_private_gpa(gpa) || tdx.is_private_gpa(last) {
            self.set_return_code(state, status::INVALID_OPERAND);
            return Next::Enter;
        }
        self.set_return_code(state, status::SUCCESS);
        let is_write = direction == 1;
        let data = if is_write { value & mask(size) } else { 0 };
        state.exit = ExitInfo::Mmio { gpa: tdx.without_shared_bit(gpa), len: size, data, is_write };
        self.ask_user(state, if is_write { TdCall::Done } else { TdCall::MmioRead(size) })
    }

    /// `handle_tdvmcall`, of leaves that KVM answers itself or asks user space about.
    pub(super) fn handle_tdvmcall(&self, state: &mut VcpuState) -> Next {
        let args = tdx_state(state).args;
        match args[11] {
            leaf::MAP_GPA => self.tdx_map_gpa(state, args[12], args[13]),
            leaf::GET_TD_VM_CALL_INFO => {
                // Simplified: of what there is beside the base interface (1) user space is asked, which says nothing here.
                if args[12] > 1 {
                    self.set_return_code(state, status::INVALID_OPERAND);
                    return Next::Enter;
                }
                tdx_state_mut(state).args[10..15].fill(0);
                Next::Enter
            }
            leaf::GET_QUOTE => {
                let tdx = self.vm.tdx().expect("a vCPU of a TD");
                self.unknown_to_user(state, !tdx.is_private_gpa(Gpa(args[12])))
            }
            leaf::SETUP_EVENT_NOTIFY_INTERRUPT => self.unknown_to_user(state, (32..=255).contains(&args[12])),
            _ => {
                self.set_return_code(state, status::SUBFUNC_UNSUPPORTED);
                Next::Enter
            }
        }
    }

    /// KVM_EXIT_TDX for a leaf that user space may answer. Simplified: it knows nothing of it and runs the vCPU again, so that the guest gets the answer that KVM
    /// had put there.
    fn unknown_to_user(&self, state: &mut VcpuState, are_operands_valid: bool) -> Next {
        let code = if are_operands_valid { status::SUBFUNC_UNSUPPORTED } else { status::INVALID_OPERAND };
        self.set_return_code(state, code);
        Next::Enter
    }

    /// `tdx_map_gpa`.
    fn tdx_map_gpa(&self, state: &mut VcpuState, gpa: u64, size: u64) -> Next {
        let error = self.map_gpa_error(gpa, size);
        if let Some(code) = error {
            self.set_return_code(state, code);
            tdx_state_mut(state).args[11] = gpa;
            return Next::Enter;
        }
        self.map_gpa_piece(state, gpa, gpa + size)
    }

    /// What is wrong with a range, if anything is.
    fn map_gpa_error(&self, gpa: u64, size: u64) -> Option<u64> {
        let tdx = self.vm.tdx().expect("a vCPU of a TD");
        let gpaw = tdx.gpaw().expect("a TD that runs has a width");
        if !self.exits_on_map_gpa_range() {
            return Some(status::SUBFUNC_UNSUPPORTED);
        }
        let end = gpa.wrapping_add(size);
        let is_legal = |gpa: u64| gpa >> (gpaw.shared_bit() + 1) == 0;
        let is_one_kind = || tdx.is_private_gpa(Gpa(gpa)) == tdx.is_private_gpa(Gpa(end - 1));
        if end <= gpa || !is_legal(gpa) || !is_legal(end - 1) || !is_one_kind() {
            return Some(status::INVALID_OPERAND);
        }
        let is_aligned = gpa.is_multiple_of(PAGE_SIZE) && size.is_multiple_of(PAGE_SIZE);
        (!is_aligned).then_some(status::ALIGN_ERROR)
    }

    /// `__tdx_map_gpa`: user space is told of the next piece.
    fn map_gpa_piece(&self, state: &mut VcpuState, next: u64, end: u64) -> Next {
        let tdx = self.vm.tdx().expect("a vCPU of a TD");
        let size = (end - next).min(MAP_GPA_MAX_LEN);
        let attributes = if tdx.is_private_gpa(Gpa(next)) { ENCRYPTED } else { 0 };
        let args = [tdx.without_shared_bit(Gpa(next)).0, size / PAGE_SIZE, attributes, 0];
        state.exit = ExitInfo::Hypercall { nr: KVM_HC_MAP_GPA_RANGE, args, ret: 0, mode: CpuMode::Long64 };
        self.ask_user(state, TdCall::MapGpa { next, end })
    }

    /// `complete_userspace_io` of a TD. `None` if the exit is no TDG.VP.VMCALL's.
    ///
    /// # Errors
    /// `EINVAL` for an answer to MapGPA that there is not.
    pub(crate) fn tdx_complete(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        pending: ExitInfo,
    ) -> Result<Option<Next>, Errno> {
        let Some(tdx) = state.tdx.as_deref_mut() else { return Ok(None) };
        let call = std::mem::take(&mut tdx.call);
        match (call, pending) {
            (TdCall::None, _) => return Ok(None),
            (TdCall::Done, _) => {}
            (TdCall::MmioRead(len), ExitInfo::Mmio { data, .. }) => tdx.args[11] = data & mask(len),
            (TdCall::IoRead(len), ExitInfo::Io { data, .. }) => tdx.args[11] = u64::from(data) & mask(len.into()),
            (TdCall::Hypercall, ExitInfo::Hypercall { ret, .. }) => self.set_return_code(state, ret),
            (TdCall::MapGpa { next, end }, ExitInfo::Hypercall { ret, .. }) => {
                return self.complete_map_gpa(cx, state, next, end, ret).map(Some);
            }
            (call, pending) => unreachable!("{pending:?} is no exit of {call:?}"),
        }
        Ok(Some(Next::Enter))
    }

    /// `tdx_complete_vmcall_map_gpa`. With an event that waits, the guest gets the rest back: here that is a signal.
    ///
    /// # Errors
    /// `EINVAL`.
    fn complete_map_gpa(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        next: u64,
        end: u64,
        ret: u64,
    ) -> Result<Next, Errno> {
        let refused = match i32::try_from(ret) {
            Ok(0) => None,
            Ok(errno) if errno == Errno::EAGAIN.number() => Some(status::RETRY),
            Ok(errno) if errno == Errno::EINVAL.number() => Some(status::INVALID_OPERAND),
            _ => return Err(Errno::EINVAL),
        };
        let after = next.saturating_add(MAP_GPA_MAX_LEN);
        let (code, progress) = match refused {
            Some(code) => (code, next),
            None if after >= end => {
                self.set_return_code(state, status::SUCCESS);
                return Ok(Next::Enter);
            }
            None if cx.signal_pending() => (status::RETRY, after),
            None => return Ok(self.map_gpa_piece(state, after, end)),
        };
        self.set_return_code(state, code);
        tdx_state_mut(state).args[11] = progress;
        Ok(Next::Enter)
    }
}
