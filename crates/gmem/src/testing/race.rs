//! A scenario under many interleavings, and what fails made small without losing the interleaving that made it fail.
//!
//! Whoever shrinks the operations of a race and then runs them under the old seed has another race: every decision after the first missing
//! step is drawn for something else. Here an execution is remembered as the order of its steps, each with the operation that it belongs to. When an
//! operation goes, its steps go, and all others keep their order; where that order cannot be kept (a lock is free now, a loop turns once
//! more), the nearest one that can is taken, and then a few that differ from it here and there are tried.
//!
//! Simplified: operations, threads and set-up are taken away, numbers are not made smaller.

use super::values::check_and_end;
use crate::interp::World;
use crate::scenario::{Scenario, print_file};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use sim_kernel::sched::{
    Chooser, Config, Divergence, Op, Ready, Schedule, Sim, Strategy, TaskId, Verdict, invariant_of,
};
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Steps after which an execution is given up, and counts as no failure: an unfair order may spin for ever.
const STEPS_MAX: u64 = 100_000;
/// Orders that are tried around the remembered one, for each operation that is taken away.
const AROUND: u64 = 24;
/// One decision in so many differs, around the remembered order.
const DIFFERS: u32 = 8;

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

/// Looks for a failure of the scenario under `executions` random interleavings: an invariant that does not hold, a deadlock, something left behind.
/// The first one is made small, see [`Failure::shrink`].
///
/// ```
/// let text = "[setup]\nrun = \"create_vm vm0\"\n[thread.a]\nrun = \"create_vcpu vm0 c0 0\"\n[thread.b]\nrun = \"close vm0\"\n";
/// let scenario = gmem::scenario::parse("two.toml", text).unwrap();
/// assert!(gmem::testing::race::search(&scenario, 0, 50).is_none());
/// ```
pub fn search(scenario: &Scenario, seed: u64, executions: u64) -> Option<Failure> {
    let found = (0..executions).find_map(|n| run(scenario, Follow::random(seed.wrapping_add(n))))?;
    Some(found.shrink())
}

impl Failure {
    /// Takes away operations, whole threads and set-up as long as what is left fails in the same way, and keeps the order of all other steps.
    pub fn shrink(&self) -> Failure {
        let mut best = self.clone();
        let mut is_smaller = true;
        while is_smaller {
            is_smaller = false;
            for thread in (0..best.scenario.threads.len()).rev() {
                for at in (0..best.scenario.threads[thread].steps.len()).rev() {
                    is_smaller |= best.try_without(Part::Thread(thread, at));
                    if thread >= best.scenario.threads.len() {
                        break;
                    }
                }
            }
            for at in (0..best.scenario.setup.len()).rev() {
                is_smaller |= best.try_without(Part::SetUp(at));
            }
            for at in (0..best.scenario.finish.len()).rev() {
                is_smaller |= best.try_without(Part::Finish(at));
            }
        }
        best
    }

    fn try_without(&mut self, part: Part) -> bool {
        let mut scenario = self.scenario.clone();
        let order = match part {
            Part::Thread(thread, at) => {
                scenario.threads[thread].steps.remove(at);
                let goes = scenario.threads[thread].steps.is_empty();
                if goes {
                    scenario.threads.remove(thread);
                }
                project(&self.order, thread, at, goes)
            }
            Part::SetUp(at) => {
                scenario.setup.remove(at);
                self.order.clone()
            }
            Part::Finish(at) => {
                scenario.finish.remove(at);
                self.order.clone()
            }
        };
        // A scenario without any operation is none.
        if scenario.steps().next().is_none() {
            return false;
        }
        let tries = (0..AROUND).map(|seed| Follow::order(&order, seed));
        let found = tries.filter_map(|follow| run(&scenario, follow)).find(|failure| failure.kind == self.kind);
        found.map(|failure| *self = failure).is_some()
    }
}

/// What may be taken away.
enum Part {
    Thread(usize, usize),
    SetUp(usize),
    Finish(usize),
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

/// Runs the scenario once; says how it fails, if it does. What its lines expect plays no part.
fn run(scenario: &Scenario, follow: Follow) -> Option<Failure> {
    let taken = Arc::clone(&follow.taken);
    let positions = Arc::clone(&follow.positions);
    let seed = follow.seed;
    let mut sim = Sim::new(Chooser::Custom(Box::new(follow)));
    let config = Config { seed, steps_max: STEPS_MAX, ..Config::default() };
    let executed = caught(|| {
        sim.execute(&config, |cx| {
            let world = Arc::new(World::new(cx, scenario.machine.clone()));
            for step in &scenario.setup {
                world.execute(cx, &step.op);
            }
            for (n, thread) in scenario.threads.iter().enumerate() {
                let (world, positions, steps) = (Arc::clone(&world), Arc::clone(&positions), thread.steps.clone());
                cx.spawn(&thread.name, move |cx| {
                    for (at, step) in steps.iter().enumerate() {
                        positions[n + 1].store(at, Ordering::Relaxed);
                        world.execute(cx, &step.op);
                    }
                });
            }
            world
        })
    });
    let failed = match executed {
        Err(message) => Some((kind_of(&message), format!("the set-up failed: {message}"))),
        Ok((world, Verdict::Completed)) => caught(|| {
            sim.solo(|cx| {
                for step in &scenario.finish {
                    world.execute(cx, &step.op);
                }
                check_and_end(cx, &world);
            });
        })
        .err()
        .map(|message| (kind_of(&message), message)),
        Ok((_, Verdict::StepLimit { .. })) => None,
        Ok((_, verdict)) => {
            let kind = match &verdict {
                Verdict::Panicked { message, .. } => kind_of(message),
                other => other.invariant().unwrap_or_default().to_string(),
            };
            Some((kind, verdict.to_string()))
        }
    };
    let (kind, message) = failed?;
    let order = std::mem::take(&mut *taken.lock());
    Some(Failure { scenario: scenario.clone(), schedule: sim.schedule(), kind, message, order })
}

/// The invariant that a message names; else the message without its numbers, which differ from one scenario to the next.
fn kind_of(message: &str) -> String {
    let words = || message.chars().filter(|c| !c.is_ascii_digit()).collect();
    invariant_of(message).map_or_else(words, str::to_string)
}

fn caught<R>(body: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_string())).unwrap_or_default()
    })
}

/// Follows an order of steps as far as it can be followed, and remembers the order that came of it.
struct Follow {
    order: Vec<Step>,
    left: VecDeque<Step>,
    seed: u64,
    /// One decision in so many is drawn instead: 0 for none.
    differs: u32,
    random: Pcg64,
    /// Which of its operations each task is doing.
    positions: Arc<Vec<AtomicUsize>>,
    taken: Arc<parking_lot::Mutex<Vec<Step>>>,
}

impl Follow {
    /// Draws every decision.
    fn random(seed: u64) -> Follow {
        Follow { differs: 1, ..Follow::order(&[], seed) }
    }

    /// Follows `order`: with seed 0 as it is, with any other seed roughly.
    fn order(order: &[Step], seed: u64) -> Follow {
        Follow {
            order: order.to_vec(),
            left: VecDeque::new(),
            seed,
            differs: if seed == 0 { 0 } else { DIFFERS },
            random: Pcg64::seed_from_u64(seed),
            positions: Arc::new((0..=crate::scenario::THREADS_MAX).map(|_| AtomicUsize::new(0)).collect()),
            taken: Arc::default(),
        }
    }

    fn position(&self, task: TaskId) -> usize {
        self.positions[task.index()].load(Ordering::Relaxed)
    }
}

impl Strategy for Follow {
    fn begin(&mut self, seed: u64) {
        self.left = self.order.iter().copied().collect();
        self.random = Pcg64::seed_from_u64(seed);
        self.taken.lock().clear();
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
        let at = self.position(task);
        self.taken.lock().push((task, at));
        if let Some(n) = self.left.iter().position(|(who, _)| *who == task)
            && self.left[n].1 <= at
        {
            self.left.remove(n);
        }
    }
}
