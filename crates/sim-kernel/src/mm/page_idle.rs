//! Idle page tracking (`mm/page_idle.c`): which pages nobody has used since somebody last asked. User space marks pages idle by writing ones to
//! `/sys/kernel/mm/page_idle/bitmap`, and reads there later which of them still are.
//!
//! Whether a page was used is what the A bits of processors say: of the entries that map it, and of whoever maps it elsewhere (`clear_young` of MMU
//! notifiers). They are cleared by being looked at. Who takes a page from within the kernel uses it as well.
//!
//! Simplified: the bitmap is addressed by frames, which a process finds in its pagemap; here by the addresses themselves. Of a page that several entries
//! map only that one is asked. A bits are kept as the set of pages that were looked at and not used since.

use super::mm::Mm;
use super::pgtable::{Look, PteFlags};
use super::phys::FrameFlags;
use super::zap::page_of;
use crate::{Cx, Errno, Hva, HvaRange, PAGE_SIZE, Pfn};

impl Mm {
    /// `page_idle_bitmap_write`, with ones for the pages of a range: they are idle until somebody uses them. Pages that are not there, and
    /// the zero page, are passed over; of a huge page only its first one counts, for all of it.
    ///
    /// # Errors
    /// `EINVAL` if the range does not begin at a page, or wraps.
    pub fn page_idle_mark(&self, cx: &Cx<'_>, start: Hva, len: u64) -> Result<(), Errno> {
        self.for_each_tracked(cx, start, len, |mapped, pfn| {
            self.page_idle_clear_pte_refs(cx, mapped, pfn);
            self.phys.set_flags(pfn, FrameFlags::IDLE);
        })
    }

    /// `page_idle_bitmap_read`: the pages of the range that are idle, counted from its start.
    ///
    /// # Errors
    /// As [`Mm::page_idle_mark`].
    pub fn page_idle_read(&self, cx: &Cx<'_>, start: Hva, len: u64) -> Result<Vec<u64>, Errno> {
        let is_idle = |pfn| self.phys.flags(pfn).contains(FrameFlags::IDLE);
        let mut idle = Vec::new();
        self.for_each_tracked(cx, start, len, |mapped, pfn| {
            if is_idle(pfn) {
                // It may have been used without anybody noticing.
                self.page_idle_clear_pte_refs(cx, mapped, pfn);
            }
            if is_idle(pfn) {
                idle.push(mapped.start.page() - start.page());
            }
        })?;
        Ok(idle)
    }

    /// `page_idle_clear_pte_refs_one`: if the page was used, it is not idle; and it counts as not used from now on.
    fn page_idle_clear_pte_refs(&self, cx: &Cx<'_>, mapped: HvaRange, pfn: Pfn) {
        let here = self.page_table_lock.lock(cx).test_and_clear_young(mapped.start);
        // Listeners are asked in any case: their bits are cleared too.
        let elsewhere = self.notifiers.clear_young(cx, mapped);
        if here || elsewhere {
            self.phys.clear_flags(pfn, FrameFlags::IDLE);
        }
    }

    /// What each entry of the range maps that can be tracked (`page_idle_get_folio`), and the frame.
    fn for_each_tracked(
        &self,
        cx: &Cx<'_>,
        start: Hva,
        len: u64,
        mut visit: impl FnMut(HvaRange, Pfn),
    ) -> Result<(), Errno> {
        let pages = len.div_ceil(PAGE_SIZE);
        let end =
            pages.checked_mul(PAGE_SIZE).and_then(|len| start.0.checked_add(len)).map(Hva).ok_or(Errno::EINVAL)?;
        if !start.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let range = HvaRange::new(start, end);
        let mut at = start;
        while at < end {
            let (block, found) = {
                let tables = self.page_table_lock.lock(cx);
                let Some(block) = tables.next_block(at, end) else { break };
                let part = block.clip(&range);
                let mut found = Vec::new();
                match tables.look(part.start) {
                    Look::Huge(pte) if part.start == block.start && !pte.has(PteFlags::ZERO) => {
                        found.push((block, pte.pfn()));
                    }
                    Look::Huge(_) | Look::NoTable => {}
                    Look::Small(_) => {
                        let hvas = (part.start.page()..part.end.page()).map(|page| Hva(page * PAGE_SIZE));
                        let ptes = hvas.map(|hva| (page_of(hva), tables.pte(hva)));
                        let tracked = ptes.filter(|(_, pte)| !pte.is_none() && !pte.has(PteFlags::ZERO));
                        found.extend(tracked.map(|(page, pte)| (page, pte.pfn())));
                    }
                }
                (block, found)
            };
            for (mapped, pfn) in found {
                visit(mapped, pfn);
            }
            at = block.end;
        }
        Ok(())
    }
}
