//! What was tried: a generator is as good as the answers that it gets.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::ops::{Answer, Op};

/// Counts of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Programs that were begun.
    pub programs: u64,
    /// Operations that both answered.
    pub operations: u64,
    /// Programs that ended because the real kernel was not to be asked.
    pub refused: u64,
    /// Differences that were not there when the same program was run again: what the machine does in the background, such as making huge
    /// pages, shows now and then.
    pub unrepeated: u64,
    /// For each operation, how often it got which kind of answer.
    pub answers: BTreeMap<&'static str, BTreeMap<String, u64>>,
}

impl Tally {
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
