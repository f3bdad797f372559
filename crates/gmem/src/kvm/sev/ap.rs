//! APs with a VMSA that the guest made (`sev_snp_ap_creation`, `sev_snp_init_protected_guest_state`).
//!
//! KVM does not look whether the page is a VMSA, and does not pin it: VMRUN looks, and whoever takes the page away makes the vCPU look it up again.

use super::info::SevInfo;
use super::protocol::ap::{ApCreation, ApRequest, ApRules};
use super::protocol::ghcb::Snapshot;
use super::vcpu::{MpState, NO_VMSA};
use crate::kvm::mutants::{SEV_AP_ALIGNED_VMSA, SEV_AP_NO_WAIT, SEV_VMSA_NO_RETRY};
use crate::kvm::run::Next;
use crate::kvm::vcpu::{Request, Vcpu, VcpuState};
use sim_kernel::Cx;
use sim_mmu::Gpa;
use std::sync::Arc;

impl Vcpu {
    /// `sev_snp_ap_creation`.
    pub(super) fn sev_snp_ap_creation(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        sev: &SevInfo,
        ghcb: &Snapshot,
    ) -> Next {
        let vcpus = self.vm.all_vcpus();
        let find = |id: u32| vcpus.iter().find(|vcpu| vcpu.id() == u64::from(id));
        let rules = ApRules {
            vmsa_features: sev.vmsa_features().bits(),
            end: (self.vm.max_gfn() + 1).gpa(),
            refuses_2m_aligned: !cx.has_mutant(SEV_AP_ALIGNED_VMSA),
        };
        let creation = match ApCreation::check(ghcb, &rules, |id| find(id).is_some()) {
            Ok(creation) => creation,
            Err(why) => return self.vmgexit_bad_input(cx, state, why),
        };
        let target = find(creation.apic_id).expect("looked for above");
        let es = target.sev().expect("a vCPU of an SNP VM");
        let immediate = creation.request.is_immediate();
        {
            let mut pending = es.vmsa_mutex.lock(cx);
            pending.pending = match creation.request {
                ApRequest::Create { vmsa, .. } => Some(vmsa),
                ApRequest::Destroy => None,
            };
            pending.waiting_for_reset = true;
            // The vCPU that asks is outside already.
            let is_self = Arc::as_ptr(target) == std::ptr::from_ref(self);
            if immediate && (is_self || cx.has_mutant(SEV_AP_NO_WAIT)) {
                target.make_request(cx, Request::UpdateProtectedGuestState);
            } else if immediate {
                target.make_request_and_wait(cx, Request::UpdateProtectedGuestState);
            }
        }
        let goes_on = immediate && target.runs_with_request(Request::UpdateProtectedGuestState);
        assert!(!goes_on, "SNP-INV-020: vCPU {} runs with a VMSA that was taken from it", target.id());
        es.halted.wake_unscheduled(cx);
        sev.host.wake_spinners(cx);
        self.vm.wake_spinning_guest(cx);
        Next::Enter
    }

    /// `sev_snp_init_protected_guest_state` (`KVM_REQ_UPDATE_PROTECTED_GUEST_STATE`): the vCPU gets the VMSA that another one asked for, or none.
    pub(crate) fn sev_snp_init_protected_guest_state(&self, cx: &Cx<'_>, state: &mut VcpuState) {
        let es = self.sev().expect("only vCPUs of SNP VMs are asked");
        let mut creation = es.vmsa_mutex.lock(cx);
        if !std::mem::take(&mut creation.waiting_for_reset) {
            return;
        }
        let mine = state.sev.as_deref_mut().expect("as the vCPU");
        mine.mp_state = MpState::Halted;
        mine.vmsa_pa = None;
        es.guest_vmsa_gpa.store(cx, NO_VMSA);
        let Some(gpa) = creation.pending else { return };
        self.sev_snp_reload_vmsa_at(cx, state, gpa);
        // Also if that failed: an error of KVM_RUN is better than a sleep for ever.
        state.sev.as_deref_mut().expect("as above").mp_state = MpState::Runnable;
        creation.pending = None;
    }

    /// `KVM_REQ_VMSA_PAGE_RELOAD`: the page was, or may have been, taken away.
    pub(crate) fn sev_snp_reload_vmsa(&self, cx: &Cx<'_>, state: &mut VcpuState) {
        let es = self.sev().expect("only vCPUs of SNP VMs are asked");
        let _creation = es.vmsa_mutex.lock(cx);
        let gpa = es.guest_vmsa_gpa.load(cx);
        if gpa == NO_VMSA {
            return;
        }
        state.sev.as_deref_mut().expect("as the vCPU").vmsa_pa = None;
        es.guest_vmsa_gpa.store(cx, NO_VMSA);
        self.sev_snp_reload_vmsa_at(cx, state, Gpa(gpa));
    }

    /// `__sev_snp_reload_vmsa`: looks the page up and has the vCPU run with it, unless it is being taken away at that moment.
    fn sev_snp_reload_vmsa_at(&self, cx: &Cx<'_>, state: &mut VcpuState, gpa: Gpa) {
        let es = self.sev().expect("a vCPU of an SNP VM");
        let gfn = gpa.gfn();
        let Some(slot) = self.gmem_slot(cx, state, gfn) else { return };
        let seq = self.vm.mmu.invalidate.seq(cx);
        // The attribute is not looked at.
        let Ok(page) = self.vm.gmem_get_pfn(cx, &slot, gfn) else { return };
        let raced = {
            // R9: whoever invalidates under this lock sees the address, or has changed the sequence.
            let lock = self.vm.mmu.mmu_lock.read(cx);
            es.guest_vmsa_gpa.store(cx, gpa.0);
            if self.vm.mmu.invalidate.retry_gfn(cx, &lock, seq, gfn) && !cx.has_mutant(SEV_VMSA_NO_RETRY) {
                self.make_request(cx, Request::VmsaPageReload);
                true
            } else {
                let cached = self.vm.host.phys.mapping(page.pfn).is_some();
                assert!(cached, "SNP-INV-020: the VMSA at {gpa:?} is {:?}, which left its guest_memfd", page.pfn);
                state.sev.as_deref_mut().expect("as the vCPU").vmsa_pa = Some(page.pfn);
                false
            }
        };
        self.vm.host.phys.put(cx, page.pfn);
        if raced {
            // Where the kernel looks again and again until the page is gone.
            self.vm.mmu.invalidate.wait_while_kept_away(cx, gfn);
        }
    }
}
