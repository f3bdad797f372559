//! Units of work: so many executions of one strategy, and what came of them. A unit depends on nothing but what it is given, so it may be done by
//! any worker at any time.

use std::sync::atomic::{AtomicBool, Ordering};

use sim_kernel::explore::{Execution, Exploration, Frontier, Options, Program, Statistics, StrategyKind};
use sim_kernel::sched::{Config, LogLevel, Schedule, Verdict, continue_fairly};

use super::order::{self, SeenEdge};
use super::portfolio::{Plan, Sample};
use super::program::{Failure, ScenarioProgram};
use super::progress::{Evidence, Finding};
use super::witness::STEPS_MAX;

/// Fair steps after the limit in which something has to be completed. Turns get longer, up to 4096 steps for each task.
pub const FAIR_STEPS: u64 = 60_000;

/// Part of a search, for one round.
#[derive(Clone, Debug)]
pub(super) struct Share {
    /// Which part.
    pub(super) index: usize,
    /// Executions, at most.
    pub(super) executions: u64,
    /// Where it stands.
    pub(super) frontier: Frontier,
}

/// What came of a unit.
pub(super) struct Part {
    pub(super) strategy: StrategyKind,
    pub(super) executions: u64,
    pub(super) statistics: Statistics,
    pub(super) violations: u64,
    /// Executions that reached the limit of steps and moved on when every task got its turn.
    pub(super) unfair: u64,
    /// The first of each kind; `executions` counts within the unit.
    pub(super) findings: Vec<Finding>,
    /// Locks that were wanted while others were held; `executions` counts within the unit.
    pub(super) order: Vec<SeenEdge>,
}

/// What an execution that reached the limit of steps does when every task gets its turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// It ends, or at least operations end; nothing is wrong.
    Moves,
    /// It fails, or goes on for ever: then the message has the places that each task passes again and again.
    Fails(Failure),
}

/// Goes on fairly with an execution that reached the limit of steps.
pub fn tail_of(program: &ScenarioProgram, schedule: &Schedule) -> Tail {
    let config = Config { seed: 0, steps_max: STEPS_MAX, log: LogLevel::Off, memory: program.memory(), trail: false };
    let mut tail = continue_fairly(&config, schedule, FAIR_STEPS, |cx| program.setup(cx));
    let judgement = program.judge(&mut tail.sim, tail.state, &tail.verdict);
    match (tail.livelock, judgement.problem) {
        (Some(livelock), _) => {
            Tail::Fails(Failure { invariant: Some(LIVELOCK.to_string()), message: livelock.to_string() })
        }
        (None, Some(problem)) => Tail::Fails(Failure { invariant: problem.id, message: problem.message }),
        (None, None) => Tail::Moves,
    }
}

/// What is wrong with an execution, and how that was seen.
pub(super) enum Judged {
    /// Nothing.
    Sound,
    /// It reached the limit of steps, and moves on when every task gets its turn.
    Unfair,
    /// Something.
    Wrong(Failure, Evidence),
}

/// Judges an execution; one that reached the limit of steps by what comes of it when every task gets its turn.
pub(super) fn judge(program: &ScenarioProgram, execution: &Execution) -> Judged {
    if matches!(execution.verdict, Verdict::StepLimit { .. }) {
        return match tail_of(program, &execution.schedule) {
            Tail::Moves => Judged::Unfair,
            Tail::Fails(failure) => Judged::Wrong(failure, Evidence::Tail),
        };
    }
    match &execution.judgement.problem {
        None => Judged::Sound,
        Some(problem) => {
            let failure = Failure { invariant: problem.id.clone(), message: problem.message.clone() };
            Judged::Wrong(failure, Evidence::Execution)
        }
    }
}

impl Part {
    fn new(strategy: StrategyKind) -> Part {
        Part {
            strategy,
            executions: 0,
            statistics: Statistics::default(),
            violations: 0,
            unfair: 0,
            findings: Vec::new(),
            order: Vec::new(),
        }
    }

    /// Runs the next execution of `exploration` and takes down what it shows. False if there is none.
    fn step(&mut self, program: &ScenarioProgram, exploration: &mut Exploration<'_, ScenarioProgram>) -> bool {
        let Some(execution) = exploration.step() else { return false };
        self.executions += 1;
        let known = self.order.len();
        if exploration.sim().lock_order_len() > known {
            let order = exploration.sim().lock_order();
            self.order.extend(order.edges()[known..].iter().map(|edge| SeenEdge {
                edge: edge.clone(),
                executions: self.executions,
                schedule: execution.schedule.to_string(),
            }));
        }
        match judge(program, &execution) {
            Judged::Sound => {}
            Judged::Unfair => self.unfair += 1,
            Judged::Wrong(failure, evidence) => self.take_down(execution, failure, evidence),
        }
        true
    }

    fn take_down(&mut self, execution: Execution, failure: Failure, evidence: Evidence) {
        let Failure { invariant, message } = failure;
        self.violations += 1;
        let finding = Finding {
            invariant,
            message,
            strategy: self.strategy,
            seed: execution.seed,
            executions: self.executions,
            schedule: execution.schedule.to_string(),
            evidence,
        };
        if self.findings.iter().all(|known| !known.is_like(&finding)) {
            self.findings.push(finding);
        }
    }

    /// Whether something was found, by this unit alone.
    fn has_found(&self, exploration: &Exploration<'_, ScenarioProgram>, judged: &mut usize) -> bool {
        if self.violations > 0 {
            return true;
        }
        let edges = exploration.sim().lock_order_len();
        let is_new = edges > std::mem::replace(judged, edges);
        is_new && !order::is_fine(&exploration.sim().lock_order())
    }
}

/// The invariant that an endless execution breaks.
pub const LIVELOCK: &str = "INV-506";

/// How units are done.
pub(super) struct Worker<'p> {
    pub(super) program: &'p ScenarioProgram,
    pub(super) plan: &'p Plan,
    /// The exploration is over: what is under way is of no use any more.
    pub(super) stop: &'p AtomicBool,
}

impl Worker<'_> {
    /// How executions are run.
    pub(super) fn options(&self, first: u64) -> Options {
        Options { first, steps_max: STEPS_MAX, memory: self.program.memory(), coverage: true, ..Options::default() }
    }

    /// Works on part of the search: what came of it, where it stands, and whether it cannot be followed any further. `None` if the exploration
    /// was over before.
    pub(super) fn search(&self, share: Share) -> Result<Option<(Part, Frontier, bool)>, String> {
        let kind = share.frontier.kind;
        let exploration = Exploration::from_frontier(self.program, share.frontier);
        let mut exploration = exploration.map_err(|error| format!("the checkpoint: {error}"))?;
        let Some(mut part) = self.run(kind, &mut exploration, share.executions) else { return Ok(None) };
        part.statistics = exploration.take_statistics();
        let is_stuck = exploration.is_over() && !exploration.is_exhausted();
        Ok(Some((part, exploration.frontier(), is_stuck)))
    }

    /// Takes a sample; `None` if the exploration was over before.
    pub(super) fn sample(&self, sample: Sample) -> Option<Part> {
        let options = self.options(sample.first);
        let mut exploration = Exploration::new(self.program, sample.kind, self.plan.seed, options);
        let mut part = self.run(sample.kind, &mut exploration, sample.count)?;
        part.statistics = exploration.take_statistics();
        Some(part)
    }

    /// Up to so many executions, or to the first finding.
    fn run(
        &self,
        kind: StrategyKind,
        exploration: &mut Exploration<'_, ScenarioProgram>,
        executions: u64,
    ) -> Option<Part> {
        let mut part = Part::new(kind);
        let mut judged = 0;
        while part.executions < executions {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if !part.step(self.program, exploration) {
                break;
            }
            if !self.plan.keep_going && part.has_found(exploration, &mut judged) {
                break;
            }
        }
        Some(part)
    }
}
