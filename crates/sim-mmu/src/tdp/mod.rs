//! The TDP MMU: stage-2 trees that many vCPUs fill at once (`arch/x86/kvm/mmu/tdp_mmu.c`).

use crate::addr::{Gfn, GfnRange, Gpa, Level};
use crate::fault::{RetPf, SlotView, TdpFault};
use crate::flush::{FlushNeeded, RemoteFlush};
use crate::invalidate::MmuInvalidate;
use crate::spte::{Access, Spte, SpteState};
use crate::stage2::{SpteMasks, Stage2Kind};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Tracepoint;
use sim_kernel::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use sim_kernel::{Cx, Errno, Pfn};
use std::sync::Arc;

/// `kvm_tdp_mmu_spte_changed`: an entry changed through the common handler.
pub static KVM_TDP_MMU_SPTE_CHANGED: Tracepoint =
    Tracepoint { name: "kvm_tdp_mmu_spte_changed", fields: &["as_id", "gfn", "level", "old_spte", "new_spte"] };

/// How the stage-2 trees of a VM are built.
#[derive(Clone, Copy, Debug)]
pub struct TdpConfig {
    /// The vendor's entry format.
    pub kind: Stage2Kind,
    /// Levels of a tree, 4 or 5.
    pub levels: u8,
    /// First impossible frame number: 2^(MAXPHYADDR-12).
    pub max_gfn: Gfn,
    /// Install MMIO entries for gfns without a memslot.
    pub mmio_caching: bool,
    /// Split huge pages when dirty logging is enabled, not at the write fault.
    pub eager_page_split: bool,
    /// Largest leaf that the processor supports.
    pub max_level: Level,
}

/// A root of a tree (a root's `struct kvm_mmu_page`).
#[derive(Debug)]
pub struct Root {
    as_id: u16,
}

impl Root {
    /// The address space.
    pub fn as_id(&self) -> u16 {
        self.as_id
    }
    /// `root->role.invalid`, as seen under mmu_lock (no scheduling point).
    pub fn is_invalid(&self) -> bool {
        todo!()
    }
    /// As [`Root::is_invalid`], without mmu_lock: a scheduling point.
    pub fn is_invalid_lockless(&self, cx: &Cx<'_>) -> bool {
        todo!()
    }
}

/// mmu_lock as an operation that runs under either mode holds it.
#[derive(Debug)]
pub enum MmuLock<'a, 'g> {
    /// For reading: entries are changed by compare-exchange.
    Read(&'a mut RwLockReadGuard<'g, ()>),
    /// For writing.
    Write(&'a mut RwLockWriteGuard<'g, ()>),
}

/// Whether a zap may release mmu_lock on the way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MayYield {
    /// The caller may sleep (a blockable notifier, an ioctl).
    Yes,
    /// The caller must not.
    No,
}

/// Which roots a zap goes through.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RootFilter {
    /// Valid and invalid ones: memory is taken away (notifier, guest_memfd, attributes).
    All,
    /// Only valid ones: the range is zapped for KVM's own reasons (slot deletion by leafs, PSMASH).
    ValidOnly,
}

/// What the hardware found for an access that it permits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Translation {
    /// The 4 KiB frame.
    pub pfn: Pfn,
    /// The byte within the frame.
    pub offset: u64,
    /// Size of the mapping.
    pub level: Level,
    /// Writes are permitted too (by W; a TLB may use it for writes only if `dirty`).
    pub writable: bool,
    /// Fetches are permitted too.
    pub executable: bool,
    /// D is set in the leaf now.
    pub dirty: bool,
}

/// What the hardware reports for an access that it refuses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stage2Fault {
    /// The address.
    pub gpa: Gpa,
    /// The access.
    pub access: Access,
    /// A present entry forbade it.
    pub present: bool,
    /// A reserved bit (NPT) or a misconfiguration (EPT): an MMIO entry.
    pub reserved: bool,
}

/// What is in the trees of a VM.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PageStats {
    /// Present leafs per level: 4 KiB, 2 MiB, 1 GiB (`pages_4k`, `pages_2m`, `pages_1g`).
    pub leafs: [u64; 3],
    /// Linked tables, roots not counted.
    pub tables: u64,
    /// Roots, valid and invalid.
    pub roots: u64,
}

/// A present leaf, for checkers and reports.
#[derive(Clone, Copy, Debug)]
pub struct LeafInfo {
    /// Address space of the root.
    pub as_id: u16,
    /// Whether the root is invalid.
    pub invalid_root: bool,
    /// First frame.
    pub gfn: Gfn,
    /// Size.
    pub level: Level,
    /// The entry.
    pub spte: Spte,
}

/// The stage-2 MMU of one VM.
#[derive(Debug)]
pub struct TdpMmu {
    /// `kvm->mmu_lock`.
    pub mmu_lock: RwLock<()>,
    /// The retry protocol.
    pub invalidate: MmuInvalidate,
}

impl TdpMmu {
    /// An MMU without a root; nothing is allocated until the first one is loaded.
    pub fn new(cx: &Cx<'_>, phys: Arc<PhysMem>, config: TdpConfig) -> TdpMmu {
        todo!()
    }
    /// The configuration.
    pub fn config(&self) -> &TdpConfig {
        todo!()
    }
    /// The entry format: state tests, MMIO generation and gfn.
    pub fn masks(&self) -> &SpteMasks {
        todo!()
    }
    /// `kvm_tdp_mmu_alloc_root`. Takes mmu_lock for reading.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn load_root(&self, cx: &Cx<'_>, as_id: u16) -> Result<Arc<Root>, Errno> {
        todo!()
    }
    /// `kvm_mmu_free_roots`: a vCPU drops its root. Takes mmu_lock for reading.
    pub fn put_root(&self, cx: &Cx<'_>, root: Arc<Root>) {
        todo!()
    }
    /// `kvm_tdp_mmu_map` with `kvm_mmu_hugepage_adjust`; the caller has made the stale check under the same `lock`.
    /// `flush` is called when a table is replaced by a huge leaf.
    ///
    /// # Errors
    /// `ENOMEM`: no frame for a table.
    pub fn map<S: SlotView>(
        &self,
        cx: &Cx<'_>,
        lock: &RwLockReadGuard<'_, ()>,
        root: &Root,
        fault: &TdpFault,
        slot: Option<&S>,
        flush: &impl RemoteFlush,
    ) -> Result<RetPf, Errno> {
        todo!()
    }
    /// `fast_page_fault`, without mmu_lock; [`RetPf::Invalid`] if declined. The caller has compared the private attribute.
    pub fn fast_page_fault<S: SlotView>(&self, cx: &Cx<'_>, root: &Root, fault: &TdpFault, slot: Option<&S>) -> RetPf {
        todo!()
    }
    /// `kvm_tdp_mmu_get_walk`: the last entry on the way to `gpa`, without mmu_lock.
    pub fn walk_lockless(&self, cx: &Cx<'_>, root: &Root, gpa: Gpa) -> (Spte, Level) {
        todo!()
    }
    /// The hardware's walk, with its A and D updates. The caller is in guest mode (flushes wait for it) or in an RCU section.
    ///
    /// # Errors
    /// The fault that the hardware reports.
    pub fn translate(&self, cx: &Cx<'_>, root: &Root, gpa: Gpa, access: Access) -> Result<Translation, Stage2Fault> {
        todo!()
    }
    /// `kvm_tdp_mmu_unmap_gfn_range` / `kvm_tdp_mmu_zap_leafs`. `as_id` `None` means all address spaces.
    #[expect(clippy::too_many_arguments)]
    pub fn zap_leafs(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockWriteGuard<'_, ()>,
        as_id: Option<u16>,
        roots: RootFilter,
        range: GfnRange,
        may_yield: MayYield,
        flush: &impl RemoteFlush,
    ) -> FlushNeeded {
        todo!()
    }
    /// `kvm_tdp_mmu_invalidate_roots`: the caller requests `FREE_OBSOLETE_ROOTS` from all vCPUs under the same lock.
    pub fn invalidate_all_roots(&self, cx: &Cx<'_>, lock: &mut RwLockWriteGuard<'_, ()>) {
        todo!()
    }
    /// `kvm_tdp_mmu_zap_invalidated_roots`. Takes mmu_lock for reading, yields.
    pub fn zap_invalidated_roots(&self, cx: &Cx<'_>) {
        todo!()
    }
    /// `kvm_tdp_mmu_wrprot_slot`: removes W from the leafs of at least `min_level`; whether any had it. The caller flushes
    /// unconditionally once mmu_lock is released.
    pub fn wrprot_slot(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockReadGuard<'_, ()>,
        as_id: u16,
        range: GfnRange,
        min_level: Level,
    ) -> bool {
        todo!()
    }
    /// `kvm_tdp_mmu_try_split_huge_pages`: best effort, stops silently when memory runs out.
    pub fn split_huge_pages(&self, cx: &Cx<'_>, lock: MmuLock<'_, '_>, as_id: u16, range: GfnRange, target: Level) {
        todo!()
    }
    /// `kvm_arch_mmu_enable_log_dirty_pt_masked`: after the bits of `mask` (bit i = `base` + i) were taken from the bitmap.
    /// The caller flushes iff it took any bit.
    pub fn enable_log_dirty_pt_masked(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockWriteGuard<'_, ()>,
        as_id: u16,
        base: Gfn,
        mask: u64,
        initially_set: bool,
    ) {
        todo!()
    }
    /// `kvm_tdp_mmu_clear_dirty_pt_masked` with write protection: removes W from the 4 KiB leafs in `mask`.
    pub fn clear_dirty_pt_masked(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockWriteGuard<'_, ()>,
        as_id: u16,
        base: Gfn,
        mask: u64,
    ) {
        todo!()
    }
    /// `kvm_tdp_mmu_recover_huge_pages`: dirty logging ended. Flushes itself.
    pub fn recover_huge_pages<S: SlotView>(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockReadGuard<'_, ()>,
        as_id: u16,
        slot: &S,
        flush: &impl RemoteFlush,
    ) {
        todo!()
    }
    /// `kvm_tdp_mmu_zap_all`: the process is gone, no vCPU will run. Takes mmu_lock for writing; roots stay.
    pub fn zap_all(&self, cx: &Cx<'_>) {
        todo!()
    }
    /// `kvm_mmu_uninit_tdp_mmu`: frees everything once all vCPUs have put their roots.
    ///
    /// # Panics
    /// If a vCPU still has a root (MMU-INV-007).
    pub fn uninit(&self, cx: &Cx<'_>) {
        todo!()
    }
    /// What is in the trees.
    pub fn pages(&self) -> PageStats {
        todo!()
    }
    /// Every present leaf of every root, in ascending order per root, without scheduling points.
    pub fn for_each_leaf(&self, f: impl FnMut(LeafInfo)) {
        todo!()
    }
    /// What an entry of a recorded event is.
    pub fn classify(&self, spte: u64, level: Level) -> SpteState {
        todo!()
    }
    /// Walks everything and asserts MMU-INV-001..006 and 010..016; for quiescent moments.
    pub fn assert_consistent(&self) {
        todo!()
    }
}
