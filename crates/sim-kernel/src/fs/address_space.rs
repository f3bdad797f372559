//! The page cache of a file (`struct address_space`, `mm/filemap.c`, `mm/truncate.c`), with pages of order 0.
//!
//! A page is in the cache iff its frame names the address space. Whoever finds a page locks it and then tests that it is still in
//! the cache, because truncation removes pages under the same lock. `invalidate_lock` excludes truncation against whoever must
//! not see the cache change underneath.

use crate::mm::{FrameFlags, IMmap, PhysMem, Placement};
use crate::mutants::{RC_10, RC_37, RC_38, RC_46, RC_57};
use crate::sync::RwLock;
use crate::xarray::{Handle, InsertError, NodeCache, NodeShape, XArray, XaFlags, XaViolation};
use crate::{Cx, Errno, Pfn, Pgoff};
use std::ops::Range;
use std::sync::Arc;

/// Most pages that truncation collects before it removes them (a `folio_batch`).
const BATCH: usize = 31;

/// The page cache of one inode.
#[derive(Debug)]
pub struct AddressSpace {
    id: u32,
    phys: Arc<PhysMem>,
    /// `mapping->invalidate_lock`.
    pub invalidate_lock: RwLock<()>,
    pages: XArray<Handle>,
    i_mmap: Arc<IMmap>,
}

impl AddressSpace {
    /// An empty cache; `id` is unique on the host and not 0.
    pub fn new(cx: &Cx<'_>, phys: &Arc<PhysMem>, nodes: &Arc<NodeCache>, id: u32) -> AddressSpace {
        assert_ne!(id, 0, "an address space has a number");
        AddressSpace {
            id,
            phys: Arc::clone(phys),
            invalidate_lock: RwLock::new(cx, "invalidate_lock", ()),
            pages: XArray::new_in(cx, "i_pages", nodes, XaFlags::empty()),
            i_mmap: Arc::new(IMmap::new(cx)),
        }
    }

    /// The mappings of the file.
    pub fn i_mmap(&self) -> &Arc<IMmap> {
        &self.i_mmap
    }

    /// The cached page at `index` without a scheduling point: for checkers.
    pub fn peek(&self, index: Pgoff) -> Option<Pfn> {
        self.pages.peek(index.0).map(pfn_of)
    }

    /// The cached page at `index`, without a reference: it may be gone at once.
    #[track_caller]
    pub fn load(&self, cx: &Cx<'_>, index: Pgoff) -> Option<Pfn> {
        self.pages.load(cx, index.0).map(pfn_of)
    }

    /// Number of the cache, which its frames name.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What is wrong with the structure of the page index (INV-701): for checkers.
    pub fn check(&self) -> Vec<XaViolation> {
        self.pages.check()
    }

    /// The nodes of the page index, parents before children, without scheduling points: for reports.
    pub fn shape(&self) -> impl Iterator<Item = NodeShape> {
        self.pages.shape()
    }

    /// The pages of a range as they are now, at most `most` of them, ascending, without scheduling points: for checkers.
    pub fn peek_range(&self, range: Range<u64>, most: usize) -> Vec<(Pgoff, Pfn)> {
        let mut found = Vec::new();
        let mut from = range.start;
        while from < range.end
            && found.len() < most
            && let Some((index, handle)) = self.pages.peek_find(from, range.end - 1)
        {
            found.push((Pgoff(index), pfn_of(handle)));
            from = index.saturating_add(1);
        }
        found
    }

    /// Every cached page, ascending, without scheduling points: for checkers.
    pub fn for_each_page(&self, mut look: impl FnMut(Pgoff, Pfn)) {
        let mut from = 0;
        while let Some((index, handle)) = self.pages.peek_find(from, u64::MAX) {
            look(Pgoff(index), pfn_of(handle));
            match index.checked_add(1) {
                Some(next) => from = next,
                None => return,
            }
        }
    }

    /// Whether no page is cached.
    pub fn is_empty(&self) -> bool {
        self.pages.peek_find(0, u64::MAX).is_none()
    }

    /// `filemap_get_entry`: the page at `index` with a reference, or nothing.
    fn get(&self, cx: &Cx<'_>, index: Pgoff) -> Option<Pfn> {
        loop {
            let pfn = pfn_of(self.pages.load(cx, index.0)?);
            if !self.phys.try_get(cx, pfn) {
                continue;
            }
            // The frame may have been freed and reused before the reference was taken: is it still the page at this index?
            if cx.has_mutant(RC_57) || self.pages.load(cx, index.0).map(pfn_of) == Some(pfn) {
                return Some(pfn);
            }
            self.phys.put(cx, pfn);
        }
    }

    /// `filemap_lock_folio`: the page at `index`, locked and with a reference, or nothing.
    #[track_caller]
    pub fn find_lock(&self, cx: &Cx<'_>, index: Pgoff) -> Option<Pfn> {
        loop {
            let pfn = self.get(cx, index)?;
            self.phys.lock(cx, pfn);
            if cx.has_mutant(RC_10) || self.phys.mapping(pfn) == Some(self.id) {
                assert_eq!(self.phys.index(pfn), index, "INV-101: a cached page knows its index");
                return Some(pfn);
            }
            self.phys.unlock(cx, pfn);
            self.phys.put(cx, pfn);
        }
    }

    /// `__filemap_get_folio(FGP_LOCK | FGP_CREAT)`: the page at `index`, locked and with a reference; a new one has undefined
    /// contents and is not up to date.
    ///
    /// # Errors
    /// `ENOMEM`.
    #[track_caller]
    pub fn find_or_create(&self, cx: &Cx<'_>, index: Pgoff) -> Result<Pfn, Errno> {
        self.find_or_create_in(cx, index, || Placement::LOCAL)
    }

    /// As [`AddressSpace::find_or_create`]; `place` says from which nodes a new page comes.
    ///
    /// # Errors
    /// `ENOMEM`.
    #[track_caller]
    pub fn find_or_create_in(&self, cx: &Cx<'_>, index: Pgoff, place: impl Fn() -> Placement) -> Result<Pfn, Errno> {
        loop {
            if let Some(pfn) = self.find_lock(cx, index) {
                return Ok(pfn);
            }
            let pfn = self.phys.alloc_in(place())?;
            self.phys.lock(cx, pfn);
            match self.insert(cx, index, pfn) {
                Ok(()) => return Ok(pfn),
                Err(Errno::EEXIST) if cx.has_mutant(RC_37) => return Ok(pfn),
                Err(errno) => {
                    self.phys.unlock(cx, pfn);
                    self.phys.put(cx, pfn);
                    if errno != Errno::EEXIST {
                        return Err(errno);
                    }
                    // Somebody else was faster: take theirs.
                }
            }
        }
    }

    /// `filemap_add_folio`: puts a locked page into the cache, which takes a reference of its own.
    fn insert(&self, cx: &Cx<'_>, index: Pgoff, pfn: Pfn) -> Result<(), Errno> {
        // The frame names its cache before anybody can find it there.
        self.phys.set_mapping(pfn, self.id, index);
        let handle = Handle(u32::try_from(pfn.0).expect("frame numbers have 32 bits"));
        if cx.has_mutant(RC_46) {
            let old = self.pages.store(cx, index.0, Some(handle))?;
            assert!(old.is_none(), "INV-101: {pfn:?} replaces {old:?}, which is cached, at {index:?}");
            self.phys.get(pfn);
            return Ok(());
        }
        match self.pages.insert(cx, index.0, handle) {
            Ok(()) => {
                self.phys.get(pfn);
                Ok(())
            }
            Err(error) => {
                self.phys.clear_mapping(pfn);
                Err(match error {
                    InsertError::Busy(_) => Errno::EEXIST,
                    InsertError::NoMemory => Errno::ENOMEM,
                })
            }
        }
    }

    /// The pages of the range that are cached and up to date, ascending (`mincore_page` for each).
    pub fn uptodate_pages(&self, cx: &Cx<'_>, range: Range<Pgoff>) -> Vec<Pgoff> {
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end
            && let Some((index, _)) = self.pages.find(cx, at.0, range.end.0 - 1)
        {
            at = Pgoff(index);
            if let Some(pfn) = self.get(cx, at) {
                if self.phys.flags(pfn).contains(FrameFlags::UPTODATE) {
                    found.push(at);
                }
                self.phys.put(cx, pfn);
            }
            at = at + 1;
        }
        found
    }

    /// `truncate_inode_pages_range` over whole pages: removes every page of the range from the cache; `reclaim` is told of each as it
    /// leaves.
    ///
    /// As the kernel does it: a first pass in batches that skips locked pages, then the first and the last page, then passes that
    /// wait for locks until nothing is found.
    pub fn truncate(&self, cx: &Cx<'_>, range: Range<u64>, reclaim: &mut dyn FnMut(Pfn)) {
        if range.is_empty() || self.is_empty_at(cx) {
            return;
        }
        let last = range.end - 1;
        let mut from = range.start;
        loop {
            let batch = self.lookup_batch(cx, from, last, Lock::Try);
            let Some(&(index, _, _)) = batch.last() else { break };
            self.delete_batch(cx, &batch, reclaim);
            if index >= last {
                break;
            }
            from = index + 1;
        }
        self.truncate_one(cx, range.start, reclaim);
        if last != range.start {
            self.truncate_one(cx, last, reclaim);
        }
        let mut from = range.start;
        loop {
            let batch = self.lookup_batch(cx, from, last, Lock::Wait);
            let Some(&(index, _, _)) = batch.last() else {
                if from == range.start {
                    return;
                }
                // Something may have come back behind the scan: once more from the start.
                from = range.start;
                continue;
            };
            self.delete_batch(cx, &batch, reclaim);
            from = if index >= last { range.start } else { index + 1 };
        }
    }

    fn is_empty_at(&self, cx: &Cx<'_>) -> bool {
        self.pages.find(cx, 0, u64::MAX).is_none()
    }

    /// Collects up to a batch of pages with a reference each, locked if the lock could be had.
    fn lookup_batch(&self, cx: &Cx<'_>, from: u64, last: u64, lock: Lock) -> Vec<(u64, Pfn, Locked)> {
        let mut batch = Vec::new();
        let mut at = from;
        while batch.len() < BATCH && at <= last {
            let Some((index, handle)) = self.pages.find(cx, at, last) else { break };
            let pfn = pfn_of(handle);
            if !self.phys.try_get(cx, pfn) {
                continue;
            }
            if self.pages.load(cx, index).map(pfn_of) != Some(pfn) {
                self.phys.put(cx, pfn);
                continue;
            }
            let locked = match lock {
                Lock::Wait => {
                    self.phys.lock(cx, pfn);
                    Locked::Yes
                }
                Lock::Try if self.phys.try_lock(cx, pfn) => Locked::Yes,
                Lock::Try => Locked::No,
            };
            batch.push((index, pfn, locked));
            // A waiting pass handles page by page, so that it never holds a lock while it waits for another.
            if lock == Lock::Wait {
                break;
            }
            match index.checked_add(1) {
                Some(next) => at = next,
                None => break,
            }
        }
        batch
    }

    fn truncate_one(&self, cx: &Cx<'_>, index: u64, reclaim: &mut dyn FnMut(Pfn)) {
        if let Some(pfn) = self.find_lock(cx, Pgoff(index)) {
            self.delete_batch(cx, &[(index, pfn, Locked::Yes)], reclaim);
        }
    }

    /// Unmaps the locked pages of the batch from processes, takes them out of the cache, and drops all references of the batch.
    fn delete_batch(&self, cx: &Cx<'_>, batch: &[(u64, Pfn, Locked)], reclaim: &mut dyn FnMut(Pfn)) {
        let mine: Vec<(u64, Pfn)> = batch
            .iter()
            .filter(|(_, pfn, locked)| *locked == Locked::Yes && self.phys.mapping(*pfn) == Some(self.id))
            .map(|(index, pfn, _)| (*index, *pfn))
            .collect();
        for &(index, pfn) in &mine {
            if self.phys.mapcount(pfn) > 0 {
                if cx.has_mutant(RC_38) {
                    self.phys.unlock(cx, pfn);
                }
                self.i_mmap.unmap_page(cx, Pgoff(index));
                if cx.has_mutant(RC_38) {
                    self.phys.lock(cx, pfn);
                }
            }
        }
        for &(index, pfn) in &mine {
            self.pages.erase(cx, index);
            let mapped = self.phys.mapcount(pfn);
            assert_eq!(mapped, 0, "INV-212: {pfn:?} leaves the page cache while a host page table names it");
            self.phys.clear_mapping(pfn);
            reclaim(pfn);
        }
        for &(_, pfn) in &mine {
            self.phys.put(cx, pfn);
        }
        for &(_, pfn, locked) in batch {
            if locked == Locked::Yes {
                self.phys.unlock(cx, pfn);
            }
            self.phys.put(cx, pfn);
        }
    }
}

/// Whether a lookup waits for page locks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lock {
    Try,
    Wait,
}

/// Whether a page of a batch was locked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Locked {
    Yes,
    No,
}

fn pfn_of(handle: Handle) -> Pfn {
    Pfn(u64::from(handle.0))
}
