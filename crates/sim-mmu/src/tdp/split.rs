//! Linking tables and splitting huge leafs (`tdp_mmu_link_sp`, `tdp_mmu_split_huge_page`, `tdp_mmu_split_huge_pages_root` of
//! `arch/x86/kvm/mmu/tdp_mmu.c`).

use super::changed::{Frames, Raced};
use super::iter::TdpIter;
use super::root::Root;
use super::{MmuLock, TdpMmu};
use crate::addr::{GfnRange, Level, PT_ENTRIES};
use crate::mutants::{LINK_BEFORE_INIT, SPLIT_BAD_CHILD, SVE_DROPPED};
use crate::spte::Spte;
use sim_kernel::sync::{RwLockWriteGuard, rcu_read_lock};
use sim_kernel::{Cx, Errno, Pfn};

impl TdpMmu {
    /// `tdp_mmu_link_sp`: makes the entry point to `child`.
    pub(super) fn link_table(
        &self,
        cx: &Cx<'_>,
        iter: &mut TdpIter,
        child: Pfn,
        shared: bool,
        frames: Frames,
    ) -> Result<(), Raced> {
        self.tables.set_parent(child, iter.table(), iter.index());
        let mut spte = self.tables.masks.make_nonleaf_spte(child);
        if cx.has_mutant(SVE_DROPPED) {
            spte = spte.without(Spte::NONPRESENT.0);
        }
        if shared {
            return self.set_spte_atomic(cx, iter, spte, frames);
        }
        self.set_spte(cx, iter, spte, frames);
        Ok(())
    }

    /// `tdp_mmu_split_huge_page`: replaces the huge leaf by `child`, filled with the same mapping. No flush: every translation
    /// stays what it was.
    pub(super) fn split_huge_page(
        &self,
        cx: &Cx<'_>,
        iter: &mut TdpIter,
        child: Pfn,
        shared: bool,
    ) -> Result<(), Raced> {
        // Nobody can reach the table yet: plain stores, no events.
        let below = iter.level.down().expect("a huge leaf has a level below");
        let (huge, level) = (iter.old_spte, iter.level);
        let executable = below == Level::L4K && self.config().nx_huge_pages;
        let fill = || {
            self.tables.init(child, |index| {
                let part = if cx.has_mutant(SPLIT_BAD_CHILD) { index ^ 1 } else { index };
                let small = self.tables.masks.make_small_spte(huge, level, part);
                // What only a huge page may not do, the small ones may.
                let small = if executable { self.tables.masks.make_executable(small) } else { small };
                if cx.has_mutant(LINK_BEFORE_INIT) {
                    self.tables.word(cx, child, index).store(small.0);
                }
                small
            });
        };
        if cx.has_mutant(LINK_BEFORE_INIT) {
            self.link_table(cx, iter, child, shared, Frames::Inherited)?;
            fill();
        } else {
            fill();
            self.link_table(cx, iter, child, shared, Frames::Inherited)?;
        }
        self.tables.update_page_stats(below, PT_ENTRIES as i64, !shared);
        Ok(())
    }

    /// `kvm_split_cross_boundary_leafs`: splits every leaf of a mirror that lies in `range` only in part, so that what is done to the range is not done to the rest of
    /// the leaf. Nobody sees a tree that is half split.
    ///
    /// Simplified: Linux would give mmu_lock away to allocate.
    ///
    /// # Errors
    /// `ENOMEM`; what was split stays split.
    pub fn split_cross_boundary_leafs(
        &self,
        cx: &Cx<'_>,
        _lock: &mut RwLockWriteGuard<'_, ()>,
        range: GfnRange,
    ) -> Result<(), Errno> {
        if !self.has_mirrored_tdp() || self.external().max_level() == Level::L4K {
            return Ok(());
        }
        let mut result = Ok(());
        self.for_each_root(cx, Root::is_mirror, |root| {
            let rcu = rcu_read_lock(cx);
            let mut iter = TdpIter::new(cx, &self.tables, root, Level::L2M, range, true);
            while iter.is_valid() && result.is_ok() {
                let block = iter.gfn.block(iter.level);
                if iter.old_spte.is_leaf(iter.level) && !range.covers(&block) {
                    result = self.split_mirror_leaf(cx, &mut iter);
                }
                iter.next(cx, &self.tables);
            }
            drop(rcu);
        });
        result
    }

    fn split_mirror_leaf(&self, cx: &Cx<'_>, iter: &mut TdpIter) -> Result<(), Errno> {
        self.external().prepare_split(cx)?;
        let below = iter.level.down().expect("a huge leaf has a level below");
        let child = self.alloc_sp(cx, iter.gfn, below, iter.tree.as_id, iter.tree.is_mirror)?;
        self.split_huge_page(cx, iter, child, false).expect("nobody else writes under mmu_lock for writing");
        Ok(())
    }

    /// `kvm_tdp_mmu_try_split_huge_pages`: splits the leafs of `range` down to `target` in all valid trees of the address space.
    /// Best effort: stops silently when memory runs out.
    pub fn split_huge_pages(&self, cx: &Cx<'_>, mut lock: MmuLock<'_, '_>, as_id: u16, range: GfnRange, target: Level) {
        let valid = |root: &Root| root.is_valid_direct(as_id);
        let mut result = Ok(());
        self.for_each_root(cx, valid, |root| {
            if result.is_ok() {
                result = self.split_huge_pages_root(cx, &mut lock, root, range, target);
            }
        });
    }

    fn split_huge_pages_root(
        &self,
        cx: &Cx<'_>,
        lock: &mut MmuLock<'_, '_>,
        root: &Root,
        range: GfnRange,
        target: Level,
    ) -> Result<(), Errno> {
        let min_level = target.up().expect("leafs are split to a level that has one above");
        let shared = !lock.is_exclusive();
        let mut spare = None;
        let mut rcu = Some(rcu_read_lock(cx));
        let mut iter = TdpIter::new(cx, &self.tables, root, min_level, range, !shared);
        while iter.is_valid() {
            // A compare-exchange that failed refreshed the entry: look at it once more.
            loop {
                if iter.cond_resched(cx, lock, &mut rcu, || {}) || !iter.old_spte.is_leaf(iter.level) {
                    break;
                }
                let below = iter.level.down().expect("above the target level");
                let Some(child) = spare.take() else {
                    // Allocation may sleep: no lock is held meanwhile, and the walk starts again.
                    spare = Some(self.tables.alloc(iter.gfn, below, root.as_id())?);
                    iter.relax(cx, lock, &mut rcu);
                    break;
                };
                // The spare table was meant for the entry of that moment, this may be another one.
                self.tables.reinit(child, iter.gfn, below);
                if self.split_huge_page(cx, &mut iter, child, shared).is_ok() {
                    break;
                }
                spare = Some(child);
            }
            iter.next(cx, &self.tables);
        }
        drop(rcu);
        if let Some(child) = spare {
            self.tables.free_unlinked(child);
        }
        Ok(())
    }
}
