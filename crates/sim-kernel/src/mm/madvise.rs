//! `madvise` (`mm/madvise.c`): advice that drops, populates, splits or merges pages, area by area.
//!
//! Simplified: no swap, no ageing and no reclaim, so that `COLD` and `PAGEOUT` only split huge pages that they touch partly, `FREE`
//! keeps the contents for ever, and `WILLNEED` does nothing.

use super::huge_memory::block_of;
use super::mm::{Advice, GupError, GupFlags, Mm};
use super::pgtable::{Look, PteFlags, Zap};
use super::vma::{HugeAdvice, Prot, ReadAdvice, Vma, page_align};
use crate::{Cx, Errno, Hva, HvaRange, PAGE_SIZE};
use std::sync::Arc;

/// `FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE`.
const PUNCH_HOLE: u32 = 0x03;

impl Mm {
    /// `madvise`.
    ///
    /// # Errors
    /// `EINVAL` for [`Advice::Hwpoison`] and [`Advice::SoftOffline`] (not configured), for an address that is not page-aligned and a
    /// range that wraps. `ENOMEM` if part of the range is unmapped, after all the work on the rest. An error of one area ends the
    /// walk: `EINVAL` for a locked area (drop, free, cold, reclaim, remove), for freeing
    /// lazily what is not private anonymous memory, for removing without a file, for collapsing where that
    /// cannot be; `EACCES` for removing from a private mapping; what the file's `fallocate` says. Populating: `ENOMEM` at a hole,
    /// `EINVAL` where the right is missing, `EFAULT` where an access would get `SIGBUS`, `EHWPOISON`.
    pub fn madvise(&self, cx: &Cx<'_>, start: Hva, len: u64, advice: Advice) -> Result<(), Errno> {
        if matches!(advice, Advice::Hwpoison | Advice::SoftOffline) || !start.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let end = page_align(len).and_then(|len| start.0.checked_add(len)).map(Hva).ok_or(Errno::EINVAL)?;
        let range = HvaRange::new(start, end);
        if range.is_empty() {
            return Ok(());
        }
        match advice {
            Advice::PopulateRead => self.madvise_populate(cx, range, false),
            Advice::PopulateWrite => self.madvise_populate(cx, range, true),
            Advice::Hugepage => self.madvise_update_vmas(cx, range, |vma| vma.advice = HugeAdvice::Huge),
            Advice::Nohugepage => self.madvise_update_vmas(cx, range, |vma| vma.advice = HugeAdvice::NoHuge),
            Advice::Normal => self.madvise_update_vmas(cx, range, |vma| vma.reads = ReadAdvice::Normal),
            Advice::Sequential => self.madvise_update_vmas(cx, range, |vma| vma.reads = ReadAdvice::Sequential),
            Advice::Random => self.madvise_update_vmas(cx, range, |vma| vma.reads = ReadAdvice::Random),
            _ => self.madvise_walk_vmas(cx, range, advice),
        }
    }

    /// `madvise_inject_error`: [`Advice::Hwpoison`] on a kernel that can (`CONFIG_MEMORY_FAILURE`). Each page is faulted in and then said to
    /// be broken, with nothing held but a reference to it, as if the machine had found out.
    ///
    /// # Errors
    /// `EINVAL` for an address that is not page-aligned, a range that wraps, and memory that is not of a file that handles it; as
    /// `madvise` if a page cannot be had; what the file says.
    pub fn inject_memory_failure(&self, cx: &Cx<'_>, start: Hva, len: u64) -> Result<(), Errno> {
        let end = page_align(len).and_then(|len| start.0.checked_add(len)).map(Hva).ok_or(Errno::EINVAL)?;
        if !start.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        let mut at = start;
        while at < end {
            let page = self.get_user_page(cx, at, GupFlags { write: false }).map_err(GupError::errno)?;
            // Simplified: the file is found by the address, not by the page.
            let file = {
                let tree = self.mmap_lock.read(cx);
                let backed = tree.find(at).and_then(|vma| vma.backing.as_ref().zip(vma.pgoff(at)));
                backed.map(|(backing, pgoff)| (Arc::clone(backing.file.operations()), pgoff))
            };
            let result = match file {
                Some((operations, pgoff)) => operations.memory_failure(cx, pgoff),
                None => Err(Errno::EINVAL),
            };
            self.phys.put(cx, page.pfn);
            result?;
            at = at + PAGE_SIZE;
        }
        Ok(())
    }

    /// The kinds that look at areas and leave them as they are.
    fn madvise_walk_vmas(&self, cx: &Cx<'_>, range: HvaRange, advice: Advice) -> Result<(), Errno> {
        let mut unmapped = Ok(());
        let mut at = range.start;
        let mut tree = self.mmap_lock.read(cx);
        while at < range.end {
            let vma = tree.find_from(at).ok_or(Errno::ENOMEM)?;
            let part = vma.range.clip(&HvaRange::new(at, range.end));
            if vma.range.start > at {
                unmapped = Err(Errno::ENOMEM);
            }
            if part.is_empty() {
                break;
            }
            at = part.end;
            match advice {
                Advice::Dontneed => self.madvise_dontneed(cx, vma, part)?,
                Advice::Cold | Advice::Pageout => self.madvise_cold(cx, vma, part)?,
                Advice::Collapse => self.madvise_collapse(cx, vma, part)?,
                Advice::Free => self.madvise_free(cx, vma, part)?,
                // Nothing was swapped out, and files in memory need no reading ahead.
                Advice::Willneed => {}
                Advice::Remove => {
                    // The file is not called under `mmap_lock`; a reference of its own keeps it.
                    let vma = vma.clone();
                    if let Some(backing) = &vma.backing {
                        backing.file.get(cx);
                    }
                    drop(tree);
                    let result = madvise_remove(cx, &vma, part);
                    if let Some(backing) = &vma.backing {
                        backing.file.put(cx);
                    }
                    result?;
                    tree = self.mmap_lock.read(cx);
                }
                _ => unreachable!("{advice:?} does not walk areas"),
            }
        }
        unmapped
    }

    /// `madvise_dontneed_single_vma`: one notifier over the part, whatever is mapped.
    fn madvise_dontneed(&self, cx: &Cx<'_>, vma: &Vma, part: HvaRange) -> Result<(), Errno> {
        if vma.locked {
            return Err(Errno::EINVAL);
        }
        self.zap_page_range(cx, part, Zap { reclaim: true, ..Zap::default() });
        Ok(())
    }

    /// `madvise_cold`, `madvise_pageout`: a huge page that is not meant whole is split, nothing else shows.
    fn madvise_cold(&self, cx: &Cx<'_>, vma: &Vma, part: HvaRange) -> Result<(), Errno> {
        if vma.locked {
            return Err(Errno::EINVAL);
        }
        self.split_partly_meant(cx, part);
        Ok(())
    }

    /// `madvise_free_single_vma`: the contents may go when memory is short, which here it never is. What shows is the notifier
    /// over the part, inside which a huge page that is not meant whole is split.
    fn madvise_free(&self, cx: &Cx<'_>, vma: &Vma, part: HvaRange) -> Result<(), Errno> {
        if vma.locked || vma.backing.is_some() {
            return Err(Errno::EINVAL);
        }
        let invalidation = self.invalidate_start(cx, part);
        self.split_partly_meant(cx, part);
        self.invalidate_end(cx, invalidation);
        Ok(())
    }

    /// Splits the process's own huge pages at the edges of the part.
    fn split_partly_meant(&self, cx: &Cx<'_>, part: HvaRange) {
        for edge in [part.start, Hva(part.end.0 - 1)] {
            let look = self.page_table_lock.lock(cx).look(edge);
            let own = matches!(look, Look::Huge(pte) if pte.has(PteFlags::ANON));
            if own && part.clip(&block_of(edge)) != block_of(edge) {
                self.split_huge_pmd(cx, edge);
            }
        }
    }

    /// `madvise_update_vma`: the advice is kept in the areas, which are cut for it.
    fn madvise_update_vmas(&self, cx: &Cx<'_>, range: HvaRange, advise: impl Fn(&mut Vma)) -> Result<(), Errno> {
        let mut unmapped = Ok(());
        let mut at = range.start;
        let mut tree = self.mmap_lock.write(cx);
        while at < range.end {
            let vma = tree.find_from(at).ok_or(Errno::ENOMEM)?;
            let part = vma.range.clip(&HvaRange::new(at, range.end));
            if vma.range.start > at {
                unmapped = Err(Errno::ENOMEM);
            }
            if part.is_empty() {
                break;
            }
            at = part.end;
            let mut advised = vma.clone();
            advise(&mut advised);
            if (advised.advice, advised.reads) != (vma.advice, vma.reads) {
                self.modify_vma(cx, &mut tree, part, &advise);
            }
        }
        unmapped
    }

    /// `madvise_populate`: accesses every page in turn.
    fn madvise_populate(&self, cx: &Cx<'_>, range: HvaRange, write: bool) -> Result<(), Errno> {
        let right = if write { Prot::WRITE } else { Prot::READ };
        let mut at = range.start;
        while at < range.end {
            let tree = self.mmap_lock.read(cx);
            let vma = tree.find(at).ok_or(Errno::ENOMEM)?;
            if !vma.prot.contains(right) {
                return Err(Errno::EINVAL);
            }
            at = self.faultin_page(cx, &tree, vma, at, write).map_err(GupError::errno)?;
        }
        Ok(())
    }
}

/// `madvise_remove`: punches the part out of the file, without `mmap_lock`.
fn madvise_remove(cx: &Cx<'_>, vma: &Vma, part: HvaRange) -> Result<(), Errno> {
    if vma.locked {
        return Err(Errno::EINVAL);
    }
    let backing = vma.backing.as_ref().ok_or(Errno::EINVAL)?;
    if !vma.shared {
        return Err(Errno::EACCES);
    }
    let offset = vma.pgoff(part.start).expect("the area has a file").0 * PAGE_SIZE;
    Arc::clone(backing.file.operations()).fallocate(cx, PUNCH_HOLE, offset, part.len())
}
