//! What a vCPU has of SEV-SNP (`struct vcpu_sev_es_state`), and its visits to the guest: VMRUN with a VMCB and a VMSA, which are in use until it
//! leaves.

use super::fault::VainFaults;
use super::ghcb::Pending;
use super::info::{SevInfo, make_vmsa_shared};
use super::protocol::ghcb::Snapshot;
use super::protocol::psc::Psc;
use crate::kvm::guest::Visit;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use crate::kvm::vm::Vm;
use sim_coco::snp::{Asid, CpuId, GuestCpu, GuestKind, Spa, Vmpl, Vmrun, VmrunFail};
use sim_kernel::sync::{Atomic64, Mutex, WaitQueue};
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::Gpa;

/// Whether a vCPU may run (`mp_state`), as far as AP creation changes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MpState {
    /// `KVM_MP_STATE_RUNNABLE`.
    #[default]
    Runnable,
    /// `KVM_MP_STATE_HALTED`: its VMSA was taken away.
    Halted,
}

/// `snp_guest_vmsa_gpa` without one.
pub(super) const NO_VMSA: u64 = u64::MAX;

/// What another vCPU asks of this one's VMSA, under `snp_vmsa_mutex`.
#[derive(Debug, Default)]
pub(super) struct ApCreation {
    /// `snp_pending_vmsa_gpa`.
    pub(super) pending: Option<Gpa>,
    /// `snp_ap_waiting_for_reset`.
    pub(super) waiting_for_reset: bool,
}

/// SEV-SNP of one vCPU: what others touch.
#[derive(Debug)]
pub struct SevEs {
    /// The page of the VMCB, and that of the VMSA which KVM provides.
    vmcb: Pfn,
    vmsa: Pfn,
    /// `snp_vmsa_mutex`.
    pub(super) vmsa_mutex: Mutex<ApCreation>,
    /// `snp_guest_vmsa_gpa`: where the guest's own VMSA is that is in use.
    pub(super) guest_vmsa_gpa: Atomic64,
    /// Where a halted vCPU sleeps.
    pub(super) halted: WaitQueue,
}

/// SEV-SNP of one vCPU: what `vcpu->mutex` protects.
#[derive(Debug)]
pub(crate) struct SevState {
    /// `vmcb.vmsa_pa`.
    pub(super) vmsa_pa: Option<Pfn>,
    /// `guest_state_protected`.
    pub(super) guest_state_protected: bool,
    pub(crate) mp_state: MpState,
    /// The GHCB MSR (`vmcb.ghcb_gpa`).
    pub(crate) ghcb_msr: u64,
    /// `ghcb_registered_gpa`.
    pub(super) ghcb_registered: Option<Gpa>,
    /// What was copied of the GHCB.
    pub(super) ghcb: Snapshot,
    /// It is still to be told which fields of the answer are valid (`ghcb` of the kernel's structure is not null).
    pub(super) ghcb_is_mapped: bool,
    pub(super) psc: Psc,
    /// What goes on when user space has answered.
    pub(crate) pending: Pending,
    /// Not KVM's: the guest's next data accesses go through mappings without the C-bit. Stands for the guest's tables where paging is off.
    pub(crate) shared_mapping: bool,
    /// Not KVM's: the guest's level, as its VMSA says.
    pub(crate) vmpl: Vmpl,
    pub(super) vain_faults: Option<VainFaults>,
}

impl SevState {
    fn new(vmsa: Pfn) -> SevState {
        SevState {
            vmsa_pa: Some(vmsa),
            guest_state_protected: false,
            mp_state: MpState::Runnable,
            ghcb_msr: 0,
            ghcb_registered: None,
            ghcb: Snapshot::default(),
            ghcb_is_mapped: false,
            psc: Psc::default(),
            pending: Pending::None,
            shared_mapping: false,
            vmpl: Vmpl::ZERO,
            vain_faults: None,
        }
    }
}

impl SevEs {
    /// The pages of a new vCPU of an SNP VM (`svm_vcpu_create`), and its state.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(cx: &Cx<'_>, sev: &SevInfo) -> Result<(SevEs, Box<SevState>), Errno> {
        let vmcb = sev.host.alloc_page(cx)?;
        let vmsa = sev.host.alloc_page(cx).inspect_err(|_| sev.host.free_page(cx, vmcb))?;
        let es = SevEs {
            vmcb,
            vmsa,
            vmsa_mutex: Mutex::new(cx, "snp_vmsa_mutex", ApCreation::default()),
            guest_vmsa_gpa: Atomic64::new(cx, "snp_guest_vmsa_gpa", NO_VMSA),
            halted: WaitQueue::new(cx, "halted vCPU"),
        };
        Ok((es, Box::new(SevState::new(vmsa))))
    }

    /// The VMSA that KVM provides.
    pub fn vmsa(&self) -> Pfn {
        self.vmsa
    }

    /// The VMCB.
    pub fn vmcb(&self) -> Pfn {
        self.vmcb
    }

    /// Where the guest's own VMSA is, if one is in use: for checkers.
    pub fn peek_guest_vmsa(&self) -> Option<Gpa> {
        Some(self.guest_vmsa_gpa.peek()).filter(|gpa| *gpa != NO_VMSA).map(Gpa)
    }

    /// `sev_free_vcpu`: the VMSA goes back to the hypervisor and is freed, or leaked.
    pub(crate) fn free(&self, cx: &Cx<'_>, sev: &SevInfo) {
        let assigned = sev.host.lookup_rmpentry(cx, self.vmsa).is_some_and(|(assigned, _)| assigned);
        if assigned && make_vmsa_shared(cx, &sev.host, self.vmsa).is_err() {
            sev.host.leak_allocated(self.vmsa);
        } else {
            sev.host.free_page(cx, self.vmsa);
        }
        sev.host.free_page(cx, self.vmcb);
    }
}

impl Vcpu {
    /// SEV-SNP of the vCPU, if its VM is of that type.
    pub fn sev(&self) -> Option<&SevEs> {
        self.sev.as_ref()
    }

    /// What a check needs to know of the processor that runs the vCPU.
    pub(super) fn guest_cpu(&self, state: &VcpuState, asid: Asid) -> GuestCpu {
        let es = state.sev.as_deref().expect("a vCPU of an SNP VM");
        // Whose cached translations are meant: ids of different VMs may be equal, ASIDs are not.
        GuestCpu::snp(self.id() as u32, asid).at_vmpl(es.vmpl).at_cpl(state.sregs.paging.cpl)
    }

    /// `sev_vcpu_needs_initialization`, as `kvm_x86_vcpu_pre_run` asks it.
    ///
    /// # Errors
    /// `EINVAL` before `KVM_SEV_INIT2`.
    pub(crate) fn sev_vcpu_pre_run(&self) -> Result<(), Errno> {
        if self.vm.sev().is_some_and(|sev| !sev.is_snp_guest()) { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// `pre_sev_run`, VMRUN, what the guest does, and the exit.
    pub(crate) fn sev_guest(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Visit {
        let sev = self.vm.sev().expect("a vCPU of an SNP VM");
        let (snp, asid) = (sev.host.snp(), sev.asid().expect("INIT2 was called"));
        let Some(vmsa) = state.sev.as_deref().and_then(|es| es.vmsa_pa) else { return Visit::NoVmsa };
        let vmrun = Vmrun {
            cpu: CpuId(u32::from(cx.task().0)),
            vmcb: Spa::of(self.sev().expect("as its VM").vmcb),
            kind: GuestKind::Snp,
            asid,
            vmsa: Some(Spa::of(vmsa)),
            avic_backing: None,
            allowed_sev_features: Some(sev.vmsa_features()),
        };
        match snp.vmrun(cx, &vmrun) {
            Ok(in_guest) => {
                state.sev.as_deref_mut().expect("as its VM").vmpl = in_guest.vmpl();
                let visit = self.guest(cx, state);
                self.assert_vmsa(snp, asid, vmsa);
                snp.vmexit(cx, in_guest);
                visit
            }
            Err(VmrunFail::Invalid) => Visit::Invalid,
            Err(VmrunFail::Gp0) => panic!("SNP-INV-029: VMRUN of vCPU {} is #GP: its VMCB is assigned", self.id()),
        }
    }

    /// `KVM_SET_MP_STATE`.
    ///
    /// # Errors
    /// `EINVAL` if the VM is not of an SNP type: other vCPUs are always runnable here.
    pub fn set_mp_state(&self, cx: &Cx<'_>, mp_state: MpState) -> Result<(), Errno> {
        let mut state = self.mutex.lock(cx);
        state.sev.as_deref_mut().ok_or(Errno::EINVAL)?.mp_state = mp_state;
        Ok(())
    }

    /// `kvm_vcpu_block` of a vCPU whose VMSA was taken away: until somebody asks something of it, or a signal comes.
    pub(crate) fn sev_block(&self, cx: &Cx<'_>) {
        let es = self.sev().expect("only such vCPUs are halted");
        es.halted.wait_event(cx, || self.peek_requests() != 0 || cx.signal_pending());
    }
}

impl Vm {
    /// Whoever waits in vain looks again: something that decides about guests' accesses has changed.
    pub(crate) fn sev_wake_spinners(&self, cx: &Cx<'_>) {
        if let Some(sev) = self.sev() {
            sev.host.rmp_changed(cx);
        }
    }
}
