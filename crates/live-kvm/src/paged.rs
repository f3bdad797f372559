//! One access of a vCPU in long mode, over tables in guest memory, as the recordings of guest paging have it.
//!
//! Memory slot 31 of a VM whose first vCPU is made for paging has eight pages: the code, the tables of interrupts and segments, the TSS, the
//! stack, and three tables that map the first five from [`CODE`] on, and the code once more for the user. The caller sees to it that
//! entry 256 of its root table leads there. A vCPU says by port [`PagedRun::DONE_PORT`] that it is done, and by [`PagedRun::EXCEPTION_PORT`] and
//! the ports after it that it got an exception.

use kvm_bindings::{KVM_EXIT_IO, kvm_dtable, kvm_segment, kvm_sregs};

use crate::guest::{CODE_GPA, GuestRun, Left, PAGE, RunPage, called_back, registers};
use crate::ioctl::*;
use crate::{Failure, Process, Result};

/// Pages of the slot.
pub(crate) const PAGES: u64 = 8;
/// Where the tables of the slot map the code, in entry 256 of a root table.
const CODE: u64 = 0xffff_8000_0000_0000;
/// Where they map it for the user.
const USER_CODE: u64 = CODE + 16 * PAGE;
const IDT: u64 = 1;
const GDT: u64 = 2;
const TSS: u64 = 3;
const STACK: u64 = 4;
const PDPT: u64 = 5;
const PD: u64 = 6;
const PT: u64 = 7;
/// Vectors with a gate.
const VECTORS: u64 = 32;
/// Where the handlers begin in the code, and how far they are apart.
const HANDLERS: u64 = 0x20;
const HANDLER_SIZE: u64 = 0x20;
/// Of the supervisor and of the user: code, and stack.
const SELECTORS: [(u16, u16); 2] = [(0x8, 0x10), (0x1b, 0x23)];
const TSS_SELECTOR: u16 = 0x28;

/// What the vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagedKind {
    /// `mov rbx, [rcx]`
    Read,
    /// `mov [rcx], rbx`
    Write,
    /// `lock add [rcx], rbx`
    ReadModifyWrite,
    /// `jmp rcx`
    Execute,
}

/// An access, and the registers with which it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the registers and bits")]
pub struct PagedAccess {
    pub kind: PagedKind,
    /// The linear address.
    pub gva: u64,
    /// What is written or added.
    pub value: u64,
    pub cr3: u64,
    /// In user mode.
    pub user: bool,
    pub wp: bool,
    pub smep: bool,
    pub smap: bool,
    pub nxe: bool,
    pub ac: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagedRun {
    /// The exit, `rbx`, and the rest.
    pub run: GuestRun,
    /// The port that the guest wrote to, if that was how it left.
    pub port: Option<u16>,
    /// The error code of an exception that has one.
    pub error: Option<u64>,
    /// CR2.
    pub cr2: u64,
}

impl PagedRun {
    /// The access completed.
    pub const DONE_PORT: u16 = 0x80;
    /// Exception 0; others follow.
    pub const EXCEPTION_PORT: u16 = 0x40;
    /// Bytes from an error code to the top of its stack.
    const ERROR_CODE: u64 = 48;

    /// The vector of the exception that the guest got.
    pub fn vector(&self) -> Option<u16> {
        self.port.and_then(|port| port.checked_sub(Self::EXCEPTION_PORT)).filter(|&vector| u64::from(vector) < VECTORS)
    }
}

const fn gpa(page: u64) -> u64 {
    CODE_GPA + page * PAGE
}

const fn gva(page: u64) -> u64 {
    CODE + page * PAGE
}

/// The entry that leads from a root table to the slot's tables, and its offset there.
pub const ROOT_ENTRY: (u64, u64) = (256 * 8, gpa(PDPT) | 7);

impl Process {
    /// Writes the pages of a slot that was just mapped at `hva`.
    pub(crate) fn write_paged_slot(&mut self, hva: u64) -> Result<()> {
        let mut write = |page: u64, offset: u64, value: u64| self.store64(hva + page * PAGE + offset, value);
        for vector in 0..VECTORS {
            let handler = HANDLERS + vector * HANDLER_SIZE;
            // mov rbx, [rsp]; out imm8, al; hlt
            let code = [0x48, 0x8b, 0x1c, 0x24, 0xe6, PagedRun::EXCEPTION_PORT as u8 + vector as u8, 0xf4, 0xf4];
            write(0, handler, u64::from_le_bytes(code))?;
            let address = CODE + handler;
            write(IDT, vector * 16, address & 0xffff | 0x8 << 16 | 0x8e00 << 32 | (address >> 16 & 0xffff) << 48)?;
            write(IDT, vector * 16 + 8, address >> 32)?;
        }
        let tss = gva(TSS);
        let tss_low = 0x67 | (tss & 0xff_ffff) << 16 | 0x8b << 40 | (tss >> 24 & 0xff) << 56;
        let code_and_data =
            [0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00af_fb00_0000_ffff, 0x00cf_f300_0000_ffff];
        for (i, segment) in (1..).zip(code_and_data.into_iter().chain([tss_low, tss >> 32])) {
            write(GDT, i * 8, segment)?;
        }
        let stack = gva(STACK + 1);
        write(TSS, 0, stack << 32)?;
        write(TSS, 8, stack >> 32)?;
        write(PDPT, 0, gpa(PD) | 7)?;
        write(PD, 0, gpa(PT) | 7)?;
        for page in 0..PDPT {
            write(PT, page * 8, gpa(page) | 3)?;
        }
        write(PT, 16 * 8, gpa(0) | 7)
    }

    /// Makes one vCPU do one access with paging, until it leaves the guest.
    ///
    /// # Errors
    /// The errno of `KVM_RUN` on what is no vCPU; refused if this KVM does not give its vCPUs such registers.
    pub fn run_paged(&mut self, vcpu: i32, access: PagedAccess) -> Result<PagedRun> {
        let no_vcpu = || with_number(vcpu, KVM_RUN, 0).err().unwrap_or(Failure::Errno(libc::ENOTTY));
        let Some(code) = self.codes.get(&vcpu).cloned() else { return Err(no_vcpu()) };
        let Ok(run) = RunPage::map(vcpu, self.vcpu_mmap_size) else { return Err(no_vcpu()) };
        let insn: &[u8] = match access.kind {
            PagedKind::Read => &[0x48, 0x8b, 0x19],
            PagedKind::Write => &[0x48, 0x89, 0x19],
            PagedKind::ReadModifyWrite => &[0xf0, 0x48, 0x01, 0x19],
            PagedKind::Execute => &[0xff, 0xe1],
        };
        let program: Vec<u8> = insn.iter().copied().chain([0xe6, PagedRun::DONE_PORT as u8]).collect();
        // The trace may have taken the page away; the vCPU then finds what is there.
        self.write_code(&code, &program).ok();
        // Switched off in between, paging begins with nothing cached.
        self.set_registers(vcpu, false, None)?;
        let top = gva(STACK + 1);
        self.set_paged_registers(vcpu, &access, top)?;
        let result = run.enter(vcpu);
        let mut left = run.left();
        let port = run.port();
        let regs = registers(vcpu)?;
        let mut sregs = kvm_sregs::default();
        with_struct(vcpu, KVM_GET_SREGS, &mut sregs)?;
        if port == Some(PagedRun::DONE_PORT) {
            left = Left::Done;
        }
        let called_back = called_back(&result);
        if matches!(left, Left::Mmio { .. }) || port.is_some() {
            run.abandon(vcpu);
        }
        let error = (top.wrapping_sub(regs.rsp) == PagedRun::ERROR_CODE).then_some(regs.rbx);
        let run = GuestRun { errno: result.err(), left, rbx: regs.rbx, rax: regs.rax, called_back };
        Ok(PagedRun { run, port, error, cr2: sregs.cr2 })
    }

    fn set_paged_registers(&mut self, vcpu: i32, access: &PagedAccess, stack: u64) -> Result<()> {
        let mut sregs = kvm_sregs::default();
        with_struct(vcpu, KVM_GET_SREGS, &mut sregs)?;
        let (code, data) = SELECTORS[usize::from(access.user)];
        let dpl = if access.user { 3 } else { 0 };
        let segment = |selector: u16, type_: u8| kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            dpl,
            s: 1,
            g: 1,
            ..Default::default()
        };
        sregs.cs = kvm_segment { l: 1, ..segment(code, 11) };
        let data = kvm_segment { db: 1, ..segment(data, 3) };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment {
            base: gva(TSS),
            limit: 0x67,
            selector: TSS_SELECTOR,
            type_: 11,
            present: 1,
            ..Default::default()
        };
        let table = |page, limit| kvm_dtable { base: gva(page), limit, ..Default::default() };
        (sregs.gdt, sregs.idt) = (table(GDT, 7 * 8 - 1), table(IDT, (VECTORS * 16 - 1) as u16));
        // PE, MP, ET, NE, PG; without AM, since AC then only concerns SMAP.
        sregs.cr0 = 0x8000_0033 | u64::from(access.wp) << 16;
        sregs.cr3 = access.cr3;
        sregs.cr4 = 0x20 | u64::from(access.smep) << 20 | u64::from(access.smap) << 21;
        sregs.efer = 0x500 | u64::from(access.nxe) << 11;
        if with_struct(vcpu, KVM_SET_SREGS, &mut sregs).is_err() {
            return Err(Failure::Refused(
                "not done, because this KVM does not give its vCPUs these control registers".into(),
            ));
        }
        let mut regs = kvm_bindings::kvm_regs {
            rip: if access.user { USER_CODE } else { CODE },
            rsp: stack,
            rflags: 2 | u64::from(access.ac) << 18,
            rcx: access.gva,
            rbx: access.value,
            ..Default::default()
        };
        with_struct(vcpu, KVM_SET_REGS, &mut regs).map(drop)
    }
}

impl RunPage {
    /// The port of an exit for one.
    fn port(&self) -> Option<u16> {
        if self.reason() != KVM_EXIT_IO {
            return None;
        }
        // SAFETY: the mapping lives, and the exit fills this member of the union.
        Some(unsafe { self.data().io.port })
    }
}

/// Where everything is, by name: for who has the same slot to hold it against.
pub const PAGED_LAYOUT: [(&str, u64); 17] = [
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
    ("handlers", HANDLERS),
    ("bytes of a handler", HANDLER_SIZE),
    ("port of the end", PagedRun::DONE_PORT as u64),
    ("port of exception 0", PagedRun::EXCEPTION_PORT as u64),
    ("bytes above an error code", PagedRun::ERROR_CODE),
    ("entry of the root", ROOT_ENTRY.1),
];
