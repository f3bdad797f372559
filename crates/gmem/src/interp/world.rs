//! The state that operations work on: a host, a process, and the names of what the process made.

use std::collections::BTreeMap;

use sim_kernel::fs::RawFd;
use sim_kernel::mm::{Advice, Prot};
use sim_kernel::{Cx, Hva, PAGE_SIZE};

use super::protected::Region;
use crate::invariants::contents::Contents;
use crate::kvm::config::MachineConfig;
use crate::kvm::guest_memfd::{GmemFile, GmemInode};
use crate::kvm::host::Host;
use crate::kvm::ioctl;
use crate::kvm::process::{Mapped, Process, Sharing};
use crate::kvm::uapi::*;
use crate::kvm::vcpu::{Vcpu, VcpuFile};
use crate::kvm::vm::{Vm, VmFile};
use crate::ops::{self, Answer, Detail, FdRef, FileStat, HvaRef, Name, Op};
use std::sync::Arc;

/// What a name stands for when nothing was given it.
const NO_FD: RawFd = -1;
/// Bytes that one read or write call of the interpreter moves; longer requests are made in pieces.
const PIECE: u64 = 1 << 20;
/// Dirty pages that an answer lists; the process has no memory for a longer list. A list of everything that a slot of a terabyte may have
/// dirty, which needs no more than a bitmap in the kernel, would take gigabytes.
const LISTED_MAX: u64 = 1 << 22;

/// The process of a trace or a scenario.
#[derive(Debug)]
pub struct World {
    pub(super) process: Arc<Process>,
    kvm: RawFd,
    pub(super) names: parking_lot::Mutex<Names>,
    /// Judges what is read, if somebody wants to know.
    contents: Option<parking_lot::Mutex<Contents>>,
}

/// What the process's names stand for.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) fds: BTreeMap<Name, RawFd>,
    maps: BTreeMap<Name, Hva>,
    /// The descriptor of `/dev/sev`, once it was needed.
    pub(super) sev: Option<RawFd>,
    /// Memory of protected guests.
    pub(super) regions: Vec<Region>,
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub enum Named {
    /// A VM.
    Vm(Arc<Vm>),
    /// A vCPU.
    Vcpu(Arc<Vcpu>),
    /// The memory of a guest_memfd.
    GuestMemfd(Arc<GmemInode>),
}

impl World {
    /// A new host with one process that has `/dev/kvm` open.
    pub fn new(cx: &Cx<'_>, config: MachineConfig) -> World {
        World::on(cx, &Host::new(cx, config))
    }

    fn on(cx: &Cx<'_>, host: &Arc<Host>) -> World {
        let process = host.process(cx);
        let kvm = ioctl::open_kvm(cx, &process).expect("a new process has descriptors left");
        World { process, kvm, names: Default::default(), contents: None }
    }

    /// The same, with oracles that fail an assertion when something is read that no order of the writes allows, or a guest's write to a slot that is
    /// logged is one that user space is never told of.
    ///
    /// ```
    /// use gmem::interp::World;
    /// use gmem::scenario::parse_line;
    /// use gmem::{Machine, MachineConfig};
    ///
    /// Machine::new(MachineConfig::default()).run(|cx, _| {
    ///     let world = World::checked(cx, MachineConfig::default());
    ///     for line in ["mmap m0 len=4K", "host_write m0 0 7", "host_read m0"] {
    ///         let line = parse_line(line).unwrap();
    ///         world.execute(cx, &line.op);
    ///     }
    /// });
    /// ```
    pub fn checked(cx: &Cx<'_>, config: MachineConfig) -> World {
        World { contents: Some(Default::default()), ..World::watched(cx, config) }
    }

    /// [`World::new`] on a host that watches its guests ([`Host::watch_guests`]); what is read is judged by nobody.
    pub fn watched(cx: &Cx<'_>, config: MachineConfig) -> World {
        let host = Host::new(cx, config);
        host.watch_guests();
        World::on(cx, &host)
    }

    /// The process.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// The descriptor that a name stands for, -1 if none.
    pub fn fd(&self, name: &Name) -> RawFd {
        self.names.lock().fds.get(name).copied().unwrap_or(NO_FD)
    }

    /// The address that a name stands for, 0 if none.
    pub fn map(&self, name: &Name) -> Hva {
        self.names.lock().maps.get(name).copied().unwrap_or(Hva(0))
    }

    /// The VM of a name, for checkers and reports.
    pub fn vm(&self, cx: &Cx<'_>, name: &Name) -> Option<Arc<crate::kvm::vm::Vm>> {
        ioctl::peek_vm(cx, &self.process, self.fd(name))
    }

    /// Every VM that has a name, by name.
    pub fn vms(&self, cx: &Cx<'_>) -> Vec<(Name, Arc<crate::kvm::vm::Vm>)> {
        let names: Vec<Name> = self.names.lock().fds.keys().cloned().collect();
        names.into_iter().filter_map(|name| self.vm(cx, &name).map(|vm| (name, vm))).collect()
    }

    /// What the process has a name for, by name, without scheduling points: for reports.
    pub fn named(&self) -> Vec<(Name, Named)> {
        let names: Vec<(Name, RawFd)> = self.names.lock().fds.iter().map(|(name, fd)| (name.clone(), *fd)).collect();
        let named = |fd| {
            let file = self.process.fds.peek(fd)?;
            let vm = || file.downcast::<VmFile>().map(|file| Named::Vm(Arc::clone(&file.vm)));
            let vcpu = || file.downcast::<VcpuFile>().map(|file| Named::Vcpu(Arc::clone(&file.vcpu)));
            let gmem = || file.downcast::<GmemFile>().map(|file| Named::GuestMemfd(Arc::clone(file.inode())));
            vm().or_else(vcpu).or_else(gmem)
        };
        names.into_iter().filter_map(|(name, fd)| Some((name, named(fd)?))).collect()
    }

    /// Where the mappings begin that have a name.
    pub fn mappings(&self) -> Vec<(Name, Hva)> {
        self.names.lock().maps.iter().map(|(name, hva)| (name.clone(), *hva)).collect()
    }

    pub(super) fn name_fd(&self, name: &Name, result: Result<RawFd, sim_kernel::Errno>) -> Answer {
        match result {
            Ok(fd) => {
                self.names.lock().fds.insert(name.clone(), fd);
                Answer::OK
            }
            Err(errno) => failed(errno),
        }
    }

    pub(super) fn address(&self, map: &Name, offset: u64) -> Hva {
        Hva(self.map(map).0.wrapping_add(offset))
    }

    pub(super) fn hva(&self, hva: &HvaRef) -> u64 {
        match hva {
            HvaRef::Map { map, offset } => self.address(map, *offset).0,
            HvaRef::Raw(address) => *address,
        }
    }

    /// Performs one operation.
    ///
    /// # Panics
    /// If the simulator breaks an invariant, or the oracle of [`World::checked`] sees that it has.
    pub fn execute(&self, cx: &Cx<'_>, op: &Op) -> Answer {
        let Some(contents) = &self.contents else {
            let answer = self.perform(cx, op);
            cx.operation_done();
            return answer;
        };
        let ticket = contents.lock().begin(op, |name| self.map(name).0);
        let answer = self.perform(cx, op);
        cx.operation_done();
        let judged = contents.lock().end(ticket, op, &answer, |name| self.map(name).0);
        if let Err(wrong) = judged {
            panic!("{wrong}");
        }
        answer
    }

    pub(super) fn perform(&self, cx: &Cx<'_>, op: &Op) -> Answer {
        let p = &*self.process;
        match op {
            Op::CreateVm { vm, r#type } => self.name_fd(vm, ioctl::create_vm(cx, p, self.kvm, *r#type)),
            Op::CreateVcpu { vm, vcpu, index, paging } => self.create_vcpu(cx, vm, vcpu, *index, *paging),
            Op::CheckExtension { vm, cap } => {
                let fd = vm.as_ref().map_or(self.kvm, |vm| self.fd(vm));
                match ioctl::check_extension_on(cx, p, fd, *cap) {
                    Ok(value) => Answer::ok(value as u64),
                    Err(errno) => failed(errno),
                }
            }
            Op::EnableCap { vm, cap, arg } => {
                let cap = kvm_enable_cap { cap: *cap as u32, flags: 0, args: [*arg, 0, 0, 0], pad: [0; 64] };
                unit(ioctl::enable_cap(cx, p, self.fd(vm), &cap))
            }
            Op::CreateGuestMemfd { vm, fd, size, flags } => {
                let args = kvm_create_guest_memfd { size: *size, flags: *flags, reserved: [0; 6] };
                self.name_fd(fd, ioctl::create_guest_memfd(cx, p, self.fd(vm), &args))
            }
            Op::MemfdCreate { fd, size, flags } => self.name_fd(fd, p.memfd_create(cx, *size, *flags as u32)),
            Op::SetUserMemoryRegion { vm, slot, flags, gpa, size, hva } => {
                let region = kvm_userspace_memory_region {
                    slot: *slot as u32,
                    flags: *flags as u32,
                    guest_phys_addr: *gpa,
                    memory_size: *size,
                    userspace_addr: self.hva(hva),
                };
                unit(ioctl::set_user_memory_region(cx, p, self.fd(vm), &region))
            }
            Op::SetUserMemoryRegion2 { vm, slot, flags, gpa, size, hva, guest_memfd, guest_memfd_offset } => {
                let fd = match guest_memfd {
                    FdRef::Name(name) => self.fd(name) as u32,
                    FdRef::Raw(number) => *number as u32,
                };
                let region = kvm_userspace_memory_region2 {
                    slot: *slot as u32,
                    flags: *flags as u32,
                    guest_phys_addr: *gpa,
                    memory_size: *size,
                    userspace_addr: self.hva(hva),
                    guest_memfd_offset: *guest_memfd_offset,
                    guest_memfd: fd,
                    ..Default::default()
                };
                unit(ioctl::set_user_memory_region2(cx, p, self.fd(vm), &region))
            }
            Op::SetMemoryAttributes { vm, gpa, size, attributes, flags } => {
                let args = kvm_memory_attributes { address: *gpa, size: *size, attributes: *attributes, flags: *flags };
                unit(ioctl::set_memory_attributes(cx, p, self.fd(vm), &args))
            }
            Op::PreFaultMemory { vcpu, gpa, size, flags } => {
                let mut range = kvm_pre_fault_memory { gpa: *gpa, size: *size, flags: *flags, padding: [0; 5] };
                let result = ioctl::pre_fault_memory(cx, p, self.fd(vcpu), &mut range);
                with_detail(result, Detail::Range { gpa: range.gpa, size: range.size })
            }
            Op::GetDirtyLog { vm, slot, npages } => match ioctl::get_dirty_log(cx, p, self.fd(vm), *slot as u32) {
                Ok(words) => match set_bits(&words, *npages) {
                    Some(dirty) => Answer::Ok { value: 0, detail: Detail::Dirty(dirty) },
                    None => failed(sim_kernel::Errno::ENOMEM),
                },
                Err(errno) => failed(errno),
            },
            Op::ClearDirtyLog { vm, slot, first, npages, dirty } => {
                let range = kvm_clear_dirty_log { slot: *slot as u32, num_pages: *npages as u32, first_page: *first };
                unit(ioctl::clear_dirty_log(cx, p, self.fd(vm), &range, &words_of(dirty)))
            }
            Op::Fallocate { fd, mode, offset, len } => unit(p.fallocate(cx, self.fd(fd), *mode as u32, *offset, *len)),
            Op::Ftruncate { fd, size } => unit(p.ftruncate(cx, self.fd(fd), *size)),
            Op::Fstat { fd } => match p.fstat(cx, self.fd(fd)) {
                Ok(stat) => {
                    let stat = FileStat {
                        size: stat.size,
                        blocks: stat.blocks,
                        blksize: stat.blksize,
                        mode: u64::from(stat.mode),
                        nlink: u64::from(stat.nlink),
                    };
                    Answer::Ok { value: 0, detail: Detail::Stat(stat) }
                }
                Err(errno) => failed(errno),
            },
            Op::Pread { fd, offset, len } => self.pread(cx, self.fd(fd), *offset, *len),
            Op::Pwrite { fd, offset, len } => self.pwrite(cx, self.fd(fd), *offset, *len),
            Op::Lseek { fd, offset, whence } => {
                let whence = u32::try_from(*whence).unwrap_or(u32::MAX);
                match p.lseek(cx, self.fd(fd), *offset, whence) {
                    Ok(position) => Answer::ok(position),
                    Err(errno) => failed(errno),
                }
            }
            Op::Dup { fd, r#as } => self.name_fd(r#as, p.dup(cx, self.fd(fd))),
            Op::Close { fd } => {
                let number = self.fd(fd);
                self.names.lock().fds.remove(fd);
                unit(p.close(cx, number))
            }
            Op::Mmap { map, fd, len, prot, shared, offset, align } => {
                let mapped = match fd {
                    None => Mapped::Anonymous,
                    Some(fd) => Mapped::File { fd: self.fd(fd), offset: *offset },
                };
                let sharing = if *shared { Sharing::Shared } else { Sharing::Private };
                match p.mmap(cx, *len, prot_of(*prot), sharing, mapped, *align) {
                    Ok(address) => {
                        self.names.lock().maps.insert(map.clone(), address);
                        Answer::OK
                    }
                    Err(errno) => failed(errno),
                }
            }
            Op::Munmap { map, offset, len } => unit(p.munmap(cx, self.address(map, *offset), *len)),
            Op::Mprotect { map, offset, len, prot } => {
                unit(p.mprotect(cx, self.address(map, *offset), *len, prot_of(*prot)))
            }
            Op::Madvise { map, offset, len, advice } => {
                let advice = Advice::from_name(advice.name()).expect("the kernel knows every advice of the language");
                unit(p.madvise(cx, self.address(map, *offset), *len, advice))
            }
            Op::Mincore { map, offset, len } => match p.mincore(cx, self.address(map, *offset), *len) {
                Ok(pages) => Answer::Ok { value: 0, detail: Detail::Resident(pages) },
                Err(errno) => failed(errno),
            },
            Op::Mlock { map, offset, len } => unit(p.mlock(cx, self.address(map, *offset), *len)),
            Op::PageIdleMark { map, offset, len } => unit(p.page_idle_mark(cx, self.address(map, *offset), *len)),
            Op::PageIdleRead { map, offset, len } => match p.page_idle_read(cx, self.address(map, *offset), *len) {
                Ok(pages) => Answer::Ok { value: 0, detail: Detail::Idle(pages) },
                Err(errno) => failed(errno),
            },
            Op::NxHugePageRecovery { vm, ratio } => unit(ioctl::nx_huge_page_recovery(cx, p, self.fd(vm), *ratio)),
            Op::HostRead { map, offset } => match p.read_u32(cx, self.address(map, *offset)) {
                Ok(value) => Answer::Ok { value: 0, detail: Detail::Value(u64::from(value)) },
                Err(signal) => Answer::Signal(signal_of(signal)),
            },
            Op::HostWrite { map, offset, value } => match p.write_u32(cx, self.address(map, *offset), *value as u32) {
                Ok(()) => Answer::OK,
                Err(signal) => Answer::Signal(signal_of(signal)),
            },
            Op::HostRead64 { map, offset } => match p.read_u64(cx, self.address(map, *offset)) {
                Ok(value) => Answer::Ok { value: 0, detail: Detail::Value(value) },
                Err(signal) => Answer::Signal(signal_of(signal)),
            },
            Op::HostWrite64 { map, offset, value } => match p.write_u64(cx, self.address(map, *offset), *value) {
                Ok(()) => Answer::OK,
                Err(signal) => Answer::Signal(signal_of(signal)),
            },
            Op::HostFill64 { map, offset, len, value } => {
                let start = self.address(map, *offset);
                let mut pages = (0..*len).step_by(PAGE_SIZE as usize);
                match pages.try_for_each(|page| p.write_u64(cx, Hva(start.0.wrapping_add(page)), *value)) {
                    Ok(()) => Answer::OK,
                    Err(signal) => Answer::Signal(signal_of(signal)),
                }
            }
            Op::GuestRead { .. } | Op::GuestWrite { .. } | Op::GuestRmw { .. } | Op::GuestHypercall { .. } => {
                self.guest(cx, op)
            }
            Op::GuestPaged(op) => self.guest_paged(cx, op),
            Op::Snp(op) => self.snp(cx, op),
            Op::Tdx(op) => self.tdx(cx, op),
            Op::Protected(op) => self.protected(cx, op),
            Op::Pkvm(op) => self.pkvm(cx, op),
        }
    }

    /// `pread` of any length, in pieces, so that a sparse file of a terabyte needs no terabyte.
    fn pread(&self, cx: &Cx<'_>, fd: RawFd, offset: i64, len: i64) -> Answer {
        in_pieces(offset, len, |offset, piece| {
            self.process.pread(cx, fd, offset, piece).map(|bytes| bytes.len() as u64)
        })
    }

    fn pwrite(&self, cx: &Cx<'_>, fd: RawFd, offset: i64, len: i64) -> Answer {
        let zeroes = vec![0; len.clamp(0, PIECE as i64) as usize];
        in_pieces(offset, len, |offset, piece| self.process.pwrite(cx, fd, offset, &zeroes[..piece as usize]))
    }
}

/// Reads or writes `len` bytes in pieces, as one system call would: what was done before an error counts.
fn in_pieces(offset: i64, len: i64, call: impl Fn(i64, u64) -> Result<u64, sim_kernel::Errno>) -> Answer {
    /// `MAX_RW_COUNT`.
    const MOST: u64 = 0x7fff_f000;
    // `rw_verify_area`, which comes after the checks of descriptor and offset: an empty access makes those.
    if len < 0 || offset.checked_add(len).is_none() {
        return match call(offset, 0) {
            Ok(_) => failed(sim_kernel::Errno::EINVAL),
            Err(errno) => failed(errno),
        };
    }
    let len = (len as u64).min(MOST);
    let mut done = 0;
    loop {
        let piece = (len - done).min(PIECE);
        match call(offset + done as i64, piece) {
            Ok(count) => {
                done += count;
                if count < piece || done == len {
                    return Answer::ok(done);
                }
            }
            Err(_) if done > 0 => return Answer::ok(done),
            Err(errno) => return failed(errno),
        }
    }
}

pub(super) fn errno_of(errno: sim_kernel::Errno) -> ops::Errno {
    ops::Errno::from_name(errno.name()).expect("the language knows every error number of the kernel")
}

pub(super) fn failed(errno: sim_kernel::Errno) -> Answer {
    Answer::errno(errno_of(errno))
}

fn unit(result: Result<(), sim_kernel::Errno>) -> Answer {
    with_detail(result, Detail::None)
}

pub(super) fn with_detail(result: Result<(), sim_kernel::Errno>, detail: Detail) -> Answer {
    match result {
        Ok(()) => Answer::Ok { value: 0, detail },
        Err(errno) => Answer::Failed { errno: errno_of(errno), detail },
    }
}

pub(super) fn signal_of(signal: sim_kernel::mm::Signal) -> ops::Signal {
    match signal {
        sim_kernel::mm::Signal::Sigsegv => ops::Signal::SEGV,
        sim_kernel::mm::Signal::Sigbus => ops::Signal::BUS,
    }
}

fn prot_of(prot: ops::Prot) -> Prot {
    let mut result = Prot::empty();
    result.set(Prot::READ, prot.contains(ops::Prot::READ));
    result.set(Prot::WRITE, prot.contains(ops::Prot::WRITE));
    result.set(Prot::EXEC, prot.contains(ops::Prot::EXEC));
    result
}

/// The words of a bitmap in which these bits are set, by number.
fn words_of(bits: &[u64]) -> BTreeMap<u64, u64> {
    let mut words = BTreeMap::new();
    for bit in bits {
        *words.entry(bit / 64).or_default() |= 1 << (bit % 64);
    }
    words
}

/// Numbers of the bits that are set, below `limit`; `None` if there are more than an answer lists.
fn set_bits(words: &[u64], limit: u64) -> Option<Vec<u64>> {
    let words = &words[..words.len().min(usize::try_from(limit.div_ceil(64)).unwrap_or(usize::MAX))];
    let count: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
    if count > LISTED_MAX {
        return None;
    }
    let mut bits = Vec::new();
    for (i, word) in (0u64..).zip(words) {
        let mut word = *word;
        while word != 0 {
            let bit = i * 64 + u64::from(word.trailing_zeros());
            if bit < limit {
                bits.push(bit);
            }
            word &= word - 1;
        }
    }
    Some(bits)
}
