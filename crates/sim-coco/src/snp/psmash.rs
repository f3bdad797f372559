//! PSMASH (F3 0F 01 FF): the hypervisor turns a page of 2 MiB into 512 of 4 KiB, of which the guest notices nothing.

use super::entry::RmpEntry;
use super::fail::RmpFail;
use super::lock::Span;
use super::machine::Snp;
use super::types::RmpSize;
use sim_kernel::sched::Access;
use sim_kernel::{Cx, PAGE_SHIFT, PAGES_PER_PMD, Pfn};

impl Snp {
    /// PSMASH of the page at `pfn`.
    ///
    /// # Errors
    /// In the order of the checks: `Input`, `Inuse`, `Permission`, `BadAddr`.
    #[track_caller]
    pub fn psmash(&self, cx: &Cx<'_>, pfn: Pfn) -> Result<(), RmpFail> {
        self.point(cx, Access::Rmw, pfn, PAGES_PER_PMD);
        cx.note("RMP", "PSMASH");
        if !self.is_enabled() {
            return Err(RmpFail::Ud);
        }
        if !RmpSize::Size2M.is_aligned(pfn) || !self.rmp.covers_region(pfn) {
            return Err(RmpFail::Input);
        }
        // R7: who comes second tries again, or finds that it is done.
        let _lock = self.rmp.lock(pfn, Span::Region, self.cpu(cx)).map_err(|_| RmpFail::Inuse)?;
        let head = self.rmp.entry(pfn);
        if head.immutable {
            return Err(RmpFail::Permission);
        }
        if !head.assigned || head.page_size == RmpSize::Size4K {
            return Err(RmpFail::BadAddr);
        }
        self.contend(cx, pfn, PAGES_PER_PMD);
        // The head last: until then, who reads a tail is answered by it (SNP-INV-015).
        for i in (0..PAGES_PER_PMD).rev() {
            let gpa = head.gpa + (i << PAGE_SHIFT);
            self.rmp.store(pfn + i, &RmpEntry { page_size: RmpSize::Size4K, gpa, ..head });
        }
        self.broadcast(pfn, PAGES_PER_PMD);
        Ok(())
    }
}
