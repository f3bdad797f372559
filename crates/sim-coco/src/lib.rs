//! Confidential machines as their vendors define them: hardware and firmware, no Linux but the hypervisor that is one.
//!
//! [`ConfidentialMachine`] is the boundary between KVM and the machine beneath. Every VM has one [`Backend`]; TDX and
//! pKVM become further backends. SNP VMs have an [`SnpVm`](snp::SnpVm). Default and software-protected VMs run on [`Plain`], a machine that protects nothing: it lets
//! every access through and keeps count of what it was asked, so that the boundary is exercised by every VM. [`BusyOnce`] lets one of them
//! be busy on purpose.

mod busy;
mod machine;
pub mod pkvm;
mod plain;
pub mod snp;
pub mod tdx;
mod violation;

pub use busy::BusyOnce;
pub use machine::{AccessKind, ConfidentialMachine, GuestAccess, HostAccess, MachineFault};
pub use plain::Plain;
pub use violation::Violation;

use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gfn, Level};

/// The machine under one VM, dispatched without a virtual call.
#[derive(Debug)]
#[non_exhaustive]
pub enum Backend {
    /// No protection by hardware.
    Plain(Plain),
    /// AMD SEV-SNP.
    Snp(snp::SnpVm),
}

impl ConfidentialMachine for Backend {
    fn has_private_memory(&self) -> bool {
        match self {
            Backend::Plain(m) => m.has_private_memory(),
            Backend::Snp(m) => m.has_private_memory(),
        }
    }

    fn make_private(&self, cx: &Cx<'_>, gfn: Gfn, pfn: Pfn) -> Result<(), MachineFault> {
        match self {
            Backend::Plain(m) => m.make_private(cx, gfn, pfn),
            Backend::Snp(m) => m.make_private(cx, gfn, pfn),
        }
    }

    fn reclaim(&self, cx: &Cx<'_>, pfn: Pfn) -> Result<(), MachineFault> {
        match self {
            Backend::Plain(m) => m.reclaim(cx, pfn),
            Backend::Snp(m) => m.reclaim(cx, pfn),
        }
    }

    fn max_mapping_level(&self, pfn: Pfn) -> Option<Level> {
        match self {
            Backend::Plain(m) => m.max_mapping_level(pfn),
            Backend::Snp(m) => m.max_mapping_level(pfn),
        }
    }

    fn check_guest(&self, cx: &Cx<'_>, access: &GuestAccess) -> Result<(), MachineFault> {
        match self {
            Backend::Plain(m) => m.check_guest(cx, access),
            Backend::Snp(m) => m.check_guest(cx, access),
        }
    }

    fn check_host(&self, cx: &Cx<'_>, access: &HostAccess) -> Result<(), MachineFault> {
        match self {
            Backend::Plain(m) => m.check_host(cx, access),
            Backend::Snp(m) => m.check_host(cx, access),
        }
    }
}
