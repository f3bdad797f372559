//! One task publishes, two look: data, then a flag. 9 classes for one iteration: 3 for each reader.

use super::judgement;
use crate::Cx;
use crate::explore::{Judgement, Program};
use crate::sched::{Sim, Verdict};
use crate::sync::Atomic64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A writer that stores data and then a flag, and two readers that load the flag and then the data, `iterations` times each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlagRace {
    /// Rounds of each task.
    pub iterations: u64,
}

impl Program for FlagRace {
    type State = Arc<AtomicBool>;

    fn setup(&self, cx: &Cx<'_>) -> Self::State {
        let words = Arc::new((Atomic64::new(cx, "flag", 0), Atomic64::new(cx, "data", 0)));
        let early = Arc::new(AtomicBool::new(false));
        let iterations = self.iterations;
        let writer = Arc::clone(&words);
        cx.spawn("writer", move |cx| {
            for n in 1..=iterations {
                writer.1.store(cx, n);
                writer.0.store(cx, n);
            }
        });
        for name in ["reader1", "reader2"] {
            let (words, early) = (Arc::clone(&words), Arc::clone(&early));
            cx.spawn(name, move |cx| {
                for _ in 0..iterations {
                    let flag = words.0.load(cx);
                    let data = words.1.load(cx);
                    if data < flag {
                        early.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
        early
    }

    fn judge(&self, _sim: &mut Sim, early: Self::State, verdict: &Verdict) -> Judgement {
        let early = early.load(Ordering::Relaxed);
        judgement(verdict, String::new(), early.then(|| "the flag was seen before the data".to_string()))
    }
}
