//! Replay: follow a recorded schedule decision by decision.

use super::{Divergence, Ready, Strategy};
use crate::sched::op::TaskId;
use crate::sched::schedule::Schedule;

/// Follows a [`Schedule`]; any difference between recording and program is a [`Divergence`].
#[derive(Clone, Debug)]
pub struct Replay {
    schedule: Schedule,
    at: usize,
}

impl Replay {
    /// Follows `schedule` from its first decision.
    pub fn new(schedule: Schedule) -> Replay {
        Replay { schedule, at: 0 }
    }
}

impl Strategy for Replay {
    fn begin(&mut self, _seed: u64) {
        self.at = 0;
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let at = self.at;
        let Some(&wanted) = self.schedule.decisions().get(at) else {
            return Err(Divergence::Exhausted { at, runnable: ready.runnable });
        };
        self.at += 1;
        if !ready.runnable.contains(wanted) {
            return Err(Divergence::NotRunnable { at, wanted, runnable: ready.runnable });
        }
        Ok(wanted)
    }
}
