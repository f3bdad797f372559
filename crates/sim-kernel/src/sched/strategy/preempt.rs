//! Iterated bounded preemption (Musuvathi and Qadeer, PLDI 2007): every schedule with at most so many preemptions, fewest first.
//!
//! A preemption takes the processor from a task that could go on; a switch away from a task that is blocked or has ended is free. Most bugs
//! need two preemptions or fewer. Each schedule is executed once: where a decision would cost one preemption more than the current
//! round allows, it is kept for the next round.

use super::dfs::{Branch, follow, vary};
use super::{Divergence, Ready, Strategy};
use crate::sched::op::TaskId;

/// Enumerates schedules by their number of preemptions.
#[derive(Clone, Debug, Default)]
pub struct Preempt {
    bound: u32,
    round: u32,
    /// The decisions of the next execution and the alternatives that cost nothing.
    path: Vec<Branch>,
    /// Decisions of the path that are not to be varied: they led here from an earlier round.
    fixed: usize,
    at: usize,
    /// Prefixes to start from in this round and in the next one, each ending with a preemption.
    now: Vec<Vec<u8>>,
    next: Vec<Vec<u8>>,
}

/// What is left to do of a [`Preempt`], as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PreemptState {
    /// Preemptions of the schedules of this round.
    pub round: u32,
    /// The path of the next execution.
    pub path: Vec<Branch>,
    /// Decisions of the path that are given.
    pub fixed: usize,
    /// Prefixes left in this round.
    pub now: Vec<Vec<u8>>,
    /// Prefixes of the next round.
    pub next: Vec<Vec<u8>>,
}

impl Preempt {
    /// A search from its beginning.
    pub fn new(bound: u32) -> Preempt {
        Preempt { bound, ..Preempt::default() }
    }

    /// A search from where another was.
    pub fn from_state(bound: u32, state: PreemptState) -> Preempt {
        let PreemptState { round, path, fixed, now, next } = state;
        Preempt { bound, round, path, fixed, at: 0, now, next }
    }

    /// Where the search is, between two executions.
    pub fn state(&self) -> PreemptState {
        PreemptState {
            round: self.round,
            path: self.path.clone(),
            fixed: self.fixed,
            now: self.now.clone(),
            next: self.next.clone(),
        }
    }

    fn start(&mut self, prefix: &[u8]) {
        self.path.clear();
        self.path.extend(prefix.iter().map(|task| Branch { task: *task, left: 0 }));
        self.fixed = prefix.len();
    }
}

impl Strategy for Preempt {
    fn begin(&mut self, _seed: u64) {
        self.at = 0;
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let at = self.at;
        self.at += 1;
        if let Some(task) = follow(&self.path, at, ready) {
            return task;
        }
        let task = ready.stay_or_lowest();
        let others = ready.runnable.without(task);
        // Whoever leaves a task that could go on pays for it, in the next round; else the switch is free.
        let is_preemption = task == ready.current;
        if is_preemption && self.round < self.bound {
            for other in others.iter() {
                let mut prefix: Vec<u8> = self.path.iter().map(|branch| branch.task).collect();
                prefix.push(other.0);
                self.next.push(prefix);
            }
        }
        self.path.push(Branch { task: task.0, left: if is_preemption { 0 } else { others.0 } });
        Ok(task)
    }

    fn advance(&mut self) -> bool {
        self.path.truncate(self.at);
        if vary(&mut self.path, self.fixed) {
            return true;
        }
        if self.now.is_empty() {
            self.now = std::mem::take(&mut self.next);
            self.now.reverse();
            self.round += 1;
        }
        match self.now.pop() {
            Some(prefix) => {
                self.start(&prefix);
                true
            }
            None => false,
        }
    }
}
