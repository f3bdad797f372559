//! What checkers and reports look at: no scheduling points, for moments when nothing runs. (No kernel file; the invariants are
//! those that KVM's `KVM_PROVE_MMU` and WARNs defend.)

use super::root::{Root, Tree};
use super::{PageStats, TdpMmu};
use crate::addr::{Gfn, GfnRange, Level, PT_ENTRIES};
use crate::spte::{Access, Spte, SpteState};
use sim_kernel::Pfn;
use sim_kernel::sched::ObjId;
use std::sync::Arc;

/// A present leaf, for checkers and reports.
#[derive(Clone, Copy, Debug)]
pub struct LeafInfo {
    /// Address space of the root.
    pub as_id: u16,
    /// Whether the root is invalid.
    pub invalid_root: bool,
    /// Whether the tree is a mirror of external tables.
    pub is_mirror: bool,
    /// First frame.
    pub gfn: Gfn,
    /// Size.
    pub level: Level,
    /// The entry.
    pub spte: Spte,
}

impl LeafInfo {
    fn new(root: &Root, gfn: Gfn, level: Level, spte: Spte) -> LeafInfo {
        let (invalid_root, is_mirror) = (root.is_invalid(), root.is_mirror());
        LeafInfo { as_id: root.as_id(), invalid_root, is_mirror, gfn, level, spte }
    }
}

impl TdpMmu {
    /// What is in the trees.
    pub fn pages(&self) -> PageStats {
        PageStats { roots: self.roots.len() as u64, ..self.tables.stats() }
    }

    /// Tables whose frame was not given back yet: linked ones, roots, and those that wait for a grace period.
    pub fn table_frames(&self) -> u64 {
        self.tables.allocated()
    }

    /// What an entry, as in a recorded event, is.
    pub fn classify(&self, spte: u64, level: Level) -> SpteState {
        self.tables.masks.classify(Spte(spte), level)
    }

    /// The first frame and the level of the entry that a scheduling point names by object and index, for reports. `None` if the object is
    /// something else, or the table is gone.
    pub fn entry_place(&self, object: ObjId, index: u64) -> Option<(Gfn, Level)> {
        self.tables.entry_place(object, index)
    }

    /// The roots, newest first, invalid ones included: for reports.
    pub fn peek_roots(&self) -> Vec<Arc<Root>> {
        self.roots.snapshot()
    }

    /// Every present leaf of every root, newest root first, ascending.
    pub fn for_each_leaf(&self, mut f: impl FnMut(LeafInfo)) {
        for root in self.roots.snapshot() {
            self.visit(root.tree(), Gfn(0), &mut |gfn, level, spte, _| {
                if spte.is_leaf(level) {
                    f(LeafInfo::new(&root, gfn, level, spte));
                }
            });
        }
    }

    /// Every MMIO entry of every root, newest root first, ascending.
    pub fn for_each_mmio(&self, mut f: impl FnMut(LeafInfo)) {
        for root in self.roots.snapshot() {
            self.visit(root.tree(), Gfn(0), &mut |gfn, level, spte, _| {
                if !spte.is_present() && self.tables.masks.is_mmio(spte) {
                    f(LeafInfo::new(&root, gfn, level, spte));
                }
            });
        }
    }

    /// The first frame of a range that a valid root of the address space maps, without scheduling points. Only looks at entries that
    /// overlap the range.
    pub fn first_leaf_in(&self, as_id: u16, range: GfnRange) -> Option<Gfn> {
        let roots = self.roots.snapshot();
        let mut roots = roots.iter().filter(|root| root.as_id() == as_id && !root.is_invalid());
        roots.find_map(|root| {
            // Where the entries are, and back.
            let bits = root.gfn_bits();
            let place = GfnRange::new(range.start + bits, range.end + bits);
            self.first_leaf_within(root.table(), root.level(), Gfn(0), place).map(|gfn| Gfn(gfn.0 & !bits))
        })
    }

    fn first_leaf_within(&self, table: Pfn, level: Level, base: Gfn, range: GfnRange) -> Option<Gfn> {
        let first = range.start.0.saturating_sub(base.0) / level.span();
        let end = (range.end.0.saturating_sub(base.0)).div_ceil(level.span());
        let (mut from, end) = (first.min(PT_ENTRIES as u64) as usize, end.min(PT_ENTRIES as u64) as usize);
        while let Some(index) = self.tables.next_present(table, from, end) {
            let spte = self.tables.peek(table, index);
            let gfn = base + index as u64 * level.span();
            from = index + 1;
            if spte.is_leaf(level) {
                return Some(gfn);
            }
            if spte.is_table(level) {
                let below = level.down().expect("a table has a level below");
                if let Some(gfn) = self.first_leaf_within(spte.pfn(), below, gfn, range) {
                    return Some(gfn);
                }
            }
        }
        None
    }

    /// The last entry for a gfn, for checkers.
    pub fn peek_leaf(&self, root: &Root, gfn: Gfn) -> (Spte, Level) {
        let (mut table, mut level) = (root.table(), root.level());
        loop {
            let spte = self.tables.peek(table, Gfn(gfn.0 | root.gfn_bits()).index(level));
            if !spte.is_table(level) {
                return (spte, level);
            }
            table = spte.pfn();
            level = level.down().expect("an entry of the lowest level is no table");
        }
    }

    /// The entry of this level on the way to a gfn, if the tables above it are there: for checkers.
    pub fn peek_entry(&self, root: &Root, gfn: Gfn, wanted: Level) -> Option<Spte> {
        let (mut table, mut level) = (root.table(), root.level());
        loop {
            let spte = self.tables.peek(table, Gfn(gfn.0 | root.gfn_bits()).index(level));
            if level == wanted {
                return Some(spte);
            }
            if !spte.is_table(level) {
                return None;
            }
            table = spte.pfn();
            level = level.down()?;
        }
    }

    /// Every entry of a tree that is not as in a new table, in the order of a walk: for checkers.
    pub fn for_each_entry(&self, root: &Root, mut f: impl FnMut(Gfn, Level, Spte)) {
        self.visit(root.tree(), Gfn(0), &mut |gfn, level, spte, _| f(gfn, level, spte));
    }

    /// Every entry below a table that is not as in a new table, in the order of a walk, with its place.
    fn visit(&self, tree: Tree, base: Gfn, f: &mut impl FnMut(Gfn, Level, Spte, (Pfn, usize))) {
        let Tree { table, level, gfn_bits, .. } = tree;
        for (index, spte) in self.tables.changed(table) {
            let gfn = Gfn((base + index as u64 * level.span()).0 & !gfn_bits);
            f(gfn, level, spte, (table, index));
            if spte.is_table(level) {
                let level = level.down().expect("a table has a level below");
                self.visit(Tree { table: spte.pfn(), level, ..tree }, gfn, f);
            }
        }
    }

    /// Asserts MMU-INV-001..003, 006, 008..010, 013..016, 018, 020 and 062 by walking everything. For moments when no lock is held.
    pub fn assert_consistent(&self) {
        self.assert_roots();
        let mut found = PageStats { roots: self.roots.len() as u64, ..Default::default() };
        let (mut external, mut disallowed) = (0, 0);
        for root in self.roots.snapshot() {
            let info = self.tables.info(root.table());
            assert_eq!((info.gfn, info.level, info.parent), (Gfn(0), root.level(), None), "MMU-INV-001: root");
            self.tables.assert_untouched(root.table());
            self.visit(root.tree(), Gfn(0), &mut |gfn, level, spte, entry| {
                self.tables.masks.assert_well_formed(spte, level);
                assert!(!spte.is_frozen(), "MMU-INV-003: {gfn:?} is frozen in a live table");
                if spte.is_leaf(level) {
                    self.assert_leaf(&root, gfn, level, spte);
                    found.leafs[usize::from(level.number()) - 1] += 1;
                } else if spte.is_present() {
                    found.tables += 1;
                    self.tables.assert_untouched(spte.pfn());
                    let info = self.tables.info(spte.pfn());
                    let fits = info.gfn == gfn && info.level.up() == Some(level) && info.as_id == root.as_id();
                    assert!(fits, "MMU-INV-001: {info:?} hangs below {gfn:?} at {level:?}");
                    assert_eq!(info.parent, Some(entry), "MMU-INV-002: {:?} has two parents", spte.pfn());
                    let agrees = info.external.is_some() == root.is_mirror();
                    assert!(agrees, "MMU-INV-062: {info:?} in a tree that is a mirror: {}", root.is_mirror());
                    external += u64::from(root.is_mirror());
                    disallowed += u64::from(self.tables.is_nx_disallowed(spte.pfn()));
                }
            });
        }
        assert_eq!(found, self.pages(), "MMU-INV-006: what is in the trees and what the statistics say");
        assert_eq!(external, self.external_pages(), "MMU-INV-062: tables of mirrors, and pages of external tables");
        let tracked = self.nx_huge_page_splits();
        assert!(
            tracked <= disallowed,
            "MMU-INV-006: {tracked} tables wait for recovery, {disallowed} are there for it"
        );
    }

    fn assert_leaf(&self, root: &Root, gfn: Gfn, level: Level, spte: Spte) {
        let masks = &self.tables.masks;
        if self.config().nx_huge_pages && level > Level::L4K {
            let executable = masks.is_access_allowed(spte, Access::Exec);
            assert!(!executable, "MMU-INV-018: {gfn:?} at {level:?} is huge and executable");
        }
        if root.is_mirror() {
            let allowed = level <= self.external().max_level();
            assert!(allowed, "MMU-INV-060: {gfn:?} is huge in a mirror");
        }
    }
}
