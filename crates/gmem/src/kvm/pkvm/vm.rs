//! What KVM has of a VM (`struct kvm_protected_vm`): a handle from the start, a VM of the hypervisor's from the first run, and the end of both
//! (`pkvm_init_host_vm`, `pkvm_create_hyp_vm`, `pkvm_destroy_hyp_vm`).

use super::host::PkvmHost;
use super::mappings::Mappings;
use crate::kvm::mutants::{PKVM_CREATE_NO_SLOTS_LOCK, PKVM_FREE_PGD_NO_LOCK, PKVM_LATE_HANDLE};
use crate::kvm::vm::Vm;
use crate::kvm::x86_ops::VmKind;
use sim_coco::pkvm::{Handle, HostCall, HostKvm};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Access;
use sim_kernel::sync::Mutex;
use sim_kernel::{Cx, Errno, PAGES_PER_PMD, Pfn};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// What KVM has of the VM beside its locks, as places of `config_lock`'s object: looked at and changed in steps that announce something else.
const PGT: u64 = 1;
const RECORDS: u64 = 2;
const CREATED: u64 = 3;

/// pKVM of one VM.
#[derive(Debug)]
pub struct KvmPkvm {
    pub(super) host: Arc<PkvmHost>,
    /// `handle`; 0 when there is none.
    handle: AtomicU32,
    /// `is_protected`.
    protected: bool,
    /// `kvm->arch.config_lock`.
    pub(super) config_lock: Mutex<()>,
    /// The page of `struct kvm`, which the hypervisor shares.
    frame: Pfn,
    /// What the hypervisor makes the VM from, once it has.
    kvm: OnceLock<Arc<HostKvm>>,
    /// `is_created`. Changes under `slots_lock` and `config_lock`.
    created: AtomicBool,
    /// `is_dying`.
    dying: AtomicBool,
    /// `mmu.pgt`: there is a stage 2 to be changed. Goes under `mmu_lock` for writing.
    pgt: AtomicBool,
    /// `pkvm_mappings`, under `mmu_lock`.
    mappings: parking_lot::Mutex<Mappings>,
    /// `kvm->created_vcpus`.
    pub(super) created_vcpus: AtomicU32,
}

impl KvmPkvm {
    /// `kvm_arch_init_vm`, as far as it is pKVM's: the structure is shared, and the handle reserved, because notifiers may need it before the VM runs.
    ///
    /// # Errors
    /// `ENOMEM` without memory, or if the hypervisor has as many VMs as it can have.
    pub(crate) fn new(cx: &Cx<'_>, host: &Arc<PkvmHost>, protected: bool) -> Result<KvmPkvm, Errno> {
        let frame = host.alloc_shared(cx)?;
        let handle = if cx.has_mutant(PKVM_LATE_HANDLE) { Ok(0) } else { host.call(cx, HostCall::ReserveVm) };
        let handle = handle.inspect_err(|_| host.free_shared(cx, frame))?;
        Ok(KvmPkvm {
            host: Arc::clone(host),
            handle: AtomicU32::new(handle as u32),
            protected,
            config_lock: Mutex::new(cx, "config_lock", ()),
            frame,
            kvm: OnceLock::new(),
            created: AtomicBool::new(false),
            dying: AtomicBool::new(false),
            pgt: AtomicBool::new(true),
            mappings: Default::default(),
            created_vcpus: AtomicU32::new(0),
        })
    }

    /// pKVM of the host.
    pub fn host(&self) -> &Arc<PkvmHost> {
        &self.host
    }

    /// The name that the hypervisor has for the VM.
    pub fn handle(&self) -> Handle {
        Handle(self.handle.load(Ordering::Acquire) as u16)
    }

    /// `kvm_vm_is_protected`.
    pub fn is_protected(&self) -> bool {
        self.protected
    }

    /// `pkvm_hyp_vm_is_created`.
    pub fn is_created(&self) -> bool {
        self.created.load(Ordering::Acquire)
    }

    /// Whether its teardown has begun.
    pub fn is_dying(&self) -> bool {
        self.dying.load(Ordering::Acquire)
    }

    /// Whether the stage 2 may still be changed, with `mmu_lock` held: once it goes, nothing is asked of the hypervisor for a notifier.
    pub(super) fn has_pgt(&self, cx: &Cx<'_>) -> bool {
        cx.also(Access::Load, self.config_lock.object(), PGT, 1);
        self.pgt.load(Ordering::Acquire)
    }

    /// The records, which are under `mmu_lock`.
    pub(super) fn records(&self, cx: &Cx<'_>) -> parking_lot::MutexGuard<'_, Mappings> {
        cx.also(Access::Rmw, self.config_lock.object(), RECORDS, 1);
        self.mappings.lock()
    }

    /// [`KvmPkvm::is_created`], for who acts on it.
    pub(super) fn sees_created(&self, cx: &Cx<'_>) -> bool {
        cx.also(Access::Load, self.config_lock.object(), CREATED, 1);
        self.is_created()
    }

    /// What is mapped, by guest frame: for checkers, while nobody changes it.
    pub fn mappings(&self) -> Vec<super::Mapping> {
        self.mappings.lock().all()
    }

    fn phys(&self) -> &Arc<PhysMem> {
        self.host.phys()
    }

    /// `__pkvm_create_hyp_vm`: gives the hypervisor a page for the VM and pages for the root of its stage 2.
    fn create_locked(&self, cx: &Cx<'_>) -> Result<(), Errno> {
        let created_vcpus = self.created_vcpus.load(Ordering::Acquire);
        if created_vcpus < 1 {
            return Err(Errno::EINVAL);
        }
        if cx.has_mutant(PKVM_LATE_HANDLE) && self.handle().0 == 0 {
            self.handle.store(self.host.call(cx, HostCall::ReserveVm)? as u32, Ordering::Release);
        }
        let pgd = self.alloc_pages(cx, self.host.pkvm().pgd_pages())?;
        let hyp_vm =
            self.phys().alloc_zeroed().inspect_err(|_| self.free_pages(cx, pgd, self.host.pkvm().pgd_pages()))?;
        let kvm = HostKvm::new(self.frame, created_vcpus, self.protected);
        let init = HostCall::InitVm { kvm: Arc::clone(&kvm), handle: self.handle(), frame: hyp_vm, pgd };
        if let Err(errno) = self.host.call(cx, init) {
            self.phys().put(cx, hyp_vm);
            self.free_pages(cx, pgd, self.host.pkvm().pgd_pages());
            return Err(errno);
        }
        self.kvm.set(kvm).expect("a VM is made once");
        cx.also(Access::Store, self.config_lock.object(), CREATED, 1);
        self.created.store(true, Ordering::Release);
        Ok(())
    }

    /// `alloc_pages_exact`: so many frames in a row, each with a reference of its own.
    fn alloc_pages(&self, cx: &Cx<'_>, pages: u64) -> Result<Pfn, Errno> {
        if pages == 1 {
            return self.phys().alloc_zeroed();
        }
        let first = self.phys().alloc_huge_zeroed()?;
        (pages..PAGES_PER_PMD).for_each(|i| self.phys().put(cx, first + i));
        Ok(first)
    }

    fn free_pages(&self, cx: &Cx<'_>, first: Pfn, pages: u64) {
        (0..pages).for_each(|i| self.phys().put(cx, first + i));
    }

    /// The first half of the end, before what was mapped is taken back: no vCPU can be loaded any more.
    ///
    /// # Panics
    /// If one is.
    pub(super) fn start_teardown(&self, cx: &Cx<'_>) {
        if self.is_created() && !self.dying.swap(true, Ordering::AcqRel) {
            let started = self.host.call(cx, HostCall::StartTeardownVm { handle: self.handle() });
            assert_eq!(started, Ok(0), "PKVM-INV-013: the teardown of a VM begins while a vCPU of it is loaded");
        }
    }

    /// `pkvm_destroy_hyp_vm`: the hypervisor forgets the VM, and what it was given for it comes back.
    ///
    /// # Panics
    /// PKVM-INV-015: if a page of the VM was not taken back.
    pub(super) fn destroy(&self, cx: &Cx<'_>) {
        let _config = self.config_lock.lock(cx);
        let handle = self.handle();
        if self.is_created() {
            self.check_all_reclaimed();
            let finalized = self.host.call(cx, HostCall::FinalizeTeardownVm { handle });
            assert_eq!(finalized, Ok(0), "PKVM-INV-013: a VM is finalized that is used, or not dying");
        } else if handle.0 != 0 {
            self.host.call(cx, HostCall::UnreserveVm { handle }).expect("nothing is answered");
        }
        self.handle.store(0, Ordering::Release);
        self.created.store(false, Ordering::Release);
        if let Some(kvm) = self.kvm.get() {
            let mut list = std::mem::take(&mut *kvm.teardown.lock());
            while let Some(pfn) = list.pop(cx, self.phys()) {
                self.phys().put(cx, pfn);
            }
        }
    }

    /// The last of it: the structure itself.
    pub(super) fn free(&self, cx: &Cx<'_>) {
        self.host.free_shared(cx, self.frame);
    }
}

impl Vm {
    /// pKVM of the VM, if the host has it.
    #[inline]
    pub fn pkvm(&self) -> Option<&KvmPkvm> {
        match &self.kind {
            VmKind::Pkvm(pkvm) => Some(pkvm),
            _ => None,
        }
    }

    /// `kvm_vm_is_protected`, of arm64.
    #[inline]
    pub(crate) fn is_pvm(&self) -> bool {
        self.pkvm().is_some_and(KvmPkvm::is_protected)
    }

    /// `pkvm_create_hyp_vm`: with `slots_lock`, because slots of a protected VM that has run do not change.
    ///
    /// # Errors
    /// `EINVAL` without a vCPU, `ENOMEM`, and what the hypervisor finds.
    pub(super) fn pkvm_create_hyp_vm(&self, cx: &Cx<'_>, pkvm: &KvmPkvm) -> Result<(), Errno> {
        let _slots = (!cx.has_mutant(PKVM_CREATE_NO_SLOTS_LOCK)).then(|| self.slots_lock.lock(cx));
        let _config = pkvm.config_lock.lock(cx);
        if pkvm.sees_created(cx) { Ok(()) } else { pkvm.create_locked(cx) }
    }

    /// `kvm_arch_flush_shadow_all`: nothing stays mapped. When the process ends, or the VM, whichever is first.
    ///
    /// Once the stage 2 has gone under `mmu_lock` (`kvm_free_stage2_pgd`), no notifier is in the middle of a call, and none begins one: the hypervisor would refuse to end a VM that a call uses.
    pub(crate) fn pkvm_flush_shadow_all(&self, cx: &Cx<'_>) {
        let Some(pkvm) = self.pkvm() else { return };
        let had = {
            let _lock = (!cx.has_mutant(PKVM_FREE_PGD_NO_LOCK)).then(|| self.mmu.mmu_lock.write(cx));
            cx.also(Access::Store, pkvm.config_lock.object(), PGT, 1);
            pkvm.pgt.swap(false, Ordering::AcqRel)
        };
        if !had {
            return;
        }
        pkvm.start_teardown(cx);
        self.pkvm_destroy_mappings(cx, pkvm);
    }

    /// `kvm_arch_destroy_vm`.
    pub(crate) fn pkvm_destroy(&self, cx: &Cx<'_>, pkvm: &KvmPkvm) {
        pkvm.destroy(cx);
        for vcpu in std::mem::take(&mut *self.vcpus.write()) {
            vcpu.destroy(cx);
        }
        pkvm.free(cx);
    }
}
