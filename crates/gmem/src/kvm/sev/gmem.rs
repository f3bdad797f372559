//! Pages of guest_memfds and the RMP: made the guest's before they are mapped, taken back when they leave the page cache
//! (`sev_gmem_make_private`, `sev_gmem_make_shared`, `sev_gmem_invalidate_range`, `sev_gmem_max_mapping_level`).

use super::check::{assert_assigned, assert_cleared};
use super::host::SevHost;
use super::info::SevInfo;
use crate::kvm::mutants::{
    SEV_2M_OVERLAPS, SEV_LEVEL_UNLIMITED, SEV_NO_INVALIDATE, SEV_NO_MAKE_PRIVATE, SEV_NO_PSMASH, SEV_NO_VMSA_RELOAD,
    SEV_VMSA_RELOAD_NO_WAIT, SEV_WRONG_ASID, SEV_WRONG_GPA,
};
use crate::kvm::vcpu::Request;
use crate::kvm::vm::Vm;
use sim_coco::snp::{Asid, RmpSize};
use sim_kernel::{Cx, Errno, PAGE_SIZE, PAGES_PER_PMD, Pfn};
use sim_mmu::{Gfn, GfnRange, Gpa, Level};
use std::ops::Range;

impl SevInfo {
    /// `sev_gmem_make_private`: the page is assigned to the guest at this address. If it is assigned already, to whomever and wherever, nothing happens. A
    /// folio that may be mapped as one becomes one page of 2 MiB if nothing of it is assigned.
    ///
    /// # Errors
    /// `ENOENT` if the RMP has no entry for it; `EINVAL` if it cannot be assigned.
    pub(crate) fn gmem_make_private(&self, cx: &Cx<'_>, gfn: Gfn, pfn: Pfn, max_level: Level) -> Result<(), Errno> {
        let Some(asid) = self.asid() else { return Ok(()) };
        let (assigned, _) = self.host.lookup_rmpentry(cx, pfn).ok_or(Errno::ENOENT)?;
        if assigned || cx.has_mutant(SEV_NO_MAKE_PRIVATE) {
            return Ok(());
        }
        let gpa = if cx.has_mutant(SEV_WRONG_GPA) { Gpa(gfn.gpa().0 + PAGE_SIZE) } else { gfn.gpa() };
        let asid =
            if cx.has_mutant(SEV_WRONG_ASID) { Asid(asid.0 % self.host.snp().config().asid_max + 1) } else { asid };
        let is_large = max_level > Level::L4K && self.host.is_large_rmp_possible(cx, pfn);
        let size = if is_large { RmpSize::Size2M } else { RmpSize::Size4K };
        // Both are aligned down alike; that they are congruent is the caller's business.
        let aligned = size.pages() - 1;
        let (first, gpa) = (Pfn(pfn.0 & !aligned), Gpa(gpa.0 & !(size.pages() * PAGE_SIZE - 1)));
        assert_cleared(self.host.phys(), first, size.pages());
        self.host.rmp_make_private(cx, first, gpa, size, asid, false).map_err(|_| Errno::EINVAL)?;
        assert_assigned(self.host.snp(), pfn, self.asid().expect("seen above"), gfn.gpa());
        Ok(())
    }

    /// `sev_gmem_max_mapping_level`: the size of the page in the RMP.
    pub fn gmem_max_mapping_level(&self, cx: &Cx<'_>, pfn: Pfn) -> Level {
        if cx.has_mutant(SEV_LEVEL_UNLIMITED) {
            return Level::L1G;
        }
        match self.host.lookup_rmpentry(cx, pfn) {
            Some((true, level)) => level,
            _ => Level::L4K,
        }
    }
}

impl SevHost {
    /// `is_large_rmp_possible`, of a page of a large folio: whether nothing of it is assigned.
    ///
    /// One step: the folio is locked, so that nobody else assigns a part of it but a launch, which comes before vCPUs can run.
    fn is_large_rmp_possible(&self, cx: &Cx<'_>, pfn: Pfn) -> bool {
        cx.has_mutant(SEV_2M_OVERLAPS) || !self.snp().rmpread_any_assigned(cx, pfn)
    }

    /// `sev_gmem_make_shared`: frames that leave a page cache go back to the hypervisor. A failure is a warning in Linux, and the frame is freed all the same.
    pub(crate) fn gmem_make_shared(&self, cx: &Cx<'_>, frames: Range<Pfn>) {
        if cx.has_mutant(SEV_NO_INVALIDATE) {
            return;
        }
        let mut pfn = frames.start;
        while pfn < frames.end {
            let Some((true, level)) = self.lookup_rmpentry(cx, pfn) else {
                pfn = pfn + 1;
                continue;
            };
            let is_whole = pfn.0.is_multiple_of(PAGES_PER_PMD) && frames.end.0 - pfn.0 >= PAGES_PER_PMD;
            let use_2m = is_whole && level == Level::L2M;
            if !use_2m && level == Level::L2M && !cx.has_mutant(SEV_NO_PSMASH) {
                // A failure only warns; what follows then overlaps for ever.
                let _warned = self.rmptable_psmash(cx, pfn);
            }
            let size = if use_2m { RmpSize::Size2M } else { RmpSize::Size4K };
            let _warned = self.rmp_make_shared(cx, pfn, size);
            pfn = pfn + size.pages();
        }
    }
}

impl Vm {
    /// `sev_gmem_invalidate_range`: vCPUs whose own VMSA lies in these frames get out of the guest, and look it up again before they enter (`KVM_REQ_VMSA_PAGE_RELOAD`). Under
    /// `mmu_lock` for writing.
    pub(crate) fn sev_gmem_invalidate_range(&self, cx: &Cx<'_>, frames: &[(u16, GfnRange)]) {
        if self.sev().is_none() || cx.has_mutant(SEV_NO_VMSA_RELOAD) {
            return;
        }
        for vcpu in self.all_vcpus() {
            let Some(es) = vcpu.sev() else { continue };
            let gpa = es.guest_vmsa_gpa.load(cx);
            if gpa == super::vcpu::NO_VMSA || !frames.iter().any(|(_, range)| range.contains(Gpa(gpa).gfn())) {
                continue;
            }
            if cx.has_mutant(SEV_VMSA_RELOAD_NO_WAIT) {
                vcpu.make_request(cx, Request::VmsaPageReload);
            } else {
                vcpu.make_request_and_wait(cx, Request::VmsaPageReload);
            }
        }
    }
}
