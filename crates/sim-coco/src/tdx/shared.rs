//! Shared memory of a TD: what the processor walks for an address with the shared bit is an ordinary EPT of the host, behind the TD's Shared EPT pointer.
//!
//! The host's tables are the host's: whoever runs a vCPU says what a walk of them gives.

use crate::AccessKind;
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gpa, Level};
use std::fmt;

/// What a walk of the Shared EPT gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SharedWalk {
    /// A page.
    Mapped {
        /// Its first frame.
        pfn: Pfn,
        /// Its size.
        level: Level,
        /// Whether it may be written.
        writable: bool,
    },
    /// Nothing that permits the access; the entry suppresses `#VE`: an EPT violation.
    Violation,
    /// Nothing that permits the access, and the entry does not suppress `#VE`.
    Ve,
}

/// The host's tables for a TD's shared memory.
pub trait SharedEpt: Send + Sync + fmt::Debug {
    /// Walks them for an access. The address has the shared bit. It is a part of the guest's step, and may announce more.
    fn walk(&self, cx: &Cx<'_>, gpa: Gpa, kind: AccessKind) -> SharedWalk;
}
