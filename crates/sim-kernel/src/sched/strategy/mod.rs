//! Who runs next: one strategy a file behind one small trait.
//!
//! At every scheduling point where more than one task could run, the engine asks a [`Strategy`], which sees the pending
//! [`Op`] of every runnable task. The built-in ones are dispatched statically through [`Chooser`]; any other implementation
//! goes in as [`Chooser::Custom`].

mod dfs;
mod pct;
mod pos;
mod preempt;
mod random;
mod reduced;
mod replay;
mod round_robin;
mod run_to_completion;
mod urw;

pub use dfs::{Branch, Dfs};
pub use pct::Pct;
pub use pos::Pos;
pub use preempt::{Preempt, PreemptState};
pub use random::Random;
pub(crate) use reduced::Place;
pub use reduced::{Reduced, ReducedBranch};
pub use replay::Replay;
pub use round_robin::RoundRobin;
pub use run_to_completion::RunToCompletion;
pub use urw::Urw;

use super::op::{MAX_TASKS, Op, TaskId, TaskSet};
use super::trail::Trail;
use std::cell::{Cell, RefCell};
use std::fmt;

/// What a strategy sees at a decision.
#[derive(Clone, Copy)]
pub struct Ready<'a> {
    /// The task that ran last; it may have blocked or ended.
    pub current: TaskId,
    /// The tasks that can run, at least two, except for strategies that look at every step.
    pub runnable: TaskSet,
    /// The tasks that have not ended: those that can run, and those that are blocked.
    pub live: TaskSet,
    /// Scheduling points that tasks have reached so far.
    pub steps: u64,
    pub(crate) pending: &'a [Cell<Op>; MAX_TASKS],
    pub(crate) trail: &'a RefCell<Trail>,
}

/// What a strategy sees of an execution that has ended.
pub struct Ended<'a> {
    /// The steps; empty unless somebody asked for them.
    pub trail: &'a Trail,
    /// The task that failed an assertion, if that was the end.
    pub failed: Option<TaskId>,
    /// The tasks that are left.
    pub live: TaskSet,
    /// Those of them that could have gone on.
    pub runnable: TaskSet,
    pub(crate) pending: &'a [Cell<Op>; MAX_TASKS],
}

impl Ended<'_> {
    /// What a task that is left was about to do.
    pub fn pending(&self, task: TaskId) -> Op {
        self.pending[task.index()].get()
    }
}

impl fmt::Debug for Ended<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ended").field("failed", &self.failed).field("live", &self.live).finish_non_exhaustive()
    }
}

impl Ready<'_> {
    /// What a live task will do when it is picked.
    #[inline]
    pub fn pending(&self, task: TaskId) -> Op {
        self.pending[task.index()].get()
    }

    /// The current task if it can run, else the one with the lowest number.
    #[inline]
    pub fn stay_or_lowest(&self) -> TaskId {
        if self.runnable.contains(self.current) { self.current } else { self.runnable.nth(0) }
    }
}

impl fmt::Debug for Ready<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ops: Vec<_> = self.runnable.iter().map(|t| (t, self.pending(t))).collect();
        f.debug_struct("Ready").field("current", &self.current).field("pending", &ops).finish()
    }
}

/// The recorded schedule asks for a task that cannot run: the program is not the one that was recorded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Divergence {
    /// The recorded task is blocked, ended or was never started.
    #[error("decision {at}: the schedule names task {wanted:?}, but only {runnable:?} can run")]
    NotRunnable {
        /// Number of the decision, from 0.
        at: usize,
        /// The task that was recorded.
        wanted: TaskId,
        /// The tasks that can run.
        runnable: TaskSet,
    },
    /// The recorded schedule ended while tasks were still running.
    #[error("the schedule ends after {at} decisions, but {runnable:?} can still run")]
    Exhausted {
        /// Decisions in the schedule.
        at: usize,
        /// The tasks that can run.
        runnable: TaskSet,
    },
}

/// Picks the next task at every decision.
pub trait Strategy {
    /// A new execution starts; everything drawn must follow from `seed`.
    fn begin(&mut self, seed: u64);

    /// The task to run next.
    ///
    /// # Errors
    /// A strategy that follows a recording fails when the program does something else.
    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence>;

    /// `task` was resumed and performs `op` now.
    fn executed(&mut self, _task: TaskId, _op: &Op) {}

    /// An execution has ended, and what is left of it has not been taken down yet.
    fn ended(&mut self, _ended: &Ended<'_>) {}

    /// Prepares the next one of a search. False if there is none, which only an exhaustive search can say.
    fn advance(&mut self) -> bool {
        true
    }
}

/// The strategy of an engine, dispatched without a virtual call for the built-in ones.
pub enum Chooser {
    /// Uniformly random at every decision.
    Random(Random),
    /// Random, weighted by the events that tasks have left.
    Urw(Box<Urw>),
    /// Random priorities with change points.
    Pct(Box<Pct>),
    /// Random priorities of pending operations.
    Pos(Box<Pos>),
    /// Each runnable task in turn.
    RoundRobin(RoundRobin),
    /// Stay with a task until it blocks or ends.
    RunToCompletion(RunToCompletion),
    /// Follow a recorded schedule.
    Replay(Replay),
    /// Every schedule, one execution after the other.
    Dfs(Dfs),
    /// Every schedule with few preemptions, fewest first.
    Preempt(Box<Preempt>),
    /// One schedule of each class of equivalent ones.
    Reduced(Box<Reduced>),
    /// Any other strategy.
    Custom(Box<dyn Strategy>),
}

impl Chooser {
    pub(crate) fn begin(&mut self, seed: u64) {
        match self {
            Chooser::Random(s) => s.begin(seed),
            Chooser::Urw(s) => s.begin(seed),
            Chooser::Pct(s) => s.begin(seed),
            Chooser::Pos(s) => s.begin(seed),
            Chooser::RoundRobin(s) => s.begin(seed),
            Chooser::RunToCompletion(s) => s.begin(seed),
            Chooser::Replay(s) => s.begin(seed),
            Chooser::Dfs(s) => s.begin(seed),
            Chooser::Preempt(s) => s.begin(seed),
            Chooser::Reduced(s) => s.begin(seed),
            Chooser::Custom(s) => s.begin(seed),
        }
    }

    #[inline]
    pub(crate) fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        match self {
            Chooser::Random(s) => Ok(s.choose(ready)),
            Chooser::Urw(s) => s.pick(ready),
            Chooser::Pct(s) => s.pick(ready),
            Chooser::Pos(s) => s.pick(ready),
            Chooser::RoundRobin(s) => s.pick(ready),
            Chooser::RunToCompletion(s) => s.pick(ready),
            Chooser::Replay(s) => s.pick(ready),
            Chooser::Dfs(s) => s.pick(ready),
            Chooser::Preempt(s) => s.pick(ready),
            Chooser::Reduced(s) => s.pick(ready),
            Chooser::Custom(s) => s.pick(ready),
        }
    }

    pub(crate) fn ended(&mut self, ended: &Ended<'_>) {
        match self {
            Chooser::Custom(s) => s.ended(ended),
            Chooser::Reduced(s) => s.ended(ended),
            _ => {}
        }
    }

    /// Whether the strategy needs the trail, and to be asked before every step.
    pub(crate) fn asks_always(&self) -> bool {
        matches!(self, Chooser::Reduced(_))
    }

    pub(crate) fn advance(&mut self) -> bool {
        match self {
            Chooser::Dfs(s) => s.advance(),
            Chooser::Preempt(s) => s.advance(),
            Chooser::Reduced(s) => s.advance(),
            Chooser::Custom(s) => s.advance(),
            _ => true,
        }
    }

    #[inline]
    pub(crate) fn executed(&mut self, task: TaskId, op: &Op) {
        if let Chooser::Custom(s) = self {
            s.executed(task, op);
        }
    }
}

impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Chooser::Random(_) => "Random",
            Chooser::Urw(_) => "Urw",
            Chooser::Pct(_) => "Pct",
            Chooser::Pos(_) => "Pos",
            Chooser::RoundRobin(_) => "RoundRobin",
            Chooser::RunToCompletion(_) => "RunToCompletion",
            Chooser::Replay(_) => "Replay",
            Chooser::Dfs(_) => "Dfs",
            Chooser::Preempt(_) => "Preempt",
            Chooser::Reduced(_) => "Reduced",
            Chooser::Custom(_) => "Custom",
        })
    }
}
