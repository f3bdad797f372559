//! Runs a scenario: its set-up, then its threads as tasks under a strategy, then what comes after them.
//!
//! A run is a function of scenario, strategy and seed: same answers in the same order, same events, same hash, on every machine.

use std::sync::Arc;

use parking_lot::Mutex;
use sim_kernel::Cx;
use sim_kernel::sched::{
    Chooser, Config, LogLevel, Random, Replay, RoundRobin, RunToCompletion, Schedule, Sim, Verdict,
};

use crate::cli::args::Strategy;
use crate::interp::World;
use crate::ops::Answer;
use crate::scenario::{Scenario, Step};

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
    let mut sim = Sim::new(chooser);
    let results: Arc<Mutex<Vec<StepResult>>> = Arc::default();
    let config = Config { seed, steps_max: STEPS_MAX, log: level.max(LogLevel::Hash), ..Config::default() };
    let (world, verdict) = sim.execute(&config, |cx| {
        let world = Arc::new(World::new(cx, scenario.machine.clone()));
        perform(cx, &world, "setup", &scenario.setup, &results);
        for thread in &scenario.threads {
            let (world, results, thread) = (Arc::clone(&world), Arc::clone(&results), thread.clone());
            let name = thread.name.clone();
            cx.spawn(&name, move |cx| perform(cx, &world, &thread.name, &thread.steps, &results));
        }
        world
    });
    let mut invariant = None;
    if verdict.is_completed() {
        sim.solo(|cx| perform(cx, &world, "finish", &scenario.finish, &results));
        invariant = check(&mut sim, &world);
    }
    let steps = std::mem::take(&mut *results.lock());
    let answer = |label: &str| steps.iter().find(|s| s.label.as_deref() == Some(label)).map(|s| &s.answer);
    // A run that did not end has no outcome; its verdict says why.
    let outcome = if verdict.is_completed() { scenario.check_outcome(answer) } else { Ok(()) };
    RunReport {
        steps,
        verdict,
        outcome,
        invariant,
        schedule: sim.schedule(),
        scheduling_points: sim.steps(),
        log_digest: sim.log_digest().expect("a run is always hashed"),
        log: (level == LogLevel::Full).then(|| sim.log_json()),
    }
}

fn perform(cx: &Cx<'_>, world: &World, thread: &str, steps: &[Step], results: &Mutex<Vec<StepResult>>) {
    for step in steps {
        let answer = world.execute(cx, &step.op);
        let problem = step.expect.as_ref().and_then(|expect| expect.check(&answer).err());
        results.lock().push(StepResult {
            thread: thread.to_string(),
            line: step.line,
            text: step.text.clone(),
            label: step.label.clone(),
            answer,
            problem,
        });
    }
}

/// Checks the invariants of every VM that is left, then ends the process and checks that it leaves nothing behind.
fn check(sim: &mut Sim, world: &Arc<World>) -> Option<String> {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        sim.solo(|cx| {
            for (_, vm) in world.vms(cx) {
                vm.check_invariants();
            }
            world.process().exit(cx);
            let phys = world.process().host().phys();
            let (used, reserved) = (phys.used_frames(), phys.reserved_frames());
            assert_eq!(used, reserved, "frames are in use after the last process has ended");
        });
    }));
    caught.err().map(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_string())).unwrap_or_default()
    })
}
