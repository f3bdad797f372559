//! Which addresses are whose: the arena is the trace's, everything else that is mapped is this program's own.
//!
//! Reads `/proc/self/maps`. Simplified: the kernel is asked again on each call that leaves the arena, which such calls can afford.

use std::fs;
use std::ops::Range;

use crate::{Failure, Result};

/// Where the mappings of a trace are placed. The kernel places others from the top of the address space downwards, 47 bits, and
/// does not come here.
pub const ARENA: Range<u64> = 0x1000_0000_0000..0x2000_0000_0000;

/// Fails if `[addr, addr + len)` reaches something that is mapped outside the arena. `what` says who wants to.
pub(crate) fn guard(what: &str, addr: u64, len: u64) -> Result<()> {
    let end = addr.saturating_add(len).saturating_add(0xfff) & !0xfff;
    let start = addr & !0xfff;
    if start >= ARENA.start && end <= ARENA.end {
        return Ok(());
    }
    let maps = fs::read_to_string("/proc/self/maps")
        .map_err(|error| Failure::Refused(format!("{what}: /proc/self/maps cannot be read: {error}")))?;
    for line in maps.lines() {
        let Some((from, to)) = line.split_whitespace().next().and_then(|range| range.split_once('-')) else { continue };
        let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16)) else { continue };
        if !ARENA.contains(&from) && from < end && start < to {
            return Err(Failure::Refused(format!(
                "{what}: not done, because {start:#x}..{end:#x} reaches memory of the recorder itself"
            )));
        }
    }
    Ok(())
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
        assert!(guard("munmap", 0, u64::MAX).is_err());
        assert!(guard("munmap", ARENA.end - 1, 4096).is_ok(), "nothing is mapped behind the arena");
        assert!(guard("munmap", 0, 4096).is_ok(), "nothing is mapped at address 0");
        assert!(guard("munmap", ARENA.start, ARENA.end - ARENA.start).is_ok());
    }
}
