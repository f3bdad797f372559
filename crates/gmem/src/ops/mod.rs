//! The language of operations: what a trace or a scenario asks for, and what it gets back.
//!
//! [`Op`] is one system call, host access or guest access; [`Answer`] is what came back; [`SpteRun`] is what changed in
//! stage 2 meanwhile. [`table::OPS`] describes every operation as data: parsers, printers and error messages live off it.
//!
//! Simplified: numbers stay plain integers here, because a trace may hold values that no address type would accept (an
//! unaligned guest address, a slot number above the limit). The simulator gives them their types when it executes them.

mod advice;
pub mod answer;
pub mod errno;
pub mod json;
mod name;
pub mod op;
mod pkvm;
mod protected;
mod snp;
pub mod spte;
pub mod suggest;
pub mod table;
pub mod tdx;

pub use advice::{Advice, Prot};
pub use answer::{Answer, Detail, Exit, FileStat, OtherField};
pub use errno::{Errno, Signal};
pub use name::{FdRef, HvaRef, Name};
pub use op::{GuestPaged, Op, PagedAccess};
pub use pkvm::PkvmOp;
pub use protected::ProtectedOp;
pub use snp::SnpOp;
pub use spte::{SpteChange, SpteRun, SpteState, fold};
pub use tdx::TdxOp;
