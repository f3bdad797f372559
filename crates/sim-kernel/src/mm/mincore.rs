//! `mincore` (`mm/mincore.c`): which pages of a range are in memory.

use super::mm::Mm;
use super::vma::Vma;
use crate::{Cx, Errno, Hva, HvaRange, PAGE_SIZE};

impl Mm {
    /// `mincore`: one answer per page. A page that some entry maps is in memory, zero pages included; another one if the file's
    /// page cache has it up to date.
    ///
    /// # Errors
    /// `EINVAL` if the address is not page-aligned; `ENOMEM` if any page of the range is unmapped.
    pub fn mincore(&self, cx: &Cx<'_>, start: Hva, len: u64) -> Result<Vec<bool>, Errno> {
        if !start.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let pages = len.div_ceil(PAGE_SIZE);
        let end =
            pages.checked_mul(PAGE_SIZE).and_then(|len| start.0.checked_add(len)).map(Hva).ok_or(Errno::ENOMEM)?;
        let range = HvaRange::new(start, end);
        let tree = self.mmap_lock.read(cx);
        // Before memory for the answers is taken: the range may be absurd.
        if !tree.covers(range) {
            return Err(Errno::ENOMEM);
        }
        let mut resident = vec![false; pages as usize];
        let mut at = start;
        while at < end {
            let vma = tree.find(at).expect("the range is covered");
            let part = vma.range.clip(&HvaRange::new(at, end));
            self.mincore_vma(cx, vma, part, &mut resident[((at - start) / PAGE_SIZE) as usize..]);
            at = part.end;
        }
        Ok(resident)
    }

    /// The part of the range in one area.
    fn mincore_vma(&self, cx: &Cx<'_>, vma: &Vma, part: HvaRange, resident: &mut [bool]) {
        let page = |hva: Hva| ((hva - part.start) / PAGE_SIZE) as usize;
        let mut at = part.start;
        while at < part.end {
            let tables = self.page_table_lock.lock(cx);
            let Some(block) = tables.next_block(at, part.end) else { break };
            let piece = block.clip(&part);
            for (i, answer) in resident[page(piece.start)..page(piece.end)].iter_mut().enumerate() {
                *answer = !tables.pte(piece.start + i as u64 * PAGE_SIZE).is_none();
            }
            at = piece.end;
        }
        let Some(backing) = &vma.backing else { return };
        let operations = backing.file.operations();
        let first = vma.pgoff(part.start).expect("the area has a file");
        // Nothing is cached beyond the end, which may be far before that of the mapping.
        let pages = operations.stat(cx).size.div_ceil(PAGE_SIZE).saturating_sub(first.0);
        for (i, answer) in resident[..page(part.end)].iter_mut().enumerate().take(pages as usize) {
            *answer = *answer || operations.is_resident(cx, first + i as u64);
        }
    }
}
