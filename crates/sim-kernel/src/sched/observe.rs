//! Observers: functions that look at a simulation after every atomic step.
//!
//! A step ends when the task that performed it announces its next operation, or ends. Then, and before anybody else moves, an observer sees who
//! that was, what every task is about to do, and which locks are held. It has no context: it can look, with the `peek` functions of what it
//! knows, and fail an assertion, which ends the execution as one of the task's own would.
//!
//! No kernel file; what KASAN, lockdep and a debugger's watchpoints are to a kernel, this is to the model.

use super::engine::{Engine, Held};
use super::event::Names;
use super::op::{Access, ObjId, Op, TaskId, TaskSet};
use std::fmt;
use std::panic::Location;

/// Looks at the simulation after a step.
pub type Observer = Box<dyn FnMut(&Observation<'_>)>;

/// A lock or a read section that a task holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// The holder.
    pub task: TaskId,
    /// Class of the lock, as in `mmu_lock`.
    pub class: &'static str,
    /// The lock; [`ObjId::NONE`] for a [`LockMap`](crate::sync::LockMap).
    pub object: ObjId,
    /// Which one of the object's, for page locks.
    pub index: u64,
    /// How it is held.
    pub access: Access,
    /// Where it was taken.
    pub site: &'static Location<'static>,
}

impl fmt::Display for HeldLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (taken at {}:{})", self.class, self.site.file(), self.site.line())
    }
}

/// What an observer sees: the moment between two steps.
pub struct Observation<'e> {
    engine: &'e Engine,
    task: TaskId,
    next: Option<Op>,
}

impl fmt::Debug for Observation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observation").field("task", &self.task).field("next", &self.next).finish_non_exhaustive()
    }
}

impl<'e> Observation<'e> {
    pub(crate) fn new(engine: &'e Engine, task: TaskId, next: Option<Op>) -> Observation<'e> {
        Observation { engine, task, next }
    }

    /// The task whose step has just ended.
    pub fn task(&self) -> TaskId {
        self.task
    }

    /// What it is about to do; nothing if it has ended.
    pub fn next(&self) -> Option<Op> {
        self.next
    }

    /// Scheduling points that tasks have reached so far.
    pub fn steps(&self) -> u64 {
        self.engine.steps.get()
    }

    /// Operations of programs that were completed so far ([`Cx::operation_done`](crate::Cx::operation_done)).
    pub fn operations(&self) -> u64 {
        self.engine.operations.get()
    }

    /// The tasks that have not ended; the one of this step counts until it has been observed at its end.
    pub fn live(&self) -> TaskSet {
        self.engine.live.get()
    }

    /// What a live task is about to do.
    pub fn pending(&self, task: TaskId) -> Op {
        self.engine.pending[task.index()].get()
    }

    /// The locks and read sections that are held, by all tasks.
    pub fn held(&self) -> Vec<HeldLock> {
        self.engine.held_locks(|_| true)
    }

    /// Whether a task is in an RCU read section.
    pub fn is_in_rcu(&self, task: TaskId) -> bool {
        self.engine.rcu.is_reader(task)
    }

    /// Whether any task holds a lock of this class.
    pub fn is_held(&self, class: &str) -> bool {
        self.engine.held.borrow().iter().any(|held| self.engine.lock_graph.name(held.class) == class)
    }

    /// Name of an object, as in `mmu_lock#0`.
    pub fn object_name(&self, object: ObjId) -> String {
        self.engine.object(object)
    }

    /// Name of a task.
    pub fn task_name(&self, task: TaskId) -> String {
        self.engine.task(task)
    }
}

impl Engine {
    /// Calls the observers: `task` has performed its step and will do `next`, or has ended.
    #[cold]
    pub(crate) fn observe(&self, task: TaskId, next: Option<Op>) {
        let observation = Observation::new(self, task, next);
        for observer in self.observers.borrow_mut().iter_mut() {
            observer(&observation);
        }
    }

    pub(crate) fn held_locks(&self, wanted: impl Fn(&Held) -> bool) -> Vec<HeldLock> {
        let held = self.held.borrow();
        let lock = |held: &Held| HeldLock {
            task: held.task,
            class: self.lock_graph.name(held.class),
            object: held.object,
            index: held.index,
            access: held.access,
            site: held.site,
        };
        held.iter().filter(|held| wanted(held)).map(lock).collect()
    }
}
