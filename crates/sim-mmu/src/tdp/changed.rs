//! The common handler of every change of an entry and the rules for writing one (`handle_changed_spte`, `handle_removed_pt`,
//! `tdp_mmu_set_spte_atomic`, `tdp_mmu_set_spte` of `arch/x86/kvm/mmu/tdp_mmu.c`, `tdp_iter.h`).
//!
//! The order of events is that of the recordings: a table that is unlinked reports its 512 children first, a child that is a
//! table its own children before itself, and the entry that pointed to it comes last.

use super::external::ExternalChange;
use super::iter::TdpIter;
use super::root::Tree;
use super::{KVM_TDP_MMU_SPTE_CHANGED, TdpMmu};
use crate::addr::{Gfn, Level, PT_ENTRIES};
use crate::mutants::*;
use crate::spte::Spte;
use sim_kernel::sync::Word;
use sim_kernel::{Cx, Pfn};

/// An entry was found changed, and the iterator has the new value; or it is in a mirror, and the external tables did not take the change.
#[derive(Debug)]
pub(super) struct Raced;

/// What happens to the per-frame counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Frames {
    /// They follow the entry.
    Count,
    /// A huge leaf becomes a table of leafs that name the same frames, or they were counted already.
    Inherited,
}

/// Under which rules entries change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) tree: Tree,
    /// mmu_lock is held for reading only.
    pub(super) shared: bool,
    /// No task can install an entry here.
    pub(super) unraced: bool,
    pub(super) frames: Frames,
}

impl Rules {
    pub(super) fn of(iter: &TdpIter, shared: bool) -> Rules {
        Rules { tree: iter.tree, shared, unraced: iter.unraced, frames: Frames::Count }
    }
}

impl TdpMmu {
    /// `tdp_mmu_set_spte_atomic`: compare-exchange from the iterator's snapshot, under mmu_lock for reading. An entry of a mirror is frozen
    /// while the external tables are changed.
    pub(super) fn set_spte_atomic(
        &self,
        cx: &Cx<'_>,
        iter: &mut TdpIter,
        new: Spte,
        frames: Frames,
    ) -> Result<(), Raced> {
        assert!(!iter.yielded, "MMU-INV-053: an entry is written from a snapshot that a yield made void");
        assert!(!iter.old_spte.is_frozen(), "MMU-INV-003: a frozen entry is overwritten");
        // Natively another thread may unlink the leaf before this one has counted it, so it is counted first. Simulated, count and
        // exchange are one step.
        let early =
            cx.is_native() && frames == Frames::Count && new.is_leaf(iter.level) && !iter.old_spte.is_leaf(iter.level);
        if early {
            self.tables.add_frames(new, iter.level);
        }
        if !iter.old_spte.is_present() {
            self.tables.touch(iter.table(), iter.index());
        }
        let written = if iter.tree.is_mirror {
            self.set_mirror_spte_atomic(cx, iter, new)
        } else if cx.has_mutant(RC_12) {
            iter.word(cx, &self.tables).store(new.0);
            Ok(())
        } else {
            iter.word(cx, &self.tables).cmpxchg(iter.old_spte.0, new.0).map_err(|found| {
                iter.old_spte = Spte(found);
                Raced
            })
        };
        if written.is_err() {
            if early {
                self.tables.sub_frames(new, iter.level);
            }
            return Err(Raced);
        }
        let frames = if early { Frames::Inherited } else { frames };
        let rules = Rules { frames, ..Rules::of(iter, true) };
        self.handle_changed_spte(cx, rules, iter.gfn, iter.level, iter.old_spte, new);
        Ok(())
    }

    /// `__tdp_mmu_set_spte_atomic` of a mirror: freezes the entry, changes the external tables, and writes what came of it.
    fn set_mirror_spte_atomic(&self, cx: &Cx<'_>, iter: &mut TdpIter, new: Spte) -> Result<(), Raced> {
        assert!(new.is_present(), "MMU-INV-060: {:?} is taken out of a mirror under mmu_lock for reading", iter.gfn);
        let old = iter.old_spte;
        assert!(!old.is_present(), "MMU-INV-060: {:?} of a mirror is replaced while it is present", iter.gfn);
        let freezes = !cx.has_mutant(MIRROR_NO_FREEZE);
        if freezes && let Err(found) = iter.word(cx, &self.tables).cmpxchg(old.0, Spte::FROZEN.0) {
            // Whoever loops with the snapshot must not loop with the old one.
            iter.old_spte = Spte(found);
            return Err(Raced);
        }
        let change = ExternalChange::new(&self.tables, iter.gfn, iter.level, old, new);
        if self.set_external_spte(cx, &change).is_err() {
            if freezes && !cx.has_mutant(MIRROR_STUCK_FROZEN) {
                iter.word(cx, &self.tables).store(old.0);
            }
            return Err(Raced);
        }
        iter.word(cx, &self.tables).store(new.0);
        Ok(())
    }

    /// `tdp_mmu_iter_set_spte`: under mmu_lock for writing. An entry of a mirror is written first and then taken out of the external tables.
    pub(super) fn set_spte(&self, cx: &Cx<'_>, iter: &mut TdpIter, new: Spte, frames: Frames) {
        assert!(!iter.yielded, "MMU-INV-053: an entry is written from a snapshot that a yield made void");
        let frozen = iter.old_spte.is_frozen() || new.is_frozen();
        assert!(!frozen, "MMU-INV-003: a live entry is frozen or thawed under mmu_lock for writing");
        let word = iter.word(cx, &self.tables);
        iter.old_spte = self.write_spte(word, iter.table(), iter.index(), iter.level, iter.old_spte, new);
        let rules = Rules { frames, ..Rules::of(iter, false) };
        self.handle_changed_spte(cx, rules, iter.gfn, iter.level, iter.old_spte, new);
        if iter.tree.is_mirror {
            self.remove_external_spte(cx, iter.gfn, iter.level, iter.old_spte, new);
        }
    }

    /// `set_external_spte` where a leaf is taken away or split: it left the mirror; now it leaves the external tables. Their tables go another way: when they are freed.
    fn remove_external_spte(&self, cx: &Cx<'_>, gfn: Gfn, level: Level, old: Spte, new: Spte) {
        if old.is_leaf(level) {
            let changes = new.is_leaf(level);
            assert!(!changes, "MMU-INV-060: a leaf of a mirror at {gfn:?} is changed in place");
            // A failure has broken the VM: the hook sees to it, and nothing is left to be done here.
            let _ = self.set_external_spte(cx, &ExternalChange::new(&self.tables, gfn, level, old, new));
        }
    }

    /// `kvm_tdp_mmu_write_spte`: the value that was replaced. Only a leaf with volatile bits needs the exchange: all other
    /// concurrent changes may be lost.
    fn write_spte(&self, word: Word<'_>, table: Pfn, index: usize, level: Level, old: Spte, new: Spte) -> Spte {
        if !old.is_present() {
            self.tables.touch(table, index);
        }
        if old.is_leaf(level) && self.tables.masks.needs_atomic_update(old) {
            Spte(word.xchg(new.0))
        } else {
            word.store(new.0);
            old
        }
    }

    /// `handle_changed_spte`: statistics, removal of a subtree, the event.
    pub(super) fn handle_changed_spte(&self, cx: &Cx<'_>, rules: Rules, gfn: Gfn, level: Level, old: Spte, new: Spte) {
        if old == new {
            return;
        }
        let tables = &self.tables;
        tables.masks.assert_well_formed(new, level);
        assert!(gfn.is_aligned(level), "MMU-INV-014: {gfn:?} is no page of {level:?}");
        let (was_leaf, is_leaf) = (old.is_leaf(level), new.is_leaf(level));
        if was_leaf && is_leaf {
            assert_eq!(old.pfn(), new.pfn(), "MMU-INV-012: {gfn:?} changes its frame without having been zapped");
            let h = tables.masks.host_writable;
            assert!(new.has(h) || !old.has(h), "MMU-INV-011: {gfn:?} loses host-writable without having been zapped");
        }
        if !old.is_present() && !new.is_present() {
            let mmio = tables.masks.is_mmio(old) || tables.masks.is_mmio(new);
            assert!(mmio || new.is_frozen(), "MMU-INV-013: {gfn:?} went from {old:?} to {new:?}");
        }
        if was_leaf != is_leaf {
            tables.update_page_stats(level, if is_leaf { 1 } else { -1 }, !rules.shared);
        }
        if rules.frames == Frames::Count {
            // The new mapping first: the frames under a table that a huge leaf replaces stay named throughout.
            if is_leaf && !was_leaf {
                tables.add_frames(new, level);
            }
            if was_leaf && !is_leaf {
                tables.sub_frames(old, level);
            }
        }
        if new.is_table(level) {
            assert!(!old.is_table(level), "MMU-INV-002: one table replaces another at {gfn:?}");
            tables.account_table();
        }
        if old.is_table(level) {
            self.handle_removed_pt(cx, rules, old.pfn(), gfn, level);
        }
        self.trace_spte_changed(cx, rules.tree, gfn, level, old, new);
    }

    /// `trace_kvm_tdp_mmu_spte_changed`.
    pub(super) fn trace_spte_changed(&self, cx: &Cx<'_>, tree: Tree, gfn: Gfn, level: Level, old: Spte, new: Spte) {
        if cx.is_tracing() {
            note_change(cx, tree, level, old, new);
            let args = [u64::from(tree.as_id), gfn.0, u64::from(level.number()), old.0, new.0];
            cx.trace(&KVM_TDP_MMU_SPTE_CHANGED, &args);
        }
    }

    /// `handle_removed_pt`: a table was unlinked; freezes its entries so that nobody installs anything any more, and frees it
    /// after a grace period.
    fn handle_removed_pt(&self, cx: &Cx<'_>, rules: Rules, table: Pfn, gfn: Gfn, parent: Level) {
        let tables = &self.tables;
        let info = tables.info(table);
        let level = info.level;
        let fits = info.gfn == gfn && level.up() == Some(parent) && info.as_id == rules.tree.as_id;
        assert!(fits, "MMU-INV-001: {table:?} with {info:?} hung below {gfn:?} at {parent:?}");
        tables.unaccount_table();
        self.untrack_nx_huge_page(cx, table);
        let rules = Rules { frames: Frames::Count, ..rules };
        if rules.shared && cx.has_mutant(NO_FREEZE_CHILDREN) {
            let mut from = 0;
            while let Some(index) = tables.next_present(table, from, PT_ENTRIES) {
                let old = Spte(tables.word(cx, table, index).xchg(Spte::NONPRESENT.0));
                self.handle_changed_spte(cx, rules, gfn + index as u64 * level.span(), level, old, Spte::NONPRESENT);
                from = index + 1;
            }
        } else if rules.shared {
            assert!(!rules.tree.is_mirror, "MMU-INV-060: a table of a mirror is taken out under mmu_lock for reading");
            for index in 0..PT_ENTRIES {
                let old = self.freeze_shared(cx, rules, table, index);
                let child = gfn + index as u64 * level.span();
                self.handle_changed_spte(cx, rules, child, level, old, Spte::FROZEN);
            }
        } else {
            let mut from = 0;
            while let Some(index) = tables.next_present(table, from, PT_ENTRIES) {
                // Read as a scheduling point, then written: the hardware may set bits in between.
                let word = tables.word(cx, table, index);
                let old = Spte(word.load());
                let old = self.write_spte(word, table, index, level, old, Spte::FROZEN);
                let child = gfn + index as u64 * level.span();
                self.handle_changed_spte(cx, rules, child, level, old, Spte::FROZEN);
                if rules.tree.is_mirror {
                    self.remove_external_spte(cx, child, level, old, Spte::FROZEN);
                }
                from = index + 1;
            }
        }
        if rules.tree.is_mirror {
            self.free_external_spt(cx, table, &info);
        }
        if cx.has_mutant(FREE_NO_RCU) {
            return tables.free(table);
        }
        tables.free_after_grace_period(cx, table);
    }

    /// Freezes an entry while others may change it. Somebody who froze it for a moment (a mirror install) puts a value back, which
    /// would survive in the dead table: go on until a value was caught.
    fn freeze_shared(&self, cx: &Cx<'_>, rules: Rules, table: Pfn, index: usize) -> Spte {
        if rules.unraced && !self.tables.peek(table, index).is_present() {
            return self.tables.replace_unraced(cx, table, index, Spte::FROZEN);
        }
        self.tables.touch(table, index);
        loop {
            let old = Spte(self.tables.word(cx, table, index).xchg(Spte::FROZEN.0));
            if !old.is_frozen() {
                return old;
            }
            cx.cond_resched();
        }
    }
}

/// What became of an entry, in words. A mirror's entries are told as those of the external table that they stand for.
fn note_change(cx: &Cx<'_>, tree: Tree, level: Level, old: Spte, new: Spte) {
    let what = match (old.is_present(), new.is_present()) {
        (false, true) if new.is_leaf(level) => ["leaf set", "leaf of a mirror set"],
        (true, false) if old.is_leaf(level) => ["leaf zapped", "leaf of a mirror zapped"],
        (false, true) => ["table linked", "table of a mirror linked"],
        (true, false) => ["table unlinked", "table of a mirror unlinked"],
        _ => ["entry changed", "entry of a mirror changed"],
    };
    cx.note("stage 2", what[usize::from(tree.is_mirror)]);
}
