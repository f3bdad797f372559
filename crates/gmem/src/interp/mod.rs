//! The interpreter: performs operations of the [`ops`](crate::ops) language on a simulated host, as the recording program
//! performed them on a real one.
//!
//! Objects have names. A name that was never given, or whose object was closed, is descriptor -1 or address 0, so the kernel's own
//! answer comes out. The process has one `/dev/kvm` open throughout.

mod guest;
pub(crate) mod paged;
mod pkvm;
mod protected;
mod sequential;
mod snp;
mod stage2;
mod tdx;
mod world;

pub use sequential::Sequential;
pub use stage2::Stage2Reader;
pub use world::{Named, World};
