//! Mistakes of known depth, with irrelevant work around them: how many executions does a strategy need?
//!
//! The depth of a bug is the number of orderings of two operations that suffice for it. Narrow windows are what a random walk is good at; in a long window one task must make
//! many steps while the other stands still, which it hardly ever does.

use super::judgement;
use crate::Cx;
use crate::explore::{Judgement, Program};
use crate::sched::{Sim, Verdict};
use crate::sync::{Atomic64, Mutex};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Depth 1: something is used before it was initialised.
    UseBeforeInit,
    /// Depth 2: whether an invalidation ran is checked before `mmu_lock` is taken.
    RetryOutsideLock,
    /// Depth 2: two locks in two orders.
    AbBa,
    /// Depth 3: three locks in a ring.
    ThreeLockCycle,
    /// Depth 3: an attribute is seen in the middle of its change, and then after it.
    TransitionalAttribute,
    /// Depth 2: a whole range is zapped between the check and the mapping.
    LongWindow,
    /// Depth 3: the same, and the zap must have begun before the fault.
    LongWindowAfterBegin,
}

/// A program with a mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeededBug {
    /// The mistake.
    pub bug: Bug,
    /// Irrelevant operations of each task before and after it; steps of the other task in a long window.
    pub pad: u64,
    /// Tasks that have nothing to do with it, each with twice `pad` operations.
    pub noise: u64,
}

impl SeededBug {
    /// All that are measured.
    pub const TABLE: [SeededBug; 20] = [
        SeededBug::new(Bug::UseBeforeInit, 10, 0),
        SeededBug::new(Bug::RetryOutsideLock, 0, 0),
        SeededBug::new(Bug::RetryOutsideLock, 10, 0),
        SeededBug::new(Bug::RetryOutsideLock, 50, 0),
        SeededBug::new(Bug::RetryOutsideLock, 10, 2),
        SeededBug::new(Bug::AbBa, 10, 0),
        SeededBug::new(Bug::AbBa, 50, 0),
        SeededBug::new(Bug::ThreeLockCycle, 0, 0),
        SeededBug::new(Bug::ThreeLockCycle, 50, 0),
        SeededBug::new(Bug::TransitionalAttribute, 0, 0),
        SeededBug::new(Bug::TransitionalAttribute, 10, 0),
        SeededBug::new(Bug::TransitionalAttribute, 50, 0),
        SeededBug::new(Bug::TransitionalAttribute, 10, 2),
        SeededBug::new(Bug::LongWindow, 5, 0),
        SeededBug::new(Bug::LongWindow, 10, 0),
        SeededBug::new(Bug::LongWindow, 20, 0),
        SeededBug::new(Bug::LongWindow, 20, 2),
        SeededBug::new(Bug::LongWindowAfterBegin, 5, 0),
        SeededBug::new(Bug::LongWindowAfterBegin, 10, 0),
        SeededBug::new(Bug::LongWindowAfterBegin, 20, 0),
    ];

    /// A row of the table.
    pub const fn new(bug: Bug, pad: u64, noise: u64) -> SeededBug {
        SeededBug { bug, pad, noise }
    }
}

impl fmt::Display for SeededBug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} pad {}", self.bug, self.pad)?;
        if self.noise > 0 {
            write!(f, " noise {}", self.noise)?;
        }
        Ok(())
    }
}

/// What the tasks share.
#[derive(Debug)]
pub struct SeededState {
    locks: [Mutex<u64>; 3],
    words: [Atomic64; 3],
    /// A task saw what it must not see.
    failed: AtomicBool,
}

/// Irrelevant operations: loads of a word that only this task uses.
struct Pad(Atomic64, u64);

impl Pad {
    fn work(&self, cx: &Cx<'_>) {
        for _ in 0..self.1 {
            self.0.load(cx);
        }
    }
}

impl SeededBug {
    fn task(&self, cx: &Cx<'_>, state: &Arc<SeededState>, name: &str, body: fn(&Cx<'_>, &SeededState, &Pad)) {
        let state = Arc::clone(state);
        let pad = Pad(Atomic64::new(cx, "pad", 0), self.pad);
        cx.spawn(name, move |cx| body(cx, &state, &pad));
    }

    /// A task that holds the first lock while it takes the second.
    fn nested(&self, cx: &Cx<'_>, state: &Arc<SeededState>, name: &str, first: usize, second: usize) {
        let state = Arc::clone(state);
        let pad = Pad(Atomic64::new(cx, "pad", 0), self.pad);
        cx.spawn(name, move |cx| {
            pad.work(cx);
            let outer = state.locks[first].lock(cx);
            let inner = state.locks[second].lock(cx);
            drop((inner, outer));
            pad.work(cx);
        });
    }
}

fn zap(cx: &Cx<'_>, state: &SeededState, pad: &Pad) {
    let [exists, mapped, _] = &state.words;
    exists.store(cx, 0);
    // Entry by entry.
    pad.work(cx);
    mapped.store(cx, 0);
}

fn map(cx: &Cx<'_>, state: &SeededState) {
    let [exists, mapped, _] = &state.words;
    if exists.load(cx) == 1 {
        mapped.store(cx, 1);
    }
}

impl Program for SeededBug {
    type State = Arc<SeededState>;

    fn setup(&self, cx: &Cx<'_>) -> Self::State {
        let exists = u64::from(matches!(self.bug, Bug::RetryOutsideLock | Bug::LongWindow | Bug::LongWindowAfterBegin));
        let state = Arc::new(SeededState {
            locks: ["a", "b", "c"].map(|class| Mutex::new(cx, class, 0)),
            words: [("x", exists), ("y", 0), ("z", 0)].map(|(class, value)| Atomic64::new(cx, class, value)),
            failed: AtomicBool::new(false),
        });
        match self.bug {
            Bug::UseBeforeInit => {
                self.task(cx, &state, "init", |cx, state, pad| {
                    pad.work(cx);
                    state.words[0].store(cx, 1);
                    pad.work(cx);
                });
                self.task(cx, &state, "user", |cx, state, pad| {
                    pad.work(cx);
                    if state.words[0].load(cx) == 0 {
                        state.failed.store(true, Ordering::Relaxed);
                    }
                    pad.work(cx);
                });
            }
            Bug::RetryOutsideLock => {
                self.task(cx, &state, "fault", |cx, state, pad| {
                    let [page, seq, _] = &state.words;
                    pad.work(cx);
                    let before = seq.load(cx);
                    let page = page.load(cx);
                    if seq.load(cx) == before {
                        *state.locks[0].lock(cx) = page;
                    }
                    pad.work(cx);
                });
                self.task(cx, &state, "punch", |cx, state, pad| {
                    let [page, seq, _] = &state.words;
                    pad.work(cx);
                    seq.fetch_add(cx, 1);
                    page.store(cx, 0);
                    *state.locks[0].lock(cx) = 0;
                    pad.work(cx);
                });
            }
            Bug::AbBa => {
                self.nested(cx, &state, "first", 0, 1);
                self.nested(cx, &state, "second", 1, 0);
            }
            Bug::ThreeLockCycle => {
                self.nested(cx, &state, "first", 0, 1);
                self.nested(cx, &state, "second", 1, 2);
                self.nested(cx, &state, "third", 2, 0);
            }
            Bug::TransitionalAttribute => {
                self.task(cx, &state, "convert", |cx, state, pad| {
                    pad.work(cx);
                    state.words[0].store(cx, 1);
                    state.words[0].store(cx, 2);
                    pad.work(cx);
                });
                self.task(cx, &state, "fault", |cx, state, pad| {
                    pad.work(cx);
                    let seen = [state.words[0].load(cx), state.words[0].load(cx)];
                    if seen == [1, 2] {
                        state.failed.store(true, Ordering::Relaxed);
                    }
                    pad.work(cx);
                });
            }
            Bug::LongWindow => {
                self.task(cx, &state, "fault", |cx, state, _| map(cx, state));
                self.task(cx, &state, "zap", zap);
            }
            Bug::LongWindowAfterBegin => {
                self.task(cx, &state, "fault", |cx, state, _| {
                    state.words[2].store(cx, 1);
                    map(cx, state);
                });
                self.task(cx, &state, "zap", |cx, state, pad| {
                    let is_first = state.words[2].load(cx) == 0;
                    zap(cx, state, pad);
                    if is_first {
                        state.words[2].store(cx, 2);
                    }
                });
            }
        }
        for _ in 0..self.noise {
            self.task(cx, &state, "noise", |cx, _, pad| {
                pad.work(cx);
                pad.work(cx);
            });
        }
        state
    }

    fn judge(&self, _sim: &mut Sim, state: Self::State, verdict: &Verdict) -> Judgement {
        let word = |n: usize| state.words[n].peek();
        let is_stale = match self.bug {
            Bug::RetryOutsideLock => word(0) == 0 && verdict.is_completed() && state.locks[0].peek(|spte| *spte == 1),
            Bug::LongWindow => word(0) == 0 && word(1) == 1,
            Bug::LongWindowAfterBegin => word(0) == 0 && word(1) == 1 && word(2) == 2,
            _ => false,
        };
        let failed = state.failed.load(Ordering::Relaxed);
        let problem = match (is_stale, failed) {
            (true, _) => Some("what is gone is mapped".to_string()),
            (_, true) => Some("what must not be seen was seen".to_string()),
            _ => None,
        };
        judgement(verdict, String::new(), problem)
    }
}
