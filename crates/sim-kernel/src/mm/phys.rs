//! Host physical memory: frames, their reference counts and flags, and their bytes (`struct page`, `mm/page_alloc.c`).
//!
//! A frame costs 24 bytes. Its contents cost nothing until somebody writes: a frame is *undefined* (just allocated: reads give a
//! recognisable garbage pattern, so that a forgotten zeroing is seen as data), *zero*, or has a buffer of 4 KiB. Frames come one by
//! one or as 512 aligned ones (a transparent huge page).
//!
//! Simplified: no zones but one for each NUMA node, no buddy merging (512 single frames never become a huge page again), no reclaim. The
//! allocator itself is not raced: taking and giving back a frame is part of the caller's step.
//!
//! Tables, of processes and of stage 2, may take a 128th of the frames ([`PhysMem::tables_max`]). The kernel has no such limit: it
//! goes on until memory is used up and then kills somebody. Here work must end: a table maps 2 MiB even where all of it is
//! one zero page, so that without a limit a single call could fill a terabyte, page by page.
//!
//! Two counts exist for checking only: `mapcount` (host page-table entries that name the frame) and `sptes` (stage-2 entries that
//! do). The kernel holds no references for the latter; here a frame that is freed while one is left fails an assertion (INV-203).

mod contents;
mod guard;
mod names;
mod poison;

pub(in crate::mm) use guard::User;
pub use guard::{HostStage2, MayWrite, Through};

use super::mempolicy::Placement;
use super::zero::ZeroPages;
use crate::faults::{Faults, Nth};
use crate::sched::{Access, ObjId};
use crate::sync::{PageLocks, Rmw};
use crate::{Arena, Cx, Errno, PAGES_PER_PMD, Pfn, Pgoff};
use bytemuck::Zeroable;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Frames for each one that may be a table.
const FRAMES_PER_TABLE: u64 = 128;
/// Tables that a small host may have, as long as it has as many frames.
const TABLES_ALWAYS: u64 = 64;

/// 64-bit words in a page.
pub const WORDS_PER_PAGE: usize = 512;

bitflags::bitflags! {
    /// State bits of a frame (`enum pageflags`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct FrameFlags: u64 {
        /// `PG_locked`: the folio lock.
        const LOCKED = 1 << 0;
        /// `PG_uptodate`: the contents are defined.
        const UPTODATE = 1 << 1;
        /// `PG_hwpoison`: the memory is broken.
        const HWPOISON = 1 << 2;
        /// In use; clear while the frame is in the allocator.
        const ALLOCATED = 1 << 3;
        /// Holds a page table.
        const TABLE = 1 << 4;
        /// `PG_reserved`: one of the shared zero pages; its mappings are not counted and it is never freed.
        const RESERVED = 1 << 5;
        /// `PG_idle`: nobody is known to have used the page since user space said that it is idle.
        const IDLE = 1 << 6;
        /// One of the 512 pages of a large folio (`PG_head` and its tails): all of them have one lock, the first one's.
        const LARGE = 1 << 7;
    }
}

/// Bits of the flag word below the page index.
const INDEX_SHIFT: u32 = 12;
/// Contents: nothing known.
const UNDEFINED: u32 = 0;
/// Contents: all zero.
const ZERO: u32 = 1;
/// Contents: buffer number `content - FIRST_BUFFER`.
const FIRST_BUFFER: u32 = 2;

/// Metadata of one frame.
#[derive(Zeroable)]
#[repr(C)]
struct Frame {
    /// [`FrameFlags`] below bit 12, the page index in its file above.
    flags_index: AtomicU64,
    refcount: AtomicU32,
    /// Number of the address space that caches the frame; 0 = none.
    mapping: AtomicU32,
    /// Two counts of 16 bits: host page-table entries that name the frame, and above them the stage-2 entries that do. One that reaches
    /// [`COUNT_MAX`] stays there, as the kernel's reference counts do, and is not believed any more.
    named: AtomicU32,
    content: AtomicU32,
}

impl Frame {
    #[inline]
    fn is_reserved(&self) -> bool {
        self.flags_index.load(Ordering::Acquire) & FrameFlags::RESERVED.bits() != 0
    }
}

/// Where a count of names ends.
const COUNT_MAX: u32 = 0xffff;
/// Shift of the host's count.
const MAPCOUNT: u32 = 0;
/// Shift of the count of stage-2 entries.
const SPTES: u32 = 16;

/// The bytes of a frame.
#[derive(Zeroable)]
#[repr(C)]
struct PageBytes {
    words: [AtomicU64; WORDS_PER_PAGE],
    /// While the buffer is free: its words are all `fill`, so a new table need not write them.
    is_filled: AtomicU64,
    fill: AtomicU64,
}

impl PageBytes {
    /// A buffer that was just allocated: makes every word `fill`.
    fn init(&self, fill: u64) {
        let is_filled = self.is_filled.load(Ordering::Relaxed) != 0 && self.fill.load(Ordering::Relaxed) == fill;
        self.is_filled.store(0, Ordering::Relaxed);
        if !is_filled {
            for word in &self.words {
                word.store(fill, Ordering::Relaxed);
            }
        }
    }
}

/// What the allocator hands out from.
#[derive(Default)]
struct Zone {
    single: Vec<u32>,
    huge: Vec<u32>,
    /// Unused rest of the block that single frames are cut from; its frames have no metadata yet.
    cut: std::ops::Range<u32>,
    next_block: u32,
    used: u64,
}

/// All memory of one simulated host.
///
/// ```
/// use sim_kernel::{mm::PhysMem, sched::Sim};
/// Sim::sequential().solo(|cx| {
///     let memory = PhysMem::new(cx, 1 << 20);
///     let pfn = memory.alloc_zeroed().unwrap();
///     memory.write_u32(cx, pfn, 8, 7);
///     assert_eq!(memory.read_u32(cx, pfn, 8), 7);
///     memory.put(cx, pfn);
///     assert_eq!(memory.used_frames(), 0);
/// });
/// ```
pub struct PhysMem {
    frames: Arena<Frame, 6>,
    /// How often each frame was allocated, wrapping: tells a page from one that has the same frame later. For checkers, so only in simulations.
    generations: Option<Arena<AtomicU32, 6>>,
    contents: Arena<PageBytes, 3>,
    /// One for each node.
    zones: Box<[parking_lot::Mutex<Zone>]>,
    limit: u64,
    rmw: Rmw,
    /// Tables in use: frames with [`FrameFlags::TABLE`], and the page tables of processes, which are no frames.
    tables: AtomicU64,
    locks: PageLocks,
    counts: ObjId,
    bytes: ObjId,
    zero_pages: ZeroPages,
    /// Frames that broke, for checking.
    broken: parking_lot::Mutex<Vec<Pfn>>,
    failing_frame: Nth,
    failing_table: Nth,
    write_guard: guard::WriteGuard,
    stage2: guard::Stage2,
    /// Frames that the kernel keeps for good.
    kept: AtomicU64,
}

impl PhysMem {
    /// A host with `bytes` of memory, rounded down to pages. Nothing is allocated for it yet.
    pub fn new(cx: &Cx<'_>, bytes: u64) -> PhysMem {
        PhysMem::with_nodes(cx, bytes, 1)
    }

    /// A host whose memory is on so many NUMA nodes, the same on each. Blocks of 512 frames lie on the nodes in turn, so that a host with little in
    /// use needs little metadata.
    ///
    /// # Panics
    /// If there are no nodes, or more than 64.
    pub fn with_nodes(cx: &Cx<'_>, bytes: u64, nodes: u32) -> PhysMem {
        assert!((1..=64).contains(&nodes), "{nodes} nodes; a host has 1 to 64");
        let zone = |node: u32| Zone { next_block: node * PAGES_PER_PMD as u32, ..Zone::default() };
        PhysMem {
            frames: Arena::recycled(cx),
            generations: (!cx.is_native()).then(|| Arena::recycled(cx)),
            contents: Arena::recycled_dirty(cx),
            zones: (0..nodes).map(|node| parking_lot::Mutex::new(zone(node))).collect(),
            limit: bytes / crate::PAGE_SIZE,
            rmw: Rmw::new(cx),
            tables: AtomicU64::new(0),
            locks: PageLocks::new(cx, "folio_lock"),
            counts: cx.new_object("folio_ref"),
            bytes: cx.new_object("memory"),
            zero_pages: ZeroPages::default(),
            broken: Default::default(),
            failing_frame: Nth::default(),
            failing_table: Nth::default(),
            write_guard: guard::WriteGuard::default(),
            stage2: guard::Stage2::default(),
            kept: AtomicU64::new(0),
        }
    }

    /// From now on, allocations fail as the faults say.
    pub fn inject(&self, faults: &Faults) {
        self.failing_frame.arm(faults.frame);
        self.failing_table.arm(faults.table);
    }

    pub(super) fn zero_pages(&self) -> &ZeroPages {
        &self.zero_pages
    }

    #[inline]
    fn frame(&self, pfn: Pfn) -> &Frame {
        self.frames.get(pfn.0 as u32)
    }

    /// Frames in use.
    pub fn used_frames(&self) -> u64 {
        self.zones.iter().map(|zone| zone.lock().used).sum()
    }

    /// NUMA nodes.
    pub fn nodes(&self) -> u32 {
        self.zones.len() as u32
    }

    /// The node on which a frame lies.
    pub fn node_of(&self, pfn: Pfn) -> u32 {
        (pfn.0 / PAGES_PER_PMD % self.zones.len() as u64) as u32
    }

    fn zone_of(&self, pfn: Pfn) -> &parking_lot::Mutex<Zone> {
        &self.zones[self.node_of(pfn) as usize]
    }

    /// Frames of a node.
    fn limit_of(&self, node: u32) -> u64 {
        let nodes = u64::from(self.nodes());
        self.limit / nodes + u64::from(u64::from(node) < self.limit % nodes)
    }

    /// The nodes to try, in order.
    fn order(&self, placement: Placement) -> impl Iterator<Item = u32> + use<> {
        let nodes = self.nodes();
        let order = (0..nodes).map(move |step| (placement.first + step) % nodes);
        order.filter(move |node| placement.allowed & (1 << node) != 0)
    }

    /// Frames that the host has.
    pub fn total_frames(&self) -> u64 {
        self.limit
    }

    /// Frames that can still be allocated.
    pub fn free_frames(&self) -> u64 {
        self.limit - self.used_frames()
    }

    /// How many tables there may be, of processes and of stage 2 together: enough to map four times the host's memory in small
    /// pages.
    pub fn tables_max(&self) -> u64 {
        (self.limit / FRAMES_PER_TABLE).max(self.limit.min(TABLES_ALWAYS))
    }

    /// Tables in use.
    pub fn tables(&self) -> u64 {
        self.tables.load(Ordering::Relaxed)
    }

    /// Counts a process's page table, for which no frame is taken.
    ///
    /// # Errors
    /// `ENOMEM` if there are [`PhysMem::tables_max`].
    pub(super) fn charge_table(&self) -> Result<(), Errno> {
        if self.failing_table.fires() {
            return Err(Errno::ENOMEM);
        }
        let most = self.tables_max();
        let old = self.rmw.update(&self.tables, |tables| tables + u64::from(tables < most));
        if old < most { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// Counts a page table that was put by earlier (`pgtable_trans_huge_withdraw`), which cannot fail.
    pub(super) fn charge_deposited_table(&self) {
        self.rmw.add(&self.tables, 1);
    }

    /// A table that was counted is gone.
    pub(super) fn uncharge_table(&self) {
        let old = self.rmw.add(&self.tables, u64::MAX);
        assert!(old != 0, "more tables were given back than taken");
    }

    fn new_block(&self, zone: &mut Zone) -> u32 {
        let base = zone.next_block;
        assert!(base < u32::MAX - 65 * PAGES_PER_PMD as u32, "more than 16 TiB of frames");
        zone.next_block += PAGES_PER_PMD as u32 * self.nodes();
        base
    }

    fn init(&self, index: u32, content: u32) {
        let frame = self.frames.get(index);
        debug_assert_eq!(frame.refcount.load(Ordering::Relaxed), 0, "a free frame has no references");
        frame.flags_index.store(FrameFlags::ALLOCATED.bits(), Ordering::Relaxed);
        frame.mapping.store(0, Ordering::Relaxed);
        // A count that went over is forgotten with the page.
        frame.named.store(0, Ordering::Relaxed);
        frame.content.store(content, Ordering::Relaxed);
        if let Some(generations) = &self.generations {
            generations.ensure(index);
            generations.get(index).fetch_add(1, Ordering::Relaxed);
        }
        frame.refcount.store(1, Ordering::Release);
    }

    fn alloc_with(&self, content: u32, placement: Placement) -> Result<Pfn, Errno> {
        if self.failing_frame.fires() {
            return Err(Errno::ENOMEM);
        }
        self.order(placement).find_map(|node| self.alloc_on(node, content)).ok_or(Errno::ENOMEM)
    }

    fn alloc_on(&self, node: u32, content: u32) -> Option<Pfn> {
        let mut zone = self.zones[node as usize].lock();
        if zone.used >= self.limit_of(node) {
            return None;
        }
        let index = match zone.single.pop() {
            Some(index) => index,
            None => {
                if zone.cut.is_empty() {
                    let base = self.new_block(&mut zone);
                    // Frame 0 stays unused, so that a zero frame number is never a valid one.
                    zone.cut = base.max(1)..base + PAGES_PER_PMD as u32;
                }
                let index = zone.cut.next().expect("the block is not empty");
                self.frames.ensure(index);
                index
            }
        };
        zone.used += 1;
        drop(zone);
        self.init(index, content);
        Some(Pfn(u64::from(index)))
    }

    /// One frame with undefined contents and one reference.
    ///
    /// # Errors
    /// `ENOMEM` if all memory is in use.
    pub fn alloc(&self) -> Result<Pfn, Errno> {
        self.alloc_in(Placement::LOCAL)
    }

    /// As [`PhysMem::alloc`], from these nodes.
    ///
    /// # Errors
    /// `ENOMEM` if all memory of them is in use.
    pub fn alloc_in(&self, placement: Placement) -> Result<Pfn, Errno> {
        self.alloc_with(UNDEFINED, placement)
    }

    /// One zeroed frame with one reference.
    ///
    /// # Errors
    /// `ENOMEM` if all memory is in use.
    pub fn alloc_zeroed(&self) -> Result<Pfn, Errno> {
        self.alloc_with(ZERO, Placement::LOCAL).inspect(|pfn| self.assert_may_write(*pfn))
    }

    /// 512 zeroed frames, aligned to 512, each with one reference: a transparent huge page.
    ///
    /// # Errors
    /// `ENOMEM` if fewer frames are left.
    pub fn alloc_huge_zeroed(&self) -> Result<Pfn, Errno> {
        self.alloc_huge_with(ZERO, Placement::LOCAL)
    }

    /// A large folio of a page cache: 512 frames, aligned to 512, with undefined contents and one reference each, under one lock.
    ///
    /// # Errors
    /// `ENOMEM` if fewer frames are left on these nodes.
    pub fn alloc_large_in(&self, placement: Placement) -> Result<Pfn, Errno> {
        // A machine that protects frames has a table of them, which ends where memory does.
        let is_in_memory = |node: &u32| {
            let zone = self.zones[*node as usize].lock();
            let next = u64::from(zone.next_block.max(PAGES_PER_PMD as u32));
            !zone.huge.is_empty() || next + PAGES_PER_PMD <= self.limit
        };
        if !self.order(placement).any(|node| is_in_memory(&node)) {
            return Err(Errno::ENOMEM);
        }
        let head = self.alloc_huge_with(UNDEFINED, placement)?;
        (0..PAGES_PER_PMD).for_each(|i| self.set_flags(head + i, FrameFlags::LARGE));
        Ok(head)
    }

    fn alloc_huge_with(&self, content: u32, placement: Placement) -> Result<Pfn, Errno> {
        if self.failing_frame.fires() {
            return Err(Errno::ENOMEM);
        }
        let has_room = |node: &u32| self.zones[*node as usize].lock().used + PAGES_PER_PMD <= self.limit_of(*node);
        let node = self.order(placement).find(has_room).ok_or(Errno::ENOMEM)?;
        let mut zone = self.zones[node as usize].lock();
        let base = match zone.huge.pop() {
            Some(base) => base,
            None => {
                // Block 0 is cut into single frames (its frame 0 is never used).
                if zone.next_block == 0 {
                    let first = self.new_block(&mut zone);
                    zone.cut = first + 1..first + PAGES_PER_PMD as u32;
                }
                let base = self.new_block(&mut zone);
                // Frame numbers of a block may lie in two buckets.
                self.frames.ensure(base);
                self.frames.ensure(base + PAGES_PER_PMD as u32 - 1);
                base
            }
        };
        zone.used += PAGES_PER_PMD;
        drop(zone);
        for index in base..base + PAGES_PER_PMD as u32 {
            self.init(index, content);
        }
        Ok(Pfn(u64::from(base)))
    }

    /// One frame for a page table, every word set to `fill`, with one reference.
    ///
    /// # Errors
    /// `ENOMEM` if all memory is in use, or there are [`PhysMem::tables_max`] tables.
    pub fn alloc_table(&self, fill: u64) -> Result<Pfn, Errno> {
        self.charge_table()?;
        let buffer = self.contents.alloc();
        self.contents.get(buffer).init(fill);
        let pfn = self.alloc_with(FIRST_BUFFER + buffer, Placement::LOCAL).inspect_err(|_| {
            self.contents.free(buffer);
            self.uncharge_table();
        })?;
        self.set_flags(pfn, FrameFlags::TABLE);
        Ok(pfn)
    }

    /// The words of a page table, without a scheduling point of their own: callers wrap one in a [`Word`](crate::sync::Word).
    ///
    /// # Panics
    /// If the frame has no contents.
    #[inline]
    pub fn table(&self, table: Pfn) -> &[AtomicU64; WORDS_PER_PAGE] {
        self.numbered_table(table).1
    }

    /// As [`PhysMem::table`], with the number that [`PhysMem::contents_number`] gives: one look-up for both.
    ///
    /// # Panics
    /// If the frame has no contents.
    #[inline]
    pub fn numbered_table(&self, table: Pfn) -> (u32, &[AtomicU64; WORDS_PER_PAGE]) {
        let content = self.frame(table).content.load(Ordering::Acquire);
        assert!(content >= FIRST_BUFFER, "MMU-INV-005: {table:?} is used as a table, and is none");
        let number = content - FIRST_BUFFER;
        (number, &self.contents.get(number).words)
    }

    /// The owner of a table made every word `fill` again and is about to put it: the next table need not be filled.
    ///
    /// # Panics
    /// If the frame has no contents.
    pub fn set_table_filled(&self, table: Pfn, fill: u64) {
        debug_assert!(
            self.table(table).iter().all(|word| word.load(Ordering::Relaxed) == fill),
            "{table:?} is not filled"
        );
        let content = self.frame(table).content.load(Ordering::Acquire);
        assert!(content >= FIRST_BUFFER, "MMU-INV-005: {table:?} is used as a table, and is none");
        let bytes = self.contents.get(content - FIRST_BUFFER);
        bytes.fill.store(fill, Ordering::Relaxed);
        bytes.is_filled.store(1, Ordering::Relaxed);
    }

    /// The number of a frame's contents: small numbers, no two frames have the same. `None` while it has none of its own.
    #[inline]
    pub fn contents_number(&self, pfn: Pfn) -> Option<u32> {
        let frame = self.frames.get_if_present(pfn.0 as u32)?;
        frame.content.load(Ordering::Acquire).checked_sub(FIRST_BUFFER)
    }

    /// As [`PhysMem::table`], one word.
    ///
    /// # Panics
    /// If the frame has no contents.
    #[inline]
    pub fn table_word(&self, table: Pfn, index: usize) -> &AtomicU64 {
        &self.table(table)[index]
    }

    /// One more reference, taken by somebody who already has one.
    ///
    /// # Panics
    /// If the frame is free.
    pub fn get(&self, pfn: Pfn) {
        let old = self.rmw.add(&self.frame(pfn).refcount, 1);
        assert!(old > 0, "INV-105: a reference was taken to {pfn:?}, which is free");
    }

    /// `folio_try_get`: one more reference unless the frame is free.
    #[track_caller]
    #[must_use]
    pub fn try_get(&self, cx: &Cx<'_>, pfn: Pfn) -> bool {
        cx.point(Access::Rmw, self.counts, pfn.0);
        self.count_of_broken_frame(cx, pfn);
        self.rmw.update(&self.frame(pfn).refcount, |n| if n == 0 { 0 } else { n + 1 }) != 0
    }

    /// One reference less; the last one gives the frame back to the allocator.
    ///
    /// # Panics
    /// If nobody held a reference, or the frame is given back while it is locked, in a page cache, or named by a host page-table
    /// entry or a stage-2 entry (INV-105, INV-203).
    #[track_caller]
    pub fn put(&self, cx: &Cx<'_>, pfn: Pfn) {
        cx.point(Access::Rmw, self.counts, pfn.0);
        let has_mutants = cx.has_mutants();
        if !has_mutants {
            self.count_of_broken_frame(cx, pfn);
        }
        if self.drop_reference(pfn) {
            cx.note("page", "freed");
            if has_mutants {
                cx.point_range(Access::Store, self.bytes, pfn.0 * WORDS_PER_PAGE as u64, WORDS_PER_PAGE as u64);
            }
            self.free(pfn);
        }
    }

    /// As [`PhysMem::put`], as part of a step that was already announced.
    pub fn put_unscheduled(&self, pfn: Pfn) {
        if self.drop_reference(pfn) {
            self.free(pfn);
        }
    }

    /// One reference less; true if it was the last.
    fn drop_reference(&self, pfn: Pfn) -> bool {
        let old = self.rmw.add(&self.frame(pfn).refcount, u32::MAX);
        assert!(old > 0, "INV-105: a reference to {pfn:?} was put that nobody held");
        old == 1
    }

    fn free(&self, pfn: Pfn) {
        let frame = self.frame(pfn);
        let flags = self.flags(pfn);
        assert!(!flags.contains(FrameFlags::LOCKED), "INV-105: {pfn:?} is freed while it is locked");
        assert!(self.is_unnamed(pfn, MAPCOUNT), "INV-203: {pfn:?} is freed while a host page table names it");
        assert!(self.is_unnamed(pfn, SPTES), "INV-203: {pfn:?} is freed while a stage-2 entry names it");
        assert_eq!(frame.mapping.load(Ordering::Relaxed), 0, "INV-105: {pfn:?} is freed while a page cache holds it");
        if flags.contains(FrameFlags::TABLE) {
            self.uncharge_table();
        }
        let content = self.rmw.update(&frame.content, |_| UNDEFINED);
        if content >= FIRST_BUFFER {
            self.contents.free(content - FIRST_BUFFER);
        }
        frame.flags_index.store(0, Ordering::Relaxed);
        let mut zone = self.zone_of(pfn).lock();
        zone.used -= 1;
        zone.single.push(pfn.0 as u32);
    }

    /// Gives back the 512 frames of a huge page of which nobody else holds a reference to any part.
    ///
    /// # Panics
    /// As [`PhysMem::put`], or if another reference exists.
    pub fn put_huge(&self, cx: &Cx<'_>, base: Pfn) {
        cx.point_range(Access::Rmw, self.counts, base.0, PAGES_PER_PMD);
        if cx.has_mutants() {
            let words = WORDS_PER_PAGE as u64;
            cx.point_range(Access::Store, self.bytes, base.0 * words, PAGES_PER_PMD * words);
        }
        let exclusive = (0..PAGES_PER_PMD).all(|i| self.refcount(base + i) == 1);
        if !exclusive {
            for i in 0..PAGES_PER_PMD {
                self.put_unscheduled(base + i);
            }
            return;
        }
        for i in 0..PAGES_PER_PMD {
            self.put_unscheduled(base + i);
        }
        let mut zone = self.zone_of(base).lock();
        let keep = zone.single.len() - PAGES_PER_PMD as usize;
        zone.single.truncate(keep);
        zone.huge.push(base.0 as u32);
    }

    /// The reference count, for checkers.
    pub fn refcount(&self, pfn: Pfn) -> u32 {
        self.frame(pfn).refcount.load(Ordering::SeqCst)
    }

    /// The state bits.
    pub fn flags(&self, pfn: Pfn) -> FrameFlags {
        FrameFlags::from_bits_truncate(self.frame(pfn).flags_index.load(Ordering::Acquire))
    }

    /// Sets state bits.
    pub fn set_flags(&self, pfn: Pfn, flags: FrameFlags) {
        let old = self.rmw.update(&self.frame(pfn).flags_index, |word| word | flags.bits());
        if flags.contains(FrameFlags::HWPOISON) && old & FrameFlags::HWPOISON.bits() == 0 {
            self.broken.lock().push(pfn);
        }
    }

    /// The frames that broke, in the order in which they did: for checkers.
    pub fn broken_frames(&self) -> Vec<Pfn> {
        self.broken.lock().clone()
    }

    /// Clears state bits.
    pub fn clear_flags(&self, pfn: Pfn, flags: FrameFlags) {
        self.rmw.update(&self.frame(pfn).flags_index, |word| word & !flags.bits());
    }

    /// Whether the frame is in use.
    pub fn is_allocated(&self, pfn: Pfn) -> bool {
        let index = pfn.0 as u32;
        let zone = self.zone_of(pfn).lock();
        let is_known = index < zone.next_block && !zone.cut.contains(&index);
        drop(zone);
        is_known && self.flags(pfn).contains(FrameFlags::ALLOCATED)
    }

    /// Which allocation of the frame this is: two looks with equal generations saw the same page. For checkers; natively always 0.
    pub fn generation(&self, pfn: Pfn) -> u32 {
        self.generations.as_ref().map_or(0, |generations| generations.get(pfn.0 as u32).load(Ordering::Relaxed))
    }

    /// `page_folio`: the first page of the page's folio, which is the page itself unless it is one of a large folio.
    #[inline]
    pub fn folio(&self, pfn: Pfn) -> Pfn {
        if self.is_large(pfn) { Pfn(pfn.0 & !(PAGES_PER_PMD - 1)) } else { pfn }
    }

    /// `folio_test_large`.
    #[inline]
    pub fn is_large(&self, pfn: Pfn) -> bool {
        self.flags(pfn).contains(FrameFlags::LARGE)
    }

    /// Whether the page's folio is locked, for checkers.
    pub fn is_locked(&self, pfn: Pfn) -> bool {
        self.flags(self.folio(pfn)).contains(FrameFlags::LOCKED)
    }

    /// `folio_lock`: sleeps until the lock of the page's folio is free.
    #[track_caller]
    pub fn lock(&self, cx: &Cx<'_>, pfn: Pfn) {
        loop {
            let folio = self.folio(pfn);
            self.locks.lock(cx, folio.0, &self.frame(folio).flags_index, FrameFlags::LOCKED.bits());
            // Whoever had it may have split the folio: a reference to one of its pages does not keep it together here.
            if self.folio(pfn) == folio {
                return;
            }
            self.unlock(cx, folio);
        }
    }

    /// `folio_trylock`.
    #[track_caller]
    #[must_use]
    pub fn try_lock(&self, cx: &Cx<'_>, pfn: Pfn) -> bool {
        let folio = self.folio(pfn);
        let locked = self.locks.try_lock(cx, folio.0, &self.frame(folio).flags_index, FrameFlags::LOCKED.bits());
        if locked && self.folio(pfn) != folio {
            self.unlock(cx, folio);
            return false;
        }
        locked
    }

    /// `folio_unlock`.
    pub fn unlock(&self, cx: &Cx<'_>, pfn: Pfn) {
        let folio = self.folio(pfn);
        self.locks.unlock(cx, folio.0, &self.frame(folio).flags_index, FrameFlags::LOCKED.bits());
    }

    /// `split_folio`: the page's large folio, which the caller has locked, becomes 512 of one page. The lock that the caller goes on holding is the one of
    /// `pfn`. One step.
    ///
    /// Simplified: never fails. In the kernel, a reference that somebody else holds keeps a folio together.
    ///
    /// # Panics
    /// If the folio is not locked.
    #[track_caller]
    pub fn split_folio(&self, cx: &Cx<'_>, pfn: Pfn) {
        let head = self.folio(pfn);
        cx.point_range(Access::Rmw, self.counts, head.0, PAGES_PER_PMD);
        assert!(self.is_locked(pfn), "INV-105: the folio of {pfn:?} is split while nobody has it locked");
        if pfn != head {
            self.lock_fresh(cx, pfn);
        }
        self.dissolve(head);
        if pfn != head {
            self.unlock(cx, head);
        }
    }

    /// The pages of a large folio are its pages no more.
    pub(crate) fn dissolve(&self, head: Pfn) {
        (0..PAGES_PER_PMD).for_each(|i| self.clear_flags(head + i, FrameFlags::LARGE));
    }

    /// Locks a page that cannot be locked by anybody, as its folio's lock stands for it until now.
    fn lock_fresh(&self, cx: &Cx<'_>, pfn: Pfn) {
        let locked = self.locks.try_lock(cx, pfn.0, &self.frame(pfn).flags_index, FrameFlags::LOCKED.bits());
        assert!(locked, "INV-105: {pfn:?} of a large folio has a lock of its own");
    }

    /// Number of the address space that caches the frame, if any (`folio->mapping`).
    pub fn mapping(&self, pfn: Pfn) -> Option<u32> {
        let mapping = self.frame(pfn).mapping.load(Ordering::Acquire);
        (mapping != 0).then_some(mapping)
    }

    /// The frame's index in its file (`folio->index`); stays when the frame leaves the page cache.
    pub fn index(&self, pfn: Pfn) -> Pgoff {
        Pgoff(self.frame(pfn).flags_index.load(Ordering::Acquire) >> INDEX_SHIFT)
    }

    /// The frame enters the page cache of address space `mapping` at `index`.
    ///
    /// # Panics
    /// If it is in one already (INV-101).
    pub fn set_mapping(&self, pfn: Pfn, mapping: u32, index: Pgoff) {
        let frame = self.frame(pfn);
        assert!(index.0 < 1 << (64 - INDEX_SHIFT), "page index {index} of a file");
        let old = self.rmw.update(&frame.mapping, |_| mapping);
        assert_eq!(old, 0, "INV-101: {pfn:?} enters a second page cache");
        let low = (1 << INDEX_SHIFT) - 1;
        self.rmw.update(&frame.flags_index, |word| (word & low) | (index.0 << INDEX_SHIFT));
    }

    /// The frame leaves the page cache.
    ///
    /// # Panics
    /// If a stage-2 entry still names it (INV-201), or a process's page table (INV-212): unmapped before it is removed.
    pub fn clear_mapping(&self, pfn: Pfn) {
        assert!(self.is_unnamed(pfn, SPTES), "INV-201: {pfn:?} leaves the page cache while a stage-2 entry names it");
        assert!(
            self.is_unnamed(pfn, MAPCOUNT),
            "INV-212: {pfn:?} leaves the page cache while a host page table names it"
        );
        self.frame(pfn).mapping.store(0, Ordering::Release);
    }
}

impl fmt::Debug for PhysMem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PhysMem").field("limit", &self.limit).field("used", &self.used_frames()).finish()
    }
}
