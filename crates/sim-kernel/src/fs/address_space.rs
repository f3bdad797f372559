//! The page cache of a file (`struct address_space`, `mm/filemap.c`, `mm/truncate.c`), with folios of one page and, where the file wants them
//! (`mapping_set_large_folios`), of 512.
//!
//! A page is in the cache iff its frame names the address space. Whoever finds a page locks it and then tests that it is still in
//! the cache, because truncation removes pages under the same lock. `invalidate_lock` excludes truncation against whoever must
//! not see the cache change underneath.
//!
//! Simplified: a large folio is 512 entries of the cache, which come and go in one step, each with references of its own; its lock is one. So it can be
//! split whoever holds a reference.

use crate::mm::{FrameFlags, IMmap, PhysMem, Placement};
use crate::mutants::{RC_10, RC_37, RC_38, RC_46, RC_57};
use crate::sync::RwLock;
use crate::xarray::{Handle, InsertError, NodeCache, NodeShape, XArray, XaFlags, XaViolation};
use crate::{Cx, Errno, PAGES_PER_PMD, Pfn, Pgoff};
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

    /// As [`AddressSpace::find_or_create_in`]; a new page is one of a large folio if nothing of all its pages is cached and there is memory for it. The
    /// reference is to the page, the lock is the folio's. The folio must end before the file does.
    ///
    /// # Errors
    /// `ENOMEM`.
    #[track_caller]
    pub fn find_or_create_large_in(
        &self,
        cx: &Cx<'_>,
        index: Pgoff,
        place: impl Fn() -> Placement,
    ) -> Result<Pfn, Errno> {
        if let Some(pfn) = self.find_lock(cx, index) {
            return Ok(pfn);
        }
        let first = index.0 & !(PAGES_PER_PMD - 1);
        if self.pages.find(cx, first, first + PAGES_PER_PMD - 1).is_none()
            && let Ok(head) = self.phys.alloc_large_in(place())
        {
            self.phys.lock(cx, head);
            if self.insert_large(cx, first, head) {
                let pfn = head + (index.0 - first);
                self.phys.get(pfn);
                return Ok(pfn);
            }
            // Somebody else was faster with a part of it.
            self.phys.unlock(cx, head);
            self.phys.put_huge(cx, head);
        }
        self.find_or_create_in(cx, index, place)
    }

    /// `filemap_add_folio` of a large folio, which gives the cache the references that it was made with. False if something of it is cached, or memory
    /// has run out.
    fn insert_large(&self, cx: &Cx<'_>, first: u64, head: Pfn) -> bool {
        (0..PAGES_PER_PMD).for_each(|i| self.phys.set_mapping(head + i, self.id, Pgoff(first + i)));
        let handle = |index| Handle(u32::try_from(head.0 + (index - first)).expect("frame numbers have 32 bits"));
        let inserted = self.pages.insert_each(cx, first, first + PAGES_PER_PMD - 1, handle).is_ok();
        if !inserted {
            (0..PAGES_PER_PMD).for_each(|i| self.phys.clear_mapping(head + i));
        }
        inserted
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

    /// `truncate_inode_pages_range` over whole pages: removes every page of the range from the cache; `reclaim` is told of each folio as it
    /// leaves, by its first page and how many there are. A large folio that the range has only a part of is split before.
    ///
    /// As the kernel does it: a first pass in batches that skips locked pages, then the first and the last page, then passes that
    /// wait for locks until nothing is found.
    pub fn truncate(&self, cx: &Cx<'_>, range: Range<u64>, reclaim: &mut dyn FnMut(Pfn, u64)) {
        if range.is_empty() || self.is_empty_at(cx) {
            return;
        }
        let last = range.end - 1;
        let mut from = range.start;
        loop {
            let batch = self.lookup_batch(cx, &range, from, Lock::Try);
            let Some(next) = batch.last().map(Found::next) else { break };
            self.delete_batch(cx, &batch, reclaim);
            if next > last {
                break;
            }
            from = next;
        }
        self.truncate_one(cx, &range, range.start, reclaim);
        if last != range.start {
            self.truncate_one(cx, &range, last, reclaim);
        }
        let mut from = range.start;
        loop {
            let batch = self.lookup_batch(cx, &range, from, Lock::Wait);
            let Some(next) = batch.last().map(Found::next) else {
                if from == range.start {
                    return;
                }
                // Something may have come back behind the scan: once more from the start.
                from = range.start;
                continue;
            };
            self.delete_batch(cx, &batch, reclaim);
            from = if next > last { range.start } else { next };
        }
    }

    fn is_empty_at(&self, cx: &Cx<'_>) -> bool {
        self.pages.find(cx, 0, u64::MAX).is_none()
    }

    /// Collects up to a batch of folios with a reference each, locked if the lock could be had.
    fn lookup_batch(&self, cx: &Cx<'_>, range: &Range<u64>, from: u64, lock: Lock) -> Vec<Found> {
        let mut batch = Vec::new();
        let (mut at, last) = (from, range.end - 1);
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
            let found = self.found(cx, range, index, pfn, locked);
            // A batch may end before a number wraps.
            let next = found.next();
            batch.push(found);
            // A waiting pass handles page by page, so that it never holds a lock while it waits for another.
            if lock == Lock::Wait || next <= at {
                break;
            }
            at = next;
        }
        batch
    }

    /// What was found at `index`, with a reference: a large folio as a whole, unless the range has only a part of it. Then it is split
    /// (`truncate_inode_partial_folio`), if it is locked.
    fn found(&self, cx: &Cx<'_>, range: &Range<u64>, index: u64, pfn: Pfn, locked: Locked) -> Found {
        let mut pages = 1;
        if self.phys.is_large(pfn) {
            let first = index - (pfn - self.phys.folio(pfn));
            let is_whole = range.start <= first && first + PAGES_PER_PMD <= range.end;
            if locked == Locked::Yes && !(is_whole && first == index) {
                self.phys.split_folio(cx, pfn);
            } else if locked == Locked::Yes {
                pages = PAGES_PER_PMD;
            } else {
                // It stays for the pass that waits, all of it.
                pages = (first + PAGES_PER_PMD).min(range.end) - index;
            }
        }
        Found { index, pfn, pages, locked }
    }

    fn truncate_one(&self, cx: &Cx<'_>, range: &Range<u64>, index: u64, reclaim: &mut dyn FnMut(Pfn, u64)) {
        if let Some(pfn) = self.find_lock(cx, Pgoff(index)) {
            let found = self.found(cx, range, index, pfn, Locked::Yes);
            self.delete_batch(cx, &[found], reclaim);
        }
    }

    /// Unmaps the locked pages of the batch from processes, takes them out of the cache, and drops all references of the batch.
    fn delete_batch(&self, cx: &Cx<'_>, batch: &[Found], reclaim: &mut dyn FnMut(Pfn, u64)) {
        let is_mine = |found: &&Found| found.locked == Locked::Yes && self.phys.mapping(found.pfn) == Some(self.id);
        let mine: Vec<&Found> = batch.iter().filter(is_mine).collect();
        for &&Found { index, pfn, .. } in &mine {
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
        for &&Found { index, pfn: first, pages, .. } in &mine {
            if pages == 1 {
                self.pages.erase(cx, index);
            } else {
                self.pages.store_range(cx, index, index + pages - 1, None).expect("erasing needs no memory");
            }
            for pfn in (0..pages).map(|i| first + i) {
                let mapped = self.phys.mapcount(pfn);
                assert_eq!(mapped, 0, "INV-212: {pfn:?} leaves the page cache while a host page table names it");
                self.phys.clear_mapping(pfn);
            }
            if pages > 1 {
                self.phys.dissolve(first);
            }
            reclaim(first, pages);
        }
        for found in mine.iter().filter(|found| found.pages == 1) {
            self.phys.put(cx, found.pfn);
        }
        for found in batch {
            if found.locked == Locked::Yes {
                self.phys.unlock(cx, found.pfn);
            }
            self.phys.put(cx, found.pfn);
        }
        for found in mine.iter().filter(|found| found.pages > 1) {
            self.phys.put_huge(cx, found.pfn);
        }
    }
}

/// A folio that truncation has found.
#[derive(Clone, Copy, Debug)]
struct Found {
    index: u64,
    /// Its first page, to which there is a reference.
    pfn: Pfn,
    /// Pages to go on with: of a folio that could not be locked, those of the range.
    pages: u64,
    locked: Locked,
}

impl Found {
    /// Where to look for the next.
    fn next(&self) -> u64 {
        self.index.saturating_add(self.pages)
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
