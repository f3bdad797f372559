//! What KVM has of a vCPU for pKVM: its page, which the hypervisor shares, the pages it keeps for the hypervisor's tables, and the hypervisor's vCPU, made at the first run
//! (`pkvm_create_hyp_vcpu`, `topup_hyp_memcache`, `kvm_arch_vcpu_load`).

use super::host::{PkvmHost, cpu_of};
use super::vm::KvmPkvm;
use crate::kvm::vcpu::Vcpu;
use sim_coco::pkvm::{CpuId, HostCall, HostVcpu};
use sim_kernel::{Cx, Errno, Pfn};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// pKVM of one vCPU.
#[derive(Debug)]
pub struct PkvmVcpu {
    host: Arc<PkvmHost>,
    /// The page of `struct kvm_vcpu`.
    frame: Pfn,
    /// What the hypervisor makes its vCPU from, once it is known which of its VM's it is.
    vcpu: OnceLock<Arc<HostVcpu>>,
    /// `VCPU_PKVM_FINALIZED`: the hypervisor has made its own.
    finalized: AtomicBool,
}

impl PkvmVcpu {
    /// `kvm_arch_vcpu_create`: the structure is shared.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(cx: &Cx<'_>, pkvm: &KvmPkvm) -> Result<PkvmVcpu, Errno> {
        let host = Arc::clone(&pkvm.host);
        pkvm.created_vcpus.fetch_add(1, Ordering::AcqRel);
        let frame = host.alloc_shared(cx).inspect_err(|_| abandon(pkvm))?;
        Ok(PkvmVcpu { host, frame, vcpu: OnceLock::new(), finalized: AtomicBool::new(false) })
    }

    /// The vCPU is `index`th of its VM (`vcpu_idx`).
    pub(crate) fn set_index(&self, index: usize) {
        self.vcpu.set(HostVcpu::new(self.frame, index as u32)).expect("a vCPU gets its index once");
    }

    /// The vCPU could not be made after all.
    pub(crate) fn abandon(&self, cx: &Cx<'_>, pkvm: &KvmPkvm) {
        abandon(pkvm);
        self.host.free_shared(cx, self.frame);
    }

    fn host_vcpu(&self) -> &Arc<HostVcpu> {
        self.vcpu.get().expect("a vCPU that can be named has an index")
    }

    /// `pkvm_create_hyp_vcpu`.
    ///
    /// # Errors
    /// `ENOMEM`; what the hypervisor finds: `EINVAL` for one that was created after the VM had run first.
    pub(super) fn create_hyp_vcpu(&self, cx: &Cx<'_>, pkvm: &KvmPkvm) -> Result<(), Errno> {
        let _config = pkvm.config_lock.lock(cx);
        if self.finalized.load(Ordering::Acquire) {
            return Ok(());
        }
        let frame = self.host.phys().alloc_zeroed()?;
        let init = HostCall::InitVcpu { handle: pkvm.handle(), vcpu: Arc::clone(self.host_vcpu()), frame };
        self.host.call(cx, init).inspect_err(|_| self.host.phys().put(cx, frame))?;
        self.finalized.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether the vCPU has run (`kvm_vcpu_initialized` and what it takes).
    pub(super) fn is_finalized(&self) -> bool {
        self.finalized.load(Ordering::Acquire)
    }

    /// `topup_hyp_memcache`: as many pages as any mapping can take tables.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn topup_memcache(&self, cx: &Cx<'_>) -> Result<(), Errno> {
        let phys = self.host.phys();
        let mut list = *self.host_vcpu().memcache.lock();
        let mut filled = Ok(());
        while filled.is_ok() && list.nr_pages < self.host.pkvm().min_memcache_pages() {
            filled = phys.alloc_zeroed().map(|pfn| list.push(cx, phys, pfn));
        }
        *self.host_vcpu().memcache.lock() = list;
        filled
    }

    /// `kvm_arch_vcpu_load`: on the thread's processor.
    pub(super) fn load(&self, cx: &Cx<'_>, pkvm: &KvmPkvm) -> CpuId {
        let (handle, index) = (pkvm.handle(), self.host_vcpu().index());
        self.host.call(cx, HostCall::VcpuLoad { handle, index }).expect("loading answers nothing");
        cpu_of(cx)
    }

    /// `kvm_arch_vcpu_put`.
    pub(super) fn put(&self, cx: &Cx<'_>) {
        self.host.call(cx, HostCall::VcpuPut).expect("putting answers nothing");
    }

    /// `kvm_arch_vcpu_destroy`, after the hypervisor has forgotten the VM.
    pub(crate) fn destroy(&self, cx: &Cx<'_>) {
        let phys = self.host.phys();
        let mut list = std::mem::take(&mut *self.host_vcpu().memcache.lock());
        while let Some(pfn) = list.pop(cx, phys) {
            phys.put(cx, pfn);
        }
        self.host.free_shared(cx, self.frame);
    }
}

fn abandon(pkvm: &KvmPkvm) {
    pkvm.created_vcpus.fetch_sub(1, Ordering::AcqRel);
}

impl Vcpu {
    /// pKVM of the vCPU, if the host has it.
    #[inline]
    pub(crate) fn pkvm(&self) -> Option<&PkvmVcpu> {
        self.pkvm.as_ref()
    }
}
