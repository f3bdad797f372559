//! What whoever drives an exploration relies on: counting, resuming, splitting by number.

use sim_kernel::Cx;
use sim_kernel::explore::{Exploration, Frontier, Judgement, Options, Program, Rest, Statistics, StrategyKind, cut};
use sim_kernel::sched::{Chooser, Config, ReducedBranch, Replay, Sim, Verdict};
use sim_kernel::sync::{Atomic64, Mutex};
use std::sync::Arc;

/// Three tasks: two add to a word without a lock, one takes two locks in the wrong order for the first.
struct Mixed;

impl Program for Mixed {
    type State = Arc<(Atomic64, Mutex<()>, Mutex<()>)>;

    fn setup(&self, cx: &Cx<'_>) -> Self::State {
        let shared = Arc::new((Atomic64::new(cx, "word", 0), Mutex::new(cx, "a", ()), Mutex::new(cx, "b", ())));
        let mine = Arc::clone(&shared);
        cx.spawn("first", move |cx| {
            let _a = mine.1.lock(cx);
            let old = mine.0.load(cx);
            let _b = mine.2.lock(cx);
            mine.0.store(cx, old + 1);
        });
        let mine = Arc::clone(&shared);
        cx.spawn("second", move |cx| {
            let _b = mine.2.lock(cx);
            let _a = mine.1.lock(cx);
            assert!(mine.0.fetch_add(cx, 1) < 2);
        });
        shared
    }

    fn judge(&self, _sim: &mut Sim, shared: Self::State, verdict: &Verdict) -> Judgement {
        Judgement::outcome(match verdict {
            Verdict::Completed => shared.0.peek().to_string(),
            Verdict::Deadlock(_) => "deadlock".to_string(),
            other => panic!("{other}"),
        })
    }
}

const KINDS: [&str; 9] = ["random", "urw", "pct:1", "pct:3", "pos", "preempt:9", "dfs", "sleep", "dpor"];

fn kinds() -> impl Iterator<Item = StrategyKind> {
    KINDS.iter().map(|name| name.parse().unwrap())
}

fn run(exploration: &mut Exploration<'_, Mixed>, most: usize) -> Vec<sim_kernel::explore::Execution> {
    let mut executions = Vec::new();
    while executions.len() < most
        && let Some(execution) = exploration.step()
    {
        executions.push(execution);
    }
    executions
}

#[test]
fn names_of_strategies_are_parsed_and_printed() {
    for name in KINDS {
        assert_eq!(name.parse::<StrategyKind>().unwrap().to_string(), name);
    }
    for wrong in ["", "Random", "dfs:1", "pct:x", "pct:0", "pct:65", "preempt:", "preempt:99", "pos:"] {
        assert!(wrong.parse::<StrategyKind>().is_err(), "{wrong:?}");
    }
}

#[test]
fn every_strategy_finds_both_ends_of_a_small_program() {
    for kind in kinds() {
        let mut exploration = Exploration::new(&Mixed, kind, 1, Options::default());
        run(&mut exploration, 300);
        assert_eq!(exploration.is_exhausted(), kind.is_exhaustive(), "{kind}");
        let outcomes: Vec<_> = exploration.statistics().outcomes.keys().map(String::as_str).collect();
        // A task that never falls below the other meets no deadlock.
        let expected = if kind == (StrategyKind::Pct { depth: 1 }) { &["2"][..] } else { &["2", "deadlock"] };
        assert_eq!(outcomes, expected, "{kind}");
        if kind.is_exhaustive() {
            assert!(exploration.step().is_none(), "{kind} goes on after its end");
        }
    }
}

#[test]
fn an_exploration_is_a_function_of_program_strategy_and_seed() {
    for kind in kinds() {
        let executions = || run(&mut Exploration::new(&Mixed, kind, 7, Options::default()), 100);
        assert_eq!(executions(), executions(), "{kind}");
    }
}

#[test]
fn every_schedule_replays_to_the_same_end() {
    for kind in kinds() {
        for execution in run(&mut Exploration::new(&Mixed, kind, 3, Options::default()), 100) {
            let mut sim = Sim::new(Chooser::Replay(Replay::new(execution.schedule)));
            let (state, verdict) = sim.execute(&Config::default(), |cx| Mixed.setup(cx));
            assert_eq!(verdict, execution.verdict, "{kind}");
            assert_eq!(Mixed.judge(&mut sim, state, &verdict), execution.judgement, "{kind}");
        }
    }
}

#[test]
fn an_exploration_goes_on_from_its_frontier_as_if_nothing_had_happened() {
    for kind in kinds() {
        let mut whole = Exploration::new(&Mixed, kind, 5, Options::default());
        let expected = run(&mut whole, 60);
        for cut in [0, 1, 2, 5, 11] {
            let mut first = Exploration::new(&Mixed, kind, 5, Options::default());
            let mut executions = run(&mut first, cut);
            let frontier: Frontier = first.frontier();
            let mut second = Exploration::from_frontier(&Mixed, frontier).unwrap();
            executions.extend(run(&mut second, 60 - executions.len()));
            assert_eq!(executions, expected, "{kind}, cut after {cut}");
            assert_eq!(second.statistics(), whole.statistics(), "{kind}, cut after {cut}");
        }
    }
}

#[test]
fn samples_are_split_by_number() {
    for kind in kinds().filter(|kind| !kind.is_exhaustive()) {
        let mut whole = Exploration::new(&Mixed, kind, 5, Options::default());
        run(&mut whole, 40);
        let mut total = Statistics::default();
        for first in [0, 10, 20, 30] {
            let mut part = Exploration::new(&Mixed, kind, 5, Options { first, ..Options::default() });
            run(&mut part, 10);
            total.merge(part.statistics());
        }
        assert_eq!(&total, whole.statistics(), "{kind}");
    }
}

#[test]
fn parts_of_a_search_add_up_to_the_whole() {
    for kind in kinds().filter(|kind| kind.is_complete()) {
        let mut whole = Exploration::new(&Mixed, kind, 0, Options::default());
        run(&mut whole, 10_000);
        for parts in [1, 2, 7, 30, 1000] {
            let cut = || Exploration::new(&Mixed, kind, 0, Options::default()).split(parts);
            let frontiers = cut();
            assert_eq!(frontiers, cut(), "{kind}");
            assert!(parts > 2 || frontiers.len() >= parts, "{kind}: {} parts of {parts}", frontiers.len());
            let mut total = Statistics::default();
            for frontier in frontiers {
                let mut part = Exploration::from_frontier(&Mixed, frontier).unwrap();
                run(&mut part, 10_000);
                assert!(part.is_exhausted());
                total.merge(part.statistics());
            }
            let (all, sum) = (whole.statistics(), &total);
            assert_eq!((sum.executions, &sum.outcomes), (all.executions, &all.outcomes), "{kind} in {parts} parts");
            if kind == StrategyKind::Dfs {
                assert_eq!(sum, all);
            }
        }
    }
}

/// A search that is cut after it began, and again and again while its parts are worked on, runs every class once.
#[test]
fn a_search_that_is_under_way_can_be_cut() {
    for kind in kinds().filter(|kind| kind.is_complete()) {
        let mut whole = Exploration::new(&Mixed, kind, 0, Options::default());
        run(&mut whole, 10_000);
        for (first, parts, share) in [(1, 2, 1), (2, 5, 2), (3, 4, 1), (7, 3, 5), (2, 100, 3)] {
            let work = || {
                let mut begun = Exploration::new(&Mixed, kind, 0, Options::default());
                run(&mut begun, first);
                let mut total = begun.take_statistics();
                let mut left = vec![begun.frontier()];
                while !left.is_empty() {
                    left = cut(&Mixed, left, parts).unwrap();
                    for frontier in &mut left {
                        let mut part = Exploration::from_frontier(&Mixed, frontier.clone()).unwrap();
                        run(&mut part, share);
                        total.merge(&part.take_statistics());
                        *frontier = part.frontier();
                    }
                    left.retain(|frontier| !frontier.exhausted);
                }
                total
            };
            let (all, sum) = (whole.statistics(), work());
            assert_eq!(sum, work(), "{kind} is cut the same way every time");
            assert_eq!((sum.executions, &sum.outcomes), (all.executions, &all.outcomes), "{kind} after {first}");
        }
    }
}

#[test]
fn pairs_of_communicating_places_are_counted_across_tasks() {
    let options = Options { coverage: true, ..Options::default() };
    let mut exploration = Exploration::new(&Mixed, StrategyKind::Dpor, 0, options);
    run(&mut exploration, 1000);
    let mut sampled = Exploration::new(&Mixed, StrategyKind::Random, 0, options);
    run(&mut sampled, 100);
    assert_eq!(sampled.statistics().coverage, exploration.statistics().coverage);
    let pairs: Vec<String> = exploration
        .statistics()
        .coverage
        .pairs()
        .map(|(store, load)| {
            assert!(store.file.ends_with("api.rs") && load.file.ends_with("api.rs"), "{store} {load}");
            let line = |line: u32| include_str!("api.rs").lines().nth(line as usize - 1).unwrap().trim().to_string();
            format!("{} -> {}", line(store.line), line(load.line))
        })
        .collect();
    let (store, load, add) =
        ("mine.0.store(cx, old + 1);", "let old = mine.0.load(cx);", "assert!(mine.0.fetch_add(cx, 1) < 2);");
    assert_eq!(pairs, [format!("{store} -> {add}"), format!("{add} -> {load}")]);
}

#[test]
fn races_that_were_reversed_are_counted_by_their_places() {
    let mut exploration = Exploration::new(&Mixed, StrategyKind::Dpor, 0, Options::default());
    run(&mut exploration, 1000);
    let statistics = exploration.statistics();
    let times: Vec<u64> = statistics.reversals.most().map(|(_, times)| times).collect();
    assert!(times.is_sorted_by(|a, b| a >= b), "{times:?}");
    // Every execution but the first is there because of a reversal, and some reversals are found to be redundant only when they begin.
    assert!(times.iter().sum::<u64>() >= statistics.executions - 1, "{times:?}");
    assert!(statistics.reversals.most().all(|((a, b), _)| a.file.ends_with("api.rs") && b.file.ends_with("api.rs")));
}

#[test]
fn frontiers_that_no_search_could_have_are_refused() {
    let mut exploration = Exploration::new(&Mixed, StrategyKind::Dpor, 0, Options::default());
    run(&mut exploration, 2);
    let good = exploration.frontier();
    let refused = |change: &dyn Fn(&mut Frontier)| {
        let mut bad = good.clone();
        change(&mut bad);
        Exploration::from_frontier(&Mixed, bad).err().map(|e| e.to_string())
    };
    assert_eq!(refused(&|_| {}), None);
    assert!(refused(&|f| f.log = 3).is_some());
    assert!(refused(&|f| f.rest = Rest::Samples).is_some());
    assert!(refused(&|f| f.kind = StrategyKind::Dfs).is_some());
    let reduced = |change: &dyn Fn(&mut Vec<ReducedBranch>, &mut usize)| {
        refused(&|f| {
            if let Rest::Reduced { path, frozen } = &mut f.rest {
                change(path, frozen);
            }
        })
    };
    assert!(reduced(&|path, frozen| *frozen = path.len() + 1).is_some());
    assert!(reduced(&|path, _| path[0].task = 64).is_some());
    assert!(reduced(&|path, _| path[0].enabled = 0).is_some());
    assert!(reduced(&|path, _| path[0].sleepers.push((99, Vec::new()))).is_some());
}
