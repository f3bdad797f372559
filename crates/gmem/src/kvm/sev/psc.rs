//! Page-state changes of many pages: a list in the GHCB, of which neighbours become one exit to user space (`snp_begin_psc`, `snp_complete_one_psc`).
//!
//! KVM itself touches neither attributes nor the RMP. Indexes and entries are read once each, because the guest may change them at any moment.

use super::ghcb::{Ghcb, GhcbError, Pending, SHARED_BUFFER_BYTES, offset};
use super::msr::{PAGE_STATE_PRIVATE, PAGE_STATE_SHARED, check_map_gpa_range_ret, map_gpa_range};
use crate::kvm::mutants::{SEV_PSC_DOUBLE_FETCH, SEV_PSC_UNBOUNDED};
use crate::kvm::run::Next;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use sim_kernel::{Cx, Errno, PAGE_SHIFT, PAGES_PER_PMD};
use sim_mmu::Gpa;

/// Bytes of the header, and of an entry.
const WORD: u64 = 8;
/// `VMGEXIT_PSC_ERROR_GENERIC`.
const ERROR_GENERIC: u64 = 0x100 << 32;
/// `VMGEXIT_PSC_ERROR_INVALID_HDR`.
const ERROR_INVALID_HDR: u64 = 1 << 32 | 1;
/// `VMGEXIT_PSC_ERROR_INVALID_ENTRY`.
const ERROR_INVALID_ENTRY: u64 = 1 << 32 | 2;

/// A list that is being worked on (`svm->sev_es.psc`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Psc {
    /// Where the list is.
    buffer: Gpa,
    /// Entries that there is room for.
    entries_max: u64,
    /// The next entry.
    idx: u64,
    /// The last entry.
    end: u64,
    /// Entries that user space is asked about now.
    batch: u64,
    /// They are whole pages of 2 MiB.
    is_2m: bool,
}

/// `struct psc_entry`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PscEntry {
    /// Pages of it that are done.
    pub(crate) cur_page: u64,
    pub(crate) gfn: u64,
    pub(crate) op: u64,
    pub(crate) is_2m: bool,
}

impl PscEntry {
    pub(crate) const fn from_word(word: u64) -> PscEntry {
        PscEntry {
            cur_page: word & 0xfff,
            gfn: word >> 12 & 0xff_ffff_ffff,
            op: word >> 52 & 0xf,
            is_2m: word >> 56 & 1 != 0,
        }
    }

    pub(crate) const fn to_word(self) -> u64 {
        self.cur_page | self.gfn << 12 | self.op << 52 | (self.is_2m as u64) << 56
    }

    const fn npages(self) -> u64 {
        if self.is_2m { PAGES_PER_PMD } else { 1 }
    }
}

impl Psc {
    fn entry_gpa(&self, idx: u64) -> Gpa {
        self.buffer + WORD * (1 + idx)
    }
}

impl Vcpu {
    fn psc<'s>(&self, state: &'s mut VcpuState) -> &'s mut Psc {
        &mut state.sev.as_deref_mut().expect("a vCPU of an SNP VM").psc
    }

    /// The event: where the list is (`setup_vmgexit_scratch`), then the list.
    pub(super) fn sev_handle_psc(&self, cx: &Cx<'_>, state: &mut VcpuState, ghcb: &Ghcb) -> Result<Next, Errno> {
        let start = ghcb.gpa.0 + offset::SHARED_BUFFER;
        let end = start + SHARED_BUFFER_BYTES;
        if ghcb.scratch < start || ghcb.scratch > end - WORD {
            return Ok(self.vmgexit_bad_input(cx, state, GhcbError::InvalidScratch));
        }
        let entries_max = (end - ghcb.scratch - WORD) / WORD;
        *self.psc(state) = Psc { buffer: Gpa(ghcb.scratch), entries_max, ..Psc::default() };
        Ok(self.snp_begin_psc(cx, state))
    }

    /// `snp_begin_psc`: checks the header and begins with the first entry.
    fn snp_begin_psc(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Next {
        if !self.exits_on_map_gpa_range() {
            return self.snp_complete_psc(cx, state, ERROR_GENERIC);
        }
        let buffer = self.psc(state).buffer;
        let Some(header) = self.read_guest_u64(cx, state, buffer) else {
            return self.snp_complete_psc(cx, state, ERROR_GENERIC);
        };
        let (cur, end) = (header & 0xffff, header >> 16 & 0xffff);
        if end >= self.psc(state).entries_max && !cx.has_mutant(SEV_PSC_UNBOUNDED) {
            return self.snp_complete_psc(cx, state, ERROR_INVALID_HDR);
        }
        let psc = self.psc(state);
        (psc.idx, psc.end) = (cur, end);
        self.snp_next_psc(cx, state)
    }

    /// The next exit of the list, or its end.
    fn snp_next_psc(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Next {
        loop {
            let Psc { idx, end, .. } = *self.psc(state);
            let end = if cx.has_mutant(SEV_PSC_DOUBLE_FETCH) { self.header(cx, state) >> 16 & 0xffff } else { end };
            if idx > end {
                return self.snp_complete_psc(cx, state, 0);
            }
            let entry = self.psc_entry(cx, state, idx);
            let npages = entry.npages();
            if entry.cur_page > npages || !entry.gfn.is_multiple_of(npages) {
                return self.snp_complete_psc(cx, state, ERROR_INVALID_ENTRY);
            }
            let psc = self.psc(state);
            if entry.cur_page == npages {
                // It is done already.
                psc.idx += 1;
                let idx = psc.idx;
                self.set_cur_entry(cx, state, idx);
                continue;
            }
            psc.batch = 1;
            psc.is_2m = entry.is_2m && entry.cur_page == 0;
            let pages = self.merge_entries(cx, state, entry, npages - entry.cur_page);
            if !matches!(entry.op, PAGE_STATE_PRIVATE | PAGE_STATE_SHARED) {
                // Hints about sizes: nothing is done about them.
                self.complete_batch(cx, state);
                continue;
            }
            let gpa = (entry.gfn + entry.cur_page) << PAGE_SHIFT;
            state.exit = map_gpa_range(gpa, pages, entry.op == PAGE_STATE_PRIVATE, entry.is_2m);
            state.pending_exit = Some(state.exit);
            state.sev.as_deref_mut().expect("as above").pending = Pending::PscNae;
            return Next::Exit;
        }
    }

    /// Adds the entries that follow to the batch as long as they go on where it ends. Returns its pages.
    ///
    /// Of an entry that is done in part, what follows is compared with its beginning and not with where it goes on, as in Linux 7.3: the next entry of 2 MiB is
    /// not taken, and one of 4 KiB inside of it may be.
    fn merge_entries(&self, cx: &Cx<'_>, state: &mut VcpuState, first: PscEntry, mut pages: u64) -> u64 {
        loop {
            let Psc { idx, end, batch, is_2m, .. } = *self.psc(state);
            let next = idx + batch;
            if next > end {
                return pages;
            }
            let entry = self.psc_entry(cx, state, next);
            let goes_on =
                entry.op == first.op && entry.cur_page == 0 && entry.is_2m == is_2m && entry.gfn == first.gfn + pages;
            if !goes_on {
                return pages;
            }
            self.psc(state).batch += 1;
            pages += entry.npages();
        }
    }

    /// An entry, read once.
    fn psc_entry(&self, cx: &Cx<'_>, state: &mut VcpuState, idx: u64) -> PscEntry {
        let psc = *self.psc(state);
        // R12: indexes and bounds are KVM's own copies.
        assert!(idx < psc.entries_max, "SNP-INV-034: entry {idx} of a list with room for {} is read", psc.entries_max);
        let gpa = psc.entry_gpa(idx);
        PscEntry::from_word(self.read_guest_u64(cx, state, gpa).unwrap_or(0))
    }

    fn header(&self, cx: &Cx<'_>, state: &mut VcpuState) -> u64 {
        let buffer = self.psc(state).buffer;
        self.read_guest_u64(cx, state, buffer).unwrap_or(0)
    }

    fn set_cur_entry(&self, cx: &Cx<'_>, state: &mut VcpuState, idx: u64) {
        let header = self.header(cx, state);
        let buffer = self.psc(state).buffer;
        self.write_guest_u64(cx, state, buffer, header & !0xffff | idx & 0xffff);
    }

    /// `__snp_complete_one_psc`: the batch is done.
    fn complete_batch(&self, cx: &Cx<'_>, state: &mut VcpuState) {
        let psc = *self.psc(state);
        for idx in psc.idx..psc.idx + psc.batch {
            let entry = self.psc_entry(cx, state, idx);
            let done = PscEntry { cur_page: if entry.is_2m { PAGES_PER_PMD } else { 1 }, ..entry };
            self.write_guest_u64(cx, state, psc.entry_gpa(idx), done.to_word());
        }
        self.psc(state).idx = psc.idx + psc.batch;
        self.psc(state).batch = 0;
        self.set_cur_entry(cx, state, psc.idx + psc.batch);
    }

    /// `snp_complete_one_psc`: user space has converted the batch, or not.
    ///
    /// # Errors
    /// `EINVAL` for answers that there are not.
    pub(super) fn snp_complete_one_psc(&self, cx: &Cx<'_>, state: &mut VcpuState, ret: u64) -> Result<Next, Errno> {
        check_map_gpa_range_ret(ret)?;
        if ret != 0 {
            return Ok(self.snp_complete_psc(cx, state, ERROR_GENERIC));
        }
        self.complete_batch(cx, state);
        Ok(self.snp_next_psc(cx, state))
    }

    /// `snp_complete_psc`: the list is done, or the guest is told why not.
    fn snp_complete_psc(&self, cx: &Cx<'_>, state: &mut VcpuState, error: u64) -> Next {
        *self.psc(state) = Psc::default();
        self.vmgexit_return(cx, state, 0, error);
        Next::Enter
    }
}
