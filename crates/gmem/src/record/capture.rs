//! Rides on a run: is told every operation before it happens, and has the state described.
//!
//! The strategy of the run is wrapped. It decides as it would alone; the wrapper notes what was performed, and where, and looks at the state in
//! between, without scheduling points.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;
use sim_kernel::sched::{
    Chooser, Config, Divergence, Ended, LogLevel, MemoryModel, Op, Ready, Schedule, Sim, Strategy, TaskId, Verdict,
};

use super::assemble;
use super::look::Looker;
use super::names::Names;
use super::recording::{Line, Note, Recording, Step};
use super::store::Store;
use crate::explore::ScenarioProgram;
use crate::explore::collision;
use crate::explore::program::{Done, Part, Running, panic_message};
use crate::explore::report::{Origin, Report, operation};
use crate::explore::witness::{self, Witness, owner};
use crate::interp::World;
use crate::kvm::config::MachineConfig;
use crate::ops;
use crate::scenario::{Scenario, print};

/// Where a recording ends.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Steps of the threads after which the run is given up.
    pub steps_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { steps_max: 1_000_000 }
    }
}

/// How a scenario is run.
pub struct Plan {
    /// Who decides.
    pub strategy: Box<dyn Strategy>,
    /// What a strategy draws from.
    pub seed: u64,
    /// Which reorderings of loads and stores there are.
    pub memory: MemoryModel,
    /// Where it ends.
    pub limits: Limits,
    /// Whether a failure is looked into: that repeats the run some hundred times.
    pub explain: Option<Origin>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan").field("seed", &self.seed).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// An operation as the strategy was told of it.
pub(super) struct Told {
    pub(super) task: TaskId,
    pub(super) op: Op,
    pub(super) place: String,
    pub(super) gfns: (u64, u64),
    pub(super) preempted: Option<TaskId>,
    pub(super) line: Option<u32>,
    pub(super) decisions: u32,
    /// Lines that were completed in this step.
    pub(super) completed: Vec<u32>,
}

/// What is recorded while a run goes on.
#[derive(Default)]
pub(super) struct Tape {
    world: Option<Arc<World>>,
    looker: Looker,
    pub(super) store: Store,
    pub(super) names: Names,
    pub(super) told: Vec<Told>,
    /// Operations before the host was there to look at: its process boots.
    pub(super) booted: usize,
    lines: Lines,
    preempted: Option<TaskId>,
    is_over: bool,
    /// Tasks that could run, and all that were left, with what they were about to do, when the run was left.
    pub(super) left: Vec<(TaskId, Op, bool)>,
    /// Somebody has to decide how the run goes on.
    pub(super) is_left: bool,
    threads_ran: bool,
    /// How often somebody was chosen.
    decisions: u32,
}

/// Which line is performed now, and which are done.
#[derive(Default)]
struct Lines {
    /// Of a scenario: the steps that are done.
    done: Option<Arc<Mutex<Vec<Done>>>>,
    /// How many of those were counted.
    seen: usize,
    /// Of each part, how many are done: set-up, threads, finish.
    counts: Vec<usize>,
    /// The number of the first line of each part.
    first: Vec<usize>,
    /// Of a trace: the line.
    current: u32,
    /// The last step of each part.
    last_step: Vec<Option<usize>>,
}

impl Tape {
    /// From now on the host of `world` is looked at.
    fn start(&mut self, world: &Arc<World>) {
        world.process().host().record();
        self.world = Some(Arc::clone(world));
    }

    fn look(&mut self) {
        let Some(world) = &self.world else { return };
        self.looker.look(world.process().host(), &mut self.store);
    }

    fn learn(&mut self) {
        let Some(world) = &self.world else { return };
        self.names.learn(world, |vm| self.looker.number_of(vm));
    }

    /// The part of the program that a task performs: 0 the set-up, then the threads, then the finish.
    fn part(&self, task: TaskId) -> usize {
        match owner(task).index() {
            // The boot task, once threads have run, finishes.
            0 if self.threads_ran => self.lines.counts.len().saturating_sub(1),
            number => number,
        }
    }

    /// Counts what was completed since the last step.
    fn count_lines(&mut self) {
        let Some(done) = self.lines.done.clone() else { return };
        let done = done.lock();
        if done.len() == self.lines.seen {
            return;
        }
        for done in &done[self.lines.seen..] {
            let part = match done.part {
                Part::Setup => 0,
                Part::Thread(index) => 1 + index,
                Part::Finish => self.lines.counts.len() - 1,
            };
            let line = (self.lines.first[part] + done.index) as u32;
            self.lines.counts[part] += 1;
            if let Some(step) = self.lines.last_step[part] {
                self.told[step].completed.push(line);
            }
        }
        self.lines.seen = done.len();
        drop(done);
        self.learn();
    }

    fn executed(&mut self, task: TaskId, op: &Op) {
        if self.is_over || std::thread::panicking() {
            return;
        }
        if self.world.is_none() {
            self.booted += 1;
            return;
        }
        self.count_lines();
        self.look();
        let part = self.part(task);
        let line = if self.lines.done.is_some() {
            let index = self.lines.counts.get(part).copied().unwrap_or(0);
            let end = self.lines.first.get(part + 1).copied().unwrap_or(0);
            let line = self.lines.first.get(part).map_or(0, |first| first + index);
            (line < end).then_some(line as u32)
        } else {
            Some(self.lines.current)
        };
        let (place, gfns) = self.place(op);
        if let Some(last) = self.lines.last_step.get_mut(part) {
            *last = Some(self.told.len());
        }
        self.threads_ran |= task != TaskId::BOOT;
        let preempted = self.preempted.take().filter(|stopped| *stopped != task);
        self.told.push(Told {
            task,
            op: *op,
            place,
            gfns,
            preempted,
            line,
            decisions: self.decisions,
            completed: Vec::new(),
        });
    }

    /// The index of an operation in the words of its object, and the guest frames that it is about.
    fn place(&self, op: &Op) -> (String, (u64, u64)) {
        let Some(world) = &self.world else { return Default::default() };
        for vm in world.process().host().existing().vms {
            if let Some((gfn, level)) = vm.mmu().entry_place(op.object, op.index) {
                return (format!("gfn {:#x}, level {}", gfn.0, level.number()), (gfn.0, gfn.0 + level.span()));
            }
            if vm.attributes().object() == op.object {
                let end = op.index.saturating_add(u64::from(op.span));
                return (format!("gfn {:#x}", op.index), (op.index, end));
            }
        }
        let place = match (op.index, op.span) {
            (0, 1) => String::new(),
            (index, 1) => format!("{index:#x}"),
            (index, span) => format!("{index:#x}..{:#x}", index + u64::from(span)),
        };
        (place, (0, 0))
    }

    /// The run is at its end, or what is of interest in it is.
    fn end(&mut self) {
        if !self.is_over && self.world.is_some() {
            self.count_lines();
            self.look();
            self.learn();
            self.is_over = true;
        }
    }
}

/// Follows a schedule to its end; there it leaves the run, or goes on without preemption.
#[derive(Debug)]
pub struct Prefix {
    schedule: Schedule,
    at: usize,
    goes_on: bool,
}

impl Prefix {
    /// A run along this schedule.
    pub fn new(schedule: Schedule, goes_on: bool) -> Prefix {
        Prefix { schedule, at: 0, goes_on }
    }
}

impl Strategy for Prefix {
    fn begin(&mut self, _seed: u64) {
        self.at = 0;
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let at = self.at;
        let Some(&wanted) = self.schedule.decisions().get(at) else {
            let exhausted = Divergence::Exhausted { at, runnable: ready.runnable };
            return if self.goes_on { Ok(ready.stay_or_lowest()) } else { Err(exhausted) };
        };
        self.at += 1;
        if !ready.runnable.contains(wanted) {
            return Err(Divergence::NotRunnable { at, wanted, runnable: ready.runnable });
        }
        Ok(wanted)
    }
}

/// The strategy that wraps another one.
struct Wrapper {
    inner: Box<dyn Strategy>,
    tape: Rc<RefCell<Tape>>,
}

impl Strategy for Wrapper {
    fn begin(&mut self, seed: u64) {
        self.inner.begin(seed);
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let picked = self.inner.pick(ready);
        let mut tape = self.tape.borrow_mut();
        match &picked {
            // A task that starts decides again before its first operation; it was let in by whoever was stopped before that.
            Ok(task) if *task != ready.current && ready.runnable.contains(ready.current) => {
                tape.preempted = Some(ready.current);
                tape.decisions += 1;
            }
            Ok(_) => tape.decisions += 1,
            Err(_) => {
                let left = |task| (task, ready.pending(task), ready.runnable.contains(task));
                tape.left = ready.live.iter().map(left).collect();
                tape.is_left = true;
            }
        }
        picked
    }

    fn executed(&mut self, task: TaskId, op: &Op) {
        self.inner.executed(task, op);
        self.tape.borrow_mut().executed(task, op);
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        self.inner.ended(ended);
        let mut tape = self.tape.borrow_mut();
        if !ended.live.is_empty() {
            if !tape.is_left {
                tape.left =
                    ended.live.iter().map(|task| (task, ended.pending(task), ended.runnable.contains(task))).collect();
            }
            // Tasks are left: nothing comes after this, and what is left is about to be taken down.
            tape.end();
        }
    }
}

/// Runs a scenario and records it.
pub fn scenario(program: &ScenarioProgram, plan: Plan) -> Recording {
    let scenario = program.scenario();
    let (lines, first) = lines_of(scenario);
    let parts = scenario.threads.len() + 2;
    let told = Lines { counts: vec![0; parts], first, last_step: vec![None; parts], ..Lines::default() };
    let tape = Rc::new(RefCell::new(Tape { lines: told, ..Tape::default() }));
    let wrapper = Wrapper { inner: plan.strategy, tape: Rc::clone(&tape) };
    let mut sim = Sim::new(Chooser::Custom(Box::new(wrapper)));
    let config = Config {
        seed: plan.seed,
        steps_max: plan.limits.steps_max,
        log: LogLevel::Full,
        memory: plan.memory,
        ..Config::default()
    };
    let mut setup_steps = 0;
    let (running, verdict) = sim.execute(&config, |cx| {
        let start = |running: &Running| {
            let mut tape = tape.borrow_mut();
            tape.lines.done = Some(Arc::clone(&running.done));
            tape.start(&running.world);
        };
        let running = program.begin_watched(cx, start);
        let mut tape = tape.borrow_mut();
        tape.count_lines();
        setup_steps = tape.told.len();
        running
    });
    let schedule = sim.schedule();
    let finished = program.finish(&mut sim, &running, &verdict);
    tape.borrow_mut().end();
    let log = sim.log();
    let ending = match finished {
        Some(ending) => ending,
        None => program.look_at_the_end(&mut sim, &running),
    };
    let digest = sim.log_digest().unwrap_or_default();
    let failure = program.failure(&running, &verdict, &ending);
    let tape = std::mem::take(&mut *tape.borrow_mut());
    let objects = |object| sim.object_name(object);
    let mut recording = assemble::assemble(tape, log.events(), &objects, lines);
    for done in running.done.lock().iter() {
        let part = match done.part {
            Part::Setup => 0,
            Part::Thread(index) => 1 + index,
            Part::Finish => parts - 1,
        };
        let at = (0..part).map(|part| steps_of(scenario, part)).sum::<usize>() + done.index;
        recording.lines[at].answer = Some(done.answer.to_string());
        recording.lines[at].problem.clone_from(&done.problem);
    }
    recording.title.clone_from(&scenario.name);
    recording.teaches.clone_from(&scenario.teaches);
    recording.setup_steps = setup_steps;
    recording.schedule = schedule.to_string();
    recording.digest = digest;
    if let Verdict::Diverged(divergence @ Divergence::NotRunnable { .. }) = &verdict {
        recording.misfit = Some(format!("the schedule does not fit: {divergence}"));
    }
    recording.is_as_expected = failure.is_none() && !matches!(verdict, Verdict::StepLimit { .. });
    recording.ending = match (&failure, &verdict) {
        (Some(failure), _) => failure.message.clone(),
        (None, Verdict::Completed) => "everything came out as the scenario says".to_string(),
        (None, other) => other.to_string(),
    };
    if let Verdict::Panicked { task, message } = &verdict {
        let number = recording.tasks.iter().position(|name| name == task);
        let of_task = |step: &&mut Step| Some(step.task.index()) == number;
        if let Some(step) = recording.steps.iter_mut().rev().find(of_task) {
            step.notes.push(Note::Failed(message.clone()));
        }
    }
    if let (Some(origin), Some(_)) = (&plan.explain, &failure)
        && recording.steps.len() - setup_steps <= witness::STEPS_MAX as usize
    {
        let witness = Witness::of(program, Box::new(sim_kernel::sched::Replay::new(schedule.clone())));
        let pairs = collision::collisions(program, &witness);
        recording.pair = pairs.first().map(|pair| (setup_steps + pair.first, setup_steps + pair.second));
        recording.report = Some(Report::of_witness(program, &witness, &pairs, origin));
        if let Some((first, second)) = recording.pair {
            recording.steps[first].notable = true;
            recording.steps[second].notable = true;
        }
    }
    recording
}

/// Runs the operations of a trace one after the other and records them.
///
/// # Errors
/// What `next` fails with.
pub fn trace(
    machine: MachineConfig,
    mut next: impl FnMut() -> Result<Option<(u64, ops::Op)>, String>,
) -> Result<Recording, String> {
    let tape = Rc::new(RefCell::new(Tape::default()));
    let inner = Box::new(sim_kernel::sched::RunToCompletion);
    let mut sim = Sim::new(Chooser::Custom(Box::new(Wrapper { inner, tape: Rc::clone(&tape) })));
    let config = Config { log: LogLevel::Full, ..Config::default() };
    let mut lines: Vec<Line> = Vec::new();
    let mut ending = "every operation was performed".to_string();
    let mut is_as_expected = true;
    let (result, _) = sim.execute(&config, |cx| {
        let world = Arc::new(World::new(cx, machine));
        tape.borrow_mut().start(&world);
        while let Some((number, op)) = next()? {
            lines.push(Line { task: 0, number, text: print::print(&op), answer: None, problem: None });
            tape.borrow_mut().lines.current = lines.len() as u32 - 1;
            let before = tape.borrow().told.len();
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.execute(cx, &op)));
            let line = lines.last_mut().expect("just pushed");
            match answer {
                Ok(answer) => line.answer = Some(answer.to_string()),
                Err(payload) => {
                    ending = panic_message(&*payload);
                    line.problem = Some(ending.clone());
                    is_as_expected = false;
                }
            }
            let mut tape = tape.borrow_mut();
            if let Some(step) = tape.told.len().checked_sub(1).filter(|last| *last >= before) {
                tape.told[step].completed.push(lines.len() as u32 - 1);
            }
            tape.learn();
            if !is_as_expected {
                break;
            }
        }
        Ok::<_, String>(())
    });
    result?;
    tape.borrow_mut().end();
    let log = sim.log();
    let tape = std::mem::take(&mut *tape.borrow_mut());
    let mut recording = assemble::assemble(tape, log.events(), &|object| sim.object_name(object), lines);
    recording.tasks[0] = "the process".to_string();
    recording.digest = sim.log_digest().unwrap_or_default();
    recording.ending = ending;
    recording.is_as_expected = is_as_expected;
    Ok(recording)
}

fn steps_of(scenario: &Scenario, part: usize) -> usize {
    match part {
        0 => scenario.setup.len(),
        part if part <= scenario.threads.len() => scenario.threads[part - 1].steps.len(),
        _ => scenario.finish.len(),
    }
}

/// The lines of a scenario, and the number of the first of each part, with one more for the end.
fn lines_of(scenario: &Scenario) -> (Vec<Line>, Vec<usize>) {
    let mut lines = Vec::new();
    let mut first = Vec::new();
    let threads = scenario.threads.iter().enumerate().map(|(index, thread)| (1 + index, &thread.steps));
    for (task, steps) in std::iter::once((0, &scenario.setup)).chain(threads).chain([(0, &scenario.finish)]) {
        first.push(lines.len());
        for step in steps {
            let text = operation(&step.text).to_string();
            lines.push(Line { task, number: u64::from(step.line), text, answer: None, problem: None });
        }
    }
    first.push(lines.len());
    (lines, first)
}
