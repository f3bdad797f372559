//! Pinning pages of a process from inside the kernel (`mm/gup.c`): the page behind an address, with a reference.

use super::mm::{GupError, GupFlags, GupPage, HostLevel, Mm};
use super::pgtable::Look;
use super::phys::FrameFlags;
use super::vma::{Prot, Vma, VmaTree};
use crate::mutants::RC_41;
use crate::{Cx, Hva, Pfn};

impl Mm {
    /// `get_user_pages_unlocked` of one page: faults it in if needed, and takes a reference to it.
    ///
    /// # Errors
    /// [`GupError::Efault`] without a mapping that has the right, or where an access would get `SIGBUS`;
    /// [`GupError::HwPoison`] if the page is broken; [`GupError::Oom`] if no frame is left; [`GupError::SignalPending`] if the page
    /// had to be faulted in and the task has a signal.
    pub fn get_user_page(&self, cx: &Cx<'_>, hva: Hva, flags: GupFlags) -> Result<GupPage, GupError> {
        self.faultin_user_page(cx, hva, flags, true)
    }

    /// `pin_user_pages` of one page for writing and for long (`FOLL_WRITE | FOLL_LONGTERM`): it stays where it is until the reference is put, whatever becomes of
    /// the mapping. A signal does not keep it from being faulted in, unless it kills, which signals here do not.
    ///
    /// # Errors
    /// As [`Mm::get_user_page`].
    pub fn pin_user_page(&self, cx: &Cx<'_>, hva: Hva) -> Result<Pfn, GupError> {
        self.faultin_user_page(cx, hva, GupFlags { write: true }, false).map(|page| page.pfn)
    }

    fn faultin_user_page(
        &self,
        cx: &Cx<'_>,
        hva: Hva,
        flags: GupFlags,
        interruptible: bool,
    ) -> Result<GupPage, GupError> {
        let tree = self.mmap_lock.read(cx);
        let vma = tree.find(hva).ok_or(GupError::Efault)?;
        let right = if flags.write { Prot::WRITE } else { Prot::READ };
        if !vma.prot.contains(right) {
            return Err(GupError::Efault);
        }
        loop {
            if let Some(page) = self.follow_page(cx, hva, flags.write) {
                return Ok(page);
            }
            if interruptible && cx.signal_pending() {
                return Err(GupError::SignalPending);
            }
            self.handle_mm_fault(cx, &tree, vma, hva, flags.write)?;
        }
    }

    /// `get_user_page_fast_only`: the page if the page table lets the access through as it is; never sleeps, never faults.
    pub fn get_user_page_fast_only(&self, cx: &Cx<'_>, hva: Hva, write: bool) -> Option<GupPage> {
        self.follow_page(cx, hva, write)
    }

    /// The page behind the entry, if it permits the access, with a reference.
    fn follow_page(&self, cx: &Cx<'_>, hva: Hva, write: bool) -> Option<GupPage> {
        let tables = self.page_table_lock.lock(cx);
        let pte = tables.pte(hva);
        if !pte.permits(write) {
            return None;
        }
        // `mark_page_accessed`, which whoever takes the page says of it.
        if self.phys.flags(pte.pfn()).contains(FrameFlags::IDLE) {
            self.phys.clear_flags(pte.pfn(), FrameFlags::IDLE);
        }
        // The entry's reference keeps the page: it is put after the entry was emptied under this lock.
        if !cx.has_mutant(RC_41) {
            self.phys.get(pte.pfn());
        }
        Some(GupPage { pfn: pte.pfn(), writable: pte.permits(true) })
    }

    /// The frame behind an address that can be read, without a scheduling point: for checkers. The outer `None`: the page table is being
    /// changed or used at this moment.
    pub fn peek_pfn(&self, hva: Hva) -> Option<Option<Pfn>> {
        self.page_table_lock.try_peek(|tables| {
            let pte = tables.pte(hva);
            pte.permits(false).then(|| pte.pfn())
        })
    }

    /// `host_pfn_mapping_level`: the size at which the page table maps the address right now. Takes only the page-table lock.
    pub fn host_mapping_level(&self, cx: &Cx<'_>, hva: Hva) -> HostLevel {
        match self.page_table_lock.lock(cx).look(hva) {
            Look::Huge(_) => HostLevel::Page2M,
            Look::NoTable | Look::Small(_) => HostLevel::Page4K,
        }
    }

    /// Faults one page in and returns the first address after what maps it. `tree` is held; rights were checked.
    pub(super) fn faultin_page(
        &self,
        cx: &Cx<'_>,
        tree: &VmaTree,
        vma: &Vma,
        hva: Hva,
        write: bool,
    ) -> Result<Hva, GupError> {
        loop {
            let look = {
                let tables = self.page_table_lock.lock(cx);
                tables.pte(hva).permits(write).then(|| tables.look(hva))
            };
            match look {
                Some(Look::Huge(_)) => return Ok(super::huge_memory::block_of(hva).end),
                Some(_) => return Ok(super::zap::page_of(hva).end),
                None => self.handle_mm_fault(cx, tree, vma, hva, write)?,
            }
        }
    }
}
