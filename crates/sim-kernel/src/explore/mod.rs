//! Exploration: one small program, executed under many schedules or all of them.
//!
//! A [`Program`] says how an execution begins and how its end is judged. An [`Exploration`] executes it again and again under one
//! [`StrategyKind`], one execution a [`step`](Exploration::step), and counts. There is no I/O, no clock and no thread here: whoever
//! drives an exploration decides when to stop, and may take a [`Frontier`] at any time, keep it, and go on from it later or elsewhere.
//!
//! ```
//! use sim_kernel::explore::{Exploration, Judgement, Options, Program, StrategyKind};
//! use sim_kernel::sched::{Sim, Verdict};
//! use sim_kernel::{Cx, sync::Atomic64};
//! use std::sync::Arc;
//!
//! /// Two tasks that add to a word without a lock.
//! struct LostUpdate;
//!
//! impl Program for LostUpdate {
//!     type State = Arc<Atomic64>;
//!
//!     fn setup(&self, cx: &Cx<'_>) -> Arc<Atomic64> {
//!         let word = Arc::new(Atomic64::new(cx, "word", 0));
//!         for name in ["a", "b"] {
//!             let word = Arc::clone(&word);
//!             cx.spawn(name, move |cx| {
//!                 let old = word.load(cx);
//!                 word.store(cx, old + 1);
//!             });
//!         }
//!         word
//!     }
//!
//!     fn judge(&self, _sim: &mut Sim, word: Arc<Atomic64>, _verdict: &Verdict) -> Judgement {
//!         Judgement::outcome(word.peek().to_string())
//!     }
//! }
//!
//! let mut exploration = Exploration::new(&LostUpdate, StrategyKind::Dfs, 0, Options::default());
//! while exploration.step().is_some() {}
//! let outcomes: Vec<_> = exploration.statistics().outcomes.keys().map(String::as_str).collect();
//! assert_eq!(outcomes, ["1", "2"]);
//! ```

mod coverage;
mod exploration;
mod frontier;
mod kind;
pub mod models;
mod reversals;
mod split;
mod statistics;

pub use crate::sched::Site;
pub use coverage::Coverage;
pub use exploration::{Execution, Exploration, Options};
pub use frontier::{Frontier, FrontierError, Rest};
pub use kind::{StrategyKind, StrategyKindError};
pub use reversals::Reversals;
pub use split::cut;
pub use statistics::Statistics;

use crate::Cx;
use crate::sched::{Sim, Verdict};

/// A small program that is executed many times.
///
/// Everything that it does must follow from the schedule: the same decisions give the same operations.
pub trait Program {
    /// What the boot task leaves for the judge.
    type State;

    /// Runs as the boot task at the beginning of each execution: builds things and spawns the tasks.
    fn setup(&self, cx: &Cx<'_>) -> Self::State;

    /// Looks at what an execution left, however it ended, and takes it down. `sim` serves [`Sim::solo`].
    fn judge(&self, sim: &mut Sim, state: Self::State, verdict: &Verdict) -> Judgement;
}

/// What a program makes of one of its executions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Canonical text of what came out; empty if nothing is worth telling apart.
    pub outcome: String,
    /// What is wrong with it.
    pub problem: Option<Problem>,
}

impl Judgement {
    /// All is well, and this came out.
    pub fn outcome(outcome: impl Into<String>) -> Judgement {
        Judgement { outcome: outcome.into(), problem: None }
    }
}

/// Something that must never happen, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The invariant that does not hold, such as `INV-201`, if it has a number.
    pub id: Option<String>,
    /// In words.
    pub message: String,
}
