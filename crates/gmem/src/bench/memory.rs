//! Three memories for walks: one flat array, a hash map of tables (how one would write it first), and the simulator's own host memory.

use rustc_hash::FxHashMap;
use sim_kernel::mm::PhysMem;
use sim_kernel::{Cx, Pfn};
use sim_mmu::walker::WalkMemory;
use sim_mmu::{Gpa, Level};
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages of which there are contents.
const DATA_PAGES: u64 = 4096;
/// Words of a table.
const WORDS: usize = 512;

/// Memory as the benchmarks need it, besides walks.
pub trait Memory: WalkMemory {
    /// Memory with so many empty tables.
    fn with_tables(cx: &Cx<'_>, tables: u64) -> Self;
    /// Writes a word of a table.
    fn set(&mut self, table: Pfn, index: usize, value: u64);
    /// The frame of the n-th table.
    fn table(&self, n: u64) -> Pfn {
        Pfn(n)
    }
}

fn exchange(word: &AtomicU64, old: u64, new: u64) -> Result<(), u64> {
    word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).map(|_| ())
}

/// One flat array of words: tables first, then what the guest reads.
#[derive(Debug)]
pub struct Flat(Vec<AtomicU64>);

impl Flat {
    /// A word of a frame.
    ///
    /// # Panics
    /// If the frame lies outside.
    #[inline]
    pub fn word(&self, frame: Pfn, index: usize) -> &AtomicU64 {
        &self.0[frame.0 as usize * WORDS + index]
    }

    /// The words behind the tables.
    pub fn data(&self) -> &[AtomicU64] {
        &self.0[self.0.len() - DATA_PAGES as usize * WORDS..]
    }
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
    fn guest_entry(&self, _cx: &Cx<'_>, table: Pfn, entry: Gpa) -> u64 {
        let index = (entry.offset() / 8) as usize;
        self.word(table, index).load(Ordering::Acquire)
    }
    fn update_guest_entry(&self, _cx: &Cx<'_>, table: Pfn, entry: Gpa, old: u64, new: u64) -> Result<(), u64> {
        let index = (entry.offset() / 8) as usize;
        exchange(self.word(table, index), old, new)
    }
}

impl Memory for Flat {
    fn with_tables(_cx: &Cx<'_>, tables: u64) -> Flat {
        Flat((0..(tables + DATA_PAGES) * WORDS as u64).map(|_| AtomicU64::new(0)).collect())
    }
    fn set(&mut self, table: Pfn, index: usize, value: u64) {
        self.word(table, index).store(value, Ordering::Release);
    }
}

/// A hash map from frames to their words.
#[derive(Debug)]
pub struct Hashed(FxHashMap<u64, Box<[AtomicU64; WORDS]>>);

impl WalkMemory for Hashed {
    fn stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, _level: Level, index: usize) -> u64 {
        self.0[&table.0][index].load(Ordering::Acquire)
    }
    fn update_stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        exchange(&self.0[&table.0][index], old, new)
    }
    fn guest_entry(&self, _cx: &Cx<'_>, table: Pfn, entry: Gpa) -> u64 {
        let index = (entry.offset() / 8) as usize;
        self.0[&table.0][index].load(Ordering::Acquire)
    }
    fn update_guest_entry(&self, _cx: &Cx<'_>, table: Pfn, entry: Gpa, old: u64, new: u64) -> Result<(), u64> {
        let index = (entry.offset() / 8) as usize;
        exchange(&self.0[&table.0][index], old, new)
    }
}

impl Memory for Hashed {
    fn with_tables(_cx: &Cx<'_>, tables: u64) -> Hashed {
        Hashed((0..tables).map(|frame| (frame, Box::new([const { AtomicU64::new(0) }; WORDS]))).collect())
    }
    fn set(&mut self, table: Pfn, index: usize, value: u64) {
        self.0[&table.0][index].store(value, Ordering::Release);
    }
}

/// The simulator's host memory; tables of both stages are tables of it.
#[derive(Debug)]
pub struct Simulated(PhysMem, Vec<Pfn>);

impl WalkMemory for Simulated {
    #[inline]
    fn stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, _level: Level, index: usize) -> u64 {
        self.0.table_word(table, index).load(Ordering::Acquire)
    }
    fn update_stage2_entry(&self, _cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        exchange(self.0.table_word(table, index), old, new)
    }
    #[inline]
    fn guest_entry(&self, cx: &Cx<'_>, table: Pfn, entry: Gpa) -> u64 {
        self.0.read_u64(cx, table, entry.offset())
    }
    fn update_guest_entry(&self, cx: &Cx<'_>, table: Pfn, entry: Gpa, old: u64, new: u64) -> Result<(), u64> {
        self.0.cmpxchg_u64(cx, table, entry.offset(), old, new)
    }
}

impl Memory for Simulated {
    fn with_tables(cx: &Cx<'_>, tables: u64) -> Simulated {
        let memory = PhysMem::new(cx, 4 << 30);
        let tables = (0..tables).map(|_| memory.alloc_table(0).expect("4 GiB are enough")).collect();
        Simulated(memory, tables)
    }
    fn set(&mut self, table: Pfn, index: usize, value: u64) {
        self.0.table_word(table, index).store(value, Ordering::Release);
    }
    fn table(&self, n: u64) -> Pfn {
        self.1[n as usize]
    }
}
