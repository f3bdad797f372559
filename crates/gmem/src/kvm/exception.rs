//! Delivery of exceptions to a guest: the gate in its interrupt descriptor table, and with paging also the code segment's descriptor, the
//! stack of privilege 0 from the TSS, and the frame that is pushed there (Intel SDM vol. 3, 6.14).
//!
//! Simplified: without paging there is no stack, so a handler does not return; a gate that cannot be used is no exception of its own
//! kind: what cannot be delivered is a double fault, and after that the triple one. No interrupt stack table, no `iret`.

use super::cpu::{AccessFault, CpuExit};
use super::guest::{CpuMode, Visit};
use super::vcpu::{Vcpu, VcpuState};
use sim_kernel::{Cx, PAGE_SIZE};
use sim_mmu::Gva;
use sim_mmu::guest_paging::{AccessMode, GuestFault, PageFault};
use sim_mmu::walker::MmuFault;

/// Vector of a double fault.
const DF_VECTOR: u8 = 8;
/// "Present" in the first eight bytes of a gate or a descriptor.
const PRESENT: u64 = 1 << 47;
/// Bytes of the code for one instruction of a program, where an address says which it is.
pub(crate) const INSN_BYTES: u64 = 16;
/// EFLAGS of a guest: the bit that is always set. AC is kept with the paging registers.
const EFLAGS: u64 = 2;
const EFLAGS_AC: u64 = 1 << 18;

/// An exception on its way to the guest (`vcpu->arch.exception`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Exception {
    pub(crate) vector: u8,
    /// The error code that is pushed, of those that have one.
    pub(crate) error: Option<u32>,
    /// What CR2 gets.
    pub(crate) cr2: Option<Gva>,
}

impl Exception {
    /// `ud2` and the like: by its vector alone.
    pub(crate) fn of_vector(vector: u8) -> Exception {
        // Double fault, invalid TSS, segment not present, stack, #GP, #PF, alignment check, control protection, and #VC have a code.
        let has_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29);
        Exception { vector, error: has_code.then_some(0), cr2: None }
    }
}

impl From<GuestFault> for Exception {
    fn from(fault: GuestFault) -> Exception {
        match fault {
            GuestFault::GeneralProtection => Exception { vector: 13, error: Some(0), cr2: None },
            GuestFault::StackSegment => Exception { vector: 12, error: Some(0), cr2: None },
            GuestFault::Page(PageFault { cr2, code }) => {
                Exception { vector: 14, error: Some(code.bits()), cr2: Some(cr2) }
            }
        }
    }
}

/// A gate of the table.
struct Gate {
    selector: u16,
    handler: u64,
}

impl Vcpu {
    /// Delivers an exception: the guest goes on at its handler, or at that of the double fault.
    ///
    /// An access of the delivery that stage 2 refuses puts it off: the exception stays pending, and what was half done is done again from
    /// the start, which looks at the same gates in the same order.
    pub(super) fn deliver(&self, cx: &Cx<'_>, state: &mut VcpuState, exception: Exception) -> Visit {
        if let Some(cr2) = exception.cr2 {
            state.cr2 = cr2;
        }
        if let Some(visit) = self.default_vc_handler(state, exception) {
            return visit;
        }
        for event in [exception, Exception::of_vector(DF_VECTOR)] {
            match self.enter_handler(cx, state, event) {
                Ok(true) => return Visit::Done,
                Ok(false) | Err(MmuFault::Guest(_)) => {}
                Err(MmuFault::Stage2(exit)) => {
                    state.pending_exception = Some(exception);
                    return match exit {
                        CpuExit::Fault { fault, info1 } => Visit::DeliveryFault { fault, info1 },
                        CpuExit::LogFull => Visit::LogFull,
                        // Of the handler's own tables or stack: nothing is left that could handle it.
                        CpuExit::Exception(_) => Visit::TripleFault,
                    };
                }
            }
        }
        Visit::TripleFault
    }

    /// Goes to the handler of an exception, if its gate can be used.
    fn enter_handler(&self, cx: &Cx<'_>, state: &mut VcpuState, event: Exception) -> Result<bool, AccessFault> {
        let Some(gate) = self.gate(cx, state, event.vector)? else { return Ok(false) };
        if !state.has_paging() {
            state.regs.rip = gate.handler as usize;
            return Ok(true);
        }
        let implicit = Some(AccessMode::Implicit);
        let descriptor = Gva(state.sregs.gdt.base.0.wrapping_add(u64::from(gate.selector & !7)));
        if self.read_quad(cx, state, descriptor, implicit)? & PRESENT == 0 {
            return Ok(false);
        }
        let (cpl, ac) = (state.sregs.paging.cpl, state.sregs.paging.ac);
        let stack = if cpl == 3 {
            self.read_quad(cx, state, Gva(state.sregs.tss.0.wrapping_add(4)), implicit)?
        } else {
            state.regs.rsp
        };
        let (cs, ss) = if cpl == 3 { (0x1b, 0x23) } else { (0x8, 0x10) };
        let flags = EFLAGS | if ac { EFLAGS_AC } else { 0 };
        let frame = [ss, state.regs.rsp, flags, cs, state.linear_rip().0];
        let mut rsp = stack & !0xf;
        for word in frame.into_iter().chain(event.error.map(u64::from)) {
            rsp = rsp.wrapping_sub(8);
            self.write_quad(cx, state, Gva(rsp), implicit, word)?;
        }
        state.regs.rsp = rsp;
        state.set_privilege(0, ac);
        state.code = Some(Gva(gate.handler & !(PAGE_SIZE - 1)));
        state.regs.rip = ((gate.handler & (PAGE_SIZE - 1)) / INSN_BYTES) as usize;
        state.foreign_rip = None;
        Ok(true)
    }

    /// The gate of a vector, if it lies within the table and is present.
    fn gate(&self, cx: &Cx<'_>, state: &mut VcpuState, vector: u8) -> Result<Option<Gate>, AccessFault> {
        let size = state.mode.gate_size();
        let offset = u64::from(vector) * size;
        if offset + size - 1 > u64::from(state.sregs.idt.limit) {
            return Ok(None);
        }
        let mode = state.has_paging().then_some(AccessMode::Implicit);
        let at = Gva(state.sregs.idt.base.0.wrapping_add(offset));
        let low = self.read_quad(cx, state, at, mode)?;
        if low & PRESENT == 0 {
            return Ok(None);
        }
        let mut handler = (low & 0xffff) | (low >> 48 << 16);
        if state.mode == CpuMode::Long64 {
            let high = self.read_quad(cx, state, Gva(at.0.wrapping_add(8)), mode)?;
            handler |= high << 32;
        }
        Ok(Some(Gate { selector: (low >> 16) as u16, handler }))
    }
}
