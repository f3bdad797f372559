//! Memory: frames and folios with contents, address spaces of processes, host page tables, notifiers.
//!
//! A process's addresses are an [`Mm`]; its areas, page tables and the calls on them each have a file that is named as the one
//! that they model. Ordinary memory is private anonymous memory with transparent huge pages; files map through
//! [`FileOperations::fault`](crate::fs::FileOperations::fault) and are found again through their [`IMmap`].

mod check;
mod fault;
mod gup;
mod huge_memory;
mod i_mmap;
mod madvise;
mod mempolicy;
mod mincore;
mod mlock;
#[expect(clippy::module_inception, reason = "struct Mm is in mm.rs as mm_struct is in mm_types.h")]
mod mm;
mod mmap;
mod mprotect;
mod notifier;
mod page_idle;
mod pgtable;
pub mod phys;
mod uaccess;
mod vma;
mod vma_modify;
mod zap;
mod zero;

pub use check::MappedPage;
pub use huge_memory::{HugePageRules, Thp};
pub use i_mmap::IMmap;
pub use mempolicy::{Mempolicy, MempolicyMode, Placement, SharedPolicy};
pub use mm::{Advice, GupError, GupFlags, GupPage, HostLevel, Mm, MmapArgs, Signal};
pub use notifier::{INVALIDATE_RANGE, MmuNotifier};
pub use phys::{FrameFlags, PhysMem};
pub use vma::Prot;
