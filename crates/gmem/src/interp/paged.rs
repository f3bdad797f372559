//! `guest_paged`: one access of a vCPU in long mode, over tables in guest memory.
//!
//! As the recording program has it: memory slot 31 has eight pages, which the guest's own tables show it at [`CODE`] for the
//! supervisor. They are the code, the tables of interrupts and segments, the TSS, the stack, and three of the tables that map the others. A vCPU that finishes says so by
//! port [`DONE_PORT`], and the handler of an exception by a port of its own.

use sim_kernel::mm::Signal;
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE};
use sim_mmu::Gva;
use sim_mmu::guest_paging::{Cr0, Cr3, Cr4, Efer, PagingRegisters};

use super::guest::{CODE_GPA, answer_of};
use super::world::{World, failed, signal_of};
use crate::kvm::ioctl;
use crate::kvm::vcpu::{CpuMode, DescriptorTable, ExitInfo, GuestContext, GuestInsn, SpecialRegisters};
use crate::ops::{Answer, Exit, GuestPaged, PagedAccess};

/// Pages of the slot.
pub(super) const PAGES: u64 = 8;
/// Where the first five of them are mapped, in entry 256 of the root table.
const CODE: u64 = 0xffff_8000_0000_0000;
/// Where the code is mapped once more, for the user.
const USER_CODE: u64 = CODE + 16 * PAGE_SIZE;
/// The pages by their numbers.
const IDT: u64 = 1;
const GDT: u64 = 2;
const TSS: u64 = 3;
const STACK: u64 = 4;
const PDPT: u64 = 5;
const PD: u64 = 6;
const PT: u64 = 7;
/// Entry of the root table that leads to the PDPT.
const ROOT_INDEX: u64 = 256;
/// P, R/W, U/S.
const TABLE: u64 = 7;
const SUPERVISOR_PAGE: u64 = 3;
/// Vectors with a gate.
const VECTORS: u64 = 32;
/// Places of a program before the handlers: the access, and the word that it is done.
const HANDLERS: u64 = 2;
const DONE_PORT: u16 = 0x80;
const EXCEPTION_PORT: u16 = 0x40;
/// Bytes of a program's code between two instructions.
const INSN_BYTES: u64 = 16;
/// Where the error code is below the top of the stack, of a frame that has one.
const ERROR_CODE: u64 = 48;

const fn gpa(page: u64) -> u64 {
    CODE_GPA + page * PAGE_SIZE
}

const fn gva(page: u64) -> u64 {
    CODE + page * PAGE_SIZE
}

impl World {
    /// Writes what is in the pages behind the code.
    pub(super) fn write_paged_slot(&self, cx: &Cx<'_>, slot: Hva) -> Result<(), Signal> {
        let write = |page: u64, offset: u64, value: u64| {
            self.process().write_u64(cx, Hva(slot.0 + page * PAGE_SIZE + offset), value)
        };
        for vector in 0..VECTORS {
            let handler = CODE + (HANDLERS + 2 * vector) * INSN_BYTES;
            // An interrupt gate of the supervisor's code segment.
            let low = handler & 0xffff | 0x8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
            write(IDT, vector * 16, low)?;
            write(IDT, vector * 16 + 8, handler >> 32)?;
        }
        let tss = gva(TSS);
        let tss_low = 0x67 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
        let segments = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            tss_low,
            tss >> 32,
        ];
        for (i, segment) in (0..).zip(segments) {
            write(GDT, i * 8, segment)?;
        }
        // The stack of privilege 0, at offset 4.
        let stack = gva(STACK + 1);
        write(TSS, 0, stack << 32)?;
        write(TSS, 8, stack >> 32)?;
        write(PDPT, 0, gpa(PD) | TABLE)?;
        write(PD, 0, gpa(PT) | TABLE)?;
        for page in 0..PDPT {
            write(PT, page * 8, gpa(page) | SUPERVISOR_PAGE)?;
        }
        write(PT, 16 * 8, gpa(0) | TABLE)
    }

    /// Performs the operation.
    pub(super) fn guest_paged(&self, cx: &Cx<'_>, op: &GuestPaged) -> Answer {
        let &GuestPaged {
            ref vcpu,
            ref root_map,
            root_offset,
            cr3,
            cpl,
            access,
            gva: at,
            value,
            wp,
            smep,
            smap,
            nxe,
            ac,
        } = op;
        let entry = Hva(self.address(root_map, root_offset).0.wrapping_add(ROOT_INDEX * 8));
        if let Err(signal) = self.process().write_u64(cx, entry, gpa(PDPT) | TABLE) {
            return Answer::Signal(signal_of(signal));
        }
        let fd = self.fd(vcpu);
        let Some(handle) = ioctl::peek_vcpu(cx, self.process(), fd) else {
            return failed(ioctl::run(cx, self.process(), fd).err().unwrap_or(Errno::ENOTTY));
        };
        let _operator = handle.operator.lock(cx);
        let mut paging = PagingRegisters {
            cr0: Cr0::PG,
            cr3: Cr3(cr3),
            cr4: Cr4::PAE,
            efer: Efer::LMA,
            cpl: if cpl == 3 { 3 } else { 0 },
            ac,
            ..PagingRegisters::default()
        };
        paging.cr0.set(Cr0::WP, wp);
        paging.cr4.set(Cr4::SMEP, smep);
        paging.cr4.set(Cr4::SMAP, smap);
        paging.efer.set(Efer::NXE, nxe);
        let table = |page, limit| DescriptorTable { base: Gva(gva(page)), limit };
        let sregs = SpecialRegisters {
            paging,
            gdt: table(GDT, 7 * 8 - 1),
            idt: table(IDT, (VECTORS * 16 - 1) as u16),
            tss: Gva(gva(TSS)),
        };
        let code = Some(Gva(if paging.cpl == 3 { USER_CODE } else { CODE }));
        let context = GuestContext { mode: CpuMode::Long64, code, sregs, rsp: gva(STACK + 1) };
        let at = Gva(at);
        let insn = match access {
            PagedAccess::Read => GuestInsn::ReadLinear { gva: at },
            PagedAccess::Write => GuestInsn::WriteLinear { gva: at, value },
            PagedAccess::ReadModifyWrite => GuestInsn::RmwLinear { gva: at, value },
            PagedAccess::Execute => GuestInsn::JumpLinear { gva: at },
        };
        // `mov rbx, [rsp]`, where the error code is, and out.
        let error_code = Gva(gva(STACK + 1) - ERROR_CODE);
        let handler =
            |vector| [GuestInsn::ReadLinear { gva: error_code }, GuestInsn::Out { port: EXCEPTION_PORT + vector }];
        let handlers = (0..VECTORS as u16).flat_map(handler);
        let program: Vec<GuestInsn> = [insn, GuestInsn::Out { port: DONE_PORT }].into_iter().chain(handlers).collect();
        // Switched off in between, paging begins with nothing cached.
        let found = handle.context(cx);
        let flat = GuestContext { sregs: SpecialRegisters::default(), ..found };
        let started = handle.start(cx, &flat, &[]).and_then(|()| handle.start(cx, &context, &program));
        if let Err(errno) = started {
            return failed(errno);
        }
        let run = ioctl::run(cx, self.process(), fd);
        let regs = handle.regs(cx);
        let cr2 = handle.cr2(cx);
        // The other operations find their vCPU as they left it.
        if let Err(errno) = handle.start(cx, &found, &[]) {
            return failed(errno);
        }
        let (result, exit) = match run {
            Ok(run) => run,
            Err(errno) => return failed(errno),
        };
        match exit {
            ExitInfo::Io { port: DONE_PORT, .. } => {
                Answer::exit(Exit::Done { value: (access == PagedAccess::Read).then_some(regs.rbx) })
            }
            ExitInfo::Io { port, .. } if (EXCEPTION_PORT..EXCEPTION_PORT + VECTORS as u16).contains(&port) => {
                let vector = u64::from(port - EXCEPTION_PORT);
                let has_code = regs.rsp == error_code.0;
                let error = if has_code { regs.rbx } else { 0 };
                Answer::exit(Exit::Exception { vector, error, cr2: (vector == 14).then_some(cr2.0) })
            }
            exit => answer_of(result, exit, None),
        }
    }
}

/// Where everything is, by name. The recording program is in another crate, which knows nothing of this one; a test holds one against the other.
#[cfg(test)]
pub(crate) const LAYOUT: [(&str, u64); 17] = [
    ("pages", PAGES),
    ("code", CODE),
    ("user code", USER_CODE),
    ("IDT", IDT),
    ("GDT", GDT),
    ("TSS", TSS),
    ("stack", STACK),
    ("PDPT", PDPT),
    ("PD", PD),
    ("PT", PT),
    ("vectors", VECTORS),
    ("handlers", HANDLERS * INSN_BYTES),
    ("bytes of a handler", 2 * INSN_BYTES),
    ("port of the end", DONE_PORT as u64),
    ("port of exception 0", EXCEPTION_PORT as u64),
    ("bytes above an error code", ERROR_CODE),
    ("entry of the root", gpa(PDPT) | TABLE),
];
