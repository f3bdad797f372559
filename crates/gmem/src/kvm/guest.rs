//! The guest: its program, its registers, and what one visit to it does, as the processor would (not KVM).
//!
//! A program is a list of instructions and `rip` a place in it; past the last one is a `hlt`. Registers are what such programs
//! need: `rbx` receives reads and is compared and put out, `rax` is the answer of a hypercall. Memory is accessed through stage 2.
//!
//! Simplified: one instruction for each visit; no guest paging; code is not in guest memory, a gate's offset is a place in the
//! program; no stack and no `iret`, so a handler does not return; every exception is contributory, so that one whose gate cannot
//! be used is a double fault and after that the triple one.

use super::vcpu::{Vcpu, VcpuState};
use sim_coco::{AccessKind, ConfidentialMachine, GuestAccess};
use sim_kernel::{Cx, PAGE_SIZE, Pfn};
use sim_mmu::{Access, Gpa, Stage2Fault};

/// Vector of a double fault.
const DF_VECTOR: u8 = 8;
/// "Present" in the first eight bytes of a gate.
const GATE_PRESENT: u64 = 1 << 47;

/// One instruction of a guest program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GuestInsn {
    /// `mov ebx, [gpa]`.
    Read {
        /// Where.
        gpa: Gpa,
    },
    /// `mov [gpa], value`, four bytes.
    Write {
        /// Where.
        gpa: Gpa,
        /// What.
        value: u32,
    },
    /// `lock add [gpa], value`, four bytes.
    Rmw {
        /// Where.
        gpa: Gpa,
        /// What is added.
        value: u32,
    },
    /// `mov rbx, [gpa]`.
    Read64 {
        /// Where.
        gpa: Gpa,
    },
    /// `mov [gpa], value`, eight bytes.
    Write64 {
        /// Where.
        gpa: Gpa,
        /// What.
        value: u64,
    },
    /// `vmcall` or `vmmcall`.
    Hypercall {
        /// `rax`.
        nr: u64,
        /// `rbx`, `rcx`, `rdx`, `rsi`.
        args: [u64; 4],
    },
    /// `mov rbx, value`.
    Load {
        /// What.
        value: u64,
    },
    /// `jmp to`.
    Jump {
        /// The instruction that is next.
        to: usize,
    },
    /// `cmp rbx, value; je to`.
    JumpEqual {
        /// What `rbx` is compared with.
        value: u64,
        /// The instruction that is next if they are equal.
        to: usize,
    },
    /// `out port, ebx`: user space sees port and value.
    Out {
        /// The port.
        port: u16,
    },
    /// An instruction that the processor refuses with this exception, such as `ud2` (6) or an access to an address that is not
    /// canonical (13).
    Exception {
        /// Its vector.
        vector: u8,
    },
}

/// How wide the guest's registers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CpuMode {
    /// 32-bit protected mode, paging off: as in the recordings.
    Protected32,
    /// 64-bit mode, addresses identity-mapped.
    #[default]
    Long64,
}

impl CpuMode {
    /// Bytes of a gate of the interrupt descriptor table.
    fn gate_size(self) -> u64 {
        match self {
            CpuMode::Protected32 => 8,
            CpuMode::Long64 => 16,
        }
    }
}

/// Registers that a program can see.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GuestRegs {
    /// Number of the instruction that is next; the program's length, or more, once it halts.
    pub rip: usize,
    /// What the last read got.
    pub rbx: u64,
    /// What the last hypercall answered.
    pub rax: u64,
}

/// Where the gates for exceptions are (`idtr`, `struct kvm_dtable`). With limit 0, as at the start, there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DescriptorTable {
    /// The first byte.
    pub base: Gpa,
    /// The offset of the last byte.
    pub limit: u16,
}

/// What the guest did in one visit.
pub(super) enum Visit {
    /// The instruction is complete.
    Done,
    /// The program ended.
    Halted,
    /// The machine could not translate an access of this kind.
    Fault(Stage2Fault, Access),
    /// The machine could not translate an access that it made itself to deliver an exception.
    DeliveryFault(Stage2Fault),
    /// The guest asked for something.
    Hypercall { nr: u64, args: [u64; 4] },
    /// The guest wrote to a port.
    Io { port: u16, data: u32 },
    /// Not even a double fault could be delivered.
    TripleFault,
}

impl Vcpu {
    /// The guest runs: one instruction, then out again.
    pub(super) fn guest(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Visit {
        if let Some(code) = state.code
            && let Err(fault) = self.translate(cx, state, code, Access::Exec)
        {
            return Visit::Fault(fault, Access::Exec);
        }
        let Some(&insn) = state.program.get(state.regs.rip) else { return Visit::Halted };
        let accessed = match insn {
            GuestInsn::Hypercall { nr, args } => return Visit::Hypercall { nr, args },
            GuestInsn::Out { port } => return Visit::Io { port, data: state.regs.rbx as u32 },
            GuestInsn::Exception { vector } => return self.deliver(cx, state, vector),
            GuestInsn::Load { value } => {
                state.regs.rbx = super::run::truncate(state.mode, value);
                Ok(())
            }
            GuestInsn::Jump { to } => {
                state.regs.rip = to;
                return Visit::Done;
            }
            GuestInsn::JumpEqual { value, to } => {
                if state.regs.rbx == super::run::truncate(state.mode, value) {
                    state.regs.rip = to;
                    return Visit::Done;
                }
                Ok(())
            }
            GuestInsn::Read { gpa } => self.access(cx, state, gpa, Access::Read, |_| None).map(|value| {
                state.regs.rbx = u64::from(value);
            }),
            GuestInsn::Write { gpa, value } => self.access(cx, state, gpa, Access::Write, |_| Some(value)).map(|_| ()),
            GuestInsn::Rmw { gpa, value } => {
                self.access(cx, state, gpa, Access::Write, |old| Some(old.wrapping_add(value))).map(|_| ())
            }
            GuestInsn::Read64 { gpa } => self.read_quad(cx, state, gpa).map(|value| state.regs.rbx = value),
            GuestInsn::Write64 { gpa, value } => self.write_quad(cx, state, gpa, value),
        };
        match accessed {
            Ok(()) => {
                state.regs.rip += 1;
                Visit::Done
            }
            Err((fault, kind)) => Visit::Fault(fault, kind),
        }
    }

    fn translate(&self, cx: &Cx<'_>, state: &VcpuState, gpa: Gpa, kind: Access) -> Result<Pfn, Stage2Fault> {
        let root = state.root.as_ref().expect("a root is loaded before entry");
        let translation = self.vm.mmu.translate(cx, root, gpa, kind)?;
        let access = GuestAccess {
            gpa,
            pfn: translation.pfn,
            level: translation.level,
            kind: match kind {
                Access::Read => AccessKind::Read,
                Access::Write => AccessKind::Write,
                Access::Exec => AccessKind::Fetch,
            },
            private: false,
        };
        let checked = self.vm.machine.check_guest(cx, &access);
        checked.expect("a machine without protection lets every access through");
        Ok(translation.pfn)
    }

    /// One access of four bytes. `change` gives the new value, or `None` for a read; returns the old one.
    fn access(
        &self,
        cx: &Cx<'_>,
        state: &VcpuState,
        gpa: Gpa,
        kind: Access,
        change: impl Fn(u32) -> Option<u32>,
    ) -> Result<u32, (Stage2Fault, Access)> {
        let phys = &self.vm.host.phys;
        let offset = gpa.0 % PAGE_SIZE;
        if offset.is_multiple_of(4) {
            let pfn = self.translate(cx, state, gpa, kind).map_err(|fault| (fault, kind))?;
            return Ok(match kind {
                Access::Write => phys.change_u32(cx, pfn, offset, |old| change(old).unwrap_or(old)),
                _ => phys.read_u32(cx, pfn, offset),
            });
        }
        let bytes = self.bytes(cx, state, gpa, kind, 4)?;
        let mut old = 0;
        for (i, &(pfn, at)) in bytes.iter().enumerate() {
            old |= u32::from(phys.read_u8(cx, pfn, at)) << (8 * i);
        }
        if let Some(new) = change(old) {
            for (i, &(pfn, at)) in bytes.iter().enumerate() {
                phys.write_u8(cx, pfn, at, (new >> (8 * i)) as u8);
            }
        }
        Ok(old)
    }

    /// Eight bytes; aligned, they are read in one step.
    fn read_quad(&self, cx: &Cx<'_>, state: &VcpuState, gpa: Gpa) -> Result<u64, (Stage2Fault, Access)> {
        let phys = &self.vm.host.phys;
        if gpa.0.is_multiple_of(8) {
            let pfn = self.translate(cx, state, gpa, Access::Read).map_err(|fault| (fault, Access::Read))?;
            return Ok(phys.read_u64(cx, pfn, gpa.0 % PAGE_SIZE));
        }
        let bytes = self.bytes(cx, state, gpa, Access::Read, 8)?;
        Ok(bytes.iter().rev().fold(0, |value, &(pfn, at)| value << 8 | u64::from(phys.read_u8(cx, pfn, at))))
    }

    /// As [`Vcpu::read_quad`], for a write.
    fn write_quad(&self, cx: &Cx<'_>, state: &VcpuState, gpa: Gpa, value: u64) -> Result<(), (Stage2Fault, Access)> {
        let phys = &self.vm.host.phys;
        if gpa.0.is_multiple_of(8) {
            let pfn = self.translate(cx, state, gpa, Access::Write).map_err(|fault| (fault, Access::Write))?;
            phys.write_u64(cx, pfn, gpa.0 % PAGE_SIZE, value);
            return Ok(());
        }
        for ((pfn, at), byte) in self.bytes(cx, state, gpa, Access::Write, 8)?.into_iter().zip(value.to_le_bytes()) {
            phys.write_u8(cx, pfn, at, byte);
        }
        Ok(())
    }

    /// Where the bytes of an access that is not aligned are: in one or two pages, both translated before either is touched.
    fn bytes(
        &self,
        cx: &Cx<'_>,
        state: &VcpuState,
        gpa: Gpa,
        kind: Access,
        size: u64,
    ) -> Result<Vec<(Pfn, u64)>, (Stage2Fault, Access)> {
        let offset = gpa.0 % PAGE_SIZE;
        let pfn = self.translate(cx, state, gpa, kind).map_err(|fault| (fault, kind))?;
        let second = if offset + size > PAGE_SIZE {
            let next = Gpa((gpa.0 | (PAGE_SIZE - 1)).wrapping_add(1));
            self.translate(cx, state, next, kind).map_err(|fault| (fault, kind))?
        } else {
            pfn
        };
        let place = |i: u64| if offset + i < PAGE_SIZE { (pfn, offset + i) } else { (second, offset + i - PAGE_SIZE) };
        Ok((0..size).map(place).collect())
    }

    /// Delivers an exception: the guest goes on at its handler, or at that of the double fault.
    ///
    /// What was half done before a fault is done again from the start, which looks at the same gates in the same order.
    fn deliver(&self, cx: &Cx<'_>, state: &mut VcpuState, vector: u8) -> Visit {
        for vector in [vector, DF_VECTOR] {
            match self.gate(cx, state, vector) {
                Ok(Some(handler)) => {
                    state.regs.rip = handler;
                    return Visit::Done;
                }
                Ok(None) => {}
                Err(fault) => return Visit::DeliveryFault(fault),
            }
        }
        Visit::TripleFault
    }

    /// The handler of a vector, if its gate lies within the table and is present.
    fn gate(&self, cx: &Cx<'_>, state: &VcpuState, vector: u8) -> Result<Option<usize>, Stage2Fault> {
        let size = state.mode.gate_size();
        let offset = u64::from(vector) * size;
        if offset + size - 1 > u64::from(state.idt.limit) {
            return Ok(None);
        }
        let at = Gpa(state.idt.base.0.wrapping_add(offset));
        let low = self.read_quad(cx, state, at).map_err(|(fault, _)| fault)?;
        if low & GATE_PRESENT == 0 {
            return Ok(None);
        }
        let mut handler = (low & 0xffff) | (low >> 48 << 16);
        if state.mode == CpuMode::Long64 {
            let high = self.read_quad(cx, state, Gpa(at.0.wrapping_add(8))).map_err(|(fault, _)| fault)?;
            handler |= high << 32;
        }
        Ok(Some(handler as usize))
    }
}
