//! Who maps a file: the reverse map from file pages to page-table entries (`i_mmap`, `mm/rmap.c`, `unmap_mapping_range`).
//!
//! Simplified: sorted maps for the interval tree, so that finding the mappings of a page looks at all that start before it.

use super::mm::Mm;
use super::pgtable::Zap;
use super::zap::page_of;
use crate::sync::RwLock;
use crate::{Cx, Hva, HvaRange, PAGE_SIZE, Pgoff};
use std::collections::BTreeMap;
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
    mappings: RwLock<Mappings>,
}

/// Where a mapping stands: in ascending order of first file pages; equal ones in the order in which they were made.
type Place = (Pgoff, u64);

#[derive(Debug, Default)]
struct Mappings {
    by_page: BTreeMap<Place, FileMapping>,
    /// By process, of which only the address is used, and start in it.
    by_start: BTreeMap<(usize, Hva), Place>,
    made: u64,
}

impl Mappings {
    fn insert(&mut self, mapping: FileMapping) {
        self.made += 1;
        let place = (mapping.pgoff, self.made);
        let twin = self.by_start.insert((mapping.mm.as_ptr() as usize, mapping.start), place);
        assert_eq!(twin, None, "one area starts at an address");
        self.by_page.insert(place, mapping);
    }

    fn remove(&mut self, mm: &Weak<Mm>, start: Hva) {
        let place = self.by_start.remove(&(mm.as_ptr() as usize, start));
        let removed = place.and_then(|place| self.by_page.remove(&place));
        removed.expect("the reverse map knows every mapping of the file");
    }

    /// Where the pages are mapped, in the order of the mappings. A process that is gone maps nothing.
    fn places(&self, first: Pgoff, pages: u64) -> Vec<(Arc<Mm>, HvaRange)> {
        let end = Pgoff(first.0.saturating_add(pages));
        let place = |mapping: &FileMapping| Some((mapping.mm.upgrade()?, mapping.addresses(first, pages)?));
        self.by_page.range(..(end, 0)).filter_map(|(_, mapping)| place(mapping)).collect()
    }
}

impl IMmap {
    /// Whether any area maps the file; nothing if somebody is changing that. For checkers.
    pub fn peek_is_mapped(&self) -> Option<bool> {
        self.mappings.try_peek(|mappings| !mappings.by_page.is_empty())
    }

    /// A file that nobody maps yet.
    pub fn new(cx: &Cx<'_>) -> IMmap {
        IMmap { mappings: RwLock::new(cx, "i_mmap_rwsem", Mappings::default()) }
    }

    /// Areas that map a part of the file.
    pub fn mapping_count(&self, cx: &Cx<'_>) -> usize {
        self.mappings.read(cx).by_page.len()
    }

    /// Takes the mappings of `mm` at the addresses `old` out and puts `new` in, in one step.
    pub(super) fn replace(&self, cx: &Cx<'_>, mm: &Weak<Mm>, old: &[Hva], new: impl Iterator<Item = FileMapping>) {
        let mut mappings = self.mappings.write(cx);
        for start in old {
            mappings.remove(mm, *start);
        }
        for mapping in new {
            mappings.insert(mapping);
        }
    }

    /// `unmap_mapping_folio`: takes page `pgoff` out of every page table. Nothing happens unless some page table has it; then
    /// every mapping of the page is told, one after the other: notifier start, entry cleared, notifier end, reference put.
    ///
    /// The caller holds the folio lock, so that nobody maps the page anew. Private copies stay. Never takes `mmap_lock`.
    pub fn unmap_page(&self, cx: &Cx<'_>, pgoff: Pgoff) {
        let mappings = self.mappings.read(cx);
        let places = mappings.places(pgoff, 1);
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
        for (mm, range) in mappings.places(first, pages) {
            mm.zap_page_range(cx, range, Zap { keep_private: !even_cows, ..Zap::default() });
        }
    }
}
