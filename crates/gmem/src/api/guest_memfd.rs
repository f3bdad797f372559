//! A guest_memfd's descriptor, and the system calls that it knows.

use super::{Mapping, RawFd, Result};
use crate::kvm::guest_memfd::GmemInode;
use crate::kvm::ioctl;
use crate::kvm::process::{Process, Sharing};
use crate::kvm::uapi::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE};
use sim_kernel::mm::Prot;
use sim_kernel::{Cx, Errno};
use std::sync::Arc;

/// An open guest_memfd. Other system calls on it (`fstat`, `ftruncate`, `pread`, `dup`) are in
/// [`Process`] and take [`GuestMemfd::as_raw_fd`].
///
/// ```
/// use gmem::uapi::{KVM_X86_SW_PROTECTED_VM, kvm_create_guest_memfd};
/// use gmem::{Errno, Kvm, Machine, MachineConfig};
/// Machine::new(MachineConfig::default()).run(|cx, process| {
///     let vm = Kvm::new(cx, process)?.create_vm_with_type(cx, KVM_X86_SW_PROTECTED_VM)?;
///     let memory = vm.create_guest_memfd(cx, kvm_create_guest_memfd { size: 0x4000, ..Default::default() })?;
///     memory.allocate(cx, 0, 0x4000)?;
///     memory.punch_hole(cx, 0x1000, 0x1000)?;
///     assert_eq!(memory.punch_hole(cx, 0x1000, 1), Err(Errno::EINVAL));
///     memory.close(cx)
/// }).unwrap();
/// ```
#[derive(Debug)]
pub struct GuestMemfd {
    process: Arc<Process>,
    fd: RawFd,
    size: u64,
}

impl GuestMemfd {
    pub(super) fn new(process: Arc<Process>, fd: RawFd, size: u64) -> GuestMemfd {
        GuestMemfd { process, fd, size }
    }

    /// `fallocate(2)`, with the argument types of C.
    ///
    /// # Errors
    /// `EINVAL` for a negative offset, a length that is not positive, ranges that are not whole pages, and allocation beyond the end;
    /// `EOPNOTSUPP` for any mode but keep-size, alone or with punch-hole; `EFBIG`; `EINTR`, `ENOMEM` while allocating.
    pub fn fallocate(&self, cx: &Cx<'_>, mode: u32, offset: i64, len: i64) -> Result<()> {
        self.process.fallocate(cx, self.fd, mode, offset, len)
    }

    /// Frees the memory of a range: `fallocate` with `FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE`. A range beyond the end is no
    /// error.
    ///
    /// # Errors
    /// As [`GuestMemfd::fallocate`].
    pub fn punch_hole(&self, cx: &Cx<'_>, offset: u64, len: u64) -> Result<()> {
        self.fallocate(cx, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset as i64, len as i64)
    }

    /// Makes the memory of a range exist: `fallocate` with `FALLOC_FL_KEEP_SIZE`.
    ///
    /// # Errors
    /// As [`GuestMemfd::fallocate`].
    pub fn allocate(&self, cx: &Cx<'_>, offset: u64, len: u64) -> Result<()> {
        self.fallocate(cx, FALLOC_FL_KEEP_SIZE, offset as i64, len as i64)
    }

    /// `mmap(2)`. Only what was created with `GUEST_MEMFD_FLAG_INIT_SHARED` can be touched through the mapping.
    ///
    /// # Errors
    /// `EINVAL` for an offset that is not page-aligned, for length 0 and for a private mapping; `ENODEV` without
    /// `GUEST_MEMFD_FLAG_MMAP`; `EPERM` for an executable mapping; `ENOMEM`.
    pub fn mmap(&self, cx: &Cx<'_>, len: u64, prot: Prot, sharing: Sharing, offset: u64) -> Result<Mapping> {
        Mapping::file(cx, &self.process, self.fd, len, prot, sharing, offset)
    }

    /// Bytes, fixed when the file was made.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The memory behind the descriptor: to look at its page cache, and to break a page with
    /// [`GmemInode::memory_failure`].
    ///
    /// # Errors
    /// `EBADF` if the process has exited.
    pub fn inode(&self, cx: &Cx<'_>) -> Result<Arc<GmemInode>> {
        ioctl::peek_gmem(cx, &self.process, self.fd).ok_or(Errno::EBADF)
    }

    /// The descriptor, as `kvm_userspace_memory_region2::guest_memfd` takes it.
    pub fn as_raw_fd(&self) -> RawFd {
        self.fd
    }

    /// `close(2)`. If this is the last reference, the guest's memory is unmapped and freed; slots stay bound to nothing, and an access
    /// to their private memory is a memory fault. A [`Mapping`] is a reference.
    ///
    /// # Errors
    /// `EBADF` if the process has exited.
    pub fn close(self, cx: &Cx<'_>) -> Result<()> {
        self.process.close(cx, self.fd)
    }
}
