//! Where a search stands, as plain data: for checkpoints, and to hand parts of a search to others.

use super::{Statistics, StrategyKind};
use crate::sched::{Branch, MAX_TASKS};

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
    /// Whether nothing is left to do.
    pub exhausted: bool,
    /// The path to the next execution and what is left to do beside it; empty for sampling strategies.
    pub path: Vec<Branch>,
    /// Totals so far.
    pub statistics: Statistics,
}

/// Data that is not the state of any exploration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrontierError {
    /// A task number or a log level is out of range.
    #[error("the frontier's {0} is out of range: {1}")]
    OutOfRange(&'static str, u64),
    /// A task is both taken and left to do at the same branch.
    #[error("branch {0} of the frontier leaves its own task to do")]
    Branch(usize),
}

impl Frontier {
    pub(super) fn check(&self) -> Result<(), FrontierError> {
        if self.log > 2 {
            return Err(FrontierError::OutOfRange("log level", self.log.into()));
        }
        for (at, branch) in self.path.iter().enumerate() {
            if usize::from(branch.task) >= MAX_TASKS {
                return Err(FrontierError::OutOfRange("task", branch.task.into()));
            }
            if branch.left & 1 << branch.task != 0 {
                return Err(FrontierError::Branch(at));
            }
        }
        Ok(())
    }
}
