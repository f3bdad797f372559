//! ASIDs of SNP guests (`sev_asid_new`, `sev_asid_free`): one that was given up is used again only after WBINVD everywhere and DF_FLUSH.

use super::host::SevHost;
use crate::kvm::mutants::{SEV_ASID_NO_FLUSH, SEV_DEACTIVATE_UNLOCKED};
use sim_coco::snp::Asid;
use sim_coco::snp::firmware::{FwStatus, PspFail};
use sim_kernel::sync::Mutex;
use sim_kernel::{Cx, Errno};
use std::collections::BTreeSet;

/// `sev_asid_bitmap` and `sev_reclaim_asid_bitmap`, under `sev_bitmap_lock`.
#[derive(Debug, Default)]
struct Bitmaps {
    used: BTreeSet<u16>,
    /// Given up, and not flushed; in `used` too.
    reclaim: BTreeSet<u16>,
}

/// The ASIDs of a host.
#[derive(Debug)]
pub(super) struct SevAsids {
    /// `min_sev_asid - 1`, or `max_snp_asid` where ciphertext is hidden.
    max: u16,
    bitmaps: Mutex<Bitmaps>,
}

impl SevAsids {
    pub(super) fn new(cx: &Cx<'_>, max: u64) -> SevAsids {
        let bitmaps = Mutex::new(cx, "sev_bitmap_lock", Bitmaps::default());
        SevAsids { max: u16::try_from(max).unwrap_or(u16::MAX), bitmaps }
    }
}

impl SevHost {
    /// `sev_asid_new`.
    ///
    /// # Errors
    /// `ENOTTY` if SNP guests may have none at all; `EBUSY` if all are taken, also after those that were given up have been flushed.
    pub(super) fn asid_new(&self, cx: &Cx<'_>) -> Result<Asid, Errno> {
        let max = self.asids.max;
        if max == 0 {
            return Err(Errno::ENOTTY);
        }
        let mut bitmaps = self.asids.bitmaps.lock(cx);
        let mut retry = true;
        loop {
            if let Some(asid) = (1..=max).find(|asid| !bitmaps.used.contains(asid)) {
                bitmaps.used.insert(asid);
                return Ok(Asid(asid));
            }
            if !retry || !self.recycle_asids(cx, &mut bitmaps) {
                return Err(Errno::EBUSY);
            }
            retry = false;
        }
    }

    /// `__sev_recycle_asids`: whether any ASID is free now that was not.
    fn recycle_asids(&self, cx: &Cx<'_>, bitmaps: &mut Bitmaps) -> bool {
        if bitmaps.reclaim.is_empty() || !cx.has_mutant(SEV_ASID_NO_FLUSH) && self.flush_asids(cx).is_err() {
            return false;
        }
        for asid in std::mem::take(&mut bitmaps.reclaim) {
            bitmaps.used.remove(&asid);
        }
        true
    }

    /// `sev_flush_asids`: no guest is being deactivated meanwhile.
    fn flush_asids(&self, cx: &Cx<'_>) -> Result<(), Errno> {
        let _deactivate = (!cx.has_mutant(SEV_DEACTIVATE_UNLOCKED)).then(|| self.deactivate_lock.write(cx));
        self.snp().wbinvd_all(cx);
        let flushed = self.snp().snp_df_flush(cx);
        let deactivated = flushed == Err(PspFail::Status(FwStatus::WbinvdRequired)) && self.snp().owes_wbinvd();
        assert!(!deactivated, "SNP-INV-023: a guest is deactivated between WBINVD and DF_FLUSH");
        flushed.map_err(super::ioctl::psp_errno)
    }

    /// `sev_asid_free`: the ASID can be used again after the next flush.
    pub(super) fn asid_free(&self, cx: &Cx<'_>, asid: Asid) {
        self.asids.bitmaps.lock(cx).reclaim.insert(asid.0);
    }

    /// ASIDs that are taken and those of them that wait for a flush: for checkers, while nothing else runs.
    pub fn peek_asids(&self) -> (Vec<Asid>, Vec<Asid>) {
        let list = |set: &BTreeSet<u16>| set.iter().copied().map(Asid).collect();
        self.asids.bitmaps.peek(|bitmaps| (list(&bitmaps.used), list(&bitmaps.reclaim)))
    }
}
