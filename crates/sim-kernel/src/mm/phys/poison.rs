//! Frames that broke (`PG_hwpoison`, `mm/memory-failure.c`): the mark, and the reference that is never given back.

use super::{FrameFlags, PhysMem};
use crate::{Cx, Pfn};

impl PhysMem {
    /// `TestSetPageHWPoison`, and the reference that keeps the frame out of use for good. Part of the caller's step. False if the frame is marked already.
    ///
    /// # Panics
    /// If the frame is free.
    pub fn poison(&self, cx: &Cx<'_>, pfn: Pfn) -> bool {
        if let Some(engine) = cx.engine() {
            engine.also_writes(self.locks.object(), pfn.0);
            engine.also_writes(self.counts, pfn.0);
        }
        if self.flags(pfn).contains(FrameFlags::HWPOISON) {
            return false;
        }
        self.set_flags(pfn, FrameFlags::HWPOISON);
        self.get(pfn);
        true
    }

    /// `folio_test_hwpoison`. Part of the caller's step; a frame may break at any time, whoever has it locked.
    pub fn is_poisoned(&self, cx: &Cx<'_>, pfn: Pfn) -> bool {
        if let Some(engine) = cx.engine() {
            engine.also_reads(self.locks.object(), pfn.0);
        }
        self.flags(pfn).contains(FrameFlags::HWPOISON)
    }

    /// The running step changes the count of a frame. If the frame is broken, the count never becomes zero, so that all that such steps do is to add, and their
    /// order cannot be told. Not if rules are off: then somebody may put what is not his.
    #[inline]
    pub(super) fn count_of_broken_frame(&self, cx: &Cx<'_>, pfn: Pfn) {
        if let Some(engine) = cx.engine()
            && !cx.has_mutants()
            && self.flags(pfn).contains(FrameFlags::HWPOISON)
        {
            engine.only_added(self.counts, pfn.0);
        }
    }
}
