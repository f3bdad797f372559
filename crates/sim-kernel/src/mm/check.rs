//! What checkers look at: the page table of a process, without scheduling points and while others may be in the middle of something.
//!
//! No kernel file; the nearest is `/proc/PID/pagemap`.

use super::mm::Mm;
use super::pgtable::PteFlags;
use crate::{Hva, Pfn};

/// A page that a process maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappedPage {
    /// Where.
    pub hva: Hva,
    /// The frame; of a huge page, that of this address.
    pub pfn: Pfn,
    /// Whether the process may write it now.
    pub writable: bool,
    /// Whether it is a zero page, which belongs to nobody.
    pub zero: bool,
    /// Whether it is the process's own, rather than a file's.
    pub anonymous: bool,
}

impl Mm {
    /// Every page that the process maps in 4 KiB entries, ascending; nothing if somebody is changing the page table.
    pub fn peek_small_pages(&self) -> Option<Vec<MappedPage>> {
        self.page_table_lock.try_peek(|tables| {
            let page = |(hva, pte): (Hva, super::pgtable::Pte)| MappedPage {
                hva,
                pfn: pte.pfn(),
                writable: pte.permits(true),
                zero: pte.has(PteFlags::ZERO),
                anonymous: pte.has(PteFlags::ANON),
            };
            tables.small_entries().map(page).collect()
        })
    }
}
