//! The registry of mutants: which rules can be switched off, and what goes wrong then.
//!
//! A mutant removes one mechanism at one line, like a bug that somebody could write, or did: `RC-..` are the rows of racing pairs of the
//! specification, `BUG-..` are real defects of the past, and names in capitals are rows of the MMU's table of races (`R02`). The constants are where the lines are; here is the text, one row each, and the
//! scenario that shows the mutant. Lines that change behaviour by release instead are in [`crate::kvm::versions`].

mod absent;
mod attributes;
mod bugs;
mod lifetime;
mod notifiers;
mod page_cache;
mod pkvm;
mod registry;
mod sequence;
mod sev;
mod slots;
mod tables;
mod tdx;
mod tlbs;

pub use absent::{ABSENT, Absent};
pub use registry::{MutantInfo, all, find, named};
