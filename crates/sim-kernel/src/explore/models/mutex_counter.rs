//! Tasks that increment a counter under a lock. Executions of different classes: the orders of the acquisitions, 6 for 2x2.

use super::judgement;
use crate::Cx;
use crate::explore::{Judgement, Program};
use crate::sched::{Sim, Verdict};
use crate::sync::Mutex;
use std::sync::Arc;

/// `tasks` tasks, each of which locks, increments and unlocks `iterations` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MutexCounter {
    /// How many tasks.
    pub tasks: u64,
    /// Increments of each.
    pub iterations: u64,
}

impl Program for MutexCounter {
    type State = Arc<Mutex<u64>>;

    fn setup(&self, cx: &Cx<'_>) -> Self::State {
        let counter = Arc::new(Mutex::new(cx, "counter", 0));
        let iterations = self.iterations;
        for _ in 0..self.tasks {
            let counter = Arc::clone(&counter);
            cx.spawn("incrementer", move |cx| {
                for _ in 0..iterations {
                    *counter.lock(cx) += 1;
                }
            });
        }
        counter
    }

    fn judge(&self, _sim: &mut Sim, counter: Self::State, verdict: &Verdict) -> Judgement {
        let lost = counter.peek(|n| self.tasks * self.iterations - n);
        judgement(verdict, String::new(), (lost > 0).then(|| format!("{lost} increments were lost")))
    }
}
