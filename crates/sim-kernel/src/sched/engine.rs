//! The engine: which task runs, what each task is about to do, who is blocked on what.
//!
//! All state of one simulated execution lives here, in cells, because everything runs on one OS thread. A task that reaches a
//! scheduling point writes its pending [`Op`], the strategy picks a task, and control moves only if the pick is another task.
//! A blocked task is not runnable, so it costs nothing; acquiring a lock makes the other pending acquirers of that lock not
//! runnable, and releasing it makes them runnable again, so "runnable" always means "can perform its pending operation now".

use super::event::{Event, EventLog, LogLevel, Names, TraceRecord};
use super::op::{Access, MAX_TASKS, ObjId, Op, TaskId, TaskSet};
use super::strategy::{Chooser, Divergence, Ready};
use crate::pool::Pool;
use crate::{Mutant, MutantSet};
use std::cell::{Cell, RefCell};
use std::panic::Location;
use std::sync::Arc;

/// Body of a task that is yet to start.
pub(crate) type TaskBody = Box<dyn FnOnce(&crate::Cx<'_>) + Send>;

/// Why the engine stopped scheduling.
#[derive(Clone, Debug)]
pub(crate) enum Stop {
    /// It did not.
    Running,
    /// Tasks remain and none can run.
    Deadlock,
    /// The step limit was reached.
    StepLimit,
    /// The recorded schedule does not fit.
    Diverged(Divergence),
}

/// A lock that a task holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) task: TaskId,
    pub(crate) object: ObjId,
    pub(crate) index: u64,
    pub(crate) access: Access,
    pub(crate) site: &'static Location<'static>,
}

/// Hands control back to the runner; resumed when the task is picked again.
pub(crate) type Yielder = corosensei::Yielder<(), ()>;

pub(crate) struct Engine {
    pub(crate) current: Cell<TaskId>,
    pub(crate) live: Cell<TaskSet>,
    pub(crate) runnable: Cell<TaskSet>,
    pub(crate) pending: Box<[Cell<Op>; MAX_TASKS]>,
    pub(crate) stop: RefCell<Stop>,
    /// Set while abandoned tasks unwind: nothing schedules, logs or blocks any more.
    pub(crate) aborting: Cell<bool>,
    pub(crate) chooser: RefCell<Chooser>,
    pub(crate) decisions: RefCell<Vec<TaskId>>,
    pub(crate) steps: Cell<u64>,
    pub(crate) steps_max: Cell<u64>,
    objects: RefCell<Vec<&'static str>>,
    pub(crate) names: RefCell<Vec<Box<str>>>,
    pub(crate) new_tasks: RefCell<Vec<(TaskId, TaskBody)>>,
    pub(crate) held: RefCell<Vec<Held>>,
    pub(crate) signals: Cell<TaskSet>,
    pub(crate) mutants: Cell<MutantSet>,
    pub(crate) rcu: super::super::sync::rcu::SimRcu,
    logging: Cell<bool>,
    pub(crate) log: RefCell<EventLog>,
    capturing: Cell<bool>,
    captured: RefCell<Vec<TraceRecord>>,
    /// Storage for the next execution.
    pub(crate) pool: Arc<Pool>,
}

impl Engine {
    #[track_caller]
    pub(crate) fn new() -> Engine {
        let idle = Op::new(Access::Start, ObjId::NONE, 0);
        let engine = Engine {
            current: Cell::new(TaskId::BOOT),
            live: Cell::new(TaskSet::EMPTY),
            runnable: Cell::new(TaskSet::EMPTY),
            pending: Box::new([const { None::<Op> }; MAX_TASKS].map(|_| Cell::new(idle))),
            stop: RefCell::new(Stop::Running),
            aborting: Cell::new(false),
            chooser: RefCell::new(Chooser::RunToCompletion(Default::default())),
            decisions: RefCell::new(Vec::new()),
            steps: Cell::new(0),
            steps_max: Cell::new(u64::MAX),
            objects: RefCell::new(Vec::new()),
            names: RefCell::new(Vec::new()),
            new_tasks: RefCell::new(Vec::new()),
            held: RefCell::new(Vec::new()),
            signals: Cell::new(TaskSet::EMPTY),
            mutants: Cell::new(MutantSet::EMPTY),
            rcu: Default::default(),
            logging: Cell::new(false),
            log: RefCell::new(EventLog::new(LogLevel::Off)),
            capturing: Cell::new(false),
            captured: RefCell::new(Vec::new()),
            pool: Arc::default(),
        };
        engine.reset(LogLevel::Off);
        engine
    }

    /// Forgets everything about the last execution; buffers keep their capacity.
    pub(crate) fn reset(&self, level: LogLevel) {
        self.current.set(TaskId::BOOT);
        self.live.set(TaskSet::EMPTY);
        self.runnable.set(TaskSet::EMPTY);
        *self.stop.borrow_mut() = Stop::Running;
        self.aborting.set(false);
        self.decisions.borrow_mut().clear();
        self.steps.set(0);
        let mut objects = self.objects.borrow_mut();
        objects.clear();
        objects.push("none");
        let mut names = self.names.borrow_mut();
        names.clear();
        names.push("boot".into());
        self.new_tasks.borrow_mut().clear();
        self.held.borrow_mut().clear();
        self.signals.set(TaskSet::EMPTY);
        self.mutants.set(MutantSet::EMPTY);
        self.rcu.reset();
        self.logging.set(level != LogLevel::Off);
        self.log.borrow_mut().clear(level);
        self.captured.borrow_mut().clear();
    }

    pub(crate) fn new_object(&self, class: &'static str) -> ObjId {
        let mut objects = self.objects.borrow_mut();
        objects.push(class);
        ObjId(u32::try_from(objects.len() - 1).expect("fewer than 2^32 shared objects"))
    }

    pub(crate) fn spawn(&self, name: &str, body: TaskBody) -> TaskId {
        let mut names = self.names.borrow_mut();
        assert!(names.len() < MAX_TASKS, "more than {} tasks", MAX_TASKS - 1);
        let task = TaskId(names.len() as u8);
        names.push(name.into());
        self.pending[task.index()].set(Op::new(Access::Start, ObjId::NONE, 0));
        self.live.set(self.live.get().with(task));
        self.runnable.set(self.runnable.get().with(task));
        self.new_tasks.borrow_mut().push((task, body));
        if self.logging.get() {
            self.log.borrow_mut().push(Event::Spawn { task, name: name.into() });
        }
        task
    }

    /// Picks among the runnable tasks and makes the pick current. `None`: nobody runs any more.
    #[inline]
    pub(crate) fn next(&self) -> Option<TaskId> {
        let runnable = self.runnable.get();
        let task = match runnable.single() {
            Some(task) => task,
            None => self.decide(runnable)?,
        };
        self.current.set(task);
        Some(task)
    }

    /// A decision of the strategy. `None`: there is nothing to decide on, or the strategy gives up.
    fn decide(&self, runnable: TaskSet) -> Option<TaskId> {
        if runnable.is_empty() {
            *self.stop.borrow_mut() = Stop::Deadlock;
            return None;
        }
        let current = self.current.get();
        let ready =
            Ready { current, runnable, live: self.live.get(), steps: self.steps.get(), pending: &self.pending };
        let task = match &mut *self.chooser.borrow_mut() {
            // The usual one, and it always has an answer.
            Chooser::Random(random) => random.choose(&ready),
            chooser => match chooser.pick(&ready) {
                Ok(task) => task,
                Err(divergence) => {
                    *self.stop.borrow_mut() = Stop::Diverged(divergence);
                    return None;
                }
            },
        };
        assert!(runnable.contains(task), "the strategy picked {task:?}, which cannot run");
        self.decisions.borrow_mut().push(task);
        Some(task)
    }

    /// Announces `op` as the current task's next operation and lets the strategy decide; returns when it is this task's turn.
    #[inline]
    pub(crate) fn announce(&self, yielder: &Yielder, op: Op) {
        let me = self.current.get();
        self.pending[me.index()].set(op);
        let steps = self.steps.get() + 1;
        self.steps.set(steps);
        if steps > self.steps_max.get() {
            *self.stop.borrow_mut() = Stop::StepLimit;
            self.current.set(me);
            yielder.suspend(());
            unreachable!("a task was resumed after the step limit");
        }
        if self.runnable.get() != TaskSet::only(me) {
            match self.next() {
                Some(task) if task == me => {}
                _ => yielder.suspend(()),
            }
        }
        self.execute(me, &op);
    }

    /// Logs an operation that happens now.
    #[inline]
    pub(crate) fn execute(&self, task: TaskId, op: &Op) {
        // Not `if let`: its borrow would last into the body, which borrows mutably.
        let custom = matches!(&*self.chooser.borrow(), Chooser::Custom(_));
        if custom {
            self.executed_custom(task, op);
        }
        if self.logging.get() {
            self.log_op(task, op);
        }
    }

    #[cold]
    fn executed_custom(&self, task: TaskId, op: &Op) {
        self.chooser.borrow_mut().executed(task, op);
    }

    #[cold]
    fn log_op(&self, task: TaskId, op: &Op) {
        self.log.borrow_mut().push(Event::Op { task, access: op.access, object: op.object, index: op.index });
    }

    /// Marks the current task as unable to run until something wakes it.
    #[inline]
    pub(crate) fn block_current(&self) {
        self.runnable.set(self.runnable.get().without(self.current.get()));
    }

    /// The current task now holds a lock: pending acquirers that are excluded by it cannot run.
    #[inline]
    pub(crate) fn acquired(&self, op: &Op) {
        let me = self.current.get();
        self.held.borrow_mut().push(Held {
            task: me,
            object: op.object,
            index: op.index,
            access: op.access,
            site: op.site,
        });
        let mut runnable = self.runnable.get();
        if runnable == TaskSet::only(me) {
            return;
        }
        for task in runnable.without(me).iter() {
            let pending = self.pending[task.index()].get();
            if pending.access.is_acquire() && pending.same_place(op) && pending.depends_on(op) {
                runnable = runnable.without(task);
            }
        }
        self.runnable.set(runnable);
    }

    /// The current task let go of a lock. `free` says whether an acquirer of the given kind can have it now.
    #[inline]
    pub(crate) fn released(&self, object: ObjId, index: u64, free: impl Fn(Access) -> bool) {
        let me = self.current.get();
        {
            let mut held = self.held.borrow_mut();
            let at = held.iter().rposition(|h| h.task == me && h.object == object && h.index == index);
            let at = at.or_else(|| held.iter().rposition(|h| h.object == object && h.index == index));
            held.swap_remove(at.expect("a released lock is held"));
        }
        let blocked = TaskSet(self.live.get().0 & !self.runnable.get().0);
        if !blocked.is_empty() {
            self.wake_if(object, index, |op| op.access.is_acquire() && free(op.access));
        }
        if self.logging.get() {
            self.log.borrow_mut().push(Event::Op { task: me, access: Access::Unlock, object, index });
        }
    }

    /// Makes the blocked tasks runnable whose pending operation is at this place and satisfies `wanted`.
    pub(crate) fn wake_if(&self, object: ObjId, index: u64, wanted: impl Fn(&Op) -> bool) {
        let mut runnable = self.runnable.get();
        for task in TaskSet(self.live.get().0 & !runnable.0).iter() {
            let pending = self.pending[task.index()].get();
            if pending.object == object && pending.index == index && wanted(&pending) {
                runnable = runnable.with(task);
            }
        }
        self.runnable.set(runnable);
    }

    /// Whether another task's pending operation is to acquire this lock.
    pub(crate) fn is_contended(&self, object: ObjId, index: u64) -> bool {
        let me = self.current.get();
        self.live.get().without(me).iter().any(|task| {
            let pending = self.pending[task.index()].get();
            pending.access.is_acquire() && pending.object == object && pending.index == index
        })
    }

    /// Whether the current task holds this lock in a mode that satisfies `access`.
    pub(crate) fn holds(&self, object: ObjId, index: u64, access: Access) -> bool {
        let me = self.current.get();
        self.held.borrow().iter().any(|h| {
            h.task == me
                && h.object == object
                && h.index == index
                && (h.access == access || h.access == Access::LockExclusive)
        })
    }

    #[inline]
    pub(crate) fn has_mutant(&self, mutant: Mutant) -> bool {
        self.mutants.get().contains(mutant)
    }

    pub(crate) fn is_tracing(&self) -> bool {
        self.logging.get() || self.capturing.get()
    }

    pub(crate) fn trace(&self, record: TraceRecord) {
        if self.capturing.get() {
            self.captured.borrow_mut().push(record.clone());
        }
        if self.logging.get() {
            self.log.borrow_mut().push(Event::Trace(record));
        }
    }

    pub(crate) fn capture(&self, on: bool) {
        self.capturing.set(on);
    }

    pub(crate) fn take_captured(&self) -> Vec<TraceRecord> {
        std::mem::take(&mut *self.captured.borrow_mut())
    }

    pub(crate) fn log_end(&self, task: TaskId) {
        if self.logging.get() {
            self.log.borrow_mut().push(Event::End { task });
        }
    }
}

impl Names for Engine {
    fn task(&self, task: TaskId) -> String {
        self.names.borrow().get(task.index()).map_or_else(|| format!("{task:?}"), |n| n.to_string())
    }

    fn object(&self, object: ObjId) -> String {
        let objects = self.objects.borrow();
        let Some(class) = objects.get(object.0 as usize) else {
            return format!("object {}", object.0);
        };
        if object == ObjId::NONE {
            return (*class).to_string();
        }
        let ordinal = objects[..object.0 as usize].iter().filter(|c| *c == class).count();
        format!("{class}#{ordinal}")
    }
}
