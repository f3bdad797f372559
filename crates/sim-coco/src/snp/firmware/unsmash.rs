//! SNP_PAGE_UNSMASH: 512 pages of 4 KiB become one of 2 MiB again.

use super::super::entry::RmpEntry;
use super::super::machine::Snp;
use super::super::types::{Asid, RmpSize, Spa};
use super::NamedPage;
use super::status::{Command, FwStatus, PspFail};
use sim_kernel::{Cx, PAGE_SHIFT, PAGES_PER_PMD, PMD_SIZE};

impl Snp {
    /// SNP_PAGE_UNSMASH of the region at this address. Its pages are closed, of one guest, at consecutive addresses from a 2 MiB boundary on, and
    /// alike in everything else; the one page stays closed (OP-10).
    ///
    /// # Errors
    /// `InvalidAddress`; `InvalidPageSize` if it is a page of 2 MiB; `InvalidPageOwner` if the pages are of several guests, or of none;
    /// `InvalidPageState` if they differ otherwise.
    #[track_caller]
    pub fn snp_page_unsmash(&self, cx: &Cx<'_>, at: Spa) -> Result<(), PspFail> {
        let page = NamedPage { at, size: RmpSize::Size2M };
        self.command(cx, Command::PageUnsmash, &[page], |_| {
            self.check_address(&page)?;
            let head = self.rmp.entry(at.pfn());
            if head.page_size == RmpSize::Size2M {
                return Err(FwStatus::InvalidPageSize);
            }
            if head.asid == Asid::HOST || (0..PAGES_PER_PMD).any(|i| self.rmp.entry(at.pfn() + i).asid != head.asid) {
                return Err(FwStatus::InvalidPageOwner);
            }
            let is_alike = |i: u64| {
                let mut expected: RmpEntry = head;
                expected.gpa = head.gpa + (i << PAGE_SHIFT);
                self.rmp.entry(at.pfn() + i) == expected
            };
            let may_merge = head.immutable && head.gpa.0.is_multiple_of(PMD_SIZE) && (0..PAGES_PER_PMD).all(is_alike);
            if !may_merge {
                return Err(FwStatus::InvalidPageState);
            }
            let immutable = self.config.unsmash_keeps_immutable;
            let merged = RmpEntry { page_size: RmpSize::Size2M, immutable, ..head };
            self.rmp.store_page(at.pfn(), &merged, RmpSize::Size2M);
            self.broadcast(at.pfn(), PAGES_PER_PMD);
            Ok(())
        })
    }
}
