//! What a vCPU has of TDX (`struct vcpu_tdx`): its pages, the processor that it is associated with, and what it left its TD with last.

use super::host::TdxHost;
use super::shared_ept::SharedTables;
use super::tdvmcall::TdCall;
use super::vm::{KvmTdx, TdState};
use crate::kvm::mutants::{TDX_VP_INIT_UNLOCKED, TDX_VP_NO_FLUSH};
use crate::kvm::vcpu::{Vcpu, VcpuState};
use crate::kvm::vm::Vm;
use sim_coco::tdx::{Hpa, Leaf, Lp, StatusName};
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::Root;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// `struct tdx_vp`: the pages of a vCPU.
#[derive(Debug, Default)]
struct VpPages {
    tdvpr: Option<Pfn>,
    tdcx: Vec<Pfn>,
}

/// TDX of one vCPU: what others touch.
#[derive(Debug, Default)]
pub struct VcpuTdx {
    pages: parking_lot::Mutex<VpPages>,
    /// `vcpu->cpu`: where it was loaded last. `None`: nowhere since it was flushed.
    cpu: parking_lot::Mutex<Option<Lp>>,
    /// `state` is `VCPU_TD_STATE_INITIALIZED`. Changes under `vcpu->mutex`.
    is_initialized: AtomicBool,
}

/// TDX of one vCPU: what `vcpu->mutex` protects.
#[derive(Debug, Default)]
pub(crate) struct TdxState {
    /// The mirror's root, which a vCPU keeps for life.
    pub(super) mirror: Option<Arc<Root>>,
    /// `vp_enter_args`: the registers that a TDG.VP.VMCALL showed, and what KVM answers in them.
    pub(super) args: [u64; 16],
    /// What goes on when user space has answered.
    pub(super) call: TdCall,
    /// Not KVM's: the guest waits for the answer to a TDG.VP.VMCALL.
    pub(super) guest_call: super::guest::GuestCall,
    /// Not KVM's: the guest's next data accesses go to shared addresses. Stands for the guest's tables.
    pub(crate) shared_mapping: bool,
    /// Not KVM's: instructions that are complete, from which the guest's RIP follows.
    pub(super) retired: u64,
    /// Not KVM's: how often in a row the guest wanted to accept a page that is mapped, and how many changes of the Secure EPT had begun then.
    pub(super) spurious_accepts: (u64, u32),
}

impl TdxState {
    /// Another program: what the one before has asked for is forgotten.
    pub(crate) fn load_program(&mut self) {
        (self.call, self.guest_call, self.shared_mapping) = Default::default();
    }
}

impl VcpuTdx {
    /// The page of its TDVPR, after `KVM_TDX_INIT_VCPU`.
    pub fn tdvpr(&self) -> Option<Pfn> {
        self.pages.lock().tdvpr
    }

    /// All its pages: for checkers.
    pub fn pages(&self) -> Vec<Pfn> {
        let pages = self.pages.lock();
        pages.tdvpr.into_iter().chain(pages.tdcx.iter().copied()).collect()
    }

    /// Whether `KVM_TDX_INIT_VCPU` has succeeded.
    pub(super) fn is_initialized(&self) -> bool {
        self.is_initialized.load(Ordering::Relaxed)
    }

    /// The TDVPR as an operand.
    ///
    /// # Panics
    /// Before `KVM_TDX_INIT_VCPU`.
    pub(super) fn tdvpr_hpa(&self) -> Hpa {
        Hpa::of(self.tdvpr().expect("the vCPU was initialised"))
    }

    /// `tdx_vcpu_free`: its pages go back to the host, once the TD has no KeyID any more; otherwise they are leaked, as those of a vCPU that belongs to a
    /// processor all the same.
    pub(crate) fn free(&self, cx: &Cx<'_>, vm: &Vm, tdx: &KvmTdx) {
        let is_loaded = self.cpu.lock().is_some();
        if is_loaded {
            if self.is_initialized() {
                vm.bug(cx);
            }
            self.flush_on_cpu(cx, vm, tdx);
        }
        let pages = std::mem::take(&mut *self.pages.lock());
        let all = pages.tdcx.into_iter().chain(pages.tdvpr);
        if is_loaded || tdx.is_hkid_assigned() {
            all.for_each(|page| tdx.host.leak_page(page));
            return;
        }
        all.for_each(|page| tdx.host.reclaim_control_page(cx, page));
    }

    /// `tdx_flush_vp_on_cpu`: the vCPU leaves the processor that it was loaded on, which forgets the TD's translations. One that was never initialised has none.
    pub(super) fn flush_on_cpu(&self, cx: &Cx<'_>, vm: &Vm, tdx: &KvmTdx) {
        let Some(lp) = self.cpu.lock().take() else { return };
        if !self.is_initialized() {
            return;
        }
        let tdvpr = self.tdvpr_hpa();
        let flushed = tdx.host.call_on(cx, lp, Leaf::VpFlush, |seam| seam.vp_flush(cx, tdvpr));
        if flushed.is_err_and(|fail| fail.name() != StatusName::VcpuNotAssociated) {
            vm.bug(cx);
        }
    }
}

impl Vcpu {
    /// TDX of the vCPU, if its VM is a TD.
    pub fn tdx(&self) -> Option<&VcpuTdx> {
        self.tdx.as_ref()
    }

    pub(super) fn vcpu_tdx(&self) -> &VcpuTdx {
        self.tdx().expect("a vCPU of a TD")
    }

    /// `tdx_vcpu_load`: a vCPU that comes to another processor leaves the one before.
    pub(crate) fn tdx_vcpu_load(&self, cx: &Cx<'_>) {
        let (Some(vcpu_tdx), Some(tdx)) = (self.tdx(), self.vm.tdx()) else { return };
        let here = tdx.host.lp(cx);
        if *vcpu_tdx.cpu.lock() == Some(here) || !tdx.is_hkid_assigned() {
            return;
        }
        if cx.has_mutant(TDX_VP_NO_FLUSH) {
            *vcpu_tdx.cpu.lock() = None;
        }
        vcpu_tdx.flush_on_cpu(cx, &self.vm, tdx);
        *vcpu_tdx.cpu.lock() = Some(here);
    }

    /// `tdx_vcpu_needs_initialization`.
    pub(crate) fn tdx_needs_initialization(&self) -> bool {
        let Some(tdx) = self.vm.tdx() else { return false };
        !self.vcpu_tdx().is_initialized() || tdx.peek_state() != TdState::Runnable
    }

    /// `tdx_vcpu_init`.
    ///
    /// # Errors
    /// `EINVAL` for flags, and the second time; `ENOMEM`; `EIO` if the VM is bugged by it.
    pub(super) fn tdx_vcpu_init(&self, cx: &Cx<'_>, tdx: &KvmTdx, flags: u32, rcx: u64) -> Result<(), Errno> {
        if flags != 0 || self.vcpu_tdx().is_initialized() {
            return Err(Errno::EINVAL);
        }
        self.tdx_td_vcpu_init(cx, tdx, rcx)?;
        self.vcpu_tdx().is_initialized.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// `tdx_td_vcpu_init`. What the module has of a vCPU that fails is reclaimed when the VM dies.
    fn tdx_td_vcpu_init(&self, cx: &Cx<'_>, tdx: &KvmTdx, rcx: u64) -> Result<(), Errno> {
        let (host, tdr) = (&*tdx.host, tdx.tdr_hpa());
        let mut left = host.alloc_pages(cx, 1 + host.tdx().config().tdvps_tdcx as usize)?;
        let tdvpr = left.remove(0);
        let bugged = |left: Vec<Pfn>| {
            self.vm.bug(cx);
            host.free_pages(cx, left);
            Errno::EIO
        };
        host.clflush_page(cx, tdvpr);
        if host.call(cx, Leaf::VpCreate, |seam| seam.vp_create(cx, Hpa::of(tdvpr), tdr)).is_err() {
            left.push(tdvpr);
            return Err(bugged(left));
        }
        let pages = &self.vcpu_tdx().pages;
        pages.lock().tdvpr = Some(tdvpr);
        left.reverse();
        while let Some(page) = left.pop() {
            host.clflush_page(cx, page);
            let added = host.call(cx, Leaf::VpAddcx, |seam| seam.vp_addcx(cx, Hpa::of(page), Hpa::of(tdvpr)));
            if added.is_err() {
                left.push(page);
                return Err(bugged(left));
            }
            pages.lock().tdcx.push(page);
        }
        // VP.INIT wants the TD for itself: zaps, which must not fail, want it shared.
        let lock = (!cx.has_mutant(TDX_VP_INIT_UNLOCKED)).then(|| self.vm.mmu.mmu_lock.write(cx));
        let inited = host.call(cx, Leaf::VpInit, |seam| seam.vp_init(cx, Hpa::of(tdvpr), rcx, Some(self.id())));
        drop(lock);
        if inited.is_err() {
            return Err(bugged(Vec::new()));
        }
        Ok(())
    }

    /// `kvm_mmu_load` of a TD: the mirror first, then the direct root, which the module is told of (`tdx_load_mmu_pgd`). Linux does that also for a vCPU that
    /// `KVM_TDX_INIT_VCPU` has not given a TDVPR, which a pre-fault comes to: it fails, and breaks the VM.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn tdx_load_mmu(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Result<(), Errno> {
        let tdx = self.vm.tdx().expect("a vCPU of a TD");
        if state.root.is_some() {
            return Ok(());
        }
        if tdx_state(state).mirror.is_none() {
            tdx_state_mut(state).mirror = Some(self.vm.mmu.load_mirror_root(cx, 0)?);
        }
        let root = self.vm.load_root(cx)?;
        let tables = Arc::new(SharedTables::new(&self.vm, &root));
        state.root = Some(root);
        let tdvpr = self.vcpu_tdx().tdvpr().map(Hpa::of);
        let seam = tdx.host.tdx().on(tdx.host.lp(cx));
        let is_written = tdvpr.is_some_and(|tdvpr| seam.vp_wr_shared_eptp(cx, tdvpr, tables).is_ok());
        if !is_written {
            self.vm.bug(cx);
        }
        self.flush_tlb_all(cx, state);
        Ok(())
    }

    /// Between two tries of a pre-fault: a direct root that is gone keeps every fault from being served, also one in the mirror.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn tdx_reload_stale_root(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Result<(), Errno> {
        if state.root.as_ref().is_some_and(|root| root.is_invalid_lockless(cx)) {
            let root = state.root.take().expect("just seen");
            self.vm.mmu.put_root(cx, root);
        }
        self.tdx_load_mmu(cx, state)
    }

    /// The vCPU dies: it drops the mirror.
    pub(crate) fn tdx_take_mirror(&self, state: &mut VcpuState) -> Option<Arc<Root>> {
        state.tdx.as_deref_mut().and_then(|tdx| tdx.mirror.take())
    }
}

impl Vm {
    /// `KVM_CREATE_VCPU` of a TD.
    ///
    /// # Errors
    /// `EIO` before `KVM_TDX_INIT_VM` and after `KVM_TDX_FINALIZE_VM` (`tdx_vcpu_create`); otherwise as of any VM.
    pub(crate) fn tdx_vcpu_create(self: &Arc<Vm>, cx: &Cx<'_>, tdx: &KvmTdx, id: u64) -> Result<Arc<Vcpu>, Errno> {
        tdx.begin_vcpu();
        let made =
            if tdx.state(cx) == TdState::Initialized { self.make_vcpu(cx, id, None, None) } else { Err(Errno::EIO) };
        made.inspect_err(|_| tdx.abandon_vcpu())
    }
}

pub(super) fn tdx_state(state: &VcpuState) -> &TdxState {
    state.tdx.as_deref().expect("a vCPU of a TD")
}

pub(super) fn tdx_state_mut(state: &mut VcpuState) -> &mut TdxState {
    state.tdx.as_deref_mut().expect("a vCPU of a TD")
}

impl TdxHost {
    /// `num_present_cpus`, which is how many vCPUs a TD may have at most.
    pub(crate) fn cpus(&self) -> u64 {
        let config = self.tdx().config();
        u64::from(config.packages * config.lps_per_package)
    }
}
