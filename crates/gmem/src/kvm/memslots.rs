//! Memory slots: which guest physical addresses exist, and what backs them (`struct kvm_memory_slot`, `struct kvm_memslots`).
//!
//! Every address space has two sets of slots. Readers use the active one inside an SRCU section; a change is made in the inactive
//! one, which is then swapped in (`set_memory_region.rs`). A slot is never changed in place, except that its guest_memfd may
//! go away.
//!
//! Simplified: trees and hash of the kernel are ordered maps; the search by host address is bounded by the largest slot of the
//! set instead of an interval tree.

use super::host::{Charge, Host};
use super::lpage_info::LpageInfo;
use super::uapi::*;
use crate::invariants::guest_stores::Unreported;
use bytemuck::allocation::zeroed_slice_box;
use sim_kernel::fs::File;
use sim_kernel::sched::{Access, ObjId};
use sim_kernel::{Cx, Errno, Hva, HvaRange, PAGE_SHIFT, PAGE_SIZE, Pgoff};
use sim_mmu::{Gfn, GfnRange};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Number of a slot within its address space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotId(pub u16);

/// Which pages of a slot were written since they were last collected.
#[derive(Debug)]
pub struct DirtyBitmap {
    object: ObjId,
    /// The memory that the kernel would need for it.
    _charge: Charge,
    words: Box<[AtomicU64]>,
    /// What it must still hand out, if that is recorded. Not the kernel's; for MMU-INV-040.
    unreported: Option<parking_lot::Mutex<Unreported>>,
}

impl DirtyBitmap {
    /// A bitmap for so many pages, all clean.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(crate) fn new(cx: &Cx<'_>, host: &Arc<Host>, pages: u64) -> Result<DirtyBitmap, Errno> {
        // Two copies: one to collect into, one to hand out.
        let charge = host.charge(pages.div_ceil(64) * 16)?;
        let words = zeroed_slice_box(pages.div_ceil(64) as usize);
        let unreported = host.watches_guests().then(Default::default);
        Ok(DirtyBitmap { object: cx.new_object("dirty_bitmap"), _charge: charge, words, unreported })
    }

    /// Marks every page dirty (`KVM_DIRTY_LOG_INITIALLY_SET`).
    pub fn fill(&self, pages: u64) {
        for (i, word) in self.words.iter().enumerate() {
            let left = pages - i as u64 * 64;
            word.store(if left >= 64 { u64::MAX } else { (1 << left) - 1 }, Ordering::Relaxed);
        }
    }

    /// The record of stores that user space has not been told of, if there is one.
    pub(super) fn unreported(&self) -> Option<parking_lot::MutexGuard<'_, Unreported>> {
        self.unreported.as_ref().map(parking_lot::Mutex::lock)
    }

    /// Number of 64-bit words.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there is no page.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// A word without a scheduling point: for checkers.
    pub fn peek_word(&self, i: usize) -> u64 {
        self.words[i].load(Ordering::Relaxed)
    }

    /// Whether a page is marked, without a scheduling point: for checkers.
    pub fn peek_page(&self, page: u64) -> bool {
        self.peek_word((page / 64) as usize) >> (page % 64) & 1 != 0
    }

    /// Marks a page, counted from the slot's start.
    #[track_caller]
    pub fn set(&self, cx: &Cx<'_>, page: u64) {
        cx.point(Access::Rmw, self.object, page / 64);
        self.words[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::SeqCst);
    }

    /// The word without clearing it. Only a word that has bits is a scheduling point: to find none is to have come earlier.
    #[track_caller]
    pub fn word(&self, cx: &Cx<'_>, index: usize) -> u64 {
        if self.words[index].load(Ordering::SeqCst) != 0 {
            cx.point(Access::Load, self.object, index as u64);
        }
        self.words[index].load(Ordering::SeqCst)
    }

    /// Takes those bits of a word that are set and in `mask`, and clears them; a scheduling point as [`DirtyBitmap::word`].
    #[track_caller]
    pub fn take_bits(&self, cx: &Cx<'_>, index: usize, mask: u64) -> u64 {
        if self.words[index].load(Ordering::SeqCst) == 0 {
            return 0;
        }
        cx.point(Access::Rmw, self.object, index as u64);
        self.words[index].fetch_and(!mask, Ordering::SeqCst) & mask
    }
}

/// The guest_memfd part of a slot.
#[derive(Debug)]
pub struct SlotGmem {
    object: ObjId,
    /// Uncounted: a slot does not keep its file alive.
    file: parking_lot::Mutex<Option<Weak<File>>>,
    /// Where that file lies, 0 for none: to ask whether it is this or that one. Nothing is said of it to anybody, so it may differ from run to run.
    file_addr: AtomicUsize,
    /// First page of the binding in the file.
    pub pgoff: Pgoff,
    /// The file was released while it was bound. The kernel has no such mark; it is for checking.
    released: AtomicBool,
}

impl SlotGmem {
    /// `READ_ONCE(slot->gmem.file)`.
    #[track_caller]
    pub fn file(&self, cx: &Cx<'_>) -> Option<Weak<File>> {
        cx.point(Access::Load, self.object, 0);
        self.file.lock().clone()
    }

    /// Whether [`SlotGmem::file`] is this one: the same read, without a count.
    #[track_caller]
    pub fn names(&self, cx: &Cx<'_>, file: &Arc<File>) -> bool {
        cx.point(Access::Load, self.object, 0);
        self.file_addr.load(Ordering::SeqCst) == Arc::as_ptr(file).addr()
    }

    /// `WRITE_ONCE(slot->gmem.file, …)`.
    #[track_caller]
    pub fn set_file(&self, cx: &Cx<'_>, file: Option<&Arc<File>>) {
        cx.point(Access::Store, self.object, 0);
        let mut named = self.file.lock();
        *named = file.map(Arc::downgrade);
        self.file_addr.store(file.map_or(0, |file| Arc::as_ptr(file).addr()), Ordering::SeqCst);
    }

    /// The file is released: the slot loses it for that reason.
    pub(crate) fn set_released(&self) {
        self.released.store(true, Ordering::Relaxed);
    }

    /// Whether the file was released while it was bound.
    pub fn is_released(&self) -> bool {
        self.released.load(Ordering::Relaxed)
    }

    /// The file without a scheduling point: for checkers, and before the slot is visible.
    pub fn peek_file(&self) -> Option<Weak<File>> {
        self.file.lock().clone()
    }
}

/// A memory slot.
pub struct Memslot {
    /// Number within the address space.
    pub id: SlotId,
    /// Address space: 0 normal, 1 SMM.
    pub as_id: u16,
    /// First guest frame.
    pub base_gfn: Gfn,
    /// Pages.
    pub npages: u64,
    /// Where the VMM's memory for it begins.
    pub userspace_addr: Hva,
    /// User-visible flags and [`KVM_MEMSLOT_INVALID`], [`KVM_MEMSLOT_GMEM_ONLY`].
    pub flags: u32,
    /// Hugepage metadata; shared by a slot, its stand-in and its successor of equal geometry.
    pub lpage_info: Arc<LpageInfo>,
    /// Present while the slot is dirty-logged; belongs to the slot and its stand-in.
    pub dirty_bitmap: Option<Arc<DirtyBitmap>>,
    /// The guest_memfd binding.
    pub gmem: SlotGmem,
    /// Number under which bindings name the slot; never reused within a VM.
    pub handle: u32,
    freed: AtomicBool,
    /// What the slot had mapped was zapped because it is deleted or moved. Not the kernel's; for checking.
    zapped: AtomicBool,
}

/// Everything that makes up a new slot.
pub struct MemslotParts {
    /// See [`Memslot::id`].
    pub id: SlotId,
    /// See [`Memslot::as_id`].
    pub as_id: u16,
    /// See [`Memslot::base_gfn`].
    pub base_gfn: Gfn,
    /// See [`Memslot::npages`].
    pub npages: u64,
    /// See [`Memslot::userspace_addr`].
    pub userspace_addr: Hva,
    /// See [`Memslot::flags`].
    pub flags: u32,
    /// See [`Memslot::lpage_info`].
    pub lpage_info: Arc<LpageInfo>,
    /// See [`Memslot::dirty_bitmap`].
    pub dirty_bitmap: Option<Arc<DirtyBitmap>>,
    /// File of the binding.
    pub gmem_file: Option<Weak<File>>,
    /// See [`SlotGmem::pgoff`].
    pub gmem_pgoff: Pgoff,
    /// See [`Memslot::handle`].
    pub handle: u32,
}

impl fmt::Debug for MemslotParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemslotParts").field("id", &self.id).field("base_gfn", &self.base_gfn).finish_non_exhaustive()
    }
}

impl Memslot {
    /// A slot that nobody sees yet.
    pub fn new(cx: &Cx<'_>, parts: MemslotParts) -> Arc<Memslot> {
        let gmem = SlotGmem {
            object: if parts.flags & KVM_MEM_GUEST_MEMFD != 0 { cx.new_object("slot->gmem.file") } else { ObjId::NONE },
            file_addr: AtomicUsize::new(parts.gmem_file.as_ref().map_or(0, |file| file.as_ptr().addr())),
            file: parking_lot::Mutex::new(parts.gmem_file),
            pgoff: parts.gmem_pgoff,
            released: AtomicBool::new(false),
        };
        Arc::new(Memslot {
            id: parts.id,
            as_id: parts.as_id,
            base_gfn: parts.base_gfn,
            npages: parts.npages,
            userspace_addr: parts.userspace_addr,
            flags: parts.flags,
            lpage_info: parts.lpage_info,
            dirty_bitmap: parts.dirty_bitmap,
            gmem,
            handle: parts.handle,
            freed: AtomicBool::new(false),
            zapped: AtomicBool::new(false),
        })
    }

    /// The stand-in that vCPUs see while the slot is deleted or moved: a copy without the binding, marked INVALID.
    pub fn invalid_copy(&self, cx: &Cx<'_>) -> Arc<Memslot> {
        Memslot::new(
            cx,
            MemslotParts {
                flags: self.flags | KVM_MEMSLOT_INVALID,
                gmem_file: None,
                gmem_pgoff: Pgoff(0),
                ..self.parts()
            },
        )
    }

    /// The parts of this slot, to make another one from.
    pub fn parts(&self) -> MemslotParts {
        MemslotParts {
            id: self.id,
            as_id: self.as_id,
            base_gfn: self.base_gfn,
            npages: self.npages,
            userspace_addr: self.userspace_addr,
            flags: self.flags,
            lpage_info: Arc::clone(&self.lpage_info),
            dirty_bitmap: self.dirty_bitmap.clone(),
            gmem_file: self.gmem.peek_file(),
            gmem_pgoff: self.gmem.pgoff,
            handle: self.handle,
        }
    }

    /// The guest frames of the slot.
    #[inline]
    pub fn gfns(&self) -> GfnRange {
        GfnRange { start: self.base_gfn, end: self.base_gfn + self.npages }
    }

    /// The host addresses of the slot.
    pub fn hvas(&self) -> HvaRange {
        HvaRange::new(self.userspace_addr, self.userspace_addr + self.npages * PAGE_SIZE)
    }

    /// Whether the slot covers the frame.
    #[inline]
    pub fn contains(&self, gfn: Gfn) -> bool {
        gfn.0.wrapping_sub(self.base_gfn.0) < self.npages
    }

    /// `__gfn_to_hva_memslot`: the host address behind a guest frame of the slot.
    #[inline]
    pub fn hva(&self, gfn: Gfn) -> Hva {
        Hva(self.userspace_addr.0 + ((gfn.0 - self.base_gfn.0) << PAGE_SHIFT))
    }

    /// `kvm_gmem_get_index`: the page of the bound file behind a guest frame of the slot.
    #[inline]
    pub fn gmem_index(&self, gfn: Gfn) -> Pgoff {
        Pgoff(gfn.0 - self.base_gfn.0 + self.gmem.pgoff.0)
    }

    /// `kvm_slot_has_gmem`.
    #[inline]
    pub fn has_gmem(&self) -> bool {
        self.flags & KVM_MEM_GUEST_MEMFD != 0
    }

    /// `kvm_memslot_is_gmem_only`: shared faults use the guest_memfd too.
    #[inline]
    pub fn is_gmem_only(&self) -> bool {
        self.flags & KVM_MEMSLOT_GMEM_ONLY != 0
    }

    /// Whether this is the stand-in of a slot that is being deleted or moved.
    #[inline]
    pub fn is_invalid(&self) -> bool {
        self.flags & KVM_MEMSLOT_INVALID != 0
    }

    /// Whether guest writes become MMIO.
    #[inline]
    pub fn is_readonly(&self) -> bool {
        self.flags & KVM_MEM_READONLY != 0
    }

    /// The guest frames that the slot has at these host addresses, rounded outwards to pages.
    pub fn gfns_at(&self, range: HvaRange) -> Option<GfnRange> {
        if !self.hvas().intersects(&range) {
            return None;
        }
        let range = range.clip(&self.hvas());
        let first = (range.start.0 - self.userspace_addr.0) >> PAGE_SHIFT;
        let end = (range.end.0 - self.userspace_addr.0).div_ceil(PAGE_SIZE);
        Some(GfnRange { start: self.base_gfn + first, end: self.base_gfn + end })
    }

    /// The slot's memory goes back to the kernel's allocator: nobody may use it any more (INV-401).
    pub fn free(&self, cx: &Cx<'_>) {
        if cx.has_mutants() && self.gmem.object != ObjId::NONE {
            cx.point(Access::Store, self.gmem.object, 1);
        }
        let was = self.freed.swap(true, Ordering::SeqCst);
        assert!(!was, "INV-401: slot {:?} is freed twice", self.id);
    }

    /// The slot is on its way out and its zap has ended; or it stays after all.
    pub(crate) fn set_zapped(&self, zapped: bool) {
        self.zapped.store(zapped, Ordering::Relaxed);
    }

    /// Whether the slot is on its way out and nothing may be mapped through it any more (INV-204).
    pub fn is_zapped(&self) -> bool {
        self.zapped.load(Ordering::Relaxed)
    }

    /// Whether the slot was freed.
    pub fn is_freed(&self) -> bool {
        self.freed.load(Ordering::SeqCst)
    }

    /// Whoever has a pointer to the slot from a binding looks at it.
    #[track_caller]
    pub(crate) fn dereference(&self, cx: &Cx<'_>) {
        if cx.has_mutants() {
            cx.point(Access::Load, self.gmem.object, 1);
        }
        self.assert_live();
    }

    /// Asserts that the slot was not freed.
    #[inline]
    pub fn assert_live(&self) {
        assert!(!self.freed.load(Ordering::SeqCst), "INV-401: slot {:?} is used after it was freed", self.id);
    }
}

impl fmt::Debug for Memslot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memslot")
            .field("id", &self.id)
            .field("as_id", &self.as_id)
            .field("base_gfn", &self.base_gfn)
            .field("npages", &self.npages)
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}

/// One of the two sets of an address space.
#[derive(Debug, Default)]
pub struct MemslotSet {
    /// Changes with every activation; bit 63 while an update is in progress.
    pub generation: u64,
    by_id: BTreeMap<SlotId, Arc<Memslot>>,
    by_gfn: BTreeMap<Gfn, Arc<Memslot>>,
    by_hva: BTreeMap<(Hva, SlotId), Arc<Memslot>>,
    /// No slot of the set was ever larger, in bytes: bounds the search by host address.
    largest: u64,
}

impl MemslotSet {
    /// An empty set of this generation.
    pub fn new(generation: u64) -> MemslotSet {
        MemslotSet { generation, ..Default::default() }
    }

    /// `id_to_memslot`.
    pub fn by_id(&self, id: SlotId) -> Option<&Arc<Memslot>> {
        self.by_id.get(&id)
    }

    /// `search_memslots`: the slot that covers a frame, INVALID ones included.
    pub fn by_gfn(&self, gfn: Gfn) -> Option<&Arc<Memslot>> {
        self.by_gfn.range(..=gfn).next_back().map(|(_, slot)| slot).filter(|slot| slot.contains(gfn))
    }

    /// The slots that intersect a range of frames, ascending.
    pub fn in_gfn_range(&self, range: GfnRange) -> impl Iterator<Item = &Arc<Memslot>> {
        // The slot that covers the first frame may begin before it.
        let first = self.by_gfn(range.start).map_or(range.start, |slot| slot.base_gfn);
        let end = range.end.max(first);
        self.by_gfn.range(first..end).map(|(_, slot)| slot)
    }

    /// The slots whose host addresses intersect a range, ascending by host address.
    pub fn in_hva_range(&self, range: HvaRange) -> impl Iterator<Item = &Arc<Memslot>> {
        let first = Hva(range.start.0.saturating_sub(self.largest));
        let end = range.end.max(first);
        let slots = self.by_hva.range((first, SlotId(0))..(end, SlotId(0)));
        slots.map(|(_, slot)| slot).filter(move |slot| slot.hvas().intersects(&range))
    }

    /// Whether a slot other than `id` intersects the range (`kvm_check_memslot_overlap`).
    pub fn overlaps(&self, range: GfnRange, id: SlotId) -> bool {
        self.in_gfn_range(range).any(|slot| slot.id != id)
    }

    /// All slots, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Memslot>> {
        self.by_id.values()
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is no slot.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// `kvm_replace_memslot`: takes `old` out and puts `new` in.
    pub fn replace(&mut self, old: Option<&Memslot>, new: Option<&Arc<Memslot>>) {
        if let Some(old) = old {
            self.by_id.remove(&old.id).expect("INV-308: a replaced slot is in the set");
            self.by_gfn.remove(&old.base_gfn).expect("INV-308: a replaced slot is in the set");
            self.by_hva.remove(&(old.userspace_addr, old.id)).expect("INV-308: a replaced slot is in the set");
        }
        if let Some(new) = new {
            assert!(!self.overlaps(new.gfns(), new.id), "INV-308: slots of one address space overlap");
            let previous = self.by_id.insert(new.id, Arc::clone(new));
            assert!(previous.is_none(), "INV-308: slot numbers are unique");
            self.by_gfn.insert(new.base_gfn, Arc::clone(new));
            self.by_hva.insert((new.userspace_addr, new.id), Arc::clone(new));
            self.largest = self.largest.max(new.npages * PAGE_SIZE);
        }
    }
}
