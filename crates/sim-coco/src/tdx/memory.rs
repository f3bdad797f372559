//! Memory as the memory controller keeps it: for each line of 64 bytes, who wrote it last, whether it is poisoned, and its bytes.
//!
//! A line that was written through a private KeyID carries the TD-owner bit and an integrity code of that key. The host reads a fixed value from it;
//! whoever reads it through another private key, or after the host wrote it, gets poison. Bytes are those of [`PhysMem`] and are not enciphered here: what
//! matters is whose they are, and that is kept beside them.
//!
//! With [`TdxConfig::caches`](super::TdxConfig::caches) a store stays in a cache, tagged with its KeyID, until somebody writes it back or evicts it, and no access through
//! another KeyID sees it. What the module itself writes goes past the caches (MOVDIR64B).
//!
//! Nothing here announces a scheduling point: it is a part of the caller's step.

use super::config::TdxConfig;
use super::mutants;
use super::types::{Hkid, KeyNumber};
use sim_kernel::mm::PhysMem;
use sim_kernel::mm::phys::WORDS_PER_PAGE;
use sim_kernel::{MutantSet, PAGE_SIZE, Pfn};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Bytes of a line.
pub(super) const LINE: usize = 64;
const WORDS_PER_LINE: usize = LINE / 8;
const LINES: usize = PAGE_SIZE as usize / LINE;

/// The bytes of a line.
pub(super) type LineBytes = [u8; LINE];

/// Who wrote a line last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineOwner {
    /// The host, or a device: TD-owner bit 0.
    Host,
    /// Somebody with this private key: TD-owner bit 1, and an integrity code.
    Key(KeyNumber),
}

/// What is known of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LineMeta {
    /// Who wrote it.
    pub owner: LineOwner,
    /// Whether any read of it is a machine check.
    pub poisoned: bool,
    /// Whether its bytes are zero, whatever stands in the frame.
    zero: bool,
}

impl LineMeta {
    const HOST: LineMeta = LineMeta { owner: LineOwner::Host, poisoned: false, zero: false };
}

#[derive(Clone, Debug)]
enum Lines {
    All(LineMeta),
    Each(Box<[LineMeta; LINES]>),
}

#[derive(Clone, Debug)]
struct Page {
    lines: Lines,
    /// Everything in it was written by the module or the guest since the page was given to the TD.
    defined: bool,
}

impl Default for Page {
    fn default() -> Page {
        Page { lines: Lines::All(LineMeta::HOST), defined: false }
    }
}

/// A read that gives poison: consuming it is a machine check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("poison at {pfn:?}+{offset:#x}")]
pub struct Poison {
    /// The frame.
    pub pfn: Pfn,
    /// First byte of the line.
    pub offset: usize,
}

/// A line in a cache that memory has not: frame, number of the line, KeyID.
pub type DirtyLine = (Pfn, u8, Hkid);

#[derive(Clone, Debug)]
struct Cached {
    bytes: LineBytes,
    package: u32,
}

/// Frames with contents, keys, and caches.
pub(super) struct LineMemory {
    phys: Arc<PhysMem>,
    pages: BTreeMap<Pfn, Page>,
    keys: BTreeMap<Hkid, KeyNumber>,
    next_key: u32,
    private_from: u16,
    cache: Option<BTreeMap<DirtyLine, Cached>>,
    erratum: bool,
    /// Frames that the host wrote past the caches that are modelled, and that nobody has flushed since.
    host_dirty: BTreeSet<Pfn>,
    /// Pages that were given to the module while lines of the host were in a cache (TDX-INV-024).
    handed_over_dirty: BTreeSet<Pfn>,
    has_integrity: bool,
}

impl fmt::Debug for LineMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the bytes: they are the frames'.
        f.debug_struct("LineMemory")
            .field("pages", &self.pages)
            .field("keys", &self.keys)
            .field("cache", &self.cache)
            .field("handed_over_dirty", &self.handed_over_dirty)
            .finish_non_exhaustive()
    }
}

/// The lines of `bytes` bytes from `offset` on: number, bytes within the line, and where these stand among the caller's.
fn lines(offset: usize, bytes: usize) -> impl Iterator<Item = (usize, std::ops::Range<usize>, usize)> {
    assert!(offset + bytes <= PAGE_SIZE as usize, "{bytes} bytes at {offset:#x} of a page");
    let end = offset + bytes;
    (offset / LINE..end.div_ceil(LINE)).map(move |line| {
        let start = line * LINE;
        let range = offset.max(start) - start..end.min(start + LINE) - start;
        (line, range.clone(), start + range.start - offset)
    })
}

impl LineMemory {
    pub(super) fn new(phys: Arc<PhysMem>, config: &TdxConfig, mutants: &MutantSet) -> LineMemory {
        LineMemory {
            phys,
            pages: BTreeMap::new(),
            keys: BTreeMap::new(),
            next_key: 1,
            private_from: config.hkids.start,
            cache: config.caches.then(BTreeMap::new),
            erratum: config.partial_write_erratum,
            host_dirty: BTreeSet::new(),
            handed_over_dirty: BTreeSet::new(),
            has_integrity: !mutants.contains(mutants::INTEGRITY),
        }
    }

    pub(super) fn phys(&self) -> &Arc<PhysMem> {
        &self.phys
    }

    pub(super) fn has_frame(&self, pfn: Pfn) -> bool {
        self.phys.has_frame(pfn)
    }

    /// Gives an HKID a key that nobody ever had.
    pub(super) fn configure_key(&mut self, hkid: Hkid) {
        self.keys.insert(hkid, KeyNumber(self.next_key));
        self.next_key += 1;
    }

    /// Who writes, when an access goes through this KeyID. A private KeyID without a key has that of all that have none.
    fn writer(&self, by: Hkid) -> LineOwner {
        if by.0 < self.private_from {
            return LineOwner::Host;
        }
        LineOwner::Key(self.keys.get(&by).copied().unwrap_or(KeyNumber(0)))
    }

    pub(super) fn line(&self, pfn: Pfn, line: usize) -> LineMeta {
        match self.pages.get(&pfn).map(|page| &page.lines) {
            None => LineMeta::HOST,
            Some(Lines::All(meta)) => *meta,
            Some(Lines::Each(all)) => all[line],
        }
    }

    fn set_line(&mut self, pfn: Pfn, line: usize, meta: LineMeta) {
        let old = self.line(pfn, line);
        if old == meta {
            return;
        }
        let page = self.pages.entry(pfn).or_default();
        let mut all = match std::mem::replace(&mut page.lines, Lines::All(LineMeta::HOST)) {
            Lines::All(of_all) => Box::new([of_all; LINES]),
            Lines::Each(all) => all,
        };
        all[line] = meta;
        page.lines = if all.iter().all(|other| *other == meta) { Lines::All(meta) } else { Lines::Each(all) };
    }

    fn bytes(&self, pfn: Pfn, line: usize) -> LineBytes {
        let mut bytes = [0; LINE];
        if !self.line(pfn, line).zero {
            for (i, chunk) in bytes.chunks_exact_mut(8).enumerate() {
                chunk.copy_from_slice(&self.phys.peek_u64(pfn, line * WORDS_PER_LINE + i).to_le_bytes());
            }
        }
        bytes
    }

    /// A write of a whole line that reaches memory.
    fn write_line(&mut self, by: Hkid, pfn: Pfn, line: usize, bytes: &LineBytes) {
        for (i, chunk) in bytes.chunks_exact(8).enumerate() {
            let word = u64::from_le_bytes(chunk.try_into().expect("8 bytes"));
            self.phys.poke_u64(pfn, line * WORDS_PER_LINE + i, word);
        }
        self.set_line(pfn, line, LineMeta { owner: self.writer(by), poisoned: false, zero: false });
    }

    /// What memory gives for a line.
    fn fetch_line(&self, by: Hkid, pfn: Pfn, line: usize) -> Result<LineBytes, Poison> {
        let poison = Poison { pfn, offset: line * LINE };
        let meta = self.line(pfn, line);
        if meta.poisoned {
            return Err(poison);
        }
        match (self.writer(by), meta.owner) {
            (by, owner) if by == owner => Ok(self.bytes(pfn, line)),
            // The fixed value.
            (LineOwner::Host, LineOwner::Key(_)) => Ok([0; LINE]),
            (by, owner) if !self.has_integrity => {
                let mut bytes = self.bytes(pfn, line);
                for chunk in bytes.as_chunks_mut::<8>().0 {
                    *chunk = self.through(by, owner, u64::from_le_bytes(*chunk)).to_le_bytes();
                }
                Ok(bytes)
            }
            _ => Err(poison),
        }
    }

    fn read_line(&self, by: Hkid, pfn: Pfn, line: usize) -> Result<LineBytes, Poison> {
        match self.cache.as_ref().and_then(|cache| cache.get(&(pfn, line as u8, by))) {
            Some(cached) => Ok(cached.bytes),
            None => self.fetch_line(by, pfn, line),
        }
    }

    /// Reads within a page.
    pub(super) fn read(&self, by: Hkid, pfn: Pfn, offset: usize, bytes: &mut [u8]) -> Result<(), Poison> {
        for (line, range, at) in lines(offset, bytes.len()) {
            let data = self.read_line(by, pfn, line)?;
            bytes[at..at + range.len()].copy_from_slice(&data[range]);
        }
        Ok(())
    }

    /// Ordinary stores within a page: each line is read first, unless the host replaces all of it.
    pub(super) fn store(
        &mut self,
        by: Hkid,
        package: u32,
        pfn: Pfn,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), Poison> {
        // Nothing is written if a later line gives poison: the store never retires.
        let mut merged = Vec::new();
        for (line, range, at) in lines(offset, bytes.len()) {
            let replaces = range.len() == LINE && self.writer(by) == LineOwner::Host;
            let mut data = if replaces { [0; LINE] } else { self.read_line(by, pfn, line)? };
            data[range.clone()].copy_from_slice(&bytes[at..at + range.len()]);
            merged.push((line, data));
        }
        for (line, data) in merged {
            match &mut self.cache {
                Some(cache) => {
                    cache.insert((pfn, line as u8, by), Cached { bytes: data, package });
                }
                None => self.write_line(by, pfn, line, &data),
            }
        }
        Ok(())
    }

    /// Stores past the caches: non-temporal, uncached, or by a device. A part of a line of a TD is poisoned where the processor has that erratum.
    pub(super) fn store_direct(&mut self, by: Hkid, pfn: Pfn, offset: usize, bytes: &[u8]) -> Result<(), Poison> {
        for (line, range, at) in lines(offset, bytes.len()) {
            let cached = (pfn, line as u8, by);
            let mut data = [0; LINE];
            if range.len() < LINE {
                // What a cache has of the rest of the line is not lost.
                self.evict(cached);
                let meta = self.line(pfn, line);
                if self.erratum && meta.owner != self.writer(by) {
                    self.set_line(pfn, line, LineMeta { poisoned: true, ..meta });
                    continue;
                }
                data = self.fetch_line(by, pfn, line)?;
            }
            if let Some(cache) = &mut self.cache {
                cache.remove(&cached);
            }
            data[range.clone()].copy_from_slice(&bytes[at..at + range.len()]);
            self.write_line(by, pfn, line, &data);
        }
        Ok(())
    }

    /// Zeroes a page with direct writes through a private KeyID; also what was poisoned is good afterwards.
    pub(super) fn zero_page(&mut self, by: Hkid, pfn: Pfn) {
        self.drop_cached(pfn, by);
        let owner = self.writer(by);
        let page = self.pages.entry(pfn).or_default();
        page.lines = Lines::All(LineMeta { owner, poisoned: false, zero: true });
        page.defined = true;
    }

    /// Fills a page with a word, as [`LineMemory::zero_page`].
    pub(super) fn fill_page(&mut self, by: Hkid, pfn: Pfn, word: u64) {
        self.drop_cached(pfn, by);
        for i in 0..WORDS_PER_PAGE {
            self.phys.poke_u64(pfn, i, word);
        }
        let owner = self.writer(by);
        let page = self.pages.entry(pfn).or_default();
        page.lines = Lines::All(LineMeta { owner, poisoned: false, zero: false });
        page.defined = true;
    }

    /// Replaces a page with direct writes.
    pub(super) fn write_page(&mut self, by: Hkid, pfn: Pfn, bytes: &[u8; PAGE_SIZE as usize]) {
        self.drop_cached(pfn, by);
        for (line, chunk) in bytes.as_chunks::<LINE>().0.iter().enumerate() {
            self.write_line(by, pfn, line, chunk);
        }
        self.pages.entry(pfn).or_default().defined = true;
    }

    /// The kernel or a process of the host wrote the frame.
    pub(super) fn note_host_write(&mut self, pfn: Pfn) {
        if self.cache.is_some() {
            self.host_dirty.insert(pfn);
        }
    }

    /// A frame is the host's, as far as it is not poisoned: lines that were a TD's read as zero.
    pub(super) fn take_back(&mut self, pfn: Pfn) {
        if !self.pages.contains_key(&pfn) {
            return;
        }
        for line in 0..LINES {
            let meta = self.line(pfn, line);
            if !meta.poisoned && (meta.owner != LineOwner::Host || meta.zero) {
                self.write_line(Hkid::HOST, pfn, line, &[0; LINE]);
            }
        }
    }

    /// Whether the page of a TD has only contents of the module and the guest.
    pub(super) fn is_defined(&self, pfn: Pfn) -> bool {
        self.pages.get(&pfn).is_some_and(|page| page.defined)
    }

    /// The page is given to a TD, or taken from it, as it is.
    pub(super) fn set_undefined(&mut self, pfn: Pfn) {
        if let Some(page) = self.pages.get_mut(&pfn) {
            page.defined = false;
        }
    }

    /// A word that the module itself keeps in a TD's page.
    pub(super) fn word(&self, by: Hkid, pfn: Pfn, index: usize) -> Result<u64, Poison> {
        let line = index / WORDS_PER_LINE;
        let meta = self.line(pfn, line);
        if meta.poisoned || self.has_integrity && meta.owner != self.writer(by) {
            return Err(Poison { pfn, offset: line * LINE });
        }
        Ok(self.through(self.writer(by), meta.owner, self.plain_word(pfn, index)))
    }

    /// A word as it stands in memory, whoever may read it.
    pub(super) fn plain_word(&self, pfn: Pfn, index: usize) -> u64 {
        if self.line(pfn, index / WORDS_PER_LINE).zero { 0 } else { self.phys.peek_u64(pfn, index) }
    }

    /// What one key makes of a word that was written with another: no text of anybody's.
    fn through(&self, by: LineOwner, owner: LineOwner, word: u64) -> u64 {
        match (by, owner) {
            (LineOwner::Key(by), LineOwner::Key(owner)) => {
                word ^ u64::from(by.0 ^ owner.0).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            }
            _ => word,
        }
    }

    /// Replaces a word of a page that the module has filled.
    pub(super) fn set_word(&mut self, pfn: Pfn, index: usize, word: u64) {
        let line = index / WORDS_PER_LINE;
        let meta = self.line(pfn, line);
        if meta.zero {
            for i in 0..WORDS_PER_LINE {
                self.phys.poke_u64(pfn, line * WORDS_PER_LINE + i, 0);
            }
            self.set_line(pfn, line, LineMeta { zero: false, ..meta });
        }
        self.phys.poke_u64(pfn, index, word);
    }

    fn drop_cached(&mut self, pfn: Pfn, by: Hkid) {
        if let Some(cache) = &mut self.cache {
            cache.retain(|(at, _, hkid), _| (*at, *hkid) != (pfn, by));
        }
    }

    /// One line leaves its cache. `false` if it was in none.
    pub(super) fn evict(&mut self, line: DirtyLine) -> bool {
        let Some(cached) = self.cache.as_mut().and_then(|cache| cache.remove(&line)) else { return false };
        self.write_line(line.2, line.0, usize::from(line.1), &cached.bytes);
        true
    }

    /// Writes back what `which` says.
    fn write_back(&mut self, which: impl Fn(&DirtyLine, &Cached) -> bool) {
        let found = self.cache.iter().flatten().filter(|(line, cached)| which(line, cached));
        let found: Vec<DirtyLine> = found.map(|(line, _)| *line).collect();
        for line in found {
            self.evict(line);
        }
    }

    /// All lines of a page that were written through a KeyID (CLFLUSH, PHYMEM.PAGE.WBINVD).
    pub(super) fn write_back_page(&mut self, pfn: Pfn, by: Hkid) {
        if by == Hkid::HOST {
            self.host_dirty.remove(&pfn);
        }
        self.write_back(|(at, _, hkid), _| (*at, *hkid) == (pfn, by));
    }

    /// All lines in the caches of a package (WBINVD).
    pub(super) fn write_back_package(&mut self, package: u32) {
        self.write_back(|_, cached| cached.package == package);
    }

    /// Lines in caches.
    pub(super) fn dirty_lines(&self) -> Vec<DirtyLine> {
        self.cache.iter().flatten().map(|(line, _)| *line).collect()
    }

    pub(super) fn note_handed_over(&mut self, pfn: Pfn, pages: u64) {
        let dirty = self.cache.iter().flatten().map(|(line, _)| *line);
        let dirty = dirty.filter(|(at, _, hkid)| (pfn..pfn + pages).contains(at) && hkid.0 < self.private_from);
        let dirty: Vec<Pfn> = dirty.map(|(at, _, _)| at).collect();
        self.handed_over_dirty.extend(dirty);
        self.handed_over_dirty.extend(self.host_dirty.range(pfn..pfn + pages).copied());
    }

    pub(super) fn handed_over_dirty(&self) -> impl Iterator<Item = Pfn> {
        self.handed_over_dirty.iter().copied()
    }
}
