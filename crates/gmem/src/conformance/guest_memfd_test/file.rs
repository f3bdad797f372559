//! Creation, sizes, and the system calls of a file that a guest_memfd does not have.

use super::super::Outcome;
use super::super::cases::{With, each_file, each_flags, each_type, gmem_region};
use super::super::expect::{ensure, equal, errno, fails, ok};
use super::PAGES;
use crate::kvm::uapi::*;
use sim_kernel::{Errno, PAGE_SIZE};

pub(super) fn capability() -> Outcome {
    each_type(|case| {
        let value = case.vm.check_extension_int(case.cx, Cap::GuestMemfd);
        ensure(value > 0, format_args!("KVM_CAP_GUEST_MEMFD: expected it to be there, found {value}"))
    })
}

pub(super) fn offered_flags() -> Outcome {
    each_type(|case| {
        let offered = case.offered_flags();
        ensure(offered != 0, "KVM_CAP_GUEST_MEMFD_FLAGS: expected some flag, found none")?;
        for flag in (0..64).map(|bit| 1 << bit).filter(|flag| offered & flag != 0) {
            let memory = ok(format_args!("flags {flag:#x}"), case.try_create(PAGE_SIZE, flag))?;
            ensure(memory.as_raw_fd() >= 0, format_args!("expected a descriptor, found {}", memory.as_raw_fd()))?;
        }
        Ok(())
    })
}

pub(super) fn other_flags() -> Outcome {
    each_type(|case| {
        let offered = case.offered_flags();
        for flag in (0..64).map(|bit| 1 << bit).filter(|flag| offered & flag == 0) {
            errno(format_args!("flags {flag:#x}"), case.try_create(PAGE_SIZE, flag), Errno::EINVAL)?;
        }
        Ok(())
    })
}

pub(super) fn create() -> Outcome {
    each_type(|case| case.create(PAGE_SIZE, 0).map(drop))
}

pub(super) fn stat_one() -> Outcome {
    each_type(|case| {
        let memory = case.create(PAGE_SIZE, 0)?;
        let stat = ok("fstat", case.process.fstat(case.cx, memory.as_raw_fd()))?;
        equal("st_size", stat.size, PAGE_SIZE)
    })
}

/// The sizes and inode numbers of a file of one page and one of two that was made after it.
fn both(pick: impl Fn([u64; 2], [u64; 2]) -> Result<(), super::super::Failure>) -> Outcome {
    each_type(|case| {
        let files = [case.create(PAGE_SIZE, 0)?, case.create(2 * PAGE_SIZE, 0)?];
        let stat = |i: usize| ok("fstat", case.process.fstat(case.cx, files[i].as_raw_fd()));
        let (second, first) = (stat(1)?, stat(0)?);
        pick([first.size, second.size], [first.ino, second.ino])
    })
}

pub(super) fn create_second() -> Outcome {
    both(|sizes, _| equal("st_size of the second file", sizes[1], 2 * PAGE_SIZE))
}

pub(super) fn first_unchanged() -> Outcome {
    both(|sizes, _| equal("st_size of the first file", sizes[0], PAGE_SIZE))
}

pub(super) fn inode_numbers() -> Outcome {
    both(|_, [first, second]| {
        ensure(first != second, format_args!("st_ino: expected different numbers, found {first} twice"))
    })
}

pub(super) fn invalid_sizes() -> Outcome {
    each_flags(With::Any, |case, flags| {
        for size in 1..PAGE_SIZE {
            errno(format_args!("size {size}"), case.try_create(size, flags), Errno::EINVAL)?;
        }
        Ok(())
    })
}

pub(super) fn read() -> Outcome {
    each_file(With::Any, PAGES, |case, memory| fails("read", case.process.read(case.cx, memory.as_raw_fd(), 64)))
}

pub(super) fn write() -> Outcome {
    each_file(With::Any, PAGES, |case, memory| {
        fails("write", case.process.write(case.cx, memory.as_raw_fd(), &[0; 64]))
    })
}

pub(super) fn pread() -> Outcome {
    each_file(With::Any, PAGES, |case, memory| fails("pread", case.process.pread(case.cx, memory.as_raw_fd(), 0, 64)))
}

pub(super) fn pwrite() -> Outcome {
    each_file(With::Any, PAGES, |case, memory| {
        fails("pwrite", case.process.pwrite(case.cx, memory.as_raw_fd(), 0, &[0; 64]))
    })
}

pub(super) fn size() -> Outcome {
    each_file(With::Any, PAGES, |case, memory| {
        let stat = ok("fstat", case.process.fstat(case.cx, memory.as_raw_fd()))?;
        equal("st_size", stat.size, PAGES * PAGE_SIZE)
    })
}

pub(super) fn block_size() -> Outcome {
    each_file(With::Any, PAGES, |case, memory| {
        let stat = ok("fstat", case.process.fstat(case.cx, memory.as_raw_fd()))?;
        equal("st_blksize", stat.blksize, PAGE_SIZE)
    })
}

pub(super) fn invalid_binding() -> Outcome {
    each_file(With::Any, PAGES, |case, memory| {
        let offset = i64::MAX as u64 & !(PAGE_SIZE - 1);
        let region = gmem_region(0, 0, PAGES * PAGE_SIZE, 0, memory, offset);
        case.refuse_region2(format_args!("file offset {offset:#x}"), region, Errno::EINVAL)
    })
}
