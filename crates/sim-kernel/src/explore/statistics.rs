//! What an exploration has done so far, in numbers that can be added up.

use super::coverage::Coverage;
use super::reversals::Reversals;
use std::collections::BTreeMap;

/// Totals of an exploration or of a part of one. Parts are merged in the order of their numbers with [`Statistics::merge`].
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Statistics {
    /// Executions that were run to an end of their own.
    pub executions: u64,
    /// Executions that were cut because an equivalent one had been run already; not among `executions`.
    pub pruned: u64,
    /// Scheduling points passed, in all executions.
    pub steps: u64,
    /// Decisions between two or more tasks, in all executions.
    pub decisions: u64,
    /// Scheduling points of the longest execution.
    pub longest: u64,
    /// Executions that did not complete: deadlocks, failed assertions, step limits.
    pub failed: u64,
    /// Executions that reached the step limit; if there is one, an exhausted search has not seen everything.
    pub truncated: u64,
    /// How often each outcome came out of executions that were not pruned.
    pub outcomes: BTreeMap<String, u64>,
    /// Pairs of places that communicated: a store and a load in another task that read from it. Empty unless asked for.
    pub coverage: Coverage,
    /// The races because of which partial-order reduction went on.
    pub reversals: Reversals,
}

impl Statistics {
    /// Adds the totals of another part.
    pub fn merge(&mut self, other: &Statistics) {
        self.executions += other.executions;
        self.pruned += other.pruned;
        self.steps += other.steps;
        self.decisions += other.decisions;
        self.longest = self.longest.max(other.longest);
        self.failed += other.failed;
        self.truncated += other.truncated;
        for (outcome, n) in &other.outcomes {
            *self.outcomes.entry(outcome.clone()).or_default() += n;
        }
        self.coverage.merge(&other.coverage);
        self.reversals.merge(&other.reversals);
    }
}
