//! System calls on a *real* kernel: what `gmem record` and `gmem fuzz-compare` hold the simulator against.
//!
//! Models nothing. [`Process`] makes the calls of the trace language (`/dev/kvm`, files, memory, one access of the process or of a
//! vCPU) with arguments as wild as a trace may have them, and gives back what the kernel answered. All unsafe code of the
//! repository is in this crate.
//!
//! # Why its interface is safe
//! A trace may ask for `munmap(0, 1 << 47)`, or hand KVM a host address of its choice. What a trace maps lies in one part of the
//! address space, the [arena](ARENA), where nothing else is ever placed; a call that would reach a mapping of this very
//! process outside it is not made and fails with [`Failure::Refused`], in words. The same goes for calls that would take more
//! memory than [`Process::open`] was allowed.
//!
//! Simplified: one thread. x86-64 Linux only; elsewhere the crate is empty.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod access;
mod files;
mod guest;
mod ioctl;
mod limits;
mod maps;
mod memory;
mod paged;
mod process;

pub use guest::{GuestAccess, GuestMode, GuestRun, Left};
pub use ioctl::Region;
pub use limits::limit_process;
pub use maps::ARENA;
pub use paged::{PAGED_LAYOUT, PagedAccess, PagedKind, PagedRun, ROOT_ENTRY};
pub use process::{Failure, Process, Stat, module_parameter, two_dimensional_paging};

/// What a call gave: its value, or why there is none.
pub type Result<T> = std::result::Result<T, Failure>;
