//! A VM (`struct kvm`): its locks, its slots, its MMU, and how it lives and dies.

use super::attributes::MemoryAttributes;
use super::config::{KernelVersion, MachineConfig};
use super::host::Host;
use super::lpage_info::LARGE_LEVELS;
use super::memslots::Memslot;
use super::mutants::{ENABLE_NO_FLUSH, LAZY_ROOT_ZAP, OBSOLETE_LATE, RC_23, TDX_KEYID_BEFORE_MEMORY};
use super::notifier::KvmMmuNotifier;
use super::set_memory_region::SlotsState;
use super::slot_sets::SlotSets;
use super::uapi::*;
use super::vcpu::{Request, Vcpu};
use super::x86_ops::VmKind;
use crate::invariants::guest_stores::Runs;
use sim_kernel::fs::{FileOperations, Stat};
use sim_kernel::mm::{Mm, MmuNotifier};
use sim_kernel::sync::{Atomic64, Mutex, RefCount, Srcu, WaitQueue};
use sim_kernel::{Cx, Errno};
use sim_mmu::{
    Gfn, GfnRange, Invalidation, Level, MMIO_SPTE_GEN_MASK, MayYield, MmuLock, RemoteFlush, Root, RootFilter, TdpMmu,
};
use std::any::Any;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Kind of a VM (`KVM_CREATE_VM`'s argument).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum VmType {
    /// `KVM_X86_DEFAULT_VM`.
    Default,
    /// `KVM_X86_SW_PROTECTED_VM`.
    SwProtected,
    /// `KVM_X86_SNP_VM`.
    Snp,
    /// `KVM_X86_TDX_VM`.
    Tdx,
    /// Of a host with pKVM, without `KVM_VM_TYPE_ARM_PROTECTED`.
    Arm,
    /// Of such a host, with it.
    ArmProtected,
}

impl VmType {
    /// The type with this number, on this machine (`kvm_is_vm_type_supported`).
    ///
    /// # Errors
    /// `EINVAL` if it is not supported.
    pub fn from_number(number: u64, config: &MachineConfig) -> Result<VmType, Errno> {
        if config.pkvm {
            return VmType::from_arm_number(number, config);
        }
        if number >= 32 || config.vm_types() & 1 << number == 0 {
            return Err(Errno::EINVAL);
        }
        match number {
            KVM_X86_DEFAULT_VM => Ok(VmType::Default),
            KVM_X86_SW_PROTECTED_VM => Ok(VmType::SwProtected),
            KVM_X86_SNP_VM => Ok(VmType::Snp),
            KVM_X86_TDX_VM => Ok(VmType::Tdx),
            _ => Err(Errno::EINVAL),
        }
    }

    /// `kvm_arch_init_vm`, `kvm_init_ipa_range`. Simplified: all VMs of a machine have intermediate addresses of one width.
    fn from_arm_number(number: u64, config: &MachineConfig) -> Result<VmType, Errno> {
        let bits = number & KVM_VM_TYPE_ARM_IPA_SIZE_MASK;
        if number & !(KVM_VM_TYPE_ARM_PROTECTED | KVM_VM_TYPE_ARM_IPA_SIZE_MASK) != 0
            || bits != 0 && bits != u64::from(config.pkvm_bits())
        {
            return Err(Errno::EINVAL);
        }
        Ok(if number & KVM_VM_TYPE_ARM_PROTECTED != 0 { VmType::ArmProtected } else { VmType::Arm })
    }
}

/// A virtual machine.
pub struct Vm {
    pub(crate) host: Arc<Host>,
    /// Address space of the process that made the VM.
    pub(crate) mm: Arc<Mm>,
    pub(crate) vm_type: VmType,
    pub(crate) kind: VmKind,
    /// `kvm->arch.pre_fault_allowed`, of VMs that are measured before they run.
    pub(super) pre_fault_allowed: Option<Atomic64>,
    /// `kvm->vm_bugged`.
    pub(super) bugged: AtomicBool,
    /// `kvm->vm_dead`.
    pub(super) dead: AtomicBool,
    /// Every vCPU has been told of it. Not the kernel's; for TDX-INV-022.
    pub(super) dead_for_all: AtomicBool,
    pub(crate) users: RefCount,
    pub(crate) slots_lock: Mutex<SlotsState>,
    pub(crate) slots_arch_lock: Mutex<()>,
    pub(crate) srcu: Srcu,
    pub(crate) memslots: SlotSets,
    pub(crate) attributes: MemoryAttributes,
    pub(crate) mmu: TdpMmu,
    pub(crate) mn_invalidate_lock: Mutex<()>,
    /// `mn_active_invalidate_count`: start/end pairs that are open. Changed under `mn_invalidate_lock`, read by the sleeper.
    pub(crate) mn_active_invalidate_count: AtomicU64,
    /// The invalidations that notifier starts opened and ends will close; which end closes which does not matter.
    pub(crate) mn_open: parking_lot::Mutex<Vec<Invalidation>>,
    pub(crate) mn_memslots_update_wait: WaitQueue,
    /// Where pre-faults wait for another set of slots, on a kernel where they spin for one.
    pub(crate) pre_fault_spinners: Option<WaitQueue>,
    /// `shadow_root_allocated`: with shadow paging, whether the slots have what shadow pages need of them.
    shadow_root_allocated: Option<Atomic64>,
    pub(crate) vcpus: parking_lot::RwLock<Vec<Arc<Vcpu>>>,
    /// Capabilities and quirks; written by ioctls, read everywhere.
    pub(crate) hypercall_exits: AtomicU64,
    disabled_quirks: AtomicU64,
    manual_dirty_log: AtomicU64,
    /// Slots that are logged; changed under `slots_lock`.
    pub(crate) nr_memslots_dirty_logging: AtomicU64,
    /// `kvm->stat.remote_tlb_flush_requests`.
    pub(super) remote_tlb_flush_requests: AtomicU64,
    /// `kvm->stat.remote_tlb_flush`.
    pub(super) remote_tlb_flush: AtomicU64,
    /// The runs of vCPUs that go on, if stores are recorded. Not the kernel's; for MMU-INV-040.
    pub(super) runs: Option<parking_lot::Mutex<Runs>>,
    destroyed: AtomicBool,
    notifier: OnceLock<Arc<dyn MmuNotifier>>,
}

impl Drop for Vm {
    /// An execution that failed leaves notifiers open.
    fn drop(&mut self) {
        self.mn_open.get_mut().drain(..).for_each(Invalidation::abandon);
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").field("vm_type", &self.vm_type).field("users", &self.users).finish_non_exhaustive()
    }
}

impl Vm {
    /// `kvm_create_vm`: a VM with one reference, following changes of `mm`.
    ///
    /// # Errors
    /// Those of its kind: `ENOMEM`.
    pub(crate) fn new(cx: &Cx<'_>, host: &Arc<Host>, mm: &Arc<Mm>, vm_type: VmType) -> Result<Arc<Vm>, Errno> {
        let mut config = host.config.tdp_config();
        // `cpu_dirty_log_size` is for KVM_X86_DEFAULT_VM's siblings: `tdx_vm_init` leaves it 0, so that a TD's shared memory is write-protected to log it.
        config.pml &= vm_type != VmType::Tdx;
        let kind = VmKind::new(cx, host, vm_type)?;
        let hooks = kind.external_tables();
        let vm = Arc::new(Vm {
            host: Arc::clone(host),
            mm: Arc::clone(mm),
            vm_type,
            pre_fault_allowed: kind.has_launch().then(|| Atomic64::new(cx, "pre_fault_allowed", 0)),
            kind,
            bugged: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            dead_for_all: AtomicBool::new(false),
            users: RefCount::with_rule(cx, "kvm->users_count", 1, "INV-405: "),
            slots_lock: Mutex::new(cx, "slots_lock", SlotsState::default()),
            slots_arch_lock: Mutex::new(cx, "slots_arch_lock", ()),
            srcu: Srcu::new(cx, "kvm->srcu"),
            memslots: SlotSets::new(cx),
            attributes: MemoryAttributes::new(cx, host),
            mmu: match hooks {
                Some(hooks) => TdpMmu::with_external(cx, Arc::clone(&host.phys), config, hooks),
                None => TdpMmu::new(cx, Arc::clone(&host.phys), config),
            },
            mn_invalidate_lock: Mutex::new(cx, "mn_invalidate_lock", ()),
            mn_active_invalidate_count: AtomicU64::new(0),
            mn_open: Default::default(),
            mn_memslots_update_wait: WaitQueue::new(cx, "mn_memslots_update_rcuwait"),
            pre_fault_spinners: (host.config.kernel.pre_fault_spins_on_invalid_slot() || cx.has_mutant(RC_23))
                .then(|| WaitQueue::new(cx, "kvm->memslots")),
            shadow_root_allocated: (!host.config.tdp_enabled).then(|| Atomic64::new(cx, "shadow_root_allocated", 0)),
            vcpus: Default::default(),
            hypercall_exits: AtomicU64::new(0),
            disabled_quirks: AtomicU64::new(0),
            manual_dirty_log: AtomicU64::new(0),
            nr_memslots_dirty_logging: AtomicU64::new(0),
            remote_tlb_flush_requests: AtomicU64::new(0),
            remote_tlb_flush: AtomicU64::new(0),
            runs: host.watches_guests().then(Default::default),
            destroyed: AtomicBool::new(false),
            notifier: OnceLock::new(),
        });
        if let Some(tdx) = vm.tdx() {
            tdx.set_vm(&vm);
        }
        let notifier: Arc<dyn MmuNotifier> = Arc::new(KvmMmuNotifier::new(&vm));
        mm.register_notifier(cx, Arc::clone(&notifier));
        vm.notifier.set(notifier).expect("a VM registers once");
        host.watch_vm(&vm);
        Ok(vm)
    }

    /// `kvm->max_vcpus`: a TD has at most as many vCPUs as the host has processors.
    pub(crate) fn max_vcpus(&self) -> u64 {
        let most = self.host.config.max_vcpus;
        self.tdx().map_or(most, |tdx| most.min(tdx.host().cpus()))
    }

    /// Address spaces of the VM: two with SMM, but one if it has private memory (`kvm_arch_nr_memslot_as_ids`).
    pub fn address_spaces(&self) -> u32 {
        if self.has_private_mem() || !self.host.config.smm { 1 } else { 2 }
    }

    /// The kernel whose rules apply.
    #[inline]
    pub(crate) fn kernel(&self) -> KernelVersion {
        self.host.config.kernel
    }

    /// Kind of the VM.
    pub fn vm_type(&self) -> VmType {
        self.vm_type
    }

    /// The VM's TDP MMU.
    pub fn mmu(&self) -> &TdpMmu {
        &self.mmu
    }

    /// The VM's slots.
    pub fn memslots(&self) -> &SlotSets {
        &self.memslots
    }

    /// The VM's memory attributes.
    pub fn attributes(&self) -> &MemoryAttributes {
        &self.attributes
    }

    /// Largest guest frame that can exist.
    pub fn max_gfn(&self) -> Gfn {
        self.host.config.max_gfn()
    }

    /// Gates common to all ioctls of a VM and its vCPUs.
    ///
    /// # Errors
    /// `EIO` if the caller's address space is not the VM's, or the VM is dead.
    pub(crate) fn check_caller(&self, mm: &Arc<Mm>) -> Result<(), Errno> {
        if self.is_dead() || !Arc::ptr_eq(mm, &self.mm) { Err(Errno::EIO) } else { Ok(()) }
    }

    /// `remote_tlb_flush_requests` and `remote_tlb_flush` of the VM's statistics: how often all TLBs were to be flushed, and how often a vCPU had to be
    /// called out of the guest for it.
    pub fn remote_tlb_flushes(&self) -> (u64, u64) {
        let [requests, flushes] = [&self.remote_tlb_flush_requests, &self.remote_tlb_flush];
        (requests.load(Ordering::Relaxed), flushes.load(Ordering::Relaxed))
    }

    /// vCPUs that exist.
    pub fn vcpu_count(&self) -> usize {
        self.vcpus.read().len()
    }

    /// `KVM_CHECK_EXTENSION`, on a VM.
    pub fn check_extension(&self, cap: u64) -> i32 {
        check_extension(&self.host.config, cap, Some(self))
    }

    /// `KVM_ENABLE_CAP`.
    ///
    /// # Errors
    /// `EINVAL` for flags, unknown capabilities and unknown bits of known ones.
    pub fn enable_cap(&self, cap: &kvm_enable_cap) -> Result<(), Errno> {
        let is_arms = Cap::from_number(u64::from(cap.cap)) == Some(Cap::ManualDirtyLogProtect2);
        if cap.flags != 0 || self.pkvm().is_some() && !is_arms {
            return Err(Errno::EINVAL);
        }
        match Cap::from_number(u64::from(cap.cap)) {
            Some(Cap::ExitHypercall) => {
                if cap.args[0] & !(1 << KVM_HC_MAP_GPA_RANGE) != 0 {
                    return Err(Errno::EINVAL);
                }
                self.hypercall_exits.store(cap.args[0], Ordering::SeqCst);
                Ok(())
            }
            Some(Cap::DisableQuirks2) => {
                if cap.args[0] & !disableable_quirks(self.kernel()) != 0 {
                    return Err(Errno::EINVAL);
                }
                self.disabled_quirks.fetch_or(cap.args[0], Ordering::SeqCst);
                Ok(())
            }
            Some(Cap::ManualDirtyLogProtect2) => {
                // Initially-set (bit 1) only makes sense together with manual protection (bit 0).
                if cap.args[0] & !3 != 0 || cap.args[0] == 2 {
                    return Err(Errno::EINVAL);
                }
                self.manual_dirty_log.store(cap.args[0], Ordering::SeqCst);
                Ok(())
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Whether user space clears the dirty log itself (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`).
    pub(crate) fn dirty_log_is_manual(&self) -> bool {
        self.manual_dirty_log.load(Ordering::SeqCst) & 1 != 0
    }

    /// Whether a new dirty bitmap starts with every page dirty.
    pub(crate) fn dirty_log_initially_set(&self) -> bool {
        self.manual_dirty_log.load(Ordering::SeqCst) & 2 != 0
    }

    /// Whether deleting a slot zaps every mapping of the VM (`KVM_X86_QUIRK_SLOT_ZAP_ALL`).
    pub(crate) fn zaps_all_on_delete(&self) -> bool {
        let quirk = self.disabled_quirks.load(Ordering::SeqCst) & KVM_X86_QUIRK_SLOT_ZAP_ALL == 0;
        self.kernel().always_zaps_all() || self.vm_type == VmType::Default && quirk
    }

    /// `kvm_mmu_zap_all_fast`: marks all roots invalid, makes every vCPU drop them, then takes them apart.
    pub(crate) fn zap_all_fast(&self, cx: &Cx<'_>) {
        assert!(self.pkvm().is_none(), "x86 only");
        {
            let mut lock = self.mmu.mmu_lock.write(cx);
            self.mmu.invalidate_all_roots(cx, &mut lock);
            if cx.has_mutant(OBSOLETE_LATE) {
                drop(lock);
            }
            // In the same section: a zap does not flush for invalid roots.
            self.make_all_requests(cx, Request::FreeObsoleteRoots);
        }
        if !cx.has_mutant(LAZY_ROOT_ZAP) {
            self.mmu.zap_invalidated_roots(cx);
        }
    }

    /// `kvm_mmu_load`: a reference to the root of the first address space. With shadow paging the first root of a VM takes `slots_arch_lock`, to
    /// give every slot what shadow pages need (`mmu_first_shadow_root_alloc`); simplified: only the lock.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn load_root(&self, cx: &Cx<'_>) -> Result<Arc<Root>, Errno> {
        if let Some(allocated) = &self.shadow_root_allocated
            && allocated.load(cx) == 0
        {
            let _arch = self.slots_arch_lock.lock(cx);
            allocated.store(cx, 1);
        }
        self.mmu.load_root(cx, 0)
    }

    /// `kvm_arch_memslots_updated`: the MMIO generation may have wrapped; every vCPU looks at its requests.
    pub(crate) fn arch_memslots_updated(&self, cx: &Cx<'_>, generation: u64) {
        // Generations advance by the number of address spaces; the bits below that are the address space's number.
        if self.pkvm().is_some() {
            return;
        }
        let step = u64::from(self.address_spaces());
        if (generation / step * step) & MMIO_SPTE_GEN_MASK == 0 {
            self.zap_all_fast(cx);
        }
        self.kick_all(cx);
    }

    /// One more reference.
    pub(crate) fn get(&self, cx: &Cx<'_>) {
        self.users.get(cx);
    }

    /// One reference less; the last one destroys the VM.
    pub(crate) fn put(self: &Arc<Vm>, cx: &Cx<'_>) {
        if self.users.put(cx) {
            self.destroy(cx);
        }
    }

    /// `kvm_destroy_vm`.
    fn destroy(self: &Arc<Vm>, cx: &Cx<'_>) {
        self.arch_vm_pre_destroy(cx);
        let notifier = self.notifier.get().expect("registered when made");
        // `mmu_notifier_unregister` releases first, while others may still be in a notifier.
        self.pkvm_flush_shadow_all(cx);
        self.mm.unregister_notifier(cx, notifier);
        // A pair that was open when KVM stopped listening never gets its end.
        let cut_off = std::mem::take(&mut *self.mn_open.lock());
        for invalidation in cut_off {
            let mut lock = self.mmu.mmu_lock.write(cx);
            self.mmu.invalidate.end(cx, &mut lock, invalidation);
        }
        assert_eq!(self.mmu.invalidate.in_progress(), 0, "INV-407: a VM dies inside an invalidation");
        if let Some(pkvm) = self.pkvm() {
            self.pkvm_destroy(cx, pkvm);
        }
        // Not inside the `for`: its lock would last while the vCPUs wait for theirs.
        let vcpus = std::mem::take(&mut *self.vcpus.write());
        for vcpu in vcpus {
            vcpu.destroy(cx);
        }
        self.arch_vm_destroy(cx);
        self.mmu.zap_all(cx);
        self.mmu.uninit(cx);
        self.arch_vm_destroyed(cx);
        for as_id in 0..self.address_spaces() {
            self.memslots.peek_active(as_id, |set| {
                for slot in set.iter() {
                    assert!(slot.gmem.peek_file().is_none(), "INV-407: a VM dies with a slot that is bound");
                    slot.free(cx);
                }
            });
        }
        self.memslots.clear();
        self.destroyed.store(true, Ordering::SeqCst);
    }

    /// Whether the last reference is gone.
    pub fn is_destroyed(&self) -> bool {
        self.destroyed.load(Ordering::SeqCst)
    }

    /// `nr_memslots_dirty_logging` and `kvm_mmu_update_cpu_dirty_logging`: with the first slot that is logged, and after the last, every vCPU
    /// switches its processor's log.
    pub(crate) fn account_dirty_logging(&self, cx: &Cx<'_>, old: Option<&Memslot>, new: Option<&Memslot>) {
        let logged = |slot: Option<&Memslot>| slot.is_some_and(|slot| slot.flags & KVM_MEM_LOG_DIRTY_PAGES != 0);
        let (was, is) = (logged(old), logged(new));
        if was == is {
            return;
        }
        let change = if is { 1 } else { u64::MAX };
        let slots = self.nr_memslots_dirty_logging.fetch_add(change, Ordering::SeqCst).wrapping_add(change);
        assert!(slots < u64::MAX / 2, "MMU-INV-041: more slots ended being logged than began");
        if self.mmu.config().pml && slots == u64::from(is) {
            self.make_all_requests(cx, Request::UpdateCpuDirtyLogging);
        }
    }

    /// Enabling or disabling dirty logging on a slot changes what is mapped (`kvm_mmu_slot_apply_flags`).
    pub(crate) fn apply_dirty_logging_change(self: &Arc<Vm>, cx: &Cx<'_>, old: &Memslot, new: &Arc<Memslot>) {
        let was = old.flags & KVM_MEM_LOG_DIRTY_PAGES != 0;
        let is = new.flags & KVM_MEM_LOG_DIRTY_PAGES != 0;
        // A slot that cannot be written cannot be dirtied either.
        if was == is || new.is_readonly() {
            return;
        }
        if !is && self.pkvm().is_some() {
            return;
        }
        if !is {
            let mut lock = self.mmu.mmu_lock.read(cx);
            self.mmu.recover_huge_pages(cx, &mut lock, new.as_id, &self.slot_view(new), &**self);
            return;
        }
        if self.dirty_log_initially_set() {
            return;
        }
        if let Some(pkvm) = self.pkvm() {
            return self.pkvm_wp_range(cx, pkvm, new.gfns());
        }
        if self.host.config.splits_eagerly() {
            let mut lock = self.mmu.mmu_lock.read(cx);
            self.mmu.split_huge_pages(cx, MmuLock::Read(&mut lock), new.as_id, new.gfns(), Level::L4K);
        }
        let mut lock = self.mmu.mmu_lock.read(cx);
        let smallest = if self.mmu.config().pml {
            self.mmu.clear_dirty_slot(cx, &mut lock, new.as_id, new.gfns());
            // The log would name one page of a huge leaf.
            Level::L2M
        } else {
            Level::L4K
        };
        self.mmu.wrprot_slot(cx, &mut lock, new.as_id, new.gfns(), smallest);
        drop(lock);
        if !cx.has_mutant(ENABLE_NO_FLUSH) {
            self.flush_remote_tlbs(cx);
        }
    }

    /// Frames of the range that could be mapped huge, for reports: the largest level that the slot's metadata allows.
    pub fn allowed_level(&self, slot: &Memslot, gfn: Gfn) -> Level {
        let allowed = LARGE_LEVELS.iter().rev().find(|&&level| !slot.lpage_info.is_disallowed(gfn, level));
        allowed.copied().unwrap_or(Level::L4K)
    }

    /// `kvm_recover_nx_huge_pages`, one turn of the VM's worker (`kvm_nx_huge_page_recovery_worker`): takes out one of each `ratio` tables that a
    /// fetch made of a huge page, at least one, or none with ratio 0 (`nx_huge_pages_recovery_ratio`).
    pub fn recover_nx_huge_pages(&self, cx: &Cx<'_>, ratio: u64) {
        let _srcu = self.srcu.read(cx);
        let mut lock = self.mmu.mmu_lock.read(cx);
        let to_zap = if ratio == 0 { 0 } else { self.mmu.nx_huge_page_splits().div_ceil(ratio) };
        let is_logged = |as_id: u16, gfn: Gfn| {
            self.logs_dirty_pages()
                && self
                    .memslots
                    .read(cx, u32::from(as_id), |set| set.by_gfn(gfn).is_some_and(|slot| slot.dirty_bitmap.is_some()))
        };
        self.mmu.recover_nx_huge_pages(cx, &mut lock, to_zap, is_logged, self);
    }

    /// `kvm_zap_gfn_range`: an invalidation of its own around a zap of the range, in all address spaces.
    pub fn zap_gfn_range(self: &Arc<Vm>, cx: &Cx<'_>, range: GfnRange) {
        let mut lock = self.mmu.mmu_lock.write(cx);
        let invalidation = self.mmu.invalidate.begin(cx, &mut lock);
        self.mmu.invalidate.add_range(cx, &mut lock, range);
        let flush = self.mmu.zap_leafs(cx, &mut lock, None, RootFilter::ValidOnly, range, MayYield::Yes, &**self);
        flush.discharge(cx, &**self);
        self.mmu.invalidate.end(cx, &mut lock, invalidation);
    }
}

/// `kvm_vm_ioctl_check_extension`; without a VM, what `/dev/kvm` answers.
pub fn check_extension(config: &MachineConfig, cap: u64, vm: Option<&Vm>) -> i32 {
    if config.pkvm {
        return Cap::from_number(cap).map_or(0, |cap| super::pkvm::check_extension(config, cap, vm));
    }
    let private = vm.map(|vm| vm.has_private_mem());
    match Cap::from_number(cap) {
        None => 0,
        Some(cap) => match cap {
            Cap::UserMemory | Cap::UserMemory2 | Cap::SyncMmu | Cap::MemoryFaultInfo | Cap::EnableCapVm => 1,
            Cap::ReadonlyMem => i32::from(!vm.is_some_and(Vm::is_protected)),
            Cap::GuestMemfd => i32::from(private != Some(false) || config.kernel.has_guest_memfd_flags()),
            Cap::PreFaultMemory => i32::from(config.tdp_enabled && config.kernel.has_pre_fault_memory()),
            Cap::NrMemslots => KVM_USER_MEM_SLOTS as i32,
            Cap::MaxVcpus => vm.map_or(config.max_vcpus, Vm::max_vcpus) as i32,
            // Without SMM there is no such capability.
            Cap::MultiAddressSpace if !config.smm => 0,
            Cap::MultiAddressSpace => {
                if private == Some(true) {
                    1
                } else {
                    2
                }
            }
            Cap::ManualDirtyLogProtect2 => 3,
            Cap::ExitHypercall => 1 << KVM_HC_MAP_GPA_RANGE,
            Cap::DisableQuirks2 => disableable_quirks(config.kernel) as i32,
            Cap::MemoryAttributes => {
                if private == Some(false) || !config.has_memory_attributes() {
                    0
                } else {
                    KVM_MEMORY_ATTRIBUTE_PRIVATE as i32
                }
            }
            Cap::VmTypes => config.vm_types() as i32,
            Cap::GuestMemfdFlags => {
                if !config.kernel.has_guest_memfd_flags() {
                    0
                } else if private == Some(true) {
                    GUEST_MEMFD_FLAG_MMAP as i32
                } else {
                    (GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED) as i32
                }
            }
        },
    }
}

/// The quirks that user space may disable (`kvm_caps.supported_quirks`), of those that are modelled.
fn disableable_quirks(kernel: KernelVersion) -> u64 {
    if kernel.always_zaps_all() { 0 } else { KVM_X86_QUIRK_SLOT_ZAP_ALL }
}

/// The file behind a VM's descriptor.
#[derive(Debug)]
pub(crate) struct VmFile {
    pub(crate) vm: Arc<Vm>,
}

impl FileOperations for VmFile {
    fn is_regular(&self) -> bool {
        false
    }

    /// `noop_llseek`: the position, which nothing moves.
    fn seek(&self, _cx: &Cx<'_>, _offset: i64, _whence: u32) -> Result<u64, Errno> {
        Ok(0)
    }

    fn release(&self, cx: &Cx<'_>) {
        if cx.has_mutant(TDX_KEYID_BEFORE_MEMORY) {
            self.vm.arch_vm_pre_destroy(cx);
        }
        self.vm.put(cx);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn stat(&self, _cx: &Cx<'_>) -> Stat {
        anonymous_inode_stat()
    }
}

/// What `fstat` says of the descriptors that KVM makes on the anonymous inode.
pub(crate) fn anonymous_inode_stat() -> Stat {
    Stat { ino: 1, mode: 0o600, nlink: 1, size: 0, blksize: 4096, blocks: 0 }
}

/// A reference to a VM that does not keep it alive.
pub(crate) type WeakVm = Weak<Vm>;
