//! [`SnpOp`]: operations on VMs with SEV-SNP, and of their guests.
//!
//! A family of [`Op`](super::Op) with its own name for each: a recording does not show that they are one. [`table::OPS`](super::table::OPS) says what each
//! one does.

use serde::{Deserialize, Serialize};

use super::{HvaRef, Name};

/// One operation of a VM with SEV-SNP.
///
/// ```
/// use gmem::ops::{Op, SnpOp};
/// let op: Op = serde_json::from_str(r#"{"op": "snp_launch_finish", "vm": "vm0", "flags": 0}"#).unwrap();
/// assert_eq!(op, Op::Snp(SnpOp::SnpLaunchFinish { vm: "vm0".into(), flags: 0 }));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[allow(missing_docs, reason = "operations and arguments are described by `table::OPS`, in one place")]
pub enum SnpOp {
    #[serde(rename = "sev_init2")]
    SevInit2 {
        vm: Name,
        vmsa_features: u64,
        flags: u64,
        ghcb_version: u64,
    },
    SnpLaunchStart {
        vm: Name,
        policy: u64,
        flags: u64,
    },
    SnpLaunchUpdate {
        vm: Name,
        gpa: u64,
        hva: HvaRef,
        len: u64,
        r#type: u64,
        flags: u64,
    },
    SnpLaunchFinish {
        vm: Name,
        flags: u64,
    },
    GuestReadShared {
        vcpu: Name,
        gpa: u64,
    },
    GuestWriteShared {
        vcpu: Name,
        gpa: u64,
        value: u64,
    },
    GuestPvalidate {
        vcpu: Name,
        gpa: u64,
        size: u64,
        validate: bool,
    },
    GuestRmpadjust {
        vcpu: Name,
        gpa: u64,
        vmpl: u64,
        perms: u64,
        vmsa: bool,
    },
    GuestMakeVmsa {
        vcpu: Name,
        gpa: u64,
        features: u64,
        vmpl: u64,
    },
    GuestGhcbMsr {
        vcpu: Name,
        value: u64,
        reply: u64,
    },
    GuestVmgexit {
        vcpu: Name,
        ghcb: u64,
        code: u64,
        info1: u64,
        info2: u64,
        rax: u64,
        reply: u64,
    },
    GuestPsc {
        vcpu: Name,
        ghcb: u64,
        gpa: u64,
        len: u64,
        to: u64,
        huge: bool,
        reply: u64,
    },
    GuestConvert {
        vcpu: Name,
        gpa: u64,
        to: u64,
        reply: u64,
    },
}

impl SnpOp {
    /// The operation's name in traces and scenarios.
    pub fn name(&self) -> &'static str {
        match self {
            SnpOp::SevInit2 { .. } => "sev_init2",
            SnpOp::SnpLaunchStart { .. } => "snp_launch_start",
            SnpOp::SnpLaunchUpdate { .. } => "snp_launch_update",
            SnpOp::SnpLaunchFinish { .. } => "snp_launch_finish",
            SnpOp::GuestReadShared { .. } => "guest_read_shared",
            SnpOp::GuestWriteShared { .. } => "guest_write_shared",
            SnpOp::GuestPvalidate { .. } => "guest_pvalidate",
            SnpOp::GuestRmpadjust { .. } => "guest_rmpadjust",
            SnpOp::GuestMakeVmsa { .. } => "guest_make_vmsa",
            SnpOp::GuestGhcbMsr { .. } => "guest_ghcb_msr",
            SnpOp::GuestVmgexit { .. } => "guest_vmgexit",
            SnpOp::GuestPsc { .. } => "guest_psc",
            SnpOp::GuestConvert { .. } => "guest_convert",
        }
    }
}
