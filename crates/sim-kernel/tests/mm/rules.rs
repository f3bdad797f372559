//! One script per rule: what is installed, what is answered, and which notifiers are raised.

use super::script::check;
use sim_kernel::fs::{Fault, FaultError, File, FileOperations, MmapRequest, Stat};
use sim_kernel::mm::{Advice, FrameFlags, GupError, GupFlags, IMmap, Mm, MmapArgs, PhysMem, Prot, Signal};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Errno, PAGE_SIZE, Pgoff};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
fn first_touch_of_a_huge_capable_block() {
    check(
        "mmap m 1024 rw -> ok
         read m+5 -> 0
         level m+5 -> 2M
         gup m+6 r -> r
         fast m+6 w -> none
         write m+7 9 -> ok ! m+0,512
         level m -> 2M
         fast m+6 w -> rw
         read m+7 -> 9
         write m+512 1 -> ok
         level m+1023 -> 2M
         read m+1023 -> 0",
    );
}

#[test]
fn first_touch_of_a_block_that_is_not_huge_capable() {
    check(
        "mmap m 100 rw -> ok
         read m+5 -> 0
         level m+5 -> 4K
         fast m+5 r -> r
         fast m+6 r -> none
         write m+5 3 -> ok ! m+5,1
         write m+6 3 -> ok
         fast m+6 w -> rw
         mmap n 512 rw -> ok
         nohugepage n 512 -> ok
         write n 1 -> ok
         level n -> 4K",
    );
}

#[test]
fn a_page_table_is_never_huge_whatever_the_advice() {
    check(
        "mmap m 512 rw -> ok
         nohugepage m 512 -> ok
         read m+1 -> 0
         hugepage m 512 -> ok
         read m+2 -> 0
         write m+3 1 -> ok
         level m+2 -> 4K
         fast m+2 w -> none",
    );
}

#[test]
fn without_a_free_huge_page_faults_fall_back_to_small_pages() {
    check(
        "mmap m 1024 rw -> ok
         read m -> 0
         free 100 -> ok
         write m+5 1 -> ok ! m+0,512 m+5,1
         level m -> 4K
         write m+600 1 -> ok
         level m+600 -> 4K
         fast m+601 r -> none
         free 0 -> ok
         write m+7 1 -> Sigbus
         populate_write m+7 1 -> ENOMEM
         gup m+7 w -> Oom
         mlock m+601 1 -> EAGAIN ! m+512,512
         read m+601 -> 0
         read m+5 -> 1",
    );
}

#[test]
fn rights_and_holes() {
    check(
        "mmap m 4 r -> ok
         write m 1 -> Sigsegv
         read m -> 0
         gup m w -> Efault
         mmap n 4 - -> ok
         read n -> Sigsegv
         gup n r -> Efault
         mmap w 4 w -> ok
         read w -> 0
         gup w r -> Efault
         gup w+1 w -> rw
         read nowhere -> Sigsegv
         write nowhere+5 1 -> Sigsegv
         read nowhere+max -> Sigsegv",
    );
}

#[test]
fn unaligned_accesses_cross_pages() {
    check(
        "mmap m 2 rw -> ok
         write m+0.5 7 -> ok
         read m+0.5 -> 7
         read m -> 0",
    );
}

#[test]
fn dropping_pages_of_a_huge_page() {
    check(
        "mmap m 1024 rw -> ok
         write m+5 7 -> ok
         write m+600 8 -> ok
         dontneed m+5 1 -> ok ! m+5,1 m+0,512
         level m -> 4K
         read m+5 -> 0
         dontneed m+4 2 -> ok ! m+4,2
         dontneed m+510 100 -> ok ! m+510,100 m+512,512
         read m+600 -> 0
         read m+700 -> 0",
    );
}

#[test]
fn a_block_is_huge_again_only_if_one_call_drops_it_whole() {
    check(
        "mmap m 512 rw -> ok
         write m 1 -> ok
         dontneed m 512 -> ok ! m+0,512
         write m 1 -> ok
         level m -> 2M
         dontneed m 256 -> ok ! m+0,256 m+0,512
         dontneed m+256 256 -> ok ! m+256,256
         write m 1 -> ok
         level m -> 4K
         dontneed m 512 -> ok ! m+0,512
         read m -> 0
         level m -> 2M
         dontneed m 512 -> ok ! m+0,512
         dontneed m 512 -> ok ! m+0,512
         munmap m 512 -> ok ! m+0,512
         mmap n 512 rw -> ok
         write n 1 -> ok
         level n -> 2M",
    );
}

#[test]
fn unmapping_cuts_first() {
    check(
        "mmap m 1536 rw -> ok
         write m+600 4 -> ok
         munmap m+600 2 -> ok ! m+512,512 m+600,2
         read m+600 -> Sigsegv
         read m+602 -> 0
         level m+602 -> 4K
         munmap m+600 2 -> ok
         munmap m+512 512 -> ok ! m+512,512
         munmap m+1024 5 -> ok ! m+1024,512 m+1024,5
         munmap m 1536 -> ok ! m+0,1536
         munmap m 0 -> EINVAL
         munmap m+0.5 1 -> EINVAL
         munmap m max -> EINVAL
         munmap nowhere 4 -> ok",
    );
}

#[test]
fn changing_rights() {
    check(
        "mmap m 1024 rw -> ok
         mprotect m+5 1 r -> ok ! m+0,512 m+5,1
         mprotect m+5 1 r -> ok
         write m+5 1 -> Sigsegv
         write m+6 1 -> ok
         level m+6 -> 4K
         mprotect m 1024 r -> ok ! m+0,5 m+6,1018
         mprotect m 1024 rw -> ok ! m+0,6 m+6,1018
         fast m+6 w -> rw
         read m+9 -> 0
         mprotect m 512 - -> ok ! m+0,512
         read m+6 -> Sigsegv
         mincore m+5 3 -> 010
         mprotect m 512 rw -> ok ! m+0,512
         read m+6 -> 1
         fast m+9 w -> none
         write m+600 3 -> ok
         level m+600 -> 2M
         mprotect m+512 512 r -> ok ! m+512,512
         level m+600 -> 2M
         fast m+600 w -> none
         mprotect m+512 512 rw -> ok ! m+512,512
         fast m+600 w -> rw",
    );
}

#[test]
fn small_mappings_are_cut_silently() {
    check(
        "mmap m 511 rw align 1 -> ok
         mprotect m+5 1 r -> ok ! m+5,1
         munmap m+5 1 -> ok ! m+5,1
         nohugepage m+7 1 -> ok",
    );
}

#[test]
fn cuts_are_told_only_where_tables_exist() {
    // The second GiB from the top has none until something is touched there.
    check(
        "mmap m 786432 rw align 262144 -> ok
         nohugepage m+5 1 -> ok
         mprotect m+9 1 r -> ok
         munmap m+20 1 -> ok ! m+20,1
         read m+10 -> 0
         nohugepage m+30 1 -> ok
         nohugepage m+700 1 -> ok ! m+512,512
         dontneed m 786432 -> ENOMEM ! m+0,5 m+5,1 m+6,3 m+9,1 m+10,10 m+21,9 m+30,1 m+31,669 m+700,1 m+701,785731",
    );
}

#[test]
fn advice_about_huge_pages_cuts_and_merges() {
    check(
        "mmap m 1024 rw -> ok
         write m 1 -> ok
         nohugepage m+5 2 -> ok ! m+0,512
         nohugepage m+5 2 -> ok
         nohugepage m 1024 -> ok
         hugepage m+512 512 -> ok
         hugepage m 512 -> ok
         write m+700 1 -> ok
         level m+700 -> 2M
         hugepage m+1000 100 -> ENOMEM
         hugepage nowhere 1 -> ENOMEM",
    );
}

/// Areas that are equal are one, unless each has got memory of its own: a block then never lies inside one of them. (`collapse` succeeds where a block does.)
#[test]
fn areas_with_different_anon_vmas_stay_apart() {
    check(
        "mmap m 512 rw -> ok
         hugepage m 1 -> ok ! m+0,512
         write m+1 1 -> ok
         write m 1 -> ok
         hugepage m 512 -> ok
         collapse m 512 -> EINVAL
         level m -> 4K",
    );
    // Only one of them has: it is the whole's.
    check(
        "mmap m 512 rw -> ok
         hugepage m 1 -> ok ! m+0,512
         write m+1 1 -> ok
         hugepage m 512 -> ok
         collapse m 512 -> ok ! m+0,512
         level m -> 2M",
    );
    // Both are parts of one that had.
    check(
        "mmap m 512 rw -> ok
         nohugepage m 512 -> ok
         write m+1 1 -> ok
         hugepage m 1 -> ok ! m+0,512
         write m 1 -> ok
         hugepage m 512 -> ok
         collapse m 512 -> ok ! m+0,512",
    );
    // Where only the rights differ, a neighbour's is taken.
    check(
        "mmap m 512 rw -> ok
         nohugepage m 512 -> ok
         mprotect m 1 r -> ok ! m+0,512 m+0,1
         write m+1 1 -> ok
         mprotect m 1 rw -> ok ! m+0,1
         hugepage m 512 -> ok
         collapse m 512 -> ok ! m+0,512",
    );
}

#[test]
fn an_area_that_was_written_to_stays_accounted() {
    check(
        "mmap m 512 r -> ok
         mprotect m 1 rw -> ok ! m+0,512 m+0,1
         write m 1 -> ok
         mprotect m 1 r -> ok ! m+0,1
         collapse m 512 -> EINVAL
         mprotect m 512 rw -> ok ! m+0,1 m+1,511
         collapse m 512 -> ok ! m+0,512",
    );
    // Nothing was ever written: it is as if it had never been writable.
    check(
        "mmap m 512 r -> ok
         mprotect m 1 rw -> ok ! m+0,512 m+0,1
         mprotect m 1 r -> ok ! m+0,1
         read m -> 0
         level m -> 2M",
    );
}

#[test]
fn populating() {
    check(
        "mmap m 4 rw -> ok
         populate_read m 2 -> ok
         mincore m 4 -> 1100
         populate_write m 4 -> ok ! m+0,1 m+1,1
         populate_write m+2 4 -> ENOMEM
         mmap r 2 r -> ok
         populate_write r 2 -> EINVAL
         mmap n 2 - -> ok
         populate_read n 2 -> EINVAL
         memfd f 2 -> ok
         mmap s 4 rw shared file f -> ok
         populate_read s 4 -> EFAULT
         mincore s 4 -> 1100
         populate_read nowhere 1 -> ENOMEM
         mmap h 1024 rw -> ok
         populate_read h+100 600 -> ok
         level h -> 2M
         level h+600 -> 2M",
    );
}

#[test]
fn calls_on_ranges() {
    check(
        "mmap m 8 rw -> ok
         dontneed m+0.5 1 -> EINVAL
         dontneed m 0 -> ok
         dontneed m max -> EINVAL
         munmap m+3 1 -> ok ! m+3,1
         dontneed m 8 -> ENOMEM ! m+0,3 m+4,4
         dontneed m+3 1 -> ENOMEM
         dontneed nowhere 1 -> ENOMEM
         cold m 8 -> ENOMEM
         pageout m 2 -> ok
         hwpoison m 1 -> EINVAL
         soft_offline nowhere+0.5 1 -> EINVAL
         mprotect m 8 r -> ENOMEM ! m+0,3
         mprotect m+3 2 r -> ENOMEM
         mprotect m max r -> ENOMEM
         mprotect m+0.5 0 r -> EINVAL
         mprotect nowhere 0 r -> ok
         mprotect nowhere 1 r -> ENOMEM
         write m 1 -> Sigsegv
         write m+4 1 -> ok
         mincore m+4 4 -> 1000
         mincore m 8 -> ENOMEM
         mincore m+0.5 1 -> EINVAL
         mincore nowhere 0 ->
         mincore nowhere 1 -> ENOMEM
         mincore nowhere 34359738368 -> ENOMEM
         mlock m 8 -> ENOMEM
         dontneed m 1 -> EINVAL
         dontneed m+4 1 -> ok ! m+4,1
         mlock m+4.5 1 -> ok
         mincore m+4 4 -> 1100
         dontneed m+6 2 -> ok ! m+6,2
         dontneed m+4 4 -> EINVAL
         cold m+4 1 -> EINVAL",
    );
}

#[test]
fn locking_cuts_and_populates() {
    check(
        "mmap m 1024 rw -> ok
         mlock m+5 2 -> ok ! m+0,512
         fast m+5 w -> rw
         fast m+7 r -> none
         mmap r 2 r -> ok
         mlock r 2 -> ok
         fast r r -> r
         mprotect r 2 rw -> ok ! r+0,2 r+0,1 r+1,1
         mmap n 1 - -> ok
         mlock n 1 -> ENOMEM
         memfd f 1 -> ok
         mmap s 2 rw shared file f -> ok
         mlock s 2 -> ENOMEM
         remove s 1 -> EINVAL
         mincore s 2 -> 10",
    );
}

#[test]
fn shared_file_pages() {
    check(
        "memfd f 8 -> ok
         mmap a 8 rw shared file f -> ok
         mmap b 4 r shared file f offset 2 -> ok
         refs f -> 3
         write a+3 5 -> ok
         read b+1 -> 5
         fast b+1 w -> none
         read a+4 -> 0
         fast a+4 w -> rw
         mprotect a 8 r -> ok ! a+0,8
         mprotect a 8 rw -> ok ! a+0,8
         fast a+3 w -> rw
         dontneed a 8 -> ok ! a+0,8
         read a+3 -> 5
         mincore a 8 -> 00011000
         allocate f 0 2 -> ok
         mincore a 3 -> 000
         remove a+3 1 -> ok ! a+3,1 b+1,1
         read a+3 -> 0
         read b+6 -> Sigsegv
         mprotect a+2 2 r -> ok ! a+2,2
         refs f -> 5
         mappings f -> 4
         mprotect a+2 2 rw -> ok ! a+2,2
         refs f -> 3
         mappings f -> 2
         munmap a+2 2 -> ok ! a+2,2
         mappings f -> 3
         munmap b 4 -> ok ! b+0,4
         refs f -> 3",
    );
}

#[test]
fn taking_out_a_page_tells_every_mapping_if_some_page_table_has_it() {
    check(
        "gmem g 8 -> ok
         mmap a 8 rw shared file g -> ok
         mmap b 8 rw shared file g offset 1 -> ok
         write a+1 1 -> ok
         unmap g 1 -> ok ! a+1,1 b+0,1
         unmap g 1 -> ok
         read a+1 -> 1
         read b -> 1
         munmap a+1 1 -> ok ! a+1,1
         unmap g 1 -> ok ! b+0,1
         read a+2 -> 0
         unmap g 3 -> ok",
    );
}

#[test]
fn mapping_a_file() {
    check(
        "gmem g 8 -> ok
         mmap a 8 rw shared file g -> ok
         mprotect a 8 rx -> EACCES
         mmap c 8 rw file g -> EINVAL
         mmap c 8 rx shared file g -> EPERM
         mmap c 0 rx shared file g -> EINVAL
         mmap c 7 rx shared file g offset 2251799813685240 -> EPERM
         mmap c 8 rx shared file g offset 2251799813685240 -> EOVERFLOW
         mmap c 34359738368 rx shared file g offset 2251799813685240 -> ENOMEM
         refs g -> 2
         collapse a 8 -> EINVAL
         hugepage a 8 -> ok
         write a 1 -> ok
         remove a 8 -> ok ! a+0,8
         mincore a 1 -> 0",
    );
}

#[test]
fn rights_change_up_to_a_file_that_must_not_be_executed() {
    // Addresses are handed out downwards, so that an area below is one that was cut.
    check(
        "gmem g 8 -> ok
         mmap a 8 rw shared file g -> ok
         mprotect a 4 r -> ok ! a+0,4
         mprotect a 8 rwx -> EACCES
         write a 1 -> Sigsegv
         write a+4 1 -> ok",
    );
}

#[test]
fn private_file_mappings_copy() {
    check(
        "memfd f 8 -> ok
         mmap s 8 rw shared file f -> ok
         mmap p 8 rw file f -> ok
         write s 3 -> ok
         read p -> 3
         write p 4 -> ok ! p+0,1
         read s -> 3
         write p+1 5 -> ok
         read s+1 -> 0
         read s -> 3
         unmap f 0 -> ok ! s+0,1 p+0,1
         read p -> 4
         remove p 1 -> EACCES
         mprotect p 8 r -> ok ! p+0,8
         mprotect p 8 rw -> ok ! p+0,8
         fast p w -> rw
         read p+2 -> 0
         fast p+2 w -> none
         punch f 0 1 -> ok ! s+0,1 p+0,1
         read p -> 4
         read s -> 0
         ftruncate f 1 -> ok ! s+1,7 p+1,7 s+1,7 p+1,7
         read p+1 -> Sigbus
         read s+1 -> Sigbus
         gup s+1 r -> Efault
         ftruncate f 2 -> ok
         read p+1 -> 0",
    );
}

#[test]
fn shared_anonymous_memory_is_a_file_without_a_name() {
    check(
        "mmap m 1024 rw shared -> ok
         write m+5 1 -> ok
         level m+5 -> 4K
         dontneed m 1024 -> ok ! m+0,1024
         read m+5 -> 1
         remove m+5 1 -> ok ! m+5,1
         read m+5 -> 0",
    );
}

#[test]
fn collapsing() {
    check(
        "mmap m 1024 rw -> ok
         nohugepage m 1024 -> ok
         write m+3 3 -> ok
         read m+4 -> 0
         collapse m 512 -> EINVAL
         hugepage m 1024 -> ok
         collapse m 512 -> ok ! m+0,512
         level m -> 2M
         read m+3 -> 3
         read m+4 -> 0
         collapse m 1024 -> EINVAL
         collapse m 512 -> ok
         cold m+5 1 -> ok ! m+0,512
         level m -> 4K
         mmap s 100 rw align 1 -> ok
         collapse s 100 -> EINVAL",
    );
}

#[test]
fn absurd_sizes() {
    check(
        "mmap m 34359738368 rw -> ENOMEM
         mmap m max rw -> ENOMEM
         mmap m 17179869184 rw -> ok
         dontneed m 17179869184 -> ok ! m+0,17179869184
         mprotect m 17179869184 r -> ok ! m+17179607040,262144
         nohugepage m 17179869184 -> ok
         cold m 17179869184 -> ok
         munmap m 17179869184 -> ok ! m+0,17179869184
         mmap m 1 rw align 0 -> EINVAL
         mmap m 1 rw align 3 -> EINVAL",
    );
}

/// A process with `bytes` of untouched memory that never gets huge pages, on a host of 16 MiB, which may have 64 tables.
fn with_small_pages(bytes: u64, body: impl FnOnce(&Cx<'_>, &Mm, sim_kernel::Hva)) {
    Sim::sequential().solo(|cx| {
        let mm = Mm::new(cx, Arc::new(PhysMem::new(cx, 16 << 20)));
        assert_eq!(mm.phys().tables_max(), 64);
        let args = MmapArgs { len: bytes, prot: Prot::RW, shared: false, file: None, offset: 0, align: 2 << 20 };
        let hva = mm.mmap(cx, &args).unwrap();
        mm.madvise(cx, hva, bytes, Advice::Nohugepage).unwrap();
        body(cx, &mm, hva);
        mm.exit_mmap(cx);
        assert_eq!(mm.phys().tables(), 0, "every table is given back");
    });
}

#[test]
fn tables_come_to_an_end_before_untouched_memory_does() {
    with_small_pages(1 << 40, |cx, mm, hva| {
        assert_eq!(mm.madvise(cx, hva, 1 << 40, Advice::PopulateRead), Err(Errno::ENOMEM));
        assert_eq!(mm.phys().tables(), 64);
        assert_eq!(mm.mincore(cx, hva, 1 << 40).unwrap().len(), 64 * 512);
        assert_eq!(mm.read_u32(cx, hva + (64 * (2 << 20) - 4)), Ok(0));
        assert_eq!(mm.read_u32(cx, hva + 64 * (2 << 20)), Err(Signal::Sigbus));
        // Stage 2 has the same tables to take from.
        assert_eq!(mm.phys().alloc_table(0).err(), Some(Errno::ENOMEM));
        mm.madvise(cx, hva, 2 << 20, Advice::Dontneed).unwrap();
        let table = mm.phys().alloc_table(0).unwrap();
        assert_eq!(mm.read_u32(cx, hva), Err(Signal::Sigbus));
        mm.phys().put(cx, table);
        assert_eq!(mm.read_u32(cx, hva), Ok(0));
        assert_eq!(mm.mlock(cx, hva, 1 << 40), Err(Errno::EAGAIN));
    });
}

#[test]
fn splitting_and_collapsing_keep_the_count_of_tables() {
    with_small_pages(4 << 20, |cx, mm, hva| {
        mm.madvise(cx, hva, 4 << 20, Advice::Hugepage).unwrap();
        mm.write_u32(cx, hva, 1).unwrap();
        assert_eq!(mm.phys().tables(), 0, "the table of a huge page is put by and not counted");
        mm.munmap(cx, hva + (1 << 20), 4096).unwrap();
        assert_eq!(mm.phys().tables(), 1);
        mm.write_u32(cx, hva + (2 << 20), 1).unwrap();
        mm.mprotect(cx, hva + (2 << 20), 4096, Prot::READ).unwrap();
        assert_eq!(mm.phys().tables(), 2);
        mm.mprotect(cx, hva + (2 << 20), 4096, Prot::RW).unwrap();
        mm.madvise(cx, hva + (2 << 20), 2 << 20, Advice::Collapse).unwrap();
        assert_eq!(mm.phys().tables(), 1);
    });
}

/// A file of one page, which the first faults find truncated and the later ones intact or poisoned.
#[derive(Debug)]
struct Fickle {
    phys: Arc<PhysMem>,
    i_mmap: Arc<IMmap>,
    truncated: AtomicU64,
    poisoned: bool,
}

impl FileOperations for Fickle {
    fn release(&self, _cx: &Cx<'_>) {}

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn stat(&self, _cx: &Cx<'_>) -> Stat {
        Stat { ino: 1, mode: 0, nlink: 1, size: PAGE_SIZE, blksize: PAGE_SIZE, blocks: 0 }
    }

    fn mmap(&self, _cx: &Cx<'_>, _request: &MmapRequest) -> Result<(), Errno> {
        Ok(())
    }

    fn fault(&self, cx: &Cx<'_>, pgoff: Pgoff) -> Result<Fault, FaultError> {
        let pfn = self.phys.alloc_zeroed().map_err(|_| FaultError::Oom)?;
        self.phys.lock(cx, pfn);
        if self.truncated.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.phys.set_mapping(pfn, 1, pgoff);
            self.phys.get(pfn);
        }
        if self.poisoned {
            self.phys.set_flags(pfn, FrameFlags::HWPOISON);
        }
        Ok(Fault { pfn })
    }

    fn i_mmap(&self) -> Option<&Arc<IMmap>> {
        Some(&self.i_mmap)
    }
}

fn with_fickle_file(truncated: u64, poisoned: bool, body: impl Fn(&Cx<'_>, &Mm, sim_kernel::Hva)) {
    Sim::sequential().solo(|cx| {
        let phys = Arc::new(PhysMem::new(cx, 1 << 20));
        let mm = Mm::new(cx, Arc::clone(&phys));
        let file = Fickle {
            phys: Arc::clone(&phys),
            i_mmap: Arc::new(IMmap::new(cx)),
            truncated: AtomicU64::new(truncated + 1),
            poisoned,
        };
        let file = File::new(cx, Arc::new(file));
        let args =
            MmapArgs { len: PAGE_SIZE, prot: Prot::RW, shared: true, file: Some(&file), offset: 0, align: PAGE_SIZE };
        let hva = mm.mmap(cx, &args).unwrap();
        body(cx, &mm, hva);
        assert!(phys.used_frames() - phys.reserved_frames() <= 1, "truncated pages are given back");
    });
}

#[test]
fn a_page_that_was_truncated_meanwhile_is_asked_for_again() {
    with_fickle_file(3, false, |cx, mm, hva| {
        let page = mm.get_user_page(cx, hva, GupFlags { write: true }).unwrap();
        assert!(mm.phys().mapping(page.pfn).is_some());
        assert_eq!(mm.phys().refcount(page.pfn), 3, "the cache's, the entry's and ours");
        assert_eq!(mm.phys().mapcount(page.pfn), 1);
    });
}

#[test]
fn a_poisoned_page_is_not_mapped() {
    with_fickle_file(0, true, |cx, mm, hva| {
        assert_eq!(mm.get_user_page(cx, hva, GupFlags::default()), Err(GupError::HwPoison));
    });
    with_fickle_file(0, true, |cx, mm, hva| {
        assert_eq!(mm.read_u32(cx, hva), Err(Signal::Sigbus));
    });
}

#[test]
fn a_signal_ends_a_pin_that_would_fault() {
    Sim::sequential().solo(|cx| {
        let mm = Mm::new(cx, Arc::new(PhysMem::new(cx, 1 << 20)));
        let args = MmapArgs { len: PAGE_SIZE, prot: Prot::RW, shared: false, file: None, offset: 0, align: PAGE_SIZE };
        let hva = mm.mmap(cx, &args).unwrap();
        cx.send_signal(cx.task());
        assert_eq!(mm.get_user_page(cx, hva, GupFlags::default()), Err(GupError::SignalPending));
        mm.write_u32(cx, hva, 1).unwrap();
        assert!(mm.get_user_page(cx, hva, GupFlags::default()).is_ok(), "the page is there, nothing sleeps");
    });
}
