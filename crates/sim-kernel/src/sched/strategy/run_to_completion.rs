//! Run to completion: no preemption at all; a task runs until it blocks or ends.
//!
//! The schedule with the fewest switches, in order of task number: what a reader expects when nothing races.

use super::{Divergence, Ready, Strategy};
use crate::sched::op::TaskId;

/// Stays with the current task while it can run, else takes the one with the lowest number.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunToCompletion;

impl Strategy for RunToCompletion {
    fn begin(&mut self, _seed: u64) {}

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        Ok(ready.stay_or_lowest())
    }
}
