//! Tries interleavings: what becomes of a scenario when its operations are performed in a given order, as near as that is possible.

use std::cell::RefCell;
use std::rc::Rc;

use sim_kernel::sched::{
    Chooser, Config, Divergence, LogLevel, Op, Ready, Replay, Schedule, Sim, Strategy, TaskId, Verdict,
};

use super::guide::Guide;
use super::program::{Failure, ScenarioProgram};
use super::witness::STEPS_MAX;

/// What became of one order.
#[derive(Clone, Debug)]
pub struct Tried {
    /// Who performed each operation.
    pub order: Vec<TaskId>,
    /// How often a task was stopped that could have gone on.
    pub preemptions: usize,
    /// The decisions.
    pub schedule: Schedule,
    /// Whether it reached the limit of steps.
    pub is_endless: bool,
    /// What was wrong.
    pub failure: Option<Failure>,
}

/// Runs orders of one program, one after the other, on one simulation.
#[derive(Debug)]
pub struct Trials<'p> {
    program: &'p ScenarioProgram,
    sim: Sim,
    count: u64,
}

impl<'p> Trials<'p> {
    /// Nothing was tried yet.
    pub fn new(program: &'p ScenarioProgram) -> Trials<'p> {
        Trials { program, sim: Sim::sequential(), count: 0 }
    }

    /// How many executions it took so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Performs the operations in this order, as far as that is possible.
    pub fn follow(&mut self, order: Vec<TaskId>) -> Tried {
        self.run(Box::new(Guide::new(order)))
    }

    /// Follows a recorded schedule exactly.
    pub fn replay(&mut self, schedule: &Schedule) -> Tried {
        self.run(Box::new(Replay::new(schedule.clone())))
    }

    fn run(&mut self, inner: Box<dyn Strategy>) -> Tried {
        self.count += 1;
        let seen: Rc<RefCell<Seen>> = Rc::default();
        let counter = Counter { inner, seen: Rc::clone(&seen) };
        self.sim.set_chooser(Chooser::Custom(Box::new(counter)));
        let config = Config {
            seed: 0,
            steps_max: STEPS_MAX,
            log: LogLevel::Off,
            memory: self.program.memory(),
            ..Config::default()
        };
        let (running, verdict) = self.sim.execute(&config, |cx| self.program.begin(cx));
        let schedule = self.sim.schedule();
        let ending = self.program.end(&mut self.sim, &running, &verdict);
        let failure = self.program.failure(&running, &verdict, &ending);
        let Seen { order, preemptions } = std::mem::take(&mut *seen.borrow_mut());
        let is_endless = matches!(verdict, Verdict::StepLimit { .. });
        Tried { order, preemptions, schedule, is_endless, failure }
    }
}

#[derive(Default)]
struct Seen {
    order: Vec<TaskId>,
    preemptions: usize,
}

struct Counter {
    inner: Box<dyn Strategy>,
    seen: Rc<RefCell<Seen>>,
}

impl Strategy for Counter {
    fn begin(&mut self, seed: u64) {
        self.inner.begin(seed);
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let task = self.inner.pick(ready)?;
        let stopped = task != ready.current && ready.runnable.contains(ready.current);
        self.seen.borrow_mut().preemptions += usize::from(stopped);
        Ok(task)
    }

    fn executed(&mut self, task: TaskId, op: &Op) {
        self.inner.executed(task, op);
        if task != TaskId::BOOT && !std::thread::panicking() {
            self.seen.borrow_mut().order.push(task);
        }
    }
}
