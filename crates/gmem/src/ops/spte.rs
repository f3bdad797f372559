//! What changed in stage 2: single changes as KVM's `kvm_tdp_mmu_spte_changed` tracepoint reports them, and the runs into
//! which a recording folds them.
//!
//! Simplified: an entry is its state and its hardware write bit; addresses and software bits are not recorded.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::json::recorded_style;

/// The state of one stage-2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpteState {
    /// Not present.
    None,
    /// Present, maps memory.
    Leaf,
    /// Present, points to a lower table.
    Table,
    /// `FROZEN_SPTE`: being changed by one CPU while others keep off.
    Frozen,
    /// Not present, and known to be MMIO.
    Mmio,
}

/// One change of one entry, in the order in which KVM makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpteChange {
    /// The first guest frame that the entry covers.
    pub gfn: u64,
    /// 1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB, and so on.
    pub level: u8,
    /// The state before.
    pub from: SpteState,
    /// The state after.
    pub to: SpteState,
    /// The hardware write bit of the new leaf.
    pub writable: bool,
}

/// Consecutive entries of one level that changed alike, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RecordedRun", into = "RecordedRun")]
pub struct SpteRun {
    /// The first guest frame of the first entry.
    pub gfn: u64,
    /// How many entries changed.
    pub entries: u64,
    /// Their level.
    pub level: u8,
    /// Their state before.
    pub from: SpteState,
    /// Their state after.
    pub to: SpteState,
    /// The hardware write bit of the new leaves.
    pub writable: bool,
}

/// `[first gfn, entries, level, from, to, writable]`
#[derive(Serialize, Deserialize)]
#[serde(expecting = "six fields")]
struct RecordedRun(u64, u64, u8, SpteState, SpteState, u8);

impl From<RecordedRun> for SpteRun {
    fn from(RecordedRun(gfn, entries, level, from, to, writable): RecordedRun) -> Self {
        SpteRun { gfn, entries, level, from, to, writable: writable != 0 }
    }
}

impl From<SpteRun> for RecordedRun {
    fn from(run: SpteRun) -> Self {
        RecordedRun(run.gfn, run.entries, run.level, run.from, run.to, run.writable.into())
    }
}

impl fmt::Display for SpteRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&recorded_style(self))
    }
}

impl SpteRun {
    /// How many 4 KiB frames one entry of `level` covers: 1, 512, 262144, ...
    ///
    /// A level that no table has covers as much as the largest that fits, so that bad input cannot overflow.
    pub fn span(level: u8) -> u64 {
        1 << (9 * u32::from(level.saturating_sub(1).min(6)))
    }

    /// Whether `change` continues this run: the next entry of the level, changed in the same way.
    pub fn continues_with(&self, change: &SpteChange) -> bool {
        let next = self.entries.checked_mul(Self::span(self.level)).and_then(|frames| self.gfn.checked_add(frames));
        self.level == change.level
            && self.from == change.from
            && self.to == change.to
            && self.writable == change.writable
            && next == Some(change.gfn)
    }
}

/// Folds changes into runs as the recordings do: neighbours in time that are neighbours in the table and changed alike.
/// The order is kept.
///
/// ```
/// use gmem::ops::{SpteChange, SpteState, fold};
/// let zap = |gfn| SpteChange { gfn, level: 1, from: SpteState::Leaf, to: SpteState::None, writable: false };
/// let runs = fold([zap(512), zap(513), zap(515)]);
/// assert_eq!(runs.iter().map(|run| (run.gfn, run.entries)).collect::<Vec<_>>(), [(512, 2), (515, 1)]);
/// ```
pub fn fold(changes: impl IntoIterator<Item = SpteChange>) -> Vec<SpteRun> {
    let mut runs: Vec<SpteRun> = Vec::new();
    for change in changes {
        match runs.last_mut() {
            Some(run) if run.continues_with(&change) => run.entries += 1,
            _ => {
                let SpteChange { gfn, level, from, to, writable } = change;
                runs.push(SpteRun { gfn, entries: 1, level, from, to, writable });
            }
        }
    }
    runs
}
