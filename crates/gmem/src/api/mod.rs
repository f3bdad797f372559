//! The public API, in the shape that VMM authors know from `kvm-ioctls` 0.25: [`Kvm`], [`VmFd`], [`VcpuFd`] and [`VcpuExit`] with
//! that crate's method names, argument order and ownership.
//!
//! What differs from `kvm-ioctls`, and why:
//! - Every method that enters the kernel takes the calling task's context `cx` first: who calls, and under which scheduler, is
//!   explicit.
//! - Descriptors belong to a simulated process, not to the host, so handles are types of their own and [`RawFd`] has nothing to do
//!   with `std::os::fd`. A guest_memfd is a [`GuestMemfd`] rather than a bare number, a mapping a [`Mapping`] rather than a pointer.
//! - Nothing is `unsafe`: an address that a memory slot names is one of the simulated process.
//! - Errors are [`Errno`](sim_kernel::Errno).
//! - Additions: [`VcpuFd::load_program`] because the guest is a [`GuestInsn`](crate::kvm::vcpu::GuestInsn) program,
//!   [`VcpuFd::pre_fault_memory`] which `kvm-ioctls` lacks, and accessors to the objects behind a descriptor for inspection.
//!
//! # Closing
//! A handle has no `Drop`, because closing is a system call and needs a context. `close(self, cx)` closes the descriptor. A handle
//! that is merely dropped leaves its descriptor open, and so its VM or memory alive, until [`Process::exit`] closes what is left.
//! As in Linux, a VM lives until the last of its own, its vCPUs' and its guest_memfds' descriptors is closed.
//!
//! [`Machine`] is the way in: a host to run all this on.
//!
//! [`Process::exit`]: crate::kvm::process::Process::exit

#[cfg(all(feature = "kvm-bindings", target_arch = "x86_64", target_os = "linux"))]
mod bindings;
mod guest_memfd;
mod machine;
mod mapping;
mod system;
mod vcpu;
mod vcpu_exit;
mod vm;

pub use guest_memfd::GuestMemfd;
pub use machine::{Execution, Machine};
pub use mapping::Mapping;
pub use sim_kernel::fs::RawFd;
pub use system::Kvm;
pub use vcpu::VcpuFd;
pub use vcpu_exit::{HypercallExit, VcpuExit};
pub use vm::VmFd;

/// What a system call returns: a value or an error number.
///
/// ```
/// fn whole_pages(size: u64) -> gmem::api::Result<u64> {
///     if size.is_multiple_of(4096) { Ok(size / 4096) } else { Err(gmem::Errno::EINVAL) }
/// }
/// assert_eq!(whole_pages(1), Err(gmem::Errno::EINVAL));
/// ```
pub type Result<T> = std::result::Result<T, sim_kernel::Errno>;

/// What a failed `KVM_CHECK_EXTENSION` returns where the errno is not passed on.
const FAILED: i32 = -1;
