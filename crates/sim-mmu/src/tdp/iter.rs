//! Pre-order walk over the entries of a tree (`arch/x86/kvm/mmu/tdp_iter.c`).
//!
//! Each read of an entry is a scheduling point, with one exception: a walk during which nobody can install anything (mmu_lock
//! held for writing, or the tree's root is invalid) reads non-present entries silently. They cannot change under it, so no
//! interleaving is lost, and an explorer does not branch 512 times per empty table.

use super::MmuLock;
use super::root::{Root, Tree};
use super::tables::Tables;
use crate::addr::{Gfn, GfnRange, Level, PT_ENTRIES};
use crate::mutants::BUG_61;
use crate::spte::Spte;
use sim_kernel::sync::{RcuReadGuard, Word};
use sim_kernel::{Cx, Pfn};
use std::sync::atomic::{AtomicU64, Ordering};

/// The position of a walk and what was read there.
#[derive(Debug)]
pub(super) struct TdpIter<'t> {
    /// The entry as last read; void after a yield.
    pub(super) old_spte: Spte,
    /// First gfn of the entry.
    pub(super) gfn: Gfn,
    /// Level of the entry.
    pub(super) level: Level,
    /// The tree, from the table where the walk began.
    pub(super) tree: Tree,
    /// No task can install an entry while this walk runs.
    pub(super) unraced: bool,
    /// The walk goes on from the root: mmu_lock was released.
    pub(super) yielded: bool,
    valid: bool,
    end: Gfn,
    min_level: Level,
    /// Tables from the root (at its level's index) down to the current one.
    path: [Pfn; 6],
    /// The entries of the current table: looking a table up costs more than reading an entry.
    entries: &'t [AtomicU64; PT_ENTRIES],
    /// The smallest gfn that the walk has not finished with.
    next_last_level_gfn: Gfn,
    /// Its value at the last yield: a walk that made no progress must not yield again.
    yielded_gfn: Gfn,
}

impl<'t> TdpIter<'t> {
    /// `for_each_tdp_pte_min_level` over `range` of a root.
    pub(super) fn new(
        cx: &Cx<'_>,
        tables: &'t Tables,
        root: &Root,
        min_level: Level,
        range: GfnRange,
        exclusive: bool,
    ) -> TdpIter<'t> {
        let unraced = exclusive || root.is_invalid();
        Self::below(cx, tables, root.tree(), min_level, range, unraced)
    }

    /// A walk to one gfn without mmu_lock.
    pub(super) fn lockless(cx: &Cx<'_>, tables: &'t Tables, root: &Root, range: GfnRange) -> TdpIter<'t> {
        Self::below(cx, tables, root.tree(), Level::L4K, range, false)
    }

    /// The same below any table.
    pub(super) fn below(
        cx: &Cx<'_>,
        tables: &'t Tables,
        tree: Tree,
        min_level: Level,
        range: GfnRange,
        unraced: bool,
    ) -> TdpIter<'t> {
        let Tree { table, level, .. } = tree;
        let base = tables.info(table).gfn;
        let reach = (base + level.span() * PT_ENTRIES as u64).min(tables.config.max_gfn);
        let mut path = [Pfn(0); 6];
        path[usize::from(level.number())] = table;
        let mut iter = TdpIter {
            old_spte: Spte::NONPRESENT,
            gfn: range.start,
            level,
            tree,
            unraced,
            yielded: false,
            valid: range.start < range.end.min(reach),
            end: range.end.min(reach),
            min_level,
            path,
            entries: tables.entries(table),
            next_last_level_gfn: range.start,
            yielded_gfn: range.start,
        };
        if iter.valid {
            iter.restart(cx, tables);
        }
        iter
    }

    /// Whether the walk stands on an entry of its range.
    #[inline]
    pub(super) fn is_valid(&self) -> bool {
        self.valid && self.gfn < self.end
    }

    /// The table of the entry.
    #[inline]
    pub(super) fn table(&self) -> Pfn {
        self.path[usize::from(self.level.number())]
    }

    /// The entry's index in its table.
    #[inline]
    pub(super) fn index(&self) -> usize {
        Gfn(self.gfn.0 | self.tree.gfn_bits).index(self.level)
    }

    /// The entry itself.
    #[inline]
    pub(super) fn word<'a>(&'a self, cx: &'a Cx<'_>, tables: &Tables) -> Word<'a> {
        tables.word_of(cx, self.table(), self.index(), self.entries)
    }

    /// Goes to the table of this level that the walk came through.
    fn set_level(&mut self, tables: &'t Tables, level: Level) {
        self.level = level;
        self.entries = tables.entries(self.table());
    }

    fn read(&mut self, cx: &Cx<'_>, tables: &'t Tables) {
        if self.unraced {
            let spte = Spte(self.entries[self.index()].load(Ordering::Acquire));
            if !spte.is_present() {
                self.old_spte = spte;
                return;
            }
        }
        self.old_spte = Spte(self.word(cx, tables).load());
    }

    /// `tdp_iter_restart`: from the root, at the first gfn that is not finished.
    fn restart(&mut self, cx: &Cx<'_>, tables: &'t Tables) {
        self.yielded = false;
        self.yielded_gfn = self.next_last_level_gfn;
        self.set_level(tables, self.tree.level);
        self.gfn = self.next_last_level_gfn.round_down(self.level);
        self.read(cx, tables);
    }

    /// `tdp_iter_next`.
    pub(super) fn next(&mut self, cx: &Cx<'_>, tables: &'t Tables) {
        if self.yielded {
            self.restart(cx, tables);
            if !cx.has_mutant(BUG_61) {
                return;
            }
        }
        if self.try_step_down(cx, tables) {
            return;
        }
        loop {
            if self.try_step_side(cx, tables) {
                return;
            }
            if !self.try_step_up(cx, tables) {
                self.valid = false;
                return;
            }
        }
    }

    /// Goes to the last of the non-present entries that follow the current one in its table, itself one. Only in a walk that reads
    /// them silently: nothing else can happen on the way, so this is many [`TdpIter::next`] at once.
    ///
    /// If the caller `would_yield`, it does so where it stands, and what is passed over afterwards is no progress that lets it yield again.
    /// The kernel may yield at every entry; but between two of them it has done nothing, so that whoever gets the lock at the second could have
    /// had it at the first, and an explorer does not branch 512 times per empty table.
    #[inline]
    pub(super) fn skip_absent(&mut self, tables: &'t Tables, would_yield: impl FnOnce(&TdpIter<'_>) -> bool) {
        if !self.unraced || self.yielded || self.old_spte.is_present() || would_yield(self) {
            return;
        }
        let has_progress = self.next_last_level_gfn != self.yielded_gfn;
        let index = self.index();
        let last = (index as u64 + (self.end.0 - 1 - self.gfn.0) / self.level.span()).min(PT_ENTRIES as u64 - 1);
        let last = last as usize;
        let stop = tables.next_present(self.table(), index + 1, last + 1).map_or(last, |present| present - 1);
        if stop > index {
            self.old_spte = Spte(self.entries[stop].load(Ordering::Acquire));
            self.gfn = self.gfn + (stop - index) as u64 * self.level.span();
            self.next_last_level_gfn = self.gfn;
            if !has_progress {
                self.yielded_gfn = self.gfn;
            }
        }
    }

    /// `try_step_down`: to the entry for the same gfn in the table that this entry points to.
    pub(super) fn try_step_down(&mut self, cx: &Cx<'_>, tables: &'t Tables) -> bool {
        if self.level == self.min_level {
            return false;
        }
        // The entry may have changed since it was read, by this task too: a table may have been linked here.
        self.read(cx, tables);
        if !self.old_spte.is_table(self.level) {
            return false;
        }
        let child = self.old_spte.pfn();
        self.level = self.level.down().expect("above the minimum level");
        self.path[usize::from(self.level.number())] = child;
        self.entries = tables.entries(child);
        self.gfn = self.next_last_level_gfn.round_down(self.level);
        self.read(cx, tables);
        // Whoever frees a table waits for those who may be on their way into it.
        tables.assert_table(child, self.level);
        true
    }

    fn try_step_side(&mut self, cx: &Cx<'_>, tables: &'t Tables) -> bool {
        if self.index() == PT_ENTRIES - 1 {
            return false;
        }
        self.gfn = self.gfn + self.level.span();
        self.next_last_level_gfn = self.gfn;
        if self.gfn < self.end {
            self.read(cx, tables);
        }
        true
    }

    fn try_step_up(&mut self, cx: &Cx<'_>, tables: &'t Tables) -> bool {
        if self.level == self.tree.level {
            return false;
        }
        self.set_level(tables, self.level.up().expect("below the root"));
        self.gfn = self.gfn.round_down(self.level);
        self.read(cx, tables);
        true
    }

    /// `tdp_mmu_iter_need_resched`: somebody waits for mmu_lock, and the walk got on since it last yielded.
    pub(super) fn need_resched(&self, lock: &MmuLock<'_, '_>) -> bool {
        self.next_last_level_gfn != self.yielded_gfn && lock.needs_break()
    }

    /// `tdp_mmu_iter_cond_resched`: releases mmu_lock if somebody waits for it; `before` runs first, it flushes what is owed.
    /// After a yield the entry is void: the caller goes on with [`TdpIter::next`].
    pub(super) fn cond_resched<'c>(
        &mut self,
        cx: &'c Cx<'_>,
        lock: &mut MmuLock<'_, '_>,
        rcu: &mut Option<RcuReadGuard<'c>>,
        before: impl FnOnce(),
    ) -> bool {
        if !self.need_resched(lock) {
            return false;
        }
        before();
        self.relax(cx, lock, rcu);
        true
    }

    /// Releases RCU and mmu_lock and takes them again.
    pub(super) fn relax<'c>(&mut self, cx: &'c Cx<'_>, lock: &mut MmuLock<'_, '_>, rcu: &mut Option<RcuReadGuard<'c>>) {
        *rcu = None;
        lock.relax();
        *rcu = Some(sim_kernel::sync::rcu_read_lock(cx));
        self.yielded = true;
    }
}
