//! The small correct programs whose speed and whose whole spaces are compared.

use super::platform::Platform;
use std::sync::Arc;

/// A program of a few tasks, written once for all engines.
pub(crate) trait Model: Copy + Send + Sync + 'static {
    /// What a table calls it.
    fn name(&self) -> String;
    /// Operations in one execution that an engine may schedule: loads, stores, acquisitions, releases, starts and ends of tasks. The same
    /// number for every engine, whichever of them it makes scheduling points.
    fn visible(&self) -> u64;
    /// Spawns the tasks; what is returned checks the end.
    fn start<P: Platform>(self, cx: &P::Cx<'_>, tasks: &mut Vec<P::Join>) -> impl FnOnce() + use<Self, P>;
}

/// M1: tasks that increment a counter under a lock.
#[derive(Clone, Copy)]
pub(crate) struct MutexCounter {
    pub(crate) tasks: u64,
    pub(crate) increments: u64,
}

/// A value that is only touched under a lock of the engine, which therefore needs no scheduling of its own.
struct Plain(std::sync::atomic::AtomicU64);

impl Plain {
    fn new(value: u64) -> Plain {
        Plain(value.into())
    }
    fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
    fn set(&self, value: u64) {
        self.0.store(value, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Model for MutexCounter {
    fn name(&self) -> String {
        format!("M1 mutex counter {}x{}", self.tasks, self.increments)
    }
    fn visible(&self) -> u64 {
        self.tasks * (2 * self.increments + 2)
    }
    fn start<P: Platform>(self, cx: &P::Cx<'_>, tasks: &mut Vec<P::Join>) -> impl FnOnce() + use<P> {
        let shared = Arc::new((P::lock_new(cx), Plain::new(0)));
        for _ in 0..self.tasks {
            let shared = Arc::clone(&shared);
            tasks.push(P::spawn(cx, move |cx| {
                for _ in 0..self.increments {
                    P::locked(cx, &shared.0, || shared.1.set(shared.1.get() + 1));
                }
            }));
        }
        move || assert_eq!(shared.1.get(), self.tasks * self.increments, "an increment was lost")
    }
}

/// M2: one task writes data and raises a flag, others read the flag and then the data.
#[derive(Clone, Copy)]
pub(crate) struct FlagRace {
    pub(crate) readers: u64,
}

impl Model for FlagRace {
    fn name(&self) -> String {
        format!("M2 flag race 1+{}", self.readers)
    }
    fn visible(&self) -> u64 {
        (1 + self.readers) * 4
    }
    fn start<P: Platform>(self, cx: &P::Cx<'_>, tasks: &mut Vec<P::Join>) -> impl FnOnce() + use<P> {
        let shared = Arc::new([P::word_new(cx, 0), P::word_new(cx, 0)]);
        let writer = Arc::clone(&shared);
        tasks.push(P::spawn(cx, move |cx| {
            let [data, flag] = &*writer;
            P::store(cx, data, 42);
            P::store(cx, flag, 1);
        }));
        for _ in 0..self.readers {
            let reader = Arc::clone(&shared);
            tasks.push(P::spawn(cx, move |cx| {
                let [data, flag] = &*reader;
                let (raised, read) = (P::load(cx, flag), P::load(cx, data));
                assert!(raised == 0 || read == 42, "the flag was seen before the data");
            }));
        }
        move || assert_eq!(P::peek(&shared[0]), 42)
    }
}

/// M3: faults that look a page up and map it under `mmu_lock` unless an invalidation came in between (`mmu_invalidate_retry`), against
/// punches that begin an invalidation, take the page away and end the invalidation. A fault that must retry has ended.
#[derive(Clone, Copy)]
pub(crate) struct SequenceRetry {
    pub(crate) faults: u64,
    pub(crate) punches: u64,
}

/// The state of M3. Under the lock: the mapping and the number of invalidations in progress.
struct Retry<P: Platform> {
    mmu_lock: P::Lock,
    seq: P::Word,
    page: P::Word,
    spte: Plain,
    in_progress: Plain,
}

impl Model for SequenceRetry {
    fn name(&self) -> String {
        format!("M3 sequence retry {}x{}", self.faults, self.punches)
    }
    fn visible(&self) -> u64 {
        self.faults * 5 + self.punches * 6 + 4
    }
    fn start<P: Platform>(self, cx: &P::Cx<'_>, tasks: &mut Vec<P::Join>) -> impl FnOnce() + use<P> {
        let shared: Arc<Retry<P>> = Arc::new(Retry {
            mmu_lock: P::lock_new(cx),
            seq: P::word_new(cx, 0),
            page: P::word_new(cx, 1),
            spte: Plain::new(0),
            in_progress: Plain::new(0),
        });
        let vcpu = Arc::clone(&shared);
        tasks.push(P::spawn(cx, move |cx| {
            for _ in 0..self.faults {
                let seq = P::load(cx, &vcpu.seq);
                let page = P::load(cx, &vcpu.page);
                P::locked(cx, &vcpu.mmu_lock, || {
                    if page != 0 && vcpu.in_progress.get() == 0 && P::load(cx, &vcpu.seq) == seq {
                        vcpu.spte.set(page);
                    }
                });
            }
        }));
        let vmm = Arc::clone(&shared);
        tasks.push(P::spawn(cx, move |cx| {
            for punch in 1..=self.punches {
                P::locked(cx, &vmm.mmu_lock, || {
                    vmm.in_progress.set(1);
                    vmm.spte.set(0);
                });
                P::store(cx, &vmm.page, 0);
                P::locked(cx, &vmm.mmu_lock, || {
                    P::store(cx, &vmm.seq, punch);
                    vmm.in_progress.set(0);
                });
            }
        }));
        move || assert_eq!(shared.spte.get(), 0, "mapped, and the page is gone")
    }
}
