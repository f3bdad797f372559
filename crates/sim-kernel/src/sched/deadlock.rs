//! Who waits for whom: what is reported when tasks remain and none can run.

use super::engine::{Engine, Held};
use super::event::Names;
use super::op::{Access, ObjId, TaskSet};
use std::fmt;

/// One blocked task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// Name of the task.
    pub task: String,
    /// What it waits to do, as in `lock mmu_lock#0`.
    pub wants: String,
    /// File and line of the model where it waits.
    pub site: String,
    /// Tasks that hold what it waits for, with the place where they took it; empty for waits on a condition.
    pub held_by: Vec<(String, String)>,
    /// What it holds itself.
    pub holds: Vec<String>,
}

/// All tasks that are left, and what each waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlock {
    /// The blocked tasks, by task number.
    pub waiters: Vec<Waiter>,
}

impl Deadlock {
    pub(crate) fn of(engine: &Engine, blocked: TaskSet) -> Deadlock {
        // By task, and not by who was first: equivalent executions give the same report.
        let mut held = engine.held.borrow().clone();
        held.sort_by_key(|h| (h.task, h.object, h.index));
        let place_held = |h: &Held| match h.index {
            _ if h.object == ObjId::NONE => engine.held_name(h),
            0 => engine.object(h.object),
            n => format!("{}[{n:#x}]", engine.object(h.object)),
        };
        let place = |object, index: u64| match index {
            0 => engine.object(object),
            n => format!("{}[{n:#x}]", engine.object(object)),
        };
        let waiters = blocked.iter().map(|task| {
            let op = engine.pending[task.index()].get();
            let holders = held.iter().filter(|h| {
                h.object == op.object && h.index == op.index && !matches!(op.access, Access::Wait | Access::Await)
            });
            Waiter {
                task: engine.task(task),
                wants: format!("{} {}", op.access.name(), place(op.object, op.index)),
                site: format!("{}:{}", op.site.file(), op.site.line()),
                held_by: holders
                    .map(|h| (engine.task(h.task), format!("{}:{}", h.site.file(), h.site.line())))
                    .collect(),
                holds: held.iter().filter(|h| h.task == task).map(place_held).collect(),
            }
        });
        Deadlock { waiters: waiters.collect() }
    }
}

impl fmt::Display for Deadlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "deadlock: {} tasks wait for each other", self.waiters.len())?;
        for w in &self.waiters {
            write!(f, "\n  {} waits to {} at {}", w.task, w.wants, w.site)?;
            for (task, site) in &w.held_by {
                write!(f, ", held by {task} since {site}")?;
            }
            if !w.holds.is_empty() {
                write!(f, "; holds {}", w.holds.join(", "))?;
            }
        }
        Ok(())
    }
}
