//! What the kind of a VM decides (`struct kvm_x86_ops` and the `kvm_arch_*` hooks that go through it): one method of [`Vm`] for each hook, and in
//! each one arm for each kind. What an arm does stands with its kind, in `sev/` for SEV-SNP.
//!
//! Simplified: hooks exist as far as guest_memfd and the MMU need them. Linux dispatches by static calls, and by `is_td` within VMX; here it is an enum.

use super::host::Host;
use super::mutants::EXT_FREE_EARLY;
use super::pkvm::KvmPkvm;
use super::sev::SevInfo;
use super::tdx::{KvmTdx, MirrorHooks};
use super::uapi::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use super::vcpu::Request;
use super::vm::{Vm, VmType};
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::walker::ExitInfo1;
use sim_mmu::{ExternalTables, Gfn, Level, Stage2Fault};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The kind of a VM, with what KVM keeps for VMs of this kind.
#[derive(Debug)]
pub(crate) enum VmKind {
    /// `KVM_X86_DEFAULT_VM`: all memory is the host's.
    Default,
    /// `KVM_X86_SW_PROTECTED_VM`: private memory that nothing but KVM's bookkeeping keeps from the host.
    SwProtected,
    /// `KVM_X86_SNP_VM`.
    Snp(Box<SevInfo>),
    /// `KVM_X86_TDX_VM`.
    Tdx(Arc<KvmTdx>),
    /// A VM on arm64 with pKVM, protected or not.
    Pkvm(Box<KvmPkvm>),
}

impl VmKind {
    /// # Errors
    /// `ENOMEM` on a host with pKVM.
    pub(super) fn new(cx: &Cx<'_>, host: &Host, vm_type: VmType) -> Result<VmKind, Errno> {
        Ok(match vm_type {
            VmType::Default => VmKind::Default,
            VmType::SwProtected => VmKind::SwProtected,
            VmType::Snp => {
                let sev = host.sev().expect("there are no SNP VMs on a host without SNP");
                VmKind::Snp(Box::new(SevInfo::new(cx, sev)))
            }
            VmType::Tdx => {
                let tdx = host.tdx().expect("there are no TDs on a host without TDX");
                VmKind::Tdx(KvmTdx::new(cx, tdx))
            }
            VmType::Arm | VmType::ArmProtected => {
                let pkvm = host.pkvm().expect("there are no such VMs on a host without pKVM");
                VmKind::Pkvm(Box::new(KvmPkvm::new(cx, pkvm, vm_type == VmType::ArmProtected)?))
            }
        })
    }

    /// The hooks of external tables, of VMs that have them.
    pub(super) fn external_tables(&self) -> Option<Arc<dyn ExternalTables>> {
        match self {
            VmKind::Tdx(tdx) => Some(Arc::new(MirrorHooks::new(Arc::clone(tdx)))),
            _ => None,
        }
    }

    /// Whether VMs of this kind are measured before they run: until then nothing may be pre-faulted.
    pub(super) fn has_launch(&self) -> bool {
        matches!(self, VmKind::Snp(_) | VmKind::Tdx(_))
    }
}

impl Vm {
    /// `kvm_arch_has_private_mem`: whether the guest has memory that is kept from the host, and that attributes tell from other memory: none on arm64.
    #[inline]
    pub fn has_private_mem(&self) -> bool {
        !matches!(self.kind, VmKind::Default | VmKind::Pkvm(_))
    }

    /// SEV-SNP of the VM, if it is of that type (`to_kvm_sev_info`).
    #[inline]
    pub fn sev(&self) -> Option<&SevInfo> {
        match &self.kind {
            VmKind::Snp(sev) => Some(sev),
            _ => None,
        }
    }

    /// The guest's registers are not KVM's to see (`has_protected_state`).
    pub fn is_protected(&self) -> bool {
        matches!(self.kind, VmKind::Snp(_) | VmKind::Tdx(_))
    }

    /// The same to keep, for those that look at it when the VM is gone. Not KVM's.
    pub fn tdx_arc(&self) -> Option<Arc<KvmTdx>> {
        match &self.kind {
            VmKind::Tdx(tdx) => Some(Arc::clone(tdx)),
            _ => None,
        }
    }

    /// TDX of the VM, if it is a TD (`to_kvm_tdx`).
    #[inline]
    pub fn tdx(&self) -> Option<&KvmTdx> {
        match &self.kind {
            VmKind::Tdx(tdx) => Some(tdx),
            _ => None,
        }
    }

    /// Whether a fault is on private memory (`kvm_mmu_do_page_fault`). The access says so, where the hardware lets the guest say what it means; otherwise the
    /// attribute decides, read without lock or sequence.
    pub(super) fn is_private_fault(&self, cx: &Cx<'_>, fault: &Stage2Fault, info1: ExitInfo1) -> bool {
        match self.kind {
            VmKind::Default | VmKind::Pkvm(_) => false,
            VmKind::SwProtected => {
                (!fault.reserved || self.kernel().mmio_fault_may_be_private())
                    && self.attributes.get(cx, fault.gpa.gfn()) & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0
            }
            VmKind::Snp(_) => info1.contains(ExitInfo1::ENC),
            VmKind::Tdx(_) => unreachable!("an address of a TD says which it is"),
        }
    }

    /// `kvm_arch_gmem_make_private`: gives the page, with the rest of its folio if that may be mapped as one, to the guest before it is mapped.
    /// A busy machine is the caller's to retry: `KVM_RUN` ends with EAGAIN and a memory-fault exit.
    ///
    /// # Errors
    /// `EAGAIN` if the machine is busy, on purpose; of SEV-SNP `ENOENT`, `EINVAL`.
    pub(super) fn arch_gmem_make_private(
        &self,
        cx: &Cx<'_>,
        gfn: Gfn,
        pfn: Pfn,
        max_level: Level,
    ) -> Result<(), Errno> {
        match &self.kind {
            VmKind::Default | VmKind::SwProtected | VmKind::Pkvm(_) => self.host.busy.ask().map_err(|_| Errno::EAGAIN),
            // There is no such hook.
            VmKind::Tdx(_) => Ok(()),
            VmKind::Snp(sev) => sev.gmem_make_private(cx, gfn, pfn, max_level),
        }
    }

    /// `gmem_max_mapping_level`: how large the machine lets a page of a large folio be mapped now. Not asked about folios of one page.
    pub(super) fn gmem_max_mapping_level(&self, cx: &Cx<'_>, pfn: Pfn, is_private: bool) -> Level {
        match &self.kind {
            VmKind::Snp(sev) if is_private => sev.gmem_max_mapping_level(cx, pfn),
            VmKind::Tdx(tdx) if is_private => tdx.gmem_max_mapping_level(),
            _ => Level::L1G,
        }
    }

    /// `vm_destroy`, after the vCPUs are gone and before the MMU goes.
    pub(super) fn arch_vm_destroy(&self, cx: &Cx<'_>) {
        match &self.kind {
            VmKind::Default | VmKind::SwProtected | VmKind::Tdx(_) => {}
            // Before its vCPUs, in the order of arm64.
            VmKind::Pkvm(_) => {}
            VmKind::Snp(sev) => sev.vm_destroy(cx),
        }
    }

    /// `vm_pre_destroy`, before the vCPUs go.
    pub(super) fn arch_vm_pre_destroy(&self, cx: &Cx<'_>) {
        if let VmKind::Tdx(tdx) = &self.kind
            && !cx.has_mutant(EXT_FREE_EARLY)
        {
            self.tdx_mmu_release_hkid(cx, tdx);
        }
    }

    /// `vm_destroy` of a TD, of which the MMU must be gone: its tables are pages of the TD.
    pub(super) fn arch_vm_destroyed(&self, cx: &Cx<'_>) {
        if let VmKind::Tdx(tdx) = &self.kind {
            tdx.vm_destroy(cx, self);
        }
    }

    /// `kvm->arch.pre_fault_allowed`: always, but for guests that are still being measured.
    pub(super) fn pre_fault_allowed(&self, cx: &Cx<'_>) -> bool {
        self.pre_fault_allowed.as_ref().is_none_or(|allowed| allowed.load(cx) != 0)
    }

    /// The same, for checkers.
    pub fn peek_pre_fault_allowed(&self) -> bool {
        self.pre_fault_allowed.as_ref().is_none_or(|allowed| allowed.peek() != 0)
    }

    /// The guest is measured: the end of its launch.
    pub(super) fn allow_pre_fault(&self, cx: &Cx<'_>) {
        self.pre_fault_allowed.as_ref().expect("only what is launched ends its launch").store(cx, 1);
    }

    /// `kvm_vm_bugged`: KVM can no longer vouch for the VM. No ioctl of it works any more, and its vCPUs leave the guest.
    pub(super) fn bug(&self, cx: &Cx<'_>) {
        self.bugged.store(true, Ordering::SeqCst);
        self.die(cx);
    }

    /// `kvm_vm_dead`: the same, through no fault of KVM's.
    pub(super) fn die(&self, cx: &Cx<'_>) {
        self.dead.store(true, Ordering::SeqCst);
        self.make_all_requests(cx, Request::VmDead);
        self.wake_spinning_guest(cx);
        self.dead_for_all.store(true, Ordering::SeqCst);
    }

    /// `kvm->vm_dead`, which every bugged VM is, too.
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// The VM is dead, and every vCPU has been told: for checkers.
    pub(super) fn is_dead_for_all(&self) -> bool {
        self.dead_for_all.load(Ordering::SeqCst)
    }

    /// `kvm->vm_bugged`.
    pub fn is_bugged(&self) -> bool {
        self.bugged.load(Ordering::SeqCst)
    }
}

impl Host {
    /// `kvm_arch_gmem_reclaim`, from `kvm_gmem_free_folio`: a folio has left its guest_memfd's page cache. There is no VM in this.
    pub(super) fn arch_gmem_reclaim(&self, cx: &Cx<'_>, frames: Range<Pfn>) {
        if let Some(sev) = self.sev() {
            sev.gmem_make_shared(cx, frames);
        }
    }
}
