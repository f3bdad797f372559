//! `mmap` and `munmap` (`mm/mmap.c`, `mm/vma.c`), and what is left to do when the process exits.
//!
//! Addresses are given out from the top down, deterministically, with at least 2 MiB unmapped between any two mappings, so that
//! separate ones never merge and never share a page table.
//!
//! Simplified: no fixed addresses, no randomisation, no resource limits, no overcommit accounting; cutting an area
//! is not limited by the number of areas, mapping is; `munmap` keeps `mmap_lock` for writing
//! while it empties page tables.

use super::mm::{Mm, MmapArgs};
use super::pgtable::{MmuGather, Zap};
use super::vma::{AnonVma, Backing, HugeAdvice, Prot, ReadAdvice, Vma, page_align};
use crate::fs::{File, MmapRequest, Shmem};
use crate::mutants::RC_40;
use crate::{Cx, Errno, Hva, HvaRange, MMAP_BASE, PAGE_SIZE, PMD_SIZE, Pgoff, TASK_SIZE};
use std::sync::Arc;

/// Unmapped bytes between separate mappings.
const GAP: u64 = PMD_SIZE;
/// `mmap_min_addr`.
const LOWEST: u64 = 0x1_0000;
/// `MAX_LFS_FILESIZE`.
const FILE_SIZE_MAX: u64 = i64::MAX as u64;

/// `sysctl_max_map_count`: areas that a process may have when it maps another.
const MAP_COUNT_MAX: usize = 65_530;

impl Mm {
    /// The first check of `mmap`, before the descriptor is looked at.
    ///
    /// # Errors
    /// `EINVAL` if the offset is not a multiple of the page size.
    pub fn check_offset(offset: u64) -> Result<(), Errno> {
        if offset.is_multiple_of(PAGE_SIZE) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// `mmap` without a fixed address.
    ///
    /// # Errors
    /// In this order: `EINVAL` if the offset is not page-aligned, `align` not a power of two of at least a page, or `len` 0;
    /// `ENOMEM` if there are too many areas or no address range is free; `EOVERFLOW` if the file part ends beyond 2^63-1; `EPERM` for [`Prot::EXEC`] on a file
    /// that must not be executed; what the file's `mmap` says (`ENODEV`, `EINVAL`).
    pub fn mmap(&self, cx: &Cx<'_>, args: &MmapArgs<'_>) -> Result<Hva, Errno> {
        Mm::check_offset(args.offset)?;
        if !args.align.is_power_of_two() || args.align < PAGE_SIZE || args.len == 0 {
            return Err(Errno::EINVAL);
        }
        let len = page_align(args.len).ok_or(Errno::ENOMEM)?;
        let mut tree = self.mmap_lock.write(cx);
        if tree.len() > MAP_COUNT_MAX {
            return Err(Errno::ENOMEM);
        }
        let start = tree.unmapped_area(len, args.align, GAP, LOWEST, Hva(MMAP_BASE)).ok_or(Errno::ENOMEM)?;
        let backing = match args.file {
            Some(file) => Some(map_file(cx, file, len, args)?),
            // Anonymous memory that could be shared with a child is a file without a name.
            None if args.shared => {
                let file = File::new(cx, Arc::new(Shmem::anonymous(cx, Arc::clone(&self.phys), len)));
                Some(Backing { file, pgoff: Pgoff(0) })
            }
            None => None,
        };
        let vma = Vma {
            range: HvaRange::new(start, start + len),
            prot: args.prot,
            shared: args.shared,
            advice: HugeAdvice::default(),
            reads: ReadAdvice::default(),
            locked: false,
            account: !args.shared && args.prot.contains(Prot::WRITE),
            anon_vma: AnonVma::default(),
            backing,
        };
        self.link(cx, &vma);
        tree.insert(vma);
        Ok(start)
    }

    /// `munmap`. Parts that are not mapped are ignored.
    ///
    /// # Errors
    /// `EINVAL` if the address is not page-aligned, the length 0, or the range not in user space.
    pub fn munmap(&self, cx: &Cx<'_>, start: Hva, len: u64) -> Result<(), Errno> {
        if !start.is_page_aligned() || start.0 > TASK_SIZE || len > TASK_SIZE - start.0 || len == 0 {
            return Err(Errno::EINVAL);
        }
        let len = page_align(len).expect("the length is below the top of user space");
        self.do_munmap(cx, HvaRange::new(start, start + len));
        Ok(())
    }

    /// Gives back everything, when the process exits. Listeners are told of one unmapping of all addresses.
    pub fn exit_mmap(&self, cx: &Cx<'_>) {
        self.notifiers.release(cx);
        self.do_munmap(cx, HvaRange::new(Hva(0), Hva(TASK_SIZE)));
    }

    fn do_munmap(&self, cx: &Cx<'_>, range: HvaRange) {
        let mut tree = self.mmap_lock.write(cx);
        if !tree.intersects(range) {
            return;
        }
        self.split_vma(cx, &mut tree, range.start);
        self.split_vma(cx, &mut tree, range.end);
        let mut gone = Vec::new();
        while let Some(vma) = tree.find_from(range.start).filter(|vma| vma.range.start < range.end) {
            let start = vma.range.start;
            gone.push(tree.remove(start));
        }

        let mut gather = MmuGather::default();
        let invalidation = self.invalidate_start(cx, range);
        self.unmap_page_range(cx, range, Zap::default(), &mut gather);
        self.invalidate_end(cx, invalidation);

        // The reverse map knows the areas until their pages are gone, so that a truncation in between misses none.
        for vma in &gone {
            self.unlink(cx, vma);
        }
        let floor = tree.find_before(range.start).map_or(Hva(0), |vma| vma.range.end);
        let ceiling = tree.find_from(range.end).map_or(Hva(u64::MAX), |vma| vma.range.start);
        self.page_table_lock.lock(cx).free_tables(&self.phys, range, floor, ceiling);
        gather.finish(cx, &self.phys);
        for vma in gone {
            if let Some(backing) = vma.backing
                && !cx.has_mutant(RC_40)
            {
                backing.file.put(cx);
            }
        }
    }
}

/// The file's part in `mmap`; takes a reference for the area.
fn map_file(cx: &Cx<'_>, file: &Arc<File>, len: u64, args: &MmapArgs<'_>) -> Result<Backing, Errno> {
    if FILE_SIZE_MAX - len < args.offset {
        return Err(Errno::EOVERFLOW);
    }
    if args.prot.contains(Prot::EXEC) && !file.operations().may_exec() {
        return Err(Errno::EPERM);
    }
    let pgoff = Pgoff(args.offset / PAGE_SIZE);
    file.operations().mmap(cx, &MmapRequest { shared: args.shared, pgoff, pages: len / PAGE_SIZE })?;
    if !cx.has_mutant(RC_40) {
        file.get(cx);
    }
    Ok(Backing { file: Arc::clone(file), pgoff })
}
