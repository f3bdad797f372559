//! Who maps a file: the reverse map from file pages to page-table entries (`i_mmap`, `mm/rmap.c`, `unmap_mapping_range`).
//!
//! Simplified: a list for the interval tree.

use super::mm::Mm;
use super::pgtable::Zap;
use super::zap::page_of;
use crate::sync::RwLock;
use crate::{Cx, Hva, HvaRange, PAGE_SIZE, Pgoff};
use std::sync::{Arc, Weak};

/// A part of a file that one area of a process maps.
#[derive(Clone, Debug)]
pub(super) struct FileMapping {
    pub(super) mm: Weak<Mm>,
    pub(super) start: Hva,
    pub(super) pgoff: Pgoff,
    pub(super) pages: u64,
}

impl FileMapping {
    /// The addresses at which `pages` pages from `first` are mapped; `None` if none of them is.
    fn addresses(&self, first: Pgoff, pages: u64) -> Option<HvaRange> {
        let from = first.max(self.pgoff);
        let to = Pgoff(first.0.saturating_add(pages)).min(self.pgoff + self.pages);
        let hva = |pgoff: Pgoff| self.start + (pgoff - self.pgoff) * PAGE_SIZE;
        (from < to).then(|| HvaRange::new(hva(from), hva(to)))
    }
}

/// The mappings of one address space (`struct address_space`).
#[derive(Debug)]
pub struct IMmap {
    /// In ascending order of their first file page; equal ones in the order in which they were made.
    mappings: RwLock<Vec<FileMapping>>,
}

impl IMmap {
    /// A file that nobody maps yet.
    pub fn new(cx: &Cx<'_>) -> IMmap {
        IMmap { mappings: RwLock::new(cx, "i_mmap_rwsem", Vec::new()) }
    }

    /// Areas that map a part of the file.
    pub fn mapping_count(&self, cx: &Cx<'_>) -> usize {
        self.mappings.read(cx).len()
    }

    /// Takes the mappings of `mm` at the addresses `old` out and puts `new` in, in one step.
    pub(super) fn replace(&self, cx: &Cx<'_>, mm: &Weak<Mm>, old: &[Hva], new: impl Iterator<Item = FileMapping>) {
        let mut mappings = self.mappings.write(cx);
        let before = mappings.len();
        mappings.retain(|mapping| !(Weak::ptr_eq(&mapping.mm, mm) && old.contains(&mapping.start)));
        assert_eq!(before - mappings.len(), old.len(), "the reverse map knows every mapping of the file");
        for mapping in new {
            let at = mappings.partition_point(|other| other.pgoff <= mapping.pgoff);
            mappings.insert(at, mapping);
        }
    }

    /// `unmap_mapping_folio`: takes page `pgoff` out of every page table. Nothing happens unless some page table has it; then
    /// every mapping of the page is told, one after the other: notifier start, entry cleared, notifier end, reference put.
    ///
    /// The caller holds the folio lock, so that nobody maps the page anew. Private copies stay. Never takes `mmap_lock`.
    pub fn unmap_page(&self, cx: &Cx<'_>, pgoff: Pgoff) {
        let mappings = self.mappings.read(cx);
        let places = places(&mappings, pgoff, 1);
        if places.iter().any(|(mm, range)| mm.maps_file_page(cx, range.start)) {
            for (mm, range) in places {
                mm.zap_page_range(cx, page_of(range.start), Zap { keep_private: true, ..Zap::default() });
            }
        }
    }

    /// `unmap_mapping_pages`: takes `pages` pages from `first` out of every page table, with one notifier per mapping over the
    /// part that it maps, present or not. `even_cows`: private copies go too, as truncation wants it.
    pub fn unmap_range(&self, cx: &Cx<'_>, first: Pgoff, pages: u64, even_cows: bool) {
        let mappings = self.mappings.read(cx);
        for (mm, range) in places(&mappings, first, pages) {
            mm.zap_page_range(cx, range, Zap { keep_private: !even_cows, ..Zap::default() });
        }
    }
}

/// Where the pages are mapped, in the order of the mappings. A process that is gone maps nothing.
fn places(mappings: &[FileMapping], first: Pgoff, pages: u64) -> Vec<(Arc<Mm>, HvaRange)> {
    let place = |mapping: &FileMapping| Some((mapping.mm.upgrade()?, mapping.addresses(first, pages)?));
    mappings.iter().filter_map(place).collect()
}
