//! SNP_DBG_DECRYPT and SNP_DBG_ENCRYPT: the host looks into, or writes, a guest whose owner allows it.

use super::super::machine::Snp;
use super::super::memory::KeyPath;
use super::super::state::PageState;
use super::super::types::{Asid, RmpSize, Spa};
use super::context::GuestPolicy;
use super::status::{Command, FwStatus, PspFail};
use super::{NamedPage, Psp};
use sim_kernel::Cx;

impl Snp {
    /// SNP_DBG_DECRYPT of a guest's page into one of the firmware, which stays so.
    ///
    /// # Errors
    /// In the order of the checks: `InvalidAddress`, `InvalidGuest`, `InvalidGuestState`, `Inactive`, `PolicyFailure` without `DEBUG`,
    /// `InvalidPageSize` and `InvalidPageState` of the destination, `InvalidPageOwner`.
    #[track_caller]
    pub fn snp_dbg_decrypt(&self, cx: &Cx<'_>, gctx: Spa, src: Spa, dst: Spa) -> Result<(), PspFail> {
        let from = NamedPage::small(src);
        let to = NamedPage::small(dst);
        if from == to {
            return Err(FwStatus::InvalidAddress.into());
        }
        self.command(cx, Command::DbgDecrypt, &[from, to], |psp| {
            self.check_debug(psp, Command::DbgDecrypt, gctx, [&from, &to])?;
            self.check_firmware_page(&to)?;
            let guest = psp.guest(gctx)?;
            self.check_owned(&from, guest.asid)?;
            let plaintext = self.memory.read_page_with(&guest.vek, src.pfn());
            self.memory.write_page(KeyPath::Raw, dst.pfn(), &plaintext);
            Ok(())
        })
    }

    /// SNP_DBG_ENCRYPT of the host's page into a guest's.
    ///
    /// # Errors
    /// As [`Snp::snp_dbg_decrypt`], with the guest's page as the destination.
    #[track_caller]
    pub fn snp_dbg_encrypt(&self, cx: &Cx<'_>, gctx: Spa, src: Spa, dst: Spa) -> Result<(), PspFail> {
        let from = NamedPage::small(src);
        let to = NamedPage::small(dst);
        if from == to {
            return Err(FwStatus::InvalidAddress.into());
        }
        self.command(cx, Command::DbgEncrypt, &[from, to], |psp| {
            self.check_debug(psp, Command::DbgEncrypt, gctx, [&from, &to])?;
            let guest = psp.guest(gctx)?;
            self.check_owned(&to, guest.asid)?;
            let plaintext = self.memory.read_page(KeyPath::Raw, src.pfn());
            self.memory.write_page_with(&guest.vek, dst.pfn(), &plaintext);
            Ok(())
        })
    }

    fn check_debug(&self, psp: &mut Psp, command: Command, gctx: Spa, pages: [&NamedPage; 2]) -> Result<(), FwStatus> {
        self.check_gctx(gctx)?;
        for page in pages {
            self.check_address(page)?;
        }
        let guest = psp.guest_for(command, gctx)?;
        if guest.asid.is_none() {
            return Err(FwStatus::Inactive);
        }
        if guest.policy.contains(GuestPolicy::DEBUG) { Ok(()) } else { Err(FwStatus::PolicyFailure) }
    }

    /// Whether the page, or the larger one that contains it, is the guest's.
    fn check_owned(&self, page: &NamedPage, asid: Option<Asid>) -> Result<(), FwStatus> {
        let entry = self.rmp.page(page.at.pfn());
        debug_assert_eq!(page.size, RmpSize::Size4K, "the command names pages of 4 KiB");
        if !entry.assigned || Some(entry.asid) != asid {
            return Err(FwStatus::InvalidPageOwner);
        }
        self.check_state(
            page,
            &[PageState::PreGuest, PageState::GuestInvalid, PageState::GuestValid, PageState::PreSwap],
        )
    }
}
