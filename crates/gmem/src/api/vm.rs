//! A VM's descriptor: capabilities, memory, vCPUs (`kvm_ioctls::VmFd`).

use super::{FAILED, GuestMemfd, RawFd, Result, VcpuFd};
use crate::kvm::ioctl;
use crate::kvm::process::Process;
use crate::kvm::uapi::*;
use crate::kvm::vm::Vm;
use sim_kernel::{Cx, Errno, PAGE_SIZE};
use std::sync::Arc;

/// An open VM.
///
/// ```
/// use gmem::uapi::{KVM_X86_SW_PROTECTED_VM, kvm_create_guest_memfd};
/// use gmem::{Errno, Kvm, Machine, MachineConfig};
/// Machine::new(MachineConfig::default()).run(|cx, process| {
///     let kvm = Kvm::new(cx, process)?;
///     let vm = kvm.create_vm_with_type(cx, KVM_X86_SW_PROTECTED_VM)?;
///     let memory = vm.create_guest_memfd(cx, kvm_create_guest_memfd { size: 2 << 20, ..Default::default() })?;
///     assert_eq!(memory.size(), 2 << 20);
///     Ok::<(), Errno>(())
/// }).unwrap();
/// ```
#[derive(Debug)]
pub struct VmFd {
    process: Arc<Process>,
    fd: RawFd,
    vm: Arc<Vm>,
}

impl VmFd {
    pub(super) fn new(process: Arc<Process>, fd: RawFd, vm: Arc<Vm>) -> VmFd {
        VmFd { process, fd, vm }
    }

    /// `KVM_CHECK_EXTENSION`, as this VM has it: whether the capability is there at all.
    pub fn check_extension(&self, cx: &Cx<'_>, cap: Cap) -> bool {
        self.check_extension_int(cx, cap) > 0
    }

    /// `KVM_CHECK_EXTENSION`: the capability's number or mask, 0 if it is not there, -1 if the call failed.
    pub fn check_extension_int(&self, cx: &Cx<'_>, cap: Cap) -> i32 {
        self.check_extension_raw(cx, cap as u64)
    }

    /// [`VmFd::check_extension_int`] for a capability that has no name here.
    pub fn check_extension_raw(&self, cx: &Cx<'_>, cap: u64) -> i32 {
        ioctl::check_extension_on(cx, &self.process, self.fd, cap).unwrap_or(FAILED)
    }

    /// `KVM_ENABLE_CAP`.
    ///
    /// # Errors
    /// `EINVAL` for flags, for capabilities that cannot be enabled and for bits that they do not have.
    pub fn enable_cap(&self, cx: &Cx<'_>, cap: &kvm_enable_cap) -> Result<()> {
        ioctl::enable_cap(cx, &self.process, self.fd, cap)
    }

    /// `KVM_CREATE_VCPU`.
    ///
    /// # Errors
    /// `EINVAL` for an id beyond four times [`KVM_MAX_VCPUS`]; `EEXIST` for one that is taken; `EMFILE`.
    pub fn create_vcpu(&self, cx: &Cx<'_>, id: u64) -> Result<VcpuFd> {
        let (fd, vcpu) = ioctl::create_vcpu_object(cx, &self.process, self.fd, id)?;
        Ok(VcpuFd::new(Arc::clone(&self.process), fd, vcpu))
    }

    /// `KVM_SET_USER_MEMORY_REGION`: makes, moves, changes or, with size 0, deletes a slot. Safe here: the address is one of the
    /// simulated process.
    ///
    /// # Errors
    /// `EINVAL` for flags, numbers, addresses and sizes that are malformed or changes that a slot does not allow; `EEXIST` if it
    /// would overlap another slot; `ENOMEM`.
    pub fn set_user_memory_region(&self, cx: &Cx<'_>, region: kvm_userspace_memory_region) -> Result<()> {
        ioctl::set_user_memory_region(cx, &self.process, self.fd, &region)
    }

    /// `KVM_SET_USER_MEMORY_REGION2`: as the first version, and binds the slot to a range of a guest_memfd with
    /// [`KVM_MEM_GUEST_MEMFD`].
    ///
    /// # Errors
    /// As [`VmFd::set_user_memory_region`]; `EBADF` if `guest_memfd` is not open; `EINVAL` if it is not a guest_memfd of this VM or
    /// has not the range; `EEXIST` if part of the range is bound.
    pub fn set_user_memory_region2(&self, cx: &Cx<'_>, region: kvm_userspace_memory_region2) -> Result<()> {
        ioctl::set_user_memory_region2(cx, &self.process, self.fd, &region)
    }

    /// `KVM_CREATE_GUEST_MEMFD`. `kvm-ioctls` returns the number, [`GuestMemfd::as_raw_fd`].
    ///
    /// # Errors
    /// `EINVAL` for flags that the VM does not offer ([`Cap::GuestMemfdFlags`]) and for a size that is 0 or not whole pages;
    /// `EMFILE`.
    pub fn create_guest_memfd(&self, cx: &Cx<'_>, gmem: kvm_create_guest_memfd) -> Result<GuestMemfd> {
        let fd = ioctl::create_guest_memfd(cx, &self.process, self.fd, &gmem)?;
        Ok(GuestMemfd::new(Arc::clone(&self.process), fd, gmem.size))
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`: makes guest memory private or shared.
    ///
    /// # Errors
    /// `EINVAL` for flags, for attributes that the VM does not have ([`Cap::MemoryAttributes`]) and for ranges that are empty or
    /// not whole pages; `ENOMEM`.
    pub fn set_memory_attributes(&self, cx: &Cx<'_>, attr: kvm_memory_attributes) -> Result<()> {
        ioctl::set_memory_attributes(cx, &self.process, self.fd, &attr)
    }

    /// `KVM_MEMORY_ENCRYPT_OP`, of an SNP VM; `cmd` gets the firmware's error, and what is left to do.
    ///
    /// # Errors
    /// `ENOTTY` on a host without SEV; `EPERM` for commands that are not SNP's; the command's own.
    pub fn encrypt_op_sev(&self, cx: &Cx<'_>, cmd: &mut crate::kvm::sev::SevCmd) -> Result<()> {
        ioctl::memory_encrypt_op(cx, &self.process, self.fd, cmd)
    }

    /// `KVM_GET_DIRTY_LOG`: one bit for each page of a slot of `memory_size` bytes that was written since the last call.
    ///
    /// The answer has as many words as `memory_size` calls for. Where that is not the slot's size, words of pages that the slot does
    /// not have are 0, and those beyond the end are lost (the kernel would write them past the caller's buffer).
    ///
    /// # Errors
    /// `EINVAL` for a number out of range; `ENOENT` if there is no such slot or it is not logged.
    pub fn get_dirty_log(&self, cx: &Cx<'_>, slot: u32, memory_size: usize) -> Result<Vec<u64>> {
        let mut words = ioctl::get_dirty_log(cx, &self.process, self.fd, slot)?;
        words.resize(memory_size.div_ceil(64 * PAGE_SIZE as usize), 0);
        Ok(words)
    }

    /// `KVM_CLEAR_DIRTY_LOG`: the pages from `first_page` on whose bits are set in `bitmap` are clean and write-protected afterwards.
    ///
    /// # Errors
    /// `EINVAL` for numbers out of range and ranges that do not consist of whole words; `ENOENT` if there is no such slot or it is
    /// not logged; `EFAULT` if `bitmap` has no bit for each of the `num_pages`.
    pub fn clear_dirty_log(
        &self,
        cx: &Cx<'_>,
        slot: u32,
        first_page: u64,
        num_pages: u32,
        bitmap: &[u64],
    ) -> Result<()> {
        if (bitmap.len() as u64) < u64::from(num_pages).div_ceil(64) {
            return Err(Errno::EFAULT);
        }
        let range = kvm_clear_dirty_log { slot, num_pages, first_page };
        let words = (0..).zip(bitmap.iter().copied()).collect();
        ioctl::clear_dirty_log(cx, &self.process, self.fd, &range, &words)
    }

    /// The VM behind the descriptor, to look at: slots, attributes, stage 2, [`Vm::check_invariants`]. It stays readable after the
    /// VM was destroyed.
    pub fn vm(&self) -> Arc<Vm> {
        Arc::clone(&self.vm)
    }

    /// The process that made the VM.
    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// The descriptor.
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd
    }

    /// `close(2)`. The VM lives on while one of its vCPUs or guest_memfds is open.
    ///
    /// # Errors
    /// `EBADF` if the process has exited.
    pub fn close(self, cx: &Cx<'_>) -> Result<()> {
        self.process.close(cx, self.fd)
    }
}
