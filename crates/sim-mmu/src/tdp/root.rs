//! Roots: one valid one per address space and kind of memory, shared by its vCPUs (`kvm_tdp_mmu_alloc_root`, `kvm_tdp_mmu_put_root`,
//! `kvm_tdp_mmu_invalidate_roots` of `arch/x86/kvm/mmu/tdp_mmu.c`).
//!
//! Simplified: a root's role is its address space and whether it is a mirror; vCPUs of one address space always share a tree.

use super::TdpMmu;
use crate::addr::{Gfn, Level};
use crate::mutants::{ROOT_GET_PLAIN, ROOT_NO_RESEARCH};
use sim_kernel::sync::{Atomic64, Mutex, RefCount, RwLockReadGuard, RwLockWriteGuard};
use sim_kernel::{Cx, Errno, Pfn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A tree, or a part of one, as a walk is told of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tree {
    /// The topmost table.
    pub(super) table: Pfn,
    /// Level of its entries.
    pub(super) level: Level,
    pub(super) as_id: u16,
    /// Nobody but KVM reads this tree: what it says is carried out in external tables (`is_mirror_sp`).
    pub(super) is_mirror: bool,
    /// What an index has beside the gfn (`kvm_gfn_root_bits`).
    pub(super) gfn_bits: u64,
}

/// A root of a tree (a root's `struct kvm_mmu_page`).
#[derive(Debug)]
pub struct Root {
    tree: Tree,
    /// Roots are listed newest first; a larger number is newer.
    number: u64,
    count: RefCount,
    invalid: Atomic64,
    scheduled_to_zap: AtomicBool,
}

impl Root {
    /// The address space.
    pub fn as_id(&self) -> u16 {
        self.tree.as_id
    }

    /// The root table: what EPTP or nCR3 points to, unless this is a mirror.
    pub fn table(&self) -> Pfn {
        self.tree.table
    }

    /// Level of the root table's entries.
    pub fn level(&self) -> Level {
        self.tree.level
    }

    /// `is_mirror_sp`: the tree is KVM's copy of external tables, which no processor walks.
    pub fn is_mirror(&self) -> bool {
        self.tree.is_mirror
    }

    /// `kvm_gfn_root_bits`: what the entries' places have beside the gfn.
    pub fn gfn_bits(&self) -> u64 {
        self.tree.gfn_bits
    }

    /// A tree that processors walk, in use, of this address space: mirrors are never logged, split, recovered or aged.
    pub(super) fn is_valid_direct(&self, as_id: u16) -> bool {
        self.as_id() == as_id && !self.is_mirror() && !self.is_invalid()
    }

    pub(super) fn tree(&self) -> Tree {
        self.tree
    }

    /// References held, for checkers.
    pub fn refs(&self) -> u64 {
        self.count.peek()
    }

    /// `root->role.invalid`, as seen under mmu_lock: only a writer sets it, so this is no scheduling point.
    pub fn is_invalid(&self) -> bool {
        self.invalid.peek() != 0
    }

    /// As [`Root::is_invalid`], without mmu_lock: a scheduling point.
    pub fn is_invalid_lockless(&self, cx: &Cx<'_>) -> bool {
        self.invalid.load(cx) != 0
    }
}

/// `kvm->arch.tdp_mmu_roots`.
#[derive(Debug)]
pub(super) struct RootList {
    pub(super) tdp_mmu_pages_lock: Mutex<()>,
    /// The RCU list: read at any time, changed under the lock above.
    list: parking_lot::RwLock<Vec<Arc<Root>>>,
}

impl RootList {
    pub(super) fn new(cx: &Cx<'_>) -> RootList {
        RootList { tdp_mmu_pages_lock: Mutex::new(cx, "tdp_mmu_pages_lock", ()), list: Default::default() }
    }

    /// The newest root older than `before` that `wanted` accepts.
    fn next(&self, before: Option<u64>, wanted: impl Fn(&Root) -> bool) -> Option<Arc<Root>> {
        let list = self.list.read();
        let older = |root: &&Arc<Root>| before.is_none_or(|number| root.number < number);
        list.iter().rev().filter(older).find(|root| wanted(root)).map(Arc::clone)
    }

    pub(super) fn len(&self) -> usize {
        self.list.read().len()
    }

    /// All roots, newest first: for checkers.
    pub(super) fn snapshot(&self) -> Vec<Arc<Root>> {
        self.list.read().iter().rev().map(Arc::clone).collect()
    }
}

impl TdpMmu {
    fn find_root(&self, cx: &Cx<'_>, as_id: u16, is_mirror: bool) -> Option<Arc<Root>> {
        let wanted = |root: &Root| root.as_id() == as_id && root.is_mirror() == is_mirror && !root.is_invalid();
        self.roots.next(None, wanted).filter(|root| root.count.get_if_live(cx))
    }

    /// `kvm_tdp_mmu_alloc_root`: the valid root of an address space, with a reference for the caller. Takes mmu_lock for reading.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn load_root(&self, cx: &Cx<'_>, as_id: u16) -> Result<Arc<Root>, Errno> {
        self.load_root_of(cx, as_id, false)
    }

    /// The same for the mirror of the external tables. A vCPU loads it first and keeps it for life: invalidating roots leaves it alone.
    ///
    /// # Errors
    /// `ENOMEM`.
    ///
    /// # Panics
    /// If the VM has no external tables.
    pub fn load_mirror_root(&self, cx: &Cx<'_>, as_id: u16) -> Result<Arc<Root>, Errno> {
        assert!(self.has_mirrored_tdp(), "a mirror without external tables");
        self.load_root_of(cx, as_id, true)
    }

    fn load_root_of(&self, cx: &Cx<'_>, as_id: u16, is_mirror: bool) -> Result<Arc<Root>, Errno> {
        let _lock = self.mmu_lock.read(cx);
        if let Some(root) = self.find_root(cx, as_id, is_mirror) {
            return Ok(root);
        }
        let _pages = self.roots.tdp_mmu_pages_lock.lock(cx);
        // Another vCPU may have made one since the search above.
        if !cx.has_mutant(ROOT_NO_RESEARCH)
            && let Some(root) = self.find_root(cx, as_id, is_mirror)
        {
            return Ok(root);
        }
        let level = self.root_level();
        let gfn_bits = if is_mirror { 0 } else { self.gfn_direct_bits() };
        let table = self.tables.alloc(Gfn(0), level, as_id)?;
        let mut list = self.roots.list.write();
        let root = Arc::new(Root {
            tree: Tree { table, level, as_id, is_mirror, gfn_bits },
            number: list.last().map_or(0, |newest| newest.number + 1),
            // One for the vCPU and one for the MMU, until the root is invalidated.
            count: RefCount::with_rule(cx, "tdp_mmu_root_count", 2, "MMU-INV-008: "),
            invalid: Atomic64::new(cx, "root_invalid", 0),
            scheduled_to_zap: AtomicBool::new(false),
        });
        let twin = |other: &&Arc<Root>| (other.as_id(), other.is_mirror()) == (as_id, is_mirror) && !other.is_invalid();
        let valid = list.iter().filter(twin).count();
        assert_eq!(valid, 0, "MMU-INV-008: a second valid root for address space {as_id}");
        list.push(Arc::clone(&root));
        Ok(root)
    }

    /// `kvm_mmu_free_roots`: a vCPU drops its root. Takes mmu_lock for reading.
    pub fn put_root(&self, cx: &Cx<'_>, root: Arc<Root>) {
        let _lock = self.mmu_lock.read(cx);
        self.put_root_locked(cx, &root);
    }

    /// `kvm_tdp_mmu_put_root`.
    fn put_root_locked(&self, cx: &Cx<'_>, root: &Root) {
        if !root.count.put(cx) {
            return;
        }
        assert!(root.is_invalid(), "MMU-INV-008: the last reference to a valid root was put");
        assert!(!root.scheduled_to_zap.load(Ordering::Relaxed), "MMU-INV-009: a root dies before it was zapped");
        {
            let _pages = self.roots.tdp_mmu_pages_lock.lock(cx);
            self.roots.list.write().retain(|other| other.number != root.number);
        }
        self.tables.free_after_grace_period(cx, root.table());
    }

    /// `for_each_tdp_mmu_root_yield_safe`: calls `f` for the roots that `wanted` accepts, newest first, holding a reference to each
    /// so that it stays while `f` releases mmu_lock.
    pub(super) fn for_each_root(&self, cx: &Cx<'_>, wanted: impl Fn(&Root) -> bool, mut f: impl FnMut(&Root)) {
        let mut before = None;
        while let Some(root) = self.roots.next(before, &wanted) {
            before = Some(root.number);
            let got = if cx.has_mutant(ROOT_GET_PLAIN) {
                root.count.get(cx);
                true
            } else {
                root.count.get_if_live(cx)
            };
            if got {
                f(&root);
                self.put_root_locked(cx, &root);
            }
        }
    }

    /// `kvm_tdp_mmu_invalidate_roots`, the front half of "zap all fast": the caller requests `FREE_OBSOLETE_ROOTS` from all vCPUs
    /// in the same critical section and runs [`TdpMmu::zap_invalidated_roots`] after it.
    ///
    /// Mirrors stay: they live until the VM dies.
    pub fn invalidate_all_roots(&self, cx: &Cx<'_>, _lock: &mut RwLockWriteGuard<'_, ()>) {
        self.invalidate_roots(cx, |root| !root.is_mirror());
    }

    pub(super) fn invalidate_roots(&self, cx: &Cx<'_>, wanted: impl Fn(&Root) -> bool) {
        for root in self.roots.snapshot() {
            if !root.is_invalid() && wanted(&root) {
                root.scheduled_to_zap.store(true, Ordering::Relaxed);
                root.invalid.store(cx, 1);
            }
        }
    }

    /// Calls `zap` for each root that waits for it, then drops the MMU's own reference.
    pub(super) fn for_each_scheduled_root(&self, cx: &Cx<'_>, mut zap: impl FnMut(&Root)) {
        self.for_each_root(
            cx,
            |_| true,
            |root| {
                if root.scheduled_to_zap.swap(false, Ordering::Relaxed) {
                    assert!(root.is_invalid(), "MMU-INV-009: a valid root is scheduled to be zapped");
                    zap(root);
                    self.put_root_locked(cx, root);
                }
            },
        );
    }

    /// Asserts that nothing of the kind "valid root without the MMU's reference" exists (MMU-INV-008, 009).
    pub(super) fn assert_roots(&self) {
        let roots = self.roots.snapshot();
        for root in &roots {
            assert!(root.refs() >= 1, "MMU-INV-008: a listed root without a reference");
            let scheduled = root.scheduled_to_zap.load(Ordering::Relaxed);
            assert!(!scheduled || root.is_invalid(), "MMU-INV-009: a valid root is scheduled to be zapped");
            let role = |root: &Root| (root.as_id(), root.is_mirror());
            let twins = roots.iter().filter(|other| role(other) == role(root) && !other.is_invalid()).count();
            assert!(twins <= 1, "MMU-INV-008: {twins} valid roots for address space {}", root.as_id());
        }
    }

    /// The root's half of `is_page_fault_stale`: whether a fault on `root` must retry. The other half is
    /// [`MmuInvalidate::retry_gfn`](crate::MmuInvalidate::retry_gfn), for faults that have a memslot.
    pub fn is_root_stale(&self, _lock: &RwLockReadGuard<'_, ()>, root: &Root) -> bool {
        root.is_invalid()
    }
}
