//! Threads that increment a counter under a lock: lock, load, store, unlock.
//!
//! The model on which engines are compared: all cost is the engine's. The version for shuttle stands with the benchmark.

use sim_kernel::sched::{Config, Sim, Verdict};
use sim_kernel::sync::{Atomic64, Mutex};
use std::sync::Arc;

/// How large the model is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Threads.
    pub threads: u64,
    /// Increments of each.
    pub iterations: u64,
}

impl Size {
    /// The sizes that are compared.
    pub const ALL: [Size; 3] =
        [Size { threads: 2, iterations: 2 }, Size { threads: 2, iterations: 10 }, Size { threads: 4, iterations: 10 }];
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.threads, self.iterations)
    }
}

/// Runs one schedule.
///
/// # Panics
/// If an increment was lost, or the schedule did not complete.
pub fn run(sim: &mut Sim, config: &Config, size: Size) {
    let (counter, verdict) = sim.execute(config, |cx| {
        let shared = Arc::new((Mutex::new(cx, "lock", ()), Atomic64::new(cx, "counter", 0)));
        for _ in 0..size.threads {
            let shared = Arc::clone(&shared);
            cx.spawn("incrementer", move |cx| {
                let (lock, counter) = &*shared;
                for _ in 0..size.iterations {
                    let _guard = lock.lock(cx);
                    counter.store(cx, counter.load(cx) + 1);
                }
            });
        }
        shared
    });
    assert_eq!(verdict, Verdict::Completed);
    assert_eq!(counter.1.peek(), size.threads * size.iterations, "an increment was lost");
}
