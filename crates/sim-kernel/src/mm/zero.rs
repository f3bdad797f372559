//! The shared zero pages (`ZERO_PAGE`, and the huge zero page of `mm/huge_memory.c`).
//!
//! One frame and one aligned block of 512 frames that every process maps read-only where it read memory that nobody wrote yet.
//! They belong to the host's memory, are marked [`FrameFlags::RESERVED`], and stay allocated once they exist.
//!
//! Simplified: the kernel frees the huge zero page when no process uses it.

use super::phys::{FrameFlags, PhysMem};
use crate::{Errno, PAGES_PER_PMD, Pfn};

/// The zero pages of one host; each is allocated when it is first needed.
#[derive(Debug, Default)]
pub(super) struct ZeroPages {
    small: parking_lot::Mutex<Option<Pfn>>,
    huge: parking_lot::Mutex<Option<Pfn>>,
}

impl PhysMem {
    /// The zero page.
    ///
    /// # Errors
    /// `ENOMEM` if it does not exist yet and all memory is in use.
    pub fn zero_page(&self) -> Result<Pfn, Errno> {
        let mut small = self.zero_pages().small.lock();
        if let Some(pfn) = *small {
            return Ok(pfn);
        }
        let pfn = self.alloc_zeroed()?;
        self.set_flags(pfn, FrameFlags::RESERVED | FrameFlags::UPTODATE);
        *small = Some(pfn);
        Ok(pfn)
    }

    /// The first frame of the huge zero page.
    ///
    /// # Errors
    /// `ENOMEM` if it does not exist yet and no huge page is left.
    pub fn huge_zero_page(&self) -> Result<Pfn, Errno> {
        let mut huge = self.zero_pages().huge.lock();
        if let Some(base) = *huge {
            return Ok(base);
        }
        let base = self.alloc_huge_zeroed()?;
        for i in 0..PAGES_PER_PMD {
            self.set_flags(base + i, FrameFlags::RESERVED | FrameFlags::UPTODATE);
        }
        *huge = Some(base);
        Ok(base)
    }

    /// Frames that the zero pages and what the kernel [keeps](PhysMem::keep) occupy; what remains in use when every process and file is gone.
    pub fn reserved_frames(&self) -> u64 {
        let zero = self.zero_pages();
        let pages = u64::from(zero.small.lock().is_some()) + zero.huge.lock().map_or(0, |_| PAGES_PER_PMD);
        pages + self.kept_frames()
    }
}
