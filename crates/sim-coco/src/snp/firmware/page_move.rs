//! SNP_PAGE_MOVE: a guest's page gets another frame, and with it another ciphertext.

use super::super::machine::Snp;
use super::super::state::PageState;
use super::super::types::{RmpSize, Spa};
use super::NamedPage;
use super::context::GuestPolicy;
use super::status::{Command, FwStatus, PspFail};
use sim_kernel::Cx;

/// What PAGE_MOVE is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageMove {
    /// The context.
    pub gctx: Spa,
    /// Size of both.
    pub page_size: RmpSize,
    /// The page as it is: closed, and accepted by the guest.
    pub src: Spa,
    /// Where it is to be: given to the guest, for the firmware to fill.
    pub dst: Spa,
}

impl Snp {
    /// SNP_PAGE_MOVE: the destination has the source's contents, address, rights and acceptance, and is open; the source is open and not accepted.
    ///
    /// # Errors
    /// In the order of the checks: `InvalidAddress`, `InvalidGuest`, `InvalidGuestState`, `Inactive`, `PolicyFailure`, then of each page
    /// `InvalidPageSize`, `InvalidPageOwner`, `InvalidPageState`.
    #[track_caller]
    pub fn snp_page_move(&self, cx: &Cx<'_>, page_move: &PageMove) -> Result<(), PspFail> {
        let size = page_move.page_size;
        let src = NamedPage { at: page_move.src, size };
        let dst = NamedPage { at: page_move.dst, size };
        if src == dst {
            return Err(FwStatus::InvalidAddress.into());
        }
        self.command(cx, Command::PageMove, &[src, dst], |psp| {
            self.check_gctx(page_move.gctx)?;
            self.check_address(&src)?;
            self.check_address(&dst)?;
            let guest = psp.guest_for(Command::PageMove, page_move.gctx)?;
            let asid = guest.asid.ok_or(FwStatus::Inactive)?;
            if guest.policy.contains(GuestPolicy::PAGE_SWAP_DISABLE) {
                return Err(FwStatus::PolicyFailure);
            }
            let moved = self.check_page(&src, asid, &[PageState::PreSwap])?;
            self.check_page(&dst, asid, &[PageState::PreGuest])?;
            for i in 0..size.pages() {
                let plaintext = self.memory.read_page_with(&guest.vek, src.at.pfn() + i);
                self.memory.write_page_with(&guest.vek, dst.at.pfn() + i, &plaintext);
            }
            self.rmp.change_page(dst.at.pfn(), |entry| {
                entry.immutable = false;
                entry.validated = moved.validated;
                entry.gpa = moved.gpa;
                entry.perms = moved.perms;
                entry.vmsa = moved.vmsa;
            });
            self.rmp.change_page(src.at.pfn(), |entry| {
                entry.immutable = false;
                entry.validated = false;
            });
            Ok(())
        })
    }
}
