//! Who names a frame: page tables of processes (`_mapcount`), and entries of stage 2, which Linux does not count; for checking.

use super::{COUNT_MAX, Frame, MAPCOUNT, PhysMem, SPTES};
use crate::Pfn;
use std::sync::atomic::Ordering;

impl PhysMem {
    /// Host page-table entries that name the frame.
    pub fn mapcount(&self, pfn: Pfn) -> u32 {
        self.named(pfn, MAPCOUNT)
    }

    #[inline]
    pub(super) fn named(&self, pfn: Pfn, which: u32) -> u32 {
        self.frame(pfn).named.load(Ordering::Relaxed) >> which & COUNT_MAX
    }

    #[inline]
    pub(super) fn add_name(&self, frame: &Frame, which: u32) {
        let add = |word: u32| if word >> which & COUNT_MAX == COUNT_MAX { word } else { word + (1 << which) };
        self.rmw.update(&frame.named, add);
    }

    /// False if nothing named the frame.
    #[inline]
    pub(super) fn sub_name(&self, frame: &Frame, which: u32) -> bool {
        let sub = |word: u32| match word >> which & COUNT_MAX {
            0 | COUNT_MAX => word,
            _ => word - (1 << which),
        };
        self.rmw.update(&frame.named, sub) >> which & COUNT_MAX != 0
    }

    /// Whether nothing names the frame, as far as that is known.
    pub(super) fn is_unnamed(&self, pfn: Pfn, which: u32) -> bool {
        matches!(self.named(pfn, which), 0 | COUNT_MAX)
    }

    /// One more host page-table entry names the frame.
    pub fn add_mapcount(&self, pfn: Pfn) {
        let frame = self.frame(pfn);
        if !frame.is_reserved() {
            self.add_name(frame, MAPCOUNT);
        }
    }

    /// One host page-table entry less names the frame.
    pub fn sub_mapcount(&self, pfn: Pfn) {
        let frame = self.frame(pfn);
        if frame.is_reserved() {
            return;
        }
        assert!(self.sub_name(frame, MAPCOUNT), "mapcount of {pfn:?} below zero");
    }

    /// Stage-2 entries that name the frame.
    pub fn spte_count(&self, pfn: Pfn) -> u32 {
        self.named(pfn, SPTES)
    }

    /// One more stage-2 entry names the frame.
    ///
    /// # Panics
    /// If the frame is free (INV-203).
    pub fn add_spte(&self, pfn: Pfn) {
        let frame = self.frame(pfn);
        if frame.is_reserved() {
            return;
        }
        let refcount = frame.refcount.load(Ordering::Acquire);
        assert!(refcount > 0, "INV-203: a stage-2 entry is made for {pfn:?}, which is free");
        self.add_name(frame, SPTES);
    }

    /// One stage-2 entry less names the frame.
    pub fn sub_spte(&self, pfn: Pfn) {
        let frame = self.frame(pfn);
        if frame.is_reserved() {
            return;
        }
        assert!(self.sub_name(frame, SPTES), "stage-2 mappings of {pfn:?} below zero");
    }
}
