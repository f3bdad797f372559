//! Emulation: KVM performs an instruction in the guest's place, because no memory is where it accesses, or a read-only slot
//! (`x86_emulate_instruction`, `complete_userspace_io`).
//!
//! Accesses go through the VMM's mapping where a slot has one, whatever attributes and guest_memfd say, and to user space where not.
//! Simplified: only the memory instructions of guest programs; an access that crosses pages is that of its first page.

use super::run::{Next, truncate};
use super::uapi::*;
use super::vcpu::{ExitInfo, GuestInsn, Vcpu, VcpuState};
use sim_kernel::{Cx, Hva, PAGE_SIZE};
use sim_mmu::{Access, Gpa};

/// How wide an access is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    /// Four bytes.
    Four,
    /// Eight bytes.
    Eight,
}

impl Width {
    fn bytes(self) -> u32 {
        match self {
            Width::Four => 4,
            Width::Eight => 8,
        }
    }

    /// The low bytes of a value that an access of this width moves.
    fn of(self, value: u64) -> u64 {
        match self {
            Width::Four => value & 0xffff_ffff,
            Width::Eight => value,
        }
    }
}

impl Vcpu {
    /// Emulates the current instruction.
    pub(super) fn emulate(&self, cx: &Cx<'_>, state: &mut VcpuState, kind: Access) -> Next {
        if kind == Access::Exec {
            // The emulator cannot fetch from where no memory is.
            state.exit = ExitInfo::InternalError { suberror: KVM_INTERNAL_ERROR_EMULATION, gpa: None };
            return Next::Exit;
        }
        // What is read, or read and added to.
        let (gpa, width, added) = match state.program[state.regs.rip] {
            GuestInsn::Write { gpa, value } => {
                return self.emulate_write(cx, state, gpa, Width::Four, u64::from(value));
            }
            GuestInsn::Write64 { gpa, value } => return self.emulate_write(cx, state, gpa, Width::Eight, value),
            GuestInsn::Read { gpa } => (gpa, Width::Four, None),
            GuestInsn::Read64 { gpa } => (gpa, Width::Eight, None),
            GuestInsn::Rmw { gpa, value } => (gpa, Width::Four, Some(value)),
            other => unreachable!("{other:?} accesses no memory"),
        };
        match (self.emulated_read(cx, state, gpa, width), added) {
            (Some(read), None) => {
                state.regs.rbx = read;
                state.regs.rip += 1;
                Next::Enter
            }
            (Some(read), Some(added)) => {
                self.emulate_write(cx, state, gpa, width, width.of(read.wrapping_add(u64::from(added))))
            }
            (None, _) => {
                state.exit = ExitInfo::Mmio { gpa, len: width.bytes(), data: 0, is_write: false };
                state.pending_exit = Some(state.exit);
                Next::Exit
            }
        }
    }

    /// `kvm_vcpu_read_guest`: through the VMM's mapping.
    fn emulated_read(&self, cx: &Cx<'_>, state: &mut VcpuState, gpa: Gpa, width: Width) -> Option<u64> {
        let slot = self.gfn_to_memslot(cx, state, gpa.gfn()).1.filter(|slot| !slot.is_invalid())?;
        let hva: Hva = slot.hva(gpa.gfn()) + gpa.0 % PAGE_SIZE;
        match width {
            Width::Four => self.vm.mm.read_u32(cx, hva).ok().map(u64::from),
            Width::Eight => self.vm.mm.read_u64(cx, hva).ok(),
        }
    }

    fn emulate_write(&self, cx: &Cx<'_>, state: &mut VcpuState, gpa: Gpa, width: Width, value: u64) -> Next {
        let slot = self.gfn_to_memslot(cx, state, gpa.gfn()).1;
        if let Some(slot) = slot.filter(|slot| !slot.is_invalid() && !slot.is_readonly()) {
            let hva: Hva = slot.hva(gpa.gfn()) + gpa.0 % PAGE_SIZE;
            let written = match width {
                Width::Four => self.vm.mm.write_u32(cx, hva, value as u32),
                Width::Eight => self.vm.mm.write_u64(cx, hva, value),
            };
            if written.is_ok() {
                if let Some(bitmap) = &slot.dirty_bitmap {
                    bitmap.set(cx, gpa.gfn() - slot.base_gfn);
                }
                state.regs.rip += 1;
                return Next::Enter;
            }
        }
        state.exit = ExitInfo::Mmio { gpa, len: width.bytes(), data: value, is_write: true };
        state.pending_exit = Some(state.exit);
        Next::Exit
    }

    /// `complete_userspace_io`: user space has handled the exit; the instruction goes on.
    pub(super) fn complete_userspace_io(&self, state: &mut VcpuState, pending: ExitInfo) -> Next {
        let insn = state.program[state.regs.rip];
        // In the run page a memory fault's address lies where MMIO has its data.
        let read = |data: u64| match state.exit {
            ExitInfo::MemoryFault { gpa, .. } => gpa.0,
            _ => data,
        };
        match (pending, insn) {
            (ExitInfo::Mmio { is_write: false, data, .. }, GuestInsn::Read { .. }) => {
                state.regs.rbx = Width::Four.of(read(data));
            }
            (ExitInfo::Mmio { is_write: false, data, .. }, GuestInsn::Read64 { .. }) => state.regs.rbx = read(data),
            (ExitInfo::Mmio { is_write: false, data, gpa, .. }, GuestInsn::Rmw { value, .. }) => {
                let data = Width::Four.of(read(data).wrapping_add(u64::from(value)));
                state.exit = ExitInfo::Mmio { gpa, len: 4, data, is_write: true };
                state.pending_exit = Some(state.exit);
                return Next::Exit;
            }
            (ExitInfo::Mmio { is_write: true, .. } | ExitInfo::Io { .. }, _) => {}
            (ExitInfo::Hypercall { ret, .. }, _) => state.regs.rax = truncate(state.mode, ret),
            other => unreachable!("no exit of this kind waits for user space: {other:?}"),
        }
        state.regs.rip += 1;
        Next::Enter
    }
}
