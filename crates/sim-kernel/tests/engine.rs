//! Behaviour of the engine and the primitives, simulated and native.

use sim_kernel::Cx;
use sim_kernel::sched::{
    Chooser, Config, Divergence, LogLevel, Op, Random, Ready, Replay, RoundRobin, RunToCompletion, Schedule, Sim,
    Strategy, TaskId, Verdict, run_native,
};
use sim_kernel::sync::{Atomic64, Mutex, RefCount, RwLock, Srcu, WaitQueue, call_rcu, rcu_read_lock, synchronize_rcu};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn random() -> Sim {
    Sim::new(Chooser::Random(Random::new()))
}

fn seeded(seed: u64) -> Config {
    Config { seed, steps_max: 100_000, log: LogLevel::Full, ..Config::default() }
}

/// Two tasks that add to a word without a lock: both orders of the lost update exist.
fn racy(cx: &Cx<'_>) -> Arc<Atomic64> {
    let word = Arc::new(Atomic64::new(cx, "word", 0));
    for name in ["a", "b"] {
        let word = Arc::clone(&word);
        cx.spawn(name, move |cx| {
            let old = word.load(cx);
            word.store(cx, old + 1);
        });
    }
    word
}

#[test]
fn random_schedules_reach_every_outcome_of_a_race() {
    let mut sim = random();
    let outcomes: BTreeSet<u64> = (0..200)
        .map(|seed| {
            let (word, verdict) = sim.execute(&seeded(seed), racy);
            assert_eq!(verdict, Verdict::Completed);
            word.peek()
        })
        .collect();
    assert_eq!(outcomes, BTreeSet::from([1, 2]));
}

#[test]
fn a_lock_makes_the_lost_update_impossible() {
    let mut sim = random();
    for seed in 0..500 {
        let (counter, verdict) = sim.execute(&seeded(seed), |cx| {
            let counter = Arc::new((Mutex::new(cx, "lock", ()), Atomic64::new(cx, "word", 0)));
            for name in ["a", "b", "c"] {
                let counter = Arc::clone(&counter);
                cx.spawn(name, move |cx| {
                    let _guard = counter.0.lock(cx);
                    let old = counter.1.load(cx);
                    counter.1.store(cx, old + 1);
                });
            }
            counter
        });
        assert_eq!(verdict, Verdict::Completed);
        assert_eq!(counter.1.peek(), 3, "seed {seed}");
    }
}

#[test]
fn same_seed_same_bytes_and_other_seeds_differ() {
    let mut digests = BTreeSet::new();
    for seed in 0..20 {
        let logs: Vec<_> = (0..2)
            .map(|_| {
                let mut sim = random();
                sim.execute(&seeded(seed), racy);
                (sim.log_json(), sim.log_digest().expect("logging is on"), sim.schedule())
            })
            .collect();
        assert_eq!(logs[0], logs[1]);
        digests.insert(logs[0].1);
    }
    assert!(digests.len() > 1, "twenty seeds gave one schedule");
}

#[test]
fn a_printed_schedule_replays_to_the_same_log() {
    let mut sim = random();
    for seed in 0..50 {
        let (word, _) = sim.execute(&seeded(seed), racy);
        let text = sim.schedule().to_string();
        let expected = (word.peek(), sim.log_digest());
        let schedule: Schedule = text.parse().expect("a printed schedule parses");
        let mut replay = Sim::new(Chooser::Replay(Replay::new(schedule)));
        let (word, verdict) = replay.execute(&seeded(0), racy);
        assert_eq!(verdict, Verdict::Completed);
        assert_eq!((word.peek(), replay.log_digest()), expected);
    }
}

#[test]
fn replaying_another_program_is_reported_as_divergence() {
    let mut sim = random();
    sim.execute(&seeded(1), racy);
    let mut decisions = sim.schedule().decisions().to_vec();
    decisions.truncate(1);
    let mut replay = Sim::new(Chooser::Replay(Replay::new(Schedule::new(decisions))));
    let (_, verdict) = replay.execute(&seeded(0), racy);
    assert!(matches!(verdict, Verdict::Diverged(_)), "{verdict}");
}

#[test]
fn lock_order_inversion_is_found_and_says_who_waits_for_whom() {
    let build = |cx: &Cx<'_>| {
        let locks = Arc::new((Mutex::new(cx, "slots_lock", ()), Mutex::new(cx, "invalidate_lock", ())));
        let other = Arc::clone(&locks);
        cx.spawn("punch", move |cx| {
            let _a = locks.0.lock(cx);
            let _b = locks.1.lock(cx);
        });
        cx.spawn("release", move |cx| {
            let _b = other.1.lock(cx);
            let _a = other.0.lock(cx);
        });
    };
    let mut sim = random();
    let deadlocks: Vec<String> = (0..100)
        .filter_map(|seed| match sim.execute(&seeded(seed), build).1 {
            Verdict::Deadlock(d) => Some(d.to_string()),
            Verdict::Completed => None,
            other => panic!("{other}"),
        })
        .collect();
    assert!(!deadlocks.is_empty() && deadlocks.len() < 100);
    let text = &deadlocks[0];
    assert!(text.contains("punch waits to lock invalidate_lock#0"), "{text}");
    assert!(text.contains("held by release since"), "{text}");
    assert!(text.contains("release waits to lock slots_lock#0"), "{text}");
    assert!(text.contains("holds slots_lock#0"), "{text}");
    // The machine is usable after an abandoned execution.
    assert_eq!(sim.execute(&seeded(3), racy).1, Verdict::Completed);
}

#[test]
fn a_failed_assertion_names_its_task_and_the_machine_survives() {
    let mut sim = random();
    let (_, verdict) = sim.execute(&seeded(0), |cx| {
        let lock = Arc::new(Mutex::new(cx, "lock", ()));
        let other = Arc::clone(&lock);
        cx.spawn("holder", move |cx| {
            let _guard = lock.lock(cx);
            cx.cond_resched();
            panic!("the model is broken");
        });
        cx.spawn("waiter", move |cx| drop(other.lock(cx)));
    });
    assert_eq!(verdict, Verdict::Panicked { task: "holder".into(), message: "the model is broken".into() });
    assert_eq!(sim.execute(&seeded(3), racy).1, Verdict::Completed);
}

#[test]
fn a_task_that_ends_with_a_lock_held_is_a_bug() {
    let mut sim = random();
    let (_, verdict) = sim.execute(&seeded(0), |cx| {
        let lock = Arc::new(Mutex::new(cx, "lock", ()));
        cx.spawn("leaker", move |cx| std::mem::forget(lock.lock(cx)));
    });
    assert!(verdict.to_string().contains("ends with lock#0 held"), "{verdict}");
}

#[test]
fn a_livelock_ends_at_the_step_limit() {
    let mut sim = random();
    let config = Config { steps_max: 1000, ..seeded(0) };
    let (_, verdict) = sim.execute(&config, |cx| {
        let word = Arc::new(Atomic64::new(cx, "word", 0));
        cx.spawn("spinner", move |cx| while word.load(cx) == 0 {});
    });
    assert_eq!(verdict, Verdict::StepLimit { steps: 1000 });
}

#[test]
fn run_to_completion_never_preempts_and_round_robin_always_does() {
    let order = |chooser| {
        let mut sim = Sim::new(chooser);
        let (seen, verdict) = sim.execute(&seeded(0), |cx| {
            let seen = Arc::new(Mutex::new(cx, "seen", Vec::new()));
            for name in ["a", "b"] {
                let seen = Arc::clone(&seen);
                cx.spawn(name, move |cx| {
                    for _ in 0..3 {
                        cx.cond_resched();
                        seen.lock(cx).push(name);
                    }
                });
            }
            seen
        });
        assert_eq!(verdict, Verdict::Completed);
        seen.peek(|s| s.concat())
    };
    assert_eq!(order(Chooser::RunToCompletion(RunToCompletion)), "aaabbb");
    assert_eq!(order(Chooser::RoundRobin(RoundRobin)), "ababab");
}

#[test]
fn readers_share_and_writers_exclude() {
    let mut sim = random();
    let mut together = 0;
    for seed in 0..300 {
        let (most, verdict) = sim.execute(&seeded(seed), |cx| {
            let lock = Arc::new(RwLock::new(cx, "mmu_lock", ()));
            let inside = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
            for name in ["r1", "r2"] {
                let (lock, inside) = (Arc::clone(&lock), Arc::clone(&inside));
                cx.spawn(name, move |cx| {
                    let _guard = lock.read(cx);
                    let n = inside.0.fetch_add(1, Ordering::Relaxed) + 1;
                    inside.1.fetch_max(n, Ordering::Relaxed);
                    cx.cond_resched();
                    inside.0.fetch_sub(1, Ordering::Relaxed);
                });
            }
            let seen = Arc::clone(&inside);
            cx.spawn("w", move |cx| {
                let mut guard = lock.write(cx);
                assert_eq!(seen.0.load(Ordering::Relaxed), 0, "a writer beside a reader");
                cx.cond_resched();
                assert_eq!(seen.0.load(Ordering::Relaxed), 0, "a reader beside a writer");
                if guard.needs_break() {
                    guard.relax();
                }
            });
            inside
        });
        assert_eq!(verdict, Verdict::Completed, "seed {seed}");
        together = together.max(most.1.load(Ordering::Relaxed));
    }
    assert_eq!(together, 2, "readers never shared the lock");
}

#[test]
fn srcu_synchronize_waits_for_earlier_readers_only() {
    let mut sim = random();
    let mut waited = 0;
    for seed in 0..300 {
        let (finished_inside, verdict) = sim.execute(&seeded(seed), |cx| {
            let srcu = Arc::new(Srcu::new(cx, "srcu"));
            let open = Arc::new(AtomicBool::new(false));
            let seen_open = Arc::new(AtomicBool::new(false));
            let (s, o, seen) = (Arc::clone(&srcu), Arc::clone(&open), Arc::clone(&seen_open));
            cx.spawn("reader", move |cx| {
                let _section = s.read(cx);
                o.store(true, Ordering::Relaxed);
                cx.cond_resched();
                cx.cond_resched();
                o.store(false, Ordering::Relaxed);
            });
            cx.spawn("writer", move |cx| {
                cx.cond_resched();
                let was_open = open.load(Ordering::Relaxed);
                srcu.synchronize(cx);
                if was_open {
                    seen.store(true, Ordering::Relaxed);
                    assert!(!open.load(Ordering::Relaxed), "the grace period ended inside an earlier section");
                }
            });
            seen_open
        });
        assert_eq!(verdict, Verdict::Completed, "seed {seed}");
        waited += u32::from(finished_inside.load(Ordering::Relaxed));
    }
    assert!(waited > 10, "the interesting order hardly ever happened: {waited}");
}

#[test]
fn rcu_callbacks_wait_for_open_sections() {
    let mut sim = random();
    for seed in 0..200 {
        let (_, verdict) = sim.execute(&seeded(seed), |cx| {
            let freed = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&freed);
            cx.spawn("reader", move |cx| {
                let section = rcu_read_lock(cx);
                let before = seen.load(Ordering::Relaxed);
                cx.cond_resched();
                assert_eq!(seen.load(Ordering::Relaxed), before, "freed under a reader");
                drop(section);
            });
            cx.spawn("writer", move |cx| {
                cx.cond_resched();
                let flag = Arc::clone(&freed);
                call_rcu(cx, move || flag.store(true, Ordering::Relaxed));
                synchronize_rcu(cx);
                assert!(freed.load(Ordering::Relaxed), "the grace period ended before the callback");
            });
        });
        assert_eq!(verdict, Verdict::Completed, "seed {seed}");
    }
}

#[test]
fn a_wait_queue_never_loses_a_wake_up() {
    let mut sim = random();
    for seed in 0..300 {
        let (_, verdict) = sim.execute(&seeded(seed), |cx| {
            let queue = Arc::new((WaitQueue::new(cx, "queue"), Atomic64::new(cx, "ready", 0)));
            let other = Arc::clone(&queue);
            cx.spawn("sleeper", move |cx| queue.0.wait_event(cx, || queue.1.peek() == 2));
            cx.spawn("waker", move |cx| {
                for _ in 0..2 {
                    other.1.fetch_add(cx, 1);
                    other.0.wake_up_all(cx);
                }
            });
        });
        assert_eq!(verdict, Verdict::Completed, "seed {seed}");
    }
}

#[test]
fn get_if_live_never_revives() {
    let mut sim = random();
    let mut outcomes = BTreeSet::new();
    for seed in 0..100 {
        let (got, verdict) = sim.execute(&seeded(seed), |cx| {
            let count = Arc::new(RefCount::new(cx, "count", 1));
            let got = Arc::new(AtomicBool::new(false));
            let (c, g) = (Arc::clone(&count), Arc::clone(&got));
            cx.spawn("getter", move |cx| {
                if c.get_if_live(cx) {
                    g.store(true, Ordering::Relaxed);
                    let _ = c.put(cx);
                }
            });
            cx.spawn("putter", move |cx| {
                let _ = count.put(cx);
            });
            got
        });
        assert_eq!(verdict, Verdict::Completed);
        outcomes.insert(got.load(Ordering::Relaxed));
    }
    assert_eq!(outcomes.len(), 2);
}

#[test]
fn task_work_runs_at_the_end_of_the_task_and_outside_locks() {
    let mut sim = random();
    let (log, verdict) = sim.execute(&seeded(0), |cx| {
        let log = Arc::new(Mutex::new(cx, "log", Vec::new()));
        let l = Arc::clone(&log);
        cx.spawn("task", move |cx| {
            let guard = l.lock(cx);
            let inner = Arc::clone(&l);
            cx.task_work_add(Box::new(move |cx| inner.lock(cx).push("work")));
            drop(guard);
            l.lock(cx).push("body");
        });
        log
    });
    assert_eq!(verdict, Verdict::Completed);
    assert_eq!(log.peek(|l| l.clone()), ["body", "work"]);
}

#[test]
fn the_same_code_runs_on_threads() {
    let total = run_native(|cx| {
        let shared = Arc::new((Mutex::new(cx, "lock", 0u64), RwLock::new(cx, "rw", 0u64), Srcu::new(cx, "srcu")));
        for name in ["a", "b", "c", "d"] {
            let shared = Arc::clone(&shared);
            cx.spawn(name, move |cx| {
                for _ in 0..1000 {
                    let _section = shared.2.read(cx);
                    *shared.0.lock(cx) += 1;
                    *shared.1.write(cx) += 1;
                    let section = rcu_read_lock(cx);
                    assert!(*shared.1.read(cx) > 0);
                    drop(section);
                }
                shared.2.synchronize(cx);
            });
        }
        shared
    });
    run_native(|cx| assert_eq!((*total.0.lock(cx), *total.1.read(cx)), (4000, 4000)));
}

#[test]
#[should_panic(expected = "deadlock: the only task waits")]
fn a_lone_task_that_waits_for_itself_fails_with_a_message() {
    Sim::sequential().solo(|cx| {
        let lock = Mutex::new(cx, "lock", ());
        let _first = lock.lock(cx);
        let _second = lock.lock(cx);
    });
}

#[test]
fn malformed_schedules_are_refused() {
    for text in ["", "gmem2:aa", "gmem1:1", "gmem1:aaaa", "gmem1:ie", "gmem1:777777777777777777777777"] {
        let parsed = text.parse::<Schedule>();
        assert!(parsed.is_err(), "{text:?} gave {parsed:?}");
    }
}

/// Always the last task; tells what it was shown.
struct Last(Arc<AtomicU64>);

impl Strategy for Last {
    fn begin(&mut self, _seed: u64) {}

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        Ok(ready.runnable.nth(ready.runnable.len() - 1))
    }

    fn executed(&mut self, _task: TaskId, _op: &Op) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_strategy_of_ones_own_picks_and_is_told_what_happened() {
    let executed = Arc::new(AtomicU64::new(0));
    let mut sim = Sim::new(Chooser::Custom(Box::new(Last(Arc::clone(&executed)))));
    let (word, verdict) = sim.execute(&seeded(0), racy);
    assert_eq!(verdict, Verdict::Completed);
    assert_eq!(word.peek(), 2, "one task after the other");
    assert_eq!(executed.load(Ordering::Relaxed), 4, "two loads and two stores");
}

/// Does something when it is dropped.
struct Finally<F: FnMut()>(F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Of a task that fails, destructors run that touch what others use. Nobody runs meanwhile, so nobody fails over what he sees there: the failure that is
/// reported is the first, under every schedule, and a second one does not end the program.
#[test]
fn the_first_failure_is_the_one_that_is_reported() {
    for seed in 0..200 {
        let mut sim = Sim::new(Chooser::Random(Random::new()));
        let (_, verdict) = sim.execute(&Config { seed, ..Config::default() }, |cx| {
            let word = Arc::new(Atomic64::new(cx, "word", 0));
            let lock = Arc::new(Mutex::new(cx, "lock", ()));
            let (mine, other) = (Arc::clone(&word), Arc::clone(&lock));
            cx.spawn("fails", move |cx| {
                let _finally = Finally(|| {
                    mine.store(cx, 1);
                    cx.cond_resched();
                });
                let _held = other.lock(cx);
                cx.cond_resched();
                panic!("INV-1: the first failure");
            });
            cx.spawn("looks", move |cx| {
                for _ in 0..6 {
                    assert_eq!(word.load(cx), 0, "INV-2: what nobody stored");
                    drop(lock.lock(cx));
                }
            });
        });
        let message = "INV-1: the first failure".to_string();
        assert_eq!(verdict, Verdict::Panicked { task: "fails".into(), message }, "seed {seed}");
    }
}
