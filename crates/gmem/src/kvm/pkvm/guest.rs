//! What a guest's program does on an Arm processor, one instruction for each visit. Not KVM.
//!
//! Programs are those of x86, as far as Arm has the like: loads, stores, atomic additions, and `hypercall`, which is HVC with the function in w0 and its operands from x1 on. Stage 1 is off,
//! so every address is an intermediate physical one. Everything else is undefined.
//!
//! Simplified: an access that is not aligned is made of bytes.

use super::vm::KvmPkvm;
use crate::kvm::guest::GuestInsn;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use sim_coco::pkvm::{CpuId, GuestAbort, GuestStop, Touch};
use sim_kernel::Cx;
use sim_mmu::Gpa;

/// Why the guest was left.
#[derive(Debug)]
pub(super) enum ArmExit {
    /// The instruction is complete.
    Done,
    /// The program is at its end.
    Ended,
    /// An access was stopped at stage 2.
    Abort(GuestAbort),
    /// `hvc #0`.
    Hvc { function: u32, args: [u64; 3] },
    /// There is no such instruction.
    Undefined,
}

/// The guest of a loaded vCPU, for one instruction.
struct ArmCpu<'a> {
    cx: &'a Cx<'a>,
    pkvm: &'a KvmPkvm,
    cpu: CpuId,
}

impl ArmCpu<'_> {
    /// One step for what lies in an aligned word, and one for each byte of what does not.
    fn change(&self, at: Gpa, size: u64, change: &dyn Fn(u64) -> Option<u64>) -> Result<u64, GuestStop> {
        if at.0.is_multiple_of(size) {
            return self.change_aligned(at, size, change);
        }
        let byte = |i: u64| Gpa(at.0.wrapping_add(i));
        let mut old = 0;
        for i in 0..size {
            old |= self.change_aligned(byte(i), 1, &|_| None)? << (8 * i);
        }
        if let Some(new) = change(old) {
            for i in 0..size {
                self.change_aligned(byte(i), 1, &|_| Some(new >> (8 * i) & 0xff))?;
            }
        }
        Ok(old)
    }

    fn change_aligned(&self, at: Gpa, size: u64, change: &dyn Fn(u64) -> Option<u64>) -> Result<u64, GuestStop> {
        let (shift, mask) = (8 * (at.0 & 7), if size == 8 { u64::MAX } else { (1 << (8 * size)) - 1 });
        let machine = self.pkvm.host().pkvm();
        let word = Gpa(at.0 & !7);
        let old = if change(0).is_none() {
            machine.guest_access(self.cx, self.cpu, word, Touch::Read)?
        } else {
            machine.guest_modify(self.cx, self.cpu, word, |old| {
                let new = change(old >> shift & mask).unwrap_or(0);
                old & !(mask << shift) | (new & mask) << shift
            })?
        };
        Ok(old >> shift & mask)
    }
}

impl Vcpu {
    /// A store of the guest, for MMU-INV-040.
    fn record_arm_store(&self, insn: &GuestInsn) {
        let (at, size) = match *insn {
            GuestInsn::Write { gpa, .. } | GuestInsn::Rmw { gpa, .. } => (gpa.0, 4),
            GuestInsn::Write64 { gpa, .. } => (gpa.0, 8),
            GuestInsn::WriteLinear { gva, .. } | GuestInsn::RmwLinear { gva, .. } => (gva.0, 8),
            _ => return,
        };
        if self.is_watched {
            let (first, last) = (Gpa(at).gfn(), Gpa(at.wrapping_add(size - 1)).gfn());
            self.vm.record_store(first);
            if last != first {
                self.vm.record_store(last);
            }
        }
    }

    /// The guest runs: one instruction, then out again.
    pub(super) fn arm_guest(&self, cx: &Cx<'_>, state: &mut VcpuState, pkvm: &KvmPkvm, cpu: CpuId) -> ArmExit {
        let machine = ArmCpu { cx, pkvm, cpu };
        let Some(insn) = state.program.get(state.regs.rip).copied() else { return ArmExit::Ended };
        let done = match insn {
            GuestInsn::Read { gpa } => machine.change(gpa, 4, &|_| None).map(|value| state.regs.rbx = value),
            GuestInsn::Read64 { gpa } => machine.change(gpa, 8, &|_| None).map(|value| state.regs.rbx = value),
            GuestInsn::ReadLinear { gva } => {
                machine.change(Gpa(gva.0), 8, &|_| None).map(|value| state.regs.rbx = value)
            }
            GuestInsn::Write { gpa, value } => machine.change(gpa, 4, &|_| Some(u64::from(value))).map(drop),
            GuestInsn::Write64 { gpa, value } => machine.change(gpa, 8, &|_| Some(value)).map(drop),
            GuestInsn::WriteLinear { gva, value } => machine.change(Gpa(gva.0), 8, &|_| Some(value)).map(drop),
            GuestInsn::Rmw { gpa, value } => {
                machine.change(gpa, 4, &|old| Some(old.wrapping_add(u64::from(value)))).map(drop)
            }
            GuestInsn::RmwLinear { gva, value } => {
                machine.change(Gpa(gva.0), 8, &|old| Some(old.wrapping_add(value))).map(drop)
            }
            GuestInsn::Load { value } => {
                state.regs.rbx = value;
                Ok(())
            }
            GuestInsn::Jump { to } => {
                state.regs.rip = to;
                return ArmExit::Done;
            }
            GuestInsn::JumpEqual { value, to } if state.regs.rbx == value => {
                state.regs.rip = to;
                return ArmExit::Done;
            }
            GuestInsn::JumpEqual { .. } => Ok(()),
            GuestInsn::Hypercall { nr, args: [x1, x2, x3, _] } => {
                return ArmExit::Hvc { function: nr as u32, args: [x1, x2, x3] };
            }
            _ => return ArmExit::Undefined,
        };
        match done {
            Ok(()) => {
                self.record_arm_store(&insn);
                state.regs.rip += 1;
                ArmExit::Done
            }
            Err(GuestStop::Abort(abort)) => ArmExit::Abort(abort),
            Err(GuestStop::Dead) => panic!("HYP panic: {}", pkvm.host().pkvm().panicked().unwrap_or_default()),
            Err(GuestStop::NoVcpu) => panic!("PKVM-INV-013: a guest runs on a processor where no vCPU is loaded"),
        }
    }
}
