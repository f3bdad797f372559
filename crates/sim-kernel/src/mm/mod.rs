//! Memory: frames and folios with contents, address spaces of processes, host page tables, notifiers.
#![allow(dead_code)]

mod i_mmap;
#[expect(clippy::module_inception, reason = "struct Mm is in mm.rs as mm_struct is in mm_types.h")]
mod mm;
mod notifier;
mod pgtable;
pub mod phys;
mod stubs;
mod vma;
mod zero;

pub use i_mmap::IMmap;
pub use mm::{Advice, GupError, GupFlags, GupPage, HostLevel, Mm, MmapArgs, Signal};
pub use notifier::MmuNotifier;
pub use phys::{FrameFlags, PhysMem};
pub use vma::Prot;
