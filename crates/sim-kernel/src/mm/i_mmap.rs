//! Who maps a file: the reverse map from file pages to page-table entries (`i_mmap`, `mm/rmap.c`, `unmap_mapping_range`).
//!
//! Simplified: a list for the interval tree.

use super::mm::Mm;
use crate::sync::Mutex;
use crate::{Cx, Hva, Pgoff};
use std::sync::Weak;

/// A part of a file that one area of a process maps.
#[derive(Clone, Debug)]
pub(super) struct FileMapping {
    pub(super) mm: Weak<Mm>,
    pub(super) start: Hva,
    pub(super) pgoff: Pgoff,
    pub(super) pages: u64,
}

/// The mappings of one address space (`struct address_space`).
#[derive(Debug)]
pub struct IMmap {
    /// In the order in which they were made.
    mappings: Mutex<Vec<FileMapping>>,
}

impl IMmap {
    /// A file that nobody maps yet.
    pub fn new(cx: &Cx<'_>) -> IMmap {
        IMmap { mappings: Mutex::new(cx, "i_mmap_rwsem", Vec::new()) }
    }

    /// Areas that map a part of the file.
    pub fn mapping_count(&self, cx: &Cx<'_>) -> usize {
        self.mappings.lock(cx).len()
    }

    /// `unmap_mapping_folio`: takes page `pgoff` out of every page table. Nothing happens unless some page table has it; then
    /// every mapping of the page is told, one after the other: notifier start, entry cleared, notifier end, reference put.
    ///
    /// The caller holds the folio lock, so that nobody maps the page anew. Private copies stay.
    pub fn unmap_page(&self, cx: &Cx<'_>, pgoff: Pgoff) {
        let _ = (cx, pgoff);
        todo!()
    }

    /// `unmap_mapping_pages`: takes `pages` pages from `first` out of every page table, with one notifier per mapping over the
    /// part that it maps, present or not. `even_cows`: private copies go too, as truncation wants it.
    pub fn unmap_range(&self, cx: &Cx<'_>, first: Pgoff, pages: u64, even_cows: bool) {
        let _ = (cx, first, pages, even_cows);
        todo!()
    }
}
