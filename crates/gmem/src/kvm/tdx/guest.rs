//! The guest of a TD: what one visit to it does, as the processor and the module would (not KVM).
//!
//! One instruction for each visit, as of other guests; those that touch nothing but registers, or the module alone, go on to the next. Between two visits a
//! timer of the host has interrupted it. A TDG.VP.VMCALL is complete when the vCPU is entered again with the answer.
//!
//! `#VE` without a kernel in the guest goes the way that it takes in Linux: at a shared address it is MMIO, for which the guest asks the host; at a private one
//! the guest ends itself.

use super::insn::TdInsn;
use super::protocol::leaf;
use super::vcpu::{tdx_state, tdx_state_mut};
use crate::kvm::guest::GuestInsn;
use crate::kvm::kernel::KernelInsn;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use crate::linux_guest::Trap;
use sim_coco::tdx::{GuestStop, InTd, SeptInfo, Status, TdExit, Tdcall, VeInfo, VmCall, exit};
use sim_kernel::{Cx, PAGE_SIZE};
use sim_mmu::Gpa;

/// Bytes of an instruction of a program, as RIP counts them.
const INSN_BYTES: u64 = 16;
/// RCX of a TDG.VP.VMCALL: R10 to R15 are shown.
const SHOWN: u64 = 0xfc00;

/// Why the guest waits for the answer to a TDG.VP.VMCALL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum GuestCall {
    /// It does not.
    #[default]
    None,
    /// The instruction asked: the answer goes into its registers.
    Asked,
    /// The handler of `#VE` did, for an instruction that accesses a device.
    Mmio,
    /// It ends itself: no answer will come.
    Fatal,
}

/// How the guest left.
pub(super) enum Left {
    /// By an exit.
    Exit(TdExit),
    /// By HLT, at its program's end.
    Halted,
    /// Its kernel spins on something of its memory; how many releases there were when it looked.
    Spins {
        /// So many.
        seen: u64,
    },
}

/// An instruction is complete, or the vCPU has left.
type Step = Result<(), Left>;

impl Vcpu {
    /// The guest runs: the rest of an instruction that asked the host, or one instruction; then out again.
    pub(super) fn tdx_guest(&self, cx: &Cx<'_>, state: &mut VcpuState, guest: &mut InTd<'_>) -> Left {
        self.finish_call(state, guest);
        loop {
            guest.set_rip(tdx_state(state).retired * INSN_BYTES);
            if state.regs.rip >= state.program.len() {
                state.fetch_from_kernel();
            }
            let Some(insn) = state.program.get(state.regs.rip).copied() else {
                return self.halt(cx, guest);
            };
            match self.td_perform(cx, state, guest, insn) {
                Err(left) => return left,
                Ok(touches_memory) if touches_memory => {
                    // What ends the program anyway needs no visit of its own.
                    if state.regs.rip >= state.program.len() && !state.has_kernel() {
                        guest.set_rip(tdx_state(state).retired * INSN_BYTES);
                        return self.halt(cx, guest);
                    }
                    return Left::Exit(guest.exit(cx, exit::EXTERNAL_INTERRUPT));
                }
                Ok(_) => {}
            }
        }
    }

    /// `hlt` is a TDG.VP.VMCALL, too.
    fn halt(&self, cx: &Cx<'_>, guest: &mut InTd<'_>) -> Left {
        match guest.vp_vmcall(cx, VmCall::standard(leaf::HLT, [0; 4])) {
            Err(GuestStop::Exit(_)) => Left::Halted,
            other => unreachable!("TDG.VP.VMCALL with a legal mask leaves: {other:?}"),
        }
    }

    /// The registers that the host has answered in.
    fn finish_call(&self, state: &mut VcpuState, guest: &mut InTd<'_>) {
        let Some(answer) = guest.vmcall_answer() else { return };
        match std::mem::take(&mut tdx_state_mut(state).guest_call) {
            GuestCall::None => return,
            // As in Linux: nothing comes after it, and if something does it is asked again.
            GuestCall::Fatal => return,
            GuestCall::Asked => (state.regs.rbx, state.regs.rax) = (answer.registers[10], answer.registers[11]),
            GuestCall::Mmio => finish_mmio(state, answer.registers[11]),
        }
        self.td_retire(state);
    }

    fn td_retire(&self, state: &mut VcpuState) {
        state.regs.rip += 1;
        tdx_state_mut(state).retired += 1;
    }

    /// A guest physical address as the program's mappings have it.
    fn td_address(&self, state: &VcpuState, gpa: Gpa) -> Gpa {
        let gpaw = self.vm.tdx().and_then(|tdx| tdx.gpaw()).expect("a TD that runs has a width");
        if tdx_state(state).shared_mapping { gpaw.shared(gpa) } else { gpa }
    }

    /// One instruction. Whether it did more than change registers.
    fn td_perform(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        guest: &mut InTd<'_>,
        insn: GuestInsn,
    ) -> Result<bool, Left> {
        let touches_memory = match insn {
            GuestInsn::Load { value } => {
                state.regs.rbx = value;
                false
            }
            GuestInsn::Jump { to } => {
                state.regs.rip = to;
                tdx_state_mut(state).retired += 1;
                return Ok(false);
            }
            GuestInsn::JumpEqual { value, to } => {
                if state.regs.rbx == value {
                    state.regs.rip = to;
                    tdx_state_mut(state).retired += 1;
                    return Ok(false);
                }
                false
            }
            GuestInsn::Read { gpa } => {
                let mut bytes = [0; 4];
                self.td_read(cx, state, guest, gpa, &mut bytes)?;
                state.regs.rbx = u64::from(u32::from_le_bytes(bytes));
                true
            }
            GuestInsn::Read64 { gpa } => {
                let mut bytes = [0; 8];
                self.td_read(cx, state, guest, gpa, &mut bytes)?;
                state.regs.rbx = u64::from_le_bytes(bytes);
                true
            }
            GuestInsn::Write { gpa, value } => {
                let new = value.to_le_bytes();
                self.td_modify(cx, state, guest, gpa, &mut [0; 4], |bytes| bytes.copy_from_slice(&new))?;
                true
            }
            GuestInsn::Write64 { gpa, value } => {
                let new = value.to_le_bytes();
                self.td_modify(cx, state, guest, gpa, &mut [0; 8], |bytes| bytes.copy_from_slice(&new))?;
                true
            }
            GuestInsn::Rmw { gpa, value } => {
                self.td_modify(cx, state, guest, gpa, &mut [0; 4], |bytes| {
                    let old = u32::from_le_bytes((&*bytes).try_into().expect("four bytes"));
                    bytes.copy_from_slice(&old.wrapping_add(value).to_le_bytes());
                })?;
                true
            }
            GuestInsn::Hypercall { nr, args } => {
                let mut call = VmCall { mask: SHOWN, registers: [0; 16] };
                call.registers[10] = nr;
                call.registers[11..15].copy_from_slice(&args);
                return Err(self.ask(cx, state, guest, GuestCall::Asked, call));
            }
            GuestInsn::Out { port } => {
                let operands = [4, 1, u64::from(port), state.regs.rbx & 0xffff_ffff];
                return Err(self.ask(cx, state, guest, GuestCall::Asked, VmCall::standard(leaf::IO, operands)));
            }
            GuestInsn::Td(insn) => return self.td_perform_own(cx, state, guest, insn),
            GuestInsn::Kernel(insn) => {
                self.td_perform_kernel(cx, state, guest, insn)?;
                true
            }
            // Handlers of exceptions are not modelled in a TD, nor are tables: what needs them cannot go on.
            _ => return Err(self.triple_fault(cx, guest)),
        };
        self.td_retire(state);
        Ok(touches_memory)
    }

    fn td_perform_kernel(&self, cx: &Cx<'_>, state: &mut VcpuState, guest: &mut InTd<'_>, insn: KernelInsn) -> Step {
        let spinners = &self.vm.tdx().expect("the VM of a TD's vCPU").spinners;
        match insn {
            KernelInsn::CompareExchange { gpa, old, new } => {
                let mut found = 0;
                self.td_modify(cx, state, guest, gpa, &mut [0; 8], |bytes| {
                    found = u64::from_le_bytes((&*bytes).try_into().expect("eight bytes"));
                    if found == old {
                        bytes.copy_from_slice(&new.to_le_bytes());
                    }
                })?;
                state.regs.rbx = found;
            }
            KernelInsn::SpinWhile { gpa, value } => {
                // Before the look: a release after it ends the wait.
                let (seen, mut bytes) = (spinners.seen(), [0; 8]);
                self.td_read(cx, state, guest, gpa, &mut bytes)?;
                if u64::from_le_bytes(bytes) == value {
                    // An interrupt of the host: that nothing comes of it is no reason to believe that the guest is zero-stepped.
                    let _exit = guest.exit(cx, exit::EXTERNAL_INTERRUPT);
                    return Err(Left::Spins { seen });
                }
            }
            KernelInsn::Release { gpa, value } => {
                self.td_modify(cx, state, guest, gpa, &mut [0; 8], |bytes| {
                    bytes.copy_from_slice(&value.to_le_bytes());
                })?;
                spinners.release(cx);
            }
            KernelInsn::WriteBlock { gpa, block } => {
                let block = state.blocks[block].clone();
                let mut bytes = block.clone();
                self.td_modify(cx, state, guest, gpa, &mut bytes, |bytes| bytes.copy_from_slice(&block))?;
            }
        }
        Ok(())
    }

    fn td_perform_own(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        guest: &mut InTd<'_>,
        insn: TdInsn,
    ) -> Result<bool, Left> {
        /// What RAX says.
        fn rax<T>(answer: &Result<T, Status>) -> u64 {
            answer.as_ref().err().map_or(0, |status| status.raw())
        }
        let touches_memory = match insn {
            TdInsn::SetShared { shared } => {
                tdx_state_mut(state).shared_mapping = shared;
                false
            }
            TdInsn::Accept { gpa, size } => {
                cx.note("guest", "TDG.MEM.PAGE.ACCEPT");
                let operand = SeptInfo(gpa.0 & !(PAGE_SIZE - 1) | size & 7);
                let answer = self.tdcall(cx, state, guest, |guest| guest.mem_page_accept(cx, operand))?;
                state.regs.rbx = rax(&answer);
                true
            }
            TdInsn::VmCall { leaf, operands } => {
                return Err(self.ask(cx, state, guest, GuestCall::Asked, VmCall::standard(leaf, operands)));
            }
            TdInsn::VeInfoGet => {
                let answer = self.tdcall(cx, state, guest, |guest| guest.vp_veinfo_get(cx))?;
                state.regs.rbx = answer.map_or_else(Status::raw, |info| info.gpa.0);
                false
            }
            TdInsn::SetPendingVeDisable { on } => {
                let answer = self.tdcall(cx, state, guest, |guest| guest.vp_wr_pending_ve_disable(cx, on))?;
                state.regs.rbx = rax(&answer);
                false
            }
            TdInsn::NotifyZeroStep { on } => {
                let answer = self.tdcall(cx, state, guest, |guest| guest.vm_wr_notify_zero_step(cx, on))?;
                state.regs.rbx = rax(&answer);
                false
            }
            TdInsn::RtmrExtend { buffer, index } => {
                let answer = self.tdcall(cx, state, guest, |guest| guest.mr_rtmr_extend(cx, buffer, index))?;
                state.regs.rbx = rax(&answer);
                true
            }
            TdInsn::VpInfo => {
                let answer = self.tdcall(cx, state, guest, |guest| guest.vp_info(cx))?;
                state.regs.rax = answer.map_or(0, |info| info.attributes);
                state.regs.rbx = answer.map_or_else(Status::raw, |info| u64::from(info.gpaw));
                false
            }
        };
        self.td_retire(state);
        Ok(touches_memory)
    }

    /// A TDCALL of which something else than an answer may come.
    fn tdcall<T>(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        guest: &mut InTd<'_>,
        call: impl FnOnce(&mut InTd<'_>) -> Tdcall<T>,
    ) -> Result<Result<T, Status>, Left> {
        call(guest).map_err(|stop| self.stopped(cx, state, guest, stop))
    }

    /// TDG.VP.VMCALL: the vCPU leaves, and the instruction is complete with the answer.
    fn ask(&self, cx: &Cx<'_>, state: &mut VcpuState, guest: &mut InTd<'_>, why: GuestCall, call: VmCall) -> Left {
        cx.note("guest", "TDG.VP.VMCALL");
        tdx_state_mut(state).guest_call = why;
        match guest.vp_vmcall(cx, call) {
            Err(GuestStop::Exit(exit)) => Left::Exit(exit),
            other => unreachable!("TDG.VP.VMCALL with a legal mask leaves: {other:?}"),
        }
    }

    fn triple_fault(&self, cx: &Cx<'_>, guest: &mut InTd<'_>) -> Left {
        Left::Exit(guest.exit_for_good(cx, exit::TRIPLE_FAULT))
    }

    /// The guest does not go on at this instruction.
    fn stopped(&self, cx: &Cx<'_>, state: &mut VcpuState, guest: &mut InTd<'_>, stop: GuestStop) -> Left {
        match stop {
            GuestStop::Exit(exit) => Left::Exit(exit),
            GuestStop::Ve(info) => self.handle_ve(cx, state, guest, info),
            // There is no handler.
            GuestStop::DoubleFault | GuestStop::PageFault => self.triple_fault(cx, guest),
        }
    }

    /// Linux's handler of `#VE`.
    fn handle_ve(&self, cx: &Cx<'_>, state: &mut VcpuState, guest: &mut InTd<'_>, info: VeInfo) -> Left {
        if let Err(GuestStop::Exit(exit)) = guest.vp_veinfo_get(cx) {
            return Left::Exit(exit);
        }
        let is_private = self.vm.tdx().is_some_and(|tdx| tdx.is_private_gpa(info.gpa));
        if is_private && state.trap_to_kernel(Trap::Ve { gpa: info.gpa }) {
            // The handler is another place in the guest.
            tdx_state_mut(state).retired += 1;
            return Left::Exit(guest.exit(cx, exit::EXTERNAL_INTERRUPT));
        }
        let mmio = if is_private { None } else { self.mmio_operands(state, info.gpa) };
        match mmio {
            Some(operands) => self.ask(cx, state, guest, GuestCall::Mmio, VmCall::standard(leaf::MMIO, operands)),
            None => {
                let call = VmCall::standard(leaf::REPORT_FATAL_ERROR, [0; 4]);
                self.ask(cx, state, guest, GuestCall::Fatal, call)
            }
        }
    }

    /// Size, direction, address and value of the access that the current instruction makes to a device.
    fn mmio_operands(&self, state: &VcpuState, gpa: Gpa) -> Option<[u64; 4]> {
        match *state.program.get(state.regs.rip)? {
            GuestInsn::Read { .. } => Some([4, 0, gpa.0, 0]),
            GuestInsn::Read64 { .. } => Some([8, 0, gpa.0, 0]),
            GuestInsn::Write { value, .. } => Some([4, 1, gpa.0, u64::from(value)]),
            GuestInsn::Write64 { value, .. } => Some([8, 1, gpa.0, value]),
            // There is no locked access to a device: the handler gives up.
            _ => None,
        }
    }

    /// Reads bytes, one page after the other.
    fn td_read(&self, cx: &Cx<'_>, state: &mut VcpuState, guest: &mut InTd<'_>, gpa: Gpa, bytes: &mut [u8]) -> Step {
        let mut at = self.td_address(state, gpa);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (part, next) = rest.split_at_mut(rest.len().min((PAGE_SIZE - at.offset()) as usize));
            let read = guest.read(cx, at, part);
            at = Gpa(at.0.wrapping_add(part.len() as u64));
            read.map_err(|stop| self.stopped(cx, state, guest, stop))?;
            rest = next;
        }
        Ok(())
    }

    /// Replaces bytes by a function of them: in one step if they are in one page. Pages are translated before any is touched.
    pub(super) fn td_modify(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        guest: &mut InTd<'_>,
        gpa: Gpa,
        bytes: &mut [u8],
        change: impl FnOnce(&mut [u8]),
    ) -> Step {
        let at = self.td_address(state, gpa);
        let is_shared = tdx_state(state).shared_mapping;
        let first = bytes.len().min((PAGE_SIZE - at.offset()) as usize);
        let modified = if first == bytes.len() {
            guest.modify(cx, at, bytes, change)
        } else {
            let next = Gpa(at.0.wrapping_add(first as u64));
            guest
                .translate(cx, at, sim_coco::AccessKind::Write)
                .and_then(|_| guest.translate(cx, next, sim_coco::AccessKind::Write))
                .and_then(|_| {
                    let (head, tail) = bytes.split_at_mut(first);
                    guest.read(cx, at, head)?;
                    guest.read(cx, next, tail)
                })
                .and_then(|()| {
                    change(bytes);
                    guest.write(cx, at, &bytes[..first])?;
                    guest.write(cx, next, &bytes[first..])
                })
        };
        modified.map_err(|stop| self.stopped(cx, state, guest, stop))?;
        if is_shared {
            let last = Gpa(gpa.0.wrapping_add(bytes.len() as u64 - 1));
            self.vm.record_store(gpa.gfn());
            if last.gfn() != gpa.gfn() {
                self.vm.record_store(last.gfn());
            }
        }
        Ok(())
    }
}

/// A device has answered: the instruction is complete.
fn finish_mmio(state: &mut VcpuState, value: u64) {
    match state.program.get(state.regs.rip) {
        Some(GuestInsn::Read { .. }) => state.regs.rbx = value & 0xffff_ffff,
        Some(GuestInsn::Read64 { .. }) => state.regs.rbx = value,
        _ => {}
    }
}
