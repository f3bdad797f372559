//! Ordinary memory files (`mm/shmem.c`, `mm/memfd.c`): what `memfd_create` gives, and shared anonymous memory.
//!
//! Unlike guest memory they can be read, written, resized and mapped privately, and accesses through a mapping beyond the end get
//! `SIGBUS`.
//!
//! Simplified: the page cache is a plain map under one lock, no swap, no huge pages, no write seals, no sparse size limits.

use super::file::{Fault, FaultError, FileOperations, MmapRequest, Stat};
use crate::mm::{FrameFlags, IMmap, PhysMem};
use crate::sync::Mutex;
use crate::{Cx, Errno, PAGE_SIZE, Pfn, Pgoff};
use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// `FALLOC_FL_KEEP_SIZE`.
const KEEP_SIZE: u32 = 0x01;
/// `FALLOC_FL_PUNCH_HOLE`.
const PUNCH_HOLE: u32 = 0x02;
/// A page boundary beyond every file.
const END_OF_FILES: u64 = !(PAGE_SIZE - 1);
/// Bytes of the words that contents are copied by.
const WORD: u64 = 4;

bitflags::bitflags! {
    /// What must not happen to a memory file any more (`F_SEAL_*`).
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Seals: u32 {
        /// `F_SEAL_SEAL`: no more seals.
        const SEAL = 1;
        /// `F_SEAL_SHRINK`: not smaller.
        const SHRINK = 2;
        /// `F_SEAL_GROW`: not larger.
        const GROW = 4;
    }
}

#[derive(Debug, Default)]
struct Cache {
    /// `i_size`.
    size: u64,
    /// `i_pages`; the map holds one reference to each frame.
    pages: BTreeMap<Pgoff, Pfn>,
}

/// An open memory file.
#[derive(Debug)]
pub struct Shmem {
    phys: Arc<PhysMem>,
    ino: u64,
    /// `i_rwsem`: one change of size or contents at a time.
    inode_lock: Mutex<Seals>,
    /// `i_size` and `i_pages`, under the lock of the latter.
    cache: Mutex<Cache>,
    i_mmap: Arc<IMmap>,
    /// `f_pos`, here because a memory file is only ever opened once.
    position: parking_lot::Mutex<u64>,
    /// `st_mode`.
    mode: u32,
}

impl Cache {
    /// First byte at or after `offset` that lies in a page with contents (`data`) or in a hole; the end of the file is a hole, and so is a page that
    /// was only allocated.
    fn next_data_or_hole(&self, offset: u64, data: bool, has_contents: impl Fn(Pfn) -> bool) -> Option<u64> {
        let mut at = offset;
        while at < self.size {
            let page = Pgoff(at / PAGE_SIZE);
            match self.pages.range(page..).find(|(_, pfn)| has_contents(**pfn)) {
                Some((found, _)) if *found == page => {
                    if data {
                        return Some(at);
                    }
                    at = (page.0 + 1) * PAGE_SIZE;
                }
                _ if !data => return Some(at),
                Some((found, _)) => at = found.0 * PAGE_SIZE,
                None => return None,
            }
        }
        if data { None } else { Some(self.size) }
    }
}

impl Shmem {
    /// Address-space number of all memory files: only whether a frame is in the page cache of one matters.
    pub const MAPPING: u32 = u32::MAX;

    /// `memfd_create` and `ftruncate`: a file of `size` bytes.
    pub fn new(cx: &Cx<'_>, phys: Arc<PhysMem>, ino: u64, size: u64) -> Shmem {
        Shmem {
            phys,
            ino,
            inode_lock: Mutex::new(cx, "i_rwsem", Seals::empty()),
            cache: Mutex::new(cx, "i_pages", Cache { size, ..Cache::default() }),
            i_mmap: Arc::new(IMmap::new(cx)),
            position: parking_lot::Mutex::new(0),
            mode: 0o100_777,
        }
    }

    /// The file without its execute bits, as `MFD_NOEXEC_SEAL` makes it.
    #[must_use]
    pub fn not_executable(self) -> Shmem {
        Shmem { mode: 0o100_666, ..self }
    }

    /// `shmem_zero_setup`: the file behind shared anonymous memory; its inode number cannot be seen.
    pub(crate) fn anonymous(cx: &Cx<'_>, phys: Arc<PhysMem>, size: u64) -> Shmem {
        Shmem::new(cx, phys, 0, size)
    }

    /// `folio_test_uptodate`: the page has contents, and was not only allocated.
    fn is_uptodate(&self, pfn: Pfn) -> bool {
        self.phys.flags(pfn).contains(FrameFlags::UPTODATE)
    }

    /// `F_ADD_SEALS`.
    ///
    /// # Errors
    /// `EPERM` if the seals are sealed.
    pub fn add_seals(&self, cx: &Cx<'_>, seals: Seals) -> Result<(), Errno> {
        let mut current = self.inode_lock.lock(cx);
        if current.contains(Seals::SEAL) {
            return Err(Errno::EPERM);
        }
        *current |= seals;
        Ok(())
    }

    /// `shmem_get_folio`: the page, made if it is absent, locked and with a reference. `None` beyond the end of the file, unless
    /// the call may write there.
    fn get_folio(&self, cx: &Cx<'_>, pgoff: Pgoff, beyond_end: bool) -> Result<Option<Pfn>, Errno> {
        Ok(self.find_or_make(cx, pgoff, beyond_end)?.map(|(pfn, _)| pfn))
    }

    /// [`Shmem::get_folio`], and whether the page was made just now.
    fn find_or_make(&self, cx: &Cx<'_>, pgoff: Pgoff, beyond_end: bool) -> Result<Option<(Pfn, bool)>, Errno> {
        loop {
            let mut cache = self.cache.lock(cx);
            // Size and pages are under one lock, so a page never appears behind a truncation's back.
            if !beyond_end && pgoff.0 >= cache.size.div_ceil(PAGE_SIZE) {
                return Ok(None);
            }
            if let Some(&pfn) = cache.pages.get(&pgoff) {
                self.phys.get(pfn);
                drop(cache);
                if self.lock_folio(cx, pfn) {
                    return Ok(Some((pfn, false)));
                }
                continue;
            }
            let pfn = self.phys.alloc()?;
            assert!(self.phys.try_lock(cx, pfn), "a new page is not locked");
            self.phys.get(pfn);
            self.phys.set_mapping(pfn, Shmem::MAPPING, pgoff);
            cache.pages.insert(pgoff, pfn);
            return Ok(Some((pfn, true)));
        }
    }

    /// `filemap_lock_folio`: the page if there is one, locked and with a reference.
    fn find_folio(&self, cx: &Cx<'_>, pgoff: Pgoff) -> Option<Pfn> {
        loop {
            let cache = self.cache.lock(cx);
            let pfn = *cache.pages.get(&pgoff)?;
            self.phys.get(pfn);
            drop(cache);
            if self.lock_folio(cx, pfn) {
                return Some(pfn);
            }
        }
    }

    /// Locks a page that was found and referenced. False, and the reference is put, if it was taken out of the file meanwhile.
    fn lock_folio(&self, cx: &Cx<'_>, pfn: Pfn) -> bool {
        self.phys.lock(cx, pfn);
        let is_there = self.phys.mapping(pfn).is_some();
        if !is_there {
            self.put_folio(cx, pfn);
        }
        is_there
    }

    /// As [`Shmem::get_folio`], with defined contents.
    fn get_uptodate(&self, cx: &Cx<'_>, pgoff: Pgoff, beyond_end: bool) -> Result<Option<Pfn>, Errno> {
        let page = self.get_folio(cx, pgoff, beyond_end)?;
        if let Some(pfn) = page {
            self.give_contents(cx, pfn);
        }
        Ok(page)
    }

    /// Zeroes a locked page that was only allocated.
    fn give_contents(&self, cx: &Cx<'_>, pfn: Pfn) {
        if !self.is_uptodate(pfn) {
            self.phys.zero(cx, pfn);
            self.phys.set_flags(pfn, FrameFlags::UPTODATE);
        }
    }

    fn put_folio(&self, cx: &Cx<'_>, pfn: Pfn) {
        self.phys.unlock(cx, pfn);
        self.phys.put(cx, pfn);
    }

    /// `shmem_truncate_range`: forgets the whole pages of `start..end` and zeroes the parts at its edges.
    fn truncate_range(&self, cx: &Cx<'_>, start: u64, end: u64) {
        let (first, last) = (start.div_ceil(PAGE_SIZE), end / PAGE_SIZE);
        let first_end = (first * PAGE_SIZE).min(end);
        self.zero_part(cx, start, first_end);
        if last * PAGE_SIZE >= first_end {
            self.zero_part(cx, last * PAGE_SIZE, end);
        }
        loop {
            let cache = self.cache.lock(cx);
            let Some((&pgoff, &pfn)) = cache.pages.range(Pgoff(first)..).next().filter(|(pgoff, _)| pgoff.0 < last)
            else {
                return;
            };
            self.phys.get(pfn);
            drop(cache);
            self.phys.lock(cx, pfn);
            if self.phys.mapping(pfn).is_some() {
                if self.phys.mapcount(pfn) > 0 {
                    self.i_mmap.unmap_page(cx, pgoff);
                }
                self.cache.lock(cx).pages.remove(&pgoff);
                self.phys.clear_mapping(pfn);
                self.phys.put(cx, pfn);
            }
            self.put_folio(cx, pfn);
        }
    }

    /// `shmem_undo_range(unfalloc)`: an allocation failed; pages of the range that nobody has filled go again.
    fn undo_allocation(&self, cx: &Cx<'_>, first: Pgoff, end: Pgoff) {
        let is_empty = |pfn: Pfn| !self.is_uptodate(pfn);
        let mut at = first;
        loop {
            let cache = self.cache.lock(cx);
            let next = cache.pages.range(at..end).map(|(pgoff, pfn)| (*pgoff, *pfn)).find(|(_, pfn)| is_empty(*pfn));
            let Some((pgoff, pfn)) = next else { return };
            self.phys.get(pfn);
            drop(cache);
            self.phys.lock(cx, pfn);
            if self.phys.mapping(pfn).is_some() && is_empty(pfn) {
                self.cache.lock(cx).pages.remove(&pgoff);
                self.phys.clear_mapping(pfn);
                self.phys.put(cx, pfn);
            }
            self.put_folio(cx, pfn);
            at = pgoff + 1;
        }
    }

    /// Zeroes bytes of one page, if the page exists.
    fn zero_part(&self, cx: &Cx<'_>, start: u64, end: u64) {
        let pgoff = Pgoff(start / PAGE_SIZE);
        if start >= end {
            return;
        }
        // A page that was only allocated stays so: it is zeroed as a whole when it gets its contents.
        if let Some(pfn) = self.find_folio(cx, pgoff) {
            if self.is_uptodate(pfn) {
                self.store(cx, pfn, start % PAGE_SIZE, end - start, |_| 0);
            }
            self.put_folio(cx, pfn);
        }
    }

    /// Writes `len` bytes of a page from `offset`; `byte(i)` is the i-th.
    fn store(&self, cx: &Cx<'_>, pfn: Pfn, offset: u64, len: u64, byte: impl Fn(u64) -> u8) {
        for word in (offset / WORD)..(offset + len).div_ceil(WORD) {
            let (mut value, mut mask) = ([0; 4], [0; 4]);
            for (i, at) in (word * WORD..(word + 1) * WORD).enumerate() {
                if (offset..offset + len).contains(&at) {
                    (value[i], mask[i]) = (byte(at - offset), 0xff);
                }
            }
            self.phys.merge_u32(cx, pfn, word * WORD, u32::from_le_bytes(value), u32::from_le_bytes(mask));
        }
    }

    /// The pieces of a byte range in each page: page, offset in it, bytes.
    fn pieces(start: u64, end: u64) -> impl Iterator<Item = (Pgoff, u64, u64)> {
        (start / PAGE_SIZE..end.div_ceil(PAGE_SIZE)).map(move |page| {
            let (from, to) = (start.max(page * PAGE_SIZE), end.min((page + 1) * PAGE_SIZE));
            (Pgoff(page), from % PAGE_SIZE, to - from)
        })
    }
}

impl FileOperations for Shmem {
    fn release(&self, cx: &Cx<'_>) {
        self.truncate_range(cx, 0, END_OF_FILES);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    /// Whole pages of a hole are unmapped and forgotten, parts zeroed; allocation makes pages without contents, or none at all if
    /// there is not enough memory for it.
    ///
    /// # Errors
    /// `EOPNOTSUPP` for other modes, `EPERM` if the size is sealed, `ENOMEM`, `EINTR`.
    fn fallocate(&self, cx: &Cx<'_>, mode: u32, offset: u64, len: u64) -> Result<(), Errno> {
        if mode & !(KEEP_SIZE | PUNCH_HOLE) != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let end = offset + len;
        let seals = self.inode_lock.lock(cx);
        if mode & PUNCH_HOLE != 0 {
            let (first, last) = (offset.div_ceil(PAGE_SIZE), end / PAGE_SIZE);
            if first < last {
                self.i_mmap.unmap_range(cx, Pgoff(first), last - first, false);
            }
            self.truncate_range(cx, offset, end);
            return Ok(());
        }
        let size = self.cache.lock(cx).size;
        if seals.contains(Seals::GROW) && end > size {
            return Err(Errno::EPERM);
        }
        for (pgoff, _, _) in Shmem::pieces(offset, end) {
            let page = if cx.signal_pending() { Err(Errno::EINTR) } else { self.find_or_make(cx, pgoff, true) };
            match page {
                Ok(Some((pfn, made))) => {
                    // One that an earlier call allocated gets its contents now, and is no longer undone.
                    if !made {
                        self.give_contents(cx, pfn);
                    }
                    self.put_folio(cx, pfn);
                }
                Ok(None) => unreachable!("allocation may go beyond the end"),
                Err(errno) => {
                    self.undo_allocation(cx, Pgoff(offset / PAGE_SIZE), pgoff);
                    return Err(errno);
                }
            }
        }
        if mode & KEEP_SIZE == 0 {
            let mut cache = self.cache.lock(cx);
            cache.size = cache.size.max(end);
        }
        Ok(())
    }

    /// # Errors
    /// `EINVAL` for a negative size, `EPERM` if the size is sealed.
    fn truncate(&self, cx: &Cx<'_>, size: u64) -> Result<(), Errno> {
        if size > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        let seals = self.inode_lock.lock(cx);
        let old = {
            let mut cache = self.cache.lock(cx);
            if (size < cache.size && seals.contains(Seals::SHRINK))
                || (size > cache.size && seals.contains(Seals::GROW))
            {
                return Err(Errno::EPERM);
            }
            std::mem::replace(&mut cache.size, size)
        };
        if size < old {
            let hole = Pgoff(size.div_ceil(PAGE_SIZE));
            let unmap = || {
                if old > hole.0 * PAGE_SIZE {
                    self.i_mmap.unmap_range(cx, hole, u64::MAX, true);
                }
            };
            unmap();
            self.truncate_range(cx, size, END_OF_FILES);
            // Once more for private copies that were made of the pages before they went.
            unmap();
        }
        Ok(())
    }

    fn stat(&self, cx: &Cx<'_>) -> Stat {
        let cache = self.cache.lock(cx);
        Stat {
            ino: self.ino,
            mode: self.mode,
            nlink: 0,
            size: cache.size,
            blksize: PAGE_SIZE,
            blocks: cache.pages.len() as u64 * (PAGE_SIZE / 512),
        }
    }

    fn is_seekable(&self) -> bool {
        true
    }

    fn seek(&self, cx: &Cx<'_>, offset: i64, whence: u32) -> Result<u64, Errno> {
        const SEEK_SET: u32 = 0;
        const SEEK_CUR: u32 = 1;
        const SEEK_END: u32 = 2;
        const SEEK_DATA: u32 = 3;
        let cache = self.cache.lock(cx);
        let mut position = self.position.lock();
        let base = match whence {
            SEEK_SET => 0,
            SEEK_CUR => *position as i64,
            SEEK_END => cache.size as i64,
            data_or_hole => {
                if offset < 0 || offset as u64 >= cache.size {
                    return Err(Errno::ENXIO);
                }
                let is_data = data_or_hole == SEEK_DATA;
                let next = cache.next_data_or_hole(offset as u64, is_data, |pfn| self.is_uptodate(pfn));
                *position = next.ok_or(Errno::ENXIO)?;
                return Ok(*position);
            }
        };
        // A sum that does not fit is negative in the kernel.
        let new = base.wrapping_add(offset);
        if new < 0 {
            return Err(Errno::EINVAL);
        }
        *position = new as u64;
        Ok(*position)
    }

    fn read_at(&self, cx: &Cx<'_>, offset: u64, len: u64) -> Result<Vec<u8>, Errno> {
        let size = self.cache.lock(cx).size;
        let end = offset.saturating_add(len).min(size);
        let mut bytes = Vec::new();
        for (pgoff, from, count) in Shmem::pieces(offset, end.max(offset)) {
            let page = self.find_folio(cx, pgoff);
            // What was only allocated reads as a hole, and stays so.
            let Some(pfn) = page.filter(|pfn| self.is_uptodate(*pfn)) else {
                if let Some(pfn) = page {
                    self.put_folio(cx, pfn);
                }
                bytes.resize(bytes.len() + count as usize, 0);
                continue;
            };
            if count == PAGE_SIZE {
                self.phys.read_page(cx, pfn, &mut bytes);
                self.put_folio(cx, pfn);
                continue;
            }
            for word in (from / WORD)..(from + count).div_ceil(WORD) {
                let value = self.phys.read_u32(cx, pfn, word * WORD).to_le_bytes();
                let wanted = (word * WORD..).zip(value).filter(|(at, _)| (from..from + count).contains(at));
                bytes.extend(wanted.map(|(_, byte)| byte));
            }
            self.put_folio(cx, pfn);
        }
        Ok(bytes)
    }

    /// # Errors
    /// `EFBIG` beyond the largest size, `EPERM` if the file would grow and that is sealed, `ENOMEM`.
    fn write_at(&self, cx: &Cx<'_>, offset: u64, bytes: &[u8]) -> Result<u64, Errno> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= i64::MAX as u64).ok_or(Errno::EFBIG)?;
        let seals = self.inode_lock.lock(cx);
        let grows = end > self.cache.lock(cx).size;
        if seals.contains(Seals::GROW) && grows && !bytes.is_empty() {
            return Err(Errno::EPERM);
        }
        let mut done = 0;
        for (pgoff, from, count) in Shmem::pieces(offset, end) {
            let pfn = match self.get_uptodate(cx, pgoff, true) {
                Ok(page) => page.expect("a write may go beyond the end"),
                Err(_) if done > 0 => break,
                Err(errno) => return Err(errno),
            };
            let piece = &bytes[done as usize..(done + count) as usize];
            if count == PAGE_SIZE && piece.iter().all(|byte| *byte == 0) {
                self.phys.zero(cx, pfn);
            } else {
                self.store(cx, pfn, from, count, |i| piece[i as usize]);
            }
            done += count;
            {
                let mut cache = self.cache.lock(cx);
                cache.size = cache.size.max(offset + done);
            }
            self.put_folio(cx, pfn);
        }
        Ok(done)
    }

    fn mmap(&self, _cx: &Cx<'_>, _request: &MmapRequest) -> Result<(), Errno> {
        Ok(())
    }

    fn fault(&self, cx: &Cx<'_>, pgoff: Pgoff) -> Result<Fault, FaultError> {
        match self.get_uptodate(cx, pgoff, false) {
            Ok(Some(pfn)) => Ok(Fault { pfn }),
            Ok(None) => Err(FaultError::Sigbus),
            Err(_) => Err(FaultError::Oom),
        }
    }

    fn i_mmap(&self) -> Option<&Arc<IMmap>> {
        Some(&self.i_mmap)
    }

    fn resident_pages(&self, cx: &Cx<'_>, range: Range<Pgoff>) -> Vec<Pgoff> {
        let cache = self.cache.lock(cx);
        let uptodate = |pfn: Pfn| self.is_uptodate(pfn);
        cache.pages.range(range).filter(|(_, pfn)| uptodate(**pfn)).map(|(pgoff, _)| *pgoff).collect()
    }
}
