//! The reductions beside plain depth-first search, on random small programs: equal sets of outcomes. Without this test an error in a reduction shows as
//! nothing at all, only as outcomes that are never seen.

use crate::programs::{Flavour, Generated};
use sim_kernel::explore::{Exploration, Options, Program, Statistics, StrategyKind, cut};
use sim_kernel::sched::MemoryModel;

/// Programs whose plain search takes more executions than this are left out.
const EXECUTIONS_MAX: u64 = 4_000;

fn explore(program: &impl Program, kind: StrategyKind, memory: MemoryModel, most: u64) -> Option<Statistics> {
    let mut exploration = Exploration::new(program, kind, 0, Options { memory, ..Options::default() });
    for _ in 0..most {
        if exploration.step().is_none() {
            assert!(exploration.is_exhausted(), "the search ended early");
            return Some(exploration.statistics().clone());
        }
    }
    None
}

/// As [`explore`], but the search is cut after its first execution, and its parts again after every few.
fn explore_in_parts(program: &impl Program, kind: StrategyKind, memory: MemoryModel) -> Statistics {
    let mut begun = Exploration::new(program, kind, 0, Options { memory, ..Options::default() });
    begun.step();
    let mut total = begun.take_statistics();
    let mut left = vec![begun.frontier()];
    left.retain(|frontier| !frontier.exhausted);
    while !left.is_empty() {
        left = cut(program, left, 6).unwrap();
        for frontier in &mut left {
            let mut part = Exploration::from_frontier(program, frontier.clone()).unwrap();
            (0..20).for_each(|_| drop(part.step()));
            total.merge(&part.take_statistics());
            *frontier = part.frontier();
        }
        left.retain(|frontier| !frontier.exhausted);
    }
    total
}

fn difference(a: &Statistics, b: &Statistics) -> String {
    let missing: Vec<_> = a.outcomes.keys().filter(|o| !b.outcomes.contains_key(*o)).collect();
    let extra: Vec<_> = b.outcomes.keys().filter(|o| !a.outcomes.contains_key(*o)).collect();
    format!("missing {missing:#?}, extra {extra:#?}")
}

fn compare(flavour: Flavour, memory: MemoryModel, seeds: std::ops::Range<u64>) {
    let (mut compared, mut plain, mut reduced, mut pruned) = (0, 0, 0, 0);
    for seed in seeds.clone() {
        let program = Generated::new(flavour, seed);
        let Some(dfs) = explore(&program, StrategyKind::Dfs, memory, EXECUTIONS_MAX) else { continue };
        compared += 1;
        plain += dfs.executions;
        let mut classes = None;
        for kind in [StrategyKind::Sleep, StrategyKind::Dpor, StrategyKind::Preempt { bound: 64 }] {
            let found = explore(&program, kind, memory, EXECUTIONS_MAX + 1).expect("no more than plain search");
            assert!(
                found.outcomes.keys().eq(dfs.outcomes.keys()),
                "{kind}, {flavour:?} {seed}: {}\n{program:#?}",
                difference(&dfs, &found)
            );
            if kind == (StrategyKind::Preempt { bound: 64 }) {
                assert_eq!(found.executions, dfs.executions, "{kind}, {flavour:?} {seed}: every schedule once");
            }
            // Both run each class of equivalent schedules once. A failed assertion cuts classes short, wherever it is met.
            if kind != (StrategyKind::Preempt { bound: 64 }) && !dfs.outcomes.keys().any(|o| o.contains(": assertion"))
            {
                let classes = *classes.get_or_insert(found.executions);
                assert_eq!(found.executions, classes, "{kind}, {flavour:?} {seed}: classes\n{program:#?}");
            }
            if kind != (StrategyKind::Preempt { bound: 64 }) {
                let parts = explore_in_parts(&program, kind, memory);
                assert!(
                    parts.outcomes.keys().eq(dfs.outcomes.keys()),
                    "{kind} in parts, {flavour:?} {seed}: {}\n{program:#?}",
                    difference(&dfs, &parts)
                );
                if !dfs.outcomes.keys().any(|o| o.contains(": assertion")) {
                    assert_eq!(parts.outcomes, found.outcomes, "{kind} in parts, {flavour:?} {seed}\n{program:#?}");
                }
            }
            if kind == StrategyKind::Dpor {
                reduced += found.executions;
                pruned += found.pruned;
            }
        }
        for kind in [StrategyKind::Random, StrategyKind::Pos, StrategyKind::Urw, StrategyKind::Pct { depth: 3 }] {
            let mut sampled = Exploration::new(&program, kind, seed, Options { memory, ..Options::default() });
            (0..20).for_each(|_| drop(sampled.step()));
            for outcome in sampled.statistics().outcomes.keys() {
                assert!(dfs.outcomes.contains_key(outcome), "{kind}, {flavour:?} {seed}: {outcome}\n{program:#?}");
            }
        }
    }
    assert!(compared * 10 >= (seeds.end - seeds.start) * 4, "only {compared} programs are small enough");
    println!("{flavour:?}: {compared} programs, dfs {plain}, dpor {reduced} + {pruned} pruned");
    assert!(reduced * 3 < plain, "{flavour:?}: no reduction: {reduced} of {plain}");
}

macro_rules! flavours {
    ($($name:ident $flavour:ident $memory:ident $programs:literal;)*) => {$(
        #[test]
        fn $name() {
            compare(Flavour::$flavour, MemoryModel::$memory, 0..$programs);
        }
    )*};
}

flavours! {
    words Words Sc 60;
    locks Locks Sc 60;
    try_locks TryLocks Sc 60;
    rwlocks Rwlocks Sc 60;
    sleepers Sleepers Sc 60;
    spinners Spinners Sc 60;
    rcu Rcu Sc 60;
    yielders Yielders Sc 80;
    takers Takers Sc 80;
    everything Everything Sc 100;
    words_with_store_buffers Words Tso 60;
    everything_with_store_buffers Everything Tso 60;
}
