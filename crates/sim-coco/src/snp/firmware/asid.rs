//! SNP_ACTIVATE and SNP_DF_FLUSH: which guest has which ASID, and what must happen before another one may have it.

use super::super::machine::Snp;
use super::super::mutants;
use super::super::types::{Asid, Spa};
use super::status::{Command, FwStatus, PspFail};
use sim_kernel::{Cx, Pfn};

/// What an ASID is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AsidUse {
    /// By the guest with its context in this frame.
    Bound {
        /// The frame.
        gctx: Pfn,
    },
    /// By nobody any more, but caches may have lines of it: WBINVD everywhere and DF_FLUSH come first.
    Stale,
}

impl Snp {
    /// SNP_ACTIVATE: binds an ASID to a guest and loads its key.
    ///
    /// # Errors
    /// In the order of the checks: `InvalidAddress`, `InvalidGuest`, `InvalidGuestState`, `InvalidAsid`, `InvalidConfig` for one that is not
    /// for SNP guests, `Active`, `AsidOwned`, `WbinvdRequired`, `DfflushRequired`.
    #[track_caller]
    pub fn snp_activate(&self, cx: &Cx<'_>, gctx: Spa, asid: Asid) -> Result<(), PspFail> {
        self.command(cx, Command::Activate, &[], |psp| {
            self.check_gctx(gctx)?;
            let guest = psp.guest_for(Command::Activate, gctx)?;
            let is_active = guest.asid.is_some();
            let key = guest.vek.clone();
            if !self.is_guest_asid(asid) {
                return Err(FwStatus::InvalidAsid);
            }
            if self.config.asid_max_snp.is_some_and(|max| asid.0 > max) {
                return Err(FwStatus::InvalidConfig);
            }
            if is_active {
                return Err(FwStatus::Active);
            }
            match psp.asids.get(&asid) {
                Some(AsidUse::Bound { .. }) => return Err(FwStatus::AsidOwned),
                Some(AsidUse::Stale) if self.is_off(mutants::R14) => {}
                // R14: without this, lines of the last guest reach memory after the new one wrote (SNP-INV-023).
                Some(AsidUse::Stale) if !self.cpus.lock().wbinvd_owed.is_empty() => {
                    return Err(FwStatus::WbinvdRequired);
                }
                Some(AsidUse::Stale) => return Err(FwStatus::DfflushRequired),
                None => {}
            }
            psp.asids.insert(asid, AsidUse::Bound { gctx: gctx.pfn() });
            psp.guest(gctx)?.asid = Some(asid);
            self.memory.load_key(asid, key);
            Ok(())
        })
    }

    /// SNP_DF_FLUSH: ASIDs that were given up may be used again.
    ///
    /// # Errors
    /// `WbinvdRequired` if a processor did not write back its caches since the last was given up (R25).
    #[track_caller]
    pub fn snp_df_flush(&self, cx: &Cx<'_>) -> Result<(), PspFail> {
        self.command(cx, Command::DfFlush, &[], |psp| {
            if !self.is_off(mutants::R25) && !self.cpus.lock().wbinvd_owed.is_empty() {
                return Err(FwStatus::WbinvdRequired);
            }
            psp.asids.retain(|_, usage| *usage != AsidUse::Stale);
            Ok(())
        })
    }
}
