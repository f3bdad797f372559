//! RMPREAD (F2 0F 01 FD): the hypervisor reads an entry in the architectural form.

use super::entry::RmpReadout;
use super::fail::RmpFail;
use super::machine::Snp;
use super::types::head_of;
use sim_kernel::sched::Access;
use sim_kernel::{Cx, PAGES_PER_PMD, Pfn};

impl Snp {
    /// RMPREAD of the entry of `pfn`: its own fields, a tail's too. One atomic read, which heeds no mark.
    ///
    /// # Errors
    /// `Input` if the RMP has no entry for it.
    #[track_caller]
    pub fn rmpread(&self, cx: &Cx<'_>, pfn: Pfn) -> Result<RmpReadout, RmpFail> {
        self.point(cx, Access::Load, pfn, 1);
        if !self.is_enabled() {
            return Err(RmpFail::Ud);
        }
        if !self.rmp.covers(pfn) {
            return Err(RmpFail::Input);
        }
        Ok(self.rmp.readout(pfn))
    }

    /// Whether any entry of the region of 2 MiB around the frame is assigned: RMPREAD of each of them, in one step.
    #[track_caller]
    pub fn rmpread_any_assigned(&self, cx: &Cx<'_>, pfn: Pfn) -> bool {
        self.point(cx, Access::Load, head_of(pfn), PAGES_PER_PMD);
        self.rmp.any_assigned_in_region(pfn)
    }
}
