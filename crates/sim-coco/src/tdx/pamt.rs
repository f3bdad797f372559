//! Metadata of physical pages (PAMT): what each page of the TDMRs is, and whose.
//!
//! A block of 1 GiB has an entry for itself, 512 for its 2 MiB pages, and one for each 4 KiB page. What was never touched has no entry here and is free,
//! or reserved where the TDMR says so.

use super::config::TdxConfig;
use super::lock::{Held, Lock, LockId, Mode};
use super::machine::State;
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::types::{Hkid, Hpa, PageSize};
use sim_kernel::{PAGE_SHIFT, Pfn};
use std::collections::BTreeMap;
use std::fmt;

/// Frames of a block of 1 GiB.
pub(super) const BLOCK: u64 = PageSize::Size1G.pages();
/// Frames whose metadata one call of TDMR.INIT initialises.
pub(super) const INIT_STEP: u64 = 1024;

/// What a page is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum PageType {
    /// PT_NDA: not directly assigned, free at this size.
    #[default]
    Nda = 0,
    /// PT_RSVD: never assignable.
    Rsvd = 1,
    /// PT_PAMT: a 2 MiB entry whose 4 KiB entries are in pages that the host gave (module 2.0).
    Pamt = 2,
    /// PT_REG: memory of a TD.
    Reg = 3,
    /// PT_TDR: the root of a TD.
    Tdr = 4,
    /// PT_TDCX: a page of TDCS or TDVPS.
    Tdcx = 5,
    /// PT_TDVPR: the root of a vCPU.
    Tdvpr = 6,
    /// PT_EPT: a page of a Secure EPT.
    Ept = 8,
}

impl PageType {
    /// All types that a page can have.
    pub const ALL: [PageType; 8] = [
        PageType::Nda,
        PageType::Rsvd,
        PageType::Pamt,
        PageType::Reg,
        PageType::Tdr,
        PageType::Tdcx,
        PageType::Tdvpr,
        PageType::Ept,
    ];
}

/// An entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PamtEntry {
    /// What the page is.
    pub page_type: PageType,
    /// The TDR of the owner. Of a free page it means nothing, nor does the epoch.
    pub owner: Option<Pfn>,
    /// Epoch of the TD at the last BLOCK; 0 if there was none.
    pub bepoch: u64,
}

impl PamtEntry {
    /// A page of a TD that was never blocked.
    pub(super) const fn owned(page_type: PageType, tdr: Pfn) -> PamtEntry {
        PamtEntry { page_type, owner: Some(tdr), bepoch: 0 }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    entry: PamtEntry,
    lock: Lock,
}

/// A node of dynamic PAMT: the pages that hold the entries of a 2 MiB page's parts, and how many of those are in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PamtNode {
    /// The pages.
    pub pages: [Pfn; 2],
    /// Used 4 KiB pages of the region.
    pub used: u32,
}

/// A TDMR, and how far it is initialised.
#[derive(Clone, Debug)]
struct Range {
    tdmr: super::config::Tdmr,
    /// First frame that is not.
    next: Pfn,
}

/// All metadata.
pub(super) struct Pamt {
    ranges: Vec<Range>,
    slots: [BTreeMap<Pfn, Slot>; 3],
    /// By the first frame of the 2 MiB page; only with dynamic PAMT.
    pub(super) nodes: BTreeMap<Pfn, PamtNode>,
    pub(super) is_dynamic: bool,
}

/// Where a walk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PamtAt {
    pub(super) size: PageSize,
    pub(super) base: Pfn,
}

impl Pamt {
    pub(super) fn new(config: &TdxConfig) -> Pamt {
        let ranges = config.tdmrs.iter().map(|tdmr| Range { tdmr: tdmr.clone(), next: tdmr.frames.start });
        Pamt {
            ranges: ranges.collect(),
            slots: Default::default(),
            nodes: BTreeMap::new(),
            is_dynamic: config.dynamic_pamt,
        }
    }

    fn range(&self, pfn: Pfn) -> Option<&Range> {
        self.ranges.iter().find(|range| range.tdmr.frames.contains(&pfn))
    }

    /// Whether the frame is in a block of 1 GiB whose metadata is initialised.
    pub(super) fn covers(&self, pfn: Pfn) -> bool {
        self.range(pfn).is_some_and(|range| pfn < PageSize::Size1G.base(range.next))
    }

    /// TDMR.INIT of the TDMR that starts at the frame: the next address, rounded down to 1 GiB; `None` if it is no TDMR.
    pub(super) fn init_next(&mut self, start: Pfn) -> Option<Result<Pfn, ()>> {
        let range = self.ranges.iter_mut().find(|range| range.tdmr.frames.start == start)?;
        if range.next >= range.tdmr.frames.end {
            return Some(Err(()));
        }
        range.next = range.next + INIT_STEP;
        Some(Ok(PageSize::Size1G.base(range.next)))
    }

    /// Initialises everything.
    pub(super) fn init_all(&mut self) {
        for range in &mut self.ranges {
            range.next = range.tdmr.frames.end;
        }
    }

    fn is_reserved(&self, pfn: Pfn) -> bool {
        self.range(pfn).is_some_and(|range| range.tdmr.reserved.iter().any(|reserved| reserved.contains(&pfn)))
    }

    /// The first reserved frame of a page.
    pub(super) fn reserved_in(&self, at: PamtAt) -> Option<Pfn> {
        let end = at.base + at.size.pages();
        let holes = self.range(at.base)?.tdmr.reserved.iter();
        holes.filter(|hole| hole.start < end && at.base < hole.end).map(|hole| hole.start.max(at.base)).min()
    }

    /// What a page is that was never written: only 4 KiB entries are reserved by TDMR.INIT.
    fn initial(&self, size: PageSize, base: Pfn) -> Slot {
        let is_reserved = size == PageSize::Size4K && self.is_reserved(base);
        let page_type = if is_reserved { PageType::Rsvd } else { PageType::Nda };
        Slot { entry: PamtEntry { page_type, ..PamtEntry::default() }, lock: Lock::default() }
    }

    fn slot_mut(&mut self, at: PamtAt) -> &mut Slot {
        let initial = self.initial(at.size, at.base);
        self.slots[at.size as usize].entry(at.base).or_insert(initial)
    }

    pub(super) fn get(&self, at: PamtAt) -> PamtEntry {
        self.slots[at.size as usize].get(&at.base).copied().unwrap_or_else(|| self.initial(at.size, at.base)).entry
    }

    pub(super) fn set(&mut self, at: PamtAt, entry: PamtEntry) {
        let old = std::mem::replace(&mut self.slot_mut(at).entry, entry);
        if at.size == PageSize::Size4K
            && let Some(node) = self.nodes.get_mut(&PageSize::Size2M.base(at.base))
        {
            let counts = |entry: &PamtEntry| u32::from(entry.page_type != PageType::Nda);
            node.used = node.used + counts(&entry) - counts(&old);
        }
    }

    /// The page becomes free. Owner and epoch stay.
    pub(super) fn free(&mut self, at: PamtAt) {
        let entry = self.get(at);
        self.set(at, PamtEntry { page_type: PageType::Nda, ..entry });
    }

    pub(super) fn lock_mut(&mut self, size: PageSize, base: Pfn) -> &mut Lock {
        &mut self.slot_mut(PamtAt { size, base }).lock
    }

    /// Whether nothing of 4 KiB is used in the 2 MiB page: neither assigned, nor reserved, nor metadata.
    pub(super) fn is_range_free(&self, base: Pfn) -> bool {
        let is_free = |i: u64| {
            let at = PamtAt { size: PageSize::Size4K, base: base + i };
            self.get(at).page_type == PageType::Nda && !self.is_node_page(base + i)
        };
        (0..PageSize::Size2M.pages()).all(is_free)
    }

    /// Whether the frame holds metadata that the host gave it for.
    pub(super) fn is_node_page(&self, pfn: Pfn) -> bool {
        self.is_dynamic && self.nodes.values().any(|node| node.pages.contains(&pfn))
    }

    /// The metadata of a frame by the largest page that it is a part of.
    pub(super) fn of_frame(&self, pfn: Pfn) -> (PamtAt, PamtEntry) {
        for size in [PageSize::Size1G, PageSize::Size2M] {
            let at = PamtAt { size, base: size.base(pfn) };
            let entry = self.get(at);
            if !matches!(entry.page_type, PageType::Nda | PageType::Pamt) {
                return (at, entry);
            }
        }
        let at = PamtAt { size: PageSize::Size4K, base: pfn };
        (at, self.get(at))
    }

    /// Every entry that was ever written, by size and frame: for checkers.
    pub(super) fn entries(&self) -> impl Iterator<Item = (PamtAt, PamtEntry)> {
        PageSize::ALL.into_iter().flat_map(|size| {
            let slots = self.slots[size as usize].iter();
            slots.map(move |(base, slot)| (PamtAt { size, base: *base }, slot.entry))
        })
    }

    /// Every lock that is held: for checkers.
    pub(super) fn held_locks(&self) -> impl Iterator<Item = (PamtAt, Lock)> {
        PageSize::ALL.into_iter().flat_map(|size| {
            let slots = self.slots[size as usize].iter().filter(|(_, slot)| !slot.lock.is_free());
            slots.map(move |(base, slot)| (PamtAt { size, base: *base }, slot.lock))
        })
    }
}

impl fmt::Debug for Pamt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What was only looked at is as if it had not been.
        let changed = PageSize::ALL.into_iter().flat_map(|size| {
            let slots = self.slots[size as usize].iter();
            slots
                .filter(move |(base, slot)| !slot.lock.is_free() || slot.entry != self.initial(size, **base).entry)
                .map(move |(base, slot)| (size, base, slot))
        });
        let changed: Vec<_> = changed.collect();
        f.debug_struct("Pamt")
            .field("ranges", &self.ranges)
            .field("changed", &changed)
            .field("nodes", &self.nodes)
            .finish()
    }
}

impl State {
    /// The frame of a 4 KiB page operand: aligned, KeyID 0, in the physical address space.
    pub(super) fn page_operand(&self, page: Hpa, operand: OperandId) -> Seamcall<Pfn> {
        if !page.is_page_aligned() || page.0 >> self.config.keyid_shift != 0 {
            return Err(SeamFail::new(StatusName::OperandInvalid, operand));
        }
        Ok(Pfn(page.0 >> PAGE_SHIFT))
    }

    /// An address in memory of the host, which the module reads: aligned, and not through a private KeyID.
    pub(super) fn shared_operand(&self, at: Hpa, alignment: u64, operand: OperandId) -> Seamcall<Hpa> {
        let invalid = SeamFail::new(StatusName::OperandInvalid, operand);
        let keyid = at.0 >> self.config.keyid_shift;
        let is_private = u16::try_from(keyid).is_ok_and(|keyid| self.config.is_private(Hkid(keyid)));
        if !at.0.is_multiple_of(alignment) || keyid >= u64::from(self.config.hkids.end) || is_private {
            return Err(invalid);
        }
        let plain = Hpa(at.0 & ((1 << self.config.keyid_shift) - 1));
        // Beyond memory nothing answers.
        if self.memory.has_frame(Pfn(plain.0 >> PAGE_SHIFT)) { Ok(plain) } else { Err(invalid) }
    }

    /// Whether a page can be had: it is memory, or at least the metadata says that it is not.
    fn exists(&self, pfn: Pfn, size: PageSize) -> bool {
        let is_reserved = self.pamt.get(PamtAt { size: PageSize::Size4K, base: pfn }).page_type == PageType::Rsvd;
        is_reserved || self.memory.has_frame(pfn) && self.memory.has_frame(pfn + (size.pages() - 1))
    }

    /// The walk of the metadata for a page operand, which locks what it passes shared and where it ends in `mode`.
    pub(super) fn pamt_walk(
        &mut self,
        held: &mut Held<'_>,
        pfn: Pfn,
        size: PageSize,
        mode: Mode,
        operand: OperandId,
    ) -> Seamcall<PamtAt> {
        if !self.pamt.covers(pfn) {
            return Err(SeamFail::new(StatusName::OperandAddrRangeError, operand));
        }
        for step in [PageSize::Size1G, PageSize::Size2M, PageSize::Size4K] {
            let at = PamtAt { size: step, base: step.base(pfn) };
            let page_type = self.pamt.get(at).page_type;
            let goes_on = match step {
                PageSize::Size2M if self.pamt.is_dynamic => page_type == PageType::Pamt,
                PageSize::Size4K => false,
                _ => page_type == PageType::Nda,
            };
            let ends = step == size || !goes_on;
            let mode = if ends { mode } else { Mode::Shared };
            self.take(held, LockId::Pamt(step, at.base), mode)
                .map_err(|_| SeamFail::new(StatusName::OperandBusy, operand))?;
            if ends {
                return Ok(at);
            }
        }
        unreachable!("the walk ends at 4 KiB")
    }

    /// A page that must be of a type and size, with its lock.
    pub(super) fn lock_page(
        &mut self,
        held: &mut Held<'_>,
        page: Hpa,
        expected: PageType,
        mode: Mode,
        operand: OperandId,
    ) -> Seamcall<PamtAt> {
        let pfn = self.page_operand(page, operand)?;
        let at = self.pamt_walk(held, pfn, PageSize::Size4K, mode, operand)?;
        self.check_page_type(at, PageSize::Size4K, expected, operand)?;
        Ok(at)
    }

    fn check_page_type(&self, at: PamtAt, size: PageSize, expected: PageType, operand: OperandId) -> Seamcall<()> {
        let entry = self.pamt.get(at);
        if at.size == size && entry.page_type == expected {
            return Ok(());
        }
        let lacks_node = self.pamt.is_dynamic
            && at.size == PageSize::Size2M
            && size == PageSize::Size4K
            && (entry.page_type, expected) == (PageType::Nda, PageType::Nda);
        let name = if lacks_node { StatusName::MissingPamtPagePair } else { StatusName::PageMetadataIncorrect };
        Err(SeamFail::new(name, operand))
    }

    /// A free page that a leaf is to take, with its lock: steps of the order of checks that all such leaves share.
    pub(super) fn new_page(
        &mut self,
        held: &mut Held<'_>,
        page: Hpa,
        size: PageSize,
        operand: OperandId,
    ) -> Seamcall<PamtAt> {
        let pfn = self.page_operand(page, operand)?;
        if size.base(pfn) != pfn {
            return Err(SeamFail::new(StatusName::OperandInvalid, operand));
        }
        if !self.exists(pfn, size) {
            return Err(SeamFail::new(StatusName::OperandAddrRangeError, operand));
        }
        let at = self.pamt_walk(held, pfn, size, Mode::Exclusive, operand)?;
        if !self.is_off(super::mutants::NDA) {
            self.check_page_type(at, size, PageType::Nda, operand)?;
        }
        // What holds metadata is free as far as its entry says.
        let is_used = match size {
            PageSize::Size4K => self.pamt.is_node_page(pfn),
            PageSize::Size2M => !self.is_off(super::mutants::RANGE_FREE) && !self.pamt.is_range_free(pfn),
            PageSize::Size1G => true,
        };
        if is_used {
            return Err(SeamFail::new(StatusName::PageMetadataIncorrect, operand));
        }
        Ok(PamtAt { size, base: pfn })
    }

    /// The lock of a page that the module knows is in use, in one step without a walk.
    pub(super) fn lock_known_page(
        &mut self,
        held: &mut Held<'_>,
        at: PamtAt,
        mode: Mode,
        operand: OperandId,
    ) -> Seamcall<()> {
        self.take(held, LockId::Pamt(at.size, at.base), mode)
            .map_err(|_| SeamFail::new(StatusName::OperandBusy, operand))
    }
}

/// Frames of a block, for what walks TDMRs.
pub(super) const fn is_block_aligned(pfn: Pfn) -> bool {
    pfn.0 & (BLOCK - 1) == 0
}
