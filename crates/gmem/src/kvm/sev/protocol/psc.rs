//! A page-state change of many pages: the list that a guest leaves in its GHCB, and KVM's walk through it (`snp_begin_psc`, `snp_do_psc`,
//! `snp_complete_one_psc`).
//!
//! The list stays in memory that the guest may write at any moment, from another vCPU too. So KVM keeps its own copies of the indexes, reads each entry once
//! where it decides about it, and writes what is done back for the guest to see. Neighbours with the same operation become one exit to user space.
//!
//! As in Linux 7.3, an entry of 2 MiB that is done in part is compared with what follows by its beginning and not by where it goes on: an entry of 4 KiB that
//! lies inside of it, as far from its beginning as there are pages left, is taken into the batch, and the exit then ends one page too late.
//!
//! Simplified: a quadword is what is read or written at once; the kernel writes `cur_entry` alone.

use super::msr::PageOp;
use sim_kernel::PAGES_PER_PMD;
use sim_mmu::Gfn;

/// Bytes of the header, and of an entry.
pub const WORD: u64 = 8;
/// Entries of a list as Linux guests make it (`VMGEXIT_PSC_MAX_ENTRY`).
pub const MAX_ENTRY: usize = 64;
/// Entries for which the shared buffer has room (`VMGEXIT_PSC_MAX_COUNT`).
pub const MAX_COUNT: u16 = 253;

/// Memory in which a list lies. Each call is one access; between two, the guest may have written anything.
pub trait PscBuffer {
    /// Reads a quadword: 0 is the header, the others are entries.
    fn read(&mut self, word: u16) -> u64;
    /// Writes a quadword.
    fn write(&mut self, word: u16, value: u64);
}

/// `struct psc_hdr`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PscHeader {
    /// The entry that is next.
    pub cur_entry: u16,
    /// The last entry.
    pub end_entry: u16,
    /// 0.
    pub reserved: u32,
}

impl PscHeader {
    /// From the quadword.
    pub const fn from_word(word: u64) -> PscHeader {
        PscHeader { cur_entry: word as u16, end_entry: (word >> 16) as u16, reserved: (word >> 32) as u32 }
    }

    /// The quadword.
    pub const fn to_word(self) -> u64 {
        self.cur_entry as u64 | (self.end_entry as u64) << 16 | (self.reserved as u64) << 32
    }
}

/// `struct psc_entry`.
///
/// ```
/// use gmem::kvm::sev::protocol::{msr::PageOp, psc::PscEntry};
/// use sim_mmu::Gfn;
/// let entry = PscEntry::new(Gfn(0x200), PageOp::Private, true);
/// assert_eq!(entry.to_word(), 0x0110_0000_0020_0000);
/// assert_eq!(PscEntry::from_word(entry.to_word()), entry);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PscEntry {
    /// 4 KiB pages of it that are done.
    pub cur_page: u16,
    /// The first page.
    pub gfn: Gfn,
    /// [`PageOp`], or a hint about sizes.
    pub op: u8,
    /// It is about 2 MiB.
    pub is_2m: bool,
}

impl PscEntry {
    /// An entry of which nothing is done.
    pub const fn new(gfn: Gfn, op: PageOp, is_2m: bool) -> PscEntry {
        PscEntry { cur_page: 0, gfn, op: op as u8, is_2m }
    }

    /// From the quadword.
    pub const fn from_word(word: u64) -> PscEntry {
        PscEntry {
            cur_page: (word & 0xfff) as u16,
            gfn: Gfn(word >> 12 & 0xff_ffff_ffff),
            op: (word >> 52 & 0xf) as u8,
            is_2m: word >> 56 & 1 != 0,
        }
    }

    /// The quadword.
    pub const fn to_word(self) -> u64 {
        self.cur_page as u64 & 0xfff
            | (self.gfn.0 & 0xff_ffff_ffff) << 12
            | (self.op as u64 & 0xf) << 52
            | (self.is_2m as u64) << 56
    }

    /// 4 KiB pages that it is about.
    pub const fn npages(self) -> u64 {
        if self.is_2m { PAGES_PER_PMD } else { 1 }
    }

    /// The entry when all of it is done.
    const fn done(self) -> PscEntry {
        PscEntry { cur_page: self.npages() as u16, ..self }
    }
}

/// Why a list was not worked through (`VMGEXIT_PSC_ERROR_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PscError {
    /// User space did not convert the pages, or nobody asks it to.
    #[error("GENERIC")]
    Generic,
    /// The header names entries for which there is no room.
    #[error("INVALID_HDR")]
    InvalidHeader,
    /// An entry is misaligned, or says that more is done than there is.
    #[error("INVALID_ENTRY")]
    InvalidEntry,
}

impl PscError {
    /// SW_EXITINFO2.
    pub const fn code(self) -> u64 {
        match self {
            PscError::Generic => 0x100 << 32,
            PscError::InvalidHeader => 1 << 32 | 1,
            PscError::InvalidEntry => 1 << 32 | 2,
        }
    }
}

/// SW_EXITINFO2 of a list that ended so.
pub fn exit_info_2(result: Result<(), PscError>) -> u64 {
    result.map_or_else(PscError::code, |()| 0)
}

/// What user space is asked to convert (`KVM_HC_MAP_GPA_RANGE`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PscExit {
    /// The first page.
    pub gfn: Gfn,
    /// 4 KiB pages.
    pub npages: u64,
    /// To which state.
    pub op: PageOp,
    /// The size that the first entry has, which for what is left of a page of 2 MiB is not that of the range.
    pub says_2m: bool,
}

/// How the walk goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PscStep {
    /// User space converts, and [`Psc::complete`] goes on with its answer.
    Exit(PscExit),
    /// The guest gets its answer.
    Done(Result<(), PscError>),
}

/// Rules that were once missing, for seeding them again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PscRules {
    /// The header's last entry is compared with the room that there is.
    pub checks_room: bool,
    /// The last entry is KVM's copy, not what the header says by now.
    pub keeps_end: bool,
}

impl PscRules {
    /// Those of Linux 7.3.
    pub const ALL: PscRules = PscRules { checks_room: true, keeps_end: true };
}

/// A walk in progress (`svm->sev_es.psc`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Psc {
    /// Entries that there is room for.
    room: u16,
    /// The next entry, or the first of the batch.
    cur_idx: u16,
    /// The last entry.
    end_idx: u16,
    /// Entries that user space is asked about now.
    batch_size: u16,
    /// They are whole pages of 2 MiB.
    is_2m: bool,
}

impl Psc {
    /// `snp_begin_psc`: the walk through a list in a scratch area of this many bytes, which is at least a header.
    ///
    /// # Panics
    /// If the area is smaller than that.
    pub fn begin(buffer: &mut impl PscBuffer, bytes: u64, rules: PscRules) -> (Psc, PscStep) {
        Psc::default().begin_again(buffer, bytes, rules)
    }

    /// As [`Psc::begin`], where this is what the walk before has left. User space has given an answer that is none to a batch, and KVM_RUN failed: as in
    /// Linux 7.3, the batch then still counts as under way, and it is the next list that fails (after a warning of KVM's, which user space can bring about at will).
    ///
    /// # Panics
    /// As [`Psc::begin`].
    pub fn begin_again(self, buffer: &mut impl PscBuffer, bytes: u64, rules: PscRules) -> (Psc, PscStep) {
        assert!(bytes >= WORD, "a scratch area of {bytes} bytes has no header");
        let room = u16::try_from((bytes - WORD) / WORD).unwrap_or(u16::MAX).min(MAX_COUNT);
        let cur_idx = PscHeader::from_word(buffer.read(0)).cur_entry;
        let end_idx = PscHeader::from_word(buffer.read(0)).end_entry;
        let mut psc = Psc { room, cur_idx, end_idx, batch_size: 0, is_2m: false };
        if end_idx >= room && rules.checks_room {
            return (psc, PscStep::Done(Err(PscError::InvalidHeader)));
        }
        if self.batch_size != 0 {
            return (psc, PscStep::Done(Err(PscError::Generic)));
        }
        let step = psc.next(buffer, rules);
        (psc, step)
    }

    /// `snp_complete_one_psc`: user space has converted the batch, or not.
    pub fn complete(&mut self, buffer: &mut impl PscBuffer, converted: bool, rules: PscRules) -> PscStep {
        if !converted {
            return PscStep::Done(Err(PscError::Generic));
        }
        self.complete_batch(buffer);
        self.next(buffer, rules)
    }

    /// Entries of the batch that user space is asked about.
    pub fn batch_size(&self) -> u16 {
        self.batch_size
    }

    /// `snp_do_psc`: the next batch, or the end.
    fn next(&mut self, buffer: &mut impl PscBuffer, rules: PscRules) -> PscStep {
        loop {
            if !rules.keeps_end {
                self.end_idx = PscHeader::from_word(buffer.read(0)).end_entry;
            }
            let first = match self.find_next(buffer) {
                Ok(Some(first)) => first,
                Ok(None) => return PscStep::Done(Ok(())),
                Err(error) => return PscStep::Done(Err(error)),
            };
            let npages = self.gather(buffer, first);
            if let Some(op) = PageOp::of(first.op) {
                let gfn = first.gfn + u64::from(first.cur_page);
                return PscStep::Exit(PscExit { gfn, npages, op, says_2m: first.is_2m });
            }
            // Hints about sizes, and what nobody knows: nothing is to be done.
            self.complete_batch(buffer);
        }
    }

    /// The next entry of which something is left; the guest sees how far the search came.
    fn find_next(&mut self, buffer: &mut impl PscBuffer) -> Result<Option<PscEntry>, PscError> {
        let mut idx = self.cur_idx;
        while idx <= self.end_idx {
            let entry = self.entry(buffer, idx);
            let npages = entry.npages();
            if u64::from(entry.cur_page) > npages || !entry.gfn.0.is_multiple_of(npages) {
                return Err(PscError::InvalidEntry);
            }
            if u64::from(entry.cur_page) < npages {
                self.is_2m = entry.is_2m && entry.cur_page == 0;
                (self.cur_idx, self.batch_size) = (idx, 1);
                return Ok(Some(entry));
            }
            let shown = PscHeader::from_word(buffer.read(0)).cur_entry;
            set_cur_entry(buffer, shown.wrapping_add(1));
            idx += 1;
        }
        Ok(None)
    }

    /// Adds the entries that follow to the batch as long as they go on where it ends. Returns its pages.
    fn gather(&mut self, buffer: &mut impl PscBuffer, first: PscEntry) -> u64 {
        let mut npages = first.npages() - u64::from(first.cur_page);
        loop {
            let idx = self.cur_idx + self.batch_size;
            if idx > self.end_idx {
                return npages;
            }
            let entry = self.entry(buffer, idx);
            let goes_on = entry.op == first.op
                && entry.gfn == first.gfn + npages
                && entry.cur_page == 0
                && entry.is_2m == self.is_2m;
            if !goes_on {
                return npages;
            }
            self.batch_size += 1;
            npages += entry.npages();
        }
    }

    /// An entry, read once.
    fn entry(&self, buffer: &mut impl PscBuffer, idx: u16) -> PscEntry {
        // R12: indexes and bounds are KVM's own.
        assert!(idx < self.room, "SNP-INV-034: entry {idx} of a list with room for {} is used", self.room);
        PscEntry::from_word(buffer.read(idx + 1))
    }

    /// `__snp_complete_one_psc`: the batch is done.
    fn complete_batch(&mut self, buffer: &mut impl PscBuffer) {
        for idx in self.cur_idx..self.cur_idx + self.batch_size {
            let entry = self.entry(buffer, idx);
            buffer.write(idx + 1, entry.done().to_word());
        }
        self.cur_idx += self.batch_size;
        self.batch_size = 0;
        set_cur_entry(buffer, self.cur_idx);
    }
}

fn set_cur_entry(buffer: &mut impl PscBuffer, cur_entry: u16) {
    let header = PscHeader::from_word(buffer.read(0));
    buffer.write(0, PscHeader { cur_entry, ..header }.to_word());
}

#[cfg(test)]
mod tests;
