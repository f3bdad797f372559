//! The host's mapping of a file: contents, holes, the end of the file, private memory, huge pages.

use super::super::Outcome;
use super::super::cases::{Case, RW, With, each_file};
use super::super::expect::{Failure, equal, errno, fails, ok, word};
use super::super::guest::filled;
use super::PAGES;
use crate::kvm::process::Sharing;
use crate::{GuestMemfd, Mapping};
use sim_kernel::mm::{Advice, Signal};
use sim_kernel::{Errno, PAGE_SIZE, PMD_SIZE};

const SIZE: u64 = PAGES * PAGE_SIZE;
const AA: u64 = filled(0xaa);

/// Writes every byte of a range through a mapping, eight at a time.
fn fill_range(case: &Case<'_, '_>, mapping: &Mapping, range: std::ops::Range<u64>, value: u64) -> Result<(), Failure> {
    for at in range.step_by(8) {
        ok(format_args!("write at {at:#x}"), mapping.write_u64(case.cx, at, value))?;
    }
    Ok(())
}

/// Every byte of a range reads so.
fn expect_range(
    case: &Case<'_, '_>,
    mapping: &Mapping,
    range: std::ops::Range<u64>,
    value: u64,
) -> Result<(), Failure> {
    for at in range.step_by(8) {
        let found = ok(format_args!("read at {at:#x}"), mapping.read_u64(case.cx, at))?;
        word(format_args!("offset {at:#x}"), found, value)?;
    }
    Ok(())
}

/// A row about a file that the host may touch, mapped whole and filled.
fn mapped(row: impl Fn(&Case<'_, '_>, &GuestMemfd, &Mapping) -> Result<(), Failure>) -> Outcome {
    each_file(With::SharedMmap, PAGES, |case, memory| {
        let mapping = case.map(memory, SIZE)?;
        fill_range(case, &mapping, 0..SIZE, AA)?;
        row(case, memory, &mapping)
    })
}

/// As [`mapped`], with a hole at page 0.
fn punched(row: impl Fn(&Case<'_, '_>, &Mapping) -> Result<(), Failure>) -> Outcome {
    mapped(|case, memory, mapping| {
        ok("PUNCH_HOLE", memory.punch_hole(case.cx, 0, PAGE_SIZE))?;
        row(case, mapping)
    })
}

pub(super) fn map() -> Outcome {
    each_file(With::SharedMmap, PAGES, |case, memory| case.map(memory, SIZE).map(drop))
}

pub(super) fn fill() -> Outcome {
    mapped(|case, _, mapping| expect_range(case, mapping, 0..SIZE, AA))
}

pub(super) fn punch_mapped() -> Outcome {
    mapped(|case, memory, _| ok("PUNCH_HOLE", memory.punch_hole(case.cx, 0, PAGE_SIZE)))
}

pub(super) fn hole_is_zero() -> Outcome {
    punched(|case, mapping| expect_range(case, mapping, 0..PAGE_SIZE, 0))
}

pub(super) fn others_keep() -> Outcome {
    punched(|case, mapping| expect_range(case, mapping, PAGE_SIZE..SIZE, AA))
}

pub(super) fn refill() -> Outcome {
    punched(|case, mapping| {
        fill_range(case, mapping, 0..PAGE_SIZE, AA)?;
        expect_range(case, mapping, 0..SIZE, AA)
    })
}

/// A row about a mapping of four times the file.
fn overflowing(row: impl Fn(&Case<'_, '_>, &Mapping) -> Result<(), Failure>) -> Outcome {
    each_file(With::SharedMmap, PAGES, |case, memory| row(case, &case.map(memory, 4 * SIZE)?))
}

/// Fills the mapping until a signal comes, and says where.
fn fill_to_signal(case: &Case<'_, '_>, mapping: &Mapping) -> Option<(u64, Signal)> {
    (0..mapping.len()).step_by(8).find_map(|at| mapping.write_u64(case.cx, at, AA).err().map(|signal| (at, signal)))
}

pub(super) fn map_overflow() -> Outcome {
    overflowing(|_, _| Ok(()))
}

pub(super) fn fill_overflow() -> Outcome {
    overflowing(|case, mapping| equal("filling ends", fill_to_signal(case, mapping), Some((SIZE, Signal::Sigbus))))
}

pub(super) fn read_overflow() -> Outcome {
    overflowing(|case, mapping| equal("read at the end", mapping.read_u32(case.cx, SIZE), Err(Signal::Sigbus)))
}

pub(super) fn keep_before_overflow() -> Outcome {
    overflowing(|case, mapping| {
        equal("filling ends", fill_to_signal(case, mapping), Some((SIZE, Signal::Sigbus)))?;
        expect_range(case, mapping, 0..SIZE, AA)
    })
}

/// A row about a file that the host may map but not touch.
fn private(row: impl Fn(&Case<'_, '_>, &Mapping) -> Result<(), Failure>) -> Outcome {
    each_file(With::PrivateMmap, PAGES, |case, memory| row(case, &case.map(memory, SIZE)?))
}

pub(super) fn map_private() -> Outcome {
    private(|_, _| Ok(()))
}

pub(super) fn write_private() -> Outcome {
    private(|case, mapping| {
        for at in (0..SIZE).step_by(512) {
            equal(format_args!("write at {at:#x}"), mapping.write_u32(case.cx, at, 1), Err(Signal::Sigbus))?;
        }
        Ok(())
    })
}

pub(super) fn read_private() -> Outcome {
    private(|case, mapping| equal("read at 0", mapping.read_u32(case.cx, 0), Err(Signal::Sigbus)))
}

/// A row about a file of one huge page, mapped at a multiple of one, of which every page has been read and one word written.
fn huge(row: impl Fn(&Case<'_, '_>, &Mapping) -> Result<(), Failure>) -> Outcome {
    each_file(With::SharedMmap, PMD_SIZE / PAGE_SIZE, |case, memory| {
        let mapping = ok(
            "mmap",
            Mapping::file_aligned(
                case.cx,
                case.process,
                memory.as_raw_fd(),
                PMD_SIZE,
                RW,
                Sharing::Shared,
                0,
                PMD_SIZE,
            ),
        )?;
        ok("write", mapping.write_u64(case.cx, PAGE_SIZE, AA))?;
        read_all(case, &mapping)?;
        ok("MADV_HUGEPAGE", mapping.madvise(case.cx, 0, PMD_SIZE, Advice::Hugepage))?;
        row(case, &mapping)
    })
}

fn read_all(case: &Case<'_, '_>, mapping: &Mapping) -> Result<(), Failure> {
    for at in (0..PMD_SIZE).step_by(PAGE_SIZE as usize) {
        let expected = if at == PAGE_SIZE { AA } else { 0 };
        word(format_args!("offset {at:#x}"), ok("read", mapping.read_u64(case.cx, at))?, expected)?;
    }
    Ok(())
}

pub(super) fn hugepage() -> Outcome {
    huge(|_, _| Ok(()))
}

pub(super) fn collapse() -> Outcome {
    huge(|case, mapping| errno("MADV_COLLAPSE", mapping.madvise(case.cx, 0, PMD_SIZE, Advice::Collapse), Errno::EINVAL))
}

pub(super) fn dontneed() -> Outcome {
    huge(|case, mapping| {
        ok("MADV_DONTNEED", mapping.madvise(case.cx, 0, PMD_SIZE, Advice::Dontneed))?;
        read_all(case, mapping)
    })
}

pub(super) fn cow() -> Outcome {
    each_file(With::Mmap, PAGES, |case, memory| {
        fails("mmap with MAP_PRIVATE", memory.mmap(case.cx, SIZE, RW, Sharing::Private, 0))
    })
}

fn not_supported(len: u64) -> Outcome {
    each_file(With::NoMmap, PAGES, |case, memory| fails("mmap", memory.mmap(case.cx, len, RW, Sharing::Shared, 0)))
}

pub(super) fn not_supported_page() -> Outcome {
    not_supported(PAGE_SIZE)
}

pub(super) fn not_supported_whole() -> Outcome {
    not_supported(SIZE)
}
