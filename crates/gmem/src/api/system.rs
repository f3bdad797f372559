//! `/dev/kvm`: what the host can do, and new VMs (`kvm_ioctls::Kvm`).

use super::{FAILED, RawFd, Result, VmFd};
use crate::kvm::ioctl;
use crate::kvm::process::Process;
use crate::kvm::uapi::{Cap, KVM_X86_DEFAULT_VM};
use sim_kernel::Cx;
use std::sync::Arc;

/// `KVM_GET_API_VERSION`'s answer, which never changes.
const KVM_API_VERSION: i32 = 12;

/// An open `/dev/kvm`.
///
/// ```
/// use gmem::{Cap, Kvm, Machine, MachineConfig};
/// Machine::new(MachineConfig::default()).run(|cx, process| {
///     let kvm = Kvm::new(cx, process).unwrap();
///     assert_eq!(kvm.get_api_version(), 12);
///     assert!(kvm.check_extension(cx, Cap::GuestMemfd));
///     kvm.close(cx).unwrap();
/// });
/// ```
#[derive(Debug)]
pub struct Kvm {
    process: Arc<Process>,
    fd: RawFd,
}

impl Kvm {
    /// Opens `/dev/kvm` in a process.
    ///
    /// # Errors
    /// `EMFILE` if the process has as many descriptors as it may.
    pub fn new(cx: &Cx<'_>, process: &Arc<Process>) -> Result<Kvm> {
        let fd = ioctl::open_kvm(cx, process)?;
        Ok(Kvm { process: Arc::clone(process), fd })
    }

    /// `KVM_GET_API_VERSION`: 12, as always.
    pub fn get_api_version(&self) -> i32 {
        KVM_API_VERSION
    }

    /// `KVM_CHECK_EXTENSION`: whether the capability is there at all.
    pub fn check_extension(&self, cx: &Cx<'_>, cap: Cap) -> bool {
        self.check_extension_int(cx, cap) > 0
    }

    /// `KVM_CHECK_EXTENSION`: the capability's number or mask, 0 if it is not there, -1 if the call failed.
    pub fn check_extension_int(&self, cx: &Cx<'_>, cap: Cap) -> i32 {
        self.check_extension_raw(cx, cap as u64)
    }

    /// [`Kvm::check_extension_int`] for a capability that has no name here.
    pub fn check_extension_raw(&self, cx: &Cx<'_>, cap: u64) -> i32 {
        ioctl::check_extension_on(cx, &self.process, self.fd, cap).unwrap_or(FAILED)
    }

    /// `KVM_CAP_NR_MEMSLOTS`: slots of each address space.
    pub fn get_nr_memslots(&self, cx: &Cx<'_>) -> usize {
        self.check_extension_int(cx, Cap::NrMemslots).max(0) as usize
    }

    /// `KVM_CAP_MAX_VCPUS`: vCPUs of a VM.
    pub fn get_max_vcpus(&self, cx: &Cx<'_>) -> usize {
        self.check_extension_int(cx, Cap::MaxVcpus).max(0) as usize
    }

    /// `KVM_CREATE_VM` of the ordinary type, `KVM_X86_DEFAULT_VM`.
    ///
    /// # Errors
    /// As [`Kvm::create_vm_with_type`].
    pub fn create_vm(&self, cx: &Cx<'_>) -> Result<VmFd> {
        self.create_vm_with_type(cx, KVM_X86_DEFAULT_VM)
    }

    /// `KVM_CREATE_VM`.
    ///
    /// # Errors
    /// `EINVAL` for a type that is not supported, see [`Cap::VmTypes`]; `EMFILE`; `EBADF` if the process has exited.
    pub fn create_vm_with_type(&self, cx: &Cx<'_>, vm_type: u64) -> Result<VmFd> {
        let (fd, vm) = ioctl::create_vm_object(cx, &self.process, self.fd, vm_type)?;
        Ok(VmFd::new(Arc::clone(&self.process), fd, vm))
    }

    /// The process that opened the device.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// The descriptor.
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd
    }

    /// `close(2)`. VMs that were made through the device live on.
    ///
    /// # Errors
    /// `EBADF` if the process has exited.
    pub fn close(self, cx: &Cx<'_>) -> Result<()> {
        self.process.close(cx, self.fd)
    }
}
