//! Depth-first search: every schedule, without any reduction.
//!
//! Useless beyond toys, and the oracle against which the reductions are tested.

use super::{Divergence, Ready, Strategy};
use crate::sched::op::{TaskId, TaskSet};

/// A decision on the path of a search: the task that is taken and those that are still to be tried in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Branch {
    /// The task that is taken.
    pub task: u8,
    /// The tasks that are still to be tried, one bit each.
    pub left: u64,
}

/// The task that a path takes at decision `at`; nothing if the path ends before.
pub(super) fn follow(path: &[Branch], at: usize, ready: &Ready<'_>) -> Option<Result<TaskId, Divergence>> {
    let wanted = TaskId(path.get(at)?.task);
    let is_possible = ready.runnable.contains(wanted);
    Some(if is_possible { Ok(wanted) } else { Err(Divergence::NotRunnable { at, wanted, runnable: ready.runnable }) })
}

/// Takes the next side of the last decision that has one, and forgets those after it; the first `kept` ones stay. False if there is none.
pub(super) fn vary(path: &mut Vec<Branch>, kept: usize) -> bool {
    while path.len() > kept {
        let branch = path.last_mut().expect("longer than what stays");
        if branch.left != 0 {
            let next = TaskSet(branch.left).nth(0);
            *branch = Branch { task: next.0, left: TaskSet(branch.left).without(next).0 };
            return true;
        }
        path.pop();
    }
    false
}

/// Enumerates all schedules; [`Strategy::advance`] moves on to the next one.
#[derive(Clone, Debug, Default)]
pub struct Dfs {
    path: Vec<Branch>,
    /// Decisions of the path that are not varied: others do their other sides.
    frozen: usize,
    at: usize,
}

impl Dfs {
    /// A search from its beginning.
    pub fn new() -> Dfs {
        Dfs::default()
    }

    /// A search whose next execution follows `path`, of which the first `frozen` decisions are not varied.
    pub fn from_path(path: &[Branch], frozen: usize) -> Dfs {
        Dfs { path: path.to_vec(), frozen, at: 0 }
    }

    /// Decisions of the path that are not varied.
    pub fn frozen(&self) -> usize {
        self.frozen
    }

    /// The path of the next execution.
    pub fn path(&self) -> Vec<Branch> {
        self.path.clone()
    }
}

impl Strategy for Dfs {
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
        self.path.push(Branch { task: task.0, left: ready.runnable.without(task).0 });
        Ok(task)
    }

    fn advance(&mut self) -> bool {
        self.path.truncate(self.at);
        vary(&mut self.path, self.frozen)
    }
}
