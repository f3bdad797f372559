//! The worker: operations in, answers out, one JSON line each, until its input ends.
//!
//! It performs them on the machine's own KVM as the recording program did: names stand for descriptors and addresses, a name that
//! was never given is descriptor -1 or address 0. [`interp::World`](crate::interp::World) is the same thing for the simulator.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::path::Path;

use anyhow::Context;
use live_kvm::{Failure, GuestAccess, GuestMode, GuestRun, Left, PagedKind, Process, Region};

use super::{LiveOutcome, Reply, machine};
use crate::ops::json::recorded_style;
use crate::ops::{
    Advice, Answer, Detail, Errno, Exit, FdRef, FileStat, GuestPaged, HvaRef, Name, Op, PagedAccess, Prot, Signal,
};

/// What a name stands for when nothing was given it.
const NO_FD: i32 = -1;

/// What a worker is started with.
#[derive(Clone, Debug)]
pub struct Options<'a> {
    /// The device, usually `/dev/kvm`.
    pub device: &'a Path,
    /// How vCPUs run their programs.
    pub mode: GuestMode,
    /// Bytes that one call may make the kernel allocate.
    pub memory_max: u64,
    /// Seconds of processor time after which the kernel ends the process.
    pub cpu_seconds: u64,
}

/// Serves operations from `input` until it ends.
///
/// # Errors
/// If there is no such device, a line is no operation, or the pipe breaks.
pub fn serve(options: &Options<'_>, input: impl BufRead, out: &mut dyn Write) -> anyhow::Result<()> {
    live_kvm::limit_process(options.cpu_seconds, 4096).context("the worker's limits")?;
    let mut live = Live::open(options)?;
    // The parent waits for this line before it starts its clock.
    writeln!(out, "{{}}")?;
    out.flush()?;
    for line in input.lines() {
        let op: Op = serde_json::from_str(&line?).context("no operation")?;
        let LiveOutcome { answer, note } = live.execute(&op);
        let reply = Reply { ret: answer.map(|answer| answer.to_json()), note };
        writeln!(out, "{}", recorded_style(&reply))?;
        out.flush()?;
    }
    Ok(())
}

/// Prints what this machine's KVM is, as one JSON line.
///
/// # Errors
/// If there is no such device.
pub fn probe(device: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "{}", recorded_style(&machine::probe(device)?))?;
    Ok(out.flush()?)
}

/// Opens the device.
pub(super) fn open(device: &Path, mode: GuestMode, memory_max: u64) -> anyhow::Result<Process> {
    Process::open(device, mode, memory_max).with_context(|| format!("cannot use {} as KVM", device.display()))
}

/// The process, and the names of what it made.
struct Live {
    process: Process,
    fds: BTreeMap<Name, i32>,
    maps: BTreeMap<Name, u64>,
    /// What there is to say beside the answer to this operation.
    note: Option<String>,
}

/// An answer, or why there is none.
type Performed = Result<Answer, Failure>;

impl Live {
    fn open(options: &Options<'_>) -> anyhow::Result<Live> {
        let process = open(options.device, options.mode, options.memory_max)?;
        Ok(Live { process, fds: BTreeMap::new(), maps: BTreeMap::new(), note: None })
    }

    fn execute(&mut self, op: &Op) -> LiveOutcome {
        let unknown = |what: &str, number: i32| LiveOutcome {
            answer: None,
            note: Some(format!("the kernel answered with {what} {number}, which has no name here")),
        };
        let answer = match self.perform(op) {
            Ok(answer) => answer,
            Err(Failure::Errno(code)) => match Errno::from_code(code) {
                Some(errno) => Answer::errno(errno),
                None => return unknown("error", code),
            },
            // The numbers of SIGBUS and SIGSEGV on x86.
            Err(Failure::Signal(7)) => Answer::Signal(Signal::BUS),
            Err(Failure::Signal(11)) => Answer::Signal(Signal::SEGV),
            Err(Failure::Signal(number)) => return unknown("signal", number),
            Err(Failure::Refused(why)) => return LiveOutcome { answer: None, note: Some(why) },
        };
        LiveOutcome { answer: Some(answer), note: self.note.take() }
    }

    fn fd(&self, name: &Name) -> i32 {
        self.fds.get(name).copied().unwrap_or(NO_FD)
    }

    fn address(&self, map: &Name, offset: u64) -> u64 {
        self.maps.get(map).copied().unwrap_or(0).wrapping_add(offset)
    }

    fn hva(&self, hva: &HvaRef) -> u64 {
        match hva {
            HvaRef::Map { map, offset } => self.address(map, *offset),
            HvaRef::Raw(address) => *address,
        }
    }

    fn name_fd(&mut self, name: &Name, fd: i32) -> Performed {
        self.fds.insert(name.clone(), fd);
        Ok(Answer::OK)
    }

    fn perform(&mut self, op: &Op) -> Performed {
        let done = |()| Answer::OK;
        let detail = |detail| Answer::Ok { value: 0, detail };
        match op {
            Op::CreateVm { vm, r#type } => {
                let fd = self.process.create_vm(*r#type)?;
                self.name_fd(vm, fd)
            }
            Op::CreateVcpu { vm, vcpu, index, paging } => {
                let fd = self.process.create_vcpu(self.fd(vm), *index, *paging)?;
                self.name_fd(vcpu, fd)
            }
            Op::CheckExtension { vm, cap } => {
                let fd = vm.as_ref().map_or(self.process.kvm(), |vm| self.fd(vm));
                self.process.check_extension(fd, *cap).map(Answer::ok)
            }
            Op::EnableCap { vm, cap, arg } => self.process.enable_cap(self.fd(vm), *cap as u32, *arg).map(done),
            Op::CreateGuestMemfd { vm, fd, size, flags } => {
                let new = self.process.create_guest_memfd(self.fd(vm), *size, *flags)?;
                self.name_fd(fd, new)
            }
            Op::MemfdCreate { fd, size, flags } => {
                let new = self.process.memfd_create(*size, *flags as u32)?;
                self.name_fd(fd, new)
            }
            Op::SetUserMemoryRegion { vm, slot, flags, gpa, size, hva } => {
                let region = Region {
                    slot: *slot as u32,
                    flags: *flags as u32,
                    guest_phys_addr: *gpa,
                    memory_size: *size,
                    userspace_addr: self.hva(hva),
                    ..Region::default()
                };
                self.process.set_user_memory_region(self.fd(vm), &region).map(done)
            }
            Op::SetUserMemoryRegion2 { vm, slot, flags, gpa, size, hva, guest_memfd, guest_memfd_offset } => {
                let region = Region {
                    slot: *slot as u32,
                    flags: *flags as u32,
                    guest_phys_addr: *gpa,
                    memory_size: *size,
                    userspace_addr: self.hva(hva),
                    guest_memfd_offset: *guest_memfd_offset,
                    guest_memfd: match guest_memfd {
                        FdRef::Name(name) => self.fd(name) as u32,
                        FdRef::Raw(number) => *number as u32,
                    },
                };
                self.process.set_user_memory_region2(self.fd(vm), &region).map(done)
            }
            Op::SetMemoryAttributes { vm, gpa, size, attributes, flags } => {
                self.process.set_memory_attributes(self.fd(vm), *gpa, *size, *attributes, *flags).map(done)
            }
            Op::PreFaultMemory { vcpu, gpa, size, flags } => {
                let (result, gpa, size) = self.process.pre_fault_memory(self.fd(vcpu), *gpa, *size, *flags)?;
                let detail = Detail::Range { gpa, size };
                match result {
                    Ok(()) => Ok(Answer::Ok { value: 0, detail }),
                    Err(Failure::Errno(code)) if let Some(errno) = Errno::from_code(code) => {
                        Ok(Answer::Failed { errno, detail })
                    }
                    Err(failure) => Err(failure),
                }
            }
            Op::GetDirtyLog { vm, slot, npages } => {
                self.process.get_dirty_log(self.fd(vm), *slot as u32, *npages).map(|bits| detail(Detail::Dirty(bits)))
            }
            Op::ClearDirtyLog { vm, slot, first, npages, dirty } => {
                self.process.clear_dirty_log(self.fd(vm), *slot as u32, *first, *npages as u32, dirty).map(done)
            }
            Op::Fallocate { fd, mode, offset, len } => {
                self.process.fallocate(self.fd(fd), *mode as u32, *offset, *len).map(done)
            }
            Op::Ftruncate { fd, size } => self.process.ftruncate(self.fd(fd), *size).map(done),
            Op::Fstat { fd } => self.process.fstat(self.fd(fd)).map(|stat| {
                let live_kvm::Stat { size, blocks, blksize, mode, nlink } = stat;
                detail(Detail::Stat(FileStat { size, blocks, blksize, mode, nlink }))
            }),
            Op::Pread { fd, offset, len } => self.process.pread(self.fd(fd), *offset, *len).map(Answer::ok),
            Op::Pwrite { fd, offset, len } => self.process.pwrite(self.fd(fd), *offset, *len).map(Answer::ok),
            Op::Lseek { fd, offset, whence } => {
                let whence = u32::try_from(*whence).unwrap_or(u32::MAX);
                self.process.lseek(self.fd(fd), *offset, whence).map(Answer::ok)
            }
            Op::Dup { fd, r#as } => {
                let new = self.process.dup(self.fd(fd))?;
                self.name_fd(r#as, new)
            }
            Op::Close { fd } => {
                let number = self.fds.remove(fd).unwrap_or(NO_FD);
                self.process.close(number).map(done)
            }
            Op::Mmap { map, fd, len, prot, shared, offset, align } => {
                let fd = fd.as_ref().map(|fd| self.fd(fd));
                let address = self.process.mmap(fd, *len, prot_bits(*prot), *shared, *offset, *align)?;
                self.maps.insert(map.clone(), address);
                Ok(Answer::OK)
            }
            Op::Munmap { map, offset, len } => self.process.munmap(self.address(map, *offset), *len).map(done),
            Op::Mprotect { map, offset, len, prot } => {
                self.process.mprotect(self.address(map, *offset), *len, prot_bits(*prot)).map(done)
            }
            Op::Madvise { map, offset, len, advice } => {
                self.process.madvise(self.address(map, *offset), *len, advice_number(*advice)).map(done)
            }
            Op::Mincore { map, offset, len } => {
                let pages = self.process.mincore(self.address(map, *offset), *len)?;
                Ok(detail(Detail::Resident(pages)))
            }
            Op::Mlock { map, offset, len } => self.process.mlock(self.address(map, *offset), *len).map(done),
            Op::PageIdleMark { .. } | Op::PageIdleRead { .. } | Op::NxHugePageRecovery { .. } => {
                Err(Failure::Refused(format!("{}: not done, because it concerns the whole machine", op.name())))
            }
            Op::HostRead { map, offset } => {
                let value = self.process.load(self.address(map, *offset))?;
                Ok(detail(Detail::Value(value.into())))
            }
            Op::HostWrite { map, offset, value } => {
                self.process.store(self.address(map, *offset), *value as u32).map(done)
            }
            Op::HostRead64 { map, offset } => {
                Ok(detail(Detail::Value(self.process.load64(self.address(map, *offset))?)))
            }
            Op::HostWrite64 { map, offset, value } => {
                self.process.store64(self.address(map, *offset), *value).map(done)
            }
            Op::HostFill64 { map, offset, len, value } => {
                self.process.fill64(self.address(map, *offset), *len, *value).map(done)
            }
            Op::GuestRead { vcpu, gpa } => self.guest(vcpu, GuestAccess::Read { gpa: *gpa }, 0),
            Op::GuestWrite { vcpu, gpa, value } => {
                self.guest(vcpu, GuestAccess::Write { gpa: *gpa, value: *value as u32 }, 0)
            }
            Op::GuestRmw { vcpu, gpa, value } => {
                self.guest(vcpu, GuestAccess::Rmw { gpa: *gpa, value: *value as u32 }, 0)
            }
            Op::GuestHypercall { vcpu, nr, args, reply } => {
                let arg = |i: usize| args.get(i).copied().unwrap_or(0);
                let access = GuestAccess::Hypercall { nr: *nr, args: [arg(0), arg(1), arg(2), arg(3)], reply: *reply };
                self.guest(vcpu, access, args.len())
            }
            Op::Snp(_) | Op::Tdx(_) | Op::Pkvm(_) | Op::Protected(_) => Err(Failure::Refused(format!(
                "{} is of protected VMs, which are not made on a real machine",
                op.name()
            ))),
            Op::GuestPaged(op) => self.guest_paged(op),
        }
    }

    fn guest_paged(&mut self, op: &GuestPaged) -> Performed {
        let &GuestPaged { ref vcpu, ref root_map, root_offset, cr3, cpl, access, gva, value, wp, smep, smap, nxe, ac } =
            op;
        let (offset, entry) = live_kvm::ROOT_ENTRY;
        self.process.store64(self.address(root_map, root_offset).wrapping_add(offset), entry)?;
        let kind = match access {
            PagedAccess::Read => PagedKind::Read,
            PagedAccess::Write => PagedKind::Write,
            PagedAccess::ReadModifyWrite => PagedKind::ReadModifyWrite,
            PagedAccess::Execute => PagedKind::Execute,
        };
        let access = live_kvm::PagedAccess { kind, gva, value, cr3, user: cpl == 3, wp, smep, smap, nxe, ac };
        let paged = self.process.run_paged(self.fd(vcpu), access)?;
        if let Some(vector) = paged.vector() {
            let (vector, error) = (u64::from(vector), paged.error.unwrap_or(0));
            return Ok(Answer::exit(Exit::Exception { vector, error, cr2: (vector == 14).then_some(paged.cr2) }));
        }
        let done = Exit::Done { value: (kind == PagedKind::Read).then_some(paged.run.rbx) };
        self.exit(&paged.run, done, 0)
    }

    fn guest(&mut self, vcpu: &Name, access: GuestAccess, args: usize) -> Performed {
        let run = self.process.run_guest(self.fd(vcpu), access)?;
        let value = match access {
            GuestAccess::Read { .. } => Some(run.rbx & 0xffff_ffff),
            GuestAccess::Hypercall { .. } => Some(run.rax),
            GuestAccess::Write { .. } | GuestAccess::Rmw { .. } | GuestAccess::Touch { .. } => None,
        };
        self.exit(&run, Exit::Hlt { value }, args)
    }

    /// The answer for what a vCPU left with; `done` if it came to its end.
    fn exit(&mut self, run: &GuestRun, done: Exit, args: usize) -> Performed {
        let errno = match run.errno {
            None => None,
            Some(code) => Some(Errno::from_code(code).ok_or(Failure::Errno(code))?),
        };
        if run.called_back {
            let seconds = GuestRun::PATIENCE;
            self.note = Some(format!(
                "the vCPU did not leave the guest for {seconds} s; a signal of the recorder called it back"
            ));
        }
        let exit = match run.left {
            Left::Done => done,
            Left::Mmio { gpa, len, write } => Exit::Mmio { gpa, len, write },
            Left::Hypercall { nr, args: all, rax } => {
                Exit::Hypercall { nr, args: all[..args.clamp(3, 4)].to_vec(), rax: Some(rax) }
            }
            Left::MemoryFault { flags, gpa, size } => Exit::MemoryFault { flags, gpa, size },
            Left::InternalError { suberror } => Exit::InternalError { suberror: Some(suberror.into()), data: None },
            Left::Shutdown => Exit::Shutdown,
            Left::Intr => Exit::Intr,
            Left::Reason(number) => Exit::Reason(number.into()),
        };
        Ok(Answer::Exit { errno, exit })
    }
}

/// `PROT_` bits, which the letters have in the same places.
fn prot_bits(prot: Prot) -> i32 {
    i32::from(prot.bits())
}

/// `MADV_` numbers.
fn advice_number(advice: Advice) -> i32 {
    match advice {
        Advice::Normal => 0,
        Advice::Random => 1,
        Advice::Sequential => 2,
        Advice::Willneed => 3,
        Advice::Dontneed => 4,
        Advice::Free => 8,
        Advice::Remove => 9,
        Advice::Hugepage => 14,
        Advice::Nohugepage => 15,
        Advice::Cold => 20,
        Advice::Pageout => 21,
        Advice::PopulateRead => 22,
        Advice::PopulateWrite => 23,
        Advice::Collapse => 25,
        Advice::Hwpoison => 100,
        Advice::SoftOffline => 101,
    }
}

/// The standard input and output of a worker process.
///
/// # Errors
/// As [`serve`].
pub fn serve_stdio(options: &Options<'_>) -> anyhow::Result<()> {
    serve(options, io::stdin().lock(), &mut io::stdout().lock())
}
