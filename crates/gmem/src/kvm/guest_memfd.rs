//! guest_memfd: memory of a guest that is a file, not a mapping (`virt/kvm/guest_memfd.c`).
//!
//! The inode is the memory; the file is one VM's view of it, with the bindings of that VM's slots. Taking memory away (punching a
//! hole, releasing the file, hardware poison) holds `invalidate_lock` and brackets the change with an invalidation of the guest
//! frames that the bindings name. Nothing here zeroes memory before it is exposed: allocating leaves a page as it is, and the first
//! look-up or host fault clears it under the folio lock. Folios of 2 MiB, which Linux does not have, are in `large.rs`.

mod bind;
mod large;
mod peek;
mod populate;
mod surroundings;

pub(crate) use populate::PopulateSource;

use surroundings::Surroundings;

use super::host::Host;
use super::memslots::Memslot;
use super::mutants::*;
use super::pkvm::GmemSharing;
use super::process::Process;
use super::uapi::*;
use super::vm::Vm;
use sim_kernel::fs::{AddressSpace, Fault, FaultError, File, FileOperations, MmapRequest, RawFd, Stat};
use sim_kernel::mm::{FrameFlags, IMmap, Mempolicy, PhysMem, SharedPolicy};
use sim_kernel::sync::synchronize_rcu;
use sim_kernel::xarray::{Handle, XArray};
use sim_kernel::{Cx, Errno, PAGE_SHIFT, PAGE_SIZE, PAGES_PER_PMD, Pfn, Pgoff};
use sim_mmu::{Gfn, GfnRange, Invalidation, Level, RootFilter};
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

/// The memory of a guest_memfd.
pub struct GmemInode {
    host: Arc<Host>,
    ino: u32,
    size: u64,
    flags: u64,
    mapping: AddressSpace,
    /// `gmem_file_list`: the views of all VMs. One in Linux 7.3, which has no way to make a second.
    files: parking_lot::Mutex<Vec<Weak<GmemFile>>>,
    /// Pages that are marked broken and not yet unmapped. The kernel has no such list; it is for checking.
    failing: parking_lot::Mutex<Vec<Pfn>>,
    /// Ranges of pages that are being punched out, for checking too.
    punching: parking_lot::Mutex<Vec<Range<u64>>>,
    /// `shared_policy`: from which NUMA nodes pages come.
    policy: SharedPolicy,
    /// Which pages are shared, where that can change in place.
    sharing: Option<GmemSharing>,
}

/// One VM's view of a guest_memfd: what its descriptor refers to.
pub struct GmemFile {
    vm: Arc<Vm>,
    inode: Arc<GmemInode>,
    /// Page index to slot, for every bound page.
    bindings: XArray<Handle>,
    /// The slots behind the handles in `bindings`. Changes under `invalidate_lock`, like the bindings.
    slots: parking_lot::Mutex<BTreeMap<u32, Arc<Memslot>>>,
    /// The view was released: nobody may use it any more (INV-402).
    released: AtomicBool,
}

/// A page of guest memory that a look-up found, with a reference for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GmemPage {
    /// The frame.
    pub pfn: Pfn,
    /// The largest mapping that its folio allows (`max_order`).
    pub level: Level,
}

impl GmemInode {
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The page cache.
    pub fn mapping(&self) -> &AddressSpace {
        &self.mapping
    }

    /// The host's memory.
    pub(super) fn phys(&self) -> &PhysMem {
        &self.host.phys
    }

    /// Which pages are shared, where that can change in place.
    pub fn sharing(&self) -> Option<&GmemSharing> {
        self.sharing.as_ref()
    }

    /// Whether the failure of this page is being handled: until that has ended it may still be mapped.
    pub(crate) fn is_failing(&self, pfn: Pfn) -> bool {
        self.failing.lock().contains(&pfn)
    }

    /// Pages whose failure is being handled, for checkers.
    pub(crate) fn failing(&self) -> Vec<Pfn> {
        self.failing.lock().clone()
    }

    /// Whether the host may map the file.
    pub(crate) fn is_mappable(&self) -> bool {
        self.flags & GUEST_MEMFD_FLAG_MMAP != 0
    }

    fn is_init_shared(&self) -> bool {
        self.flags & GUEST_MEMFD_FLAG_INIT_SHARED != 0
    }

    pub(crate) fn views(&self) -> Vec<Arc<GmemFile>> {
        self.files.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// First exposure of a locked page: its contents become defined.
    fn make_uptodate(&self, cx: &Cx<'_>, pfn: Pfn) {
        let phys = &self.host.phys;
        if phys.is_large(pfn) {
            return self.make_folio_uptodate(cx, pfn);
        }
        let index = phys.index(pfn);
        assert_eq!(self.mapping.peek(index), Some(pfn), "INV-101: another page than {pfn:?} is cached at {index:?}");
        if !phys.flags(pfn).contains(FrameFlags::UPTODATE) {
            phys.zero(cx, pfn);
            let twice = phys.flags(pfn).contains(FrameFlags::UPTODATE);
            assert!(!twice, "INV-107: {pfn:?} is cleared after it was exposed");
            if !cx.has_mutant(GMEM_NOT_UPTODATE) {
                phys.set_flags(pfn, FrameFlags::UPTODATE);
            }
        }
    }

    /// The page of the cache, or a new one from the nodes of its policy. Interleaving counts from the inode's number, so that small files do
    /// not all begin on one node.
    fn find_or_create(&self, cx: &Cx<'_>, index: Pgoff) -> Result<Pfn, Errno> {
        let policy = || self.policy.get(index).unwrap_or_default().placement(u64::from(self.ino) + index.0);
        if self.has_large_folio_at(index) {
            self.mapping.find_or_create_large_in(cx, index, policy)
        } else {
            self.mapping.find_or_create_in(cx, index, policy)
        }
    }

    /// `kvm_gmem_get_folio`: the page at `index`, locked and with a reference.
    fn get_folio(&self, cx: &Cx<'_>, index: Pgoff) -> Result<Pfn, Errno> {
        let pfn = self.find_or_create(cx, index)?;
        if self.host.config.kernel.clears_at_allocation() {
            self.make_uptodate(cx, pfn);
        }
        Ok(pfn)
    }

    /// `kvm_gmem_punch_hole`: frees a range of pages, wherever it lies.
    ///
    /// # Errors
    /// `ENOMEM` if a large page of a TD had to be split, and nothing is punched.
    fn punch_hole(&self, cx: &Cx<'_>, pages: Range<u64>) -> Result<(), Errno> {
        let _lock = (!cx.has_mutant(RC_42)).then(|| self.mapping.invalidate_lock.write(cx));
        let before = Surroundings::of(self, &pages);
        if cx.has_mutant(RC_07) {
            self.truncate(cx, pages.clone());
        }
        let zapped = if cx.has_mutant(GMEM_2M_NARROW) { pages.clone() } else { self.whole_folios(&pages) };
        let mut open = Vec::new();
        let begun = self.views().into_iter().try_for_each(|view| {
            open.push((view.invalidate_start(cx, &zapped, &pages)?, view));
            Ok(())
        });
        let mut close = || {
            for (invalidation, view) in open.drain(..) {
                view.invalidate_end(cx, &zapped, invalidation);
            }
        };
        if begun.is_err() {
            close();
            return begun;
        }
        if cx.has_mutant(RC_03) {
            close();
        }
        self.truncate(cx, pages.clone());
        close();
        before.check(self);
        Ok(())
    }

    fn truncate(&self, cx: &Cx<'_>, pages: Range<u64>) {
        self.punching.lock().push(pages.clone());
        let host = &self.host;
        self.mapping.truncate(cx, pages.clone(), &mut |pfn, pages| host.arch_gmem_reclaim(cx, pfn..pfn + pages));
        let mut punching = self.punching.lock();
        let at = punching.iter().position(|hole| *hole == pages).expect("pushed above");
        punching.swap_remove(at);
    }

    /// `kvm_gmem_allocate`: pages exist afterwards, their contents are still undefined.
    fn allocate(&self, cx: &Cx<'_>, pages: Range<u64>) -> Result<(), Errno> {
        let _lock = (!cx.has_mutant(RC_43)).then(|| self.mapping.invalidate_lock.read(cx));
        let mut index = pages.start;
        while index < pages.end {
            if cx.signal_pending() {
                return Err(Errno::EINTR);
            }
            let pfn = self.get_folio(cx, Pgoff(index))?;
            let punched = self.punching.lock().iter().any(|hole| hole.contains(&index));
            assert!(!punched, "INV-103: page {index} is allocated in the middle of a hole punch");
            if cx.has_mutant(RC_14) {
                self.host.phys.set_flags(pfn, FrameFlags::UPTODATE);
            }
            let folio = if self.host.phys.is_large(pfn) { PAGES_PER_PMD } else { 1 };
            self.host.phys.unlock(cx, pfn);
            self.host.phys.put(cx, pfn);
            index = (index & !(folio - 1)) + folio;
            cx.cond_resched();
        }
        Ok(())
    }

    /// `kvm_gmem_error_folio`, called by the memory-failure worker with the page locked: nothing maps it any more.
    fn error_folio(&self, cx: &Cx<'_>, pfn: Pfn, lock: bool) {
        let _lock = lock.then(|| self.mapping.invalidate_lock.read(cx));
        let index = self.host.phys.index(pfn).0;
        let pages = self.whole_folios(&(index..index + 1));
        for view in self.views() {
            // Nobody asks whether it can be done: a large page that cannot be split goes as a whole.
            let invalidation = view.invalidate_start(cx, &pages, &(index..index + 1));
            let invalidation = invalidation.or_else(|_| view.invalidate_start(cx, &pages, &pages));
            let invalidation = invalidation.expect("whole pages are not split");
            view.invalidate_end(cx, &pages, invalidation);
        }
    }

    /// `memory_failure` on a page of this file: marks it broken, unmaps it everywhere and keeps it out of use for good.
    ///
    /// # Errors
    /// `EHWPOISON` if it is marked already; `ENOENT` if no page is there; `EBUSY` otherwise, because guest_memfd keeps the page in
    /// its cache, which the generic code takes for a failure.
    pub fn memory_failure(&self, cx: &Cx<'_>, index: Pgoff) -> Result<(), Errno> {
        let phys = &self.host.phys;
        let pfn = self.mapping.load(cx, index).ok_or(Errno::ENOENT)?;
        if !phys.poison(cx, pfn) {
            return Err(Errno::EHWPOISON);
        }
        self.failing.lock().push(pfn);
        let in_order = !self.host.config.hwpoison_abba && !cx.has_mutant(RC_62);
        let _lock = in_order.then(|| self.mapping.invalidate_lock.read(cx));
        phys.lock(cx, pfn);
        if phys.is_large(pfn) {
            // `try_to_split_thp_page`: only one page is broken.
            phys.split_folio(cx, pfn);
        }
        self.mapping.i_mmap().unmap_page(cx, index);
        if phys.mapping(pfn).is_some() {
            self.error_folio(cx, pfn, !in_order && !cx.has_mutant(RC_45));
        }
        let (guest, host) = (phys.spte_count(pfn), phys.mapcount(pfn));
        assert_eq!((guest, host), (0, 0), "INV-211: {pfn:?} is mapped after its failure was handled");
        self.failing.lock().retain(|other| *other != pfn);
        phys.unlock(cx, pfn);
        Err(Errno::EBUSY)
    }
}

impl fmt::Debug for GmemInode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GmemInode").field("ino", &self.ino).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Vm {
    /// `KVM_CREATE_GUEST_MEMFD`: returns a descriptor of `caller`.
    ///
    /// # Errors
    /// `EINVAL` for flags that the VM does not offer and for sizes that are not positive or not whole pages; `EMFILE`.
    pub fn create_guest_memfd(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        caller: &Process,
        args: &kvm_create_guest_memfd,
    ) -> Result<RawFd, Errno> {
        let valid = self.check_extension(Cap::GuestMemfdFlags as u64) as u64;
        if args.flags & !valid != 0 {
            return Err(Errno::EINVAL);
        }
        if args.size as i64 <= 0 || !args.size.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        caller.fds.reserve()?;
        let host = &self.host;
        let ino = host.new_ino();
        let inode = Arc::new(GmemInode {
            host: Arc::clone(host),
            ino,
            size: args.size,
            flags: args.flags,
            mapping: AddressSpace::new(cx, &host.phys, &host.nodes, ino),
            files: Default::default(),
            punching: Default::default(),
            failing: Default::default(),
            policy: SharedPolicy::default(),
            sharing: (self.is_pvm() && host.config.pkvm_gmem)
                .then(|| GmemSharing::new(args.flags & GUEST_MEMFD_FLAG_INIT_SHARED != 0)),
        });
        let view = Arc::new(GmemFile {
            vm: Arc::clone(self),
            inode,
            bindings: XArray::new_in(cx, "gmem->bindings", &host.nodes, host.xa_flags(cx, RC_56)),
            slots: Default::default(),
            released: AtomicBool::new(false),
        });
        host.watch_inode(&view.inode);
        if !cx.has_mutant(RC_58) {
            self.get(cx);
        }
        view.inode.files.lock().push(Arc::downgrade(&view));
        let file = File::new(cx, view);
        caller.install(cx, file)
    }

    /// The view behind a file that is known to be a guest_memfd.
    pub(crate) fn gmem_of<'a>(&self, file: &'a Arc<File>) -> &'a GmemFile {
        let view = file.downcast::<GmemFile>().expect("checked when the slot was prepared");
        view.assert_live();
        view
    }

    /// Does something with the guest_memfd that a slot is bound to.
    ///
    /// # Errors
    /// `EFAULT` if the file is gone or going; otherwise what is done answers.
    pub(super) fn with_gmem(
        &self,
        cx: &Cx<'_>,
        slot: &Memslot,
        act: impl FnOnce(&GmemInode) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let file = slot.gmem_get_file(cx).ok_or(Errno::EFAULT)?;
        let result = act(self.gmem_of(&file).inode());
        file.put(cx);
        result
    }

    /// `kvm_gmem_get_pfn`: the page behind a guest frame of a bound slot, with a reference. Takes no `invalidate_lock`: the caller's
    /// sequence tells it later whether the answer still holds.
    ///
    /// # Errors
    /// `EFAULT` if the file is gone or going; `EIO` if it does not know the slot, which is a bug; `ENOMEM`; `EHWPOISON`.
    pub(crate) fn gmem_get_pfn(self: &Arc<Vm>, cx: &Cx<'_>, slot: &Memslot, gfn: Gfn) -> Result<GmemPage, Errno> {
        slot.assert_live();
        let file = slot.gmem_get_file(cx).ok_or(Errno::EFAULT)?;
        let result = self.gmem_get_folio(cx, &file, slot, gfn);
        file.put(cx);
        result
    }

    fn gmem_get_folio(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        file: &Arc<File>,
        slot: &Memslot,
        gfn: Gfn,
    ) -> Result<GmemPage, Errno> {
        let view = self.gmem_of(file);
        let index = slot.gmem_index(gfn);
        // G2, G3: is this really the slot's file, and does the file agree?
        if !slot.gmem.names(cx, file) {
            return Err(Errno::EFAULT);
        }
        if view.bindings.load(cx, index.0) != Some(Handle(slot.handle)) {
            let is_bug = self.kernel().handles_failed_binding();
            assert!(!is_bug, "INV-603: {gfn:?} of slot {:?} is not bound to page {index} of its file", slot.id);
            return Err(Errno::EIO);
        }
        let inode = &view.inode;
        let phys = &inode.host.phys;
        let pfn = inode.get_folio(cx, index)?;
        view.assert_live();
        assert!(phys.refcount(pfn) >= 2, "INV-104: a page that was looked up is cached and referenced");
        let mine = phys.is_locked(pfn) && phys.mapping(pfn) == Some(inode.mapping.id());
        assert!(mine, "INV-104: {pfn:?} was looked up at {index:?} but is not locked, or not the file's any more");
        assert!(Arc::ptr_eq(&view.vm, self), "INV-111: a slot of one VM uses the file of another");
        let level = if inode.allows_large(slot, gfn, pfn, cx) { Level::L2M } else { Level::L4K };
        let result = if phys.is_poisoned(cx, pfn) && !cx.has_mutant(RC_36) {
            if cx.has_mutant(RC_64) {
                return Err(Errno::EHWPOISON);
            }
            if self.kernel().leaks_broken_pages() || cx.has_mutant(BUG_10) {
                phys.unlock(cx, pfn);
                return Err(Errno::EHWPOISON);
            }
            Err(Errno::EHWPOISON)
        } else {
            if cx.has_mutant(RC_13) {
                phys.unlock(cx, pfn);
            }
            let late = cx.has_mutant(SEV_ASSIGN_UNCLEARED);
            if !late {
                inode.make_uptodate(cx, pfn);
            }
            if cx.has_mutant(RC_13) {
                phys.lock(cx, pfn);
            }
            let made = self.gmem_make_private(cx, inode, gfn, pfn, level);
            if late {
                inode.make_uptodate(cx, pfn);
            }
            made
        };
        phys.unlock(cx, pfn);
        match result {
            Ok(()) => Ok(GmemPage { pfn, level }),
            Err(errno) => {
                phys.put(cx, pfn);
                Err(errno)
            }
        }
    }

    /// Gives the page of a private inode, or its whole folio, to the guest before it is mapped. Whatever the machine answers, the page stays in the file,
    /// cleared; the next look-up asks again.
    fn gmem_make_private(&self, cx: &Cx<'_>, inode: &GmemInode, gfn: Gfn, pfn: Pfn, level: Level) -> Result<(), Errno> {
        if inode.is_init_shared() {
            return Ok(());
        }
        self.arch_gmem_make_private(cx, gfn, pfn, level)
    }
}

impl Memslot {
    /// `kvm_gmem_get_file`: the slot's file with a reference, unless it is being released.
    fn gmem_get_file(&self, cx: &Cx<'_>) -> Option<Arc<File>> {
        let Some(named) = self.gmem.file(cx) else {
            let lost = !self.gmem.is_released() && !self.is_freed();
            assert!(!lost, "INV-304: slot {:?} is used and has no file, though none was released", self.id);
            return None;
        };
        let Some(file) = named.upgrade() else { panic!("INV-406: slot {:?} names a file that was freed", self.id) };
        if cx.has_mutant(RC_15) {
            file.get(cx);
        } else if !file.get_if_live(cx) {
            return None;
        }
        // The memory of a released file may hold another one by now: is this still the file that the slot names?
        if self.gmem.names(cx, &file) {
            return Some(file);
        }
        file.put(cx);
        None
    }
}

impl GmemFile {
    /// Asserts that the view was not released.
    fn assert_live(&self) {
        assert!(!self.released.load(Ordering::SeqCst), "INV-402: a guest_memfd is used after it was released");
    }

    /// Whether the view was released.
    pub fn is_freed(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }

    /// The inode.
    pub fn inode(&self) -> &Arc<GmemInode> {
        &self.inode
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Whether the host may map the file.
    pub fn is_mappable(&self) -> bool {
        self.inode.is_mappable()
    }

    /// The bindings that intersect a range of pages, as guest frames: once for every chunk of the array.
    fn bound_frames(&self, cx: &Cx<'_>, pages: &Range<u64>) -> Vec<(u16, GfnRange)> {
        let mut found = Vec::new();
        if pages.is_empty() {
            return found;
        }
        self.bindings.for_each_range(cx, pages.start, pages.end - 1, |_, handle| {
            let slot = Arc::clone(self.slots.lock().get(&handle.0).expect("INV-303: a binding names a slot of the VM"));
            slot.dereference(cx);
            let pgoff = slot.gmem.pgoff.0;
            let mut first = pgoff.max(pages.start) - pgoff;
            let mut end = (pgoff + slot.npages).min(pages.end) - pgoff;
            if cx.has_mutant(RC_65) {
                (first, end) = (pages.start, pages.end);
            }
            found.push((slot.as_id, GfnRange::new(slot.base_gfn + first, slot.base_gfn + end)));
        });
        found
    }

    /// `kvm_gmem_invalidate_start`: zaps the guest frames that the range of pages backs and keeps faults away from them. The caller
    /// holds `invalidate_lock`. `None` if nothing is bound, and then nothing happened.
    ///
    /// Of a TD only `hole` is zapped, because the guest has what is around it; what crosses its ends is split first
    /// (`kvm_gmem_split_private`). Faults are kept away from all of it, with what they have found.
    ///
    /// # Errors
    /// `ENOMEM` if that fails, and then nothing happened.
    fn invalidate_start(
        &self,
        cx: &Cx<'_>,
        pages: &Range<u64>,
        hole: &Range<u64>,
    ) -> Result<Option<Invalidation>, Errno> {
        self.assert_live();
        assert!(!self.vm.is_destroyed(), "INV-405: a guest_memfd outlived its VM");
        let mut frames = self.bound_frames(cx, pages);
        if frames.is_empty() {
            return Ok(None);
        }
        // One that was terminated has nothing to lose, and pages that go as they are only.
        let splits = self.vm.tdx().is_some_and(|tdx| tdx.hkid().is_some()) && pages != hole;
        let whole = if splits { Some(std::mem::replace(&mut frames, self.bound_frames(cx, hole))) } else { None };
        let mut lock = self.vm.mmu.mmu_lock.write(cx);
        if splits && !cx.has_mutant(TDX_NO_SPLIT) {
            for (_, range) in &frames {
                self.vm.mmu.split_cross_boundary_leafs(cx, &mut lock, *range)?;
            }
        }
        let kind = if self.inode.is_init_shared() { RootFilter::Shared } else { RootFilter::Private };
        let invalidation = self.vm.invalidate_frames(cx, &mut lock, kind, frames.iter().copied());
        for (_, range) in whole.iter().flatten() {
            self.vm.mmu.invalidate.add_range(cx, &mut lock, *range);
        }
        self.pkvm_invalidate(cx, &mut lock, &frames);
        self.vm.sev_gmem_invalidate_range(cx, &frames);
        Ok(Some(invalidation))
    }

    /// `kvm_gmem_invalidate_end`. The bindings are as they were, because `invalidate_lock` was held throughout.
    fn invalidate_end(&self, cx: &Cx<'_>, pages: &Range<u64>, invalidation: Option<Invalidation>) {
        self.assert_live();
        let bound = !pages.is_empty() && self.bindings.find(cx, pages.start, pages.end - 1).is_some();
        assert_eq!(bound, invalidation.is_some(), "INV-301: the bindings changed inside an invalidation");
        if let Some(invalidation) = invalidation {
            let mut lock = self.vm.mmu.mmu_lock.write(cx);
            self.vm.mmu.invalidate.end(cx, &mut lock, invalidation);
        }
    }

    /// INV-403, INV-505: nobody maps the file that is released, and the task holds nothing that the release takes.
    fn check_release(&self, cx: &Cx<'_>) {
        let mapped = self.inode.mapping.i_mmap().peek_is_mapped();
        assert!(mapped != Some(true), "INV-403: a guest_memfd is released while it is mapped");
        let held = cx.held_locks();
        // The VMM's lock around a vCPU, and the vCPU's own, which `KVM_RUN` keeps.
        let inner = held.iter().find(|lock| !["vcpu->mutex", "vmm->vcpu"].contains(&lock.class));
        if let Some(lock) = inner {
            panic!("INV-505: the last put of a guest_memfd releases it under {lock}");
        }
    }

    /// Every page that may be bound.
    fn pages(&self) -> Range<u64> {
        if self.vm.kernel().adds_binding_offset_unsigned() { 0..self.inode.size >> PAGE_SHIFT } else { 0..u64::MAX }
    }
}

impl FileOperations for GmemFile {
    /// `kvm_gmem_release`, then, because this is the inode's only file, `evict`.
    fn release(&self, cx: &Cx<'_>) {
        self.check_release(cx);
        {
            let _slots = (!cx.has_mutant(RC_50)).then(|| self.vm.slots_lock.lock(cx));
            let _lock = self.inode.mapping.invalidate_lock.write(cx);
            for slot in self.slots.lock().values() {
                slot.assert_live();
            }
            let bound: Vec<_> = self.slots.lock().values().cloned().collect();
            for slot in &bound {
                slot.gmem.set_released();
                slot.gmem.set_file(cx, None);
            }
            if self.vm.kernel().unbinding_synchronizes_rcu() {
                synchronize_rcu(cx);
            }
            let pages = self.pages();
            if !cx.has_mutant(RC_17) {
                let invalidation = self.invalidate_start(cx, &pages, &pages).expect("nothing is left to be split for");
                self.invalidate_end(cx, &pages, invalidation);
            }
            self.inode.files.lock().retain(|view| !std::ptr::eq(view.as_ptr(), self));
        }
        // Not inside the `for`: its lock would last.
        let unbound = std::mem::take(&mut *self.slots.lock());
        for slot in unbound.into_values() {
            let (first, last) = (slot.gmem.pgoff.0, slot.gmem.pgoff.0 + slot.npages - 1);
            self.bindings.store_range(cx, first, last, None).expect("erasing needs no memory");
        }
        let again = self.released.swap(true, Ordering::SeqCst);
        assert!(!again, "INV-402: a guest_memfd is released twice");
        if !cx.has_mutant(RC_58) {
            self.vm.put(cx);
        }
        self.inode.mapping.truncate(cx, 0..u64::MAX, &mut |pfn, pages| {
            if cx.has_mutant(RC_61) {
                // All references but the cache's and that of whoever truncates.
                let phys = &self.inode.host.phys;
                (2..phys.refcount(pfn)).for_each(|_| phys.put_unscheduled(pfn));
            }
            self.inode.host.arch_gmem_reclaim(cx, pfn..pfn + pages);
        });
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn fallocate(&self, cx: &Cx<'_>, mode: u32, offset: u64, len: u64) -> Result<(), Errno> {
        if mode & FALLOC_FL_KEEP_SIZE == 0 || mode & !(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE) != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if !offset.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        self.assert_live();
        let pages = offset >> PAGE_SHIFT..(offset + len) >> PAGE_SHIFT;
        if mode & FALLOC_FL_PUNCH_HOLE != 0 {
            return self.inode.punch_hole(cx, pages);
        }
        if offset + len > self.inode.size {
            return Err(Errno::EINVAL);
        }
        self.inode.allocate(cx, pages)
    }

    fn stat(&self, _cx: &Cx<'_>) -> Stat {
        Stat {
            ino: u64::from(self.inode.ino),
            mode: 0o100_600,
            nlink: 1,
            size: self.inode.size,
            blksize: PAGE_SIZE,
            // guest_memfd does not account its pages to the inode.
            blocks: 0,
        }
    }

    fn mmap(&self, _cx: &Cx<'_>, request: &MmapRequest) -> Result<(), Errno> {
        if !self.is_mappable() {
            return Err(Errno::ENODEV);
        }
        if request.shared { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn may_exec(&self) -> bool {
        !self.vm.kernel().guest_memfd_is_noexec()
    }

    /// `kvm_gmem_fault_user_mapping`.
    fn fault(&self, cx: &Cx<'_>, pgoff: Pgoff) -> Result<Fault, FaultError> {
        self.assert_live();
        let inode = &self.inode;
        // What may change in place is looked at, and the page locked, before somebody can begin to change it.
        let _lock = inode.sharing.is_some().then(|| inode.mapping.invalidate_lock.read(cx));
        let is_shared = inode.sharing.as_ref().map_or(inode.is_init_shared(), |sharing| sharing.is_shared(pgoff));
        if pgoff.0 >= inode.size >> PAGE_SHIFT || !is_shared {
            return Err(FaultError::Sigbus);
        }
        let pfn = inode.find_or_create(cx, pgoff).map_err(|errno| match errno {
            Errno::ENOMEM => FaultError::Oom,
            _ => FaultError::Sigbus,
        })?;
        if inode.host.phys.is_poisoned(cx, pfn) {
            inode.host.phys.unlock(cx, pfn);
            inode.host.phys.put(cx, pfn);
            return Err(FaultError::HwPoison);
        }
        inode.make_uptodate(cx, pfn);
        Ok(Fault { pfn })
    }

    /// `kvm_gmem_set_policy`.
    fn set_policy(&self, _cx: &Cx<'_>, pages: Range<Pgoff>, policy: Mempolicy) {
        if self.vm.kernel().guest_memfd_has_policy() {
            self.inode.policy.set(pages, policy);
        }
    }

    /// `kvm_gmem_get_policy`: of the file, not of the task.
    fn get_policy(&self, _cx: &Cx<'_>, pgoff: Pgoff) -> Option<Mempolicy> {
        self.inode.policy.get(pgoff)
    }

    fn memory_failure(&self, cx: &Cx<'_>, pgoff: Pgoff) -> Result<(), Errno> {
        self.inode.memory_failure(cx, pgoff)
    }

    fn i_mmap(&self) -> Option<&Arc<IMmap>> {
        Some(self.inode.mapping.i_mmap())
    }

    fn resident_pages(&self, cx: &Cx<'_>, range: Range<Pgoff>) -> Vec<Pgoff> {
        self.inode.mapping.uptodate_pages(cx, range)
    }
}

impl fmt::Debug for GmemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GmemFile").field("inode", &self.inode).finish_non_exhaustive()
    }
}
