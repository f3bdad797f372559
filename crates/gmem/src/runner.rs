//! Runs a scenario: its set-up, then its threads as tasks under a strategy, then what comes after them.
//!
//! A run is a function of scenario, strategy and seed: same answers in the same order, same events, same hash, on every machine.

use sim_kernel::sched::{
    Chooser, Config, LogLevel, Random, Replay, RoundRobin, RunToCompletion, Schedule, Sim, Verdict,
};

use crate::cli::args::Strategy;
use crate::explore::program::{Done, ScenarioProgram};
use crate::invariants;
use crate::ops::Answer;
use crate::scenario::Scenario;

/// Steps of the engine after which a run is taken for endless.
const STEPS_MAX: u64 = 50_000_000;

/// One line of a scenario and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepResult {
    /// `setup`, a thread's name, or `finish`.
    pub thread: String,
    /// The line in the scenario's file.
    pub line: u32,
    /// The line as written.
    pub text: String,
    /// The step's label, if it has one.
    pub label: Option<String>,
    /// What the operation answered.
    pub answer: Answer,
    /// Why the answer is not what the line expects.
    pub problem: Option<String>,
}

/// Everything that a run showed.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// The steps in the order in which they were completed.
    pub steps: Vec<StepResult>,
    /// How the threads ended.
    pub verdict: Verdict,
    /// Whether one of the expected outcomes came out.
    pub outcome: Result<(), String>,
    /// An invariant that did not hold at the end.
    pub invariant: Option<String>,
    /// The decisions of the strategy.
    pub schedule: Schedule,
    /// Scheduling points that the threads passed.
    pub scheduling_points: u64,
    /// Hash of the event log.
    pub log_digest: u64,
    /// The event log as JSON Lines, if it was asked for.
    pub log: Option<String>,
    /// What pKVM's hypervisor did, one JSON object a line (docs/pkvm.md), if the machine has one and was asked to record it.
    pub pkvm_trace: Option<String>,
}

impl RunReport {
    /// Whether everything came out as the scenario says.
    pub fn is_as_expected(&self) -> bool {
        self.verdict.is_completed()
            && self.outcome.is_ok()
            && self.invariant.is_none()
            && self.steps.iter().all(|step| step.problem.is_none())
    }
}

/// Who decides, from what the command line says.
pub fn chooser(strategy: Strategy, schedule: Option<&Schedule>) -> Chooser {
    match (schedule, strategy) {
        (Some(schedule), _) => Chooser::Replay(Replay::new(schedule.clone())),
        (None, Strategy::Random) => Chooser::Random(Random::new()),
        (None, Strategy::RoundRobin) => Chooser::RoundRobin(RoundRobin),
        (None, Strategy::RunToCompletion) => Chooser::RunToCompletion(RunToCompletion),
    }
}

/// Runs a scenario once.
///
/// ```
/// use gmem::runner;
/// use gmem::scenario::parse;
/// use sim_kernel::sched::{Chooser, LogLevel, Random};
///
/// let scenario = parse("two.toml", r#"
/// [setup]
/// run = """
/// create_vm vm0
/// create_guest_memfd vm0 g0 size=4K  => ok
/// """
/// [thread.a]
/// run = "fallocate g0 keep_size 0 4K  => ok"
/// [thread.b]
/// run = "fallocate g0 punch_hole 0 4K => ok"
/// "#).unwrap();
/// let report = runner::run(&scenario, Chooser::Random(Random::new()), 7, LogLevel::Hash);
/// assert!(report.is_as_expected());
/// ```
pub fn run(scenario: &Scenario, chooser: Chooser, seed: u64, level: LogLevel) -> RunReport {
    run_within(STEPS_MAX, scenario, chooser, seed, level)
}

/// As [`run`], with a limit of steps after which the run is given up ([`Verdict::StepLimit`]): an unfair strategy may let a vCPU fault for ever
/// on a page that another task is about to give free.
pub fn run_within(steps_max: u64, scenario: &Scenario, chooser: Chooser, seed: u64, level: LogLevel) -> RunReport {
    run_limited(steps_max, scenario, chooser, seed, level, |_| ()).0
}

/// As [`run`], with a look at the simulation when all is over: at its log.
pub fn run_looked<R>(
    scenario: &Scenario,
    chooser: Chooser,
    seed: u64,
    level: LogLevel,
    look: impl FnOnce(&Sim) -> R,
) -> (RunReport, R) {
    run_limited(STEPS_MAX, scenario, chooser, seed, level, look)
}

fn run_limited<R>(
    steps_max: u64,
    scenario: &Scenario,
    chooser: Chooser,
    seed: u64,
    level: LogLevel,
    look: impl FnOnce(&Sim) -> R,
) -> (RunReport, R) {
    let program = ScenarioProgram::thorough(scenario);
    let mut sim = Sim::new(chooser);
    let config = Config { seed, steps_max, log: level.max(LogLevel::Hash), ..Config::default() };
    let (running, verdict) = sim.execute(&config, |cx| program.begin(cx));
    let ending = program.end(&mut sim, &running, &verdict);
    let verdict = match running.broken() {
        Some(message) => Verdict::Panicked { task: "setup".into(), message: message.to_string() },
        None => verdict,
    };
    let locks = invariants::check_locks(&sim.lock_order()).err().map(|violation| violation.to_string());
    let done = std::mem::take(&mut *running.done.lock());
    let pkvm = running.world.process().host().pkvm().filter(|_| scenario.machine.pkvm_trace);
    let report = RunReport {
        steps: done.into_iter().map(|done| step_result(scenario, done)).collect(),
        verdict,
        outcome: ending.outcome.map_or(Ok(()), Err),
        invariant: ending.invariant.or(locks),
        schedule: sim.schedule(),
        scheduling_points: sim.steps(),
        log_digest: sim.log_digest().expect("a run is always hashed"),
        log: (level >= LogLevel::Full).then(|| sim.log_json()),
        pkvm_trace: pkvm.map(|pkvm| pkvm.pkvm().trace_jsonl()),
    };
    let looked = look(&sim);
    (report, looked)
}

fn step_result(scenario: &Scenario, done: Done) -> StepResult {
    let step = done.step(scenario);
    StepResult {
        thread: done.part.name(scenario).to_string(),
        line: step.line,
        text: step.text.clone(),
        label: step.label.clone(),
        answer: done.answer,
        problem: done.problem,
    }
}
