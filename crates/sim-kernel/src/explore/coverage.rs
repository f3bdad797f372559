//! Coverage of communication: which stores were read by which loads of other tasks.

use crate::sched::{Access, Site, TaskId, Trail};
use rustc_hash::FxHashSet;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::panic::Location;

/// Pairs of a store and a load, in different tasks, such that the load saw what the store wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Coverage {
    pairs: BTreeSet<(Site, Site)>,
}

impl Coverage {
    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// The pairs, store first, by file and line.
    pub fn pairs(&self) -> impl Iterator<Item = &(Site, Site)> {
        self.pairs.iter()
    }

    /// Adds the pairs of another part.
    pub fn merge(&mut self, other: &Coverage) {
        self.pairs.extend(other.pairs.iter().cloned());
    }
}

type Place = &'static Location<'static>;

/// A store that may still be read.
#[derive(Clone, Copy, Debug)]
struct Written {
    task: TaskId,
    site: Place,
    /// When, as the number of the step.
    step: usize,
}

/// Finds the pairs in the trails of executions.
#[derive(Debug, Default)]
pub(super) struct Watcher {
    /// Pairs that are known, by the addresses of their places: most are, and comparing places is slow.
    known: FxHashSet<(usize, usize)>,
    /// The last store to each place, by object and index; those over several indexes apart, in order.
    single: BTreeMap<(u32, u64), Written>,
    ranges: Vec<(u32, u64, u64, Written)>,
}

impl Watcher {
    /// Adds the pairs of an execution.
    pub(super) fn watch(&mut self, trail: &Trail, coverage: &mut Coverage) {
        self.single.clear();
        self.ranges.clear();
        for (number, step) in trail.steps().iter().enumerate() {
            let op = &step.op;
            let (reads, writes) = match op.access {
                Access::Load | Access::LoadUntil => (true, false),
                Access::Store => (false, true),
                Access::Rmw => (true, true),
                Access::Add => (false, true),
                _ => continue,
            };
            let (object, first, end) = (op.object.0, op.index, op.index.saturating_add(u64::from(op.span)));
            if reads {
                let known = &mut self.known;
                let mut read = |from: &Written| {
                    let address = |place: Place| std::ptr::from_ref(place) as usize;
                    if from.task != step.task && known.insert((address(from.site), address(op.site))) {
                        coverage.pairs.insert((from.site.into(), op.site.into()));
                    }
                };
                let range =
                    self.ranges.iter().rev().find(|(o, from, to, _)| *o == object && *from < end && first < *to);
                let since = range.map_or(0, |(.., written)| written.step);
                if let Some((.., written)) = range {
                    read(written);
                }
                let singles = self.single.range((object, first)..(object, end));
                singles.filter(|(_, written)| written.step >= since).for_each(|(_, written)| read(written));
            }
            if writes {
                let written = Written { task: step.task, site: op.site, step: number };
                if op.span == 1 {
                    self.single.insert((object, first), written);
                } else {
                    self.ranges.push((object, first, end, written));
                }
            }
        }
    }
}
