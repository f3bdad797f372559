//! What a VM has of TDX (`struct kvm_tdx`).

use super::host::{Tally, TdxHost};
use crate::kvm::vm::{Vm, WeakVm};
use sim_coco::tdx::{Gpaw, Hkid, Hpa};
use sim_kernel::sync::{Atomic64, Mutex};
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gpa, Level};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// `enum kvm_tdx_state`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TdState {
    /// `TD_STATE_UNINITIALIZED`: before `KVM_TDX_INIT_VM`.
    Uninitialized = 0,
    /// `TD_STATE_INITIALIZED`: its first memory is being added.
    Initialized = 1,
    /// `TD_STATE_RUNNABLE`: after `KVM_TDX_FINALIZE_VM`.
    Runnable = 2,
}

impl TdState {
    fn from_word(word: u64) -> TdState {
        match word {
            0 => TdState::Uninitialized,
            1 => TdState::Initialized,
            2 => TdState::Runnable,
            other => unreachable!("{other} is no state of a TD"),
        }
    }
}

/// Pages that a TD consists of beside its memory and its vCPUs (`struct tdx_td`).
#[derive(Debug, Default)]
pub(super) struct TdPages {
    pub(super) tdr: Option<Pfn>,
    /// Of TDCS: those that the module has.
    pub(super) tdcs: Vec<Pfn>,
}

/// What other tasks do to the Secure EPT and the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Interference {
    /// A change of the Secure EPT, or a SEAMCALL, is not done.
    under_way: bool,
    /// Changes of the Secure EPT that were begun.
    changes: u64,
    /// SEAMCALLs that have returned.
    calls: u64,
}

impl Interference {
    /// Whether others were in the way of what has begun after `self` and ended before `later`.
    pub(crate) fn explains(&self, later: &Interference) -> bool {
        self.under_way || (self.changes, self.calls) != (later.changes, later.calls)
    }
}

/// TDX of one VM.
#[derive(Debug)]
pub struct KvmTdx {
    pub(super) host: Arc<TdxHost>,
    vm: OnceLock<WeakVm>,
    /// `kvm->lock`.
    pub(crate) lock: Mutex<()>,
    /// `state`.
    state: Atomic64,
    /// `hkid`; `None`: not assigned. Changes under the locks of the commands, and when the VM dies.
    hkid: parking_lot::Mutex<Option<Hkid>>,
    pub(super) pages: parking_lot::Mutex<TdPages>,
    /// `page_add_src`: what MEM.PAGE.ADD copies. Under `slots_lock`.
    pub(super) page_add_src: parking_lot::Mutex<Option<Pfn>>,
    /// `wait_for_sept_zap`.
    pub(super) wait_for_sept_zap: Atomic64,
    /// `kvm->created_vcpus`.
    created_vcpus: AtomicU64,
    gpaw: OnceLock<Gpaw>,
    /// Pairs of pages for metadata, by the task that will need one.
    pub(super) pamt_spare: parking_lot::Mutex<BTreeMap<u8, [Pfn; 2]>>,
    /// What `KVM_TDX_INIT_VM` was told of CPUID.
    pub(super) cpuid: OnceLock<Vec<super::TdxCpuidEntry>>,
    /// Changes of the Secure EPT that were begun, and those that were done. Not KVM's: they explain why a fault was tried again (INV-506).
    pub(super) begun: Tally,
    pub(super) done: AtomicU64,
    /// vCPUs whose guest spins. Not KVM's.
    pub(crate) spinners: crate::kvm::kernel::Spinners,
    /// `tdx_mmu_release_hkid` was called; without success if there is a KeyID all the same, which is lost then.
    pub(super) release_tried: AtomicBool,
    /// How often all vCPUs were called out of the guest for the Secure EPT. Not KVM's.
    pub(super) kicks: AtomicU64,
    /// Pages of 2 MiB that were split. Not KVM's.
    pub(super) splits: AtomicU64,
}

impl KvmTdx {
    pub(crate) fn new(cx: &Cx<'_>, host: &Arc<TdxHost>) -> Arc<KvmTdx> {
        Arc::new(KvmTdx {
            host: Arc::clone(host),
            vm: OnceLock::new(),
            lock: Mutex::new(cx, "kvm->lock", ()),
            state: Atomic64::new(cx, "kvm_tdx->state", 0),
            hkid: Default::default(),
            pages: Default::default(),
            page_add_src: Default::default(),
            wait_for_sept_zap: Atomic64::new(cx, "wait_for_sept_zap", 0),
            created_vcpus: AtomicU64::new(0),
            gpaw: OnceLock::new(),
            pamt_spare: Default::default(),
            cpuid: OnceLock::new(),
            begun: Tally::default(),
            done: AtomicU64::new(0),
            spinners: crate::kvm::kernel::Spinners::new(cx),
            release_tried: AtomicBool::new(false),
            kicks: AtomicU64::new(0),
            splits: AtomicU64::new(0),
        })
    }

    /// The VM exists: the hooks of its mirror find it.
    pub(crate) fn set_vm(&self, vm: &Arc<Vm>) {
        self.vm.set(Arc::downgrade(vm)).expect("a VM is made once");
    }

    /// The VM. `None` only while it is dropped.
    pub(super) fn vm(&self) -> Option<Arc<Vm>> {
        self.vm.get().and_then(WeakVm::upgrade)
    }

    /// TDX of the host.
    pub fn host(&self) -> &Arc<TdxHost> {
        &self.host
    }

    /// `state`, as a step.
    pub(super) fn state(&self, cx: &Cx<'_>) -> TdState {
        TdState::from_word(self.state.load(cx))
    }

    /// `state` without a step.
    pub fn peek_state(&self) -> TdState {
        TdState::from_word(self.state.peek())
    }

    pub(super) fn set_state(&self, cx: &Cx<'_>, state: TdState) {
        self.state.store(cx, state as u64);
    }

    /// `hkid`.
    pub fn hkid(&self) -> Option<Hkid> {
        *self.hkid.lock()
    }

    pub(super) fn set_hkid(&self, hkid: Option<Hkid>) {
        *self.hkid.lock() = hkid;
    }

    /// `is_hkid_assigned`.
    pub(super) fn is_hkid_assigned(&self) -> bool {
        self.hkid().is_some()
    }

    /// `tdx_hkid_free`.
    pub(super) fn hkid_free(&self, cx: &Cx<'_>) {
        let hkid = self.hkid.lock().take().expect("a KeyID is freed once");
        self.host.keyid_free(cx, hkid);
    }

    /// The page of its TDR, from its creation on.
    pub fn tdr(&self) -> Option<Pfn> {
        self.pages.lock().tdr
    }

    /// The TDR as an operand.
    ///
    /// # Panics
    /// Before `KVM_TDX_INIT_VM`.
    pub(super) fn tdr_hpa(&self) -> Hpa {
        Hpa::of(self.tdr().expect("the TD was created"))
    }

    /// Whether the shared bit is 47 or 51: said by `KVM_TDX_INIT_VM`.
    pub fn gpaw(&self) -> Option<Gpaw> {
        self.gpaw.get().copied()
    }

    pub(super) fn set_gpaw(&self, gpaw: Gpaw) {
        self.gpaw.set(gpaw).expect("INIT_VM succeeds once");
    }

    /// `tdx_gmem_max_mapping_level`: before the TD runs, memory is added to it in pages of 4 KiB.
    pub(crate) fn gmem_max_mapping_level(&self) -> Level {
        let is_large = self.host.has_large_pages() && self.peek_state() == TdState::Runnable;
        if is_large { Level::L2M } else { Level::L4K }
    }

    /// `vt_is_tdx_private_gpa`. Before `KVM_TDX_INIT_VM` there is no shared bit, and nothing is private.
    pub(crate) fn is_private_gpa(&self, gpa: Gpa) -> bool {
        self.gpaw().is_some_and(|gpaw| !gpaw.is_shared(gpa))
    }

    /// The address without the shared bit.
    pub(super) fn without_shared_bit(&self, gpa: Gpa) -> Gpa {
        self.gpaw().map_or(gpa, |gpaw| Gpa(gpa.0 & !(1 << gpaw.shared_bit())))
    }

    /// `kvm->created_vcpus`.
    pub(super) fn created_vcpus(&self) -> u64 {
        self.created_vcpus.load(Ordering::SeqCst)
    }

    /// `kvm_vm_ioctl_create_vcpu`, before anything is made: the vCPU counts. Under `kvm->lock`, as all of the creation.
    pub(crate) fn begin_vcpu(&self) {
        self.created_vcpus.fetch_add(1, Ordering::SeqCst);
    }

    /// A vCPU is not made after all.
    pub(crate) fn abandon_vcpu(&self) {
        self.created_vcpus.fetch_sub(1, Ordering::SeqCst);
    }

    /// How often all vCPUs were called out of the guest because a page left the Secure EPT, or a SEAMCALL had met a lock.
    pub fn kicks(&self) -> u64 {
        self.kicks.load(Ordering::Relaxed)
    }

    /// How many pages of 2 MiB were split.
    pub fn splits(&self) -> u64 {
        self.splits.load(Ordering::Relaxed)
    }

    /// What others do, because of which a fault of this task that changes nothing itself now may have to be tried again.
    pub(crate) fn interference(&self, cx: &Cx<'_>) -> Interference {
        Interference {
            under_way: self.begun.all() > self.done.load(Ordering::Relaxed) || self.host.is_calling(),
            changes: self.begun.of_others(cx),
            calls: self.host.returned.of_others(cx),
        }
    }
}
