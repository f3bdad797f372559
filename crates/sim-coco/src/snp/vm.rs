//! One SNP guest as the [boundary](crate::ConfidentialMachine) sees it: the machine, and the ASID that the hypervisor chose.
//!
//! Each hook is one instruction or one check, with its answer as it comes. Who looks an entry up first, who tries again and who gives up is the
//! hypervisor's business.

use super::check::HostSnpAccess;
use super::entry::RmpUpdate;
use super::fail::RmpFail;
use super::guest::{GuestCpu, SnpAccess};
use super::machine::Snp;
use super::types::Asid;
use crate::{ConfidentialMachine, GuestAccess, HostAccess, MachineFault};
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gfn, Level};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// An SNP guest on its machine.
pub struct SnpVm {
    snp: Arc<Snp>,
    asid: OnceLock<Asid>,
}

impl SnpVm {
    /// A guest that has no ASID yet.
    pub fn new(snp: Arc<Snp>) -> SnpVm {
        SnpVm { snp, asid: OnceLock::new() }
    }

    /// The machine.
    pub fn snp(&self) -> &Arc<Snp> {
        &self.snp
    }

    /// The guest's ASID, once it has one.
    pub fn asid(&self) -> Option<Asid> {
        self.asid.get().copied()
    }

    /// The hypervisor has chosen an ASID.
    ///
    /// # Panics
    /// If there is one already.
    pub fn set_asid(&self, asid: Asid) {
        assert!(self.asid.set(asid).is_ok(), "a guest has one ASID");
    }

    fn update(&self, cx: &Cx<'_>, pfn: Pfn, new: RmpUpdate) -> Result<(), MachineFault> {
        self.snp.rmpupdate(cx, pfn, new).map_err(|fail| match fail {
            RmpFail::Inuse | RmpFail::Overlap => MachineFault::Busy,
            _ => MachineFault::Ownership { pfn },
        })
    }
}

impl fmt::Debug for SnpVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnpVm").field("asid", &self.asid).finish_non_exhaustive()
    }
}

impl ConfidentialMachine for SnpVm {
    fn has_private_memory(&self) -> bool {
        true
    }

    fn make_private(&self, cx: &Cx<'_>, gfn: Gfn, pfn: Pfn) -> Result<(), MachineFault> {
        let asid = self.asid().ok_or(MachineFault::Ownership { pfn })?;
        self.update(cx, pfn, RmpUpdate::guest(asid, gfn.gpa()))
    }

    fn reclaim(&self, cx: &Cx<'_>, pfn: Pfn) -> Result<(), MachineFault> {
        self.update(cx, pfn, RmpUpdate::HYPERVISOR)
    }

    fn max_mapping_level(&self, pfn: Pfn) -> Option<Level> {
        match self.snp.rmp().lookup(pfn) {
            Some((true, level)) => Some(level),
            _ => Some(Level::L4K),
        }
    }

    fn check_guest(&self, _cx: &Cx<'_>, access: &GuestAccess) -> Result<(), MachineFault> {
        let asid = self.asid().ok_or(MachineFault::Ownership { pfn: access.pfn })?;
        let mut checked = SnpAccess::private(access.kind, access.gpa, access.pfn).at_level(access.level);
        checked.c_bit = access.private;
        let answer = self.snp.check_guest(&GuestCpu::snp(0, asid), &checked);
        answer.map(drop).map_err(|_| MachineFault::Ownership { pfn: access.pfn })
    }

    fn check_host(&self, _cx: &Cx<'_>, access: &HostAccess) -> Result<(), MachineFault> {
        let checked = HostSnpAccess::kernel(access.kind, access.pfn);
        self.snp.check_host(&checked).map_err(|_| MachineFault::Ownership { pfn: access.pfn })
    }
}
