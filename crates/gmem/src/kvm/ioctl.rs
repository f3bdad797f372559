//! The ioctls, by descriptor: find the file, check the caller, do the work, run what was put off (`kvm_vm_ioctl` and friends).
//!
//! One function per ioctl. A descriptor that is open but of the wrong kind does not know the ioctl: `ENOTTY`
//! from a VM or any other file, `EINVAL` from a vCPU or `/dev/kvm`.

use super::guest_memfd::GmemFile;
use super::host::Host;
use super::process::Process;
use super::sev::SevCmd;
use super::tdx::TdxCmd;
use super::uapi::*;
use super::vcpu::{ExitInfo, GuestRegs, Vcpu, VcpuFile, install_vm};
use super::vm::{Vm, VmFile, VmType, check_extension};
use sim_kernel::fs::{File, FileOperations, RawFd, Stat};
use sim_kernel::{Cx, Errno};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The file behind `/dev/kvm`.
#[derive(Debug)]
struct KvmDevice {
    host: Arc<Host>,
}

impl FileOperations for KvmDevice {
    fn is_regular(&self) -> bool {
        false
    }

    /// `noop_llseek`: the position, which nothing moves.
    fn seek(&self, _cx: &Cx<'_>, _offset: i64, _whence: u32) -> Result<u64, Errno> {
        Ok(0)
    }

    fn release(&self, _cx: &Cx<'_>) {}

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn stat(&self, _cx: &Cx<'_>) -> Stat {
        Stat { ino: 1, mode: 0o020_666, nlink: 1, size: 0, blksize: 4096, blocks: 0 }
    }
}

/// `open("/dev/kvm")`.
///
/// # Errors
/// `EMFILE`.
pub fn open_kvm(cx: &Cx<'_>, process: &Process) -> Result<RawFd, Errno> {
    process.install(cx, File::new(cx, Arc::new(KvmDevice { host: Arc::clone(&process.host) })))
}

/// What a descriptor answers to an ioctl that its kind does not know: VMs and vCPUs test the caller's address space first.
fn unknown_ioctl(process: &Process, file: &File) -> Errno {
    if let Some(VmFile { vm }) = file.downcast() {
        vm.check_caller(&process.mm).err().unwrap_or(Errno::ENOTTY)
    } else if let Some(VcpuFile { vcpu }) = file.downcast() {
        vcpu.vm.check_caller(&process.mm).err().unwrap_or(Errno::EINVAL)
    } else if file.downcast::<KvmDevice>().is_some() {
        Errno::EINVAL
    } else {
        Errno::ENOTTY
    }
}

/// The way back to user space: what was put off runs, and then nothing is held (INV-502) but what the VMM's thread holds itself.
pub(super) fn return_to_user(cx: &Cx<'_>) {
    cx.task_work_run();
    cx.note("return", "to user space");
    for lock in cx.held_locks() {
        assert!(lock.class == "vmm->vcpu", "INV-502: a system call ends with {lock} held");
    }
}

/// Runs `body` with the VM behind a descriptor, after the gates that all VM ioctls share.
fn with_vm<R>(
    cx: &Cx<'_>,
    process: &Process,
    fd: RawFd,
    body: impl FnOnce(&Arc<Vm>) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let result = process.fds.with(cx, fd, |file| {
        let vm = &file.downcast::<VmFile>().ok_or_else(|| unknown_ioctl(process, file))?.vm;
        vm.check_caller(&process.mm)?;
        body(vm)
    });
    return_to_user(cx);
    result
}

/// As [`with_vm`], for a vCPU.
fn with_vcpu<R>(
    cx: &Cx<'_>,
    process: &Process,
    fd: RawFd,
    body: impl FnOnce(&Arc<Vcpu>) -> Result<R, Errno>,
) -> Result<R, Errno> {
    let result = process.fds.with(cx, fd, |file| {
        let vcpu = &file.downcast::<VcpuFile>().ok_or_else(|| unknown_ioctl(process, file))?.vcpu;
        vcpu.vm.check_caller(&process.mm)?;
        body(vcpu)
    });
    return_to_user(cx);
    result
}

/// `KVM_CREATE_VM`.
///
/// # Errors
/// `EBADF`, `ENOTTY`, `EMFILE`; `EINVAL` if the type is not supported.
pub fn create_vm(cx: &Cx<'_>, process: &Process, kvm: RawFd, vm_type: u64) -> Result<RawFd, Errno> {
    create_vm_object(cx, process, kvm, vm_type).map(|(fd, _)| fd)
}

/// [`create_vm`], with the VM behind the descriptor: to keep for inspection without looking it up again.
pub(crate) fn create_vm_object(
    cx: &Cx<'_>,
    process: &Process,
    kvm: RawFd,
    vm_type: u64,
) -> Result<(RawFd, Arc<Vm>), Errno> {
    cx.note("call", "KVM_CREATE_VM");
    let result = process.fds.with(cx, kvm, |file| {
        let device = file.downcast::<KvmDevice>().ok_or_else(|| unknown_ioctl(process, file))?;
        process.fds.reserve()?;
        let vm_type = VmType::from_number(vm_type, &device.host.config)?;
        let vm = Vm::new(cx, &device.host, &process.mm, vm_type)?;
        Ok((install_vm(cx, process, Arc::clone(&vm))?, vm))
    });
    return_to_user(cx);
    result
}

/// `KVM_CHECK_EXTENSION`, on `/dev/kvm` or a VM.
///
/// # Errors
/// `EBADF`, `ENOTTY`, `EIO`.
pub fn check_extension_on(cx: &Cx<'_>, process: &Process, fd: RawFd, cap: u64) -> Result<i32, Errno> {
    cx.note("call", "KVM_CHECK_EXTENSION");
    let device =
        |file: &File| file.downcast::<KvmDevice>().map(|device| check_extension(&device.host.config, cap, None));
    if let Some(answer) = process.fds.with(cx, fd, |file| Ok(device(file)))? {
        return Ok(answer);
    }
    with_vm(cx, process, fd, |vm| Ok(vm.check_extension(cap)))
}

/// `KVM_ENABLE_CAP`.
///
/// # Errors
/// As [`Vm::enable_cap`].
pub fn enable_cap(cx: &Cx<'_>, process: &Process, vm: RawFd, cap: &kvm_enable_cap) -> Result<(), Errno> {
    cx.note("call", "KVM_ENABLE_CAP");
    with_vm(cx, process, vm, |vm| vm.enable_cap(cap))
}

/// `KVM_CREATE_VCPU`.
///
/// # Errors
/// `EINVAL`, `EEXIST`, `EMFILE`.
pub fn create_vcpu(cx: &Cx<'_>, process: &Process, vm: RawFd, id: u64) -> Result<RawFd, Errno> {
    create_vcpu_object(cx, process, vm, id).map(|(fd, _)| fd)
}

/// [`create_vcpu`], with the vCPU behind the descriptor.
pub(crate) fn create_vcpu_object(
    cx: &Cx<'_>,
    process: &Process,
    vm: RawFd,
    id: u64,
) -> Result<(RawFd, Arc<Vcpu>), Errno> {
    cx.note("call", "KVM_CREATE_VCPU");
    with_vm(cx, process, vm, |vm| vm.create_vcpu(cx, process, id))
}

/// `KVM_CREATE_GUEST_MEMFD`.
///
/// # Errors
/// As [`Vm::create_guest_memfd`].
pub fn create_guest_memfd(
    cx: &Cx<'_>,
    process: &Process,
    vm: RawFd,
    args: &kvm_create_guest_memfd,
) -> Result<RawFd, Errno> {
    cx.note("call", "KVM_CREATE_GUEST_MEMFD");
    with_vm(cx, process, vm, |vm| vm.create_guest_memfd(cx, process, args))
}

/// `KVM_SET_USER_MEMORY_REGION`.
///
/// # Errors
/// As [`Vm::set_user_memory_region`].
pub fn set_user_memory_region(
    cx: &Cx<'_>,
    process: &Process,
    vm: RawFd,
    region: &kvm_userspace_memory_region,
) -> Result<(), Errno> {
    cx.note("call", "KVM_SET_USER_MEMORY_REGION");
    with_vm(cx, process, vm, |vm| vm.set_user_memory_region(cx, process, region))
}

/// `KVM_SET_USER_MEMORY_REGION2`.
///
/// # Errors
/// As [`Vm::set_user_memory_region2`].
pub fn set_user_memory_region2(
    cx: &Cx<'_>,
    process: &Process,
    vm: RawFd,
    region: &kvm_userspace_memory_region2,
) -> Result<(), Errno> {
    cx.note("call", "KVM_SET_USER_MEMORY_REGION2");
    with_vm(cx, process, vm, |vm| vm.set_user_memory_region2(cx, process, region))
}

/// `KVM_SET_MEMORY_ATTRIBUTES`.
///
/// # Errors
/// As [`Vm::set_memory_attributes`]; `ENOTTY` if the kernel has no memory attributes.
pub fn set_memory_attributes(
    cx: &Cx<'_>,
    process: &Process,
    vm: RawFd,
    args: &kvm_memory_attributes,
) -> Result<(), Errno> {
    with_vm(cx, process, vm, |vm| {
        // Compiled out, it is an ioctl like any that does not exist.
        if vm.host.config.has_memory_attributes() { vm.set_memory_attributes(cx, args) } else { Err(Errno::ENOTTY) }
    })
}

/// `KVM_GET_DIRTY_LOG`.
///
/// # Errors
/// As [`Vm::get_dirty_log`].
pub fn get_dirty_log(cx: &Cx<'_>, process: &Process, vm: RawFd, slot: u32) -> Result<Vec<u64>, Errno> {
    cx.note("call", "KVM_GET_DIRTY_LOG");
    with_vm(cx, process, vm, |vm| vm.get_dirty_log(cx, slot))
}

/// A turn of the worker that recovers huge pages from the NX mitigation, which is a thread of the VM's own; this stands for it, as
/// [`Vm::recover_nx_huge_pages`]. The descriptor keeps the VM while it works, as a VM that is destroyed waits for its worker.
///
/// # Errors
/// As an ioctl on the descriptor, if it is no VM's.
pub fn nx_huge_page_recovery(cx: &Cx<'_>, process: &Process, vm: RawFd, ratio: u64) -> Result<(), Errno> {
    with_vm(cx, process, vm, |vm| {
        vm.recover_nx_huge_pages(cx, ratio);
        Ok(())
    })
}

/// `KVM_CLEAR_DIRTY_LOG`.
///
/// # Errors
/// As [`Vm::clear_dirty_log`].
pub fn clear_dirty_log(
    cx: &Cx<'_>,
    process: &Process,
    vm: RawFd,
    range: &kvm_clear_dirty_log,
    bits: &BTreeMap<u64, u64>,
) -> Result<(), Errno> {
    cx.note("call", "KVM_CLEAR_DIRTY_LOG");
    with_vm(cx, process, vm, |vm| vm.clear_dirty_log(cx, range, bits))
}

/// `KVM_MEMORY_ENCRYPT_OP`; `cmd` is updated with the firmware's error, and with what is left to do.
///
/// # Errors
/// As [`SevCmd`]'s commands; `ENOTTY` on a host without SEV.
pub fn memory_encrypt_op(cx: &Cx<'_>, process: &Process, vm: RawFd, cmd: &mut SevCmd) -> Result<(), Errno> {
    cx.note("call", cmd.op.name());
    with_vm(cx, process, vm, |vm| vm.sev_mem_enc_ioctl(cx, process, cmd))
}

/// `KVM_MEMORY_ENCRYPT_OP` on a TD; `cmd` is updated.
///
/// # Errors
/// As [`TdxCmd`]'s commands; `ENOTTY` if the VM is no TD.
pub fn memory_encrypt_op_tdx(cx: &Cx<'_>, process: &Process, vm: RawFd, cmd: &mut TdxCmd) -> Result<(), Errno> {
    cx.note("call", cmd.op.name());
    with_vm(cx, process, vm, |vm| vm.tdx_vm_ioctl(cx, cmd))
}

/// `KVM_MEMORY_ENCRYPT_OP` on a vCPU of a TD; `cmd` is updated.
///
/// # Errors
/// As [`TdxCmd`]'s commands. If the VM is no TD, `EINVAL` on Intel's machines, and `ENOTTY` elsewhere.
pub fn memory_encrypt_op_vcpu(cx: &Cx<'_>, process: &Process, vcpu: RawFd, cmd: &mut TdxCmd) -> Result<(), Errno> {
    cx.note("call", cmd.op.name());
    with_vcpu(cx, process, vcpu, |vcpu| vcpu.tdx_vcpu_ioctl(cx, cmd))
}

/// `KVM_PRE_FAULT_MEMORY`; `range` is updated to what is left, unless the descriptor was not a vCPU's.
///
/// # Errors
/// As [`Vcpu::pre_fault_memory`]; `EINVAL` if the kernel does not have it.
pub fn pre_fault_memory(
    cx: &Cx<'_>,
    process: &Process,
    vcpu: RawFd,
    range: &mut kvm_pre_fault_memory,
) -> Result<(), Errno> {
    cx.note("call", "KVM_PRE_FAULT_MEMORY");
    with_vcpu(cx, process, vcpu, |vcpu| {
        // Before it came, it was an ioctl like any that a vCPU does not know.
        if vcpu.vm.kernel().has_pre_fault_memory() { vcpu.pre_fault_memory(cx, range) } else { Err(Errno::EINVAL) }
    })
}

/// `KVM_RUN`, with what `kvm_run` says afterwards.
///
/// # Errors
/// `EBADF`, `ENOTTY`, `EIO`; the errors of the run itself are inside.
pub fn run(cx: &Cx<'_>, process: &Process, vcpu: RawFd) -> Result<(Result<(), Errno>, ExitInfo), Errno> {
    run_answered(cx, process, vcpu, None)
}

/// [`run`], after user space answered the pending exit in `kvm_run`.
///
/// # Errors
/// As [`run`].
pub fn run_answered(
    cx: &Cx<'_>,
    process: &Process,
    vcpu: RawFd,
    answer: Option<u64>,
) -> Result<(Result<(), Errno>, ExitInfo), Errno> {
    with_vcpu(cx, process, vcpu, |vcpu| Ok(vcpu.run_answered(cx, answer)))
}

/// `KVM_GET_REGS`: what a program can see of them.
///
/// # Errors
/// `EBADF`, `ENOTTY`, `EIO`.
pub fn get_regs(cx: &Cx<'_>, process: &Process, vcpu: RawFd) -> Result<GuestRegs, Errno> {
    with_vcpu(cx, process, vcpu, |vcpu| Ok(vcpu.regs(cx)))
}

/// The VM behind a descriptor, for checkers and reports.
pub fn peek_vm(cx: &Cx<'_>, process: &Process, fd: RawFd) -> Option<Arc<Vm>> {
    process.fds.with(cx, fd, |file| Ok(file.downcast::<VmFile>().map(|f| Arc::clone(&f.vm)))).ok().flatten()
}

/// The vCPU behind a descriptor: to give it a program and to see its registers, which need no system call here.
pub fn peek_vcpu(cx: &Cx<'_>, process: &Process, fd: RawFd) -> Option<Arc<Vcpu>> {
    process.fds.with(cx, fd, |file| Ok(file.downcast::<VcpuFile>().map(|f| Arc::clone(&f.vcpu)))).ok().flatten()
}

/// The memory of a guest_memfd behind a descriptor, for checkers and for injecting memory failures.
pub fn peek_gmem(cx: &Cx<'_>, process: &Process, fd: RawFd) -> Option<Arc<super::guest_memfd::GmemInode>> {
    process.fds.with(cx, fd, |file| Ok(file.downcast::<GmemFile>().map(|f| Arc::clone(f.inode())))).ok().flatten()
}
