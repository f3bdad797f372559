//! Who watches an execution: observers, the order of locks, and the judge of livelocks.

use sim_kernel::Cx;
use sim_kernel::sched::{Access, Chooser, Config, Observation, Random, RoundRobin, Sim, TaskId, Verdict, fair_tail};
use sim_kernel::sync::{Atomic64, LockMap, Mutex, RwLock, Srcu, WaitQueue, rcu_read_lock};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// Runs two tasks, `a` then `b`, without preemption.
fn run(sim: &mut Sim, a: impl FnOnce(&Cx<'_>) + Send + 'static, b: impl FnOnce(&Cx<'_>) + Send + 'static) {
    let (_, verdict) = sim.execute(&Config::default(), |cx| {
        cx.spawn("a", a);
        cx.spawn("b", b);
    });
    assert_eq!(verdict, Verdict::Completed);
}

fn circle(sim: &Sim) -> Option<Vec<(&'static str, &'static str)>> {
    let static_name = |name: &std::borrow::Cow<'static, str>| match name {
        std::borrow::Cow::Borrowed(name) => *name,
        std::borrow::Cow::Owned(name) => panic!("{name} comes from this program"),
    };
    let circle = sim.lock_order().circle(|_| true)?;
    Some(circle.iter().map(|edge| (static_name(&edge.from), static_name(&edge.to))).collect())
}

/// Task, what it does next, locks that are held, operations that are done.
type Step = (u8, Option<Access>, usize, u64);

#[test]
fn an_observer_sees_every_step_and_the_locks_of_the_moment() {
    let seen: Rc<RefCell<Vec<Step>>> = Rc::default();
    let mut sim = Sim::new(Chooser::RoundRobin(RoundRobin));
    let watch = Rc::clone(&seen);
    let (_, verdict) = sim.execute(&Config::default(), |cx| {
        let lock = Arc::new(Mutex::new(cx, "lock", 0));
        let data = Arc::clone(&lock);
        cx.observe(move |o: &Observation<'_>| {
            let held = o.held();
            assert!(held.iter().all(|lock| lock.class == "lock" && lock.task == TaskId(1)));
            assert_eq!(o.is_held("lock"), !held.is_empty());
            assert_eq!(data.try_peek(|_| ()).is_none(), o.is_held("lock"));
            watch.borrow_mut().push((o.task().0, o.next().map(|op| op.access), held.len(), o.operations()));
        });
        cx.spawn("a", move |cx| {
            let guard = lock.lock(cx);
            cx.cond_resched();
            drop(guard);
            cx.operation_done();
        });
        cx.spawn("b", |cx| cx.cond_resched());
    });
    assert_eq!(verdict, Verdict::Completed);
    let a_steps: Vec<_> = seen.borrow().iter().filter(|step| step.0 == 1).copied().collect();
    let expected = [(1, Some(Access::LockExclusive), 0, 0), (1, Some(Access::Yield), 1, 0), (1, None, 0, 1)];
    assert_eq!(a_steps, expected);
    assert_eq!(seen.borrow().len(), 5, "b announces one operation and ends");
    assert_eq!(Rc::strong_count(&seen), 1, "the observer is gone when the tasks are");
}

#[test]
fn a_failing_observer_ends_the_execution_as_its_task_would() {
    let mut sim = Sim::new(Chooser::RoundRobin(RoundRobin));
    let (_, verdict) = sim.execute(&Config::default(), |cx| {
        cx.observe(|o| assert!(o.steps() < 3, "INV-000: too far"));
        cx.spawn("a", |cx| (0..9).for_each(|_| cx.cond_resched()));
    });
    assert_eq!(verdict, Verdict::Panicked { task: "a".into(), message: "INV-000: too far".into() });
    // The next execution has no observer.
    run(&mut sim, |cx| (0..9).for_each(|_| cx.cond_resched()), |_| {});
}

#[test]
fn an_order_that_was_only_seen_one_way_is_no_circle() {
    let mut sim = Sim::sequential();
    for _ in 0..2 {
        sim.solo(|cx| {
            let (a, b) = (Mutex::new(cx, "a", ()), RwLock::new(cx, "b", ()));
            drop((a.lock(cx), b.read(cx)));
            drop((a.lock(cx), b.write(cx)));
            assert_eq!(cx.held_locks(), []);
            let _guard = a.lock(cx);
            assert_eq!(
                cx.held_locks()[0].to_string().split(':').next(),
                Some("a (taken at crates/sim-kernel/tests/watching.rs")
            );
        });
    }
    assert_eq!(sim.lock_order_len(), 1);
    assert_eq!(circle(&sim), None);
}

#[test]
fn circles_through_several_executions_are_found_though_none_deadlocks() {
    let mut sim = Sim::sequential();
    for (first, second) in [("a", "b"), ("b", "c"), ("c", "a")] {
        sim.solo(|cx| {
            let (first, second) = (Mutex::new(cx, first, ()), Mutex::new(cx, second, ()));
            drop((first.lock(cx), second.lock(cx)));
        });
    }
    assert_eq!(circle(&sim), Some(vec![("a", "b"), ("b", "c"), ("c", "a")]));
    let without = sim.lock_order().circle(|edge| edge.from != "c");
    assert_eq!(without, None, "an edge that is known and accepted does not count");
}

#[test]
fn trying_wants_nothing_but_having_counts() {
    let mut sim = Sim::sequential();
    sim.solo(|cx| {
        let (a, b) = (Mutex::new(cx, "a", ()), Mutex::new(cx, "b", ()));
        drop((a.lock(cx), b.lock(cx)));
        drop((b.lock(cx), a.try_lock(cx)));
    });
    assert_eq!(circle(&sim), None);
    sim.solo(|cx| {
        let (a, b) = (Mutex::new(cx, "a", ()), Mutex::new(cx, "b", ()));
        drop((b.try_lock(cx), a.lock(cx)));
    });
    assert!(circle(&sim).is_some());
}

/// A reader wants a lock under which somebody waits for all readers.
#[test]
fn read_sections_are_held_and_grace_periods_want_them() {
    let program = |reversed: bool| {
        let mut sim = Sim::sequential();
        sim.execute(&Config::default(), |cx| {
            let (srcu, lock) = (Arc::new(Srcu::new(cx, "srcu")), Arc::new(Mutex::new(cx, "lock", ())));
            {
                let _guard = lock.lock(cx);
                srcu.synchronize(cx);
                // Entering never waits.
                drop(srcu.read(cx));
            }
            if reversed {
                let _section = srcu.read(cx);
                drop(lock.lock(cx));
            }
        });
        circle(&sim)
    };
    assert_eq!(program(false), None);
    assert_eq!(program(true), Some(vec![("lock", "srcu"), ("srcu", "lock")]));
}

#[test]
fn a_wait_for_the_end_of_something_is_part_of_the_order() {
    let mut sim = Sim::sequential();
    sim.solo(|cx| {
        let (pairs, queue, lock) = (LockMap::new("pairs"), WaitQueue::new(cx, "queue"), Mutex::new(cx, "lock", ()));
        pairs.enter(cx);
        drop(lock.lock(cx));
        pairs.leave(cx);
        assert_eq!(cx.held_locks(), []);
        let _guard = lock.lock(cx);
        queue.wait_event(cx, || true);
        pairs.wait(cx);
    });
    let order = sim.lock_order();
    let pairs: Vec<_> = order.edges().iter().map(|edge| (&*edge.from, &*edge.to)).collect();
    assert_eq!(pairs, [("pairs", "lock"), ("lock", "queue"), ("lock", "pairs")]);
    assert!(order.edges()[0].to_string().contains("pairs (lock_shared at"), "{}", order.edges()[0]);
}

#[test]
fn orders_of_several_engines_add_up() {
    let order = |first: &'static str, second: &'static str| {
        let mut sim = Sim::sequential();
        sim.solo(|cx| {
            let (first, second) = (Mutex::new(cx, first, ()), Mutex::new(cx, second, ()));
            drop((first.lock(cx), second.lock(cx)));
        });
        sim.lock_order()
    };
    let mut sum = order("a", "b");
    sum.merge(&order("a", "b"));
    assert_eq!((sum.edges().len(), sum.circle(|_| true)), (1, None));
    sum.merge(&order("b", "a"));
    assert!(sum.circle(|_| true).is_some());
}

#[test]
fn observers_know_who_reads_under_rcu() {
    let mut sim = Sim::new(Chooser::RoundRobin(RoundRobin));
    let inside: Rc<RefCell<Vec<bool>>> = Rc::default();
    let watch = Rc::clone(&inside);
    sim.execute(&Config::default(), |cx| {
        cx.observe(move |o| watch.borrow_mut().push(o.is_in_rcu(o.task())));
        cx.spawn("a", |cx| {
            cx.cond_resched();
            let section = rcu_read_lock(cx);
            cx.cond_resched();
            drop(section);
            cx.cond_resched();
        });
    });
    assert_eq!(*inside.borrow(), [false, true, false, false]);
}

/// Tasks that retry until a word has a value; whether anybody ever gives it that value is the question.
fn retrying(cx: &Cx<'_>, comes: bool) {
    let word = Arc::new(Atomic64::new(cx, "word", 0));
    let other = Arc::clone(&word);
    cx.spawn("waiter", move |cx| {
        while word.load(cx) == 0 {
            cx.cond_resched();
        }
        cx.operation_done();
    });
    cx.spawn("other", move |cx| {
        (0..3000).for_each(|_| cx.cond_resched());
        if comes {
            other.store(cx, 1);
        }
        while other.load(cx) == 0 {
            cx.cond_resched();
        }
    });
}

#[test]
fn a_livelock_is_told_from_an_unfair_schedule() {
    for comes in [true, false] {
        let config = Config { steps_max: 500, ..Config::default() };
        let mut sim = Sim::new(Chooser::Random(Random::new()));
        let (_, verdict) = sim.execute(&config, |cx| retrying(cx, comes));
        assert!(matches!(verdict, Verdict::StepLimit { .. }));
        let livelock = fair_tail(&config, &sim.schedule(), 40_000, |cx| retrying(cx, comes));
        assert_eq!(livelock.is_none(), comes);
        let Some(livelock) = livelock else { continue };
        let text = livelock.to_string();
        assert!(
            text.starts_with("no operation is completed in 40000 fair steps\n  waiter goes in circles through "),
            "{text}"
        );
        assert!(text.contains("load at crates/sim-kernel/tests/watching.rs:"), "{text}");
        assert!(text.contains("yield at"), "{text}");
    }
}
