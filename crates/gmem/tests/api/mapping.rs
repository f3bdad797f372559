//! Mappings of the process.

use super::*;
use gmem::{Advice, Errno, Signal};
use sim_kernel::PMD_SIZE;

#[test]
fn a_mapping_reads_what_was_written() {
    on_machine(|cx, process| {
        let memory = anonymous(cx, process, 0x2000);
        assert_eq!((memory.len(), memory.is_empty()), (0x2000, false));
        assert_eq!(memory.read_u32(cx, 0x1000), Ok(0));
        memory.write_u32(cx, 0x1000, 3).unwrap();
        assert_eq!(memory.read_u32(cx, 0x1000), Ok(3));
        assert_eq!(memory.read_u32(cx, 0x2000), Err(Signal::Sigsegv), "nothing is mapped there");
        memory.madvise(cx, 0x1000, 0x1000, Advice::Dontneed).unwrap();
        assert_eq!(memory.read_u32(cx, 0x1000), Ok(0));
        assert_eq!(memory.madvise(cx, 1, 0x1000, Advice::Dontneed), Err(Errno::EINVAL));
        assert_eq!(memory.madvise(cx, 0, 0x10_0000, Advice::Dontneed), Err(Errno::ENOMEM));
    });
}

#[test]
fn rights_are_checked() {
    on_machine(|cx, process| {
        let memory = anonymous(cx, process, 0x2000);
        memory.mprotect(cx, 0, 0x1000, Prot::empty()).unwrap();
        assert_eq!(memory.read_u32(cx, 0), Err(Signal::Sigsegv));
        assert_eq!(memory.write_u32(cx, 0x1000, 1), Ok(()));
        assert_eq!(memory.mprotect(cx, 1, 0x1000, Prot::READ), Err(Errno::EINVAL));
    });
}

#[test]
fn whole_huge_pages_are_aligned() {
    on_machine(|cx, process| {
        assert!(anonymous(cx, process, 2 * PMD_SIZE).addr().0.is_multiple_of(PMD_SIZE));
        let none = Mapping::anonymous(cx, process, 0, Prot::READ, Sharing::Private);
        assert_eq!(none.unwrap_err(), Errno::EINVAL);
    });
}

#[test]
fn files_map_too_and_unmapping_takes_the_memory_away() {
    on_machine(|cx, process| {
        let file = process.memfd_create(cx, 0x2000, 0).unwrap();
        let rw = Prot::READ | Prot::WRITE;
        let first = Mapping::file(cx, process, file, 0x2000, rw, Sharing::Shared, 0).unwrap();
        let second = Mapping::file(cx, process, file, 0x1000, Prot::READ, Sharing::Shared, 0x1000).unwrap();
        first.write_u32(cx, 0x1000, 8).unwrap();
        assert_eq!(second.read_u32(cx, 0), Ok(8));
        let closed = Mapping::file(cx, process, 99, 0x1000, rw, Sharing::Shared, 0);
        assert_eq!(closed.unwrap_err(), Errno::EBADF);
        let addr = first.addr();
        first.unmap(cx).unwrap();
        assert_eq!(process.read_u32(cx, addr), Err(Signal::Sigsegv));
    });
}
