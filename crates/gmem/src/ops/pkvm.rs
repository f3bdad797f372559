//! [`PkvmOp`]: operations of guests of pKVM. What the VMM does with their VMs is as with any other, and a single hypercall is `guest_hypercall`.

use super::Name;
use serde::{Deserialize, Serialize};

/// An operation that only guests of pKVM have. As of all operations, [`table::OPS`](super::table::OPS) says what each does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[allow(missing_docs, reason = "operations and arguments are described by `table::OPS`, in one place")]
pub enum PkvmOp {
    GuestSetMemory { vcpu: Name, gpa: u64, len: u64, to: u64 },
}

impl PkvmOp {
    /// The operation's name in traces and scenarios.
    pub fn name(&self) -> &'static str {
        match self {
            PkvmOp::GuestSetMemory { .. } => "guest_set_memory",
        }
    }
}
