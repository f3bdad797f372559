//! What was tried: a generator is as good as the answers that it gets.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Difference;
use crate::ops::json::recorded_style;
use crate::ops::{Answer, Op};

/// Counts of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Programs that were begun.
    pub programs: u64,
    /// Operations that both answered.
    pub operations: u64,
    /// Programs that ended because the real kernel was not to be asked, by the operation.
    pub refused: BTreeMap<&'static str, u64>,
    /// Differences that were not there when the same program was run again: what the machine does in the background, such as making huge
    /// pages, shows now and then.
    pub unrepeated: Vec<Unrepeated>,
    /// For each operation, how often it got which kind of answer.
    pub answers: BTreeMap<&'static str, BTreeMap<String, u64>>,
}

/// A difference that was there once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unrepeated {
    /// The number of the program.
    pub program: u64,
    /// Which operation of it, from 0.
    pub index: usize,
    /// The operation.
    pub operation: String,
    /// What the kernel answered, or why it did not.
    pub kernel: String,
    /// What the simulator answered, or how it ended.
    pub simulator: String,
}

impl Tally {
    /// Keeps a difference of program number `program`, whose operations are `ops`, that did not come again.
    pub fn keep_unrepeated(&mut self, program: u64, ops: &[Op], difference: &Difference) {
        let Difference { index, .. } = *difference;
        let operation = ops.get(index).map(recorded_style).unwrap_or_default();
        let (kernel, simulator) = (difference.of_kernel(), difference.of_simulator());
        self.unrepeated.push(Unrepeated { program, index, operation, kernel, simulator });
    }

    pub(super) fn count_refused(&mut self, op: &Op) {
        *self.refused.entry(op.name()).or_default() += 1;
    }

    pub(super) fn count(&mut self, op: &Op, answer: &Answer) {
        self.operations += 1;
        let kind = match answer {
            Answer::Ok { .. } => "ok".into(),
            Answer::Failed { errno, .. } => errno.name().into(),
            Answer::Signal(signal) => signal.name().into(),
            Answer::Exit { exit, .. } => exit.name(),
            Answer::Other(_) => "other".into(),
        };
        *self.answers.entry(op.name()).or_default().entry(kind).or_default() += 1;
    }
}
