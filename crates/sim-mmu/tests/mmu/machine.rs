//! A machine small enough to see through: host memory is a map of words, guest memory lies 64 GiB higher in it, and both stages'
//! tables are made by hand.

use crate::bits::{A, RWX, Vendor, large};
use sim_kernel::{Cx, Pfn};
use sim_mmu::guest_paging::{
    AccessMode, Cr0, Cr3, Cr4, Efer, Encryption, GuestFault, GuestFormat, PageFault, PagingRegisters, Pkru,
};
use sim_mmu::processor::{GuestState, Translated};
use sim_mmu::tlb::{TlbConfig, TlbTag};
use sim_mmu::walker::{CountReferences, MmuFault, Stage2, Stage2Root, WalkMemory};
use sim_mmu::{Access, Gfn, Gpa, Gva, Level, Processor};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// Frames between guest memory and host memory: aligned for every page size.
const HOST_OFFSET: u64 = 64 << 18;
/// Guest frames of the guest's tables.
const GUEST_TABLES: u64 = 0x100;
/// Host frames of stage-2 tables.
const STAGE2_TABLES: u64 = 0x10;

/// A frame and a word in it.
type Place = (u64, usize);

/// Memory: every word that was ever written.
#[derive(Default)]
pub(crate) struct Memory {
    words: RefCell<BTreeMap<(u64, usize), u64>>,
    /// What each word was set to, and when.
    history: RefCell<BTreeMap<Place, Vec<(u64, u64)>>>,
    /// The time, in whatever the test counts.
    pub(crate) now: Cell<u64>,
    /// Entries that are changed by "somebody" right after the guest's word of this place is read.
    pub(crate) surprise: RefCell<Option<(Place, Place, u64)>>,
    /// Locked updates of guest tables.
    pub(crate) guest_updates: Cell<usize>,
}

impl Memory {
    pub(crate) fn get(&self, pfn: Pfn, index: usize) -> u64 {
        self.words.borrow().get(&(pfn.0, index)).copied().unwrap_or(0)
    }

    pub(crate) fn set(&self, pfn: Pfn, index: usize, value: u64) {
        self.words.borrow_mut().insert((pfn.0, index), value);
        self.history.borrow_mut().entry((pfn.0, index)).or_default().push((self.now.get(), value));
    }

    /// What a word was at a time, and since.
    pub(crate) fn values_since(&self, pfn: Pfn, index: usize, time: u64) -> Vec<u64> {
        let history = self.history.borrow();
        let Some(values) = history.get(&(pfn.0, index)) else { return vec![0] };
        let first = values.iter().rposition(|&(when, _)| when <= time);
        let earlier = first.map_or(Some(0), |_| None);
        earlier.into_iter().chain(values[first.unwrap_or(0)..].iter().map(|&(_, value)| value)).collect()
    }

    /// Every word, to compare machines.
    pub(crate) fn words(&self) -> BTreeMap<(u64, usize), u64> {
        self.words.borrow().clone()
    }

    fn update(&self, pfn: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let found = self.get(pfn, index);
        if found != old {
            return Err(found);
        }
        self.set(pfn, index, new);
        Ok(())
    }
}

impl WalkMemory for Memory {
    fn stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, _level: Level, index: usize) -> u64 {
        self.get(table, index)
    }

    fn update_stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        self.update(table, index, old, new)
    }

    fn guest_entry(&self, _cx: &Cx<'_>, table: Pfn, entry: Gpa) -> u64 {
        let index = (entry.offset() / 8) as usize;
        let value = self.get(table, index);
        let mut surprise = self.surprise.borrow_mut();
        if let Some((_, (pfn, at), new)) = surprise.take_if(|(when, ..)| *when == (table.0, index)) {
            self.set(Pfn(pfn), at, new);
        }
        value
    }

    fn update_guest_entry(&self, _cx: &Cx<'_>, table: Pfn, entry: Gpa, old: u64, new: u64) -> Result<(), u64> {
        let index = (entry.offset() / 8) as usize;
        self.guest_updates.set(self.guest_updates.get() + 1);
        self.update(table, index, old, new)
    }
}

/// The host frame behind a guest frame.
pub(crate) fn host(gfn: Gfn) -> Pfn {
    Pfn(gfn.0 + HOST_OFFSET)
}

/// What a machine is made with.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) guest_levels: u8,
    pub(crate) stage2_levels: u8,
    /// Size of stage 2's mappings.
    pub(crate) stage2_page: Level,
    pub(crate) tlb: TlbConfig,
    pub(crate) format: GuestFormat,
}

impl Default for Setup {
    fn default() -> Setup {
        let encryption = Encryption::None;
        let format = GuestFormat { maxphyaddr: 46, has_1g_pages: true, upper_global_reserved: false, encryption };
        Setup { guest_levels: 4, stage2_levels: 4, stage2_page: Level::L4K, tlb: TlbConfig::SMALL, format }
    }
}

impl Setup {
    pub(crate) fn uncached() -> Setup {
        Setup { tlb: TlbConfig::NONE, ..Setup::default() }
    }
}

/// A processor, its memory, and a guest's root table.
pub(crate) struct Machine<F: Vendor> {
    pub(crate) setup: Setup,
    pub(crate) memory: Memory,
    pub(crate) processor: Processor<F>,
    pub(crate) root: Stage2Root,
    next_guest_table: u64,
    next_stage2_table: u64,
}

pub(crate) type Fault<F> = MmuFault<<F as sim_mmu::Stage2Format>::Exit>;

impl<F: Vendor> Machine<F> {
    pub(crate) fn new(cx: &Cx<'_>, setup: Setup) -> Machine<F> {
        let root = Stage2Root { table: Pfn(STAGE2_TABLES), level: Level::from_number(setup.stage2_levels).unwrap() };
        let (mut cr4, mut cr0) = (Cr4::PAE | Cr4::PGE, Cr0::PG | Cr0::WP);
        cr4.set(Cr4::LA57, setup.guest_levels == 5);
        cr0.set(Cr0::PG, setup.guest_levels != 0);
        let registers = PagingRegisters {
            cr0,
            cr3: Cr3(GUEST_TABLES << 12),
            cr4,
            efer: Efer::LMA | Efer::NXE,
            pkru: Pkru(0),
            cpl: 0,
            ac: false,
        };
        let state = GuestState { registers, tag: TlbTag(1), stage2: Stage2::new(root) };
        let processor = Processor::new(cx, F::processor(), setup.format, setup.tlb, state).unwrap();
        let mut machine = Machine {
            setup,
            memory: Memory::default(),
            processor,
            root,
            next_guest_table: GUEST_TABLES + 1,
            next_stage2_table: STAGE2_TABLES + 1,
        };
        machine.back(Gfn(GUEST_TABLES));
        machine
    }

    pub(crate) fn cr3(&self) -> Gfn {
        Gfn(self.processor.state().registers.cr3.table().0 & ((1 << 34) - 1))
    }

    /// A new stage-2 tree, empty.
    pub(crate) fn new_stage2_root(&mut self) -> Stage2Root {
        self.next_stage2_table += 1;
        Stage2Root { table: Pfn(self.next_stage2_table - 1), level: self.root.level }
    }

    /// Where the stage-2 entry of `level` for a gpa is; tables above are made.
    pub(crate) fn stage2_place(&mut self, root: Stage2Root, gpa: Gpa, level: Level) -> (Pfn, usize) {
        let (mut table, mut at) = (root.table, root.level);
        while at != level {
            let index = gpa.gfn().index(at);
            let entry = self.memory.get(table, index);
            table = if entry == 0 {
                self.next_stage2_table += 1;
                let new = Pfn(self.next_stage2_table - 1);
                self.memory.set(table, index, F::TABLE | F::ACCESSED | new.0 << 12);
                new
            } else {
                assert_eq!(entry & 1 << 7, 0, "{gpa:?} is mapped by a larger page");
                Pfn(entry >> 12 & ((1 << 40) - 1))
            };
            at = at.down().unwrap();
        }
        (table, gpa.gfn().index(level))
    }

    pub(crate) fn map_stage2(&mut self, root: Stage2Root, gpa: Gpa, pfn: Pfn, level: Level, bits: u64) {
        let (table, index) = self.stage2_place(root, gpa, level);
        self.memory.set(table, index, bits | large(level) | pfn.0 << 12);
    }

    /// Maps a guest frame at stage 2, in pages of the set-up's size.
    pub(crate) fn back(&mut self, gfn: Gfn) {
        let level = self.setup.stage2_page;
        let first = gfn.round_down(level);
        self.map_stage2(self.root, first.gpa(), host(first), level, F::LEAF);
    }

    /// Where the guest's entry of `level` for a gva is; tables above are made, in memory that stage 2 maps.
    pub(crate) fn guest_place(&mut self, cr3: Gfn, gva: Gva, level: Level) -> (Pfn, usize) {
        let mut table = cr3;
        let mut at = Level::from_number(self.setup.guest_levels).unwrap();
        while at != level {
            let (pfn, index) = (host(table), gva.index(at));
            let entry = self.memory.get(pfn, index);
            table = if entry == 0 {
                let new = self.new_guest_table();
                self.memory.set(pfn, index, RWX | new.0 << 12);
                new
            } else {
                Gfn(entry >> 12 & ((1 << 34) - 1))
            };
            at = at.down().unwrap();
        }
        (host(table), gva.index(level))
    }

    pub(crate) fn new_guest_table(&mut self) -> Gfn {
        let gfn = Gfn(self.next_guest_table);
        self.next_guest_table += 1;
        self.back(gfn);
        gfn
    }

    /// Maps a page of the guest; its memory is not backed yet.
    pub(crate) fn map_guest(&mut self, gva: Gva, gfn: Gfn, level: Level, bits: u64) {
        let cr3 = self.cr3();
        let (table, index) = self.guest_place(cr3, gva, level);
        self.memory.set(table, index, bits | large(level) | gfn.0 << 12);
    }

    /// Maps a page of the guest in memory that stage 2 maps.
    pub(crate) fn map(&mut self, gva: Gva, gfn: Gfn, bits: u64) {
        self.map_guest(gva, gfn, Level::L4K, bits);
        self.back(gfn);
    }

    pub(crate) fn guest_entry(&mut self, gva: Gva, level: Level) -> u64 {
        let cr3 = self.cr3();
        let (table, index) = self.guest_place(cr3, gva, level);
        self.memory.get(table, index)
    }

    pub(crate) fn set_guest_entry(&mut self, gva: Gva, level: Level, entry: u64) {
        let cr3 = self.cr3();
        let (table, index) = self.guest_place(cr3, gva, level);
        self.memory.set(table, index, entry);
    }

    pub(crate) fn stage2_entry(&mut self, gfn: Gfn, level: Level) -> u64 {
        let (table, index) = self.stage2_place(self.root, gfn.gpa(), level);
        self.memory.get(table, index)
    }

    pub(crate) fn set_stage2_entry(&mut self, gfn: Gfn, level: Level, entry: u64) {
        let (table, index) = self.stage2_place(self.root, gfn.gpa(), level);
        self.memory.set(table, index, entry);
    }

    pub(crate) fn access(&mut self, cx: &Cx<'_>, gva: Gva, access: Access) -> Result<Translated, Fault<F>> {
        self.processor.translate(cx, &self.memory, gva, access)
    }

    pub(crate) fn access_as(
        &mut self,
        cx: &Cx<'_>,
        gva: Gva,
        mode: AccessMode,
        access: Access,
    ) -> Result<Translated, Fault<F>> {
        let counts = &mut CountReferences::default();
        self.processor.translate_observed(cx, &self.memory, gva, mode, access, counts)
    }

    /// Translates without the acceleration TLB and counts.
    pub(crate) fn count(&mut self, cx: &Cx<'_>, gva: Gva, access: Access) -> CountReferences {
        let mut counts = CountReferences::default();
        let mode = AccessMode::Supervisor;
        self.processor.translate_observed(cx, &self.memory, gva, mode, access, &mut counts).unwrap();
        counts
    }

    /// The frame that a read of the supervisor reaches.
    #[track_caller]
    pub(crate) fn frame(&mut self, cx: &Cx<'_>, gva: Gva) -> Pfn {
        self.access(cx, gva, Access::Read).unwrap().pfn
    }

    pub(crate) fn change_registers(&mut self, change: impl FnOnce(&mut PagingRegisters)) {
        let mut state = *self.processor.state();
        change(&mut state.registers);
        self.processor.enter(state).unwrap();
    }

    pub(crate) fn change_state(&mut self, change: impl FnOnce(&mut GuestState)) {
        let mut state = *self.processor.state();
        change(&mut state);
        self.processor.enter(state).unwrap();
    }
}

/// The page fault of a refused access.
#[track_caller]
pub(crate) fn page_fault<X: std::fmt::Debug>(result: Result<Translated, MmuFault<X>>) -> PageFault {
    match result {
        Err(MmuFault::Guest(GuestFault::Page(fault))) => fault,
        other => panic!("no page fault: {other:?}"),
    }
}

/// The exit of a refused access.
#[track_caller]
pub(crate) fn exit<X: std::fmt::Debug>(result: Result<Translated, MmuFault<X>>) -> X {
    match result {
        Err(MmuFault::Stage2(exit)) => exit,
        other => panic!("no exit: {other:?}"),
    }
}

/// Whether A is set.
pub(crate) fn accessed(entry: u64) -> bool {
    entry & A != 0
}
