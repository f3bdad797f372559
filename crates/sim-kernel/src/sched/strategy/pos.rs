//! POS (partial order sampling, Yuan, Yang and Gu, CAV 2018): random priorities of pending operations.
//!
//! The pending operation with the highest priority is performed; those that depend on it get new priorities, and so does whatever its
//! task does next. So the order of two operations that race is a fair draw, however many independent operations lie around them.

use super::{Divergence, Ready, Strategy};
use crate::sched::op::{MAX_TASKS, TaskId};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Random priorities of pending operations.
#[derive(Clone, Debug)]
pub struct Pos {
    rng: Pcg64Mcg,
    /// By task; 0 is not drawn yet.
    priorities: [u64; MAX_TASKS],
}

impl Pos {
    /// A strategy; the seed is set when an execution begins.
    pub fn new() -> Pos {
        Pos { rng: Pcg64Mcg::seed_from_u64(0), priorities: [0; MAX_TASKS] }
    }
}

impl Default for Pos {
    fn default() -> Self {
        Pos::new()
    }
}

impl Strategy for Pos {
    fn begin(&mut self, seed: u64) {
        self.rng = Pcg64Mcg::seed_from_u64(seed);
        self.priorities = [0; MAX_TASKS];
    }

    #[inline]
    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        // Whoever ran last is at a new operation.
        self.priorities[ready.current.index()] = 0;
        let mut best = (0, TaskId::BOOT);
        for task in ready.runnable.iter() {
            let priority = &mut self.priorities[task.index()];
            if *priority == 0 {
                *priority = self.rng.next_u64() | 1;
            }
            best = best.max((*priority, task));
        }
        let task = best.1;
        let op = ready.pending(task);
        for other in ready.live.without(task).iter() {
            if op.depends_on(&ready.pending(other)) {
                self.priorities[other.index()] = 0;
            }
        }
        self.priorities[task.index()] = 0;
        Ok(task)
    }
}
