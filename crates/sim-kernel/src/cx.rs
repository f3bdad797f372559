//! The explicit context: what the kernel would know as `current`.
//!
//! Every function that the kernel runs on behalf of a task takes a [`Cx`]. There are no thread-locals and no globals, so two
//! simulations in one process never meet. A context is either *simulated* (a coroutine under the engine, or the boot task
//! alone) or *native* (a real OS thread, for wall-clock benchmarks); the same kernel code runs on both.

use crate::sched::EffectKind;
use crate::sched::engine::{Engine, Yielder};
use crate::sched::event::{MAX_ARGS, TraceRecord, Tracepoint};
use crate::sched::native::NativeShared;
use crate::sched::observe::{HeldLock, Observation};
use crate::sched::op::{Access, MAX_TASKS, ObjId, Op, TaskId};
use crate::sync::Until;
use crate::{Faults, Mutant, MutantSet};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Work that a task must do before it returns to user space or enters the guest, as `task_work_add` queues it.
pub type TaskWork = Box<dyn FnOnce(&Cx<'_>) + Send>;

#[derive(Clone, Copy)]
enum Mode<'t> {
    /// The boot task, alone: nothing to schedule.
    Solo(&'t Engine),
    /// A coroutine under the engine.
    Task(&'t Engine, &'t Yielder),
    /// An OS thread.
    Native(&'t Arc<NativeShared>),
}

/// The running task and its simulation.
pub struct Cx<'t> {
    mode: Mode<'t>,
    task: TaskId,
    work: RefCell<VecDeque<TaskWork>>,
}

impl fmt::Debug for Cx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Solo(_) => "solo",
            Mode::Task(..) => "task",
            Mode::Native(_) => "native",
        };
        f.debug_struct("Cx").field("task", &self.task).field("mode", &mode).finish_non_exhaustive()
    }
}

impl<'t> Cx<'t> {
    pub(crate) fn solo(engine: &'t Engine) -> Cx<'t> {
        Cx { mode: Mode::Solo(engine), task: TaskId::BOOT, work: RefCell::default() }
    }

    pub(crate) fn simulated(engine: &'t Engine, yielder: &'t Yielder, task: TaskId) -> Cx<'t> {
        Cx { mode: Mode::Task(engine, yielder), task, work: RefCell::default() }
    }

    pub(crate) fn native(shared: &'t Arc<NativeShared>, task: TaskId) -> Cx<'t> {
        Cx { mode: Mode::Native(shared), task, work: RefCell::default() }
    }

    /// The running task.
    #[inline]
    pub fn task(&self) -> TaskId {
        self.task
    }

    #[inline]
    pub(crate) fn engine(&self) -> Option<&'t Engine> {
        match self.mode {
            Mode::Solo(engine) | Mode::Task(engine, _) => Some(engine),
            Mode::Native(_) => None,
        }
    }

    /// Whether this context runs on an OS thread of its own, beside others.
    #[inline]
    pub fn is_native(&self) -> bool {
        matches!(self.mode, Mode::Native(_))
    }

    /// Whether no other task exists, so that no interleaving is possible.
    #[inline]
    pub fn is_solo(&self) -> bool {
        matches!(self.mode, Mode::Solo(_))
    }

    /// Switches rules off for the rest of this execution; the boot task does it before it makes anything.
    ///
    /// # Panics
    /// If this is not the boot task, or if rules are to be off in a native run, which has none to switch.
    pub fn set_mutants(&self, mutants: MutantSet) {
        match self.mode {
            Mode::Solo(engine) => engine.mutants.set(mutants),
            Mode::Task(..) => panic!("rules are switched off before tasks run"),
            Mode::Native(_) => assert!(mutants.is_empty(), "a native run keeps every rule"),
        }
    }

    /// Has a signal sent when the tasks of this execution come to the step that the faults name. Native runs have no steps, and no signal then.
    ///
    /// # Panics
    /// If a task does it, or for a task whose number is none.
    pub fn inject_signal(&self, faults: &Faults) {
        match self.mode {
            Mode::Solo(engine) if faults.signal_step != 0 => {
                assert!(faults.signal_task < MAX_TASKS as u64, "there is no task {}", faults.signal_task);
                engine.signal_at(faults.signal_step, TaskId(faults.signal_task as u8));
            }
            Mode::Task(..) => panic!("faults are set before tasks run"),
            _ => {}
        }
    }

    /// Whether this rule is off.
    #[inline]
    pub fn has_mutant(&self, mutant: Mutant) -> bool {
        self.engine().is_some_and(|engine| engine.has_mutant(mutant))
    }

    /// Whether any rule is off. What commutes with everything as long as all hold, such as freeing what nobody can reach any more, is then a
    /// scheduling point of its own, because somebody may reach it.
    #[inline]
    pub fn has_mutants(&self) -> bool {
        self.engine().is_some_and(|engine| !engine.mutants.get().is_empty())
    }

    /// Registers a shared object of the given class (a lock's or a table's name in the kernel).
    #[inline]
    pub fn new_object(&self, class: &'static str) -> ObjId {
        match self.engine() {
            Some(engine) => engine.new_object(class),
            None => ObjId::NONE,
        }
    }

    /// A scheduling point: says what the task is about to do and returns when it is its turn to do it.
    #[inline]
    #[track_caller]
    pub fn point(&self, access: Access, object: ObjId, index: u64) {
        match self.mode {
            Mode::Native(_) => {}
            _ => self.announce(Op::new(access, object, index)),
        }
    }

    /// A scheduling point over `span` consecutive indexes.
    #[inline]
    #[track_caller]
    pub fn point_range(&self, access: Access, object: ObjId, index: u64, span: u64) {
        match self.mode {
            Mode::Native(_) => {}
            _ => {
                let span = u32::try_from(span.max(1)).unwrap_or(u32::MAX);
                self.announce(Op { span, ..Op::new(access, object, index) });
            }
        }
    }

    /// The running step does this besides what it announced: what it turned out to touch. No scheduling point; without it, partial-order reduction would take
    /// the step for independent of others that touch the same.
    ///
    /// # Panics
    /// If it is no access to memory.
    #[inline]
    pub fn also(&self, access: Access, object: ObjId, index: u64, span: u64) {
        if let Some(engine) = self.engine() {
            let is_access = matches!(access, Access::Load | Access::Store | Access::Rmw | Access::Add);
            assert!(is_access, "{access:?} needs a scheduling point");
            let span = u32::try_from(span.max(1)).unwrap_or(u32::MAX);
            engine.also(&Op { span, ..Op::new(access, object, index) });
        }
    }

    /// `cond_resched`: a scheduling point that touches nothing.
    #[inline]
    #[track_caller]
    pub fn cond_resched(&self) {
        self.point(Access::Yield, ObjId::NONE, 0);
    }

    #[inline]
    fn announce(&self, op: Op) {
        match self.mode {
            Mode::Task(engine, yielder) if !engine.is_aborting() => engine.announce(yielder, op),
            Mode::Solo(engine) if !engine.is_aborting() => engine.execute(self.task, &op),
            _ => {}
        }
    }

    /// Announces an acquisition and returns when `free` holds: the task is not runnable while it does not.
    #[inline]
    pub(crate) fn acquire(&self, op: Op, free: impl Fn() -> bool) {
        match self.mode {
            Mode::Task(engine, _) if engine.is_aborting() => {}
            Mode::Task(engine, yielder) => {
                engine.wants(&op);
                if !free() {
                    engine.block_current();
                }
                engine.announce(yielder, op);
                assert!(free(), "a task was resumed while the lock it wants is held");
                engine.acquired(&op);
            }
            Mode::Solo(engine) => {
                assert!(free(), "deadlock: the only task waits for {op:?}");
                engine.wants(&op);
                engine.execute(self.task, &op);
                engine.acquired(&op);
            }
            Mode::Native(_) => unreachable!("native locks block in the host"),
        }
    }

    /// Announces `op` and returns when `condition` holds: the task is not runnable before. Whoever makes the condition hold says so
    /// with [`Engine::wake_if`], and nobody makes it false again.
    pub(crate) fn await_condition(&self, op: Op, condition: impl Fn() -> bool) {
        match self.mode {
            Mode::Task(engine, _) if engine.is_aborting() => {}
            Mode::Task(engine, yielder) => {
                if !condition() {
                    engine.block_current();
                }
                engine.announce(yielder, op);
                assert!(condition(), "a task was resumed before what it waits for");
            }
            Mode::Solo(engine) => {
                engine.execute(self.task, &op);
                assert!(condition() || engine.is_aborting(), "deadlock: the only task waits for {op:?}");
            }
            Mode::Native(_) => unreachable!("native waits block in the host"),
        }
    }

    /// Announces `op`, a read of `word`, and returns its value once it is what is waited for.
    pub(crate) fn spin_until(&self, op: Op, word: &AtomicU64, until: Until) -> u64 {
        let value = || word.load(Ordering::Acquire);
        match self.mode {
            Mode::Task(engine, _) if engine.is_aborting() => {}
            Mode::Task(engine, yielder) => {
                engine.spin(yielder, op, until, until.holds(value()));
                assert!(until.holds(value()), "a task was resumed before what it waits for");
            }
            Mode::Solo(engine) => {
                engine.execute(self.task, &op);
                assert!(until.holds(value()) || engine.is_aborting(), "deadlock: the only task waits for {op:?}");
            }
            Mode::Native(_) => {
                while !until.holds(value()) {
                    std::thread::yield_now();
                }
            }
        }
        value()
    }

    /// Sleeps until `condition` holds; it is tested again each time somebody wakes this place. `reads` is the index of the place's object
    /// that stands for all that the condition reads, if something does.
    pub(crate) fn sleep_until(&self, op: Op, reads: Option<u64>, condition: impl Fn() -> bool) {
        self.section_wanted(&op);
        match self.mode {
            Mode::Task(engine, yielder) => {
                self.announce(op);
                let holds = || {
                    if let Some(index) = reads {
                        engine.condition_is(op.object, index);
                    }
                    condition()
                };
                if holds() {
                    return engine.did_not_sleep(&op);
                }
                while !engine.is_aborting() {
                    engine.block_current();
                    engine.announce(yielder, op);
                    if holds() {
                        return;
                    }
                }
            }
            Mode::Solo(engine) => {
                engine.execute(self.task, &op);
                assert!(condition() || engine.is_aborting(), "deadlock: the only task waits for {op:?}");
            }
            Mode::Native(_) => unreachable!("native waits block in the host"),
        }
    }

    /// The engine, if it keeps account of what tasks hold.
    #[inline]
    pub(crate) fn watched(&self) -> Option<&'t Engine> {
        self.engine().filter(|engine| !engine.is_aborting())
    }

    /// The task enters a read section, or another stretch of work that others wait for.
    #[inline]
    pub(crate) fn section_entered(&self, op: &Op) {
        if let Some(engine) = self.watched() {
            engine.hold(op);
        }
    }

    /// The task has left a section of this object.
    #[inline]
    pub(crate) fn section_left(&self, object: ObjId) {
        if let Some(engine) = self.watched() {
            engine.unhold(object, 0);
        }
    }

    /// The task may have to wait for the end of sections of this object.
    #[inline]
    pub(crate) fn section_wanted(&self, op: &Op) {
        if let Some(engine) = self.watched() {
            engine.wants(op);
        }
    }

    /// The locks and read sections that the task holds, in no order; natively it cannot be known, and the answer is none.
    pub fn held_locks(&self) -> Vec<HeldLock> {
        match self.engine() {
            Some(engine) if !engine.is_aborting() && engine.lock_graph.holds_something(self.task) => {
                engine.held_locks(|held| held.task == self.task)
            }
            _ => Vec::new(),
        }
    }

    /// Has a function look at the simulation after every step of every task, until this execution ends.
    ///
    /// # Panics
    /// If this is not the boot task, or the run is native, where nobody can stop the others to look.
    ///
    /// ```
    /// use sim_kernel::sched::{Chooser, Config, RoundRobin, Sim, Verdict};
    /// use sim_kernel::sync::Atomic64;
    /// use std::sync::Arc;
    ///
    /// let mut sim = Sim::new(Chooser::RoundRobin(RoundRobin));
    /// let (_, verdict) = sim.execute(&Config::default(), |cx| {
    ///     let word = Arc::new(Atomic64::new(cx, "word", 0));
    ///     let seen = Arc::clone(&word);
    ///     cx.observe(move |_| assert!(seen.peek() < 2, "INV-000: the word is small"));
    ///     for name in ["a", "b"] {
    ///         let word = Arc::clone(&word);
    ///         cx.spawn(name, move |cx| {
    ///             word.fetch_add(cx, 1);
    ///         });
    ///     }
    /// });
    /// assert_eq!(verdict.invariant(), Some("INV-000"));
    /// ```
    pub fn observe(&self, observer: impl FnMut(&Observation<'_>) + 'static) {
        let Mode::Solo(engine) = self.mode else { panic!("the boot task of a simulation names observers") };
        engine.observers.borrow_mut().push(Box::new(observer));
        engine.add_observers();
    }

    /// The program has completed an operation: for whoever tells a task that works from one that goes in circles.
    #[inline]
    pub fn operation_done(&self) {
        if let Some(engine) = self.engine() {
            engine.operations.set(engine.operations.get() + 1);
        }
    }

    /// Starts another task.
    ///
    /// Simulated, it becomes runnable at once and runs when the strategy picks it; natively, it is a new OS thread.
    ///
    /// # Panics
    /// If the simulation already has 63 tasks.
    pub fn spawn(&self, name: &str, body: impl FnOnce(&Cx<'_>) + Send + 'static) -> TaskId {
        match self.mode {
            Mode::Solo(engine) | Mode::Task(engine, _) => engine.spawn(name, Box::new(body)),
            Mode::Native(shared) => shared.spawn(name, Box::new(body)),
        }
    }

    /// Whether anybody listens to tracepoints; lets a caller skip computing expensive arguments.
    #[inline]
    pub fn is_tracing(&self) -> bool {
        self.engine().is_some_and(Engine::is_tracing)
    }

    /// Emits a tracepoint with its argument values.
    ///
    /// # Panics
    /// If the number of values is not the tracepoint's number of fields.
    #[inline]
    pub fn trace(&self, tracepoint: &'static Tracepoint, args: &[u64]) {
        if let Some(engine) = self.engine()
            && engine.is_tracing()
        {
            assert_eq!(args.len(), tracepoint.fields.len(), "arguments of {}", tracepoint.name);
            assert!(args.len() <= MAX_ARGS, "{} has more than {MAX_ARGS} arguments", tracepoint.name);
            let args = args.iter().copied().collect();
            engine.trace(TraceRecord { tracepoint, task: self.task, args });
        }
    }

    /// Says what is being done, for people: nothing unless the log has notes ([`LogLevel::Notes`](crate::sched::LogLevel::Notes)), and never a part of its hash.
    #[inline]
    pub fn note(&self, kind: &'static str, what: &'static str) {
        if let Some(engine) = self.engine() {
            engine.note(self.task, kind, what);
        }
    }

    /// Starts or stops collecting tracepoints for [`Cx::take_trace`].
    pub fn capture_trace(&self, on: bool) {
        if let Some(engine) = self.engine() {
            engine.capture(on);
        }
    }

    /// The tracepoints emitted since the last call, in order; empty natively.
    pub fn take_trace(&self) -> Vec<TraceRecord> {
        self.engine().map(Engine::take_captured).unwrap_or_default()
    }

    /// Sends a signal to a task: sleeping calls that may be interrupted answer `EINTR`.
    pub fn send_signal(&self, task: TaskId) {
        match self.mode {
            Mode::Solo(engine) | Mode::Task(engine, _) => {
                engine.effect(EffectKind::Write, ObjId::SIGNALS, u64::from(task.0));
                engine.signals.set(engine.signals.get().with(task));
            }
            Mode::Native(shared) => shared.send_signal(task),
        }
    }

    /// `signal_pending(current)`.
    #[inline]
    pub fn signal_pending(&self) -> bool {
        match self.mode {
            Mode::Solo(engine) | Mode::Task(engine, _) => {
                engine.effect(EffectKind::Read, ObjId::SIGNALS, u64::from(self.task.0));
                engine.signals.get().contains(self.task)
            }
            Mode::Native(shared) => shared.signals().contains(self.task),
        }
    }

    /// The task has handled its signals.
    pub fn clear_signals(&self) {
        match self.mode {
            Mode::Solo(engine) | Mode::Task(engine, _) => {
                engine.effect(EffectKind::Write, ObjId::SIGNALS, u64::from(self.task.0));
                engine.signals.set(engine.signals.get().without(self.task));
            }
            Mode::Native(shared) => shared.clear_signals(self.task),
        }
    }

    /// Queues work for the moment when this task holds no kernel lock any more (`task_work_add`): the final put of a file from
    /// inside the kernel goes here.
    pub fn task_work_add(&self, work: TaskWork) {
        self.work.borrow_mut().push_back(work);
    }

    /// Runs the queued work (`task_work_run`): on the way back to user space and before guest entry.
    pub fn task_work_run(&self) {
        loop {
            let work = self.work.borrow_mut().pop_front();
            match work {
                Some(work) => work(self),
                None => return,
            }
        }
    }

    /// Whether work waits for [`Cx::task_work_run`].
    pub fn has_task_work(&self) -> bool {
        !self.work.borrow().is_empty()
    }
}
