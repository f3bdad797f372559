//! A guest with pages in random frames, both stages in 4 KiB pages, and a processor that runs it.
//!
//! Entries grant everything and need no update, so that what is measured is walking. The same frames and the same order in every run.

use super::memory::Memory;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64Mcg;
use sim_kernel::{Cx, Pfn};
use sim_mmu::guest_paging::{AccessMode, Cr0, Cr3, Cr4, Efer, Encryption, GuestFormat, PagingRegisters, Pkru, gpte};
use sim_mmu::processor::{GuestState, Processor};
use sim_mmu::tlb::{TlbConfig, TlbTag};
use sim_mmu::walker::{CountReferences, Ept, Npt, Stage2, Stage2Format, Stage2Root};
use sim_mmu::{Access, Gpa, Gva, Level};

/// Where the guest sees its pages.
pub(super) const BASE: Gva = Gva(0x5555_0000_0000);

fn shuffled(n: u64, seed: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..n).collect();
    numbers.shuffle(&mut Pcg64Mcg::seed_from_u64(seed));
    numbers
}

/// What each vendor's entries look like when they grant everything and need no update.
pub trait Vendor: Stage2Format {
    /// A processor's stage 2.
    fn processor() -> Self;
    /// The bits of a leaf.
    const LEAF: u64;
    /// The bits of an entry that points to a table.
    const TABLE: u64;
}

impl Vendor for Npt {
    fn processor() -> Npt {
        Npt::new(46, true)
    }
    const LEAF: u64 = 0b110_0111;
    const TABLE: u64 = 0b010_0111;
}

impl Vendor for Ept {
    fn processor() -> Ept {
        Ept::new(46, true)
    }
    const LEAF: u64 = 1 << 63 | 0b11 << 8 | 6 << 3 | 0b111;
    const TABLE: u64 = 1 << 63 | 1 << 8 | 0b111;
}

/// A guest with so many pages mapped, and a processor that runs it.
#[derive(Debug)]
pub struct Guest<F: Vendor, M> {
    pub(super) memory: M,
    pub(super) processor: Processor<F>,
    /// Pages in the order in which they are accessed.
    order: Vec<u64>,
    /// Where in that order the next access is.
    next: usize,
}

impl<F: Vendor, M: Memory> Guest<F, M> {
    /// Maps `pages` pages in random frames, by tables of `levels` levels at both stages.
    ///
    /// # Panics
    /// If `levels` is neither 4 nor 5.
    pub fn new(cx: &Cx<'_>, pages: u64, levels: u8, tlb: TlbConfig) -> Guest<F, M> {
        let leaf_tables = pages.div_ceil(512) + 1;
        // Guest tables first, in guest frames from 0 on, then the guest's pages.
        let guest_tables = leaf_tables + 8;
        let guest_frames = guest_tables + pages;
        let stage2_tables = guest_frames.div_ceil(512) + 8;
        let mut memory = M::with_tables(cx, guest_tables + stage2_tables);
        let (gfns, frames) = (shuffled(pages, 7), shuffled(pages, 8));
        // Host frames: what is a guest's table lies in one; data follows all tables.
        let host = |memory: &M, gfn: u64| {
            let data = guest_tables + stage2_tables;
            if gfn < guest_tables { memory.table(gfn) } else { Pfn(data + frames[(gfn - guest_tables) as usize]) }
        };
        let mut next_guest = 1;
        for page in 0..pages {
            let gva = BASE + (page << 12);
            let mut table = 0;
            for level in (2..=levels).rev() {
                let level = Level::from_number(level).unwrap();
                let frame = memory.table(table);
                let entry = memory.guest_entry(cx, frame, Gpa(gva.index(level) as u64 * 8));
                if entry == 0 {
                    let bits = gpte::PRESENT | gpte::WRITABLE | gpte::USER | gpte::ACCESSED;
                    memory.set(frame, gva.index(level), bits | next_guest << 12);
                    table = next_guest;
                    next_guest += 1;
                } else {
                    table = entry >> 12;
                }
            }
            let bits = gpte::PRESENT | gpte::WRITABLE | gpte::USER | gpte::ACCESSED | gpte::DIRTY;
            let frame = memory.table(table);
            memory.set(frame, gva.index(Level::L4K), bits | (guest_tables + gfns[page as usize]) << 12);
        }
        let mut next_stage2 = guest_tables + 1;
        for gfn in 0..guest_frames {
            let mut table = memory.table(guest_tables);
            for level in (2..=levels).rev() {
                let level = Level::from_number(level).unwrap();
                let index = sim_mmu::Gfn(gfn).index(level);
                let entry = memory.stage2_entry(cx, table, level, index);
                if entry == 0 {
                    let new = memory.table(next_stage2);
                    next_stage2 += 1;
                    memory.set(table, index, F::TABLE | new.0 << 12);
                    table = new;
                } else {
                    table = Pfn(entry >> 12 & ((1 << 34) - 1));
                }
            }
            let pfn = host(&memory, gfn);
            memory.set(table, sim_mmu::Gfn(gfn).index(Level::L4K), F::LEAF | pfn.0 << 12);
        }
        let root = Stage2Root { table: memory.table(guest_tables), level: Level::from_number(levels).unwrap() };
        let mut cr4 = Cr4::PAE | Cr4::PGE;
        cr4.set(Cr4::LA57, levels == 5);
        let registers = PagingRegisters {
            cr0: Cr0::PG | Cr0::WP,
            cr3: Cr3(0),
            cr4,
            efer: Efer::LMA | Efer::NXE,
            pkru: Pkru(0),
            cpl: 0,
            ac: false,
        };
        let state = GuestState { registers, tag: TlbTag(1), stage2: Stage2::new(root) };
        let encryption = Encryption::None;
        let format = GuestFormat { maxphyaddr: 46, has_1g_pages: true, upper_global_reserved: false, encryption };
        let processor = Processor::new(cx, F::processor(), format, tlb, state).unwrap();
        Guest { memory, processor, order: shuffled(pages, 9), next: 0 }
    }

    /// Where the next access goes: pages in random order, over and over.
    #[inline]
    pub(super) fn next_gva(&mut self) -> Gva {
        let gva = BASE + (self.order[self.next] << 12);
        self.next = if self.next + 1 == self.order.len() { 0 } else { self.next + 1 };
        gva
    }

    /// Translates a read of the next page.
    #[inline]
    pub(super) fn translate_next(&mut self, cx: &Cx<'_>) -> u64 {
        let gva = self.next_gva();
        self.processor.translate(cx, &self.memory, gva, Access::Read).expect("everything is mapped").pfn.0
    }

    /// Counts what accesses do, after as many that warm the caches up, and says it.
    pub(super) fn describe(&mut self, cx: &Cx<'_>) -> String {
        let mut counts = CountReferences::default();
        let accesses = self.order.len().max(4096);
        for _ in 0..2 {
            counts = CountReferences::default();
            for _ in 0..accesses {
                let gva = self.next_gva();
                let (access, mode) = (Access::Read, AccessMode::Supervisor);
                let found = self.processor.translate_observed(cx, &self.memory, gva, mode, access, &mut counts);
                found.expect("everything is mapped");
            }
        }
        let each = |n: u64| n as f64 / accesses as f64;
        format!("{:.2} references, {:.1} % TLB hits", each(counts.references()), each(counts.tlb_hits) * 100.0)
    }
}
