//! A vCPU's descriptor: running the guest and answering its exits (`kvm_ioctls::VcpuFd`).
//!
//! The real crate lends out parts of the mapped `kvm_run`. Here the handle owns that part: [`VcpuFd::run`] lends it with
//! `&mut self`, so the borrow has ended when `run` is called again, and what the caller left there goes to the vCPU then.

use super::{HypercallExit, RawFd, Result, VcpuExit};
use crate::kvm::ioctl;
use crate::kvm::process::Process;
use crate::kvm::uapi::exit::{KVM_EXIT_MEMORY_FAULT, KVM_EXIT_SNP_REQ_CERTS};
use crate::kvm::uapi::kvm_pre_fault_memory;
use crate::kvm::vcpu::{CpuMode, DescriptorTable, ExitInfo, GuestInsn, GuestRegs, Vcpu};
use sim_kernel::{Cx, Errno};
use sim_mmu::{Gpa, Gva};
use std::sync::Arc;

/// The part of `kvm_run` that the caller may write, by what the last exit was.
#[derive(Clone, Copy, Debug)]
enum KvmRun {
    /// Nothing that the vCPU will look at.
    Nothing,
    /// The data of a read from a port.
    Io([u8; 4]),
    /// `kvm_run.mmio.data`; only a read takes it back.
    Mmio([u8; 8]),
    /// `kvm_run.hypercall.ret`.
    Hypercall(u64),
}

/// An open vCPU.
///
/// ```
/// use gmem::{Errno, GuestInsn, Gpa, Kvm, Machine, MachineConfig, VcpuExit};
/// Machine::new(MachineConfig::default()).run(|cx, process| {
///     let vm = Kvm::new(cx, process)?.create_vm(cx)?;
///     let mut vcpu = vm.create_vcpu(cx, 0)?;
///     vcpu.load_program(cx, &[GuestInsn::Read { gpa: Gpa(0x1000) }]);
///     match vcpu.run(cx)? {
///         VcpuExit::MmioRead(0x1000, data) => data.copy_from_slice(&42u32.to_le_bytes()),
///         other => panic!("{other:?}"),
///     }
///     assert!(matches!(vcpu.run(cx)?, VcpuExit::Hlt));
///     assert_eq!(vcpu.get_regs(cx)?.rbx, 42);
///     Ok::<(), Errno>(())
/// }).unwrap();
/// ```
#[derive(Debug)]
pub struct VcpuFd {
    process: Arc<Process>,
    fd: RawFd,
    vcpu: Arc<Vcpu>,
    run: KvmRun,
    /// The data of an access to a port, which lies in `kvm_run` too.
    out: [u8; 4],
    /// The data of a system event.
    event: [u64; 1],
    exit: ExitInfo,
    errno: Option<Errno>,
}

impl VcpuFd {
    pub(super) fn new(process: Arc<Process>, fd: RawFd, vcpu: Arc<Vcpu>) -> VcpuFd {
        VcpuFd {
            process,
            fd,
            vcpu,
            run: KvmRun::Nothing,
            out: [0; 4],
            event: [0],
            exit: ExitInfo::Unknown,
            errno: None,
        }
    }

    /// Gives the guest a program, which starts at its first instruction with registers 0; an exit that was waiting for an answer is
    /// forgotten. The simulator's own: a real VMM writes code into guest memory.
    pub fn load_program(&mut self, cx: &Cx<'_>, program: &[GuestInsn]) {
        self.run = KvmRun::Nothing;
        self.vcpu.set_program(cx, program);
    }

    /// The blocks of bytes that [`WriteBlock`](crate::KernelInsn::WriteBlock) of a program copies. The simulator's own.
    pub fn set_blocks(&mut self, cx: &Cx<'_>, blocks: Vec<Box<[u8]>>) {
        self.vcpu.set_blocks(cx, blocks);
    }

    /// Where instructions are fetched from: every entry then also needs this address to be executable memory. `None`, as at the
    /// start: fetches are not modelled. The simulator's own.
    pub fn set_code_page(&mut self, cx: &Cx<'_>, code: Option<Gpa>) {
        self.vcpu.mutex.lock(cx).code = code.map(|code| Gva(code.0));
    }

    /// How wide the guest's registers are; 64 bits at the start. The simulator's own, instead of `KVM_SET_SREGS`.
    pub fn set_cpu_mode(&mut self, cx: &Cx<'_>, mode: CpuMode) {
        self.vcpu.mutex.lock(cx).mode = mode;
    }

    /// Where the guest's exceptions find their handlers; nowhere at the start. The simulator's own, instead of `KVM_SET_SREGS`.
    pub fn set_idt(&mut self, cx: &Cx<'_>, idt: DescriptorTable) {
        self.vcpu.set_idt(cx, idt);
    }

    /// `KVM_RUN`: answers the last exit with what the caller left in its slice or `ret`, then runs the guest to the next one.
    ///
    /// As in `kvm-ioctls`, a memory-fault exit is `Ok`, although its ioctl fails with `EFAULT` or `EHWPOISON`.
    ///
    /// # Errors
    /// `EINTR` for a signal or an immediate exit; `EFAULT`, `EHWPOISON` and `ENOMEM` from the fault path if there is no memory-fault
    /// exit; `EBADF` if the process has exited.
    ///
    /// # Example
    /// What an exit lends ends where the vCPU runs again:
    ///
    /// ```compile_fail,E0499
    /// fn keep(cx: &gmem::Cx<'_>, vcpu: &mut gmem::VcpuFd) {
    ///     let gmem::VcpuExit::MmioRead(_, data) = vcpu.run(cx).unwrap() else { return };
    ///     vcpu.run(cx).unwrap();
    ///     data[0] = 1;
    /// }
    /// ```
    pub fn run(&mut self, cx: &Cx<'_>) -> Result<VcpuExit<'_>> {
        let answer = match self.run {
            KvmRun::Nothing => None,
            KvmRun::Mmio(data) => Some(u64::from_le_bytes(data)),
            KvmRun::Io(data) => Some(u32::from_le_bytes(data).into()),
            KvmRun::Hypercall(ret) => Some(ret),
        };
        let (result, exit) =
            ioctl::run_answered(cx, &self.process, self.fd, answer).inspect_err(|&errno| self.errno = Some(errno))?;
        (self.errno, self.exit, self.run) = (result.err(), exit, KvmRun::Nothing);
        match (result, exit) {
            (Err(Errno::EFAULT | Errno::EHWPOISON), ExitInfo::MemoryFault { flags, gpa, size }) => {
                Ok(VcpuExit::MemoryFault { flags, gpa: gpa.0, size })
            }
            (Err(errno), _) => Err(errno),
            (Ok(()), exit) => Ok(self.lend(exit)),
        }
    }

    /// The exit of a successful ioctl, with the caller's part of `kvm_run` borrowed from the handle.
    fn lend(&mut self, exit: ExitInfo) -> VcpuExit<'_> {
        match exit {
            ExitInfo::Unknown => VcpuExit::Unknown,
            ExitInfo::Hlt => VcpuExit::Hlt,
            ExitInfo::Intr => VcpuExit::Intr,
            ExitInfo::InternalError { .. } => VcpuExit::InternalError,
            ExitInfo::Shutdown => VcpuExit::Shutdown,
            ExitInfo::Io { port, len, data, is_write: true } => {
                self.out = data.to_le_bytes();
                VcpuExit::IoOut(port, &self.out[..usize::from(len)])
            }
            ExitInfo::Io { port, len, data, is_write: false } => {
                self.run = KvmRun::Io(data.to_le_bytes());
                let KvmRun::Io(bytes) = &mut self.run else { unreachable!("just stored") };
                VcpuExit::IoIn(port, &mut bytes[..usize::from(len)])
            }
            ExitInfo::MemoryFault { .. } => VcpuExit::Unsupported(KVM_EXIT_MEMORY_FAULT),
            ExitInfo::SystemEvent { kind, data } => {
                self.event = [data];
                VcpuExit::SystemEvent(kind, &self.event)
            }
            ExitInfo::FailEntry { reason } => VcpuExit::FailEntry(reason, 0),
            ExitInfo::SnpReqCerts { .. } => VcpuExit::Unsupported(KVM_EXIT_SNP_REQ_CERTS),
            ExitInfo::Mmio { gpa, len, data, is_write } => {
                self.run = KvmRun::Mmio(data.to_le_bytes());
                let KvmRun::Mmio(bytes) = &mut self.run else { unreachable!("just stored") };
                let bytes = &mut bytes[..len as usize];
                if is_write { VcpuExit::MmioWrite(gpa.0, bytes) } else { VcpuExit::MmioRead(gpa.0, bytes) }
            }
            ExitInfo::Hypercall { nr, args: [a, b, c, d], ret, mode } => {
                self.run = KvmRun::Hypercall(ret);
                let KvmRun::Hypercall(ret) = &mut self.run else { unreachable!("just stored") };
                let longmode = u32::from(mode == CpuMode::Long64);
                VcpuExit::Hypercall(HypercallExit { nr, args: [a, b, c, d, 0, 0], ret, longmode })
            }
        }
    }

    /// `kvm_run.immediate_exit`: while it is not 0, [`VcpuFd::run`] completes the last exit and then fails with `EINTR`. To stop a
    /// vCPU that another task runs, send that task a signal ([`Cx::send_signal`]).
    pub fn set_kvm_immediate_exit(&mut self, cx: &Cx<'_>, val: u8) {
        self.vcpu.set_immediate_exit(cx, val);
    }

    /// `KVM_PRE_FAULT_MEMORY`: maps guest memory without an access, and returns how many bytes at the end of the range are left to
    /// do. Not in `kvm-ioctls`.
    ///
    /// # Errors
    /// `EINVAL` for flags and for ranges that are empty or not whole pages. Others only if nothing was mapped: `ENOENT` where no
    /// slot is, `EAGAIN` where one is being deleted, `EINTR`, `EFAULT`, `EHWPOISON`, `ENOMEM`.
    pub fn pre_fault_memory(&mut self, cx: &Cx<'_>, gpa: u64, size: u64, flags: u64) -> Result<u64> {
        let mut range = kvm_pre_fault_memory { gpa, size, flags, ..Default::default() };
        self.pre_fault_memory_range(cx, &mut range)?;
        Ok(range.size)
    }

    /// [`VcpuFd::pre_fault_memory`] with the structure of the ioctl, which gets what is left to do, also with an error.
    ///
    /// # Errors
    /// As [`VcpuFd::pre_fault_memory`].
    pub fn pre_fault_memory_range(&mut self, cx: &Cx<'_>, range: &mut kvm_pre_fault_memory) -> Result<()> {
        ioctl::pre_fault_memory(cx, &self.process, self.fd, range)
    }

    /// `KVM_GET_REGS`: the registers that a program can see.
    ///
    /// # Errors
    /// `EBADF` if the process has exited.
    pub fn get_regs(&self, cx: &Cx<'_>) -> Result<GuestRegs> {
        ioctl::get_regs(cx, &self.process, self.fd)
    }

    /// What `errno` was after the last [`VcpuFd::run`]: which of the two a memory fault came with.
    pub fn last_errno(&self) -> Option<Errno> {
        self.errno
    }

    /// What `kvm_run` said after the last [`VcpuFd::run`]; stale after an error, unless it was a memory fault.
    pub fn exit_info(&self) -> ExitInfo {
        self.exit
    }

    /// The vCPU behind the descriptor, to look at.
    pub fn vcpu(&self) -> &Arc<Vcpu> {
        &self.vcpu
    }

    /// The descriptor.
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd
    }

    /// `close(2)`. The vCPU exists as long as its VM.
    ///
    /// # Errors
    /// `EBADF` if the process has exited.
    pub fn close(self, cx: &Cx<'_>) -> Result<()> {
        self.process.close(cx, self.fd)
    }
}
