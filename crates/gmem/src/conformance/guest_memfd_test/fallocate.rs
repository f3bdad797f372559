//! Allocation and holes: which ranges are accepted.

use super::super::Outcome;
use super::super::cases::{Case, With, each_file};
use super::super::expect::{Failure, errno, fails, ok};
use super::PAGES;
use crate::GuestMemfd;
use sim_kernel::{Errno, PAGE_SIZE};

const SIZE: u64 = PAGES * PAGE_SIZE;

/// A row about a file whose pages are all allocated, as they are when the selftest comes to it.
fn allocated(row: impl Fn(&Case<'_, '_>, &GuestMemfd) -> Result<(), Failure>) -> Outcome {
    each_file(With::Any, PAGES, |case, memory| {
        ok("fallocate of the whole file", memory.allocate(case.cx, 0, SIZE))?;
        row(case, memory)
    })
}

pub(super) fn whole() -> Outcome {
    each_file(With::Any, PAGES, |case, memory| ok("KEEP_SIZE", memory.allocate(case.cx, 0, SIZE)))
}

pub(super) fn unaligned_offset() -> Outcome {
    allocated(|case, memory| fails("PUNCH_HOLE", memory.punch_hole(case.cx, PAGE_SIZE - 1, PAGE_SIZE)))
}

pub(super) fn allocate_at_end() -> Outcome {
    allocated(|case, memory| fails("KEEP_SIZE", memory.allocate(case.cx, SIZE, PAGE_SIZE)))
}

pub(super) fn allocate_beyond_end() -> Outcome {
    allocated(|case, memory| fails("KEEP_SIZE", memory.allocate(case.cx, SIZE + PAGE_SIZE, PAGE_SIZE)))
}

pub(super) fn punch_at_end() -> Outcome {
    allocated(|case, memory| ok("PUNCH_HOLE", memory.punch_hole(case.cx, SIZE, PAGE_SIZE)))
}

pub(super) fn punch_beyond_end() -> Outcome {
    allocated(|case, memory| ok("PUNCH_HOLE", memory.punch_hole(case.cx, SIZE + PAGE_SIZE, PAGE_SIZE)))
}

pub(super) fn unaligned_length() -> Outcome {
    allocated(|case, memory| fails("PUNCH_HOLE", memory.punch_hole(case.cx, PAGE_SIZE, PAGE_SIZE - 1)))
}

pub(super) fn punch_page() -> Outcome {
    allocated(|case, memory| ok("PUNCH_HOLE", memory.punch_hole(case.cx, PAGE_SIZE, PAGE_SIZE)))
}

pub(super) fn allocate_again() -> Outcome {
    allocated(|case, memory| {
        ok("PUNCH_HOLE", memory.punch_hole(case.cx, PAGE_SIZE, PAGE_SIZE))?;
        ok("KEEP_SIZE after the hole", memory.allocate(case.cx, PAGE_SIZE, PAGE_SIZE))
    })
}

/// Every hole from this offset with one of these lengths is malformed.
fn invalid(offset: u64, lengths: &[u64]) -> Outcome {
    each_file(With::Any, PAGES, |case, memory| {
        for &len in lengths {
            errno(format_args!("hole ({offset},{len})"), memory.punch_hole(case.cx, offset, len), Errno::EINVAL)?;
        }
        Ok(())
    })
}

pub(super) fn invalid_from_start() -> Outcome {
    invalid(0, &[1, PAGE_SIZE - 1, PAGE_SIZE + 1])
}

pub(super) fn invalid_from_one() -> Outcome {
    invalid(1, &[1, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1])
}

pub(super) fn invalid_from_page() -> Outcome {
    invalid(PAGE_SIZE, &[1, PAGE_SIZE - 1, PAGE_SIZE + 1])
}
