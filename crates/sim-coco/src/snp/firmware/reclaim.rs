//! SNP_PAGE_RECLAIM: what the firmware has let go of, on its way back to the host.

use super::super::machine::Snp;
use super::super::state::PageState;
use super::super::types::{RmpSize, Spa};
use super::NamedPage;
use super::status::{Command, FwStatus, PspFail};
use sim_kernel::Cx;

impl Snp {
    /// SNP_PAGE_RECLAIM: a closed page becomes one that RMPUPDATE can take.
    ///
    /// # Errors
    /// `InvalidAddress`; `InvalidPageSize`; `InvalidPageState` for a page of the hypervisor, a context, or a guest's page that is open.
    #[track_caller]
    pub fn snp_page_reclaim(&self, cx: &Cx<'_>, at: Spa, size: RmpSize) -> Result<(), PspFail> {
        let page = NamedPage { at, size };
        self.command(cx, Command::PageReclaim, &[page], |_| {
            self.check_address(&page)?;
            self.check_no_rmp_page(&page)?;
            self.check_size(&page)?;
            match self.rmp.state(at.pfn()) {
                Some(PageState::Reclaim) => {}
                Some(PageState::Firmware | PageState::Metadata | PageState::PreGuest | PageState::PreSwap) => {
                    self.rmp.change_page(at.pfn(), |entry| entry.immutable = false);
                }
                _ => return Err(FwStatus::InvalidPageState),
            }
            Ok(())
        })
    }
}
