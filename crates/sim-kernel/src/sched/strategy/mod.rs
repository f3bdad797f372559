//! Who runs next: one strategy a file behind one small trait.
//!
//! At every scheduling point where more than one task could run, the engine asks a [`Strategy`], which sees the pending
//! [`Op`] of every runnable task. The built-in ones are dispatched statically through [`Chooser`]; any other implementation
//! goes in as [`Chooser::Custom`].

mod random;
mod replay;
mod round_robin;
mod run_to_completion;

pub use random::Random;
pub use replay::Replay;
pub use round_robin::RoundRobin;
pub use run_to_completion::RunToCompletion;

use super::op::{MAX_TASKS, Op, TaskId, TaskSet};
use std::cell::Cell;
use std::fmt;

/// What a strategy sees at a decision.
#[derive(Clone, Copy)]
pub struct Ready<'a> {
    /// The task that ran last; it may have blocked or ended.
    pub current: TaskId,
    /// The tasks that can run, at least two.
    pub runnable: TaskSet,
    pub(crate) pending: &'a [Cell<Op>; MAX_TASKS],
}

impl Ready<'_> {
    /// What `task` will do when it is picked.
    #[inline]
    pub fn pending(&self, task: TaskId) -> Op {
        self.pending[task.index()].get()
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
}

/// The strategy of an engine, dispatched without a virtual call for the built-in ones.
pub enum Chooser {
    /// Uniformly random at every decision.
    Random(Random),
    /// Each runnable task in turn.
    RoundRobin(RoundRobin),
    /// Stay with a task until it blocks or ends.
    RunToCompletion(RunToCompletion),
    /// Follow a recorded schedule.
    Replay(Replay),
    /// Any other strategy.
    Custom(Box<dyn Strategy>),
}

impl Chooser {
    pub(crate) fn begin(&mut self, seed: u64) {
        match self {
            Chooser::Random(s) => s.begin(seed),
            Chooser::RoundRobin(s) => s.begin(seed),
            Chooser::RunToCompletion(s) => s.begin(seed),
            Chooser::Replay(s) => s.begin(seed),
            Chooser::Custom(s) => s.begin(seed),
        }
    }

    #[inline]
    pub(crate) fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        match self {
            Chooser::Random(s) => Ok(s.choose(ready)),
            Chooser::RoundRobin(s) => s.pick(ready),
            Chooser::RunToCompletion(s) => s.pick(ready),
            Chooser::Replay(s) => s.pick(ready),
            Chooser::Custom(s) => s.pick(ready),
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
            Chooser::RoundRobin(_) => "RoundRobin",
            Chooser::RunToCompletion(_) => "RunToCompletion",
            Chooser::Replay(_) => "Replay",
            Chooser::Custom(_) => "Custom",
        })
    }
}
