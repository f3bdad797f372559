//! `mlock` (`mm/mlock.c`): the pages of a range are faulted in, and stay.
//!
//! Simplified: no limit on locked memory, no `munlock`; nothing is ever reclaimed, so the flag matters to `madvise` only.

use super::mm::{GupError, Mm};
use super::vma::{Prot, page_align};
use crate::{Cx, Errno, Hva, HvaRange, PAGE_SIZE};
use std::sync::atomic::Ordering;

impl Mm {
    /// `mlock`: marks the areas, then populates them.
    ///
    /// # Errors
    /// `EINVAL` if the range wraps; `ENOMEM` if part of it is unmapped (what comes before is marked, nothing is populated) or a page
    /// cannot be touched; `EAGAIN` if no frame is left.
    pub fn mlock(&self, cx: &Cx<'_>, start: Hva, len: u64) -> Result<(), Errno> {
        // The sum wraps in the kernel too: the largest lengths lock nothing and succeed.
        let len = page_align(len.wrapping_add(start.0 % PAGE_SIZE)).unwrap_or(0);
        let start = start.page_base();
        let end = start.0.checked_add(len).map(Hva).ok_or(Errno::EINVAL)?;
        {
            let mut tree = self.mmap_lock.write(cx);
            let mut at = start;
            while at < end {
                let vma = tree.find(at).ok_or(Errno::ENOMEM)?;
                let part = HvaRange::new(at, vma.range.end.min(end));
                at = part.end;
                if !vma.locked {
                    self.modify_vma(cx, &mut tree, part, |vma| vma.locked = true);
                }
            }
        }
        self.mm_populate(cx, HvaRange::new(start, end))
    }

    /// `account_locked_vm`, for memory that somebody pins for the process: so many pages more, or less. At most `limit` pages may be locked this way; what [`Mm::mlock`] locks does
    /// not count here.
    ///
    /// # Errors
    /// `ENOMEM` if that would be more than the limit.
    ///
    /// # Panics
    /// If less than nothing is left.
    pub fn account_locked_vm(&self, cx: &Cx<'_>, pages: u64, locked: bool, limit: u64) -> Result<(), Errno> {
        let _tree = self.mmap_lock.write(cx);
        let before = self.locked_vm.load(Ordering::Relaxed);
        let after = if !locked {
            before.checked_sub(pages).expect("pages are unlocked that were locked")
        } else {
            before.checked_add(pages).filter(|after| *after <= limit).ok_or(Errno::ENOMEM)?
        };
        self.locked_vm.store(after, Ordering::Relaxed);
        Ok(())
    }

    /// `mm->locked_vm`: pages that are locked by [`Mm::account_locked_vm`].
    pub fn locked_vm(&self) -> u64 {
        self.locked_vm.load(Ordering::Relaxed)
    }

    /// `__mm_populate`: private writable pages as writes would, others as reads.
    fn mm_populate(&self, cx: &Cx<'_>, range: HvaRange) -> Result<(), Errno> {
        let mut at = range.start;
        while at < range.end {
            let tree = self.mmap_lock.read(cx);
            let vma = tree.find(at).ok_or(Errno::ENOMEM)?;
            // Rights are forced, except where there are none.
            if !vma.prot.is_accessible() {
                return Err(Errno::ENOMEM);
            }
            let write = vma.prot.contains(Prot::WRITE) && !vma.shared;
            at = self.faultin_page(cx, &tree, vma, at, write).map_err(|error| match error {
                GupError::Oom => Errno::EAGAIN,
                GupError::Efault | GupError::HwPoison | GupError::SignalPending => Errno::ENOMEM,
            })?;
        }
        Ok(())
    }
}
