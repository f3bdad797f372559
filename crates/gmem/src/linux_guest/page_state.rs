//! Private to shared and back. The order is what protects the guest: it gives its acceptance up *before* it asks for a page to be shared, and accepts a
//! page *after* it was made private; so at no moment it has accepted a page that the hypervisor may replace.
//!
//! Whatever PVALIDATE says but "done" ends the guest, and "there was nothing to do" (CF) most of all: then somebody else has been there.

use super::cpu::{Ends, Insn, Place};
use super::ghcb::{CcVendor, Kernel, Request, field};
use crate::kvm::sev::protocol::ghcb::{exit, offset};
use crate::kvm::sev::protocol::msr::{MsrRequest, MsrResponse, PageOp, TermReason};
use crate::kvm::sev::protocol::psc::{MAX_ENTRY, PscEntry, PscHeader};
use sim_coco::snp::RmpSize;
use sim_kernel::{PAGE_SIZE, PMD_SIZE};
use sim_mmu::Gpa;
use std::ops::Range;

/// FAIL_SIZEMISMATCH.
const SIZE_MISMATCH: u64 = 6;

/// The entries of the first list for a range, and where the next begins.
fn entries(range: &Range<Gpa>, op: PageOp, only_4k: bool) -> (Vec<PscEntry>, Gpa) {
    let (mut at, mut entries) = (range.start, Vec::new());
    while at < range.end && entries.len() < MAX_ENTRY {
        let is_2m = !only_4k && at.0.is_multiple_of(PMD_SIZE) && range.end.0 - at.0 >= PMD_SIZE;
        entries.push(PscEntry::new(at.gfn(), op, is_2m));
        at = at + if is_2m { PMD_SIZE } else { PAGE_SIZE };
    }
    (entries, at)
}

impl Kernel {
    /// `set_pages_state`: in lists of at most 64 entries, with pages of 2 MiB where the range has them.
    ///
    /// # Errors
    /// The guest ends if a request or a PVALIDATE fails.
    pub async fn set_pages_state(&self, range: Range<Gpa>, op: PageOp) -> Ends<()> {
        self.set_pages_state_sized(range, op, false).await
    }

    /// The same of memory that was allocated page by page (`vmalloc`): no entry is about 2 MiB.
    ///
    /// # Errors
    /// As [`Kernel::set_pages_state`].
    pub async fn set_vmalloc_pages_state(&self, range: Range<Gpa>, op: PageOp) -> Ends<()> {
        self.set_pages_state_sized(range, op, true).await
    }

    async fn set_pages_state_sized(&self, range: Range<Gpa>, op: PageOp, only_4k: bool) -> Ends<()> {
        let Some(ghcb) = self.ghcb else { return self.early_set_pages_state(range, op).await };
        let mut at = range.start;
        while at < range.end {
            let (list, next) = entries(&(at..range.end), op, only_4k);
            if op == PageOp::Shared {
                self.pvalidate_pages(&list).await?;
            }
            if !self.vmgexit_psc(ghcb, &list).await? {
                return Err(self.cpu.terminate(TermReason::Psc).await);
            }
            if op == PageOp::Private {
                self.pvalidate_pages(&list).await?;
            }
            at = next;
        }
        Ok(())
    }

    /// `early_set_pages_state`: page by page, through the MSR.
    pub(crate) async fn early_set_pages_state(&self, range: Range<Gpa>, op: PageOp) -> Ends<()> {
        let mut gpa = range.start;
        while gpa < range.end {
            if op == PageOp::Shared {
                self.pvalidate_4k(gpa, false).await?;
            }
            let response = self.msr_call(MsrRequest::Psc { gpa, op: op as u8 }).await?;
            if response != Some(MsrResponse::Psc { failed: false }) {
                return Err(self.cpu.terminate(TermReason::Psc).await);
            }
            if op == PageOp::Private {
                self.pvalidate_4k(gpa, true).await?;
                self.evict_cache(gpa, 1).await?;
            }
            gpa = gpa + PAGE_SIZE;
        }
        Ok(())
    }

    /// `vmgexit_psc`: asks until the list is done, and looks after each answer whether the hypervisor plays tricks. `false` if it does, or cannot.
    /// A hypervisor that never does anything is asked for ever.
    async fn vmgexit_psc(&self, ghcb: Gpa, list: &[PscEntry]) -> Ends<bool> {
        let buffer = field(ghcb, offset::SHARED_BUFFER);
        let header = PscHeader { cur_entry: 0, end_entry: list.len() as u16 - 1, reserved: 0 };
        let words = std::iter::once(header.to_word()).chain(list.iter().map(|entry| entry.to_word()));
        self.cpu.run(Insn::Copy(Place::shared(buffer), words.collect())).await?;
        let mut header = PscHeader::from_word(self.cpu.read(Place::shared(buffer)).await?);
        let (first, last) = (header.cur_entry, header.end_entry);
        while header.cur_entry <= header.end_entry {
            let request = Request { code: exit::PSC, scratch: Some(buffer), ..Request::default() };
            if self.hv_call(ghcb, request).await? != Ok(0) {
                return Ok(false);
            }
            header = PscHeader::from_word(self.cpu.read(Place::shared(buffer)).await?);
            if header.reserved != 0 || header.end_entry > last || first > header.cur_entry {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// `pvalidate_pages`. The entries are the kernel's own, not those that the hypervisor can write.
    async fn pvalidate_pages(&self, list: &[PscEntry]) -> Ends<()> {
        let validate = |entry: &PscEntry| entry.op == PageOp::Private as u8;
        for entry in list {
            self.pvalidate_entry(entry, validate(entry)).await?;
        }
        for entry in list.iter().filter(|entry| validate(entry)) {
            self.evict_cache(entry.gfn.gpa(), entry.npages()).await?;
        }
        Ok(())
    }

    /// `pval_pages`: a page that the hypervisor maps in small ones is validated in small ones.
    async fn pvalidate_entry(&self, entry: &PscEntry, validate: bool) -> Ends<()> {
        let gpa = entry.gfn.gpa();
        if entry.is_2m {
            let size = RmpSize::Size2M;
            match self.cpu.run(Insn::Pvalidate { gpa, size, validate }).await? {
                0 => return Ok(()),
                SIZE_MISMATCH => {}
                _ => return Err(self.cpu.terminate(TermReason::Pvalidate).await),
            }
        }
        for page in 0..entry.npages() {
            self.pvalidate_4k(gpa + page * PAGE_SIZE, validate).await?;
        }
        Ok(())
    }

    /// `pvalidate_4k_page`.
    async fn pvalidate_4k(&self, gpa: Gpa, validate: bool) -> Ends<()> {
        if self.cpu.run(Insn::Pvalidate { gpa, size: RmpSize::Size4K, validate }).await? == 0 {
            return Ok(());
        }
        Err(self.cpu.terminate(TermReason::Pvalidate).await)
    }

    /// `sev_evict_cache`: the first and the last bytes of each page are read.
    async fn evict_cache(&self, first: Gpa, npages: u64) -> Ends<()> {
        if !self.evicts_caches {
            return Ok(());
        }
        for page in 0..npages {
            let gpa = first + page * PAGE_SIZE;
            self.cpu.read(Place::private(gpa)).await?;
            self.cpu.read(Place::private(gpa + (PAGE_SIZE - 8))).await?;
        }
        Ok(())
    }

    /// `set_memory_decrypted`: the mapping loses its C-bit when the page is shared already. (A TD's mapping gets the shared bit before.)
    ///
    /// # Errors
    /// As [`Kernel::set_pages_state`]; a TD ends if the host does not convert the memory.
    pub async fn set_memory_decrypted(&self, range: Range<Gpa>) -> Ends<()> {
        if self.cc_vendor == CcVendor::Intel {
            return self.tdx_set_memory_decrypted(range).await;
        }
        self.set_pages_state(range.clone(), PageOp::Shared).await?;
        self.cpu.run(Insn::SetEncrypted(range, false)).await.map(drop)
    }

    /// `set_memory_encrypted`: the mapping gets its C-bit before. What the pages hold afterwards means nothing. (A TD's mapping loses the shared bit afterwards, and the pages are
    /// zero.)
    ///
    /// # Errors
    /// As [`Kernel::set_memory_decrypted`].
    pub async fn set_memory_encrypted(&self, range: Range<Gpa>) -> Ends<()> {
        if self.cc_vendor == CcVendor::Intel {
            return self.tdx_set_memory_encrypted(range).await;
        }
        self.cpu.run(Insn::SetEncrypted(range.clone(), true)).await?;
        self.set_pages_state(range, PageOp::Private).await
    }
}
