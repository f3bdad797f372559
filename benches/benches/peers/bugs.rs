//! Small programs with a seeded bug, by the number of orderings that it takes (its depth) and the length of the window.
//!
//! `pad` irrelevant operations stand before and after the window in each task, on words of its own; noise tasks do nothing else.

use super::models::Model;
use super::platform::Platform;
use std::sync::Arc;

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Depth 1: a word is read before somebody initialised it.
    UseBeforeInit,
    /// Depth 2: a fault compares the sequence before it takes `mmu_lock`, and a punch comes in between.
    RetryCheckOutsideLock,
    /// Depth 2: two locks in two orders.
    AbBa,
    /// Depth 3: three locks in a circle.
    ThreeLockCycle,
    /// Depth 3: of an attribute that goes from 0 by 1 to 2, a fault sees first 0 and then 1.
    TransitionalAttribute,
    /// Depth 2: a zap of `window` steps fits between the check and the map.
    LongWindow2 { window: u64 },
    /// Depth 3: as before, and the map comes before the state that follows.
    LongWindow3 { window: u64 },
}

/// A program with a bug.
#[derive(Clone, Copy)]
pub(crate) struct Bug {
    pub(crate) kind: Kind,
    pub(crate) pad: u64,
    pub(crate) noise: u64,
}

/// The rows of the table.
pub(crate) fn all() -> Vec<Bug> {
    let bug = |kind, pad, noise| Bug { kind, pad, noise };
    let long = |kind: fn(u64) -> Kind, window, noise| bug(kind(window), 0, noise);
    let long2 = |window| Kind::LongWindow2 { window };
    let long3 = |window| Kind::LongWindow3 { window };
    vec![
        bug(Kind::UseBeforeInit, 10, 0),
        bug(Kind::RetryCheckOutsideLock, 0, 0),
        bug(Kind::RetryCheckOutsideLock, 10, 0),
        bug(Kind::RetryCheckOutsideLock, 50, 0),
        bug(Kind::RetryCheckOutsideLock, 10, 2),
        bug(Kind::AbBa, 10, 0),
        bug(Kind::AbBa, 50, 0),
        bug(Kind::ThreeLockCycle, 0, 0),
        bug(Kind::ThreeLockCycle, 50, 0),
        bug(Kind::TransitionalAttribute, 0, 0),
        bug(Kind::TransitionalAttribute, 10, 0),
        bug(Kind::TransitionalAttribute, 50, 0),
        bug(Kind::TransitionalAttribute, 10, 2),
        long(long2, 5, 0),
        long(long2, 10, 0),
        long(long2, 20, 0),
        long(long2, 20, 2),
        long(long3, 5, 0),
        long(long3, 10, 0),
        long(long3, 20, 0),
    ]
}

impl Bug {
    /// Spawns a task that pads, does `body`, and pads again.
    fn task<P: Platform>(
        self,
        cx: &P::Cx<'_>,
        tasks: &mut Vec<P::Join>,
        body: impl FnOnce(&P::Cx<'_>) + Send + 'static,
    ) {
        let own = P::word_new(cx, 0);
        tasks.push(P::spawn(cx, move |cx| {
            pad::<P>(cx, &own, self.pad);
            body(cx);
            pad::<P>(cx, &own, self.pad);
        }));
    }
}

fn pad<P: Platform>(cx: &P::Cx<'_>, own: &P::Word, operations: u64) {
    for n in 0..operations {
        P::store(cx, own, n);
    }
}

impl Model for Bug {
    fn name(&self) -> String {
        let (what, window) = match self.kind {
            Kind::UseBeforeInit => ("d1 use before init", None),
            Kind::RetryCheckOutsideLock => ("d2 retry check outside mmu_lock", None),
            Kind::AbBa => ("d2 AB-BA deadlock", None),
            Kind::ThreeLockCycle => ("d3 three-lock cycle", None),
            Kind::TransitionalAttribute => ("d3 transitional attribute", None),
            Kind::LongWindow2 { window } => ("d2 long window", Some(window)),
            Kind::LongWindow3 { window } => ("d3 long window", Some(window)),
        };
        let size = window.map_or_else(|| format!("pad {}", self.pad), |window| format!("p = {window}"));
        let noise = if self.noise > 0 { format!(" + {} noise tasks", self.noise) } else { String::new() };
        format!("{what}, {size}{noise}")
    }

    fn visible(&self) -> u64 {
        0
    }

    fn start<P: Platform>(self, cx: &P::Cx<'_>, tasks: &mut Vec<P::Join>) -> impl FnOnce() + use<P> {
        for _ in 0..self.noise {
            let own = P::word_new(cx, 0);
            tasks.push(P::spawn(cx, move |cx| pad::<P>(cx, &own, 20)));
        }
        let words: Arc<[P::Word; 3]> = Arc::new([0, 0, 0].map(|value| P::word_new(cx, value)));
        let locks: Arc<[P::Lock; 3]> = Arc::new([(), (), ()].map(|()| P::lock_new(cx)));
        let (a, b) = (Arc::clone(&words), Arc::clone(&words));
        match self.kind {
            Kind::UseBeforeInit => {
                self.task::<P>(cx, tasks, move |cx| P::store(cx, &a[0], 1));
                self.task::<P>(cx, tasks, move |cx| {
                    assert_ne!(P::load(cx, &b[0]), 0, "used before it was initialised")
                });
            }
            Kind::RetryCheckOutsideLock => {
                // Words: the sequence, whether the page is gone, the mapping.
                let (lock_a, lock_b) = (Arc::clone(&locks), Arc::clone(&locks));
                self.task::<P>(cx, tasks, move |cx| {
                    let seq = P::load(cx, &a[0]);
                    let gone = P::load(cx, &a[1]);
                    if gone == 0 && P::load(cx, &a[0]) == seq {
                        P::locked(cx, &lock_a[0], || P::store(cx, &a[2], 1));
                    }
                });
                self.task::<P>(cx, tasks, move |cx| {
                    P::store(cx, &b[1], 1);
                    P::locked(cx, &lock_b[0], || {
                        P::store(cx, &b[0], 1);
                        P::store(cx, &b[2], 0);
                    });
                });
            }
            Kind::AbBa | Kind::ThreeLockCycle => {
                let n = if self.kind == Kind::AbBa { 2 } else { 3 };
                for first in 0..n {
                    let locks = Arc::clone(&locks);
                    self.task::<P>(cx, tasks, move |cx| {
                        P::locked(cx, &locks[first], || P::locked(cx, &locks[(first + 1) % n], || ()));
                    });
                }
            }
            Kind::TransitionalAttribute => {
                self.task::<P>(cx, tasks, move |cx| {
                    P::store(cx, &a[0], 1);
                    P::store(cx, &a[0], 2);
                });
                self.task::<P>(cx, tasks, move |cx| {
                    let seen = (P::load(cx, &b[0]), P::load(cx, &b[0]));
                    assert_ne!(seen, (0, 1), "the attribute was seen half way");
                });
            }
            Kind::LongWindow2 { window } | Kind::LongWindow3 { window } => {
                let goes_on = matches!(self.kind, Kind::LongWindow3 { .. });
                let zapped = P::word_new(cx, 0);
                self.task::<P>(cx, tasks, move |cx| {
                    P::store(cx, &a[0], 1);
                    pad::<P>(cx, &zapped, window);
                    P::store(cx, &a[1], 1);
                    if goes_on {
                        P::store(cx, &a[1], 2);
                    }
                });
                self.task::<P>(cx, tasks, move |cx| {
                    let seen = (P::load(cx, &b[0]), P::load(cx, &b[1]));
                    assert_ne!(seen, (0, 1), "mapped after a zap that began after the check");
                });
            }
        }
        move || {
            if self.kind == Kind::RetryCheckOutsideLock {
                assert!(P::peek(&words[1]) == 0 || P::peek(&words[2]) == 0, "mapped, and the page is gone");
            }
        }
    }
}
