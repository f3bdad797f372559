//! A scenario as a program that is executed many times: set-up, threads, what comes after them, and the judgement.
//!
//! `gmem run` executes it once, `gmem explore` until the space or the budget is exhausted, the failure report once more to look closer;
//! all of them through the same [`ScenarioProgram`].

use std::any::Any;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;
use sim_kernel::Cx;
use sim_kernel::explore::{Judgement, Problem, Program};
use sim_kernel::sched::{MemoryModel, Sim, Verdict, invariant_of};

use crate::interp::World;
use crate::invariants::{self, Snapshot};
use crate::ops::Answer;
use crate::scenario::{Pattern, Scenario, Step};

/// A part of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What is done before the threads start.
    Setup,
    /// The thread with this index.
    Thread(usize),
    /// What is done after all threads have ended.
    Finish,
}

impl Part {
    /// `setup`, the thread's name, or `finish`.
    pub fn name(self, scenario: &Scenario) -> &str {
        match self {
            Part::Setup => "setup",
            Part::Thread(index) => &scenario.threads[index].name,
            Part::Finish => "finish",
        }
    }

    /// The steps of this part.
    pub fn steps(self, scenario: &Scenario) -> &[Step] {
        match self {
            Part::Setup => &scenario.setup,
            Part::Thread(index) => &scenario.threads[index].steps,
            Part::Finish => &scenario.finish,
        }
    }
}

/// A step that was completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Whose step.
    pub part: Part,
    /// Its index among the steps of that part.
    pub index: usize,
    /// What the operation answered.
    pub answer: Answer,
    /// Why the answer is not what the line expects.
    pub problem: Option<String>,
}

impl Done {
    /// The step as the scenario has it.
    pub fn step<'s>(&self, scenario: &'s Scenario) -> &'s Step {
        &self.part.steps(scenario)[self.index]
    }
}

/// One execution under way, or ended.
#[derive(Clone, Debug)]
pub struct Running {
    /// The host, its process, and the names of what the process made.
    pub world: Arc<World>,
    /// The steps in the order in which they were completed.
    pub done: Arc<Mutex<Vec<Done>>>,
    /// The assertion that failed in the set-up; no thread was started then.
    broken: Option<String>,
}

impl Running {
    /// The assertion that failed in the set-up, in which nothing races; no thread was started then.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }
}

/// What must not have come out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Id of the invariant that did not hold; `None` if an answer is not what the scenario expects.
    pub invariant: Option<String>,
    /// What is wrong, in words.
    pub message: String,
}

impl Failure {
    fn of_message(message: String) -> Failure {
        Failure { invariant: invariant_of(&message).map(str::to_string), message }
    }

    /// What tells failures apart: the invariant's id or, if an answer is wrong, that.
    pub fn kind(&self) -> &str {
        self.invariant.as_deref().unwrap_or("expectation")
    }
}

/// How an execution ended, once nothing is left to do.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// Whether one of the expected outcomes came out; what came instead.
    pub outcome: Option<String>,
    /// The assertion that failed after the threads had ended.
    pub invariant: Option<String>,
}

/// A scenario that can be executed any number of times.
#[derive(Clone, Debug)]
pub struct ScenarioProgram {
    scenario: Arc<Scenario>,
    memory: MemoryModel,
    /// Whether the end of each execution is looked at in full.
    thorough: bool,
}

impl ScenarioProgram {
    /// The program that does what `scenario` says.
    pub fn new(scenario: &Scenario) -> ScenarioProgram {
        ScenarioProgram { scenario: Arc::new(scenario.clone()), memory: MemoryModel::Sc, thorough: false }
    }

    /// The same program with these reorderings of loads and stores.
    #[must_use]
    pub fn with_memory(self, memory: MemoryModel) -> ScenarioProgram {
        ScenarioProgram { memory, ..self }
    }

    /// Which reorderings of loads and stores there are.
    pub fn memory(&self) -> MemoryModel {
        self.memory
    }

    /// The same, with every check of [`invariants`] over the state that the threads leave. That costs as much as some hundred steps.
    pub fn thorough(scenario: &Scenario) -> ScenarioProgram {
        ScenarioProgram { thorough: true, ..ScenarioProgram::new(scenario) }
    }

    /// This program, as [`ScenarioProgram::thorough`] has it.
    #[must_use]
    pub fn thoroughly(self) -> ScenarioProgram {
        ScenarioProgram { thorough: true, ..self }
    }

    /// The scenario.
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// The boot task's part: makes a host, performs the set-up, and starts the threads.
    pub fn begin(&self, cx: &Cx<'_>) -> Running {
        self.begin_watched(cx, |_| {})
    }

    /// As [`ScenarioProgram::begin`]; `watch` gets the host before anything is done on it.
    pub fn begin_watched(&self, cx: &Cx<'_>, watch: impl FnOnce(&Running)) -> Running {
        let world = Arc::new(World::checked(cx, self.scenario.machine.clone()));
        let mut running = Running { world, done: Arc::default(), broken: None };
        watch(&running);
        if let Err(message) = quietly(|| self.perform(cx, &running, Part::Setup)) {
            running.broken = Some(message);
            return running;
        }
        for (index, thread) in self.scenario.threads.iter().enumerate() {
            let (program, running) = (self.clone(), running.clone());
            cx.spawn(&thread.name, move |cx| program.perform(cx, &running, Part::Thread(index)));
        }
        running
    }

    fn perform(&self, cx: &Cx<'_>, running: &Running, part: Part) {
        for (index, step) in part.steps(&self.scenario).iter().enumerate() {
            cx.note("step", step.op.name());
            let answer = running.world.execute(cx, &step.op);
            let problem = step.expect.as_ref().and_then(|expect| expect.check(&answer).err());
            running.done.lock().push(Done { part, index, answer, problem });
        }
    }

    /// Performs what comes after the threads, tests the outcome, then ends the process and checks what it leaves behind. Nothing of it
    /// if the threads did not end; their verdict says why.
    pub fn end(&self, sim: &mut Sim, running: &Running, verdict: &Verdict) -> Ending {
        match self.finish(sim, running, verdict) {
            Some(ending) => ending,
            None => self.look_at_the_end(sim, running),
        }
    }

    /// The first part of [`ScenarioProgram::end`]: performs what comes after the threads. An ending if that was the end.
    pub fn finish(&self, sim: &mut Sim, running: &Running, verdict: &Verdict) -> Option<Ending> {
        if !verdict.is_completed() || running.broken.is_some() {
            return Some(Ending { outcome: None, invariant: running.broken.clone() });
        }
        let performed = quietly(|| sim.solo(|cx| self.perform(cx, running, Part::Finish)));
        performed.err().map(|message| Ending { outcome: None, invariant: Some(message) })
    }

    /// The rest of it, if [`ScenarioProgram::finish`] was not the end.
    pub fn look_at_the_end(&self, sim: &mut Sim, running: &Running) -> Ending {
        let outcome = {
            let done = running.done.lock();
            let labelled = |label: &str| done.iter().find(|d| d.step(&self.scenario).label.as_deref() == Some(label));
            self.scenario.check_outcome(|label| labelled(label).map(|done| &done.answer)).err()
        };
        let invariant = quietly(|| sim.solo(|cx| check(cx, &running.world, self.thorough))).err();
        Ending { outcome, invariant }
    }

    /// What is wrong with an execution, the gravest first: a broken invariant, then a deadlock, then answers.
    pub fn failure(&self, running: &Running, verdict: &Verdict, ending: &Ending) -> Option<Failure> {
        match verdict {
            Verdict::Completed => {}
            Verdict::Panicked { message, .. } => return Some(Failure::of_message(message.clone())),
            // Perhaps only an unfair schedule; statistics count it, and nothing is called verified.
            Verdict::StepLimit { .. } => return None,
            other => {
                let invariant = other.invariant().map(str::to_string);
                return Some(Failure { invariant, message: other.to_string() });
            }
        }
        if let Some(message) = &ending.invariant {
            return Some(Failure::of_message(message.clone()));
        }
        let done = running.done.lock();
        if let Some((done, problem)) = done.iter().find_map(|done| Some((done, done.problem.as_ref()?))) {
            let step = done.step(&self.scenario);
            let thread = done.part.name(&self.scenario);
            return Some(Failure { invariant: None, message: format!("{thread}, line {}: {problem}", step.line) });
        }
        ending.outcome.clone().map(|message| Failure { invariant: None, message })
    }

    /// What came out, in a form that is the same for all executions in which the same came out: the answers of the steps that have a label
    /// or, if none has, of all after the set-up, by thread.
    pub fn outcome(&self, running: &Running) -> String {
        let done = running.done.lock();
        let labelled = self.scenario.steps().any(|step| step.label.is_some());
        let is_told =
            |done: &&Done| done.part != Part::Setup && (!labelled || done.step(&self.scenario).label.is_some());
        let mut done: Vec<&Done> = done.iter().filter(is_told).collect();
        done.sort_by_key(|done| (done.part, done.index));
        let mut text = String::new();
        for done in done {
            let name = done
                .step(&self.scenario)
                .label
                .clone()
                .unwrap_or_else(|| format!("{}[{}]", done.part.name(&self.scenario), done.index));
            let gap = if text.is_empty() { "" } else { "; " };
            match Pattern::of(&done.answer) {
                Some(words) => write!(text, "{gap}{name} => {words}"),
                None => write!(text, "{gap}{name} => {}", done.answer),
            }
            .expect("writing to a string");
        }
        text
    }
}

impl Program for ScenarioProgram {
    type State = Running;

    fn setup(&self, cx: &Cx<'_>) -> Running {
        self.begin(cx)
    }

    fn judge(&self, sim: &mut Sim, running: Running, verdict: &Verdict) -> Judgement {
        let ending = self.end(sim, &running, verdict);
        let problem = self.failure(&running, verdict, &ending);
        let outcome = match &problem {
            Some(failure) if failure.invariant.is_some() => format!("fails: {}", failure.kind()),
            _ if verdict.is_completed() => self.outcome(&running),
            _ => "no end within the limit of steps".to_string(),
        };
        let problem = problem.map(|failure| Problem { id: failure.invariant, message: failure.message });
        Judgement { outcome, problem }
    }
}

/// Checks the invariants of every VM that is left, then ends the process and checks that it leaves nothing behind.
fn check(cx: &Cx<'_>, world: &World, thorough: bool) {
    for (_, vm) in world.vms(cx) {
        vm.check_invariants();
    }
    if thorough && let Err(violation) = invariants::check(&Snapshot::of(world.process().host(), true, cx.held_locks()))
    {
        panic!("{violation}");
    }
    cx.note("step", "end");
    world.process().exit(cx);
    if let Some(sev) = world.process().host().sev() {
        sev.check_end();
    }
    if let Some(tdx) = world.process().host().tdx() {
        tdx.check_end();
    }
    if let Some(pkvm) = world.process().host().pkvm() {
        pkvm.check_end();
    }
    let phys = world.process().host().phys();
    let (used, reserved) = (phys.used_frames(), phys.reserved_frames());
    // What broke stays out of use for good, by one reference each.
    let broken = phys.broken_frames();
    let used_up = reserved + broken.len() as u64;
    assert_eq!(used, used_up, "INV-105: frames are in use after the last process has ended");
    for pfn in broken {
        assert_eq!(phys.refcount(pfn), 1, "INV-105: a reference to {pfn:?}, which broke, was never put");
    }
}

/// What `body` returns, or the message of the assertion that it failed.
fn quietly<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|payload| panic_message(&*payload))
}

/// The message of a panic.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_string()
}
