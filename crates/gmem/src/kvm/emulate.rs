//! Emulation: KVM performs an instruction in the guest's place, because no memory is where it accesses, or a read-only slot
//! (`x86_emulate_instruction`, `emulator_read_write`, `complete_userspace_io`).
//!
//! Accesses go through the VMM's mapping where a slot has one, whatever attributes and guest_memfd say, and to user space where not. An access that crosses
//! pages is two: each part finds its own memory, or is a fragment that user space is asked for, one exit after the other.
//! With paging, KVM walks the guest's tables itself (`guest_walk.rs`); what they forbid is an exception in the guest.
//! Simplified: only the memory instructions of guest programs.

use super::run::{Next, truncate};
use super::uapi::*;
use super::vcpu::{ExitInfo, GuestInsn, Vcpu, VcpuState};
use arrayvec::ArrayVec;
use sim_kernel::Errno;
use sim_kernel::{Cx, Hva, PAGE_SIZE};
use sim_mmu::guest_paging::{GuestFault, PageFault, PageFaultCode};
use sim_mmu::{Access, Gpa, Gva};

/// A part of an access, in one page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fragment {
    gpa: Gpa,
    /// Bytes.
    len: u64,
    /// Where in the value its bytes stand, in bits.
    shift: u32,
}

impl Fragment {
    fn mask(&self) -> u64 {
        u64::MAX >> (64 - 8 * self.len)
    }

    /// Its bytes of the value.
    fn of(&self, value: u64) -> u64 {
        value >> self.shift & self.mask()
    }
}

/// An access that user space performs, or parts of it (`vcpu->mmio_fragments`).
#[derive(Clone, Debug, Default)]
pub(crate) struct Mmio {
    /// What is left to do. The first one is in the exit.
    fragments: ArrayVec<Fragment, 2>,
    /// What was read so far, or is written.
    value: u64,
    is_write: bool,
}

/// The value with the bytes that an access of this width moves.
fn truncated(value: u64, len: u64) -> u64 {
    value & u64::MAX >> (64 - 8 * len)
}

impl Vcpu {
    /// Emulates the current instruction, or, if not even the fetch of it succeeded, finds out what that means.
    pub(super) fn emulate(&self, cx: &Cx<'_>, state: &mut VcpuState, fetch: bool) -> Next {
        if fetch {
            if let Err(fault) = self.gva_to_gpa(cx, state, state.linear_rip(), Access::Exec) {
                return inject(state, fault);
            }
            // The emulator cannot fetch from where no memory is.
            state.exit = ExitInfo::InternalError { suberror: KVM_INTERNAL_ERROR_EMULATION, gpa: None, reason: None };
            return Next::Exit;
        }
        let emulated = match state.program[state.regs.rip] {
            GuestInsn::Write { gpa, value } => self.emulate_write(cx, state, Gva(gpa.0), 4, u64::from(value)),
            GuestInsn::Write64 { gpa, value } => self.emulate_write(cx, state, Gva(gpa.0), 8, value),
            GuestInsn::WriteLinear { gva, value } => self.emulate_write(cx, state, gva, 8, value),
            GuestInsn::Read { gpa } => self.emulate_read(cx, state, Gva(gpa.0), 4),
            GuestInsn::Rmw { gpa, .. } => self.emulate_read(cx, state, Gva(gpa.0), 4).map_err(of_write),
            GuestInsn::Read64 { gpa } => self.emulate_read(cx, state, Gva(gpa.0), 8),
            GuestInsn::ReadLinear { gva } => self.emulate_read(cx, state, gva, 8),
            GuestInsn::RmwLinear { gva, .. } => self.emulate_read(cx, state, gva, 8).map_err(of_write),
            other => unreachable!("{other:?} accesses no memory"),
        };
        emulated.unwrap_or_else(|fault| inject(state, fault))
    }

    /// The parts of `len` bytes at a linear address, all of which the guest's tables must allow.
    fn parts(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        len: u64,
        access: Access,
    ) -> Result<ArrayVec<Fragment, 2>, GuestFault> {
        let first = len.min(PAGE_SIZE - gva.offset());
        let mut parts = ArrayVec::new();
        let gpa = self.gva_to_gpa(cx, state, gva, access)?;
        parts.push(Fragment { gpa, len: first, shift: 0 });
        if first < len {
            // An address space that ends there begins again.
            let gpa = self.gva_to_gpa(cx, state, Gva(gva.0.wrapping_add(first)), access)?;
            parts.push(Fragment { gpa, len: len - first, shift: 8 * first as u32 });
        }
        Ok(parts)
    }

    fn emulate_read(&self, cx: &Cx<'_>, state: &mut VcpuState, gva: Gva, len: u64) -> Result<Next, GuestFault> {
        let mut mmio = Mmio::default();
        for part in self.parts(cx, state, gva, len, Access::Read)? {
            match self.read_part(cx, state, part) {
                Some(read) => mmio.value |= read << part.shift,
                None => mmio.fragments.push(part),
            }
        }
        self.ask_or(cx, state, mmio)
    }

    fn emulate_write(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        len: u64,
        value: u64,
    ) -> Result<Next, GuestFault> {
        let mut mmio = Mmio { value, is_write: true, ..Mmio::default() };
        for part in self.parts(cx, state, gva, len, Access::Write)? {
            if !self.write_part(cx, state, part, part.of(value)) {
                mmio.fragments.push(part);
            }
        }
        self.ask_or(cx, state, mmio)
    }

    /// `kvm_vcpu_read_guest`: through the VMM's mapping.
    fn read_part(&self, cx: &Cx<'_>, state: &mut VcpuState, part: Fragment) -> Option<u64> {
        let slot = self.gfn_to_memslot(cx, state, part.gpa.gfn()).1.filter(|slot| !slot.is_invalid())?;
        let hva: Hva = slot.hva(part.gpa.gfn()) + part.gpa.0 % PAGE_SIZE;
        let mm = &self.vm.mm;
        let read = match part.len {
            4 => mm.read_u32(cx, hva).map(u64::from),
            8 => mm.read_u64(cx, hva),
            len => mm.read_words(cx, hva, len),
        };
        read.ok()
    }

    /// `kvm_vcpu_write_guest`; false if the VMM has no memory there that the guest may write.
    fn write_part(&self, cx: &Cx<'_>, state: &mut VcpuState, part: Fragment, value: u64) -> bool {
        let gfn = part.gpa.gfn();
        let slot = self.gfn_to_memslot(cx, state, gfn).1;
        let Some(slot) = slot.filter(|slot| !slot.is_invalid() && !slot.is_readonly()) else { return false };
        let hva: Hva = slot.hva(gfn) + part.gpa.0 % PAGE_SIZE;
        let mm = &self.vm.mm;
        let written = match part.len {
            4 => mm.write_u32(cx, hva, value as u32),
            8 => mm.write_u64(cx, hva, value),
            len => mm.write_words(cx, hva, len, value),
        };
        let written = written.is_ok();
        if written {
            self.vm.record_store(gfn);
        }
        if let Some(bitmap) = slot.dirty_bitmap.as_ref().filter(|_| written) {
            bitmap.set(cx, gfn - slot.base_gfn);
        }
        written
    }

    /// Leaves for the next fragment, or, if none is left, finishes the access.
    fn ask_or(&self, cx: &Cx<'_>, state: &mut VcpuState, mmio: Mmio) -> Result<Next, GuestFault> {
        let Some(part) = mmio.fragments.first().copied() else { return self.finish_access(cx, state, &mmio) };
        let data = if mmio.is_write { part.of(mmio.value) } else { 0 };
        state.exit = ExitInfo::Mmio { gpa: part.gpa, len: part.len as u32, data, is_write: mmio.is_write };
        state.pending_exit = Some(state.exit);
        state.mmio = mmio;
        Ok(Next::Exit)
    }

    fn finish_access(&self, cx: &Cx<'_>, state: &mut VcpuState, mmio: &Mmio) -> Result<Next, GuestFault> {
        if !mmio.is_write {
            match state.program[state.regs.rip] {
                // The second half of the instruction.
                GuestInsn::Rmw { gpa, value } => {
                    let sum = truncated(mmio.value.wrapping_add(u64::from(value)), 4);
                    return self.emulate_write(cx, state, Gva(gpa.0), 4, sum);
                }
                GuestInsn::RmwLinear { gva, value } => {
                    return self.emulate_write(cx, state, gva, 8, mmio.value.wrapping_add(value));
                }
                _ => state.regs.rbx = mmio.value,
            }
        }
        state.regs.rip += 1;
        Ok(Next::Enter)
    }

    /// `complete_userspace_io`: user space has handled the exit; the instruction goes on.
    ///
    /// # Errors
    /// `EINVAL` for an answer that there is not, of those that an SNP guest waits for.
    pub(super) fn complete_userspace_io(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        pending: ExitInfo,
    ) -> Result<Next, Errno> {
        if let Some(next) = self.sev_complete(cx, state, pending)? {
            return Ok(next);
        }
        if let Some(next) = self.tdx_complete(cx, state, pending)? {
            return Ok(next);
        }
        match pending {
            ExitInfo::Mmio { data, .. } => {
                // In the run page a memory fault's address lies where MMIO has its data.
                let data = match state.exit {
                    ExitInfo::MemoryFault { gpa, .. } => gpa.0,
                    _ => data,
                };
                let mut mmio = std::mem::take(&mut state.mmio);
                let part = mmio.fragments.remove(0);
                if !mmio.is_write {
                    mmio.value |= (data & part.mask()) << part.shift;
                }
                return Ok(self.ask_or(cx, state, mmio).unwrap_or_else(|fault| inject(state, fault)));
            }
            ExitInfo::Io { .. } => {
                if let Some(rip) = &mut state.foreign_rip {
                    // `out imm8, al` is two bytes.
                    rip.0 = rip.0.wrapping_add(2);
                    return Ok(Next::Enter);
                }
            }
            ExitInfo::Hypercall { ret, .. } => state.regs.rax = truncate(state.mode, ret),
            other => unreachable!("no exit of this kind waits for user space: {other:?}"),
        }
        state.regs.rip += 1;
        Ok(Next::Enter)
    }
}

/// `x86_emulate_insn`, of an operand that is read to be written: whichever half meets it, a page fault is that of a write.
fn of_write(fault: GuestFault) -> GuestFault {
    match fault {
        GuestFault::Page(fault) => GuestFault::Page(PageFault { code: fault.code | PageFaultCode::WRITE, ..fault }),
        other => other,
    }
}

/// `inject_emulated_exception`: the guest gets it when it is entered.
fn inject(state: &mut VcpuState, fault: GuestFault) -> Next {
    state.pending_exception = Some(fault.into());
    Next::Enter
}
