//! The driver of one search: executions one after the other.

use super::coverage::Watcher;
use super::frontier::{Frontier, FrontierError, Rest};
use super::{Judgement, Program, Statistics, StrategyKind};
use crate::sched::{
    Chooser, Config, Dfs, LogLevel, MemoryModel, Pct, Preempt, Random, Reduced, Schedule, Sim, Urw, Verdict,
};
use std::fmt;

/// Executions from which a strategy learns how long the program is.
const TRIALS: u64 = 3;

/// How executions are run, whatever the strategy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Steps after which an execution is abandoned as a livelock.
    pub steps_max: u64,
    /// How much of each execution is logged.
    pub log: LogLevel,
    /// Which reorderings are explored.
    pub memory: MemoryModel,
    /// Whether pairs of communicating places are counted.
    pub coverage: bool,
    /// Number of the first execution. A sampling strategy derives the seed of each execution from its number alone, so a range of
    /// numbers gives the same executions wherever it is run.
    pub first: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { steps_max: 100_000, log: LogLevel::Off, memory: MemoryModel::Sc, coverage: false, first: 0 }
    }
}

/// One execution, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Execution {
    /// Its number within the exploration, from [`Options::first`].
    pub number: u64,
    /// The seed with which a sampling strategy gives it again: the exploration's seed plus the number.
    pub seed: u64,
    /// Its decisions.
    pub schedule: Schedule,
    /// How it ended.
    pub verdict: Verdict,
    /// What the program made of it.
    pub judgement: Judgement,
    /// Scheduling points passed.
    pub steps: u64,
    /// Whether an equivalent execution was run before; it was then run on to some end, which is judged like any other.
    pub pruned: bool,
}

/// One search over one program.
pub struct Exploration<'p, P: Program> {
    program: &'p P,
    kind: StrategyKind,
    seed: u64,
    options: Options,
    sim: Sim,
    number: u64,
    exhausted: bool,
    /// Exhausted, or the program did something else with the same decisions, so that a search makes no sense.
    is_over: bool,
    statistics: Statistics,
    watcher: Watcher,
}

impl<P: Program> fmt::Debug for Exploration<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exploration")
            .field("kind", &self.kind)
            .field("seed", &self.seed)
            .field("number", &self.number)
            .field("exhausted", &self.exhausted)
            .finish_non_exhaustive()
    }
}

impl<'p, P: Program> Exploration<'p, P> {
    /// A search from its beginning.
    pub fn new(program: &'p P, kind: StrategyKind, seed: u64, options: Options) -> Self {
        let mut this = Exploration {
            program,
            kind,
            seed,
            options,
            sim: Sim::new(Chooser::Random(Random::new())),
            number: options.first,
            exhausted: false,
            is_over: false,
            statistics: Statistics::default(),
            watcher: Watcher::default(),
        };
        let chooser = match kind {
            StrategyKind::Random => Chooser::Random(Random::new()),
            StrategyKind::Urw => Chooser::Urw(Box::new(Urw::new(this.trial().1))),
            StrategyKind::Pct { depth } => Chooser::Pct(Box::new(Pct::new(depth, this.trial().0))),
            StrategyKind::Pos => Chooser::Pos(Box::default()),
            StrategyKind::Preempt { bound } => Chooser::Preempt(Box::new(Preempt::new(bound))),
            StrategyKind::Dfs => Chooser::Dfs(Dfs::new()),
            StrategyKind::Sleep => Chooser::Reduced(Box::new(Reduced::sleep())),
            StrategyKind::Dpor => Chooser::Reduced(Box::new(Reduced::dpor())),
        };
        this.sim.set_chooser(chooser);
        this
    }

    /// Steps of an execution, in all and by task: the largest of a few random ones that depend on nothing but the exploration's seed,
    /// so that every part of a search expects the same. They are judged, to be taken down, and not counted; what they show of the order of
    /// locks is left to executions that are.
    fn trial(&self) -> (u64, Vec<u32>) {
        let mut sim = Sim::new(Chooser::Random(Random::new()));
        let mut most = (0, Vec::new());
        for n in 0..TRIALS {
            let seed = self.seed.wrapping_add(n);
            let config = self.config(seed, LogLevel::Full);
            let program = self.program;
            let (state, verdict) = sim.execute(&config, |cx| program.setup(cx));
            most.0 = most.0.max(sim.steps());
            for (task, steps) in sim.steps_by_task().into_iter().enumerate() {
                if most.1.len() <= task {
                    most.1.push(0);
                }
                most.1[task] = most.1[task].max(steps);
            }
            program.judge(&mut sim, state, &verdict);
        }
        most
    }

    /// A search from where another one was.
    ///
    /// # Errors
    /// If the frontier is not one that [`Exploration::frontier`] could have given.
    pub fn from_frontier(program: &'p P, frontier: Frontier) -> Result<Self, FrontierError> {
        frontier.check()?;
        let options = Options {
            steps_max: frontier.steps_max,
            log: LogLevel::from_code(frontier.log),
            memory: frontier.memory,
            coverage: frontier.coverage,
            first: frontier.number,
        };
        let mut this = Exploration::new(program, frontier.kind, frontier.seed, options);
        this.statistics = frontier.statistics;
        this.exhausted = frontier.exhausted;
        this.is_over = frontier.exhausted;
        this.sim.with_chooser(|chooser| frontier.rest.put(chooser, frontier.kind))?;
        Ok(this)
    }

    /// Everything that is needed to go on from here, as plain data.
    pub fn frontier(&self) -> Frontier {
        let rest = self.sim.with_chooser(|chooser| Rest::of(chooser));
        Frontier {
            kind: self.kind,
            seed: self.seed,
            number: self.number,
            steps_max: self.options.steps_max,
            log: self.options.log.code(),
            memory: self.options.memory,
            coverage: self.options.coverage,
            exhausted: self.exhausted,
            rest,
            statistics: self.statistics.clone(),
        }
    }

    pub(super) fn program(&self) -> &'p P {
        self.program
    }

    pub(super) fn set_chooser(&mut self, chooser: Chooser) {
        self.sim.set_chooser(chooser);
    }

    pub(super) fn with_chooser<R>(&self, look: impl FnOnce(&mut Chooser) -> R) -> R {
        self.sim.with_chooser(look)
    }

    /// Runs an execution that is not counted.
    pub(super) fn probe(&mut self) {
        let config = self.config(self.seed, LogLevel::Off);
        let program = self.program;
        let (state, verdict) = self.sim.execute(&config, |cx| program.setup(cx));
        program.judge(&mut self.sim, state, &verdict);
    }

    fn config(&self, seed: u64, log: LogLevel) -> Config {
        let Options { steps_max, memory, coverage, .. } = self.options;
        Config { seed, steps_max, log, memory, trail: coverage }
    }

    /// Runs and judges the next execution; `None` if the space is exhausted, which happens only to exhaustive strategies. A program that does
    /// something else under the same decisions ends a search, too, with a last execution that [`Verdict::Diverged`] and without exhaustion.
    pub fn step(&mut self) -> Option<Execution> {
        if self.is_over {
            return None;
        }
        let number = self.number;
        let seed = self.seed.wrapping_add(number);
        let config = self.config(seed, self.options.log);
        let program = self.program;
        let (state, verdict) = self.sim.execute(&config, |cx| program.setup(cx));
        if self.options.coverage {
            self.watcher.watch(&self.sim.trail(), &mut self.statistics.coverage);
        }
        let schedule = self.sim.schedule();
        let steps = self.sim.steps();
        let judgement = program.judge(&mut self.sim, state, &verdict);
        self.number += 1;
        let is_deterministic = !matches!(verdict, Verdict::Diverged(_));
        let reversals = &mut self.statistics.reversals;
        let pruned = self.sim.with_chooser(|chooser| match chooser {
            Chooser::Reduced(search) => {
                reversals.add(search.reversed());
                search.was_pruned()
            }
            _ => false,
        });
        if self.kind.is_exhaustive() {
            let more = self.sim.with_chooser(Chooser::advance);
            self.exhausted = is_deterministic && !more;
            self.is_over = !is_deterministic || !more;
        }
        let execution = Execution { number, seed, schedule, verdict, judgement, steps, pruned };
        self.count(&execution);
        Some(execution)
    }

    fn count(&mut self, execution: &Execution) {
        let totals = &mut self.statistics;
        totals.steps += execution.steps;
        totals.decisions += execution.schedule.decisions().len() as u64;
        totals.longest = totals.longest.max(execution.steps);
        totals.failed += u64::from(!execution.verdict.is_completed());
        totals.truncated += u64::from(matches!(execution.verdict, Verdict::StepLimit { .. }));
        if execution.pruned {
            totals.pruned += 1;
            return;
        }
        totals.executions += 1;
        match totals.outcomes.get_mut(execution.judgement.outcome.as_str()) {
            Some(n) => *n += 1,
            None => {
                totals.outcomes.insert(execution.judgement.outcome.clone(), 1);
            }
        }
    }

    /// What was done so far; includes what a frontier brought with it.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Whether everything was seen that the strategy can see.
    pub fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Whether there is nothing more to execute: everything was seen, or the program did something else with the same decisions.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// What was done since the last time, or since the beginning; counting begins anew.
    pub fn take_statistics(&mut self) -> Statistics {
        std::mem::take(&mut self.statistics)
    }

    /// The strategy.
    pub fn kind(&self) -> StrategyKind {
        self.kind
    }

    /// The machine as the last execution left it: event log and names.
    pub fn sim(&self) -> &Sim {
        &self.sim
    }
}
