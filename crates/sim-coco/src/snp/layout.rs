//! Where the RMP lies in memory, and which frames it has entries for: one table, or segments behind a table of their own.
//!
//! The entries themselves are not kept in the frames that the table occupies (the model would need its 16 bytes for every page of the
//! host); what the place decides is coverage, and that the table's own pages belong to the firmware.

use super::types::Spa;
use sim_kernel::{PAGE_SHIFT, Pfn};

/// Bytes of bookkeeping in front of the entries.
const BOOKKEEPING_BYTES: u64 = 0x4000;
/// Bytes of an entry.
const ENTRY_BYTES: u64 = 16;
/// Entries of the segment table.
const SEGMENTS_MAX: usize = 512;
/// Address bits of the MSRs RMP_BASE and RMP_END.
const MSR_ADDRESS: u64 = ((1 << 52) - 1) & !0x1fff;
/// Bytes of the bookkeeping and the segment table.
const SEGMENTED_HEADER_BYTES: u64 = BOOKKEEPING_BYTES + 0x1000;
/// Frames that the model can number.
const PAGES_MAX: u64 = 1 << 31;
/// log2 of bytes in a GiB.
const GIB_SHIFT: u32 = 30;

/// Why SNP cannot be enabled with such an RMP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RmpUnusable {
    /// RMP_BASE or RMP_END has no address, or the table ends before it begins.
    #[error("no memory is reserved for the RMP")]
    NotReserved,
    /// The table has too few entries for the machine's memory and itself.
    #[error("the RMP needs {needed:#x} bytes and has {size:#x}")]
    TooSmall {
        /// Bytes that it would need.
        needed: u64,
        /// Bytes that it has.
        size: u64,
    },
    /// The segments have a size that the processor does not support.
    #[error("segments of 2^{shift} bytes are not supported")]
    SegmentSize {
        /// log2 of their bytes.
        shift: u32,
    },
    /// A segment, or the memory above the last one, lies where the table does not reach.
    #[error("memory at {at} has no entry")]
    SegmentDoesNotFit {
        /// The first address without an entry.
        at: Spa,
    },
    /// More memory than the model numbers: 8 TiB.
    #[error("the RMP covers more memory than the simulator numbers")]
    TooLarge,
}

/// One entry of the RMP segment table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RstEntry(pub u64);

impl RstEntry {
    /// A segment at `base`, which is 1 MiB aligned, that maps so many GiB.
    pub const fn new(base: Spa, mapped_gib: u32) -> RstEntry {
        RstEntry(base.0 & 0xf_ffff_fff0_0000 | (mapped_gib as u64 & 0xf_ffff))
    }

    const fn base(self) -> Spa {
        Spa(self.0 & 0xf_ffff_fff0_0000)
    }

    const fn mapped_bytes(self) -> u64 {
        (self.0 & 0xf_ffff) << GIB_SHIFT
    }
}

/// What RMP_BASE, RMP_END, RMP_CFG and CPUID 8000_0025 say of a segmented RMP.
#[derive(Clone, Debug)]
pub struct SegmentedRmp {
    /// RMP_BASE.
    pub base: Spa,
    /// RMP_END, which should be 0.
    pub end: Spa,
    /// log2 of bytes that a segment covers (RMP_CFG 13:8).
    pub segment_shift: u32,
    /// Smallest and largest shift that the processor supports.
    pub shift_bounds: (u32, u32),
    /// Most segments, where the number of cached ones is a hard limit.
    pub segments_max: Option<usize>,
    /// The segment table, from segment 0 on.
    pub table: Vec<RstEntry>,
}

/// Frames from `start` up to `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Frames {
    start: u64,
    end: u64,
}

impl Frames {
    /// Whole frames around these bytes.
    fn around(start: Spa, bytes: u64) -> Frames {
        Frames { start: start.0 >> PAGE_SHIFT, end: (start.0 + bytes).div_ceil(1 << PAGE_SHIFT) }
    }

    fn contains(self, pfn: Pfn) -> bool {
        (self.start..self.end).contains(&pfn.0)
    }
}

/// Coverage and place of an RMP that can be used.
#[derive(Clone, Debug)]
pub struct RmpLayout {
    /// First entry of each segment, and frames that have one; a contiguous RMP is one segment.
    segments: Vec<(Spa, u64)>,
    /// log2 of frames in a segment.
    segment_pages_shift: u32,
    /// What the table occupies.
    own: Vec<Frames>,
    warns_of_end: bool,
}

impl RmpLayout {
    /// A contiguous RMP between RMP_BASE and RMP_END (the last byte), on a machine with so many frames.
    ///
    /// # Errors
    /// If Linux would not enable SNP with it.
    ///
    /// ```
    /// use sim_coco::snp::{RmpLayout, Spa};
    /// use sim_kernel::Pfn;
    /// let layout = RmpLayout::contiguous(Spa(0x10_0000), Spa(0x110_3fff), 1 << 20).unwrap();
    /// assert_eq!(layout.entry_address(Pfn(0)), Some(Spa(0x10_4000)));
    /// assert_eq!(layout.entry_address(Pfn(1 << 20)), None);
    /// ```
    pub fn contiguous(base: Spa, end: Spa, ram_pages: u64) -> Result<RmpLayout, RmpUnusable> {
        if base.0 & MSR_ADDRESS == 0 || end.0 & MSR_ADDRESS == 0 || base > end {
            return Err(RmpUnusable::NotReserved);
        }
        let size = end.0 - base.0 + 1;
        let own = Frames::around(base, size);
        let needed = ram_pages.max(own.end) * ENTRY_BYTES + BOOKKEEPING_BYTES;
        if needed > size {
            return Err(RmpUnusable::TooSmall { needed, size });
        }
        let pages = (size - BOOKKEEPING_BYTES) / ENTRY_BYTES;
        if pages > PAGES_MAX {
            return Err(RmpUnusable::TooLarge);
        }
        let segments = vec![(Spa(base.0 + BOOKKEEPING_BYTES), pages)];
        Ok(RmpLayout { segments, segment_pages_shift: 63, own: vec![own], warns_of_end: false })
    }

    /// The contiguous RMP that firmware would place directly above so much memory, and which covers both.
    ///
    /// # Panics
    /// With more than 8 TiB.
    pub fn above(ram_pages: u64) -> RmpLayout {
        let mib = |bytes: u64| bytes.next_multiple_of(1 << 20);
        let base = mib(ram_pages.max(1) << PAGE_SHIFT);
        // Its own pages need entries too: a 256th of what it covers, and a little more.
        let size = mib(base / 255 + BOOKKEEPING_BYTES + (2 << 20));
        RmpLayout::contiguous(Spa(base), Spa(base + size - 1), ram_pages).expect("a host has less than 8 TiB")
    }

    /// A segmented RMP on a machine whose memory ends with frame `ram_pages`.
    ///
    /// # Errors
    /// If Linux would not enable SNP with it.
    pub fn segmented(rmp: &SegmentedRmp, ram_pages: u64) -> Result<RmpLayout, RmpUnusable> {
        let shift = rmp.segment_shift;
        if rmp.base.0 & MSR_ADDRESS == 0 {
            return Err(RmpUnusable::NotReserved);
        }
        if !(rmp.shift_bounds.0..=rmp.shift_bounds.1).contains(&shift) || !(GIB_SHIFT..52).contains(&shift) {
            return Err(RmpUnusable::SegmentSize { shift });
        }
        let limit = rmp.segments_max.unwrap_or(SEGMENTS_MAX).min(SEGMENTS_MAX);
        let mut own = vec![Frames::around(rmp.base, SEGMENTED_HEADER_BYTES)];
        let mut segments = Vec::new();
        for entry in rmp.table.iter().take(limit) {
            let pages = entry.mapped_bytes().min(1 << shift) >> PAGE_SHIFT;
            segments.push((entry.base(), pages));
            if pages > 0 {
                own.push(Frames::around(entry.base(), pages * ENTRY_BYTES));
            }
        }
        let layout =
            RmpLayout { segments, segment_pages_shift: shift - PAGE_SHIFT, own, warns_of_end: rmp.end != Spa(0) };
        if let Some(last) = ram_pages.checked_sub(1)
            && !layout.covers(Pfn(last))
        {
            return Err(RmpUnusable::SegmentDoesNotFit { at: Spa::of(Pfn(last)) });
        }
        let used = layout.segments.iter().rposition(|(_, pages)| *pages > 0).map_or(0, |last| last as u64 + 1);
        let covered = used << layout.segment_pages_shift;
        if covered > PAGES_MAX { Err(RmpUnusable::TooLarge) } else { Ok(layout) }
    }

    /// Where the entry of a frame lies; `None` if it has none.
    #[inline]
    pub fn entry_address(&self, pfn: Pfn) -> Option<Spa> {
        let index = (pfn.0 >> self.segment_pages_shift) as usize;
        let (first, pages) = *self.segments.get(index)?;
        let within = pfn.0 & ((1 << self.segment_pages_shift) - 1);
        (within < pages).then(|| first + within * ENTRY_BYTES)
    }

    /// Whether the RMP has an entry for a frame.
    #[inline]
    pub fn covers(&self, pfn: Pfn) -> bool {
        self.entry_address(pfn).is_some()
    }

    /// Whether the frame holds a part of the RMP.
    #[inline]
    pub fn is_rmp_page(&self, pfn: Pfn) -> bool {
        self.own.iter().any(|frames| frames.contains(pfn))
    }

    /// Whether RMP_END is set although the RMP is segmented, of which Linux warns.
    pub fn warns_of_end(&self) -> bool {
        self.warns_of_end
    }
}
