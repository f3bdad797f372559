//! `mincore` (`mm/mincore.c`): which pages of a range are in memory.
//!
//! The answer is a list, not a vector of bytes: a range may be of any size, and what is in memory is not.

use super::mm::Mm;
use super::vma::Vma;
use crate::{Cx, Errno, Hva, HvaRange, PAGE_SIZE, TASK_SIZE};
use std::collections::BTreeSet;

impl Mm {
    /// `mincore`: the pages that are in memory, ascending, counted from the start of the range. A page that some entry maps is in
    /// memory, zero pages included; another one if the file's page cache has it up to date.
    ///
    /// # Errors
    /// `EINVAL` if the address is not page-aligned; `ENOMEM` if any page of the range is unmapped.
    pub fn mincore(&self, cx: &Cx<'_>, start: Hva, len: u64) -> Result<Vec<u64>, Errno> {
        if !start.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let pages = len.div_ceil(PAGE_SIZE);
        let end =
            pages.checked_mul(PAGE_SIZE).and_then(|len| start.0.checked_add(len)).map(Hva).ok_or(Errno::ENOMEM)?;
        let range = HvaRange::new(start, end);
        // `access_ok`, which looks at the address even if there is nothing to look at behind it.
        if range.end.0 > TASK_SIZE {
            return Err(Errno::ENOMEM);
        }
        let tree = self.mmap_lock.read(cx);
        if !tree.covers(range) {
            return Err(Errno::ENOMEM);
        }
        let mut resident = BTreeSet::new();
        let mut at = start;
        while at < end {
            let vma = tree.find(at).expect("the range is covered");
            let part = vma.range.clip(&HvaRange::new(at, end));
            self.mincore_vma(cx, vma, part, &mut resident);
            at = part.end;
        }
        Ok(resident.into_iter().map(|page| page - start.page()).collect())
    }

    /// The part of the range in one area; `resident` has page numbers of the process.
    fn mincore_vma(&self, cx: &Cx<'_>, vma: &Vma, part: HvaRange, resident: &mut BTreeSet<u64>) {
        let mut at = part.start;
        while at < part.end {
            let tables = self.page_table_lock.lock(cx);
            let Some(block) = tables.next_block(at, part.end) else { break };
            let piece = block.clip(&part);
            let present = |page: &u64| !tables.pte(Hva(page * PAGE_SIZE)).is_none();
            resident.extend((piece.start.page()..piece.end.page()).filter(present));
            at = piece.end;
        }
        let Some(backing) = &vma.backing else { return };
        let first = vma.pgoff(part.start).expect("the area has a file");
        let cached = backing.file.operations().resident_pages(cx, first..first + part.len() / PAGE_SIZE);
        resident.extend(cached.into_iter().map(|pgoff| part.start.page() + (pgoff.0 - first.0)));
    }
}
