//! Host page tables (`mm/memory.c`, `mm/huge_memory.c`): from addresses to frames, 4 KiB or 2 MiB at a time.
//!
//! Everything here happens under the process's page-table lock and touches nothing else but the frames' map counts. One entry
//! holds one reference to its frame; a huge page holds one to, and counts as one map of, each of its 512 frames. The zero
//! pages are not counted.
//!
//! Of the upper levels only one thing matters: whether the page that holds the 2 MiB entries of a 1 GiB region exists.
//!
//! Simplified: tables are no frames of the host, but are counted with those that are ([`PhysMem::tables_max`]); a process may have as
//! many huge pages, zero pages included, as the host has frames. Beyond either a fault is out of memory.

use super::phys::PhysMem;
use crate::{Cx, Errno, Hva, HvaRange, MMAP_BASE, PAGE_SIZE, PAGES_PER_PMD, PMD_SIZE, PUD_SIZE, Pfn};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

bitflags::bitflags! {
    /// What an entry says besides the frame.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct PteFlags: u64 {
        /// Names a frame. Without [`PteFlags::READ`] the page is kept but cannot be touched (`PROT_NONE`).
        const PRESENT = 1 << 0;
        const READ = 1 << 1;
        const WRITE = 1 << 2;
        /// The frame belongs to the process alone (`PageAnon`, `PageAnonExclusive`).
        const ANON = 1 << 3;
        /// One of the zero pages.
        const ZERO = 1 << 4;
    }
}

/// An entry that maps a page: 4 KiB in a page table, 2 MiB as a huge page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Pte(u64);

impl Pte {
    pub(super) const NONE: Pte = Pte(0);

    pub(super) fn new(pfn: Pfn, flags: PteFlags) -> Pte {
        Pte((pfn.0 << 12) | (flags | PteFlags::PRESENT).bits())
    }

    pub(super) fn is_none(self) -> bool {
        self == Pte::NONE
    }

    pub(super) fn pfn(self) -> Pfn {
        Pfn(self.0 >> 12)
    }

    pub(super) fn flags(self) -> PteFlags {
        PteFlags::from_bits_truncate(self.0)
    }

    pub(super) fn has(self, flags: PteFlags) -> bool {
        self.flags().contains(flags)
    }

    /// The same page with the access rights that `readable` and `writable` say.
    pub(super) fn with_access(self, readable: bool, writable: bool) -> Pte {
        let mut flags = self.flags();
        flags.set(PteFlags::READ, readable);
        flags.set(PteFlags::WRITE, writable);
        Pte::new(self.pfn(), flags)
    }

    /// Whether the processor lets the access through.
    pub(super) fn permits(self, write: bool) -> bool {
        self.has(if write { PteFlags::READ | PteFlags::WRITE } else { PteFlags::READ })
    }
}

/// A page of 512 entries.
#[derive(Debug)]
pub(super) struct PteTable([Pte; PAGES_PER_PMD as usize]);

impl PteTable {
    fn empty() -> Box<PteTable> {
        Box::new(PteTable([Pte::NONE; PAGES_PER_PMD as usize]))
    }
}

/// A 2 MiB entry that is not empty.
#[derive(Debug)]
pub(super) enum Pmd {
    Table(Box<PteTable>),
    /// A huge page or the huge zero page; the frame is its first.
    Huge(Pte),
}

/// What is mapped at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    /// The 2 MiB entry is empty.
    NoTable,
    /// There is a page table; this is its entry, perhaps empty.
    Small(Pte),
    /// Part of a huge page; the entry names the first frame.
    Huge(Pte),
}

/// Pages that were taken out of page tables and are still referenced (`struct mmu_gather`).
#[derive(Debug, Default)]
#[must_use = "the references must be put"]
pub(super) struct MmuGather {
    small: Vec<Pfn>,
    huge: Vec<Pfn>,
}

impl MmuGather {
    /// `tlb_finish_mmu`: puts the references, when no listener and no processor can use the translations any more.
    pub(super) fn finish(self, cx: &Cx<'_>, phys: &PhysMem) {
        for pfn in self.small {
            phys.put(cx, pfn);
        }
        for base in self.huge {
            phys.put_huge(cx, base);
        }
    }
}

/// How pages are dropped (`struct zap_details`).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Zap {
    /// Free the page table if the call empties all of it (`reclaim_pt`).
    pub(super) reclaim: bool,
    /// Leave private copies of file pages alone.
    pub(super) keep_private: bool,
}

/// The page tables of one process.
#[derive(Debug, Default)]
pub(super) struct PageTables {
    /// By address / 2 MiB; absent is an empty entry.
    pmds: BTreeMap<u64, Pmd>,
    /// The 1 GiB regions whose page of 2 MiB entries exists, by address / 1 GiB.
    puds: BTreeSet<u64>,
    /// Entries whose A bit is clear, by page number, of huge pages the first: those that were aged and not used since. Every new entry is young.
    old: BTreeSet<u64>,
}

fn index(hva: Hva) -> usize {
    (hva.page() % PAGES_PER_PMD) as usize
}

/// The 2 MiB block with this number.
fn block(number: u64) -> HvaRange {
    HvaRange::new(Hva(number * PMD_SIZE), Hva((number + 1) * PMD_SIZE))
}

impl PageTables {
    /// Tables of a fresh process: it has run, so its stack and libraries, which are not modelled otherwise, have made the tables
    /// of the topmost region.
    pub(super) fn new() -> PageTables {
        PageTables { puds: BTreeSet::from([(MMAP_BASE - 1) / PUD_SIZE]), ..PageTables::default() }
    }

    /// What is mapped at the address.
    pub(super) fn look(&self, hva: Hva) -> Look {
        match self.pmds.get(&(hva.0 / PMD_SIZE)) {
            None => Look::NoTable,
            Some(Pmd::Huge(pte)) => Look::Huge(*pte),
            Some(Pmd::Table(table)) => Look::Small(table.0[index(hva)]),
        }
    }

    /// The number under which an entry is in `old`.
    fn age_key(&self, hva: Hva) -> u64 {
        let is_huge = matches!(self.pmds.get(&(hva.0 / PMD_SIZE)), Some(Pmd::Huge(_)));
        if is_huge { hva.page() / PAGES_PER_PMD * PAGES_PER_PMD } else { hva.page() }
    }

    /// `ptep_test_and_clear_young`: whether the entry's A bit was set. It is clear now.
    pub(super) fn test_and_clear_young(&mut self, hva: Hva) -> bool {
        self.old.insert(self.age_key(hva))
    }

    /// The processor uses an entry and sets its A bit.
    #[inline]
    pub(super) fn mark_young(&mut self, hva: Hva) {
        if !self.old.is_empty() {
            self.old.remove(&self.age_key(hva));
        }
    }

    /// The entries of a range are others from now on, which are young.
    fn forget_age(&mut self, range: HvaRange) {
        if !self.old.is_empty() {
            self.old.retain(|page| !(range.start.page()..range.end.page()).contains(page));
        }
    }

    /// Every 4 KiB entry that is not empty, ascending: for checkers.
    pub(super) fn small_entries(&self) -> impl Iterator<Item = (Hva, Pte)> {
        self.pmds.iter().flat_map(|(block, pmd)| {
            let entries: &[Pte] = match pmd {
                Pmd::Table(table) => &table.0,
                Pmd::Huge(_) => &[],
            };
            let hva = move |i: usize| Hva(block * PMD_SIZE + i as u64 * PAGE_SIZE);
            entries.iter().enumerate().filter(|(_, pte)| !pte.is_none()).map(move |(i, pte)| (hva(i), *pte))
        })
    }

    /// The 4 KiB entry that the address has or would have if its huge page were split; empty if nothing is mapped.
    pub(super) fn pte(&self, hva: Hva) -> Pte {
        match self.look(hva) {
            Look::NoTable => Pte::NONE,
            Look::Small(pte) => pte,
            Look::Huge(huge) => Pte::new(huge.pfn() + index(hva) as u64, huge.flags()),
        }
    }

    /// Whether the tables reach down to the 2 MiB entry of the address (`mm_find_pmd`).
    pub(super) fn reaches(&self, hva: Hva) -> bool {
        self.puds.contains(&(hva.0 / PUD_SIZE))
    }

    /// The first address of the range whose region has tables.
    pub(super) fn first_reached(&self, range: HvaRange) -> Option<Hva> {
        let pud = *self.puds.range(range.start.0 / PUD_SIZE..).next()?;
        let hva = Hva(pud * PUD_SIZE).max(range.start);
        (hva < range.end).then_some(hva)
    }

    /// The first block at or after the address that has a page table or huge page, if it starts before `end`.
    pub(super) fn next_block(&self, from: Hva, end: Hva) -> Option<HvaRange> {
        let number = *self.pmds.range(from.0 / PMD_SIZE..).next()?.0;
        Some(block(number)).filter(|b| b.start < end)
    }

    /// Whether another empty 2 MiB entry may be filled: a huge page has a table put by, for when it is split.
    pub(super) fn has_room(&self, phys: &PhysMem) -> bool {
        ((self.pmds.len() + self.puds.len()) as u64) < phys.total_frames()
    }

    /// Makes the upper tables for the address, as every fault does first.
    pub(super) fn reach(&mut self, hva: Hva) {
        self.puds.insert(hva.0 / PUD_SIZE);
    }

    /// Makes the page table for the address if its 2 MiB entry is empty (`pte_alloc`).
    ///
    /// # Errors
    /// `ENOMEM` if there are too many tables.
    pub(super) fn make_table(&mut self, phys: &PhysMem, hva: Hva) -> Result<(), Errno> {
        self.reach(hva);
        if let Entry::Vacant(entry) = self.pmds.entry(hva.0 / PMD_SIZE) {
            phys.charge_table()?;
            entry.insert(Pmd::Table(PteTable::empty()));
        }
        Ok(())
    }

    /// Replaces a 4 KiB entry and counts the map; returns the old one, whose reference is the caller's now.
    ///
    /// # Panics
    /// If there is no page table.
    pub(super) fn set(&mut self, phys: &PhysMem, hva: Hva, new: Pte) -> Pte {
        self.mark_young(hva);
        let Some(Pmd::Table(table)) = self.pmds.get_mut(&(hva.0 / PMD_SIZE)) else {
            panic!("{hva:?} has no page table");
        };
        let old = std::mem::replace(&mut table.0[index(hva)], new);
        if old.pfn() != new.pfn() {
            if !new.is_none() {
                phys.add_mapcount(new.pfn());
            }
            if !old.is_none() {
                phys.sub_mapcount(old.pfn());
            }
        }
        old
    }

    /// Fills the empty 2 MiB entry of the address, or replaces the huge zero page in it, and counts the maps.
    ///
    /// # Panics
    /// If the entry has a page table or a page that is not a zero page.
    pub(super) fn set_huge(&mut self, phys: &PhysMem, hva: Hva, new: Pte) {
        self.reach(hva);
        self.forget_age(block(hva.0 / PMD_SIZE));
        let old = self.pmds.insert(hva.0 / PMD_SIZE, Pmd::Huge(new));
        let replaceable = match &old {
            None => true,
            Some(Pmd::Huge(old)) => old.has(PteFlags::ZERO) || old.pfn() == new.pfn(),
            Some(Pmd::Table(_)) => false,
        };
        assert!(replaceable, "a huge page replaces {old:?}");
        let counted = !matches!(&old, Some(Pmd::Huge(old)) if old.pfn() == new.pfn());
        if counted {
            count_maps(phys, new, PhysMem::add_mapcount);
        }
    }

    /// `__split_huge_pmd_locked`: the huge page of the address becomes 512 pages with the same rights, the huge zero page 512
    /// zero pages. Returns whether there was one.
    pub(super) fn split(&mut self, phys: &PhysMem, hva: Hva, zero: Pfn) -> bool {
        let Some(pmd) = self.pmds.get_mut(&(hva.0 / PMD_SIZE)) else { return false };
        let &mut Pmd::Huge(huge) = pmd else { return false };
        let mut table = PteTable::empty();
        for (i, pte) in table.0.iter_mut().enumerate() {
            let pfn = if huge.has(PteFlags::ZERO) { zero } else { huge.pfn() + i as u64 };
            *pte = Pte::new(pfn, huge.flags());
        }
        *pmd = Pmd::Table(table);
        phys.charge_deposited_table();
        let first = hva.page() / PAGES_PER_PMD * PAGES_PER_PMD;
        if self.old.contains(&first) {
            self.old.extend(first..first + PAGES_PER_PMD);
        }
        true
    }

    /// Replaces 512 pages by one huge page and counts its maps (`collapse_huge_page`).
    ///
    /// # Panics
    /// If the address has no page table.
    pub(super) fn collapse(&mut self, phys: &PhysMem, hva: Hva, new: Pte, gather: &mut MmuGather) {
        self.forget_age(block(hva.0 / PMD_SIZE));
        let old = self.pmds.insert(hva.0 / PMD_SIZE, Pmd::Huge(new));
        let Some(Pmd::Table(table)) = old else { panic!("only a page table collapses") };
        phys.uncharge_table();
        for pte in table.0.into_iter().filter(|pte| !pte.is_none()) {
            drop_small(phys, pte, gather);
        }
        count_maps(phys, new, PhysMem::add_mapcount);
    }

    /// Whether the block has a huge page that the range covers only partly.
    pub(super) fn needs_split(&self, block: HvaRange, range: HvaRange) -> bool {
        block.clip(&range) != block && matches!(self.look(block.start), Look::Huge(_))
    }

    /// Empties the entries of a part of one block. A huge page must be covered whole.
    pub(super) fn zap(&mut self, phys: &PhysMem, part: HvaRange, how: Zap, gather: &mut MmuGather) {
        let number = part.start.0 / PMD_SIZE;
        let whole = part == block(number);
        self.forget_age(part);
        let empty = match self.pmds.get_mut(&number) {
            None => return,
            Some(Pmd::Huge(huge)) => {
                assert!(whole, "a huge page is dropped whole or split first");
                let huge = *huge;
                count_maps(phys, huge, PhysMem::sub_mapcount);
                if !huge.has(PteFlags::ZERO) {
                    gather.huge.push(huge.pfn());
                }
                true
            }
            Some(Pmd::Table(table)) => {
                let first = index(part.start);
                let entries = &mut table.0[first..first + (part.len() / PAGE_SIZE) as usize];
                for entry in entries {
                    if entry.is_none() || (how.keep_private && entry.has(PteFlags::ANON)) {
                        continue;
                    }
                    drop_small(phys, std::mem::take(entry), gather);
                }
                whole && how.reclaim && table.0.iter().all(|pte| pte.is_none())
            }
        };
        if empty && let Some(Pmd::Table(_)) = self.pmds.remove(&number) {
            phys.uncharge_table();
        }
    }

    /// Gives every page in a part of one block the rights that `change` says. A huge page must be covered whole.
    pub(super) fn protect(&mut self, part: HvaRange, change: impl Fn(Pte) -> Pte) {
        let number = part.start.0 / PMD_SIZE;
        match self.pmds.get_mut(&number) {
            None => {}
            Some(Pmd::Huge(huge)) => {
                assert!(part == block(number), "the rights of a huge page change whole or it is split first");
                *huge = change(*huge);
            }
            Some(Pmd::Table(table)) => {
                let first = index(part.start);
                for entry in &mut table.0[first..first + (part.len() / PAGE_SIZE) as usize] {
                    if !entry.is_none() {
                        *entry = change(*entry);
                    }
                }
            }
        }
    }

    /// `free_pgtables`: frees the emptied tables of an unmapped range that lie wholly between the neighbouring areas, of which
    /// the lower ends at `floor` and the upper starts at `ceiling`.
    pub(super) fn free_tables(&mut self, phys: &PhysMem, range: HvaRange, floor: Hva, ceiling: Hva) {
        let covered = range.start.0 / PMD_SIZE..range.end.0.div_ceil(PMD_SIZE);
        let numbers: Vec<u64> = self.pmds.range(covered).map(|(n, _)| *n).collect();
        for number in numbers {
            let block = block(number);
            if block.start >= floor && block.end <= ceiling {
                let Some(Pmd::Table(table)) = self.pmds.remove(&number) else { panic!("{block:?} was not zapped") };
                phys.uncharge_table();
                assert!(
                    table.0.iter().all(|pte| pte.is_none()),
                    "the page table of {block:?} is freed with pages in it"
                );
            }
        }
        let kept = (MMAP_BASE - 1) / PUD_SIZE;
        self.puds.retain(|pud| {
            let (start, end) = (pud * PUD_SIZE, (pud + 1) * PUD_SIZE);
            let unmapped = start < range.end.0 && range.start.0 < end && start >= floor.0 && end <= ceiling.0;
            !unmapped || *pud == kept
        });
    }
}

fn count_maps(phys: &PhysMem, huge: Pte, count: impl Fn(&PhysMem, Pfn)) {
    // Maps of the zero pages are not counted.
    if huge.has(PteFlags::ZERO) {
        return;
    }
    for i in 0..PAGES_PER_PMD {
        count(phys, huge.pfn() + i);
    }
}

fn drop_small(phys: &PhysMem, pte: Pte, gather: &mut MmuGather) {
    phys.sub_mapcount(pte.pfn());
    if !pte.has(PteFlags::ZERO) {
        gather.small.push(pte.pfn());
    }
}
