//! Random walk: uniform over the runnable tasks at every decision.
//!
//! Good at narrow symmetric windows, hopeless where one task must make many steps while another stands still.

use super::{Divergence, Ready, Strategy};
use crate::sched::op::{TaskId, TaskSet};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Uniformly random choice, drawn from PCG-64 (MCG), whose stream is fixed across versions and platforms.
#[derive(Clone, Debug)]
pub struct Random {
    rng: Pcg64Mcg,
}

impl Random {
    /// A random strategy; the seed is set when an execution begins.
    pub fn new() -> Random {
        Random { rng: Pcg64Mcg::seed_from_u64(0) }
    }

    /// Draws the next task.
    #[inline]
    pub fn choose(&mut self, ready: &Ready<'_>) -> TaskId {
        let first = TaskSet(ready.runnable.0 & ready.runnable.0.wrapping_neg());
        let rest = TaskSet(ready.runnable.0 ^ first.0);
        // Two is the usual number, and needs no counting; the draw is the same.
        let picked = match rest.single() {
            Some(_) if draw_below(&mut self.rng, 2) == 0 => first,
            Some(_) => rest,
            None => return ready.runnable.nth(draw_below(&mut self.rng, u64::from(ready.runnable.len())) as u32),
        };
        TaskId(picked.0.trailing_zeros() as u8)
    }
}

/// Draws a number below `n`, which is less than 2^32. Multiply-shift of 32 random bits; the bias is below n / 2^32.
#[inline]
pub(super) fn draw_below(rng: &mut Pcg64Mcg, n: u64) -> u64 {
    ((rng.next_u64() >> 32) * n) >> 32
}

impl Default for Random {
    fn default() -> Self {
        Random::new()
    }
}

impl Strategy for Random {
    fn begin(&mut self, seed: u64) {
        self.rng = Pcg64Mcg::seed_from_u64(seed);
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        Ok(self.choose(ready))
    }
}
