//! Whole spaces of the models, and what each strategy needs for each seeded bug.

use sim_kernel::Cx;
use sim_kernel::explore::models::{Bug, FlagRace, MutexCounter, SeededBug, SeqRetry};
use sim_kernel::explore::{Exploration, Judgement, Options, Program, Statistics, StrategyKind};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::{Sim, Verdict};
use sim_kernel::sync::{Atomic64, WaitQueue};
use std::sync::Arc;

/// Runs a search to its end.
#[track_caller]
fn exhaust(program: &impl Program, kind: StrategyKind) -> Statistics {
    let mut exploration = Exploration::new(program, kind, 0, Options::default());
    while let Some(execution) = exploration.step() {
        assert_eq!(execution.judgement.problem, None, "{kind}, {}", execution.schedule);
    }
    assert!(exploration.is_exhausted());
    exploration.statistics().clone()
}

/// The classes of a program, by both reductions, and what DPOR runs in vain.
#[track_caller]
fn classes(program: &impl Program) -> (u64, u64) {
    let sleep = exhaust(program, StrategyKind::Sleep);
    let dpor = exhaust(program, StrategyKind::Dpor);
    assert_eq!(sleep.executions, dpor.executions);
    assert!(sleep.outcomes.keys().eq(dpor.outcomes.keys()));
    (dpor.executions, dpor.pruned)
}

#[test]
fn classes_of_the_models_are_counted_exactly() {
    // The orders of the acquisitions.
    assert_eq!(classes(&MutexCounter { tasks: 2, iterations: 2 }), (6, 0));
    assert_eq!(classes(&MutexCounter { tasks: 3, iterations: 2 }), (90, 0));
    // Each reader: both loads before, around or after the stores.
    assert_eq!(classes(&FlagRace { iterations: 1 }), (9, 0));
    let (run, pruned) = classes(&SeqRetry { faults: 1, punches: 1 });
    assert!(run == 6 && run + pruned <= 8, "{run} + {pruned}");
    let (run, pruned) = classes(&SeqRetry { faults: 2, punches: 2 });
    assert!(run + pruned <= 103, "{run} + {pruned}");
}

#[test]
fn plain_search_agrees_on_the_small_ones() {
    for (kind, most) in [(StrategyKind::Dfs, 20_000), (StrategyKind::Preempt { bound: 64 }, 20_000)] {
        assert!(exhaust(&MutexCounter { tasks: 2, iterations: 2 }, kind).executions <= most);
        let plain = exhaust(&SeqRetry { faults: 1, punches: 1 }, kind);
        let reduced = exhaust(&SeqRetry { faults: 1, punches: 1 }, StrategyKind::Dpor);
        assert!(plain.executions <= most && plain.outcomes.keys().eq(reduced.outcomes.keys()));
    }
}

/// Three tasks that each put a reference to a frame; the frame has so many references, and may be broken.
struct Putters {
    references: u32,
    is_broken: bool,
}

impl Program for Putters {
    type State = Arc<PhysMem>;

    fn setup(&self, cx: &Cx<'_>) -> Arc<PhysMem> {
        let phys = Arc::new(PhysMem::new(cx, 1 << 20));
        let pfn = phys.alloc().unwrap();
        (1..self.references).for_each(|_| phys.get(pfn));
        assert!(!self.is_broken || phys.poison(cx, pfn));
        for name in ["a", "b", "c"] {
            let phys = Arc::clone(&phys);
            cx.spawn(name, move |cx| phys.put(cx, pfn));
        }
        phys
    }

    fn judge(&self, _sim: &mut Sim, phys: Arc<PhysMem>, _verdict: &Verdict) -> Judgement {
        Judgement::outcome(format!("{} frames left", phys.used_frames()))
    }
}

#[test]
fn counts_of_a_frame_are_ordered_unless_it_is_broken() {
    // Any of three may be the one that frees it.
    assert_eq!(classes(&Putters { references: 3, is_broken: false }).0, 6);
    assert_eq!(classes(&Putters { references: 3, is_broken: true }).0, 1);
}

/// A task that tests a condition and two that have nothing to do with it; it may name what it reads.
struct Bystanders {
    is_told: bool,
}

impl Program for Bystanders {
    type State = ();

    fn setup(&self, cx: &Cx<'_>) {
        let queue = Arc::new(WaitQueue::new(cx, "queue"));
        for name in ["a", "b"] {
            let (word, queue) = (Atomic64::new(cx, name, 0), Arc::clone(&queue));
            cx.spawn(name, move |cx| {
                word.store(cx, 1);
                queue.wake_up_all(cx);
            });
        }
        let is_told = self.is_told;
        cx.spawn("waiter", move |cx| match is_told {
            true => queue.wait_event_told(cx, || true),
            false => queue.wait_event(cx, || true),
        });
    }

    fn judge(&self, _sim: &mut Sim, (): (), _verdict: &Verdict) -> Judgement {
        Judgement::outcome("done")
    }
}

#[test]
fn a_condition_that_names_what_it_reads_has_to_do_with_nothing_else() {
    assert_eq!(classes(&Bystanders { is_told: true }).0, 1);
    assert_eq!(classes(&Bystanders { is_told: false }).0, 4, "before and after each store");
}

/// Executions to the first problem, or `cap` and one more.
fn needed(bug: &SeededBug, kind: StrategyKind, seed: u64, cap: u64) -> u64 {
    let mut exploration = Exploration::new(bug, kind, seed, Options::default());
    for n in 1..=cap {
        match exploration.step() {
            Some(execution) if execution.judgement.problem.is_some() => return n,
            Some(_) => {}
            None => panic!("{bug}: {kind} ends without the bug"),
        }
    }
    cap + 1
}

fn median(bug: &SeededBug, kind: StrategyKind, cap: u64) -> u64 {
    let mut all: Vec<u64> = (0..21).map(|n| needed(bug, kind, n * 100_000, cap)).collect();
    all.sort_unstable();
    all[all.len() / 2]
}

#[test]
fn dpor_needs_ten_executions_for_every_seeded_bug() {
    for bug in &SeededBug::TABLE {
        let n = needed(bug, StrategyKind::Dpor, 0, 10);
        println!("{bug}: {n}");
        assert!(n <= 10, "{bug}: more than ten executions");
    }
}

#[test]
fn partial_order_sampling_is_never_bad() {
    for bug in &SeededBug::TABLE {
        let n = median(bug, StrategyKind::Pos, 600);
        println!("{bug}: {n}");
        assert!(n <= 300, "{bug}: a median of {n} executions");
    }
}

#[test]
fn each_sampling_strategy_is_good_at_its_own() {
    use StrategyKind::{Pct, Random, Urw};
    let rows = [
        // Narrow windows.
        (Random, SeededBug::new(Bug::RetryOutsideLock, 10, 0), 60),
        (Random, SeededBug::new(Bug::AbBa, 10, 0), 60),
        (Urw, SeededBug::new(Bug::RetryOutsideLock, 10, 0), 60),
        (Urw, SeededBug::new(Bug::AbBa, 50, 0), 60),
        (Urw, SeededBug::new(Bug::ThreeLockCycle, 50, 0), 200),
        // Long ones.
        (Pct { depth: 2 }, SeededBug::new(Bug::LongWindow, 20, 0), 500),
        (Pct { depth: 3 }, SeededBug::new(Bug::LongWindow, 20, 0), 500),
        (Pct { depth: 3 }, SeededBug::new(Bug::LongWindowAfterBegin, 5, 0), 1000),
    ];
    for (kind, bug, most) in rows {
        let n = median(&bug, kind, 2 * most);
        println!("{kind} {bug}: {n}");
        assert!(n <= most, "{kind} needs a median of {n} executions for {bug}");
    }
    // And what each cannot do.
    assert!(
        median(&SeededBug::new(Bug::TransitionalAttribute, 10, 0), Pct { depth: 2 }, 500) > 500,
        "depth 3 with depth 2"
    );
    assert!(median(&SeededBug::new(Bug::LongWindow, 20, 0), Random, 500) > 500, "a long window by chance");
}
