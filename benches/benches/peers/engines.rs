//! Running a model on each engine: so many schedules, its whole space, or until a bug shows.

use super::models::Model;
use super::platform::{Loom, Ours, Platform, Shuttle};
use shuttle::scheduler::Scheduler;
use sim_kernel::Cx;
use sim_kernel::explore::{Exploration, Judgement, Options, Problem, Program, StrategyKind};
use sim_kernel::sched::{Chooser, Config, LogLevel, Random, Sim, Verdict};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How far a search came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The bug showed in this execution, from 1.
    Found(u64),
    /// So many executions, some cut half-way, and the space is exhausted.
    Exhausted { executions: u64, cut: u64 },
    /// So many executions without an end.
    Capped(u64),
}

/// Runs one execution of a model on our engine and checks its end.
pub(crate) fn ours_once<M: Model>(sim: &mut Sim, config: &Config, model: M) {
    // Ends of tasks need no handles: the vector stays empty, of zero-sized elements.
    let mut tasks = Vec::new();
    let (check, verdict) = sim.execute(config, |cx| model.start::<Ours>(cx, &mut tasks));
    assert_eq!(verdict, Verdict::Completed);
    check();
}

/// Random schedules on our engine.
pub(crate) fn ours_random<M: Model>(sim: &mut Sim, model: M, seeds: std::ops::Range<u64>, log: LogLevel) {
    for seed in seeds {
        ours_once(sim, &Config { seed, log, ..Config::default() }, model);
    }
}

/// A simulation for [`ours_random`].
pub(crate) fn ours_sim() -> Sim {
    Sim::new(Chooser::Random(Random::new()))
}

/// A model as a program of an exploration.
struct Explored<M>(M);

impl<M: Model> Program for Explored<M> {
    type State = Box<dyn FnOnce()>;

    fn setup(&self, cx: &Cx<'_>) -> Self::State {
        Box::new(self.0.start::<Ours>(cx, &mut Vec::new()))
    }

    fn judge(&self, _sim: &mut Sim, check: Self::State, verdict: &Verdict) -> Judgement {
        let problem = match verdict {
            Verdict::Completed => catch_unwind(AssertUnwindSafe(check)).err().map(|_| "the end is wrong".to_string()),
            other => Some(other.to_string()),
        };
        Judgement { outcome: String::new(), problem: problem.map(|message| Problem { id: None, message }) }
    }
}

/// Searches with one of our strategies until a bug shows, the space ends, or so many executions were run.
pub(crate) fn ours_search<M: Model>(model: M, kind: StrategyKind, seed: u64, executions_max: u64) -> Reach {
    let program = Explored(model);
    let mut exploration = Exploration::new(&program, kind, seed, Options::default());
    let mut n = 0;
    while n < executions_max {
        let Some(execution) = exploration.step() else { break };
        n += 1;
        if execution.judgement.problem.is_some() {
            return Reach::Found(n);
        }
    }
    let totals = exploration.statistics();
    match exploration.is_exhausted() {
        true => Reach::Exhausted { executions: totals.executions, cut: totals.pruned },
        false => Reach::Capped(n),
    }
}

/// A program for an engine whose main task spawns, joins and checks.
fn main_task<P: Platform>(model: impl Model, cx: &P::Cx<'_>, join: impl Fn(P::Join)) {
    let mut tasks = Vec::new();
    let check = model.start::<P>(cx, &mut tasks);
    for task in tasks {
        join(task);
    }
    check();
}

fn shuttle_config() -> shuttle::Config {
    let mut config = shuttle::Config::default();
    config.failure_persistence = shuttle::FailurePersistence::None;
    config
}

/// Schedules on shuttle with this scheduler, to its end; how many they were.
pub(crate) fn shuttle_run<M: Model>(model: M, scheduler: impl Scheduler + 'static) -> u64 {
    let runner = shuttle::Runner::new(scheduler, shuttle_config());
    runner.run(move || main_task::<Shuttle>(model, &(), |task| task.join().expect("nobody panics"))) as u64
}

/// As [`shuttle_run`], until a bug shows. `None` for `executions_max` if the scheduler knows an end of the space.
pub(crate) fn shuttle_search<M: Model>(model: M, scheduler: impl Scheduler + 'static, executions_max: u64) -> Reach {
    let started = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&started);
    let run = catch_unwind(AssertUnwindSafe(|| {
        let runner = shuttle::Runner::new(scheduler, shuttle_config());
        runner.run(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            main_task::<Shuttle>(model, &(), |task| task.join().expect("nobody panics"));
        })
    }));
    match run {
        Err(_) => Reach::Found(started.load(Ordering::Relaxed)),
        Ok(n) if (n as u64) < executions_max => Reach::Exhausted { executions: n as u64, cut: 0 },
        Ok(n) => Reach::Capped(n as u64),
    }
}

/// Executions on loom until a bug shows, the space ends, or there were so many.
pub(crate) fn loom_search<M: Model>(model: M, executions_max: u64) -> Reach {
    let started = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&started);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 100_000;
    builder.max_permutations = Some(executions_max as usize);
    // That is looked at so often.
    builder.checkpoint_interval = (executions_max as usize).div_ceil(100);
    let run = catch_unwind(AssertUnwindSafe(|| {
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            main_task::<Loom>(model, &(), |task| task.join().expect("nobody panics"));
        });
    }));
    let n = started.load(Ordering::Relaxed);
    match run {
        Err(_) => Reach::Found(n),
        Ok(()) if n < executions_max => Reach::Exhausted { executions: n, cut: 0 },
        Ok(()) => Reach::Capped(n),
    }
}
