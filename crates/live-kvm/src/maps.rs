//! Which addresses are whose: the arena is the trace's, everything else that is mapped is this program's own.
//!
//! Reads `/proc/self/maps`. Simplified: the kernel is asked again on each call that needs to know, which such calls can afford.

use std::fs;
use std::ops::Range;

use crate::{Failure, Result};

/// Where the mappings of a trace are placed. The kernel places others from the top of the address space downwards, 47 bits, and
/// does not come here; the program itself lies below.
pub const ARENA: Range<u64> = 0x6000_0000_0000..0x7000_0000_0000;

/// Between two mappings of the arena: no two ever become one area, and no huge page reaches into both.
const GAP: u64 = 2 << 20;

/// Fails if `[addr, addr + len)` reaches something that is mapped outside the arena. `what` says who wants to. A range that wraps reaches nothing: the
/// kernel refuses it before it looks at a mapping.
pub(crate) fn guard(what: &str, addr: u64, len: u64) -> Result<()> {
    let start = addr & !0xfff;
    let Some(end) =
        len.checked_next_multiple_of(0x1000).and_then(|_| addr.checked_add(len)?.checked_next_multiple_of(0x1000))
    else {
        return Ok(());
    };
    if start >= ARENA.start && end <= ARENA.end {
        return Ok(());
    }
    if areas(what)?.iter().any(|area| !ARENA.contains(&area.start) && area.start < end && start < area.end) {
        return Err(Failure::Refused(format!(
            "{what}: not done, because {start:#x}..{end:#x} reaches memory of the recorder itself"
        )));
    }
    Ok(())
}

/// Everything that is mapped, from the lowest address on.
fn areas(what: &str) -> Result<Vec<Range<u64>>> {
    let maps = fs::read_to_string("/proc/self/maps")
        .map_err(|error| Failure::Refused(format!("{what}: /proc/self/maps cannot be read: {error}")))?;
    let area = |line: &str| {
        let (from, to) = line.split_whitespace().next()?.split_once('-')?;
        Some(u64::from_str_radix(from, 16).ok()?..u64::from_str_radix(to, 16).ok()?)
    };
    Ok(maps.lines().filter_map(area).collect())
}

/// The highest place in the arena for `len` bytes, a multiple of `align` and [`GAP`] away from every other: as the kernel chooses, but for
/// the gap, so that a part of the arena that was unmapped is used again.
pub(crate) fn place(len: u64, align: u64) -> Result<Option<u64>> {
    let fits = |floor: u64, ceiling: u64| {
        let start = ceiling.checked_sub(len)? & !(align - 1);
        (start >= floor).then_some(start)
    };
    let mut ceiling = ARENA.end;
    for area in areas("mmap")?.iter().rev().filter(|area| ARENA.contains(&area.start)) {
        if let Some(start) = fits(area.end + GAP, ceiling) {
            return Ok(Some(start));
        }
        ceiling = area.start - GAP;
    }
    Ok(fits(ARENA.start, ceiling))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_the_recorder_is_guarded() {
        let own = Box::new(7u64);
        let address = &raw const *own as u64;
        assert!(
            matches!(guard("munmap", address, 1), Err(Failure::Refused(text)) if text.starts_with("munmap: not done"))
        );
        assert!(guard("munmap", 0, !0xfff).is_err());
        assert!(guard("munmap", 4096, u64::MAX - 8191).is_err(), "up to the last page");
        assert!(guard("munmap", 4096, u64::MAX - 4095).is_ok(), "it wraps");
        assert!(guard("munmap", 0, u64::MAX).is_ok(), "its length wraps when it is rounded to pages");
        assert!(guard("munmap", ARENA.end - 1, 4096).is_ok(), "nothing is mapped behind the arena");
        assert!(guard("munmap", 0, 4096).is_ok(), "nothing is mapped at address 0");
        assert!(guard("munmap", ARENA.start, ARENA.end - ARENA.start).is_ok());
    }
}
