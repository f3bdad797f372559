//! [`TdxOp`]: operations on TDs and of their guests.

use super::{HvaRef, Name};
use serde::{Deserialize, Serialize};

/// An operation that only TDs have. As of all operations, [`table::OPS`](super::table::OPS) says what each does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[allow(missing_docs, reason = "operations and arguments are described by `table::OPS`, in one place")]
pub enum TdxOp {
    TdxInitVm { vm: Name, attributes: u64, xfam: u64, width: u64, flags: u64 },
    TdxInitVcpu { vcpu: Name, rcx: u64, flags: u64 },
    TdxInitMemRegion { vcpu: Name, gpa: u64, hva: HvaRef, len: u64, flags: u64 },
    TdxFinalizeVm { vm: Name },
    GuestAccept { vcpu: Name, gpa: u64, size: u64 },
    GuestMapGpa { vcpu: Name, gpa: u64, len: u64, to: u64, reply: u64 },
    GuestTdvmcall { vcpu: Name, leaf: u64, r12: u64, r13: u64, r14: u64, r15: u64, reply: u64 },
}

impl TdxOp {
    /// The operation's name in traces and scenarios.
    pub fn name(&self) -> &'static str {
        match self {
            TdxOp::TdxInitVm { .. } => "tdx_init_vm",
            TdxOp::TdxInitVcpu { .. } => "tdx_init_vcpu",
            TdxOp::TdxInitMemRegion { .. } => "tdx_init_mem_region",
            TdxOp::TdxFinalizeVm { .. } => "tdx_finalize_vm",
            TdxOp::GuestAccept { .. } => "guest_accept",
            TdxOp::GuestMapGpa { .. } => "guest_map_gpa",
            TdxOp::GuestTdvmcall { .. } => "guest_tdvmcall",
        }
    }
}
