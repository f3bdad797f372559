//! `mlock` (`mm/mlock.c`): the pages of a range are faulted in, and stay.
//!
//! Simplified: no limit on locked memory, no `munlock`; nothing is ever reclaimed, so the flag matters to `madvise` only.

use super::mm::{GupError, Mm};
use super::vma::{Prot, page_align};
use crate::{Cx, Errno, Hva, HvaRange, PAGE_SIZE};

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
