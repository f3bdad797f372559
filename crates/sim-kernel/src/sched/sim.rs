//! Running simulated executions: coroutines on pooled stacks, one OS thread, one strategy.
//!
//! [`Sim`] is made once and runs any number of executions. An execution has three parts: the boot task sets things up and
//! spawns tasks ([`Sim::execute`]), the strategy interleaves the tasks, and afterwards the boot task may look at what is left
//! ([`Sim::solo`]).

use super::deadlock::Deadlock;
use super::engine::{Engine, Stop};
use super::event::{Event, EventLog, LogLevel, Names, render_json};
use super::lock_order::LockOrder;
use super::op::{Access, MAX_TASKS, ObjId, TaskId, TaskSet};
use super::schedule::Schedule;
use super::store_buffer::MemoryModel;
use super::strategy::{Chooser, Divergence};
use super::trail::Trail;
use crate::Cx;
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// Bytes of a task's stack; the pages behind it are only touched when used.
const STACK_BYTES: usize = 256 * 1024;
/// Steps after which an execution is taken for a livelock, unless configured.
const STEPS_MAX_DEFAULT: u64 = 10_000_000;

type Co = Coroutine<(), (), (), DefaultStack>;

/// How one execution is run.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Seed of the strategy.
    pub seed: u64,
    /// Steps after which the execution is abandoned as a livelock.
    pub steps_max: u64,
    /// How much is logged.
    pub log: LogLevel,
    /// Whether the [`Trail`] is kept.
    pub trail: bool,
    /// Which reorderings are explored.
    pub memory: MemoryModel,
}

impl Default for Config {
    fn default() -> Config {
        Config { seed: 0, steps_max: STEPS_MAX_DEFAULT, log: LogLevel::Off, trail: false, memory: MemoryModel::Sc }
    }
}

/// How an execution ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Every task ran to its end.
    Completed,
    /// Tasks remain and none can run.
    Deadlock(Deadlock),
    /// A task failed an assertion.
    Panicked {
        /// Name of the task.
        task: String,
        /// The message.
        message: String,
    },
    /// The step limit was reached: probably a livelock.
    StepLimit {
        /// The limit.
        steps: u64,
    },
    /// The replayed schedule does not fit the program.
    Diverged(Divergence),
}

impl Verdict {
    /// Whether every task ran to its end.
    pub fn is_completed(&self) -> bool {
        *self == Verdict::Completed
    }

    /// The id of the invariant that did not hold, if the execution ended for that reason: a failed assertion whose message begins with an
    /// id such as `INV-201:` or `MMU-INV-005:`, or a deadlock, which is INV-501.
    ///
    /// ```
    /// use sim_kernel::sched::Verdict;
    /// let verdict = Verdict::Panicked { task: "vmm".into(), message: "INV-201: Gfn(0x200) is ...".into() };
    /// assert_eq!(verdict.invariant(), Some("INV-201"));
    /// assert_eq!(Verdict::Completed.invariant(), None);
    /// ```
    pub fn invariant(&self) -> Option<&str> {
        match self {
            Verdict::Panicked { message, .. } => invariant_of(message),
            Verdict::Deadlock(_) => Some("INV-501"),
            _ => None,
        }
    }
}

/// The id at the beginning of an assertion's message: capitals, digits and dashes with `INV-` among them, then a colon. What `assert_eq`
/// puts before the message does not count.
pub fn invariant_of(message: &str) -> Option<&str> {
    let comparison = message.strip_prefix("assertion `left ").and_then(|rest| rest.split_once("` failed: "));
    let message = comparison.map_or(message, |(_, message)| message);
    let (id, _) = message.split_once(':')?;
    let is_id = id.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-');
    (is_id && id.contains("INV-")).then_some(id)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Completed => f.write_str("completed"),
            Verdict::Deadlock(deadlock) => deadlock.fmt(f),
            Verdict::Panicked { task, message } => write!(f, "task {task} failed: {message}"),
            Verdict::StepLimit { steps } => write!(f, "no end after {steps} steps"),
            Verdict::Diverged(divergence) => write!(f, "the schedule does not fit: {divergence}"),
        }
    }
}

/// A deterministic machine for executions.
///
/// ```
/// use sim_kernel::sched::{Chooser, Config, Random, Sim, Verdict};
/// use sim_kernel::sync::Mutex;
/// use std::sync::Arc;
///
/// let mut sim = Sim::new(Chooser::Random(Random::new()));
/// let (counter, verdict) = sim.execute(&Config { seed: 7, ..Config::default() }, |cx| {
///     let counter = Arc::new(Mutex::new(cx, "counter", 0));
///     for name in ["a", "b"] {
///         let counter = Arc::clone(&counter);
///         cx.spawn(name, move |cx| *counter.lock(cx) += 1);
///     }
///     counter
/// });
/// assert_eq!(verdict, Verdict::Completed);
/// assert_eq!(sim.solo(|cx| *counter.lock(cx)), 2);
/// ```
pub struct Sim {
    pub(super) engine: Rc<Engine>,
    coroutines: Vec<Option<Co>>,
    stacks: Vec<DefaultStack>,
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("steps", &self.steps()).field("pooled_stacks", &self.stacks.len()).finish()
    }
}

impl Sim {
    /// A machine with this strategy.
    pub fn new(chooser: Chooser) -> Sim {
        let engine = Rc::new(Engine::new());
        *engine.chooser.borrow_mut() = chooser;
        Sim { engine, coroutines: Vec::new(), stacks: Vec::new() }
    }

    /// A machine for sequential use: one task, nothing to schedule.
    pub fn sequential() -> Sim {
        Sim::new(Chooser::RunToCompletion(Default::default()))
    }

    /// Replaces the strategy.
    pub fn set_chooser(&mut self, chooser: Chooser) {
        *self.engine.chooser.borrow_mut() = chooser;
    }

    /// Lets the strategy be looked at, or prepared for the next execution.
    pub fn with_chooser<R>(&self, look: impl FnOnce(&mut Chooser) -> R) -> R {
        look(&mut self.engine.chooser.borrow_mut())
    }

    /// Runs `setup` as the boot task, then all tasks that it spawned, and those that they spawn, to the end.
    ///
    /// Returns what `setup` returned and how the execution ended. If it did not complete, the remaining tasks are abandoned;
    /// their destructors run without touching the simulation.
    ///
    /// # Panics
    /// If `setup` panics.
    pub fn execute<R>(&mut self, config: &Config, setup: impl FnOnce(&Cx<'_>) -> R) -> (R, Verdict) {
        self.engine.reset(config.log, config.trail, config.memory);
        self.engine.limit_steps(config.steps_max);
        self.engine.chooser.borrow_mut().begin(config.seed);
        let value = self.solo(setup);
        let verdict = self.run();
        (value, verdict)
    }

    /// Runs `body` as the boot task, alone, in the state that the last execution left.
    ///
    /// # Panics
    /// If `body` panics, or waits for something that only another task could do.
    pub fn solo<R>(&mut self, body: impl FnOnce(&Cx<'_>) -> R) -> R {
        self.engine.current.set(TaskId::BOOT);
        let cx = Cx::solo(&self.engine);
        let value = body(&cx);
        cx.task_work_run();
        value
    }

    fn run(&mut self) -> Verdict {
        let engine = Rc::clone(&self.engine);
        if engine.live.get().is_empty() {
            // No tasks, one interleaving.
            engine.ended(None);
            return Verdict::Completed;
        }
        let caught = catch_unwind(AssertUnwindSafe(|| self.run_tasks(&engine)));
        let verdict = match caught {
            Ok(()) => match &*engine.stop.borrow() {
                Stop::Running => Verdict::Completed,
                Stop::Deadlock => Verdict::Deadlock(Deadlock::of(&engine, engine.live.get())),
                Stop::StepLimit => Verdict::StepLimit { steps: engine.steps_max.get() },
                Stop::Diverged(divergence) => Verdict::Diverged(divergence.clone()),
            },
            Err(payload) => {
                let message = payload
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_string()))
                    .unwrap_or_else(|| "a panic without a message".to_string());
                Verdict::Panicked { task: engine.task(engine.current.get()), message }
            }
        };
        let failed = matches!(verdict, Verdict::Panicked { .. }).then(|| engine.current.get());
        engine.ended(failed);
        // Observers watch tasks; they may keep what they look at alive.
        engine.observing.set(false);
        let observers = engine.observers.try_borrow_mut().map(|mut observers| std::mem::take(&mut *observers));
        drop(observers);
        if !verdict.is_completed() {
            self.abandon();
        }
        engine.current.set(TaskId::BOOT);
        verdict
    }

    fn run_tasks(&mut self, engine: &Rc<Engine>) {
        // The first decision: which task starts.
        if engine.next().is_none() {
            return;
        }
        loop {
            self.create_coroutines(engine);
            let task = engine.current.get();
            let co = self.coroutines[task.index()].as_mut().expect("a live task has a coroutine");
            match co.resume(()) {
                CoroutineResult::Yield(()) => {
                    if !matches!(*engine.stop.borrow(), Stop::Running) {
                        return;
                    }
                }
                CoroutineResult::Return(()) => {
                    let co = self.coroutines[task.index()].take().expect("a task ends once");
                    self.stacks.push(co.into_stack());
                    engine.log_end(task);
                    if engine.observing.get() {
                        engine.observe(task, None);
                    }
                    engine.live.set(engine.live.get().without(task));
                    engine.runnable.set(engine.runnable.get().without(task));
                    if engine.live.get().is_empty() {
                        return;
                    }
                    if engine.next().is_none() {
                        return;
                    }
                }
            }
        }
    }

    fn create_coroutines(&mut self, engine: &Rc<Engine>) {
        let pop = || engine.new_tasks.borrow_mut().pop();
        while let Some((task, body)) = pop() {
            let stack = self.stacks.pop().unwrap_or_else(|| {
                DefaultStack::new(STACK_BYTES).expect("the host has address space for a task's stack")
            });
            let engine = Rc::clone(engine);
            let co = Coroutine::with_stack(stack, move |yielder, ()| {
                engine.begin_step(task, &engine.pending[task.index()].get());
                let cx = Cx::simulated(&engine, yielder, task);
                body(&cx);
                cx.task_work_run();
                let left = engine.held.borrow().iter().find(|h| h.task == task).copied();
                if let Some(held) = left {
                    panic!("INV-502: the task ends with {} held, taken at {}", engine.held_name(&held), held.site);
                }
            });
            if self.coroutines.len() <= task.index() {
                self.coroutines.resize_with(task.index() + 1, || None);
            }
            self.coroutines[task.index()] = Some(co);
        }
    }

    /// Unwinds what is left of a failed execution. Destructors see a simulation in which nothing blocks and nothing is logged.
    fn abandon(&mut self) {
        self.engine.aborting.set(true);
        for co in self.coroutines.iter_mut() {
            let Some(mut co) = co.take() else { continue };
            if !co.done() {
                co.force_unwind();
            }
            self.stacks.push(co.into_stack());
        }
        self.engine.new_tasks.borrow_mut().clear();
        self.engine.live.set(TaskSet::EMPTY);
        self.engine.runnable.set(TaskSet::EMPTY);
        self.engine.held.borrow_mut().clear();
    }

    /// Scheduling points passed by tasks in the last execution.
    pub fn steps(&self) -> u64 {
        self.engine.steps.get()
    }

    /// The steps of the last execution; empty unless [`Config::trail`] asked for them or the strategy needed them.
    pub fn trail(&self) -> std::cell::Ref<'_, Trail> {
        self.engine.trail.borrow()
    }

    /// Scheduling points passed by each task in the last execution, by task number; needs [`LogLevel::Full`].
    pub(crate) fn steps_by_task(&self) -> Vec<u32> {
        let mut steps = vec![0; MAX_TASKS];
        for event in self.engine.log.borrow().events() {
            if let Event::Op { task, access, .. } = event
                && *access != Access::Unlock
                && *task != TaskId::BOOT
            {
                steps[task.index()] += 1;
            }
        }
        steps
    }

    /// The decisions of the last execution.
    pub fn schedule(&self) -> Schedule {
        Schedule::new(self.engine.decisions.borrow().clone())
    }

    /// Number of decisions in the last execution.
    pub fn decision_count(&self) -> usize {
        self.engine.decisions.borrow().len()
    }

    /// The event log of the last execution.
    pub fn log(&self) -> EventLog {
        self.engine.log.borrow().clone()
    }

    /// Hash of the event log; `None` if logging is off.
    pub fn log_digest(&self) -> Option<u64> {
        self.engine.log.borrow().digest()
    }

    /// The event log as JSON Lines.
    pub fn log_json(&self) -> String {
        let log = self.engine.log.borrow();
        let mut text = String::new();
        for (n, event) in log.events().iter().enumerate() {
            text.push_str(&render_json(n as u64, event, &*self.engine));
            text.push('\n');
        }
        text
    }

    /// Which locks were wanted while others were held, in all executions so far.
    pub fn lock_order(&self) -> LockOrder {
        self.engine.lock_graph.order()
    }

    /// Number of edges of [`Sim::lock_order`]: while it does not grow, there is nothing new to judge.
    pub fn lock_order_len(&self) -> usize {
        self.engine.lock_graph.len()
    }

    /// Operations of programs that were completed in the last execution ([`Cx::operation_done`]).
    pub fn operations(&self) -> u64 {
        self.engine.operations.get()
    }

    /// Name of an object of the last execution, as in `mmu_lock#0`.
    pub fn object_name(&self, object: ObjId) -> String {
        self.engine.object(object)
    }
}
