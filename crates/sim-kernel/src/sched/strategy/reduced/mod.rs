//! Sleep sets and dynamic partial-order reduction: one schedule of each class of equivalent ones.
//!
//! Two schedules are equivalent if one becomes the other by exchanging neighbouring steps that do not depend on each other; they end in the same state. *Sleep
//! sets* (Godefroid 1996): what was tried at a branch and does not depend on anything done since need not be tried again. *Source sets* (Abdulla,
//! Aronis, Jonsson, Sagonas, POPL 2014, J. ACM 2017): another task is tried at a branch only if a race was seen whose reversal begins with it.
//! Both are complete: every class has one execution that is run to its end. An execution in which everybody who could run
//! sleeps is equivalent to an earlier one; it is run on without being looked at (a coroutine is cheaper to finish than to unwind) and counted as pruned.
//!
//! Dependence is that of [`Effect`]s, so everything that a step did counts, not only what it announced. Race detection is in [`races`].
//!
//! The search keeps what holds for all executions of a class: outcomes of completed executions, deadlocks, failed assertions of tasks about what they
//! read. An assertion about several objects at once that a bystander makes *between* two independent steps sees only the states
//! of the representatives.

mod races;

use super::{Divergence, Ended, Ready, Strategy};
use crate::sched::effect::{Effect, depend};
use crate::sched::op::{Op, TaskId, TaskSet};
use crate::sched::trail::Trail;
use races::Races;
use std::panic::Location;

/// A place in the model.
pub(crate) type Place = &'static Location<'static>;

/// A step of the path: who made it, and what is to be tried in its place.
#[derive(Clone, Copy, Debug)]
struct Node {
    task: TaskId,
    /// Who could have run.
    enabled: TaskSet,
    /// Who is to be tried here, whoever was already included.
    backtrack: TaskSet,
    /// Who was tried and is done, or was asleep from the beginning: the tasks of the sleepers.
    asleep: TaskSet,
    /// The sleepers of this node begin here; they end where those of the next node begin.
    sleepers: u32,
    /// Length of the pool when the node was made.
    pool: u32,
}

/// A task that need not be tried, as long as nothing happens that depends on what its next step does.
#[derive(Clone, Copy, Debug)]
struct Sleeper {
    task: TaskId,
    /// Its effects in the pool.
    from: u32,
    to: u32,
}

/// A step of the path of a search, as plain data.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReducedBranch {
    /// The task that made the step.
    pub task: u8,
    /// Who could have run.
    pub enabled: u64,
    /// Who is to be tried.
    pub backtrack: u64,
    /// Who need not be tried, and what the next step of each would do.
    pub sleepers: Vec<(u8, Vec<Effect>)>,
}

/// The search.
#[derive(Clone, Debug)]
pub struct Reduced {
    /// Whether only one side of each race is tried, or every task that does not sleep.
    by_races: bool,
    nodes: Vec<Node>,
    sleepers: Vec<Sleeper>,
    pool: Vec<Effect>,
    /// Steps of the path that are not varied: others do their other sides.
    frozen: usize,
    /// If set, only the step of this number is varied, and the path up to it is kept as `prefix`.
    horizon: Option<usize>,
    prefix: Vec<ReducedBranch>,
    /// The execution is equivalent to an earlier one from this step on.
    cut: bool,
    /// Who was blocked there, or at the end, and what each was about to do where.
    blocked: Vec<(TaskId, Option<Effect>, Place)>,
    /// The races of the last execution because of which something more is tried: the places of both steps.
    reversed: Vec<(Place, Place)>,
    /// Whether there is another execution.
    more: bool,
    races: Races,
}

impl Reduced {
    /// A search with sleep sets alone.
    pub fn sleep() -> Reduced {
        Reduced::new(false)
    }

    /// A search with source sets and sleep sets.
    pub fn dpor() -> Reduced {
        Reduced::new(true)
    }

    fn new(by_races: bool) -> Reduced {
        Reduced {
            by_races,
            nodes: Vec::new(),
            sleepers: Vec::new(),
            pool: Vec::new(),
            frozen: 0,
            horizon: None,
            prefix: Vec::new(),
            cut: false,
            blocked: Vec::new(),
            reversed: Vec::new(),
            more: true,
            races: Races::default(),
        }
    }

    /// Whether the execution that just ended is equivalent to an earlier one.
    pub fn was_pruned(&self) -> bool {
        self.cut
    }

    /// The races of the last execution because of which the search became larger: where both steps stand.
    pub(crate) fn reversed(&self) -> &[(Place, Place)] {
        &self.reversed
    }

    /// The path of the next execution, between two executions.
    pub fn path(&self) -> Vec<ReducedBranch> {
        let branch = |at: usize| {
            let node = &self.nodes[at];
            let sleepers = self.sleepers_of(at).iter();
            ReducedBranch {
                task: node.task.0,
                enabled: node.enabled.0,
                backtrack: node.backtrack.0,
                sleepers: sleepers.map(|s| (s.task.0, self.pool[s.from as usize..s.to as usize].to_vec())).collect(),
            }
        };
        (0..self.nodes.len()).map(branch).collect()
    }

    /// Steps of the path that are not varied.
    pub fn frozen(&self) -> usize {
        self.frozen
    }

    /// Goes on from a path; its first `frozen` steps are not varied.
    #[must_use]
    pub fn with_path(mut self, path: &[ReducedBranch], frozen: usize) -> Reduced {
        self.frozen = frozen;
        for branch in path {
            let (from, pool) = (self.sleepers.len() as u32, self.pool.len() as u32);
            let mut asleep = TaskSet::EMPTY;
            for (task, effects) in &branch.sleepers {
                self.push_sleeper(TaskId(*task), effects);
                asleep = asleep.with(TaskId(*task));
            }
            self.nodes.push(Node {
                task: TaskId(branch.task),
                enabled: TaskSet(branch.enabled),
                backtrack: TaskSet(branch.backtrack),
                asleep,
                sleepers: from,
                pool,
            });
        }
        self
    }

    /// Varies only the step after the frozen ones, to see how a search can be cut there.
    #[must_use]
    pub(crate) fn up_to(mut self, horizon: usize) -> Reduced {
        self.horizon = Some(horizon);
        self
    }

    /// The last execution up to the step that is varied; shorter if it ended before, or if nobody was awake.
    pub(crate) fn prefix(&self) -> &[ReducedBranch] {
        &self.prefix
    }

    /// Whether there is another execution.
    pub(crate) fn has_more(&self) -> bool {
        self.more
    }

    fn push_sleeper(&mut self, task: TaskId, effects: &[Effect]) {
        let from = self.pool.len() as u32;
        self.pool.extend_from_slice(effects);
        self.sleepers.push(Sleeper { task, from, to: self.pool.len() as u32 });
    }

    fn sleepers_of(&self, at: usize) -> &[Sleeper] {
        let from = self.nodes[at].sleepers as usize;
        let to = self.nodes.get(at + 1).map_or(self.sleepers.len(), |next| next.sleepers as usize);
        &self.sleepers[from..to]
    }

    /// Adds the node after the last one, whose step has been made; returns whether somebody awake can run.
    fn push_node(&mut self, trail: &Trail, enabled: TaskSet) -> bool {
        let from = self.sleepers.len();
        let mut asleep = TaskSet::EMPTY;
        if let Some(last) = self.nodes.len().checked_sub(1) {
            let step = trail.effects(last);
            for at in self.nodes[last].sleepers as usize..from {
                let sleeper = self.sleepers[at];
                let sleeps_on = sleeper.task != self.nodes[last].task
                    && !depend(&self.pool[sleeper.from as usize..sleeper.to as usize], step);
                if sleeps_on {
                    self.sleepers.push(sleeper);
                    asleep = asleep.with(sleeper.task);
                }
            }
        }
        let awake = TaskSet(enabled.0 & !asleep.0);
        if awake.is_empty() {
            self.sleepers.truncate(from);
            self.cut = true;
            return false;
        }
        let current = trail.steps().last().map_or(TaskId::BOOT, |step| step.task);
        let task = if awake.contains(current) { current } else { awake.nth(0) };
        let is_varied = !self.by_races && self.horizon.is_none_or(|horizon| self.nodes.len() == horizon);
        let backtrack = if is_varied { awake } else { TaskSet::only(task) };
        self.nodes.push(Node { task, enabled, backtrack, asleep, sleepers: from as u32, pool: self.pool.len() as u32 });
        true
    }

    fn pop_to(&mut self, len: usize) {
        if let Some(node) = self.nodes.get(len) {
            self.sleepers.truncate(node.sleepers as usize);
            self.pool.truncate(node.pool as usize);
            self.nodes.truncate(len);
        }
    }

    /// Moves to the next thing to try; what was tried last at the deepest node sleeps from now on.
    fn move_on(&mut self, trail: &Trail) -> bool {
        while self.nodes.len() > self.frozen {
            let at = self.nodes.len() - 1;
            let done = self.nodes[at].task;
            self.push_sleeper(done, trail.effects(at));
            let node = &mut self.nodes[at];
            node.asleep = node.asleep.with(done);
            let left = TaskSet(node.backtrack.0 & !node.asleep.0);
            if !left.is_empty() {
                node.task = left.nth(0);
                self.races.truncate(at);
                return true;
            }
            self.pop_to(at);
        }
        false
    }
}

/// Who goes on where nobody looks: each in turn, so that a task that tries again and again does not keep the others from ending what it waits for.
fn in_turn(ready: &Ready<'_>) -> TaskId {
    ready.runnable.iter().find(|task| *task > ready.current).unwrap_or_else(|| ready.runnable.nth(0))
}

fn pending_of(task: TaskId, op: &Op) -> (TaskId, Option<Effect>, Place) {
    (task, Effect::of(op), op.site)
}

impl Strategy for Reduced {
    fn begin(&mut self, _seed: u64) {
        self.cut = false;
        self.blocked.clear();
        self.reversed.clear();
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let trail = ready.trail.borrow();
        let at = trail.steps().len();
        if let Some(node) = self.nodes.get(at) {
            if node.enabled != ready.runnable {
                return Err(Divergence::NotRunnable { at, wanted: node.task, runnable: ready.runnable });
            }
            return Ok(node.task);
        }
        if self.cut {
            return Ok(in_turn(ready));
        }
        if !self.push_node(&trail, ready.runnable) {
            let blocked = TaskSet(ready.live.0 & !ready.runnable.0);
            self.blocked.extend(blocked.iter().map(|task| pending_of(task, &ready.pending(task))));
            return Ok(in_turn(ready));
        }
        Ok(self.nodes[at].task)
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let trail = ended.trail;
        if !self.cut {
            let blocked = ended.live.iter().filter(|t| !ended.runnable.contains(*t) && Some(*t) != ended.failed);
            self.blocked.extend(blocked.map(|task| pending_of(task, &ended.pending(task))));
        }
        // An execution that stopped before a step that was decided: the schedule did not fit, or the limit was reached.
        if self.nodes.len() > trail.steps().len() {
            self.pop_to(trail.steps().len());
        }
        if self.by_races {
            self.analyse(ended);
        }
        if let Some(horizon) = self.horizon {
            self.prefix = self.path();
            self.prefix.truncate(horizon + 1);
        }
        self.more = self.move_on(trail);
    }

    fn advance(&mut self) -> bool {
        self.more
    }
}
