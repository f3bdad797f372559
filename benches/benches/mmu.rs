//! The machine's MMU: what a hit costs, a miss that paging-structure caches serve, and a cold two-dimensional walk, over sets of pages from
//! 256 KiB to 1 GiB in random frames, both stages in 4 KiB pages.
//!
//! Peers in the same run: the same walker over tables in a hash map, and a TLB that is one, which is how one would write them first;
//! and tables in the simulator's own host memory (`PhysMem`), which is what a machine uses. Before each measurement the same accesses are counted;
//! the line that is printed says how many references an access makes, and how many hit.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::run_native;
use sim_kernel::{Cx, Pfn};
use sim_mmu::guest_paging::{AccessMode, Cr0, Cr3, Cr4, Efer, Encryption, GuestFormat, PagingRegisters, Pkru, gpte};
use sim_mmu::processor::{GuestState, InveptType, Processor};
use sim_mmu::tlb::{TlbConfig, TlbTag};
use sim_mmu::walker::{CountReferences, Ept, NoObserver, Npt, Stage2, Stage2Format, Stage2Root, WalkMemory};
use sim_mmu::{Access, Gva, Level};
#[expect(clippy::disallowed_types, reason = "the peer is what one would write first")]
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Pages of each set: 256 KiB, 16 MiB, 1 GiB.
const SETS: [u64; 3] = [64, 4096, 262_144];
/// Where the guest sees its pages.
const BASE: Gva = Gva(0x5555_0000_0000);
/// Accesses of one measured iteration.
const BATCH: usize = 4096;
/// Pages of which there are contents.
const DATA_PAGES: u64 = 4096;

/// Memory as the benchmark needs it, besides walks.
trait Memory: WalkMemory {
    fn with_tables(cx: &Cx<'_>, tables: u64) -> Self;
    /// Writes a word of a table.
    fn set(&mut self, table: Pfn, index: usize, value: u64);
    /// The frame of the n-th table.
    fn table(&self, n: u64) -> Pfn {
        Pfn(n)
    }
}

/// One flat array of words, tables first, then what the guest reads.
struct Flat(Vec<AtomicU64>);

impl Flat {
    #[inline]
    fn word(&self, frame: Pfn, index: usize) -> &AtomicU64 {
        &self.0[frame.0 as usize * 512 + index]
    }
}

fn exchange(word: &AtomicU64, old: u64, new: u64) -> Result<(), u64> {
    word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).map(|_| ())
}

impl WalkMemory for Flat {
    #[inline]
    fn stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, _level: Level, index: usize) -> u64 {
        self.word(table, index).load(Ordering::Acquire)
    }
    fn update_stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        exchange(self.word(table, index), old, new)
    }
    #[inline]
    fn guest_entry(&self, _cx: &Cx<'_>, table: Pfn, index: usize) -> u64 {
        self.word(table, index).load(Ordering::Acquire)
    }
    fn update_guest_entry(&self, _cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        exchange(self.word(table, index), old, new)
    }
}

impl Memory for Flat {
    fn with_tables(_cx: &Cx<'_>, tables: u64) -> Flat {
        Flat((0..(tables + DATA_PAGES) * 512).map(|_| AtomicU64::new(0)).collect())
    }
    fn set(&mut self, table: Pfn, index: usize, value: u64) {
        *self.0[table.0 as usize * 512 + index].get_mut() = value;
    }
}

/// A hash map from frames to their words.
#[expect(clippy::disallowed_types, reason = "the peer is what one would write first")]
struct Hashed(HashMap<u64, Box<[AtomicU64; 512]>>);

impl WalkMemory for Hashed {
    fn stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, _level: Level, index: usize) -> u64 {
        self.0[&table.0][index].load(Ordering::Acquire)
    }
    fn update_stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        exchange(&self.0[&table.0][index], old, new)
    }
    fn guest_entry(&self, _cx: &Cx<'_>, table: Pfn, index: usize) -> u64 {
        self.0[&table.0][index].load(Ordering::Acquire)
    }
    fn update_guest_entry(&self, _cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        exchange(&self.0[&table.0][index], old, new)
    }
}

impl Memory for Hashed {
    fn with_tables(_cx: &Cx<'_>, tables: u64) -> Hashed {
        Hashed((0..tables).map(|frame| (frame, Box::new([const { AtomicU64::new(0) }; 512]))).collect())
    }
    fn set(&mut self, table: Pfn, index: usize, value: u64) {
        self.0[&table.0][index].store(value, Ordering::Release);
    }
}

/// The simulator's host memory; tables of both stages are tables of it.
struct Simulated(PhysMem, Vec<Pfn>);

impl WalkMemory for Simulated {
    #[inline]
    fn stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, _level: Level, index: usize) -> u64 {
        self.0.table_word(table, index).load(Ordering::Acquire)
    }
    fn update_stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        exchange(self.0.table_word(table, index), old, new)
    }
    #[inline]
    fn guest_entry(&self, cx: &Cx<'_>, table: Pfn, index: usize) -> u64 {
        self.0.read_u64(cx, table, index as u64 * 8)
    }
    fn update_guest_entry(&self, cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        self.0.cmpxchg_u64(cx, table, index as u64 * 8, old, new)
    }
}

impl Memory for Simulated {
    fn with_tables(cx: &Cx<'_>, tables: u64) -> Simulated {
        let memory = PhysMem::new(cx, 4 << 30);
        let tables = (0..tables).map(|_| memory.alloc_table(0).unwrap()).collect();
        Simulated(memory, tables)
    }
    fn set(&mut self, table: Pfn, index: usize, value: u64) {
        self.0.table_word(table, index).store(value, Ordering::Release);
    }
    fn table(&self, n: u64) -> Pfn {
        self.1[n as usize]
    }
}

/// Fixed pseudo-random numbers (splitmix64): the same frames and orders in every run.
struct Mix(u64);

impl Mix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn shuffled(&mut self, n: u64) -> Vec<u64> {
        let mut numbers: Vec<u64> = (0..n).collect();
        for i in (1..n).rev() {
            numbers.swap(i as usize, (self.next() % (i + 1)) as usize);
        }
        numbers
    }
}

/// What each vendor's entries look like when they grant everything and need no update.
trait Vendor: Stage2Format {
    fn processor() -> Self;
    const LEAF: u64;
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
struct Guest<F: Vendor, M> {
    memory: M,
    processor: Processor<F>,
    /// Pages in the order in which they are accessed.
    order: Vec<u64>,
}

impl<F: Vendor, M: Memory> Guest<F, M> {
    fn new(cx: &Cx<'_>, pages: u64, levels: u8, tlb: TlbConfig) -> Guest<F, M> {
        let leaf_tables = pages.div_ceil(512) + 1;
        // Guest tables first, in guest frames from 0 on, then the guest's pages.
        let guest_tables = leaf_tables + 8;
        let guest_frames = guest_tables + pages;
        let stage2_tables = guest_frames.div_ceil(512) + 8;
        let mut memory = M::with_tables(cx, guest_tables + stage2_tables);
        let mut mix = Mix(7);
        let gfns = mix.shuffled(pages);
        let frames = mix.shuffled(pages);
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
                let entry = memory.guest_entry(cx, frame, gva.index(level));
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
        Guest { memory, processor, order: mix.shuffled(pages) }
    }

    /// Counts what accesses do, after as many that warm the caches up, and says it.
    fn describe(&mut self, cx: &Cx<'_>, what: &str) {
        let mut counts = CountReferences::default();
        let mut rounds = self.order.iter().cycle();
        let accesses = self.order.len().max(BATCH);
        for _ in 0..2 {
            counts = CountReferences::default();
            for _ in 0..accesses {
                let gva = BASE + (rounds.next().unwrap() << 12);
                let (access, mode) = (Access::Read, AccessMode::Supervisor);
                self.processor.translate_observed(cx, &self.memory, gva, mode, access, &mut counts).unwrap();
            }
        }
        let each = |n: u64| n as f64 / accesses as f64;
        let (references, hits) = (each(counts.references()), each(counts.tlb_hits) * 100.0);
        println!("{what}: {references:.2} references an access, {hits:.1} % TLB hits");
    }
}

/// Nothing but a TLB, too small to hit much.
const COLD: TlbConfig = TlbConfig { combined_sets: 1, ..TlbConfig::NONE };
/// Paging-structure caches, and a TLB that is too small.
const STRUCTURES: TlbConfig = TlbConfig {
    combined_sets: 1,
    guest_structure_slots: 1024,
    stage2_structure_slots: 1024,
    acceleration_slots: 4096,
    ..TlbConfig::NONE
};
/// Room for 4096 pages.
const HITS: TlbConfig = TlbConfig { combined_sets: 1024, acceleration_slots: 4096, ..TlbConfig::LARGE };

type Group<'a> = criterion::BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn settings<'a>(c: &'a mut Criterion, name: &str) -> Group<'a> {
    let mut group = c.benchmark_group(name.to_string());
    group.throughput(Throughput::Elements(BATCH as u64));
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group
}

/// P1: eight bytes, translated and read, one after the other; all hit.
fn hits(c: &mut Criterion) {
    let mut group = settings(c, "mmu/p1_hit");
    for pages in [64, 4096] {
        run_native(|cx| {
            let mut guest = Guest::<Npt, Flat>::new(cx, pages, 4, HITS);
            guest.describe(cx, &format!("mmu/p1_hit/{pages}"));
            let words = pages * 512;
            group.bench_function(BenchmarkId::new("sequential", pages), |b| {
                let mut at = 0;
                b.iter(|| {
                    let mut sum = 0u64;
                    for _ in 0..BATCH {
                        let gva = BASE + at * 8;
                        at = if at + 1 == words { 0 } else { at + 1 };
                        let found = guest.processor.translate(cx, &guest.memory, gva, Access::Read).unwrap();
                        let word = guest.memory.word(found.pfn, (found.offset / 8) as usize);
                        sum = sum.wrapping_add(word.load(Ordering::Relaxed));
                    }
                    sum
                });
            });
            group.bench_function(BenchmarkId::new("sequential_raw", pages), |b| {
                let mut at = 0;
                let first = guest.memory.0.len() as u64 - DATA_PAGES * 512;
                b.iter(|| {
                    let mut sum = 0u64;
                    for _ in 0..BATCH {
                        let word = &guest.memory.0[(first + at) as usize];
                        at = if at + 1 == words { 0 } else { at + 1 };
                        sum = sum.wrapping_add(word.load(Ordering::Relaxed));
                    }
                    sum
                });
            });
            group.bench_function(BenchmarkId::new("random_page", pages), |b| {
                let mut at = 0;
                b.iter(|| {
                    let mut sum = 0u64;
                    for _ in 0..BATCH {
                        let gva = BASE + (guest.order[at] << 12);
                        at = if at + 1 == guest.order.len() { 0 } else { at + 1 };
                        sum ^= guest.processor.translate(cx, &guest.memory, gva, Access::Read).unwrap().pfn.0;
                    }
                    sum
                });
            });
            #[expect(clippy::disallowed_types, reason = "the peer is what one would write first")]
            let map: HashMap<(u16, u64), (u64, bool)> =
                (0..pages).map(|page| ((1, BASE.0 / 4096 + page), (page, true))).collect();
            group.bench_function(BenchmarkId::new("hash_map_random_page", pages), |b| {
                let mut at = 0;
                b.iter(|| {
                    let mut sum = 0u64;
                    for _ in 0..BATCH {
                        let gva = BASE + (guest.order[at] << 12);
                        at = if at + 1 == guest.order.len() { 0 } else { at + 1 };
                        let (pfn, readable) = map[&(black_box(1), gva.0 / 4096)];
                        assert!(readable);
                        sum ^= pfn;
                    }
                    sum
                });
            });
        });
    }
    group.finish();
}

/// One walk after the other, of pages in random order.
fn walks<F: Vendor, M: Memory>(group: &mut Group<'_>, name: &str, levels: u8, tlb: TlbConfig, sets: &[u64]) {
    for &pages in sets {
        run_native(|cx| {
            let mut guest = Guest::<F, M>::new(cx, pages, levels, tlb);
            guest.describe(cx, &format!("{name}/{pages}"));
            group.bench_function(BenchmarkId::new(name, pages), |b| {
                let mut at = 0;
                b.iter(|| {
                    let mut sum = 0u64;
                    for _ in 0..BATCH {
                        let gva = BASE + (guest.order[at] << 12);
                        at = if at + 1 == guest.order.len() { 0 } else { at + 1 };
                        sum ^= guest.processor.translate(cx, &guest.memory, gva, Access::Read).unwrap().pfn.0;
                    }
                    sum
                });
            });
        });
    }
}

/// P2: a miss that paging-structure caches serve, with both fills.
fn structure_hits(c: &mut Criterion) {
    let mut group = settings(c, "mmu/p2_structures");
    walks::<Npt, Flat>(&mut group, "npt", 4, STRUCTURES, &SETS);
    walks::<Ept, Flat>(&mut group, "ept", 4, STRUCTURES, &SETS);
    walks::<Npt, Simulated>(&mut group, "npt_physmem", 4, STRUCTURES, &SETS);
    walks::<Npt, Hashed>(&mut group, "npt_hash_map", 4, STRUCTURES, &SETS);
    walks::<Npt, Flat>(&mut group, "npt_all_caches", 4, TlbConfig::LARGE, &SETS);
    group.finish();
}

/// P3 and P4: cold walks of 24 and of 35 references, with the fill.
fn cold_walks(c: &mut Criterion) {
    let mut group = settings(c, "mmu/p3_cold");
    walks::<Npt, Flat>(&mut group, "npt", 4, COLD, &SETS);
    walks::<Ept, Flat>(&mut group, "ept", 4, COLD, &SETS);
    walks::<Npt, Simulated>(&mut group, "npt_physmem", 4, COLD, &SETS);
    walks::<Npt, Hashed>(&mut group, "npt_hash_map", 4, COLD, &SETS);
    group.finish();
    let mut group = settings(c, "mmu/p4_cold_5_levels");
    walks::<Npt, Flat>(&mut group, "npt", 5, COLD, &SETS);
    walks::<Ept, Flat>(&mut group, "ept", 5, COLD, &SETS);
    group.finish();
}

/// P8's part of the processor: a flush costs the same however much is cached. Each is followed by one access, so that something is
/// cached; "none" is that access without a flush, after a change of the page.
fn flushes(c: &mut Criterion) {
    let mut group = settings(c, "mmu/flush");
    group.throughput(Throughput::Elements(1));
    for (name, tlb) in [("small", TlbConfig::SMALL), ("large", TlbConfig::LARGE)] {
        run_native(|cx| {
            let mut guest = Guest::<Ept, Flat>::new(cx, 4096, 4, tlb);
            guest.describe(cx, &format!("mmu/flush/{name}"));
            group.bench_function(BenchmarkId::new("invept", name), |b| {
                b.iter(|| guest.processor.invept(cx, InveptType::All));
            });
            group.bench_function(BenchmarkId::new("invlpg", name), |b| {
                b.iter(|| guest.processor.invlpg(cx, black_box(BASE)));
            });
            let mut page = 0;
            group.bench_function(BenchmarkId::new("invept_and_access", name), |b| {
                b.iter(|| {
                    page = (page + 1) & 4095;
                    guest.processor.invept(cx, InveptType::All);
                    let (mode, access) = (AccessMode::Supervisor, Access::Read);
                    let gva = BASE + (page << 12);
                    guest.processor.translate_observed(cx, &guest.memory, gva, mode, access, &mut NoObserver).unwrap()
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, hits, structure_hits, cold_walks, flushes);
criterion_main!(benches);
