//! Runs recorded traces against the simulator and says where it agrees with the kernel.
//!
//! One file per step: [`paths`] finds the traces, [`mod@file`] runs one, [`compare()`] runs many in parallel and adds up, and
//! [`report`] prints. The simulator is behind [`Executor`]; every file gets a new one.
//!
//! Simplified: a trace is one thread of operations; nothing here explores an interleaving.

mod campaign;
pub mod file;
pub mod paths;
pub mod report;

pub use campaign::{Options, Report, compare, emit};
pub use file::{Difference, FileReport, InternalError, Tally};

use crate::ops::{Answer, Op, SpteRun};
use crate::trace::Header;

/// What executes operations: the simulator, seen from a trace.
pub trait Executor {
    /// Executes one operation and says what came of it.
    fn execute(&mut self, op: &Op) -> Outcome;
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What it returned.
    pub answer: Answer,
    /// What changed in stage 2.
    pub spte: Vec<SpteRun>,
}

/// Makes the executor of one trace: a machine such as the header describes, in which nothing has happened.
///
/// Fails with a reason if there is no such machine.
pub type Factory<'a> = dyn Fn(&Header) -> Result<Box<dyn Executor>, String> + Sync + 'a;
