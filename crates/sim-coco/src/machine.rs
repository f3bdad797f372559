//! The boundary: what KVM asks of a confidential machine, and what the machine checks on every access.

use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gfn, Gpa, Level};

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessKind {
    /// Data read.
    Read,
    /// Data write.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// An access by the guest, after its translation.
#[derive(Clone, Copy, Debug)]
pub struct GuestAccess {
    /// Guest physical address.
    pub gpa: Gpa,
    /// Frame that the stage-2 walk gave.
    pub pfn: Pfn,
    /// Level of the stage-2 leaf.
    pub level: Level,
    /// What it does.
    pub kind: AccessKind,
    /// Whether the guest means its private memory.
    pub private: bool,
}

/// An access by the host to a frame.
#[derive(Clone, Copy, Debug)]
pub struct HostAccess {
    /// The frame.
    pub pfn: Pfn,
    /// What it does.
    pub kind: AccessKind,
}

/// The machine refuses an access or a transition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineFault {
    /// The page does not belong to whoever touched it.
    #[error("ownership check failed for {pfn:?}")]
    Ownership {
        /// The page.
        pfn: Pfn,
    },
    /// The machine is busy; the caller tries again.
    #[error("busy")]
    Busy,
}

/// A machine that may protect guest memory from the host.
pub trait ConfidentialMachine {
    /// Whether guests have memory that the machine, or KVM in its place, keeps from the host (`kvm_arch_has_private_mem`).
    fn has_private_memory(&self) -> bool;

    /// Gives a page to the guest before it is mapped as private (`kvm_arch_gmem_make_private`).
    ///
    /// # Errors
    /// If the machine refuses.
    fn make_private(&self, cx: &Cx<'_>, gfn: Gfn, pfn: Pfn) -> Result<(), MachineFault>;

    /// Takes a page back when it leaves the guest_memfd's page cache (`kvm_arch_gmem_reclaim`).
    ///
    /// # Errors
    /// If the machine refuses; the page must then never be used again.
    fn reclaim(&self, cx: &Cx<'_>, pfn: Pfn) -> Result<(), MachineFault>;

    /// Largest stage-2 mapping that the machine allows for this private page; `None`: no limit (`gmem_max_mapping_level`).
    fn max_mapping_level(&self, pfn: Pfn) -> Option<Level>;

    /// Checks a translated access by the guest.
    ///
    /// # Errors
    /// If the access faults.
    fn check_guest(&self, cx: &Cx<'_>, access: &GuestAccess) -> Result<(), MachineFault>;

    /// Checks an access by the host.
    ///
    /// # Errors
    /// If the access faults.
    fn check_host(&self, cx: &Cx<'_>, access: &HostAccess) -> Result<(), MachineFault>;
}
