//! The bytes of frames: cleared, copied, read and written word by word (`clear_highpage`, `copy_highpage`, and what processors and
//! drivers do).
//!
//! An access of up to eight bytes is one step, and so is one of a whole frame. A buffer is made at the first write.

use super::guard::{By, User};
use super::{FIRST_BUFFER, PhysMem, UNDEFINED, WORDS_PER_PAGE, ZERO};
use crate::sched::{Access, ObjId};
use crate::sync::Word;
use crate::{Cx, Pfn};
use std::sync::atomic::{AtomicU64, Ordering};

impl PhysMem {
    /// `clear_highpage`: the frame's bytes become zero. One step.
    #[track_caller]
    pub fn zero(&self, cx: &Cx<'_>, pfn: Pfn) {
        self.reach(cx, By::Kernel, Access::Store, pfn, 0, WORDS_PER_PAGE as u64);
        self.clear_bytes(pfn);
    }

    /// As [`PhysMem::zero`], by what runs beneath the kernel and needs nobody's leave.
    #[track_caller]
    pub fn zero_beneath(&self, cx: &Cx<'_>, pfn: Pfn) {
        cx.point_range(Access::Store, self.bytes, pfn.0 * WORDS_PER_PAGE as u64, WORDS_PER_PAGE as u64);
        self.clear_bytes(pfn);
    }

    fn clear_bytes(&self, pfn: Pfn) {
        self.assert_may_write(pfn);
        let content = self.rmw.update(&self.frame(pfn).content, |_| ZERO);
        if content >= FIRST_BUFFER {
            self.contents.free(content - FIRST_BUFFER);
        }
    }

    /// `clear_huge_page`, of these pages of the large folio at `head`: their bytes become zero. One step.
    #[track_caller]
    pub fn zero_all(&self, cx: &Cx<'_>, head: Pfn, pages: &[Pfn]) {
        let words = WORDS_PER_PAGE as u64;
        cx.point_range(Access::Store, self.bytes, head.0 * words, crate::PAGES_PER_PMD * words);
        for &pfn in pages {
            self.assert_may_write(pfn);
            let content = self.rmw.update(&self.frame(pfn).content, |_| ZERO);
            if content >= FIRST_BUFFER {
                self.contents.free(content - FIRST_BUFFER);
            }
        }
    }

    /// Copies the bytes of a frame (`copy_highpage`), for copy-on-write. One step.
    pub fn copy(&self, cx: &Cx<'_>, from: Pfn, to: Pfn) {
        // One step stands for the loads, too: `from` is what a page table names, and cannot be written meanwhile.
        self.reach(cx, By::Kernel, Access::Store, to, 0, WORDS_PER_PAGE as u64);
        self.assert_may_write(to);
        match self.frame(from).content.load(Ordering::Acquire) {
            content if content >= FIRST_BUFFER => {
                let source = &self.contents.get(content - FIRST_BUFFER).words;
                for (i, word) in source.iter().enumerate() {
                    self.word_mut(to, i).store(word.load(Ordering::Relaxed), Ordering::Relaxed);
                }
            }
            content => {
                let old = self.frame(to).content.swap(content, Ordering::AcqRel);
                if old >= FIRST_BUFFER {
                    self.contents.free(old - FIRST_BUFFER);
                }
            }
        }
    }

    /// What an undefined word reads as: recognisable, and different for every frame.
    fn garbage(pfn: Pfn) -> u64 {
        0xdead_0000_beef_0000 | ((pfn.0 & 0xffff) << 32) | (pfn.0 & 0xffff)
    }

    /// The bytes as a buffer to write into, made now if there is none.
    fn word_mut(&self, pfn: Pfn, index: usize) -> &AtomicU64 {
        let frame = self.frame(pfn);
        loop {
            let content = frame.content.load(Ordering::Acquire);
            if content >= FIRST_BUFFER {
                return &self.contents.get(content - FIRST_BUFFER).words[index];
            }
            let fill = if content == ZERO { 0 } else { Self::garbage(pfn) };
            let buffer = self.contents.alloc();
            self.contents.get(buffer).init(fill);
            let made =
                frame.content.compare_exchange(content, FIRST_BUFFER + buffer, Ordering::AcqRel, Ordering::Acquire);
            if made.is_err() {
                self.contents.free(buffer);
            }
        }
    }

    /// A word of the frame's bytes without a scheduling point: for checkers and reports.
    pub fn peek_u64(&self, pfn: Pfn, index: usize) -> u64 {
        match self.frame(pfn).content.load(Ordering::Acquire) {
            UNDEFINED => Self::garbage(pfn),
            ZERO => 0,
            content => self.contents.get(content - FIRST_BUFFER).words[index].load(Ordering::Acquire),
        }
    }

    /// Replaces a word of the frame's bytes as part of a step that was already announced on [`PhysMem::object`]: what a machine below does, which has
    /// its own idea of what an access is.
    pub fn poke_u64(&self, pfn: Pfn, index: usize, value: u64) {
        self.word_mut(pfn, index).store(value, Ordering::Release);
    }

    /// Whether a frame of this number can have contents: it, or one near it, was allocated once.
    pub fn has_frame(&self, pfn: Pfn) -> bool {
        u32::try_from(pfn.0).is_ok_and(|index| self.frames.get_if_present(index).is_some())
    }

    /// The object that accesses to the frames' bytes are announced on. Its indexes are 64-bit words: frame number times 512 plus word.
    pub fn object(&self) -> ObjId {
        self.bytes
    }

    /// Whether the frame's contents were never defined.
    pub fn is_undefined(&self, pfn: Pfn) -> bool {
        self.frame(pfn).content.load(Ordering::Acquire) == UNDEFINED
    }

    /// Appends all bytes of a frame to `bytes`. One step.
    #[track_caller]
    pub(crate) fn read_page(&self, cx: &Cx<'_>, pfn: Pfn, bytes: &mut Vec<u8>) {
        self.reach(cx, By::Kernel, Access::Load, pfn, 0, WORDS_PER_PAGE as u64);
        bytes.extend((0..WORDS_PER_PAGE).flat_map(|index| self.peek_u64(pfn, index).to_le_bytes()));
    }

    /// Reads the 64-bit word at byte `offset`, which must be a multiple of 8.
    #[track_caller]
    pub fn read_u64(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64) -> u64 {
        self.read_u64_by(cx, By::Kernel, pfn, offset)
    }

    #[track_caller]
    fn read_u64_by(&self, cx: &Cx<'_>, by: By<'_>, pfn: Pfn, offset: u64) -> u64 {
        let index = Self::word_index(offset, 8);
        if !self.reach(cx, by, Access::Load, pfn, index as u64, 1) {
            return 0;
        }
        self.assert_used(pfn);
        self.peek_u64(pfn, index)
    }

    /// Reads the 32-bit word at byte `offset`, which must be a multiple of 4.
    #[track_caller]
    pub fn read_u32(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64) -> u32 {
        self.read_u32_by(cx, By::Kernel, pfn, offset)
    }

    #[track_caller]
    fn read_u32_by(&self, cx: &Cx<'_>, by: By<'_>, pfn: Pfn, offset: u64) -> u32 {
        let index = Self::word_index(offset, 4);
        if !self.reach(cx, by, Access::Load, pfn, index as u64, 1) {
            return 0;
        }
        self.assert_used(pfn);
        (self.peek_u64(pfn, index) >> ((offset & 4) * 8)) as u32
    }

    /// Writes the 64-bit word at byte `offset`, which must be a multiple of 8.
    #[track_caller]
    pub fn write_u64(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64, value: u64) {
        self.write_u64_by(cx, By::Kernel, pfn, offset, value);
    }

    #[track_caller]
    fn write_u64_by(&self, cx: &Cx<'_>, by: By<'_>, pfn: Pfn, offset: u64, value: u64) {
        let index = Self::word_index(offset, 8);
        if !self.reach(cx, by, Access::Store, pfn, index as u64, 1) {
            return;
        }
        self.assert_used(pfn);
        if self.begin_write(pfn) {
            self.word_mut(pfn, index).store(value, Ordering::Release);
        }
    }

    /// Replaces the 64-bit word at byte `offset`, which must be a multiple of 8, if it is `old` (`lock cmpxchg`).
    ///
    /// # Errors
    /// The value found, if it is not `old`.
    #[track_caller]
    pub fn cmpxchg_u64(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64, old: u64, new: u64) -> Result<(), u64> {
        let index = Self::word_index(offset, 8);
        let id = pfn.0 * WORDS_PER_PAGE as u64 + index as u64;
        Word::new(cx, self.bytes, id, self.word_mut(pfn, index)).cmpxchg(old, new)
    }

    /// Writes the 32-bit word at byte `offset`, which must be a multiple of 4.
    #[track_caller]
    pub fn write_u32(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64, value: u32) {
        self.change_u32_as(cx, By::Kernel, Access::Store, pfn, offset, |_| value);
    }

    /// Adds to the 32-bit word at byte `offset` atomically and returns the old value (`lock add`).
    #[track_caller]
    pub fn fetch_add_u32(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64, value: u32) -> u32 {
        self.change_u32(cx, pfn, offset, |old| old.wrapping_add(value))
    }

    /// Replaces the bits of `mask` in the 32-bit word at byte `offset`, in one step: how bytes are stored.
    #[track_caller]
    pub(crate) fn merge_u32(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64, value: u32, mask: u32) {
        self.change_u32(cx, pfn, offset, |old| (old & !mask) | (value & mask));
    }

    /// Reads the byte at `offset`.
    #[track_caller]
    pub fn read_u8(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64) -> u8 {
        (self.read_u32(cx, pfn, offset & !3) >> ((offset & 3) * 8)) as u8
    }

    /// Writes the byte at `offset`.
    #[track_caller]
    pub fn write_u8(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64, value: u8) {
        let shift = (offset & 3) * 8;
        self.change_u32(cx, pfn, offset & !3, |old| (old & !(0xff << shift)) | (u32::from(value) << shift));
    }

    /// Replaces the 32-bit word at byte `offset` by a function of it, in one step, and returns the old value. Natively the function
    /// may run more than once.
    #[track_caller]
    pub fn change_u32(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64, change: impl Fn(u32) -> u32) -> u32 {
        self.change_u32_as(cx, By::Kernel, Access::Rmw, pfn, offset, change)
    }

    #[track_caller]
    fn change_u32_as(
        &self,
        cx: &Cx<'_>,
        by: By<'_>,
        access: Access,
        pfn: Pfn,
        offset: u64,
        change: impl Fn(u32) -> u32,
    ) -> u32 {
        let index = Self::word_index(offset, 4);
        if !self.reach(cx, by, access, pfn, index as u64, 1) {
            return 0;
        }
        self.assert_used(pfn);
        let shift = (offset & 4) * 8;
        let update = |word: u64| {
            let new = u64::from(change((word >> shift) as u32));
            Some((word & !(0xffff_ffff << shift)) | (new << shift))
        };
        if !self.begin_write(pfn) {
            return (self.peek_u64(pfn, index) >> shift) as u32;
        }
        let old = self.word_mut(pfn, index).fetch_update(Ordering::SeqCst, Ordering::SeqCst, update);
        (old.unwrap_or_else(|word| word) >> shift) as u32
    }

    /// The processor or a driver is at the frame's bytes now.
    #[inline]
    fn assert_used(&self, pfn: Pfn) {
        assert!(self.refcount(pfn) > 0, "INV-203: {pfn:?} is accessed after it was freed");
    }

    fn word_index(offset: u64, size: u64) -> usize {
        assert!(
            offset < crate::PAGE_SIZE && offset.is_multiple_of(size),
            "access of {size} bytes at page offset {offset}"
        );
        (offset / 8) as usize
    }
}

/// Accesses of a process, as those of [`PhysMem`] with the same names.
impl User<'_> {
    #[track_caller]
    pub(in crate::mm) fn read_u32(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64) -> u32 {
        self.phys.read_u32_by(cx, By::User(self), pfn, offset)
    }

    #[track_caller]
    pub(in crate::mm) fn write_u32(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64, value: u32) {
        self.phys.change_u32_as(cx, By::User(self), Access::Store, pfn, offset, |_| value);
    }

    #[track_caller]
    pub(in crate::mm) fn read_u64(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64) -> u64 {
        self.phys.read_u64_by(cx, By::User(self), pfn, offset)
    }

    #[track_caller]
    pub(in crate::mm) fn write_u64(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64, value: u64) {
        self.phys.write_u64_by(cx, By::User(self), pfn, offset, value);
    }

    #[track_caller]
    pub(in crate::mm) fn merge_u32(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64, value: u32, mask: u32) {
        let merge = |old: u32| (old & !mask) | (value & mask);
        self.phys.change_u32_as(cx, By::User(self), Access::Rmw, pfn, offset, merge);
    }

    /// Not asked of stage 2: only walks of x86's guest tables do this, and no x86 host has one.
    #[track_caller]
    pub(in crate::mm) fn cmpxchg_u64(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64, old: u64, new: u64) -> Result<(), u64> {
        self.phys.cmpxchg_u64(cx, pfn, offset, old, new)
    }
}
