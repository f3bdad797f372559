//! The guest: its program, its registers, and what one visit to it does, as the processor would (not KVM).
//!
//! A program is a list of instructions and `rip` a place in it; past the last one is a `hlt`. Registers are what such programs
//! need: `rbx` receives reads and is compared and put out, `rax` is the answer of a hypercall. Memory is accessed by linear addresses, which
//! the vCPU's processor translates; while paging is off they are guest physical addresses.
//!
//! Simplified: one instruction for each visit, and with it the `hlt`, output or hypercall that follows. A program's code is not in guest memory, though it is fetched from there: with paging, instruction `n` from byte
//! `16 n` of the code page. Only what a program jumps to by [`GuestInsn::JumpLinear`] is read as code: `out imm8, al` and `hlt`, and everything
//! else is an invalid opcode.

use super::cpu::{AccessFault, CpuExit};
use super::exception::{Exception, INSN_BYTES};
use super::kernel::KernelInsn;
use super::sev::insn::SnpInsn;
use super::tdx::insn::TdInsn;
use super::vcpu::{Vcpu, VcpuState};
use super::vm::Vm;
use arrayvec::ArrayVec;
use sim_kernel::{Cx, PAGE_SIZE, Pfn};
use sim_mmu::guest_paging::{AccessMode, Cr0, GuestFault, PagingRegisters};
use sim_mmu::walker::{ExitInfo1, MmuFault, WalkMemory};
use sim_mmu::{Access, Gfn, Gpa, Gva, Level, Stage2Fault};

/// One instruction of a guest program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GuestInsn {
    /// `mov ebx, [gpa]`. As of the others with a `gpa`, the address is linear where paging is on.
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
    /// `mov rbx, [gva]`.
    ReadLinear {
        /// Where.
        gva: Gva,
    },
    /// `mov [gva], value`, eight bytes.
    WriteLinear {
        /// Where.
        gva: Gva,
        /// What.
        value: u64,
    },
    /// `lock add [gva], value`, eight bytes.
    RmwLinear {
        /// Where.
        gva: Gva,
        /// What is added.
        value: u64,
    },
    /// `jmp gva`: to code that lies in guest memory.
    JumpLinear {
        /// Where.
        gva: Gva,
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
    /// An instruction of an SNP guest.
    Snp(SnpInsn),
    /// An instruction of a TD.
    Td(TdInsn),
    /// An instruction of a kernel.
    Kernel(KernelInsn),
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
    pub(super) fn gate_size(self) -> u64 {
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
    /// The stack pointer; only deliveries of exceptions with paging use it.
    pub rsp: u64,
}

/// Where a descriptor table is (`idtr`, `gdtr`; `struct kvm_dtable`). With limit 0, as at the start, there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DescriptorTable {
    /// The first byte.
    pub base: Gva,
    /// The offset of the last byte.
    pub limit: u16,
}

/// What `KVM_SET_SREGS` sets, as far as guests here look. As at the start: paging off, privilege 0, no tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpecialRegisters {
    /// Control registers, EFER, CPL and EFLAGS.AC.
    pub paging: PagingRegisters,
    /// `gdtr`.
    pub gdt: DescriptorTable,
    /// `idtr`.
    pub idt: DescriptorTable,
    /// Base of the task-state segment (`tr`).
    pub tss: Gva,
}

/// How a vCPU begins a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GuestContext {
    /// How wide its registers are.
    pub mode: CpuMode,
    /// The page from which instructions are fetched; `None`: fetches are not modelled.
    pub code: Option<Gva>,
    /// Control registers and tables.
    pub sregs: SpecialRegisters,
    /// The stack pointer.
    pub rsp: u64,
}

/// Where each byte of an access lies, which may cross into another page, and the guest frames of its pages.
type SpreadBytes = (Vec<(Pfn, u64)>, ArrayVec<Gfn, 2>);

/// What the guest did in one visit.
pub(crate) enum Visit {
    /// The instruction is complete.
    Done,
    /// The program ended.
    Halted,
    /// Stage 2 refused an access of the instruction, or the fetch of it.
    Fault { fault: Stage2Fault, info1: ExitInfo1, fetch: bool },
    /// Stage 2 refused an access that the processor made itself to deliver an exception.
    DeliveryFault { fault: Stage2Fault, info1: ExitInfo1 },
    /// The guest spins on something of its memory; how many releases there were when it looked.
    Spins { seen: u64 },
    /// The guest has executed VMGEXIT.
    Vmgexit,
    /// VMEXIT_INVALID: the guest was not entered.
    Invalid,
    /// There is no VMSA to enter it with.
    NoVmsa,
    /// The guest asked for something.
    Hypercall { nr: u64, args: [u64; 4] },
    /// The guest wrote to a port.
    Io { port: u16, data: u32 },
    /// Not even a double fault could be delivered.
    TripleFault,
    /// The page-modification log must be emptied first.
    LogFull,
}

/// Where a vCPU's walks find tables, its own and stage 2's: what the processor writes into the guest's is a store of the guest.
struct GuestMemory<'a> {
    vm: &'a Vm,
}

impl WalkMemory for GuestMemory<'_> {
    #[inline]
    fn stage2_entry(&self, cx: &Cx<'_>, table: Pfn, level: Level, index: usize) -> u64 {
        self.vm.mmu.stage2_entry(cx, table, level, index)
    }

    #[inline]
    fn update_stage2_entry(&self, cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        self.vm.mmu.update_stage2_entry(cx, table, index, old, new)
    }

    #[inline]
    fn guest_entry(&self, cx: &Cx<'_>, table: Pfn, entry: Gpa) -> u64 {
        self.vm.mmu.guest_entry(cx, table, entry)
    }

    #[inline]
    fn update_guest_entry(&self, cx: &Cx<'_>, table: Pfn, entry: Gpa, old: u64, new: u64) -> Result<(), u64> {
        self.vm.mmu.update_guest_entry(cx, table, entry, old, new)?;
        self.vm.record_store(entry.gfn());
        Ok(())
    }
}

/// `ud2`'s vector.
const UD_VECTOR: u8 = 6;

impl VcpuState {
    pub(super) fn has_paging(&self) -> bool {
        self.sregs.paging.cr0.contains(Cr0::PG)
    }

    /// The address of the instruction that is next.
    pub(super) fn linear_rip(&self) -> Gva {
        match (self.foreign_rip, self.code) {
            (Some(foreign), _) => foreign,
            (None, Some(code)) if self.has_paging() => Gva(code.0.wrapping_add(self.regs.rip as u64 * INSN_BYTES)),
            (None, code) => code.unwrap_or(Gva(self.regs.rip as u64)),
        }
    }

    /// The instruction that is next leaves the guest, whatever it finds.
    fn leaves_next(&self) -> bool {
        let next = self.program.get(self.regs.rip);
        if next.is_none() && self.has_kernel() {
            return false;
        }
        let leaves = matches!(
            next,
            None | Some(GuestInsn::Out { .. } | GuestInsn::Hypercall { .. } | GuestInsn::Snp(SnpInsn::Vmgexit))
        );
        leaves && self.foreign_rip.is_none()
    }

    /// Another privilege: the guest's registers and the processor's.
    pub(super) fn set_privilege(&mut self, cpl: u8, ac: bool) {
        (self.sregs.paging.cpl, self.sregs.paging.ac) = (cpl, ac);
        self.cpu.set_privilege(cpl, ac);
    }
}

impl Vcpu {
    /// The guest runs: one instruction, then out again.
    pub(crate) fn guest(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Visit {
        if let Some(exception) = state.pending_exception.take() {
            return self.deliver(cx, state, exception);
        }
        match self.fetch(cx, state) {
            Ok(Some(insn)) => match self.perform(cx, state, insn) {
                // What leaves the guest anyway needs no visit of its own.
                Ok(Visit::Done) if state.leaves_next() => self.guest(cx, state),
                Ok(visit) => visit,
                Err(fault) => self.refused(cx, state, fault, false),
            },
            Ok(None) if state.sregs.paging.cpl == 3 => {
                self.refused(cx, state, MmuFault::Guest(GuestFault::GeneralProtection), false)
            }
            Ok(None) => Visit::Halted,
            Err(fault) => self.refused(cx, state, fault, true),
        }
    }

    /// An access failed: an exception in the guest, or an exit.
    fn refused(&self, cx: &Cx<'_>, state: &mut VcpuState, fault: AccessFault, fetch: bool) -> Visit {
        match fault {
            MmuFault::Guest(fault) => self.deliver(cx, state, fault.into()),
            MmuFault::Stage2(CpuExit::Fault { fault, info1 }) => Visit::Fault { fault, info1, fetch },
            MmuFault::Stage2(CpuExit::Exception(exception)) => self.deliver(cx, state, exception),
            MmuFault::Stage2(CpuExit::LogFull) => Visit::LogFull,
        }
    }

    /// The instruction that is next; `None` is `hlt`.
    fn fetch(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Result<Option<GuestInsn>, AccessFault> {
        if let Some(at) = state.foreign_rip {
            return Ok(match self.byte(cx, state, at)? {
                0xf4 => None,
                0xe6 => {
                    let port = self.byte(cx, state, Gva(at.0.wrapping_add(1)))?;
                    Some(GuestInsn::Out { port: u16::from(port) })
                }
                _ => Some(GuestInsn::Exception { vector: UD_VECTOR }),
            });
        }
        if state.code.is_some() {
            if self.vm.sev().is_some() {
                self.snp_read(cx, state, state.linear_rip(), None, Access::Exec, &mut [0])?;
            } else {
                self.translate(cx, state, state.linear_rip(), None, Access::Exec)?;
            }
        }
        if state.regs.rip >= state.program.len() {
            state.fetch_from_kernel();
        }
        Ok(state.program.get(state.regs.rip).copied())
    }

    /// A byte of code in guest memory.
    fn byte(&self, cx: &Cx<'_>, state: &mut VcpuState, at: Gva) -> Result<u8, AccessFault> {
        if self.vm.sev().is_some() {
            let mut byte = [0];
            self.snp_read(cx, state, at, None, Access::Exec, &mut byte)?;
            return Ok(byte[0]);
        }
        let (pfn, _) = self.translate(cx, state, at, None, Access::Exec)?;
        Ok(self.vm.host.phys.read_u8(cx, pfn, at.offset()))
    }

    fn perform(&self, cx: &Cx<'_>, state: &mut VcpuState, insn: GuestInsn) -> Result<Visit, AccessFault> {
        match insn {
            GuestInsn::Snp(insn) => return self.perform_snp(cx, state, insn),
            GuestInsn::Kernel(insn) => return self.perform_kernel(cx, state, insn),
            // TDCALL outside of a TD.
            GuestInsn::Td(_) => return Ok(self.deliver(cx, state, Exception::of_vector(UD_VECTOR))),
            GuestInsn::Hypercall { nr, args } => return Ok(Visit::Hypercall { nr, args }),
            GuestInsn::Out { port } => return Ok(Visit::Io { port, data: state.regs.rbx as u32 }),
            GuestInsn::Exception { vector } => return Ok(self.deliver(cx, state, Exception::of_vector(vector))),
            GuestInsn::Load { value } => state.regs.rbx = super::run::truncate(state.mode, value),
            GuestInsn::Jump { to } => {
                state.regs.rip = to;
                return Ok(Visit::Done);
            }
            GuestInsn::JumpLinear { gva } => {
                state.foreign_rip = Some(gva);
                return Ok(Visit::Done);
            }
            GuestInsn::JumpEqual { value, to } => {
                if state.regs.rbx == super::run::truncate(state.mode, value) {
                    state.regs.rip = to;
                    return Ok(Visit::Done);
                }
            }
            GuestInsn::Read { gpa } => {
                state.regs.rbx = u64::from(self.access(cx, state, Gva(gpa.0), Access::Read, |_| None)?);
            }
            GuestInsn::Write { gpa, value } => {
                self.access(cx, state, Gva(gpa.0), Access::Write, |_| Some(value))?;
            }
            GuestInsn::Rmw { gpa, value } => {
                self.access(cx, state, Gva(gpa.0), Access::Write, |old| Some(old.wrapping_add(value)))?;
            }
            GuestInsn::Read64 { gpa } => state.regs.rbx = self.read_quad(cx, state, Gva(gpa.0), None)?,
            GuestInsn::Write64 { gpa, value } => self.write_quad(cx, state, Gva(gpa.0), None, value)?,
            GuestInsn::ReadLinear { gva } => state.regs.rbx = self.read_quad(cx, state, gva, None)?,
            GuestInsn::WriteLinear { gva, value } => self.write_quad(cx, state, gva, None, value)?,
            GuestInsn::RmwLinear { gva, value } => self.add_quad(cx, state, gva, value)?,
        }
        state.regs.rip += 1;
        Ok(Visit::Done)
    }

    /// Where a linear address is, for an access of the guest or of the processor itself (`mode`), and in which guest frame, if it is a store that
    /// is recorded.
    fn translate(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        mode: Option<AccessMode>,
        access: Access,
    ) -> Result<(Pfn, Option<Gfn>), AccessFault> {
        let memory = GuestMemory { vm: &self.vm };
        let found = if self.is_watched && access == Access::Write {
            let found = state.cpu.translate_physical(cx, &memory, gva, mode, access);
            found.map(|(found, gpa)| (found.pfn, Some(gpa.gfn())))
        } else {
            state.cpu.translate(cx, &memory, gva, mode, access).map(|found| (found.pfn, None))
        };
        self.show_processor(state);
        let (pfn, gfn) = found?;
        if self.is_watched {
            state.reached.entry(pfn).or_insert_with(|| self.vm.host.phys.generation(pfn));
        }
        Ok((pfn, gfn))
    }

    /// The guest has written to the frames of a store that is recorded.
    #[inline]
    fn stored(&self, gfns: impl IntoIterator<Item = Gfn>) {
        gfns.into_iter().for_each(|gfn| self.vm.record_store(gfn));
    }

    /// One access of four bytes. `change` gives the new value, or `None` for a read; returns the old one.
    fn access(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        kind: Access,
        change: impl Fn(u32) -> Option<u32>,
    ) -> Result<u32, AccessFault> {
        if self.vm.sev().is_some() {
            return self.snp_access(cx, state, gva, kind, change);
        }
        let phys = &self.vm.host.phys;
        let offset = gva.offset();
        if offset.is_multiple_of(4) {
            let (pfn, gfn) = self.translate(cx, state, gva, None, kind)?;
            if kind != Access::Write {
                return Ok(phys.read_u32(cx, pfn, offset));
            }
            let old = phys.change_u32(cx, pfn, offset, |old| change(old).unwrap_or(old));
            self.stored(gfn);
            return Ok(old);
        }
        let (bytes, gfns) = self.bytes(cx, state, gva, None, kind, 4)?;
        let mut old = 0;
        for (i, &(pfn, at)) in bytes.iter().enumerate() {
            old |= u32::from(phys.read_u8(cx, pfn, at)) << (8 * i);
        }
        if let Some(new) = change(old) {
            for (i, &(pfn, at)) in bytes.iter().enumerate() {
                phys.write_u8(cx, pfn, at, (new >> (8 * i)) as u8);
            }
            self.stored(gfns);
        }
        Ok(old)
    }

    /// Eight bytes; aligned, they are read in one step.
    pub(super) fn read_quad(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        mode: Option<AccessMode>,
    ) -> Result<u64, AccessFault> {
        if self.vm.sev().is_some() {
            let mut bytes = [0; 8];
            self.snp_read(cx, state, gva, mode, Access::Read, &mut bytes)?;
            return Ok(u64::from_le_bytes(bytes));
        }
        let phys = &self.vm.host.phys;
        if gva.0.is_multiple_of(8) {
            let (pfn, _) = self.translate(cx, state, gva, mode, Access::Read)?;
            return Ok(phys.read_u64(cx, pfn, gva.offset()));
        }
        let (bytes, _) = self.bytes(cx, state, gva, mode, Access::Read, 8)?;
        Ok(bytes.iter().rev().fold(0, |value, &(pfn, at)| value << 8 | u64::from(phys.read_u8(cx, pfn, at))))
    }

    /// As [`Vcpu::read_quad`], for a write.
    pub(super) fn write_quad(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        mode: Option<AccessMode>,
        value: u64,
    ) -> Result<(), AccessFault> {
        if self.vm.sev().is_some() {
            let new = value.to_le_bytes();
            return self.snp_modify(cx, state, gva, mode, &mut [0; 8], |bytes| bytes.copy_from_slice(&new));
        }
        let phys = &self.vm.host.phys;
        if gva.0.is_multiple_of(8) {
            let (pfn, gfn) = self.translate(cx, state, gva, mode, Access::Write)?;
            phys.write_u64(cx, pfn, gva.offset(), value);
            self.stored(gfn);
            return Ok(());
        }
        let (bytes, gfns) = self.bytes(cx, state, gva, mode, Access::Write, 8)?;
        for ((pfn, at), byte) in bytes.into_iter().zip(value.to_le_bytes()) {
            phys.write_u8(cx, pfn, at, byte);
        }
        self.stored(gfns);
        Ok(())
    }

    /// `lock add` of eight bytes: one step where they are aligned.
    fn add_quad(&self, cx: &Cx<'_>, state: &mut VcpuState, gva: Gva, value: u64) -> Result<(), AccessFault> {
        if self.vm.sev().is_some() {
            let add = |bytes: &mut [u8]| {
                let old = u64::from_le_bytes((&*bytes).try_into().expect("eight bytes"));
                bytes.copy_from_slice(&old.wrapping_add(value).to_le_bytes());
            };
            return self.snp_modify(cx, state, gva, None, &mut [0; 8], add);
        }
        let phys = &self.vm.host.phys;
        let (bytes, gfns) = self.bytes(cx, state, gva, None, Access::Write, 8)?;
        if gva.0.is_multiple_of(8) {
            let (pfn, at) = bytes[0];
            let mut old = phys.read_u64(cx, pfn, at);
            while let Err(found) = phys.cmpxchg_u64(cx, pfn, at, old, old.wrapping_add(value)) {
                old = found;
            }
            self.stored(gfns);
            return Ok(());
        }
        let old = bytes.iter().rev().fold(0, |value, &(pfn, at)| value << 8 | u64::from(phys.read_u8(cx, pfn, at)));
        for ((pfn, at), byte) in bytes.into_iter().zip(old.wrapping_add(value).to_le_bytes()) {
            phys.write_u8(cx, pfn, at, byte);
        }
        self.stored(gfns);
        Ok(())
    }

    /// Where the bytes of an access are: in one or two pages, both translated before either is touched. And in which guest frames, if it is a
    /// store that is recorded.
    fn bytes(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        mode: Option<AccessMode>,
        access: Access,
        size: u64,
    ) -> Result<SpreadBytes, AccessFault> {
        let offset = gva.offset();
        let (pfn, gfn) = self.translate(cx, state, gva, mode, access)?;
        let (second, second_gfn) = if offset + size > PAGE_SIZE {
            self.translate(cx, state, Gva(gva.page().0.wrapping_add(PAGE_SIZE)), mode, access)?
        } else {
            (pfn, None)
        };
        let place = |i: u64| if offset + i < PAGE_SIZE { (pfn, offset + i) } else { (second, offset + i - PAGE_SIZE) };
        Ok(((0..size).map(place).collect(), gfn.into_iter().chain(second_gfn).collect()))
    }
}
