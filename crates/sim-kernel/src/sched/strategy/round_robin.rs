//! Round robin: every scheduling point hands over to the next runnable task in order of number.

use super::{Divergence, Ready, Strategy};
use crate::sched::op::TaskId;

/// Each runnable task in turn, by task number.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin;

impl Strategy for RoundRobin {
    fn begin(&mut self, _seed: u64) {}

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let after = ready.runnable.iter().find(|t| *t > ready.current);
        Ok(after.unwrap_or_else(|| ready.runnable.nth(0)))
    }
}
