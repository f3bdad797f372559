//! Stage-2 page tables (`arch/arm64/kvm/hyp/pgtable.c`): descriptors in frames, walked by processors and changed by break-before-make.
//!
//! Tables lie in physical memory, in pages that the hypervisor owns. Every write of a descriptor is a step of its own, announced on what it changes for others: of the host the bytes of
//! the frames; of a guest its addresses, and then, if a leaf was there, the bytes of the frames that it mapped. An access announces the same two (`access.rs`), so that whichever comes first,
//! the two are seen to depend on each other.
//!
//! Simplified: a descriptor that says nothing is replaced without being locked first; invalidation is by descriptor and never deferred to the end of a range.

use super::el2::El2;
use super::mutants;
use super::pte::{Pte, S2Level};
use super::trace::{Tlbi, TraceEvent};
use super::types::{Pa, PageState, Vmid};
use super::vm::HypVm;
use sim_kernel::mm::PhysMem;
use sim_kernel::mm::phys::WORDS_PER_PAGE;
use sim_kernel::sched::{Access, ObjId};
use sim_kernel::{Errno, Pfn};
use std::collections::BTreeMap;

/// Where a processor's walk starts: what VTTBR_EL2 and VTCR_EL2 say. Does not change as long as the tree lives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Root {
    pub(super) pfn: Pfn,
    pub(super) start: S2Level,
    bits: u32,
    pub(super) vmid: Vmid,
}

/// Where a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    table: Pfn,
    index: usize,
    pub(super) level: S2Level,
    /// First page that it translates.
    pub(super) first: Pfn,
}

impl Slot {
    fn at(&self) -> Pa {
        Pa(Pa::of(self.table).0 + 8 * self.index as u64)
    }
}

impl Root {
    /// Levels that addresses of so many bits take (`stage2_pgtable_levels`): 16 tables of the first level are concatenated rather than put under another.
    pub(super) fn levels(bits: u32) -> u8 {
        (bits - 16).div_ceil(9).max(2) as u8
    }

    /// Frames of the root.
    pub(super) fn pages(bits: u32) -> u64 {
        let start = S2Level(4 - Root::levels(bits));
        ((1_u64 << (bits - 12)) / start.pages()).div_ceil(WORDS_PER_PAGE as u64)
    }

    /// Frames of this root.
    pub(super) fn frames(&self) -> u64 {
        Root::pages(self.bits)
    }

    pub(super) fn new(pfn: Pfn, bits: u32, vmid: Vmid) -> Root {
        Root { pfn, start: S2Level(4 - Root::levels(bits)), bits, vmid }
    }

    /// Tables between the root and a page: what a mapping can take (`kvm_mmu_cache_min_pages`).
    pub(super) fn tables_below(&self) -> usize {
        usize::from(S2Level::LAST.0 - self.start.0)
    }

    /// Whether the tree translates this page.
    pub(super) fn covers(&self, page: Pfn) -> bool {
        page.0 < 1 << (self.bits - 12)
    }

    fn slot(&self, table: Pfn, level: S2Level, page: Pfn) -> Slot {
        let entry = page.0 / level.pages();
        let first = Pfn(entry * level.pages());
        let (table, index) = if level == self.start {
            (Pfn(table.0 + entry / WORDS_PER_PAGE as u64), entry as usize % WORDS_PER_PAGE)
        } else {
            (table, entry as usize % WORDS_PER_PAGE)
        };
        Slot { table, index, level, first }
    }

    /// The descriptors on the way to a page, down to the one that ends the walk: a leaf, or an invalid one.
    fn path(&self, phys: &PhysMem, page: Pfn) -> Vec<(Slot, Pte)> {
        let mut path = Vec::with_capacity(4);
        let (mut table, mut level) = (self.pfn, self.start);
        loop {
            let slot = self.slot(table, level, page);
            let pte = Pte(phys.peek_u64(slot.table, slot.index));
            path.push((slot, pte));
            if !pte.is_table(level) {
                return path;
            }
            (table, level) = (pte.pfn(), level.down());
        }
    }

    /// The descriptor that ends the walk for a page (`kvm_pgtable_get_leaf`).
    ///
    /// # Errors
    /// `ERANGE` if the page is beyond the addresses that the tree translates.
    pub(super) fn leaf(&self, phys: &PhysMem, page: Pfn) -> Result<(Slot, Pte), Errno> {
        if !self.covers(page) {
            return Err(Errno::ERANGE);
        }
        let (mut table, mut level) = (self.pfn, self.start);
        loop {
            let slot = self.slot(table, level, page);
            let pte = Pte(phys.peek_u64(slot.table, slot.index));
            if !pte.is_table(level) {
                return Ok((slot, pte));
            }
            (table, level) = (pte.pfn(), level.down());
        }
    }

    /// Every descriptor that says something, tables before what is in them.
    pub(super) fn for_each(&self, phys: &PhysMem, mut look: impl FnMut(Slot, Pte)) {
        let mut tables: Vec<(Pfn, S2Level, Pfn)> = (0..Root::pages(self.bits))
            .map(|i| (self.pfn + i, self.start, Pfn(i * WORDS_PER_PAGE as u64 * self.start.pages())))
            .collect();
        while let Some((table, level, base)) = tables.pop() {
            for index in 0..WORDS_PER_PAGE {
                let pte = Pte(phys.peek_u64(table, index));
                if !pte.is_counted() {
                    continue;
                }
                let first = base + index as u64 * level.pages();
                look(Slot { table, index, level, first }, pte);
                if pte.is_table(level) {
                    tables.push((pte.pfn(), level.down(), first));
                }
            }
        }
    }
}

/// A tree that the hypervisor changes, under the lock of its owner (`struct kvm_pgtable`).
#[derive(Debug)]
pub(super) struct PageTable {
    pub(super) root: Root,
    /// What changes of a guest's addresses are announced on. The host's are announced on the bytes of the frames: its addresses are those of memory.
    object: Option<ObjId>,
    /// Descriptors that count, by table.
    refs: BTreeMap<Pfn, u32>,
}

impl PageTable {
    pub(super) fn new(root: Root, object: Option<ObjId>) -> PageTable {
        PageTable { root, object, refs: BTreeMap::new() }
    }

    /// Frames of the tables, of the root only those that were ever written.
    pub(super) fn tables(&self) -> impl Iterator<Item = Pfn> {
        self.refs.keys().copied()
    }
}

impl PageTable {
    /// A table below the root that is counted and not in the tree, or in the tree with another number of descriptors than is counted; `None` if there is none.
    pub(super) fn miscounted(&self, phys: &PhysMem) -> Option<Pfn> {
        let mut found: BTreeMap<Pfn, u32> = BTreeMap::new();
        self.root.for_each(phys, |slot, pte| {
            *found.entry(slot.table).or_default() += 1;
            if pte.is_table(slot.level) {
                found.entry(pte.pfn()).or_default();
            }
        });
        // The root is there without being counted.
        let root = self.root.pfn..self.root.pfn + self.root.frames();
        let count =
            |counts: &BTreeMap<Pfn, u32>, pfn: &Pfn| counts.get(pfn).copied().or(root.contains(pfn).then_some(0));
        let all = found.keys().chain(self.refs.keys());
        all.copied().find(|pfn| count(&found, pfn) != count(&self.refs, pfn))
    }
}

/// Where tables come from, and where they go: the owner's pool, then the vCPU's memcache.
pub(super) struct Tables<'a> {
    pub(super) pool: &'a mut Vec<Pfn>,
    pub(super) memcache: Option<&'a mut Vec<Pfn>>,
}

impl Tables<'_> {
    fn alloc(&mut self) -> Option<Pfn> {
        self.pool.pop().or_else(|| self.memcache.as_mut()?.pop())
    }
}

impl El2<'_> {
    /// Writes a descriptor.
    #[track_caller]
    fn write_pte(&self, table: &mut PageTable, slot: Slot, new: Pte) {
        let phys = &self.hv.phys;
        let old = Pte(phys.peek_u64(slot.table, slot.index));
        let pages = slot.level.pages();
        let bytes = |first: Pfn| {
            let words = WORDS_PER_PAGE as u64;
            self.cx.point_range(Access::Store, phys.object(), first.0 * words, pages * words);
        };
        match table.object {
            None => bytes(slot.first),
            Some(object) => {
                self.cx.point_range(Access::Store, object, slot.first.0, pages);
                if old.is_leaf(slot.level) {
                    bytes(old.pfn());
                }
            }
        }
        phys.poke_u64(slot.table, slot.index, new.0);
        self.note_write(table, slot, old, new);
        let refs = table.refs.entry(slot.table);
        match (old.is_counted(), new.is_counted()) {
            (false, true) => refs.and_modify(|refs| *refs += 1).or_insert(1),
            (true, false) => refs.and_modify(|refs| *refs -= 1).or_insert(0),
            _ => refs.or_insert(0),
        };
        let (vmid, level, ipa) = (table.root.vmid, slot.level, Pa::of(slot.first));
        self.record(TraceEvent::Pte { vmid, at: slot.at(), level, ipa, old, new });
    }

    /// For PKVM-INV-023 and PKVM-INV-024: what a descriptor became, whoever wrote it.
    fn note_write(&self, table: &PageTable, slot: Slot, old: Pte, new: Pte) {
        let is_table = |pte: Pte| pte.is_table(slot.level);
        let other = is_table(old) != is_table(new) || old.pfn() != new.pfn();
        if old.is_valid() && new.is_valid() && other {
            self.hv.ghost.lock().unbroken.insert(slot.at());
        }
        // Only the end of the VM unmaps what a guest shares.
        let breaks = !new.is_valid() && new.is_counted();
        if table.object.is_some() && old.state() == PageState::SharedOwned && breaks {
            self.hv.ghost.lock().taken_shared.insert(old.pfn());
        }
    }

    /// TLB maintenance for a descriptor that was valid, complete when it returns. Of a leaf it is announced on the bytes of its frames; of a guest's table, of which no frames are
    /// known, on the addresses.
    #[track_caller]
    fn tlbi_pte(&self, table: &PageTable, slot: Slot, old: Pte, op: Tlbi) {
        if self.hv.is_off(mutants::NO_TLBI) {
            return;
        }
        let (pages, words) = (slot.level.pages(), WORDS_PER_PAGE as u64);
        let (object, first, size) = match table.object {
            Some(object) if old.is_table(slot.level) => (object, slot.first.0, pages),
            Some(_) => (self.hv.phys.object(), old.pfn().0 * words, pages * words),
            None => (self.hv.phys.object(), slot.first.0 * words, pages * words),
        };
        self.cx.point_range(Access::Store, object, first, size);
        self.tlbi_announced(table.root.vmid, op);
    }

    /// TLB maintenance for what a leaf translates.
    #[track_caller]
    fn tlbi_leaf(&self, table: &PageTable, slot: Slot, old: Pte) {
        self.tlbi_pte(table, slot, old, Tlbi::Ipa { ipa: Pa::of(slot.first), level: Some(slot.level) });
    }

    /// TLB maintenance between two `DSB`, announced on the bytes of the frames that it may concern.
    #[track_caller]
    pub(super) fn tlbi(&self, vmid: Vmid, op: Tlbi, first: Pfn, pages: u64) {
        let words = WORDS_PER_PAGE as u64;
        self.cx.point_range(Access::Store, self.hv.phys.object(), first.0 * words, pages.saturating_mul(words));
        self.tlbi_announced(vmid, op);
    }

    /// Everything of a VM goes from all TLBs (`__kvm_tlb_flush_vmid`): announced on its addresses, which accesses announce before they look at a TLB.
    #[track_caller]
    pub(super) fn flush_vmid(&self, vm: &HypVm) {
        let pages = 1_u64 << (self.hv.config.guest_bits - 12);
        for first in (0..pages).step_by(u32::MAX as usize) {
            self.cx.point_range(Access::Store, vm.object, first, u64::from(u32::MAX));
        }
        self.tlbi_announced(vm.vmid(), Tlbi::Vmid);
    }

    /// The maintenance of a step that the caller has announced.
    pub(super) fn tlbi_announced(&self, vmid: Vmid, op: Tlbi) {
        self.hv.tlbs.invalidate(self.cpu, vmid, op);
        self.record(TraceEvent::Dsb);
        self.record(TraceEvent::Tlbi { vmid, op });
        self.record(TraceEvent::Dsb);
    }

    /// Takes a descriptor away, so that another may be put in its place (`stage2_try_break_pte`), and puts that there.
    fn replace(&self, table: &mut PageTable, slot: Slot, old: Pte, new: Pte) {
        let breaks = !self.hv.is_off(mutants::NO_BBM);
        if !breaks {
            self.write_pte(table, slot, new);
        } else if old.is_counted() {
            self.write_pte(table, slot, Pte::LOCKED);
        }
        if old.is_table(slot.level) {
            let op = Tlbi::Range { ipa: Pa::of(slot.first), pages: slot.level.pages() };
            self.tlbi_pte(table, slot, old, op);
        } else if old.is_valid() {
            self.tlbi_leaf(table, slot, old);
        }
        if breaks {
            self.write_pte(table, slot, new);
        }
    }

    /// Puts a descriptor at a level above a page, making tables on the way: a mapping (`kvm_pgtable_stage2_map`), or at the last level an annotation
    /// (`kvm_pgtable_stage2_annotate`). A block in the way is dropped: whoever wants the rest of it faults. A table in its place is freed.
    ///
    /// # Errors
    /// `ENOMEM` without a table for the way; what it made of it stays.
    pub(super) fn map(
        &self,
        table: &mut PageTable,
        tables: &mut Tables<'_>,
        page: Pfn,
        level: S2Level,
        new: Pte,
    ) -> Result<(), Errno> {
        loop {
            let path = table.root.path(&self.hv.phys, page);
            let at = |wanted: S2Level| path.iter().find(|(slot, _)| slot.level == wanted).copied();
            if let Some((slot, old)) = at(level) {
                // Of which no processor learns: sharing a page of a guest breaks nothing.
                if old.differs_in_software_bits_only(new) {
                    self.update_pte(table, slot, old, new);
                    return Ok(());
                }
                self.replace(table, slot, old, new);
                if old.is_table(level) {
                    self.free_tables(table, tables, old.pfn(), level.down());
                }
                return Ok(());
            }
            let (slot, old) = *path.last().expect("a walk looks at one descriptor at least");
            let child = tables.alloc().ok_or(Errno::ENOMEM)?;
            self.hv.phys.zero_beneath(self.cx, child);
            table.refs.insert(child, 0);
            self.record(TraceEvent::Table { vmid: table.root.vmid, pfn: child, level: slot.level.down() });
            self.replace(table, slot, old, Pte::table(child));
        }
    }

    /// Frees a table that was unlinked, and those below it.
    fn free_tables(&self, table: &mut PageTable, tables: &mut Tables<'_>, pfn: Pfn, level: S2Level) {
        for index in 0..WORDS_PER_PAGE {
            let pte = Pte(self.hv.phys.peek_u64(pfn, index));
            if pte.is_table(level) {
                self.free_tables(table, tables, pte.pfn(), level.down());
            }
        }
        self.free_table(table, tables, pfn);
    }

    fn free_table(&self, table: &mut PageTable, tables: &mut Tables<'_>, pfn: Pfn) {
        table.refs.remove(&pfn);
        tables.pool.push(pfn);
        self.record(TraceEvent::TableGone { vmid: table.root.vmid, pfn });
    }

    /// Clears the descriptors of some pages, with TLB maintenance, and frees the tables that are empty then (`kvm_pgtable_stage2_unmap`). A block of which
    /// only a part is meant is cleared as a whole.
    pub(super) fn unmap(&self, table: &mut PageTable, tables: &mut Tables<'_>, range: std::ops::Range<Pfn>) {
        let mut page = range.start;
        while page < range.end && table.root.covers(page) {
            let mut path = table.root.path(&self.hv.phys, page);
            let (slot, old) = path.pop().expect("a walk looks at one descriptor at least");
            page = slot.first + slot.level.pages();
            if old.is_counted() {
                self.write_pte(table, slot, Pte::NONE);
            }
            if old.is_valid() {
                self.tlbi_leaf(table, slot, old);
            }
            // On the way back: also what a mapping that failed made and left empty.
            let mut emptied = slot.table;
            while let Some((above, pte)) = path.pop() {
                if table.refs.get(&emptied) != Some(&0) {
                    break;
                }
                self.write_pte(table, above, Pte::NONE);
                // The level of a hint is that of a leaf, which this is not.
                let ipa = Pa::of(above.first.max(range.start));
                self.tlbi_pte(table, above, pte, Tlbi::Ipa { ipa, level: None });
                self.free_table(table, tables, emptied);
                emptied = above.table;
            }
        }
    }

    /// Changes permissions or the access flag of a leaf (`stage2_update_leaf_attrs`), or software bits: nothing of that needs a break.
    pub(super) fn update_pte(&self, table: &mut PageTable, slot: Slot, old: Pte, new: Pte) {
        if old != new {
            self.write_pte(table, slot, new);
        }
    }
}
