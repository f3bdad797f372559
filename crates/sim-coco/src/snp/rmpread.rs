//! RMPREAD (F2 0F 01 FD): the hypervisor reads an entry in the architectural form.

use super::entry::RmpReadout;
use super::fail::RmpFail;
use super::machine::Snp;
use sim_kernel::sched::Access;
use sim_kernel::{Cx, Pfn};

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
}
