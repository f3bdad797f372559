//! The kernel beneath KVM: tasks and scheduling, locks, RCU, frames, xarray, files and processes.
//!
//! This crate knows no x86 and no KVM. Everything takes an explicit context [`Cx`], so the same code runs deterministically under
//! a scheduler ([`sched::Sim`]) and on OS threads ([`sched::run_native`]).

mod addr;
mod arena;
mod cx;
mod errno;
pub mod explore;
mod faults;
pub mod fs;
pub mod mm;
mod mutant;
pub mod mutants;
mod pool;
pub mod sched;
pub mod sync;
pub mod xarray;

pub use addr::{
    Hva, HvaRange, MMAP_BASE, PAGE_SHIFT, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE, PUD_SIZE, Pfn, Pgoff, TASK_SIZE,
};
pub use arena::Arena;
pub use cx::{Cx, TaskWork};
pub use errno::Errno;
pub use faults::{Faults, Nth};
pub use mutant::{Mutant, MutantSet};
