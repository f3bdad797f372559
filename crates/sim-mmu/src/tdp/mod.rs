//! The TDP MMU: stage-2 trees that many vCPUs fill at once (`arch/x86/kvm/mmu/tdp_mmu.c`).
//!
//! Left out: write tracking, nested roots.

mod age;
mod changed;
mod check;
mod dirty;
mod external;
mod fast;
mod iter;
mod map;
mod nx;
mod root;
mod split;
mod tables;
mod walk;
mod zap;

pub use age::Age;
pub use check::LeafInfo;
pub use external::{ExternalChange, ExternalTable, ExternalTables};
pub use root::Root;
pub use walk::{Stage2Fault, Translation};

use crate::addr::{Gfn, Level};
use crate::invalidate::MmuInvalidate;
use crate::stage2::{SpteMasks, Stage2Kind};
use root::RootList;
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Tracepoint;
use sim_kernel::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use sim_kernel::{Cx, Pfn};
use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use tables::Tables;
use walk::Hardware;

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
    /// A write fault on a write-protected huge leaf splits it, as the TDP MMU does (`tdp_mmu_split_huge_page`). Without it the leaf is dropped
    /// and only the page of the fault is mapped again, as the shadow MMU does (`__link_shadow_page`).
    pub splits_on_fault: bool,
    /// Largest leaf that the processor supports.
    pub max_level: Level,
    /// The hardware sets A and D (`kvm_ad_enabled`): always with nested page tables; with EPT if the processor can and `ept_ad_bits` is on.
    pub accessed_dirty: bool,
    /// Writes are logged by D bits and the processor's page-modification log (`enable_pml`, `cpu_dirty_log_size`): EPT with A and D.
    pub pml: bool,
    /// No huge leaf is executable (`nx_huge_pages`).
    pub nx_huge_pages: bool,
    /// `kvm_gfn_direct_bits`: a TD's shared bit as a bit of a gfn, which the direct root has in its indexes; 0 elsewhere, and until
    /// [`TdpMmu::set_guest_width`] says it.
    pub gfn_direct_bits: u64,
}

impl TdpConfig {
    /// As KVM sets up a VM on a processor with everything, with nothing switched on that is off by default on one without defects; guest frames
    /// up to `max_gfn`.
    pub const fn new(kind: Stage2Kind, levels: u8, max_gfn: Gfn) -> TdpConfig {
        TdpConfig {
            kind,
            levels,
            max_gfn,
            mmio_caching: true,
            eager_page_split: true,
            splits_on_fault: true,
            max_level: Level::L1G,
            accessed_dirty: true,
            pml: false,
            nx_huge_pages: false,
            gfn_direct_bits: 0,
        }
    }

    /// The bits of this VM's entries.
    ///
    /// # Panics
    /// If `max_gfn` is no power of two up to 2^40, or nested page tables are to have no A and D bits.
    pub fn masks(&self) -> SpteMasks {
        let masks = SpteMasks::new(self.kind, self.max_gfn, self.mmio_caching);
        if self.accessed_dirty { masks } else { masks.without_accessed_dirty() }
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

impl<'g> MmuLock<'_, 'g> {
    /// The same hold, for a callee.
    pub fn again(&mut self) -> MmuLock<'_, 'g> {
        match self {
            MmuLock::Read(lock) => MmuLock::Read(lock),
            MmuLock::Write(lock) => MmuLock::Write(lock),
        }
    }
}

/// Whether a zap may release mmu_lock on the way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MayYield {
    /// The caller may sleep (a blockable notifier, an ioctl).
    Yes,
    /// The caller must not.
    No,
}

/// Which roots a zap goes through (`enum kvm_tdp_mmu_root_types`, `kvm_gfn_range_filter_to_root_types`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RootFilter {
    /// Valid and invalid ones of both kinds: memory is taken away, whatever it is.
    All,
    /// Only valid ones of both kinds: the range is zapped for KVM's own reasons (slot deletion by leafs, PSMASH).
    ValidOnly,
    /// `KVM_FILTER_SHARED`: shared memory is taken away (a notifier, a conversion to private). As [`RootFilter::All`] where there is one tree for
    /// both kinds.
    Shared,
    /// `KVM_FILTER_PRIVATE`: private memory is taken away (guest_memfd, a conversion to shared): the mirror, and what is invalid.
    Private,
}

impl RootFilter {
    fn selects(self, root: &Root, has_mirrored_tdp: bool) -> bool {
        match self {
            RootFilter::All => true,
            RootFilter::ValidOnly => !root.is_invalid(),
            RootFilter::Shared | RootFilter::Private if !has_mirrored_tdp || root.is_invalid() => true,
            RootFilter::Shared => !root.is_mirror(),
            RootFilter::Private => root.is_mirror(),
        }
    }
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

impl MmuLock<'_, '_> {
    fn is_exclusive(&self) -> bool {
        matches!(self, MmuLock::Write(_))
    }

    fn needs_break(&self) -> bool {
        match self {
            MmuLock::Read(guard) => guard.needs_break(),
            MmuLock::Write(guard) => guard.needs_break(),
        }
    }

    fn relax(&mut self) {
        match self {
            MmuLock::Read(guard) => guard.relax(),
            MmuLock::Write(guard) => guard.relax(),
        }
    }
}

/// The stage-2 MMU of one VM.
#[derive(Debug)]
pub struct TdpMmu {
    /// `kvm->mmu_lock`.
    pub mmu_lock: RwLock<()>,
    /// The retry protocol.
    pub invalidate: MmuInvalidate,
    roots: RootList,
    /// RCU callbacks outlive the operation that queued them, so they hold a share.
    tables: Arc<Tables>,
    hardware: Hardware,
    /// The hooks of a VM whose private memory is mapped by external tables.
    external: Option<Arc<dyn ExternalTables>>,
    /// Pages of the external tables in use.
    external_pages: AtomicU64,
    /// Levels and direct bits of a VM that learns its address width after it was made.
    guest_width: OnceLock<(u8, u64)>,
    /// `kvm->arch.possible_nx_huge_pages`, under `tdp_mmu_pages_lock`.
    possible_nx_huge_pages: parking_lot::Mutex<VecDeque<Pfn>>,
}

impl TdpMmu {
    /// An MMU without a root; no table is allocated until the first one is loaded.
    ///
    /// # Panics
    /// If the configuration is not one of a real machine: 4 or 5 levels, MAXPHYADDR of at most 52 bits, leafs up to 1 GiB, a modification log
    /// only with EPT's A and D bits.
    pub fn new(cx: &Cx<'_>, phys: Arc<PhysMem>, config: TdpConfig) -> TdpMmu {
        TdpMmu::build(cx, phys, config, None)
    }

    /// The same for a VM whose private memory is mapped by external tables, which `external` changes.
    ///
    /// # Panics
    /// As [`TdpMmu::new`].
    pub fn with_external(
        cx: &Cx<'_>,
        phys: Arc<PhysMem>,
        config: TdpConfig,
        external: Arc<dyn ExternalTables>,
    ) -> TdpMmu {
        TdpMmu::build(cx, phys, config, Some(external))
    }

    fn build(cx: &Cx<'_>, phys: Arc<PhysMem>, config: TdpConfig, external: Option<Arc<dyn ExternalTables>>) -> TdpMmu {
        assert!((4..=5).contains(&config.levels), "{} levels of stage-2 tables", config.levels);
        assert!(config.max_level <= Level::L1G, "leafs of {:?}", config.max_level);
        let logs = config.kind == Stage2Kind::Ept && config.accessed_dirty;
        assert!(!config.pml || logs, "a modification log without EPT's A and D bits");
        TdpMmu {
            mmu_lock: RwLock::new(cx, "mmu_lock", ()),
            invalidate: MmuInvalidate::new(cx),
            roots: RootList::new(cx),
            tables: Arc::new(Tables::new(cx, phys, config)),
            hardware: Hardware::new(&config),
            external,
            external_pages: AtomicU64::new(0),
            guest_width: OnceLock::new(),
            possible_nx_huge_pages: Default::default(),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &TdpConfig {
        &self.tables.config
    }

    /// The entry format: state tests, MMIO generation and gfn.
    pub fn masks(&self) -> &SpteMasks {
        &self.tables.masks
    }

    /// How wide guest physical addresses are, of a VM that is told after it was made (`KVM_TDX_INIT_VM`): the levels of its trees, and what a
    /// shared gfn's place in the direct root has beside the gfn. Before any root is loaded.
    ///
    /// # Panics
    /// If it was said before, if there is a root already, or if there are no such trees.
    pub fn set_guest_width(&self, levels: u8, gfn_direct_bits: u64) {
        assert!((4..=5).contains(&levels), "{levels} levels of stage-2 tables");
        assert_eq!(self.roots.len(), 0, "a root is older than the width of the addresses in it");
        assert!(self.guest_width.set((levels, gfn_direct_bits)).is_ok(), "a guest's address width never changes");
    }

    fn root_level(&self) -> Level {
        let levels = self.guest_width.get().map_or(self.config().levels, |(levels, _)| *levels);
        Level::from_number(levels).expect("checked when it was said")
    }
}
