//! The vCPU: one memory access or hypercall at a time, from a code page in memory slot 31.
//!
//! As the recordings have it, the vCPU runs in 32-bit protected mode with paging off, and ends with `hlt`. A KVM without hardware
//! virtualisation (PVM) emulates such code through the slots' host addresses and never looks into a guest_memfd; there the
//! access is made at privilege 3 in long mode, over an identity map in slot 30 behind it, and ends with a store to a
//! [door](DOOR) where no slot is. [`GuestMode`] says which.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{
    CpuId, KVM_EXIT_HLT, KVM_EXIT_HYPERCALL, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_UNKNOWN, kvm_mp_state, kvm_regs, kvm_run, kvm_run__bindgen_ty_1,
    kvm_segment, kvm_sregs, kvm_vcpu_events,
};

use crate::ioctl::*;
use crate::memory::Buffer;
use crate::process::last_errno;
use crate::{Failure, Process, Region, Result, paged};

pub(crate) const PAGE: u64 = 4096;
/// `mov [ecx], ebx; add ecx, 4096; sub esi, 1; jnz` back. 64-bit code does the same: writing `ecx` clears the upper half.
const TOUCH_LOOP: &[u8] = &[0x89, 0x19, 0x81, 0xc1, 0, 0x10, 0, 0, 0x83, 0xee, 1, 0x75, 0xf3];
/// Where the code page lies in the guest, and in which slot.
pub(crate) const CODE_GPA: u64 = 0xf000_0000;
const CODE_SLOT: u32 = 31;
/// Where the tables of the identity map lie in long mode, in which slot, and how many there can be. The code's slot may have eight pages.
const TABLES_GPA: u64 = CODE_GPA + paged::PAGES * PAGE;
const TABLES_SLOT: u32 = 30;
const TABLES_MAX: u64 = 63;
/// A guest physical address outside every slot, in the code page's 2 MiB: a store there leaves the guest.
const DOOR: u64 = 0xf010_0000;
/// How often the VMM serves further parts of an access that has left the guest, to be rid of it.
const PARTS_MAX: u32 = 16;

/// How a vCPU runs the programs of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMode {
    /// 32-bit protected mode with paging off.
    Protected32,
    /// Long mode, privilege 3, everything mapped one to one; hypercalls are refused.
    Long,
}

/// What the vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestAccess {
    /// `mov ebx, [gpa]`
    Read {
        /// Where.
        gpa: u64,
    },
    /// `mov [gpa], ebx`
    Write {
        /// Where.
        gpa: u64,
        /// What.
        value: u32,
    },
    /// `lock add [gpa], ebx`
    Rmw {
        /// Where.
        gpa: u64,
        /// What is added.
        value: u32,
    },
    /// `mov [gpa], ebx` for the first word of so many pages, one after the other, in a loop.
    Touch {
        /// Where the first page is; all must lie below 4 GiB.
        gpa: u64,
        /// How many.
        pages: u32,
    },
    /// `vmcall` or `vmmcall`
    Hypercall {
        /// `rax`
        nr: u64,
        /// `rbx`, `rcx`, `rdx`, `rsi`
        args: [u64; 4],
        /// What the VMM answers, if it is asked.
        reply: u64,
    },
}

/// How the vCPU left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of struct kvm_run")]
pub enum Left {
    /// The access completed.
    Done,
    Mmio {
        gpa: u64,
        len: u64,
        write: bool,
    },
    /// `rax` is what the guest found after the reply.
    Hypercall {
        nr: u64,
        args: [u64; 6],
        rax: u64,
    },
    MemoryFault {
        flags: u64,
        gpa: u64,
        size: u64,
    },
    InternalError {
        suberror: u32,
    },
    Shutdown,
    Intr,
    Reason(u32),
}

/// What came of one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRun {
    /// The errno of `KVM_RUN`, if it failed.
    pub errno: Option<i32>,
    /// The exit.
    pub left: Left,
    /// `rbx` after it.
    pub rbx: u64,
    /// `rax` after it.
    pub rax: u64,
    /// It did not leave by itself: after [`PATIENCE`](GuestRun::PATIENCE) seconds a signal called it back.
    pub called_back: bool,
}

impl GuestRun {
    /// Seconds after which a vCPU that does not come back is called back.
    pub const PATIENCE: u32 = 3;
}

/// The code page, which the VM's vCPUs share.
#[derive(Debug)]
pub(crate) struct Code {
    hva: u64,
    tables: Option<Tables>,
}

/// The tables of the identity map: memory of this program's, not of the trace's.
#[derive(Debug)]
struct Tables {
    memory: Buffer,
    /// How many are in use. The first is the root.
    used: Cell<u64>,
}

impl Tables {
    fn entry(&self, table: u64, index: u64) -> *mut u64 {
        assert!(table < TABLES_MAX && index < 512);
        self.memory.pointer().cast::<u64>().wrapping_add((table * 512 + index) as usize)
    }

    fn get(&self, table: u64, index: u64) -> u64 {
        // SAFETY: the entry lies in the mapping, which lives; the processor writes to it only while the vCPU runs, which is this thread.
        unsafe { self.entry(table, index).read_volatile() }
    }

    fn set(&self, table: u64, index: u64, value: u64) {
        // SAFETY: as above.
        unsafe { self.entry(table, index).write_volatile(value) }
    }

    /// Maps the 2 MiB around `gpa` one to one, if they are not: entries are only ever added, which needs no flush.
    fn map_identity(&self, gpa: u64) -> Result<()> {
        const PRESENT_RW_USER_ACCESSED: u64 = 0x27;
        const LARGE_DIRTY: u64 = 0xc0;
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        let mut table = 0;
        for shift in [39, 30] {
            let index = gpa >> shift & 511;
            let entry = self.get(table, index);
            table = if entry & 1 == 1 {
                ((entry & ADDRESS) - TABLES_GPA) / PAGE
            } else {
                let new = self.used.get();
                if new == TABLES_MAX {
                    let why = "not done, because the recorder's identity map has no room for another gigabyte";
                    return Err(Failure::Refused(why.into()));
                }
                self.used.set(new + 1);
                self.set(table, index, (TABLES_GPA + new * PAGE) | PRESENT_RW_USER_ACCESSED);
                new
            };
        }
        self.set(table, gpa >> 21 & 511, gpa >> 21 << 21 | PRESENT_RW_USER_ACCESSED | LARGE_DIRTY);
        Ok(())
    }
}

impl Process {
    /// Gives a new vCPU its CPUID, and the VM of the first one its code slot. Neither can fail the creation: the recording program
    /// does not look either.
    pub(crate) fn prepare_vcpu(&mut self, vm: i32, vcpu: i32, paging: bool) {
        if let Ok(mut cpuid) = CpuId::new(256)
            && self.supported_cpuid(&mut cpuid).is_ok()
        {
            // SAFETY: the pointer is that of a kvm_cpuid2 with as many entries as it says.
            unsafe { libc::ioctl(vcpu, KVM_SET_CPUID2, cpuid.as_fam_struct_ptr()) };
        }
        let code = match self.codes.get(&vm) {
            Some(code) => Rc::clone(code),
            None => match self.code_slot(vm, paging) {
                Ok(code) => Rc::new(code),
                Err(_) => return,
            },
        };
        self.codes.insert(vm, Rc::clone(&code));
        self.codes.insert(vcpu, code);
    }

    fn supported_cpuid(&self, cpuid: &mut CpuId) -> Result<()> {
        // SAFETY: the pointer is that of a kvm_cpuid2 with as many entries as it says; KVM writes no more.
        let result = unsafe { libc::ioctl(self.kvm(), KVM_GET_SUPPORTED_CPUID, cpuid.as_mut_fam_struct_ptr()) };
        if result < 0 { Err(last_errno()) } else { Ok(()) }
    }

    /// The width of guest physical addresses that this machine's vCPUs have, from CPUID.
    pub fn maxphyaddr(&self) -> Option<u32> {
        let mut cpuid = CpuId::new(256).ok()?;
        self.supported_cpuid(&mut cpuid).ok()?;
        cpuid.as_slice().iter().find(|entry| entry.function == 0x8000_0008).map(|entry| entry.eax & 0xff)
    }

    fn code_slot(&mut self, vm: i32, paging: bool) -> Result<Code> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let size = if paging { paged::PAGES * PAGE } else { PAGE };
        let hva = self.mmap(None, size, prot, false, 0, PAGE)?;
        self.store(hva, 0xf4f4_f4f4)?;
        if paging {
            self.write_paged_slot(hva)?;
        }
        let slot = |slot, guest_phys_addr, memory_size, userspace_addr| Region {
            slot,
            guest_phys_addr,
            memory_size,
            userspace_addr,
            ..Region::default()
        };
        // The slot may be taken, or its place; the vCPUs then run what is there.
        self.set_user_memory_region(vm, &slot(CODE_SLOT, CODE_GPA, size, hva)).ok();
        let mut tables = None;
        if self.mode == GuestMode::Long {
            let memory = Buffer::new((TABLES_MAX * PAGE) as usize)?;
            let region = slot(TABLES_SLOT, TABLES_GPA, TABLES_MAX * PAGE, memory.pointer() as u64);
            set_region(vm, &region).ok();
            tables = Some(Tables { memory, used: Cell::new(1) });
        }
        Ok(Code { hva, tables })
    }

    /// Makes one vCPU do one thing, until it leaves the guest.
    ///
    /// # Errors
    /// The errno of `KVM_RUN` on what is no vCPU; refused if the mode cannot reach the address.
    pub fn run_guest(&mut self, vcpu: i32, access: GuestAccess) -> Result<GuestRun> {
        let Some(code) = self.codes.get(&vcpu).cloned() else {
            return Err(with_number(vcpu, KVM_RUN, 0).err().unwrap_or(Failure::Errno(libc::ENOTTY)));
        };
        // A VM has a code page too, and is none.
        let Ok(run) = RunPage::map(vcpu, self.vcpu_mmap_size) else {
            return Err(with_number(vcpu, KVM_RUN, 0).err().unwrap_or(Failure::Errno(libc::ENOTTY)));
        };
        let long = self.mode == GuestMode::Long;
        let program = if long { self.long_program(&code, access)? } else { self.short_program(access)? };
        // The trace may have taken the code page away; the vCPU then finds what is there.
        self.write_code(&code, &program).ok();
        self.set_registers(vcpu, long, Some(access))?;
        let mut result = run.enter(vcpu);
        if let (Ok(()), GuestAccess::Hypercall { reply, .. }, KVM_EXIT_HYPERCALL) = (&result, access, run.reason()) {
            let left = run.left();
            run.reply(reply);
            result = run.enter(vcpu);
            let regs = registers(vcpu)?;
            let Left::Hypercall { nr, args, .. } = left else { unreachable!("the exit is a hypercall") };
            return Ok(GuestRun {
                called_back: called_back(&result),
                errno: result.err(),
                left: Left::Hypercall { nr, args, rax: regs.rax },
                rbx: regs.rbx,
                rax: regs.rax,
            });
        }
        let mut left = run.left();
        let through_the_door = long && matches!(left, Left::Mmio { gpa: DOOR, write: true, .. });
        if through_the_door || run.reason() == KVM_EXIT_HLT {
            left = Left::Done;
        }
        let reason = run.reason();
        let regs = registers(vcpu)?;
        let called_back = called_back(&result);
        if reason == KVM_EXIT_MMIO {
            run.abandon(vcpu);
        }
        Ok(GuestRun { errno: result.err(), left, rbx: regs.rbx, rax: regs.rax, called_back })
    }

    /// The program in 32-bit mode.
    fn short_program(&self, access: GuestAccess) -> Result<Vec<u8>> {
        let (opcode, gpa): (&[u8], u64) = match access {
            GuestAccess::Read { gpa } => (&[0x8b, 0x1d], gpa),
            GuestAccess::Write { gpa, .. } => (&[0x89, 0x1d], gpa),
            GuestAccess::Rmw { gpa, .. } => (&[0xf0, 0x01, 0x1d], gpa),
            GuestAccess::Touch { gpa, pages } => {
                reachable_touch(gpa, pages)?;
                return Ok([TOUCH_LOOP, &[0xf4; 4]].concat());
            }
            GuestAccess::Hypercall { .. } => return Ok([hypercall_instruction(), &[0xf4; 4]].concat()),
        };
        let Ok(gpa) = u32::try_from(gpa) else {
            return Err(Failure::Refused(format!("not done, because 32-bit code does not reach {gpa:#x}")));
        };
        Ok([opcode, &gpa.to_le_bytes(), &[0xf4; 4]].concat())
    }

    /// The program in long mode, and the tables that it needs.
    fn long_program(&mut self, code: &Code, access: GuestAccess) -> Result<Vec<u8>> {
        let (opcode, gpa): (&[u8], u64) = match access {
            GuestAccess::Read { gpa } => (&[0x8b, 0x19], gpa),
            GuestAccess::Write { gpa, .. } => (&[0x89, 0x19], gpa),
            GuestAccess::Rmw { gpa, .. } => (&[0xf0, 0x01, 0x19], gpa),
            GuestAccess::Touch { gpa, pages } => {
                reachable_touch(gpa, pages)?;
                let tables = code.tables.as_ref().expect("a VM in long mode has tables");
                (0..u64::from(pages)).step_by(512).try_for_each(|page| tables.map_identity(gpa + page * PAGE))?;
                (TOUCH_LOOP, gpa + u64::from(pages.max(1) - 1) * PAGE)
            }
            GuestAccess::Hypercall { .. } => {
                // At privilege 3 KVM would only say that it is forbidden, and its emulator of privilege 0 does not end it.
                let why =
                    "not done, because a KVM without hardware virtualisation takes no hypercall from such a guest";
                return Err(Failure::Refused(why.into()));
            }
        };
        let reach = self.maxphyaddr().unwrap_or(36).min(47);
        if gpa.saturating_add(4) > 1 << reach {
            return Err(Failure::Refused(format!(
                "not done, because the vCPU has {reach} address bits, and not {gpa:#x}"
            )));
        }
        let Some(tables) = &code.tables else { unreachable!("a VM in long mode has tables") };
        for address in [CODE_GPA, gpa, gpa + 3] {
            tables.map_identity(address)?;
        }
        // mov [rdx], eax: the door. hlt, should somebody have put a slot there.
        Ok([opcode, &[0x89, 0x02], &[0xf4; 4]].concat())
    }

    pub(crate) fn write_code(&mut self, code: &Code, program: &[u8]) -> Result<()> {
        for (i, word) in (0u64..).zip(program.chunks(4)) {
            let mut bytes = [0xf4; 4];
            bytes[..word.len()].copy_from_slice(word);
            self.store(code.hva + i * 4, u32::from_le_bytes(bytes))?;
        }
        Ok(())
    }

    /// Registers for an access, or just paging switched off.
    pub(crate) fn set_registers(&mut self, vcpu: i32, long: bool, access: Option<GuestAccess>) -> Result<()> {
        // What an earlier exit left behind: a triple fault, an exception on its way.
        // A KVM that has no such state has nothing to clear.
        let mut state = kvm_mp_state { mp_state: 0 };
        with_struct(vcpu, KVM_SET_MP_STATE, &mut state).ok();
        with_struct(vcpu, KVM_SET_VCPU_EVENTS, &mut kvm_vcpu_events::default()).ok();
        let mut sregs = kvm_sregs::default();
        with_struct(vcpu, KVM_GET_SREGS, &mut sregs)?;
        let privilege = if long { 3 } else { 0 };
        let segment = |selector: u16, type_: u8| kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector: selector | u16::from(privilege),
            type_,
            present: 1,
            dpl: privilege,
            db: 1,
            s: 1,
            l: 0,
            g: 1,
            ..Default::default()
        };
        let data = segment(0x10, 3);
        sregs.cs = segment(0x8, 11);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x11, 0, 0, 0);
        if long {
            (sregs.cs.l, sregs.cs.db) = (1, 0);
            // PE, MP, ET, NE, WP, AM and PG; PAE; LME and LMA.
            (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8005_0033, TABLES_GPA, 0x20, 0x500);
        }
        with_struct(vcpu, KVM_SET_SREGS, &mut sregs)?;
        let mut regs = kvm_regs { rip: CODE_GPA, rflags: 2, ..Default::default() };
        match access {
            None => {}
            Some(GuestAccess::Read { gpa }) => regs.rcx = gpa,
            Some(GuestAccess::Write { gpa, value } | GuestAccess::Rmw { gpa, value }) => {
                (regs.rcx, regs.rbx) = (gpa, value.into());
            }
            Some(GuestAccess::Touch { gpa, pages }) => (regs.rcx, regs.rbx, regs.rsi) = (gpa, 1, pages.into()),
            Some(GuestAccess::Hypercall { nr, args, .. }) => {
                (regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi) = (nr, args[0], args[1], args[2], args[3]);
            }
        }
        if long {
            regs.rdx = DOOR;
        }
        with_struct(vcpu, KVM_SET_REGS, &mut regs).map(drop)
    }
}

/// Refuses a loop over pages that 32-bit registers do not reach, or over none.
fn reachable_touch(gpa: u64, pages: u32) -> Result<()> {
    let end = gpa.checked_add(u64::from(pages) * PAGE);
    if pages == 0 || end.is_none_or(|end| end > 1 << 32) {
        return Err(Failure::Refused(format!("not done, because no loop goes over {pages} pages from {gpa:#x}")));
    }
    Ok(())
}

/// Whether a run ended because it took too long. Without the alarm it was the trace itself, which may have mapped and written the vCPU's
/// `immediate_exit`.
pub(crate) fn called_back(result: &std::result::Result<(), i32>) -> bool {
    *result == Err(libc::EINTR) && RANG.load(Ordering::Relaxed)
}

pub(crate) fn registers(vcpu: i32) -> Result<kvm_regs> {
    let mut regs = kvm_regs::default();
    with_struct(vcpu, KVM_GET_REGS, &mut regs)?;
    Ok(regs)
}

/// `vmmcall` on AMD's processors, `vmcall` on others.
fn hypercall_instruction() -> &'static [u8] {
    let vendor = std::arch::x86_64::__cpuid(0);
    let is_amd = vendor.ebx == u32::from_le_bytes(*b"Auth") || vendor.ebx == u32::from_le_bytes(*b"Hygo");
    if is_amd { &[0x0f, 0x01, 0xd9] } else { &[0x0f, 0x01, 0xc1] }
}

/// A vCPU's `struct kvm_run`, mapped.
pub(crate) struct RunPage {
    run: *mut kvm_run,
    len: usize,
}

impl RunPage {
    pub(crate) fn map(vcpu: i32, len: usize) -> Result<RunPage> {
        if len < size_of::<kvm_run>() {
            return Err(Failure::Refused("struct kvm_run is shorter than it ever was".into()));
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel finds free space.
        let run = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, vcpu, 0) };
        if run == libc::MAP_FAILED { Err(last_errno()) } else { Ok(RunPage { run: run.cast(), len }) }
    }

    /// `KVM_RUN`; the errno if it fails. The alarm calls a vCPU back that never leaves.
    pub(crate) fn enter(&self, vcpu: i32) -> std::result::Result<(), i32> {
        on_alarm_interrupt();
        RANG.store(false, Ordering::Relaxed);
        // SAFETY: an alarm's handler does nothing but say so.
        unsafe { libc::alarm(GuestRun::PATIENCE) };
        let result = with_number(vcpu, KVM_RUN, 0);
        // SAFETY: as above.
        unsafe { libc::alarm(0) };
        match result {
            Ok(_) => Ok(()),
            Err(Failure::Errno(errno)) => Err(errno),
            Err(_) => Err(0),
        }
    }

    pub(crate) fn reason(&self) -> u32 {
        // SAFETY: the mapping lives, and KVM writes to it only in `enter`.
        unsafe { (*self.run).exit_reason }
    }

    /// What an exit says; each fills the member of the union that is read for it.
    pub(crate) fn data(&self) -> &kvm_run__bindgen_ty_1 {
        // SAFETY: as above.
        unsafe { &(*self.run).__bindgen_anon_1 }
    }

    pub(crate) fn left(&self) -> Left {
        let data = self.data();
        match self.reason() {
            KVM_EXIT_UNKNOWN => Left::Reason(0),
            KVM_EXIT_MMIO => {
                // SAFETY: see above.
                let mmio = unsafe { data.mmio };
                Left::Mmio { gpa: mmio.phys_addr, len: mmio.len.into(), write: mmio.is_write != 0 }
            }
            KVM_EXIT_HYPERCALL => {
                // SAFETY: see above.
                let call = unsafe { data.hypercall };
                Left::Hypercall { nr: call.nr, args: call.args, rax: 0 }
            }
            KVM_EXIT_MEMORY_FAULT => {
                // SAFETY: see above.
                let fault = unsafe { data.memory_fault };
                Left::MemoryFault { flags: fault.flags, gpa: fault.gpa, size: fault.size }
            }
            KVM_EXIT_INTERNAL_ERROR => {
                // SAFETY: see above.
                Left::InternalError { suberror: unsafe { data.internal.suberror } }
            }
            KVM_EXIT_SHUTDOWN => Left::Shutdown,
            KVM_EXIT_INTR => Left::Intr,
            other => Left::Reason(other),
        }
    }

    /// Answers a hypercall.
    fn reply(&self, value: u64) {
        // SAFETY: the exit is a hypercall, whose reply is read when the vCPU goes on.
        unsafe { (*self.run).__bindgen_anon_1.hypercall.ret = value };
    }

    /// Lets KVM finish an access that the VMM was asked for, without going back into the guest.
    pub(crate) fn abandon(&self, vcpu: i32) {
        // SAFETY: as in `reason`.
        unsafe { (*self.run).immediate_exit = 1 };
        for _ in 0..PARTS_MAX {
            if self.enter(vcpu).is_err() {
                break;
            }
        }
        // SAFETY: as in `reason`.
        unsafe { (*self.run).immediate_exit = 0 };
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's.
        unsafe { libc::munmap(self.run.cast(), self.len) };
    }
}

/// The alarm of the last [`RunPage::enter`] has rung.
static RANG: AtomicBool = AtomicBool::new(false);

/// Gives `SIGALRM` a handler that does nothing but interrupt, and sets [`RANG`].
fn on_alarm_interrupt() {
    extern "C" fn rang(_: libc::c_int) {
        RANG.store(true, Ordering::Relaxed);
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is valid; without SA_RESTART the call is interrupted.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = rang as *const () as usize;
            assert_eq!(libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()), 0);
        }
    });
}
