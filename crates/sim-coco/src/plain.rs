//! A machine without protection by hardware: under default VMs, and under software-protected ones, whose private memory only
//! KVM's own bookkeeping keeps apart.

use crate::{ConfidentialMachine, GuestAccess, HostAccess, MachineFault};
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gfn, Level};
use std::sync::atomic::{AtomicU64, Ordering};

/// No protection: every access is let through.
///
/// It counts how often pages were made private and how often they were taken back (a page that is looked up again is made private
/// again, so the first number may be larger): a page cache that forgets the reclaim hook shows here.
#[derive(Debug)]
pub struct Plain {
    private_memory: bool,
    made_private: AtomicU64,
    reclaimed: AtomicU64,
}

impl Plain {
    /// The machine of `KVM_X86_DEFAULT_VM`.
    pub fn shared_only() -> Plain {
        Plain { private_memory: false, made_private: AtomicU64::new(0), reclaimed: AtomicU64::new(0) }
    }

    /// The machine of `KVM_X86_SW_PROTECTED_VM`.
    pub fn software_protected() -> Plain {
        Plain { private_memory: true, ..Plain::shared_only() }
    }

    /// How often a page was made private, and how often one was taken back.
    pub fn transitions(&self) -> (u64, u64) {
        (self.made_private.load(Ordering::Relaxed), self.reclaimed.load(Ordering::Relaxed))
    }
}

impl ConfidentialMachine for Plain {
    fn has_private_memory(&self) -> bool {
        self.private_memory
    }

    fn make_private(&self, _cx: &Cx<'_>, _gfn: Gfn, _pfn: Pfn) -> Result<(), MachineFault> {
        self.made_private.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn reclaim(&self, _cx: &Cx<'_>, _pfn: Pfn) -> Result<(), MachineFault> {
        self.reclaimed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn max_mapping_level(&self, _pfn: Pfn) -> Option<Level> {
        None
    }

    fn check_guest(&self, _cx: &Cx<'_>, _access: &GuestAccess) -> Result<(), MachineFault> {
        Ok(())
    }

    fn check_host(&self, _cx: &Cx<'_>, _access: &HostAccess) -> Result<(), MachineFault> {
        Ok(())
    }
}
