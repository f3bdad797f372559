//! PCT (probabilistic concurrency testing, Burckhardt and others, ASPLOS 2010): random priorities and a few random changes.
//!
//! The runnable task with the highest priority runs; at `depth - 1` random steps the running task falls below all others. A bug that
//! needs `depth` ordering constraints among n tasks of k steps is hit with probability at least 1 / (n k^(depth - 1)).

use super::random::draw_below;
use super::{Divergence, Ready, Strategy};
use crate::sched::op::{MAX_TASKS, TaskId};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Priorities with random change points.
#[derive(Clone, Debug)]
pub struct Pct {
    rng: Pcg64Mcg,
    depth: u32,
    steps_expected: u64,
    /// Steps at which the running task falls, descending, so that the next one is at the end.
    changes: Vec<u64>,
    /// Above `depth`: drawn; at most `depth`: fallen; 0: not drawn yet.
    priorities: [u64; MAX_TASKS],
}

impl Pct {
    /// A strategy for bugs of this depth in executions of about this many steps.
    pub fn new(depth: u32, steps_expected: u64) -> Pct {
        Pct {
            rng: Pcg64Mcg::seed_from_u64(0),
            depth: depth.max(1),
            steps_expected: steps_expected.max(1),
            changes: Vec::new(),
            priorities: [0; MAX_TASKS],
        }
    }

    fn best(&mut self, ready: &Ready<'_>) -> TaskId {
        let mut best = (0, TaskId::BOOT);
        for task in ready.runnable.iter() {
            let priority = &mut self.priorities[task.index()];
            if *priority == 0 {
                *priority = self.rng.next_u64() | 1 << 32;
            }
            best = best.max((*priority, task));
        }
        best.1
    }
}

impl Strategy for Pct {
    fn begin(&mut self, seed: u64) {
        self.rng = Pcg64Mcg::seed_from_u64(seed);
        self.priorities = [0; MAX_TASKS];
        self.changes.clear();
        for _ in 1..self.depth {
            self.changes.push(1 + draw_below(&mut self.rng, self.steps_expected));
        }
        self.changes.sort_unstable_by(|a, b| b.cmp(a));
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        while self.changes.last().is_some_and(|at| *at <= ready.steps) {
            self.changes.pop();
            // The first change leaves the highest of the low priorities, as in the paper.
            let fallen = self.changes.len() as u64 + 1;
            let running = if ready.runnable.contains(ready.current) { ready.current } else { self.best(ready) };
            self.priorities[running.index()] = fallen;
        }
        Ok(self.best(ready))
    }
}
