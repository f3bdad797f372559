//! Memory: frames and folios with contents, address spaces of processes, host page tables, notifiers.

mod i_mmap;
pub mod phys;

pub use i_mmap::IMmap;
pub use phys::{FrameFlags, PhysMem};
