//! A scenario under many interleavings, and what fails made small without losing the interleaving that made it fail.
//!
//! Whoever shrinks the operations of a race and then runs them under the old seed has another race: every decision after the first missing
//! step is drawn for something else. Here an execution is remembered as the order of its steps, each with the operation that it belongs to. When an
//! operation goes, its steps go, and all others keep their order; where that order cannot be kept (a lock is free now, a loop turns once
//! more), the nearest one that can is taken, and then a few that differ from it here and there are tried.
//!
//! Simplified: operations, threads and set-up are taken away, numbers are not made smaller.

use crate::explore::program::{Done, Part, ScenarioProgram};
use crate::scenario::{Scenario, print_file};
use parking_lot::Mutex;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sim_kernel::sched::{Chooser, Config, Divergence, Op, Ready, Schedule, Sim, Strategy, TaskId};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

/// Steps after which an execution is given up, and counts as no failure: an unfair order may spin for ever.
const STEPS_MAX: u64 = 100_000;
/// Orders that are tried around the remembered one, for each operation that is taken away.
const AROUND: u64 = 24;
/// One decision in so many differs, around the remembered order.
const DIFFERS: u32 = 8;

/// The operations that were completed, in order.
type Progress = Arc<Mutex<Vec<Done>>>;

/// A step of an execution: whose, and of which of its thread's operations.
type Step = (TaskId, usize);

/// A scenario that fails, and the interleaving under which it does. It prints as a report with everything that it takes to see it again.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The scenario.
    pub scenario: Scenario,
    /// The decisions.
    pub schedule: Schedule,
    /// What kind of failure it is: the invariant's id, if it has one.
    pub kind: String,
    /// What happened, in words.
    pub message: String,
    order: Vec<Step>,
}

/// Looks for a failure of the scenario under `executions` random interleavings, with many changes of the task and with few: an invariant that does not hold, a deadlock, something left behind. Labels and
/// expectations of its lines play no part. The first failure is made small, see [`Failure::shrink`].
///
/// ```
/// let text = "[setup]\nrun = \"create_vm vm0\"\n[thread.a]\nrun = \"create_vcpu vm0 c0 0\"\n[thread.b]\nrun = \"close vm0\"\n";
/// let scenario = gmem::scenario::parse("two.toml", text).unwrap();
/// assert!(gmem::testing::race::search(&scenario, 0, 50).is_none());
/// ```
pub fn search(scenario: &Scenario, seed: u64, executions: u64) -> Option<Failure> {
    let scenario = bare(scenario);
    let found = (0..executions).find_map(|n| run(&scenario, Follow::random(seed.wrapping_add(n))))?;
    Some(found.shrink())
}

impl Failure {
    /// Takes away operations, whole threads and set-up as long as what is left fails in the same way, and keeps the order of all other steps.
    pub fn shrink(&self) -> Failure {
        let mut best = self.clone();
        loop {
            // From the end: what comes later needs what comes before.
            let threads = (0..best.scenario.threads.len()).rev().map(Part::Thread);
            let parts: Vec<Part> = threads.chain([Part::Finish, Part::Setup]).collect();
            let mut is_smaller = false;
            for part in parts {
                // A thread goes with its last operation, which is the first one: no index behind it is left then.
                for at in (0..part.steps(&best.scenario).len()).rev() {
                    is_smaller |= best.try_without(part, at);
                }
            }
            if !is_smaller {
                return best;
            }
        }
    }

    fn try_without(&mut self, part: Part, at: usize) -> bool {
        let mut scenario = self.scenario.clone();
        let mut order = self.order.clone();
        match part {
            Part::Thread(thread) => {
                scenario.threads[thread].steps.remove(at);
                let goes = scenario.threads[thread].steps.is_empty();
                if goes {
                    scenario.threads.remove(thread);
                }
                order = project(&order, thread, at, goes);
            }
            Part::Setup => _ = scenario.setup.remove(at),
            Part::Finish => _ = scenario.finish.remove(at),
        }
        // A scenario without any operation is none.
        if scenario.steps().next().is_none() {
            return false;
        }
        let tries = (0..AROUND).map(|seed| Follow::order(&order, seed));
        let found = tries.filter_map(|follow| run(&scenario, follow)).find(|failure| failure.kind == self.kind);
        found.map(|failure| *self = failure).is_some()
    }
}

/// The order without the steps of one operation. Threads are tasks from 1; those behind a thread that goes have one less.
fn project(order: &[Step], thread: usize, at: usize, goes: bool) -> Vec<Step> {
    let task = thread + 1;
    let kept = order.iter().filter(|(who, op)| who.index() != task || (*op != at && !goes));
    let moved = kept.map(|&(who, op)| match who.index() {
        same if same == task => (who, op - usize::from(op > at)),
        later if goes && later > task => (TaskId(who.0 - 1), op),
        _ => (who, op),
    });
    moved.collect()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.message)?;
        writeln!(f, "schedule {}; in a file {}.toml:\n", self.schedule, self.scenario.name)?;
        writeln!(f, "{}", print_file(&self.scenario))?;
        write!(f, "to see it again:\n  gmem run {}.toml --schedule {}", self.scenario.name, self.schedule)
    }
}

/// Runs the scenario once; says how it fails, if it does.
fn run(scenario: &Scenario, follow: Follow) -> Option<Failure> {
    let program = ScenarioProgram::new(scenario);
    let (taken, done) = (Rc::clone(&follow.taken), Rc::clone(&follow.done));
    let config = Config { seed: follow.seed, steps_max: STEPS_MAX, ..Config::default() };
    let mut sim = Sim::new(Chooser::Custom(Box::new(follow)));
    let (running, verdict) = sim.execute(&config, |cx| {
        let running = program.begin(cx);
        *done.borrow_mut() = Some(Arc::clone(&running.done));
        running
    });
    let schedule = sim.schedule();
    let ending = program.end(&mut sim, &running, &verdict);
    let failure = program.failure(&running, &verdict, &ending)?;
    // What has no number is told apart by its words, without the numbers in them, which differ from one scenario to the next.
    let words = || failure.message.chars().filter(|c| !c.is_ascii_digit()).collect();
    let kind = failure.invariant.clone().unwrap_or_else(words);
    let order = taken.take();
    Some(Failure { scenario: scenario.clone(), schedule, kind, message: failure.message, order })
}

/// The scenario without labels and expectations, whose answers change when others go.
fn bare(scenario: &Scenario) -> Scenario {
    let mut scenario = scenario.clone();
    scenario.outcomes.clear();
    let threads = scenario.threads.iter_mut().flat_map(|thread| &mut thread.steps);
    for step in scenario.setup.iter_mut().chain(threads).chain(&mut scenario.finish) {
        *step = crate::scenario::Step::new(step.op.clone());
    }
    scenario
}

/// Follows an order of steps as far as it can be followed, and remembers the order that came of it.
struct Follow {
    order: Vec<Step>,
    left: VecDeque<Step>,
    seed: u64,
    /// One decision in so many is drawn instead: 0 for none.
    differs: u32,
    random: Pcg64,
    /// The operations that were completed, once the set-up has ended: how far each thread is.
    done: Rc<RefCell<Option<Progress>>>,
    taken: Rc<RefCell<Vec<Step>>>,
}

impl Follow {
    /// Draws decisions: every one, or one in 4, 16 or 64, in turn. A narrow window needs many changes of the task, a wide one few.
    fn random(seed: u64) -> Follow {
        Follow { differs: 1 << (2 * (seed % 4)), ..Follow::order(&[], seed) }
    }

    /// Follows `order`: with seed 0 as it is, with any other seed roughly.
    fn order(order: &[Step], seed: u64) -> Follow {
        Follow {
            order: order.to_vec(),
            left: VecDeque::new(),
            seed,
            differs: if seed == 0 { 0 } else { DIFFERS },
            random: Pcg64::seed_from_u64(seed),
            done: Rc::default(),
            taken: Rc::default(),
        }
    }

    fn position(&self, task: TaskId) -> usize {
        let done = self.done.borrow();
        let Some(done) = done.as_ref() else { return 0 };
        done.lock().iter().filter(|done| done.part == Part::Thread(task.index() - 1)).count()
    }
}

impl Strategy for Follow {
    fn begin(&mut self, seed: u64) {
        self.left = self.order.iter().copied().collect();
        self.random = Pcg64::seed_from_u64(seed);
        self.taken.borrow_mut().clear();
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        if self.differs != 0 && self.random.random_range(0..self.differs) == 0 {
            let n = self.random.random_range(0..ready.runnable.iter().count() as u32);
            return Ok(ready.runnable.nth(n));
        }
        // Steps that an operation does not take this time are over when its thread has gone on.
        while self.left.front().is_some_and(|&(task, op)| !ready.live.contains(task) || self.position(task) > op) {
            self.left.pop_front();
        }
        let next = self.left.iter().find(|(task, _)| ready.runnable.contains(*task));
        Ok(next.map_or_else(|| ready.stay_or_lowest(), |(task, _)| *task))
    }

    fn executed(&mut self, task: TaskId, _op: &Op) {
        // The boot task's steps, and those of destructors after a failure, are nobody's decision.
        if task == TaskId::BOOT || std::thread::panicking() {
            return;
        }
        let at = self.position(task);
        self.taken.borrow_mut().push((task, at));
        if let Some(n) = self.left.iter().position(|(who, _)| *who == task)
            && self.left[n].1 <= at
        {
            self.left.remove(n);
        }
    }
}
