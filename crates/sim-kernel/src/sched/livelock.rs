//! Livelocks: whether an execution that reached its step limit goes in circles, or was only scheduled unfairly.
//!
//! A schedule may let one task retry for as long as it likes while the task that it waits for stands still; that says nothing about the program.
//! [`continue_fairly`] repeats the execution and goes on fairly: every task gets turns, of 1, 2, 4, … up to 4096 steps and again, so that in the
//! long turns each could finish what it is doing. If no operation is completed all the same, the program is stuck.

use super::op::TaskId;
use super::schedule::Schedule;
use super::sim::{Config, Sim, Verdict};
use super::strategy::{Chooser, Divergence, Ready, Strategy};
use crate::Cx;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

/// Longest turn, in steps.
const TURN_MAX: u64 = 4096;
/// Sites that are listed for each task.
const SITES_MAX: usize = 16;

/// Tasks that go on and on, each through the same few places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Livelock {
    /// Fair steps in which no operation was completed.
    pub steps: u64,
    /// For each task by name: the places of the model that it passed, with the operation there, in the order of first sight.
    pub circles: Vec<(String, Vec<String>)>,
}

impl fmt::Display for Livelock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no operation is completed in {} fair steps", self.steps)?;
        for (task, sites) in &self.circles {
            write!(f, "\n  {task} goes in circles through {}", sites.join(", "))?;
        }
        Ok(())
    }
}

/// Follows a schedule, then gives every task its turn.
struct FairTail {
    schedule: Schedule,
    at: usize,
    turn: u64,
    left: u64,
}

impl Strategy for FairTail {
    fn begin(&mut self, _seed: u64) {
        (self.at, self.turn, self.left) = (0, 1, 0);
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        if let Some(&wanted) = self.schedule.decisions().get(self.at) {
            self.at += 1;
            if !ready.runnable.contains(wanted) {
                return Err(Divergence::NotRunnable { at: self.at - 1, wanted, runnable: ready.runnable });
            }
            return Ok(wanted);
        }
        if self.left > 0 && ready.runnable.contains(ready.current) {
            self.left -= 1;
            return Ok(ready.current);
        }
        let next = ready.runnable.iter().find(|task| *task > ready.current);
        if next.is_none() {
            // Once around: longer turns from here on.
            self.turn = if self.turn >= TURN_MAX { 1 } else { self.turn * 2 };
        }
        self.left = self.turn;
        Ok(next.unwrap_or_else(|| ready.runnable.nth(0)))
    }
}

/// What became of an execution that went on fairly beyond its step limit.
#[derive(Debug)]
pub struct Continued<R> {
    /// The machine as the execution left it.
    pub sim: Sim,
    /// What the set-up returned.
    pub state: R,
    /// How it ended. [`Verdict::StepLimit`] without a livelock says that it still moves, and would need longer.
    pub verdict: Verdict,
    /// Why it never will, if no operation and no task ended in all of the tail.
    pub livelock: Option<Livelock>,
}

/// Repeats an execution that reached its step limit and goes on fairly for up to `tail` steps. It is a livelock if no operation
/// ([`Cx::operation_done`]) and no task ends in all of them; else the program moves on, and only the schedule was unfair.
///
/// `setup` and `config` are those of the execution, `schedule` is what was decided in it. With a tail below 32768 steps no task is sure of a
/// turn of 4096.
pub fn continue_fairly<R>(
    config: &Config,
    schedule: &Schedule,
    tail: u64,
    setup: impl FnOnce(&Cx<'_>) -> R,
) -> Continued<R> {
    let follow = FairTail { schedule: schedule.clone(), at: 0, turn: 1, left: 0 };
    let mut sim = Sim::new(Chooser::Custom(Box::new(follow)));
    let start = config.steps_max;
    let seen: Rc<RefCell<Tail>> = Rc::default();
    let watch = Rc::clone(&seen);
    let config = Config { steps_max: start.saturating_add(tail), ..*config };
    let (state, verdict) = sim.execute(&config, |cx| {
        cx.observe(move |observation| {
            let mut tail = watch.borrow_mut();
            if observation.steps() < start {
                return;
            }
            let done = *tail.done_before.get_or_insert(observation.operations());
            let Some(op) = observation.next().filter(|_| observation.operations() == done) else {
                tail.moved = true;
                return;
            };
            let sites = tail.sites.entry(observation.task()).or_default();
            let place = (op.site.file(), op.site.line(), op.access.name());
            if sites.len() < SITES_MAX && !sites.contains(&place) {
                sites.push(place);
            }
        });
        setup(cx)
    });
    let tail_seen = std::mem::take(&mut *seen.borrow_mut());
    let is_livelock = matches!(verdict, Verdict::StepLimit { .. }) && !tail_seen.moved;
    let livelock = is_livelock.then(|| {
        let line = |(file, line, access): &Place| format!("{access} at {file}:{line}");
        let circles = tail_seen.sites.iter();
        let circles = circles.map(|(task, sites)| (sim.task_name(*task), sites.iter().map(line).collect()));
        Livelock { steps: tail, circles: circles.collect() }
    });
    Continued { sim, state, verdict, livelock }
}

/// As [`continue_fairly`], of which only the livelock is wanted.
pub fn fair_tail<R>(
    config: &Config,
    schedule: &Schedule,
    tail: u64,
    setup: impl FnOnce(&Cx<'_>) -> R,
) -> Option<Livelock> {
    continue_fairly(config, schedule, tail, setup).livelock
}

/// A place of the model and what is done there.
type Place = (&'static str, u32, &'static str);

/// What the tail showed.
#[derive(Default)]
struct Tail {
    done_before: Option<u64>,
    moved: bool,
    sites: BTreeMap<TaskId, Vec<Place>>,
}

impl Sim {
    /// Name of a task of the last execution.
    pub fn task_name(&self, task: TaskId) -> String {
        super::event::Names::task(&*self.engine, task)
    }
}
