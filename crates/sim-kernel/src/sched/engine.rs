//! The engine: which task runs, what each task is about to do, who is blocked on what.
//!
//! All state of one simulated execution lives here, in cells, because everything runs on one OS thread. A task that reaches a
//! scheduling point writes its pending [`Op`], the strategy picks a task, and control moves only if the pick is another task.
//! A blocked task is not runnable, so it costs nothing; acquiring a lock makes the other pending acquirers of that lock not
//! runnable, and releasing it makes them runnable again, so "runnable" always means "can perform its pending operation now".

mod effects;
mod names;

use super::effect::{Effect, EffectKind};
use super::event::{Event, EventLog, LogLevel, Names, TraceRecord};
use super::lock_order::LockGraph;
use super::observe::Observer;
use super::op::{Access, MAX_TASKS, ObjId, Op, TaskId, TaskSet};
use super::store_buffer::{BUFFERS_FROM, MemoryModel, StoreBuffers, buffer_of, owner_of};
use super::strategy::{Chooser, Divergence, Ended, Ready};
use super::trail::Trail;
use crate::pool::Pool;
use crate::sync::Until;
use crate::{Mutant, MutantSet};
use std::cell::{Cell, RefCell};
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

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
    /// Number of the class, as the lock order counts them.
    pub(crate) class: u8,
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
    /// Set while failed and abandoned tasks unwind: nothing schedules, logs or blocks any more.
    pub(crate) aborting: Cell<bool>,
    pub(crate) chooser: RefCell<Chooser>,
    pub(crate) decisions: RefCell<Vec<TaskId>>,
    pub(crate) steps: Cell<u64>,
    pub(crate) steps_max: Cell<u64>,
    /// The step after which something is due: the signal, or else the end.
    alarm: Cell<u64>,
    signal_to: Cell<TaskId>,
    objects: RefCell<Vec<&'static str>>,
    pub(crate) names: RefCell<Vec<Box<str>>>,
    /// Those of the last execution, to be taken again: tasks are mostly called the same.
    last_names: RefCell<Vec<Box<str>>>,
    pub(crate) new_tasks: RefCell<Vec<(TaskId, TaskBody)>>,
    pub(crate) held: RefCell<Vec<Held>>,
    pub(crate) signals: Cell<TaskSet>,
    /// Tasks that wait for a word to have a certain value, and for which.
    spinners: Cell<TaskSet>,
    untils: Box<[Cell<Until>; MAX_TASKS]>,
    pub(crate) stores: StoreBuffers,
    pub(crate) mutants: Cell<MutantSet>,
    pub(crate) lock_graph: LockGraph,
    /// Operations of programs that were completed.
    pub(crate) operations: Cell<u64>,
    pub(crate) observing: Cell<bool>,
    pub(crate) observers: RefCell<Vec<Observer>>,
    pub(crate) rcu: super::super::sync::rcu::SimRcu,
    logging: Cell<bool>,
    noting: Cell<bool>,
    /// Whether announcements mean more than which task runs: there is a trail, or there are store buffers.
    special: Cell<bool>,
    /// Whether anybody wants to know what is performed: a log, a trail, a strategy.
    observed: Cell<bool>,
    /// Whether the strategy is asked also where only one task can run.
    asks_always: Cell<bool>,
    /// Whether the trail is kept.
    watching: Cell<bool>,
    pub(crate) trail: RefCell<Trail>,
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
            alarm: Cell::new(u64::MAX),
            signal_to: Cell::new(TaskId::BOOT),
            objects: RefCell::new(Vec::new()),
            names: RefCell::new(Vec::new()),
            last_names: RefCell::new(Vec::new()),
            new_tasks: RefCell::new(Vec::new()),
            held: RefCell::new(Vec::new()),
            signals: Cell::new(TaskSet::EMPTY),
            spinners: Cell::new(TaskSet::EMPTY),
            untils: Box::new([const { Cell::new(Until::Equal(0)) }; MAX_TASKS]),
            stores: StoreBuffers::default(),
            mutants: Cell::new(MutantSet::EMPTY),
            lock_graph: LockGraph::new(),
            operations: Cell::new(0),
            observing: Cell::new(false),
            observers: RefCell::new(Vec::new()),
            rcu: Default::default(),
            logging: Cell::new(false),
            noting: Cell::new(false),
            special: Cell::new(false),
            observed: Cell::new(false),
            asks_always: Cell::new(false),
            watching: Cell::new(false),
            trail: RefCell::default(),
            log: RefCell::new(EventLog::new(LogLevel::Off)),
            capturing: Cell::new(false),
            captured: RefCell::new(Vec::new()),
            pool: Arc::default(),
        };
        engine.reset(LogLevel::Off, false, MemoryModel::Sc);
        engine
    }

    /// Forgets everything about the last execution; buffers keep their capacity.
    pub(crate) fn reset(&self, level: LogLevel, watch: bool, memory: MemoryModel) {
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
        self.last_names.swap(&self.names);
        let mut names = self.names.borrow_mut();
        names.clear();
        names.push(self.name_again(0, "boot"));
        self.new_tasks.borrow_mut().clear();
        self.held.borrow_mut().clear();
        self.lock_graph.reset();
        self.operations.set(0);
        self.observing.set(false);
        self.observers.borrow_mut().clear();
        self.signals.set(TaskSet::EMPTY);
        self.spinners.set(TaskSet::EMPTY);
        self.stores.reset(memory == MemoryModel::Tso);
        self.mutants.set(MutantSet::EMPTY);
        self.rcu.reset();
        self.logging.set(level != LogLevel::Off);
        self.noting.set(level == LogLevel::Notes);
        self.asks_always.set(self.chooser.borrow().asks_always());
        let watch = watch || self.asks_always.get();
        self.watching.set(watch);
        let custom = matches!(&*self.chooser.borrow(), Chooser::Custom(_));
        self.special.set(watch || memory == MemoryModel::Tso);
        self.observed.set(watch || custom || level != LogLevel::Off);
        self.trail.borrow_mut().clear();
        self.log.borrow_mut().clear(level);
        self.captured.borrow_mut().clear();
    }

    pub(crate) fn new_object(&self, class: &'static str) -> ObjId {
        let mut objects = self.objects.borrow_mut();
        objects.push(class);
        ObjId(u32::try_from(objects.len() - 1).expect("fewer than 2^32 shared objects"))
    }

    fn name_again(&self, number: usize, name: &str) -> Box<str> {
        match self.last_names.borrow_mut().get_mut(number) {
            Some(last) if **last == *name => std::mem::take(last),
            _ => name.into(),
        }
    }

    pub(crate) fn spawn(&self, name: &str, body: TaskBody) -> TaskId {
        let mut names = self.names.borrow_mut();
        let most = if self.stores.is_on.get() { usize::from(BUFFERS_FROM) } else { MAX_TASKS };
        assert!(names.len() < most, "more than {} tasks", most - 1);
        let task = TaskId(names.len() as u8);
        names.push(self.name_again(task.index(), name));
        self.pending[task.index()].set(Op::new(Access::Start, ObjId::NONE, 0));
        self.live.set(self.live.get().with(task));
        self.runnable.set(self.runnable.get().with(task));
        self.new_tasks.borrow_mut().push((task, body));
        if self.watching.get() {
            self.push_effect(Effect::spawn(task));
        }
        if self.logging.get() {
            self.log.borrow_mut().push(Event::Spawn { task, name: name.into() });
        }
        task
    }

    /// Picks among the runnable tasks and makes the pick current. `None`: nobody runs any more.
    #[inline]
    pub(crate) fn next(&self) -> Option<TaskId> {
        let mut picked = self.pick();
        // A store buffer has no coroutine: what it does is done here.
        while let Some(owner) = picked.and_then(owner_of)
            && self.stores.is_on.get()
        {
            self.flush_one(owner);
            if self.live.get().is_empty() {
                return None;
            }
            picked = self.pick();
        }
        picked
    }

    fn pick(&self) -> Option<TaskId> {
        let runnable = self.runnable.get();
        let task = match runnable.single() {
            Some(task) if !self.asks_always.get() => task,
            single => self.decide(runnable, single.is_none())?,
        };
        self.current.set(task);
        Some(task)
    }

    /// Asks the strategy, and records its answer if it had a choice. `None`: nobody can run, or the strategy gives up.
    fn decide(&self, runnable: TaskSet, is_choice: bool) -> Option<TaskId> {
        if runnable.is_empty() {
            *self.stop.borrow_mut() = Stop::Deadlock;
            return None;
        }
        let ready = Ready {
            current: self.current.get(),
            runnable,
            live: self.live.get(),
            steps: self.steps.get(),
            pending: &self.pending,
            trail: &self.trail,
        };
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
        if is_choice {
            self.decisions.borrow_mut().push(task);
        }
        Some(task)
    }

    /// Announces `op` as the current task's next operation and lets the strategy decide; returns when it is this task's turn.
    #[inline]
    pub(crate) fn announce(&self, yielder: &Yielder, op: Op) {
        let me = self.current.get();
        self.pending[me.index()].set(op);
        let special = self.special.get();
        if special {
            self.before_announcement(me, &op);
        }
        let steps = self.steps.get() + 1;
        self.steps.set(steps);
        if steps > self.alarm.get() && !self.deliver(steps) {
            *self.stop.borrow_mut() = Stop::StepLimit;
            self.current.set(me);
            yielder.suspend(());
            unreachable!("a task was resumed after the step limit");
        }
        if special || self.runnable.get() != TaskSet::only(me) {
            match self.next() {
                Some(task) if task == me => {}
                _ => yielder.suspend(()),
            }
        }
        self.execute(me, &op);
        if special && self.stores.is_on.get() && !op.access.passes_stores() {
            self.saw_buffer_empty(me);
        }
    }

    /// Sets after how many steps an execution is abandoned.
    pub(crate) fn limit_steps(&self, steps: u64) {
        self.steps_max.set(steps);
        self.alarm.set(steps);
    }

    /// A signal to `task` before it, or whoever is next, takes step number `step`.
    pub(crate) fn signal_at(&self, step: u64, task: TaskId) {
        self.alarm.set(self.steps_max.get().min(step.saturating_sub(1)));
        self.signal_to.set(task);
    }

    /// Something is due. False if it is the end.
    #[cold]
    fn deliver(&self, steps: u64) -> bool {
        if steps > self.steps_max.get() {
            return false;
        }
        self.alarm.set(self.steps_max.get());
        self.signals.set(self.signals.get().with(self.signal_to.get()));
        true
    }

    /// What an announcement means to trails and store buffers.
    #[cold]
    /// From now on observers look on.
    pub(crate) fn add_observers(&self) {
        self.observing.set(true);
        self.special.set(true);
    }

    fn before_announcement(&self, me: TaskId, op: &Op) {
        if self.observing.get() {
            self.observe(me, Some(*op));
        }
        if op.access.is_acquire() {
            let is_reader = op.access == Access::LockShared;
            self.effect(if is_reader { EffectKind::Queued } else { EffectKind::QueuedExclusive }, op.object, op.index);
        }
        if self.stores.is_on.get() && !op.access.passes_stores() {
            self.wait_for_stores(me);
        }
    }

    /// An operation happens now: tells everybody who wants to know.
    #[inline]
    pub(crate) fn execute(&self, task: TaskId, op: &Op) {
        if self.observed.get() {
            self.execute_observed(task, op);
        }
    }

    #[inline(never)]
    fn execute_observed(&self, task: TaskId, op: &Op) {
        // Not `if let`: its borrow would last into the body, which borrows mutably.
        let custom = matches!(&*self.chooser.borrow(), Chooser::Custom(_));
        if custom {
            self.executed_custom(task, op);
        }
        if self.watching.get() {
            self.begin_step(task, op);
        }
        if self.logging.get() {
            self.log_op(task, op);
        }
    }

    /// A step of `task` begins with `op`.
    #[inline(never)]
    pub(crate) fn begin_step(&self, task: TaskId, op: &Op) {
        if self.watching.get() && task != TaskId::BOOT {
            let mut trail = self.trail.borrow_mut();
            trail.begin_step(task, op, self.runnable.get());
            if op.access == Access::Wait {
                trail.push(Effect::new(EffectKind::ReadAnything, ObjId::ANYTHING, 0));
            }
        }
    }

    /// Tells the strategy that the execution has ended, before what is left of it is taken down.
    pub(crate) fn ended(&self, failed: Option<TaskId>) {
        let trail = self.trail.borrow();
        let (live, runnable) = (self.live.get(), self.runnable.get());
        let ended = Ended { trail: &trail, failed, live, runnable, pending: &self.pending };
        self.chooser.borrow_mut().ended(&ended);
    }

    /// A try-lock of the current task ended like this.
    #[inline]
    pub(crate) fn tried(&self, op: &Op, acquired: bool) {
        self.effect(if acquired { EffectKind::TryAcquired } else { EffectKind::TryFailed }, op.object, op.index);
        if acquired {
            self.acquired(op);
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
        self.disable(self.current.get());
    }

    fn disable(&self, task: TaskId) {
        self.runnable.set(self.runnable.get().without(task));
        if self.stores.is_on.get() {
            self.stores.behind.set(self.stores.behind.get().without(task));
        }
    }

    /// Nothing but its own store buffer keeps `task` from running.
    fn enable(&self, task: TaskId) {
        if self.stores.fenced.get().contains(task) {
            self.stores.behind.set(self.stores.behind.get().with(task));
        } else {
            self.runnable.set(self.runnable.get().with(task));
        }
    }

    /// Blocks the announced operation of `task` until its stores are visible.
    #[cold]
    fn wait_for_stores(&self, task: TaskId) {
        if self.stores.is_empty(task) {
            return;
        }
        let can_run = self.runnable.get().contains(task);
        self.disable(task);
        self.stores.fenced.set(self.stores.fenced.get().with(task));
        if can_run {
            self.enable(task);
        }
    }

    #[cold]
    fn saw_buffer_empty(&self, task: TaskId) {
        if self.watching.get() {
            let count = self.stores.count(task);
            let all = Effect {
                span: count.max(1),
                ..Effect::new(EffectKind::BufferEmpty, ObjId::BUFFERS, store_place(task, 0))
            };
            self.push_effect(all);
        }
    }

    /// Puts a store of the current task, which has announced it, into its buffer.
    pub(crate) fn buffer_store(
        &self,
        object: ObjId,
        word: &Arc<AtomicU64>,
        value: u64,
        site: &'static Location<'static>,
    ) {
        let me = self.current.get();
        let was_empty = self.stores.is_empty(me);
        let number = self.stores.push(me, object, word, value, site);
        self.effect(EffectKind::BufferPush, ObjId::BUFFERS, store_place(me, number));
        if was_empty {
            let buffer = buffer_of(me);
            self.pending[buffer.index()].set(Op { site, ..Op::new(Access::Store, object, 0) });
            self.live.set(self.live.get().with(buffer));
            self.runnable.set(self.runnable.get().with(buffer));
        }
    }

    /// What the current task reads of a word that it has stored to and that is not visible yet.
    pub(crate) fn forwarded(&self, object: ObjId) -> Option<u64> {
        let me = self.current.get();
        let (value, number) = self.stores.forward(me, object)?;
        if self.watching.get() {
            // It did not read the word.
            self.trail.borrow_mut().replace(
                EffectKind::Read,
                Effect::new(EffectKind::BufferRead, ObjId::BUFFERS, store_place(me, number)),
            );
        }
        Some(value)
    }

    /// The step of a store buffer.
    fn flush_one(&self, owner: TaskId) {
        let buffer = buffer_of(owner);
        self.steps.set(self.steps.get() + 1);
        let op = self.pending[buffer.index()].get();
        self.execute(buffer, &op);
        self.pop_store(owner);
    }

    /// Makes the oldest store of `owner` visible, as part of the running step.
    fn pop_store(&self, owner: TaskId) {
        let buffer = buffer_of(owner);
        let Some(store) = self.stores.pop(owner) else { return };
        self.effect(EffectKind::BufferPop, ObjId::BUFFERS, store_place(owner, store.number));
        self.written(store.object, 0, store.value);
        match self.stores.oldest(owner) {
            Some(next) => {
                self.pending[buffer.index()].set(Op { site: next.site, ..Op::new(Access::Store, next.object, 0) })
            }
            None => {
                self.live.set(self.live.get().without(buffer));
                self.runnable.set(self.runnable.get().without(buffer));
                self.stores.fenced.set(self.stores.fenced.get().without(owner));
                if self.stores.behind.get().contains(owner) {
                    self.stores.behind.set(self.stores.behind.get().without(owner));
                    self.runnable.set(self.runnable.get().with(owner));
                }
            }
        }
    }

    /// Empties the buffer of the current task within the running step.
    #[cold]
    fn flush_all(&self) {
        let me = self.current.get();
        while let Some(store) = self.stores.oldest(me) {
            self.effect(EffectKind::Write, store.object, 0);
            self.pop_store(me);
        }
    }

    /// The current task waits until a word is what it should be; `holds` is whether it is.
    pub(crate) fn spin(&self, yielder: &Yielder, op: Op, until: Until, holds: bool) {
        let me = self.current.get();
        self.untils[me.index()].set(until);
        self.spinners.set(self.spinners.get().with(me));
        if !holds {
            self.disable(me);
        }
        self.announce(yielder, op);
        self.spinners.set(self.spinners.get().without(me));
    }

    /// A word has a new value: whoever waits for one may be able to run, or not any more.
    #[inline]
    pub(crate) fn written(&self, object: ObjId, index: u64, value: u64) {
        if !self.spinners.get().is_empty() {
            self.tell_spinners(object, index, value);
        }
    }

    #[cold]
    fn tell_spinners(&self, object: ObjId, index: u64, value: u64) {
        for task in self.spinners.get().iter() {
            let pending = self.pending[task.index()].get();
            if pending.object == object && pending.index == index {
                if self.untils[task.index()].get().holds(value) {
                    self.enable(task);
                } else {
                    self.disable(task);
                }
            }
        }
    }

    /// The current task now holds a lock: pending acquirers that are excluded by it cannot run.
    #[inline]
    pub(crate) fn acquired(&self, op: &Op) {
        let me = self.current.get();
        self.hold(op);
        let mut runnable = self.runnable.get();
        if runnable == TaskSet::only(me) {
            return;
        }
        let excludes = |task: TaskId| {
            let pending = self.pending[task.index()].get();
            let shared = pending.access == Access::LockShared && op.access == Access::LockShared;
            pending.access.is_acquire() && pending.same_place(op) && !shared
        };
        for task in runnable.without(me).iter() {
            if excludes(task) {
                runnable = runnable.without(task);
            }
        }
        self.runnable.set(runnable);
        if self.stores.is_on.get() {
            let behind = self.stores.behind.get();
            behind.iter().filter(|task| excludes(*task)).for_each(|task| self.disable(task));
        }
    }

    /// Whether the execution is over and only destructors run. It is from the moment at which a task fails: what its destructors would do is no part of
    /// the race, and whoever else ran meanwhile could fail over what is half taken down.
    #[inline]
    pub(crate) fn is_aborting(&self) -> bool {
        if std::thread::panicking() {
            self.aborting.set(true);
        }
        self.aborting.get()
    }

    /// The current task has a lock, or is in a read section, from now on.
    #[inline]
    pub(crate) fn hold(&self, op: &Op) {
        let me = self.current.get();
        let class = self.lock_graph.class(op.object, &self.objects);
        let &Op { object, index, access, site, .. } = op;
        self.held.borrow_mut().push(Held { task: me, object, index, access, class, site });
        self.lock_graph.hold(me, class);
    }

    /// The current task has a lock no more, or has left a read section.
    #[inline]
    pub(crate) fn unhold(&self, object: ObjId, index: u64) -> Held {
        let me = self.current.get();
        let mut held = self.held.borrow_mut();
        let at = held.iter().rposition(|h| h.task == me && h.object == object && h.index == index);
        let at = at.or_else(|| held.iter().rposition(|h| h.object == object && h.index == index));
        let released = held.swap_remove(at.expect("a released lock is held"));
        let left = held.iter().filter(|h| h.task == released.task).fold(0, |classes, h| classes | 1 << h.class);
        self.lock_graph.set_held(released.task, left);
        released
    }

    /// The current task wants this, and may have to wait for it: a matter of the lock order if it holds something.
    #[inline]
    pub(crate) fn wants(&self, op: &Op) {
        let me = self.current.get();
        if !self.lock_graph.holds_something(me) {
            return;
        }
        let class = self.lock_graph.class(op.object, &self.objects);
        if self.lock_graph.is_news(me, class) {
            self.news(class, op.access, op.site);
        }
    }

    #[cold]
    fn news(&self, class: u8, access: Access, site: &'static Location<'static>) {
        let me = self.current.get();
        self.lock_graph.add((class, access, site), self.held.borrow().iter().filter(|h| h.task == me).copied());
    }

    /// As [`Engine::hold`], for what is no object: its index is the number of its class.
    pub(crate) fn hold_class(&self, name: &'static str, access: Access, site: &'static Location<'static>) {
        let task = self.current.get();
        let class = self.lock_graph.class_named(name);
        self.held.borrow_mut().push(Held { task, object: ObjId::NONE, index: class.into(), access, class, site });
        self.lock_graph.hold(task, class);
    }

    /// As [`Engine::unhold`], for what is no object.
    pub(crate) fn unhold_class(&self, name: &'static str) {
        self.unhold(ObjId::NONE, self.lock_graph.class_named(name).into());
    }

    /// As [`Engine::wants`], for what is no object.
    pub(crate) fn wants_class(&self, name: &'static str, access: Access, site: &'static Location<'static>) {
        let class = self.lock_graph.class_named(name);
        if self.lock_graph.is_news(self.current.get(), class) {
            self.news(class, access, site);
        }
    }

    /// Name of what is held.
    pub(crate) fn held_name(&self, held: &Held) -> String {
        match held.object {
            ObjId::NONE => self.lock_graph.name(held.class).to_string(),
            object => self.object(object),
        }
    }

    /// The current task let go of a lock. `free` says whether an acquirer of the given kind can have it now.
    #[inline]
    pub(crate) fn released(&self, object: ObjId, index: u64, free: impl Fn(Access) -> bool) {
        let me = self.current.get();
        if self.stores.is_on.get() {
            self.flush_all();
        }
        let shared = self.unhold(object, index).access == Access::LockShared;
        self.effect(if shared { EffectKind::UnlockShared } else { EffectKind::UnlockExclusive }, object, index);
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
        for task in TaskSet(self.live.get().0 & !self.runnable.get().0).iter() {
            let pending = self.pending[task.index()].get();
            if pending.object == object && pending.index == index && wanted(&pending) {
                self.enable(task);
            }
        }
    }

    /// Whether another task waits for this lock, which the current task holds; `as_reader`: for reading, so that only writers have to wait.
    pub(crate) fn is_contended(&self, object: ObjId, index: u64, as_reader: bool) -> bool {
        self.effect(if as_reader { EffectKind::ContendedByWriter } else { EffectKind::Contended }, object, index);
        let me = self.current.get();
        self.live.get().without(me).iter().any(|task| {
            let pending = self.pending[task.index()].get();
            let waits = if as_reader { pending.access == Access::LockExclusive } else { pending.access.is_acquire() };
            waits && pending.object == object && pending.index == index
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

    #[inline]
    pub(crate) fn note(&self, task: TaskId, kind: &'static str, what: &'static str) {
        if self.noting.get() {
            self.log.borrow_mut().note(task, kind, what);
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

/// Where a store is among the store buffers, as an object of effects.
fn store_place(task: TaskId, number: u32) -> u64 {
    u64::from(task.0) << 32 | u64::from(number)
}
