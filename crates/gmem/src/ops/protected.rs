//! [`ProtectedOp`]: what a VMM does for a protected guest, whatever protects it: the same words for each kind.

use super::{HvaRef, Name};
use serde::{Deserialize, Serialize};

/// An operation that takes several system calls, which depend on the kind of the VM. As of all operations, [`table::OPS`](super::table::OPS) says what each does.
///
/// ```
/// use gmem::ops::{Op, ProtectedOp};
/// let op: Op = serde_json::from_str(r#"{"op": "create_protected_vm", "vm": "vm0"}"#).unwrap();
/// assert_eq!(op, Op::Protected(ProtectedOp::CreateProtectedVm { vm: "vm0".into() }));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[allow(missing_docs, reason = "operations and arguments are described by `table::OPS`, in one place")]
pub enum ProtectedOp {
    CreateProtectedVm { vm: Name },
    AddGuestMemory { vm: Name, slot: u64, gpa: u64, size: u64, map: Name, fd: Name },
    Launch { vm: Name, gpa: u64, len: u64, hva: HvaRef },
}

impl ProtectedOp {
    /// The operation's name in traces and scenarios.
    pub fn name(&self) -> &'static str {
        match self {
            ProtectedOp::CreateProtectedVm { .. } => "create_protected_vm",
            ProtectedOp::AddGuestMemory { .. } => "add_guest_memory",
            ProtectedOp::Launch { .. } => "launch",
        }
    }
}
