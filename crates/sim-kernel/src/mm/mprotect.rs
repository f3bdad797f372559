//! `mprotect` (`mm/mprotect.c`): other rights for a range, in the areas and in the page tables.

use super::mm::Mm;
use super::pgtable::{Pte, PteFlags};
use super::vma::{Prot, Vma, VmaTree, page_align};
use crate::{Cx, Errno, Hva, HvaRange};

/// Bytes that one entry of the topmost table covers; one notifier covers no more.
const PGDIR_SIZE: u64 = 1 << 39;

impl Mm {
    /// `mprotect`.
    ///
    /// # Errors
    /// `EINVAL` if the address is not page-aligned; `ENOMEM` if the range wraps, its first page is unmapped, or there is a hole in
    /// it (what comes before the hole is changed); `EACCES` for [`Prot::EXEC`] on a file that must not be executed (areas before it
    /// are changed).
    pub fn mprotect(&self, cx: &Cx<'_>, start: Hva, len: u64, prot: Prot) -> Result<(), Errno> {
        if !start.is_page_aligned() {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(());
        }
        let end = page_align(len).and_then(|len| start.0.checked_add(len)).map(Hva).ok_or(Errno::ENOMEM)?;
        let mut tree = self.mmap_lock.write(cx);
        let mut at = start;
        while at < end {
            let vma = tree.find(at).ok_or(Errno::ENOMEM)?;
            let part = HvaRange::new(at, vma.range.end.min(end));
            let may_exec = vma.backing.as_ref().is_none_or(|backing| backing.file.operations().may_exec());
            if prot.contains(Prot::EXEC) && !may_exec {
                return Err(Errno::EACCES);
            }
            self.mprotect_fixup(cx, &mut tree, part, prot);
            at = part.end;
        }
        Ok(())
    }

    /// `mprotect_fixup`: the part of the range in one area.
    fn mprotect_fixup(&self, cx: &Cx<'_>, tree: &mut VmaTree, part: HvaRange, prot: Prot) {
        let vma = tree.find(part.start).expect("the area was just found");
        let old = vma.prot;
        if old == prot {
            return;
        }
        let keeps_account = vma.account && (vma.backing.is_some() || vma.anon_vma.is_prepared());
        let account = !vma.shared && (prot.contains(Prot::WRITE) || keeps_account);
        self.modify_vma(cx, tree, part, |vma| (vma.prot, vma.account) = (prot, account));
        let vma = tree.find(part.start).expect("the area stays");
        self.change_protection(cx, vma, part);
        // A locked private mapping that becomes writable is populated with its own pages, as far as there are any.
        if vma.locked && !vma.shared && prot.contains(Prot::WRITE) && !old.contains(Prot::WRITE) {
            let mut at = part.start;
            while at < part.end {
                match self.faultin_page(cx, tree, vma, at, true) {
                    Ok(next) => at = next,
                    Err(_) => return,
                }
            }
        }
    }

    /// `change_protection`: the entries of the part get the area's rights. A notifier runs from the first 1 GiB region that has
    /// tables, whatever is in them.
    fn change_protection(&self, cx: &Cx<'_>, vma: &Vma, part: HvaRange) {
        let readable = vma.prot.is_accessible();
        let may_write = vma.prot.contains(Prot::WRITE);
        // Zero pages and file pages of a private mapping must be copied before they are written.
        let change = |pte: Pte| pte.with_access(readable, may_write && (vma.shared || pte.has(PteFlags::ANON)));
        let mut at = part.start;
        while at < part.end {
            let end = Hva((at.0 / PGDIR_SIZE + 1) * PGDIR_SIZE).min(part.end);
            let first = self.page_table_lock.lock(cx).first_reached(HvaRange::new(at, end));
            if let Some(first) = first {
                let range = HvaRange::new(first, end);
                let invalidation = self.invalidate_start(cx, range);
                self.for_each_block(cx, range, |tables, part| tables.protect(part, change));
                self.invalidate_end(cx, invalidation);
            }
            at = end;
        }
    }
}
