//! URW (uniform random walk, Zhao and others, ASPLOS 2025): each task is as likely as its share of the events that are left.
//!
//! If the counts are right and nothing blocks, every interleaving is equally likely; a random walk instead favours those in which
//! the short tasks are early. The counts come from trial runs. What is simplified: a run of steps without a decision between them
//! is counted for the task that ran last.

use super::random::draw_below;
use super::{Divergence, Ready, Strategy};
use crate::sched::op::{MAX_TASKS, TaskId};
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

/// Random choice, weighted by how many steps each task has left.
#[derive(Clone, Debug)]
pub struct Urw {
    rng: Pcg64Mcg,
    expected: Vec<u32>,
    left: [u32; MAX_TASKS],
    steps: u64,
}

impl Urw {
    /// A strategy that expects this many steps of each task, by task number; a task that is not listed counts as having one step left.
    pub fn new(expected: Vec<u32>) -> Urw {
        Urw { rng: Pcg64Mcg::seed_from_u64(0), expected, left: [0; MAX_TASKS], steps: 0 }
    }
}

impl Strategy for Urw {
    fn begin(&mut self, seed: u64) {
        self.rng = Pcg64Mcg::seed_from_u64(seed);
        self.left = [0; MAX_TASKS];
        for (left, expected) in self.left.iter_mut().zip(&self.expected) {
            *left = *expected;
        }
        self.steps = 0;
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let done = u32::try_from(ready.steps - self.steps).unwrap_or(u32::MAX);
        self.steps = ready.steps;
        let left = &mut self.left[ready.current.index()];
        *left = left.saturating_sub(done);
        // A task that goes on beyond what was expected still has a step, at least.
        let weight = |task: TaskId| u64::from(self.left[task.index()].max(1));
        let total = ready.runnable.iter().map(weight).sum();
        let mut draw = draw_below(&mut self.rng, total);
        for task in ready.runnable.iter() {
            let weight = weight(task);
            if draw < weight {
                return Ok(task);
            }
            draw -= weight;
        }
        unreachable!("the draw is below the sum of the weights")
    }
}
