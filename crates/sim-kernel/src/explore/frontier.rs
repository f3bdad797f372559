//! Where a search stands, as plain data: for checkpoints, and to hand parts of a search to others.

use super::{Statistics, StrategyKind};
use crate::sched::{Branch, Chooser, Dfs, MAX_TASKS, MemoryModel, Preempt, PreemptState, Reduced, ReducedBranch};

/// The state of an exploration between two executions.
///
/// It belongs to one program and one version of the simulator; whoever keeps it sees to that.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Frontier {
    /// The strategy.
    pub kind: StrategyKind,
    /// The seed of the exploration.
    pub seed: u64,
    /// Number of the next execution.
    pub number: u64,
    /// Steps after which an execution is abandoned.
    pub steps_max: u64,
    /// How much is logged: 0 nothing, 1 the hash, 2 all.
    pub log: u8,
    /// Which reorderings are explored.
    pub memory: MemoryModel,
    /// Whether pairs of communicating places are counted.
    pub coverage: bool,
    /// Whether nothing is left to do.
    pub exhausted: bool,
    /// The path to the next execution and what is left to do beside it.
    pub rest: Rest,
    /// Totals so far.
    pub statistics: Statistics,
}

/// What is left to do of a search, by strategy.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Rest {
    /// Samples: the number of the next one is all.
    Samples,
    /// Depth-first search: its path.
    Dfs {
        /// The path of the next execution.
        path: Vec<Branch>,
        /// Decisions of the path that are not varied: others do their other sides.
        frozen: usize,
    },
    /// Bounded preemption.
    Preempt(PreemptState),
    /// Sleep sets and partial-order reduction.
    Reduced {
        /// The path of the next execution.
        path: Vec<ReducedBranch>,
        /// Steps of the path that are not varied: others do their other sides.
        frozen: usize,
    },
}

impl Rest {
    pub(super) fn of(chooser: &Chooser) -> Rest {
        match chooser {
            Chooser::Dfs(dfs) => Rest::Dfs { path: dfs.path(), frozen: dfs.frozen() },
            Chooser::Preempt(preempt) => Rest::Preempt(preempt.state()),
            Chooser::Reduced(reduced) => Rest::Reduced { path: reduced.path(), frozen: reduced.frozen() },
            _ => Rest::Samples,
        }
    }

    /// Puts a new strategy to where this one was.
    pub(super) fn put(self, chooser: &mut Chooser, kind: StrategyKind) -> Result<(), FrontierError> {
        match (self, chooser, kind) {
            (Rest::Dfs { path, frozen }, Chooser::Dfs(dfs), _) => *dfs = Dfs::from_path(&path, frozen),
            (Rest::Preempt(state), Chooser::Preempt(preempt), StrategyKind::Preempt { bound }) => {
                **preempt = Preempt::from_state(bound, state);
            }
            (Rest::Reduced { path, frozen }, Chooser::Reduced(reduced), kind) => {
                let new = if kind == StrategyKind::Sleep { Reduced::sleep() } else { Reduced::dpor() };
                **reduced = new.with_path(&path, frozen);
            }
            (Rest::Samples, _, kind) if !kind.is_exhaustive() => {}
            (_, _, kind) => return Err(FrontierError::Strategy(kind)),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), FrontierError> {
        let task = |task: u8| {
            let is_task = usize::from(task) < MAX_TASKS;
            if is_task { Ok(()) } else { Err(FrontierError::OutOfRange("task", task.into())) }
        };
        let branches = |path: &[Branch]| {
            for (at, branch) in path.iter().enumerate() {
                task(branch.task)?;
                if branch.left & 1 << branch.task != 0 {
                    return Err(FrontierError::Branch(at));
                }
            }
            Ok(())
        };
        match self {
            Rest::Samples => Ok(()),
            Rest::Dfs { path, frozen } if *frozen > path.len() => {
                Err(FrontierError::OutOfRange("frozen part", *frozen as u64))
            }
            Rest::Dfs { path, .. } => branches(path),
            Rest::Preempt(state) => {
                branches(&state.path)?;
                if state.fixed > state.path.len() {
                    return Err(FrontierError::OutOfRange("fixed part", state.fixed as u64));
                }
                state.now.iter().chain(&state.next).flatten().try_for_each(|t| task(*t))
            }
            Rest::Reduced { path, frozen } => {
                if *frozen > path.len() {
                    return Err(FrontierError::OutOfRange("frozen part", *frozen as u64));
                }
                for (at, branch) in path.iter().enumerate() {
                    task(branch.task)?;
                    if branch.enabled & branch.backtrack & 1 << branch.task == 0 {
                        return Err(FrontierError::Branch(at));
                    }
                    for (sleeper, effects) in &branch.sleepers {
                        task(*sleeper)?;
                        if effects.iter().any(|effect| effect.span == 0) {
                            return Err(FrontierError::OutOfRange("span", 0));
                        }
                    }
                }
                Ok(())
            }
        }
    }
}

/// Data that is not the state of any exploration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrontierError {
    /// A task number or a log level is out of range.
    #[error("the frontier's {0} is out of range: {1}")]
    OutOfRange(&'static str, u64),
    /// A task is both taken and left to do at the same branch, or could not run there.
    #[error("branch {0} of the frontier contradicts itself")]
    Branch(usize),
    /// What is left to do is another strategy's.
    #[error("what is left to do is not of the strategy {0}")]
    Strategy(StrategyKind),
}

impl Frontier {
    pub(super) fn check(&self) -> Result<(), FrontierError> {
        if self.log > 2 {
            return Err(FrontierError::OutOfRange("log level", self.log.into()));
        }
        self.rest.check()
    }
}
