//! What whoever drives an exploration relies on: counting, resuming, splitting by number.

use sim_kernel::Cx;
use sim_kernel::explore::{Exploration, Frontier, Judgement, Options, Program, Statistics, StrategyKind};
use sim_kernel::sched::{Chooser, Config, Replay, Sim, Verdict};
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
