//! The launch of a guest: its context, its first pages, the VMSAs of its vCPUs, and the end of the measurement (`snp_launch_start`,
//! `snp_launch_update`, `snp_launch_finish`).

use super::host::SevHost;
use super::info::{SevInfo, VMSA_GPA, snp_decommission_context};
use super::ioctl::{Issuer, SnpLaunchFinish, SnpLaunchStart, SnpLaunchUpdate, SnpPageType};
use super::vcpu::SevEs;
use super::vmsa::reset_vmsa;
use crate::kvm::guest_memfd::PopulateSource;
use crate::kvm::mutants::{SEV_LAUNCH_NO_ASSIGNED_CHECK, SEV_LAUNCH_NO_RECLAIM, SEV_LAUNCH_OPEN};
use crate::kvm::vcpu::{Vcpu, VcpuState};
use crate::kvm::vm::Vm;
use sim_coco::AccessKind;
use sim_coco::snp::firmware::{
    AsidUse, FwStatus, GuestPolicy, LaunchFinish, LaunchStart, LaunchUpdate, PageInfo, PageType, PspFail,
};
use sim_coco::snp::{Asid, HostSnpAccess, KeyPath, RmpSize, Snp, Spa};
use sim_kernel::fs::RawFd;
use sim_kernel::{Cx, Errno, PAGE_SIZE, Pfn};
use sim_mmu::{Gfn, Gpa};
use std::sync::Arc;

/// `KVM_SNP_POLICY_MASK_VALID`: everything but a migration agent, which KVM does not support.
const POLICY_VALID: GuestPolicy = GuestPolicy::all().difference(GuestPolicy::MIGRATE_MA);

impl Vm {
    /// `snp_launch_start`.
    ///
    /// # Errors
    /// `ENOTTY` before `KVM_SEV_INIT2`, or if no context can be made; `EINVAL` if there is one, or for flags and policies; `EIO` if the firmware refuses,
    /// and then it can be tried again.
    pub(super) fn snp_launch_start(
        &self,
        cx: &Cx<'_>,
        sev: &SevInfo,
        issuer: &mut Issuer<'_>,
        start: &SnpLaunchStart,
        fd: RawFd,
    ) -> Result<(), Errno> {
        let Some(asid) = sev.asid() else { return Err(Errno::ENOTTY) };
        // `snp_supported_policy_bits`.
        let supported = POLICY_VALID & sev.host.snp().policy_bits();
        let is_valid = start.policy & !supported.bits() == 0 && start.policy & GuestPolicy::MBO.bits() != 0;
        if sev.context().is_some() || start.flags != 0 || !is_valid {
            return Err(Errno::EINVAL);
        }
        let context = snp_context_create(cx, sev, issuer, fd).ok_or(Errno::ENOTTY)?;
        sev.set_context(Some(context));
        *sev.launched.lock() = sim_coco::snp::firmware::LaunchDigest::ZERO;
        let gctx = Spa::of(context);
        let command = LaunchStart { gctx, policy: start.policy, gosvw: start.gosvw, imi_en: false };
        let snp = sev.host.snp();
        let started = issuer.issued(snp.snp_launch_start(cx, &command));
        let bound = started.and_then(|()| {
            sev.store_fd(&issuer.process.fds, fd);
            // `snp_bind_asid`.
            let activated = snp.snp_activate(cx, gctx, asid);
            assert_free(snp, asid, activated);
            issuer.issued(activated)
        });
        if bound.is_err() {
            // A context that cannot be decommissioned stays where it is, so that START refuses from now on; the end of the VM tries again.
            let _stays = snp_decommission_context(cx, sev);
        }
        bound
    }

    /// `snp_launch_update`: copies, encrypts and measures pages, up to the end of the slot. `update` is what is left afterwards.
    ///
    /// # Errors
    /// `EINVAL` for what can be seen at once; `EIO` if not even the first page was launched.
    pub(super) fn snp_launch_update(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        sev: &SevInfo,
        issuer: &mut Issuer<'_>,
        update: &mut SnpLaunchUpdate,
        fd: RawFd,
    ) -> Result<(), Errno> {
        if !sev.is_snp_guest() || sev.context().is_none() {
            return Err(Errno::EINVAL);
        }
        let Some(page_type) = update.page_type.to_firmware() else { return Err(Errno::EINVAL) };
        if update.len == 0 || !update.len.is_multiple_of(PAGE_SIZE) || update.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let has_source = update.page_type != SnpPageType::ZERO;
        if has_source && (update.uaddr.0 == 0 || !update.uaddr.0.is_multiple_of(PAGE_SIZE)) {
            return Err(Errno::EINVAL);
        }
        let npages = update.len / PAGE_SIZE;
        let _slots = self.slots_lock.lock(cx);
        let slot = self.memslots.peek_active(0, |set| set.by_gfn(update.gfn_start).cloned());
        if !slot.is_some_and(|slot| slot.has_gmem()) {
            return Err(Errno::EINVAL);
        }
        // What the firmware says is passed on only if nothing came of the call.
        let mut firmware = Issuer { process: issuer.process, error: 0 };
        let source = PopulateSource { uaddr: update.uaddr, write: page_type == PageType::Cpuid };
        let populated = {
            let mut post = |gfn: Gfn, pfn: Pfn, source: Option<Pfn>| {
                self.sev_gmem_post_populate(cx, sev, &mut firmware, fd, page_type, gfn, pfn, source)
            };
            self.gmem_populate(cx, update.gfn_start, npages, has_source.then_some(source), &mut post)
        };
        let Ok(done) = populated else {
            issuer.error = firmware.error;
            return Err(Errno::EIO);
        };
        // An error after the first page comes back with the next call.
        update.gfn_start = update.gfn_start + done;
        update.len -= done * PAGE_SIZE;
        if has_source {
            update.uaddr = update.uaddr + done * PAGE_SIZE;
        }
        Ok(())
    }

    /// `sev_gmem_post_populate`: one page, whose folio is not locked.
    #[expect(clippy::too_many_arguments, reason = "the kernel has a structure for them")]
    fn sev_gmem_post_populate(
        &self,
        cx: &Cx<'_>,
        sev: &SevInfo,
        issuer: &mut Issuer<'_>,
        fd: RawFd,
        page_type: PageType,
        gfn: Gfn,
        pfn: Pfn,
        source: Option<Pfn>,
    ) -> Result<(), Errno> {
        let (asid, gctx) = sev.asid().zip(sev.gctx()).expect("looked at above");
        let host = &sev.host;
        let (assigned, _) = host.lookup_rmpentry(cx, pfn).ok_or(Errno::EINVAL)?;
        if assigned && !cx.has_mutant(SEV_LAUNCH_NO_ASSIGNED_CHECK) {
            return Err(Errno::EEXIST);
        }
        if let Some(source) = source {
            self.host.phys.copy(cx, source, pfn);
        }
        let closed = !cx.has_mutant(SEV_LAUNCH_OPEN);
        host.rmp_make_private(cx, pfn, gfn.gpa(), RmpSize::Size4K, asid, closed)?;
        let measured = measured_page(host, page_type, gfn.gpa(), pfn);
        let launched = issuer.check_fd(cx, fd).and_then(|()| {
            let command = LaunchUpdate::new(gctx, Spa::of(pfn), page_type);
            issuer.issued(host.snp().snp_launch_update(cx, &command))
        });
        let Err(errno) = launched else {
            assert!(!self.peek_pre_fault_allowed(), "SNP-INV-019: {gfn:?} is launched after the end of the launch");
            assert!(self.attributes.is_private(gfn), "SNP-INV-025: {gfn:?} is launched, and is shared");
            extend(sev, &measured);
            return Ok(());
        };
        // Whatever the firmware answers: only a page that is open breaks the rule.
        let open = issuer.error == FwStatus::InvalidPageState.code() && !host.snp().rmp().page(pfn).immutable;
        assert!(!open, "SNP-INV-012: {gfn:?} is not closed when it is launched");
        let reclaimed = cx.has_mutant(SEV_LAUNCH_NO_RECLAIM) || self.snp_page_reclaim(cx, sev, pfn).is_ok();
        let corrected = page_type == PageType::Cpuid && issuer.error == FwStatus::InvalidParam.code();
        if let Some(source) = source.filter(|_| reclaimed && corrected) {
            self.host.phys.copy(cx, pfn, source);
        }
        Err(errno)
    }

    /// `snp_launch_finish`: measures the VMSA of each vCPU, then nothing more.
    ///
    /// # Errors
    /// `ENOTTY`, `EINVAL` as START; `EINVAL` for a vCPU whose state is protected already; `EFAULT`, `EIO`, `EBADF`.
    pub(super) fn snp_launch_finish(
        &self,
        cx: &Cx<'_>,
        sev: &SevInfo,
        issuer: &mut Issuer<'_>,
        finish: &SnpLaunchFinish,
        fd: RawFd,
    ) -> Result<(), Errno> {
        if !sev.is_snp_guest() {
            return Err(Errno::ENOTTY);
        }
        let Some(gctx) = sev.gctx() else { return Err(Errno::EINVAL) };
        if finish.flags != 0 {
            return Err(Errno::EINVAL);
        }
        self.snp_launch_update_vmsa(cx, sev, issuer, fd)?;
        sev.check_stored_fd(cx)?;
        let command = LaunchFinish { gctx, id_block: finish.id_block, host_data: finish.host_data };
        issuer.issued(sev.host.snp().snp_launch_finish(cx, &command))?;
        self.allow_pre_fault(cx);
        Ok(())
    }

    /// `snp_launch_update_vmsa`: with every vCPU locked, none runs, and none is half made. Simplified: a signal that kills does not end the wait (nobody would see the
    /// EINTR), and no vCPU has breakpoints of the host's or a DR7 of its own, which would be EINVAL.
    fn snp_launch_update_vmsa(
        &self,
        cx: &Cx<'_>,
        sev: &SevInfo,
        issuer: &mut Issuer<'_>,
        fd: RawFd,
    ) -> Result<(), Errno> {
        let vcpus = self.all_vcpus();
        // `kvm_lock_all_vcpus` warns about it: vCPUs are made under the lock that is held here.
        assert_eq!(vcpus.len() as u64, sev.created_vcpus(), "a vCPU is half made, and kvm->lock is somebody else's");
        let mut states: Vec<_> = vcpus.iter().map(|vcpu| vcpu.mutex.lock(cx)).collect();
        for (vcpu, state) in vcpus.iter().zip(&mut states) {
            launch_vmsa(cx, sev, issuer, fd, vcpu, state)?;
        }
        Ok(())
    }
}

/// An ASID that KVM chose is nobody's, and was flushed since it was somebody's: if the firmware says otherwise, and it is so.
fn assert_free(snp: &Snp, asid: Asid, activated: Result<(), PspFail>) {
    let Err(PspFail::Status(status)) = activated else { return };
    let is_bound = matches!(snp.peek_asid(asid), Some(AsidUse::Bound { .. }));
    assert!(
        !is_bound || status != FwStatus::AsidOwned,
        "SNP-INV-011: {asid:?} is given to a guest while another one has it"
    );
    let is_stale = snp.peek_asid(asid) == Some(AsidUse::Stale);
    let unflushed = [FwStatus::WbinvdRequired, FwStatus::DfflushRequired].contains(&status);
    assert!(!is_stale || !unflushed, "SNP-INV-023: {asid:?} is used again before it was flushed");
}

/// `snp_context_create`.
fn snp_context_create(cx: &Cx<'_>, sev: &SevInfo, issuer: &mut Issuer<'_>, fd: RawFd) -> Option<Pfn> {
    let context = sev.host.alloc_firmware_page(cx).ok()?;
    let created =
        issuer.check_fd(cx, fd).is_ok() && issuer.issued(sev.host.snp().snp_gctx_create(cx, Spa::of(context))).is_ok();
    if !created {
        sev.host.free_firmware_page(cx, context);
    }
    created.then_some(context)
}

/// One vCPU: `sev_es_sync_vmsa`, then the page goes the way of every launched page.
fn launch_vmsa(
    cx: &Cx<'_>,
    sev: &SevInfo,
    issuer: &mut Issuer<'_>,
    fd: RawFd,
    vcpu: &Vcpu,
    state: &mut VcpuState,
) -> Result<(), Errno> {
    let (asid, gctx) = sev.asid().zip(sev.gctx()).expect("looked at above");
    let vmsa = vcpu.sev().and_then(SevEs::vmsa).expect("a vCPU of an SNP guest");
    let sregs = state.sregs;
    let es = state.sev.as_deref_mut().expect("a vCPU of an SNP VM");
    if es.guest_state_protected {
        return Err(Errno::EINVAL);
    }
    let bytes = reset_vmsa(sev.vmsa_features(), &sregs);
    let access = HostSnpAccess::kernel(AccessKind::Write, vmsa);
    let written = sev.host.snp().host_write(cx, &access, 0, &bytes[..]);
    assert!(written.is_ok(), "SNP-INV-002: KVM writes the VMSA of vCPU {}, which is the guest's: #PF", vcpu.id());
    sev.host.rmp_make_private(cx, vmsa, VMSA_GPA, RmpSize::Size4K, asid, true)?;
    let measured = measured_page(&sev.host, PageType::Vmsa, VMSA_GPA, vmsa);
    let launched = issuer.check_fd(cx, fd).and_then(|()| {
        let command = LaunchUpdate::new(gctx, Spa::of(vmsa), PageType::Vmsa);
        issuer.issued(sev.host.snp().snp_launch_update(cx, &command))
    });
    if let Err(errno) = launched {
        let _bugged = vcpu.vm().snp_page_reclaim(cx, sev, vmsa);
        return Err(errno);
    }
    extend(sev, &measured);
    es.guest_state_protected = true;
    Ok(())
}

/// What the firmware measures of a page that is about to be launched.
fn measured_page(host: &SevHost, page_type: PageType, gpa: Gpa, pfn: Pfn) -> PageInfo {
    let page = host.snp().memory().read_page(KeyPath::Raw, pfn);
    PageInfo::new(page_type, gpa).with_contents(&page[..])
}

/// SNP-INV-018: the digest as it follows from what was launched.
fn extend(sev: &SevInfo, page: &PageInfo) {
    let mut launched = sev.launched.lock();
    *launched = launched.extend(page);
}
