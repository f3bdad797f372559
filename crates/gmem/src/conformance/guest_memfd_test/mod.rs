//! `guest_memfd_test`: the file, its mapping, its holes, and a guest that runs from it.
//!
//! Repeated for every VM type and, where a row has a file, for the creation flags 0, `MMAP` and `MMAP|INIT_SHARED` as offered.
//! Files have four pages unless a row says otherwise. The host of rows about NUMA has two nodes.

mod fallocate;
mod file;
mod guest;
mod mapping;
mod numa;

use super::{Check, Outcome};

const SUITE: &str = "guest_memfd_test";

const fn test(id: &'static str, title: &'static str, run: fn() -> Outcome) -> Check {
    Check::test(id, SUITE, title, run)
}

/// Pages of a file under test.
const PAGES: u64 = 4;

pub(super) const CHECKS: &[Check] = &[
    test("GM-001", "KVM_CAP_GUEST_MEMFD is there", file::capability),
    test("GM-002", "each creation flag that the VM offers, alone, creates a file", file::offered_flags),
    test("GM-003", "each other bit of the creation flags is EINVAL", file::other_flags),
    test("GM-004", "a file of one page without flags is created", file::create),
    test("GM-005", "fstat gives it one page", file::stat_one),
    test("GM-006", "a second file, of two pages, has two pages", file::create_second),
    test("GM-007", "the first file still has one page", file::first_unchanged),
    test("GM-008", "both files have inode numbers of their own", file::inode_numbers),
    test("GM-009", "sizes from 1 to 4095 are EINVAL", file::invalid_sizes),
    test("GM-010", "read fails", file::read),
    test("GM-011", "write fails", file::write),
    test("GM-012", "pread at 0 fails", file::pread),
    test("GM-013", "pwrite at 0 fails", file::pwrite),
    test("GM-014", "a shared read-write mapping of the whole file succeeds", mapping::map),
    test("GM-015", "every byte filled with 0xaa through the mapping reads back", mapping::fill),
    test("GM-016", "a hole is punched at page 0 while the file is mapped", mapping::punch_mapped),
    test("GM-017", "page 0 reads as zeros after the hole", mapping::hole_is_zero),
    test("GM-018", "the other pages keep 0xaa", mapping::others_keep),
    test("GM-019", "page 0 filled again: all pages read 0xaa", mapping::refill),
    test("GM-020", "a mapping of four times the file succeeds", mapping::map_overflow),
    test("GM-021", "filling that mapping is SIGBUS at the first byte past the end", mapping::fill_overflow),
    test("GM-022", "reading the first byte past the end is SIGBUS", mapping::read_overflow),
    test("GM-023", "bytes before the end hold what was written before the SIGBUS", mapping::keep_before_overflow),
    test("GM-024", "a file with MMAP only can be mapped", mapping::map_private),
    test("GM-025", "a write anywhere in that mapping is SIGBUS", mapping::write_private),
    test("GM-026", "a read of its first byte is SIGBUS", mapping::read_private),
    test("GM-027", "pages touched under mbind to two nodes lie on those nodes", numa::placed),
    test("GM-028", "after a hole and swapped policies they lie on the other nodes", numa::swapped),
    test("GM-029", "a 2 MiB mapping is read whole, then MADV_HUGEPAGE answers 0", mapping::hugepage),
    test("GM-030", "MADV_COLLAPSE is EINVAL", mapping::collapse),
    test("GM-031", "MADV_DONTNEED answers 0 and the data is still there", mapping::dontneed),
    test("GM-032", "a private mapping of a mappable file fails", mapping::cow),
    test("GM-033", "INTERLEAVE on pages 0 and 1 is what get_mempolicy reports", numa::interleave),
    test("GM-034", "BIND on pages 2 and 3 is what get_mempolicy reports", numa::bind),
    test("GM-035", "DEFAULT on all pages clears both", numa::default),
    test("GM-036", "policy number 999 is EINVAL", numa::invalid),
    test("GM-037", "without MMAP, a mapping of one page fails", mapping::not_supported_page),
    test("GM-038", "without MMAP, a mapping of the whole file fails", mapping::not_supported_whole),
    test("GM-039", "fstat gives the exact size", file::size),
    test("GM-040", "fstat gives the page size as block size", file::block_size),
    test("GM-041", "fallocate with KEEP_SIZE of the whole file answers 0", fallocate::whole),
    test("GM-042", "a hole at an offset one below a page fails", fallocate::unaligned_offset),
    test("GM-043", "fallocate with KEEP_SIZE of the page at the end fails", fallocate::allocate_at_end),
    test("GM-044", "fallocate with KEEP_SIZE beyond the end fails", fallocate::allocate_beyond_end),
    test("GM-045", "a hole at the end answers 0", fallocate::punch_at_end),
    test("GM-046", "a hole beyond the end answers 0", fallocate::punch_beyond_end),
    test("GM-047", "a hole one byte short of a page fails", fallocate::unaligned_length),
    test("GM-048", "a hole at page 1 answers 0", fallocate::punch_page),
    test("GM-049", "fallocate with KEEP_SIZE of page 1 again answers 0", fallocate::allocate_again),
    test("GM-050", "holes (0,1) (0,P-1) (0,P+1) are EINVAL", fallocate::invalid_from_start),
    test("GM-051", "holes (1,1) (1,P-1) (1,P) (1,P+1) are EINVAL", fallocate::invalid_from_one),
    test("GM-052", "holes (P,1) (P,P-1) (P,P+1) are EINVAL", fallocate::invalid_from_page),
    test("GM-053", "a slot whose file offset is the largest signed page is EINVAL", file::invalid_binding),
    test("GM-054", "a default VM offers MMAP and INIT_SHARED", guest::flags),
    test("GM-055", "a file binds at 4 GiB with a NULL userspace_addr", guest::bind),
    test("GM-056", "0xaa written through the host's mapping is what the guest reads", guest::host_to_guest),
    test("GM-057", "0xff written by the guest is what the host reads in a new mapping", guest::guest_to_host),
];
