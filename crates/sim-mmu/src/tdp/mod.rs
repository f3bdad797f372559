//! The TDP MMU: stage-2 trees that many vCPUs fill at once (`arch/x86/kvm/mmu/tdp_mmu.c`).
//!
//! Left out: mirror tables, access tracking and ageing, the NX-huge-page mitigation, page-modification logging, write tracking,
//! nested roots.

mod changed;
mod check;
mod dirty;
mod fast;
mod iter;
mod map;
mod root;
mod split;
mod tables;
mod walk;
mod zap;

pub use check::LeafInfo;
pub use root::Root;
pub use walk::{Stage2Fault, Translation};

use crate::addr::{Gfn, Level};
use crate::invalidate::MmuInvalidate;
use crate::stage2::{SpteMasks, Stage2Kind};
use root::RootList;
use sim_kernel::Cx;
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Tracepoint;
use sim_kernel::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::Arc;
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
    /// and only the page of the fault is mapped again, as the shadow MMU does (`drop_large_spte`).
    pub splits_on_fault: bool,
    /// Largest leaf that the processor supports.
    pub max_level: Level,
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
}

impl TdpMmu {
    /// An MMU without a root; no table is allocated until the first one is loaded.
    ///
    /// # Panics
    /// If the configuration is not one of a real machine: 4 or 5 levels, MAXPHYADDR of at most 52 bits, leafs up to 1 GiB.
    pub fn new(cx: &Cx<'_>, phys: Arc<PhysMem>, config: TdpConfig) -> TdpMmu {
        assert!((4..=5).contains(&config.levels), "{} levels of stage-2 tables", config.levels);
        assert!(config.max_level <= Level::L1G, "leafs of {:?}", config.max_level);
        TdpMmu {
            mmu_lock: RwLock::new(cx, "mmu_lock", ()),
            invalidate: MmuInvalidate::new(cx),
            roots: RootList::new(cx),
            tables: Arc::new(Tables::new(cx, phys, config)),
            hardware: Hardware::new(config.kind, config.max_gfn, config.max_level),
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

    fn root_level(&self) -> Level {
        Level::from_number(self.config().levels).expect("checked when the MMU was made")
    }
}
