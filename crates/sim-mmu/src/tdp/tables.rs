//! Memory of the tables and their metadata (`struct kvm_mmu_page` of `arch/x86/kvm/mmu/mmu_internal.h`,
//! `tdp_mmu_alloc_sp`, `tdp_mmu_free_sp_rcu_callback`).
//!
//! A table is a frame of the host; entries hold its number. Metadata lie in an array indexed by the number of the frame's contents, so
//! that those of all tables are together, a walk touches none, and finding them is O(1). Simplified: no per-vCPU caches, a table's frame is taken when it is needed.

use super::{PageStats, TdpConfig};
use crate::addr::{Gfn, Level, PT_ENTRIES};
use crate::mutants::BUG_66;
use crate::spte::Spte;
use crate::stage2::SpteMasks;
use bytemuck::Zeroable;
use sim_kernel::mm::{FrameFlags, PhysMem};
use sim_kernel::sched::{Access, ObjId};
use sim_kernel::sync::{Rmw, Word, call_rcu};
use sim_kernel::{Arena, Cx, Errno, Pfn};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Entries for which [`TableMeta::touched`] has one bit. Almost every table of a small guest holds one or two entries, and a scan
/// that skips the others is what makes it cheap to check and to destroy a VM after every schedule.
const GROUP: usize = PT_ENTRIES / 64;

/// Metadata of one table.
#[derive(Zeroable)]
#[repr(C)]
struct TableMeta {
    /// First gfn that the table covers.
    gfn: AtomicU64,
    /// The entry that points here: table * 512 + index; 0 for a root (frame 0 is never used) and before the link.
    parent: AtomicU64,
    /// One bit for each group of [`GROUP`] entries: clear while all of them are as they were when the table was new.
    touched: AtomicU64,
    /// Level, 0 = the frame is no table of this VM.
    level: AtomicU32,
    as_id: AtomicU32,
    /// `external_spt`: the frame that this table is in the external tables; 0 if it is in no mirror.
    external: AtomicU32,
    /// `nx_huge_page_disallowed`: the table is there because a huge page may not be executable.
    nx_disallowed: AtomicU32,
}

/// Metadata of one table as a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TableInfo {
    pub(super) gfn: Gfn,
    pub(super) level: Level,
    pub(super) as_id: u16,
    pub(super) parent: Option<(Pfn, usize)>,
    pub(super) external: Option<Pfn>,
}

/// What outlives an operation and is reached from RCU callbacks.
pub(super) struct Tables {
    pub(super) phys: Arc<PhysMem>,
    pub(super) config: TdpConfig,
    pub(super) masks: SpteMasks,
    /// All entries of this VM; the index is table * 512 + index.
    object: ObjId,
    /// `sp->nx_huge_page_disallowed`, where it may change while others look ([`BUG_66`]).
    nx_object: ObjId,
    meta: Arena<TableMeta, 6>,
    rmw: Rmw,
    /// Present leafs per level.
    leafs: [AtomicU64; 3],
    /// Linked tables.
    linked: AtomicU64,
    /// Tables whose frame was not given back yet, roots included.
    allocated: AtomicU64,
}

impl Tables {
    pub(super) fn new(cx: &Cx<'_>, phys: Arc<PhysMem>, config: TdpConfig) -> Tables {
        Tables {
            phys,
            config,
            masks: config.masks(),
            object: cx.new_object("spte"),
            nx_object: if cx.has_mutant(BUG_66) { cx.new_object("sp->nx_huge_page_disallowed") } else { ObjId::NONE },
            meta: Arena::recycled(cx),
            rmw: Rmw::new(cx),
            leafs: Default::default(),
            linked: AtomicU64::new(0),
            allocated: AtomicU64::new(0),
        }
    }

    /// An entry as a task sees it.
    #[inline]
    pub(super) fn word<'a>(&'a self, cx: &'a Cx<'_>, table: Pfn, index: usize) -> Word<'a> {
        Word::new(cx, self.object, entry_id(table, index), self.raw(table, index))
    }

    /// As [`Tables::word`], of a table whose entries are at hand.
    #[inline]
    pub(super) fn word_of<'a>(
        &self,
        cx: &'a Cx<'_>,
        table: Pfn,
        index: usize,
        entries: &'a [AtomicU64; PT_ENTRIES],
    ) -> Word<'a> {
        Word::new(cx, self.object, entry_id(table, index), &entries[index])
    }

    #[inline]
    fn raw(&self, table: Pfn, index: usize) -> &AtomicU64 {
        self.phys.table_word(table, index)
    }

    fn meta(&self, table: Pfn) -> &TableMeta {
        self.meta_if_table(table)
            .unwrap_or_else(|| panic!("MMU-INV-005: {table:?} is used as a table after it was freed"))
    }

    #[inline]
    fn meta_if_table(&self, table: Pfn) -> Option<&TableMeta> {
        self.phys.contents_number(table).and_then(|number| self.meta.get_if_present(number))
    }

    /// All entries of a table, without scheduling points: for scans.
    #[inline]
    pub(super) fn entries(&self, table: Pfn) -> &[AtomicU64; PT_ENTRIES] {
        self.phys.table(table)
    }

    /// The entries of a table of this level.
    ///
    /// # Panics
    /// If the frame is no table of this level (MMU-INV-005): whoever walks it came too late.
    #[inline]
    pub(super) fn live_entries(&self, table: Pfn, level: Level) -> &[AtomicU64; PT_ENTRIES] {
        let (number, entries) = self.phys.numbered_table(table);
        assert_level(table, self.meta.get_if_present(number), level);
        entries
    }

    /// An entry without a scheduling point.
    #[inline]
    pub(super) fn peek(&self, table: Pfn, index: usize) -> Spte {
        Spte(self.raw(table, index).load(Ordering::Acquire))
    }

    /// Says that an entry is about to become something else than it was when the table was new: before every change of an entry
    /// that is not present.
    #[inline]
    pub(super) fn touch(&self, table: Pfn, index: usize) {
        let touched = &self.meta(table).touched;
        let bit = 1 << (index / GROUP);
        if touched.load(Ordering::Relaxed) & bit == 0 {
            self.rmw.update(touched, |bits| bits | bit);
        }
    }

    /// Indexes among `from..end` of the entries that were touched, and perhaps others.
    #[inline]
    fn touched(&self, table: Pfn, from: usize, end: usize) -> impl Iterator<Item = usize> {
        let touched = self.meta(table).touched.load(Ordering::Relaxed);
        let mut groups = if from < end {
            touched & (u64::MAX << (from / GROUP)) & (u64::MAX >> (63 - (end - 1) / GROUP))
        } else {
            0
        };
        let numbers = std::iter::from_fn(move || {
            let number = (groups != 0).then(|| groups.trailing_zeros() as usize);
            groups &= groups.wrapping_sub(1);
            number
        });
        numbers.flat_map(move |number| (number * GROUP).max(from)..((number + 1) * GROUP).min(end))
    }

    /// The first entry that is present among `from..end`, without scheduling points; for walks under which nothing is installed.
    #[inline]
    pub(super) fn next_present(&self, table: Pfn, from: usize, end: usize) -> Option<usize> {
        let entries = self.entries(table);
        self.touched(table, from, end).find(|&index| Spte(entries[index].load(Ordering::Acquire)).is_present())
    }

    /// The entries that are not as in a new table, without scheduling points.
    pub(super) fn changed(&self, table: Pfn) -> impl Iterator<Item = (usize, Spte)> {
        let entries = self.entries(table);
        let touched = self.touched(table, 0, PT_ENTRIES);
        touched.map(|index| (index, Spte(entries[index].load(Ordering::Acquire)))).filter(|e| e.1 != Spte::NONPRESENT)
    }

    /// Asserts that entries which nobody touched are as they were: [`Tables::next_present`] finds everything.
    pub(super) fn assert_untouched(&self, table: Pfn) {
        let touched = self.meta(table).touched.load(Ordering::Relaxed);
        let (groups, _) = self.entries(table).as_chunks::<GROUP>();
        for (number, group) in groups.iter().enumerate() {
            let [a, b, c, d, e, f, g, h] = group.each_ref().map(|entry| entry.load(Ordering::Relaxed));
            // Alike, all of them are what the first is.
            let same = (a ^ b) | (a ^ c) | (a ^ d) | (a ^ e) | (a ^ f) | (a ^ g) | (a ^ h);
            if same | (a ^ Spte::NONPRESENT.0) != 0 {
                let is_touched = touched >> number & 1 != 0;
                assert!(is_touched, "{table:?} changed unseen at index {} or after", number * GROUP);
            }
        }
    }

    /// Replaces an entry that no other task touches.
    pub(super) fn replace_unraced(&self, cx: &Cx<'_>, table: Pfn, index: usize, new: Spte) -> Spte {
        self.touch(table, index);
        let word = self.raw(table, index);
        if cx.is_native() {
            return Spte(word.swap(new.0, Ordering::SeqCst));
        }
        let old = word.load(Ordering::Relaxed);
        word.store(new.0, Ordering::Relaxed);
        Spte(old)
    }

    /// Fills a table that is not linked yet.
    #[inline]
    pub(super) fn init(&self, table: Pfn, value: impl Fn(usize) -> Spte) {
        self.meta(table).touched.store(u64::MAX, Ordering::Relaxed);
        for (index, entry) in self.entries(table).iter().enumerate() {
            entry.store(value(index).0, Ordering::Release);
        }
    }

    /// A new table, not linked: every entry is not present.
    pub(super) fn alloc(&self, gfn: Gfn, level: Level, as_id: u16) -> Result<Pfn, Errno> {
        let table = self.phys.alloc_table(Spte::NONPRESENT.0)?;
        self.meta.ensure(self.phys.contents_number(table).expect("a table has contents"));
        let meta = self.meta(table);
        let old = self.rmw.update(&meta.level, |_| u32::from(level.number()));
        assert_eq!(old, 0, "MMU-INV-005: {table:?} is still a table and was allocated again");
        meta.gfn.store(gfn.0, Ordering::Relaxed);
        meta.as_id.store(u32::from(as_id), Ordering::Relaxed);
        meta.parent.store(0, Ordering::Relaxed);
        meta.touched.store(0, Ordering::Relaxed);
        meta.external.store(0, Ordering::Relaxed);
        meta.nx_disallowed.store(0, Ordering::Relaxed);
        self.rmw.add(&self.allocated, 1);
        Ok(table)
    }

    /// Changes what a table that is not linked yet will cover.
    pub(super) fn reinit(&self, table: Pfn, gfn: Gfn, level: Level) {
        let meta = self.meta(table);
        meta.gfn.store(gfn.0, Ordering::Relaxed);
        meta.level.store(u32::from(level.number()), Ordering::Relaxed);
    }

    /// What the entry with this number maps, if `object` is that of the entries.
    pub(super) fn entry_place(&self, object: ObjId, entry: u64) -> Option<(Gfn, Level)> {
        if object != self.object {
            return None;
        }
        let (table, index) = (entry / PT_ENTRIES as u64, entry % PT_ENTRIES as u64);
        let meta = self.meta_if_table(Pfn(table))?;
        let level = Level::from_number(meta.level.load(Ordering::Relaxed) as u8)?;
        Some((Gfn(meta.gfn.load(Ordering::Relaxed)) + index * level.span(), level))
    }

    /// Where a table that is about to be linked will hang.
    pub(super) fn set_parent(&self, table: Pfn, parent: Pfn, index: usize) {
        self.meta(table).parent.store(entry_id(parent, index), Ordering::Relaxed);
    }

    /// Gives the table, of a mirror, the frame that it will be in the external tables, or takes it away.
    pub(super) fn set_external(&self, table: Pfn, external: Option<Pfn>) {
        self.meta(table).external.store(external.map_or(0, |pfn| pfn.0 as u32), Ordering::Relaxed);
    }

    /// Announces an access to `sp->nx_huge_page_disallowed` of a table that others can reach. It does not change then, unless [`BUG_66`] is off.
    pub(super) fn announce_nx(&self, cx: &Cx<'_>, access: Access, table: Pfn) {
        if cx.has_mutant(BUG_66) {
            cx.point(access, self.nx_object, table.0);
        }
    }

    /// `sp->nx_huge_page_disallowed`.
    pub(super) fn is_nx_disallowed(&self, table: Pfn) -> bool {
        self.meta(table).nx_disallowed.load(Ordering::Relaxed) != 0
    }

    /// Sets it; returns what it was.
    pub(super) fn set_nx_disallowed(&self, table: Pfn, disallowed: bool) -> bool {
        self.rmw.update(&self.meta(table).nx_disallowed, |_| disallowed.into()) != 0
    }

    /// Asserts that the frame is a table of this level (MMU-INV-005): whoever walks it came in time.
    #[inline]
    pub(super) fn assert_table(&self, table: Pfn, level: Level) {
        assert_level(table, self.meta_if_table(table), level);
    }

    /// Metadata of a table.
    ///
    /// # Panics
    /// If the frame is no table (MMU-INV-005): somebody walks a table that was freed.
    pub(super) fn info(&self, table: Pfn) -> TableInfo {
        let meta = self.meta(table);
        let level = Level::from_number(meta.level.load(Ordering::Relaxed) as u8);
        let parent = meta.parent.load(Ordering::Relaxed);
        let external = Pfn(meta.external.load(Ordering::Relaxed).into());
        TableInfo {
            gfn: Gfn(meta.gfn.load(Ordering::Relaxed)),
            level: level.unwrap_or_else(|| panic!("MMU-INV-005: {table:?} is used as a table after it was freed")),
            as_id: meta.as_id.load(Ordering::Relaxed) as u16,
            parent: (parent != 0).then_some((Pfn(parent / PT_ENTRIES as u64), parent as usize % PT_ENTRIES)),
            external: (external != Pfn(0)).then_some(external),
        }
    }

    /// `__tdp_mmu_free_sp`: gives back the frame of a table that nobody can reach.
    pub(super) fn free(&self, table: Pfn) {
        if let Some(index) = self.next_present(table, 0, PT_ENTRIES) {
            panic!("MMU-INV-004: {table:?} is freed with {:?} at index {index}", self.peek(table, index));
        }
        self.forget(table);
    }

    /// Gives back the frame of a table that was never linked; it may be filled already.
    pub(super) fn free_unlinked(&self, table: Pfn) {
        self.forget(table);
    }

    fn forget(&self, table: Pfn) {
        let old = self.rmw.update(&self.meta(table).level, |_| 0);
        assert_ne!(old, 0, "MMU-INV-002: the table {table:?} is freed twice");
        self.rmw.add(&self.allocated, u64::MAX);
        // Nobody sees the entries any more. As in a new table, they spare the next one the filling.
        for index in self.touched(table, 0, PT_ENTRIES) {
            self.raw(table, index).store(Spte::NONPRESENT.0, Ordering::Relaxed);
        }
        self.phys.set_table_filled(table, Spte::NONPRESENT.0);
        self.phys.put_unscheduled(table);
    }

    /// Gives back the frame of an unlinked table once no lockless walker can be in it.
    pub(super) fn free_after_grace_period(self: &Arc<Self>, cx: &Cx<'_>, table: Pfn) {
        let tables = Arc::clone(self);
        call_rcu(cx, move || tables.free(table));
    }

    /// `tdp_account_mmu_page`.
    pub(super) fn account_table(&self) {
        self.rmw.add(&self.linked, 1);
    }

    /// `tdp_unaccount_mmu_page`.
    pub(super) fn unaccount_table(&self) {
        self.rmw.add(&self.linked, u64::MAX);
    }

    /// `kvm_update_page_stats`. Who holds mmu_lock for writing is alone with the counts and needs no locked instruction.
    #[inline]
    pub(super) fn update_page_stats(&self, level: Level, count: i64, exclusive: bool) {
        let (leafs, count) = (&self.leafs[usize::from(level.number()) - 1], count as u64);
        if exclusive {
            leafs.store(leafs.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
        } else {
            // Wraps for a moment natively, when a leaf is unlinked before whoever installed it has counted it.
            self.rmw.add(leafs, count);
        }
    }

    /// The entry is a new leaf: its frames are named once more (and must be live, INV-203).
    pub(super) fn add_frames(&self, leaf: Spte, level: Level) {
        for i in 0..self.counted(leaf, level) {
            self.phys.add_spte(leaf.pfn() + i);
        }
    }

    /// The entry is no leaf any more.
    pub(super) fn sub_frames(&self, leaf: Spte, level: Level) {
        for i in 0..self.counted(leaf, level) {
            self.phys.sub_spte(leaf.pfn() + i);
        }
    }

    /// How many frames of a leaf are counted: none of the zero pages, which are always reserved as a whole.
    fn counted(&self, leaf: Spte, level: Level) -> u64 {
        // Of a small page the frame itself says so.
        if level == Level::L4K {
            1
        } else if self.phys.flags(leaf.pfn()).contains(FrameFlags::RESERVED) {
            0
        } else {
            level.span()
        }
    }

    /// The statistics; the roots are the caller's to fill in.
    pub(super) fn stats(&self) -> PageStats {
        PageStats {
            leafs: [0, 1, 2].map(|i| self.leafs[i].load(Ordering::Relaxed)),
            tables: self.linked.load(Ordering::Relaxed),
            roots: 0,
        }
    }

    /// Tables whose frame was not given back yet.
    pub(super) fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }
}

#[inline]
fn assert_level(table: Pfn, meta: Option<&TableMeta>, level: Level) {
    let found = meta.map_or(0, |meta| meta.level.load(Ordering::Relaxed));
    assert_eq!(found, u32::from(level.number()), "MMU-INV-005: {table:?} is walked after it was freed");
}

#[inline]
fn entry_id(table: Pfn, index: usize) -> u64 {
    table.0 * PT_ENTRIES as u64 + index as u64
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables").field("config", &self.config).field("stats", &self.stats()).finish_non_exhaustive()
    }
}
