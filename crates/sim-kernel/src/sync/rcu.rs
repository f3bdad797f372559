//! RCU: read sections that never block, and callbacks that run after a grace period.
//!
//! Entering and leaving a read section is not a scheduling point of its own: nobody can notice it except by waiting for it, and
//! the reads inside are points. Natively a section pins the epoch of crossbeam-epoch and callbacks are deferred there.

use crate::Cx;
use crate::sched::{Access, EffectKind, MAX_TASKS, ObjId, Op, TaskId, TaskSet};
use crossbeam::epoch;
use std::cell::{Cell, RefCell};
use std::fmt;

/// A callback that waits for a grace period.
type Callback = Box<dyn FnOnce() + Send>;

/// RCU state of one simulated execution.
#[derive(Default)]
pub(crate) struct SimRcu {
    readers: Cell<TaskSet>,
    nesting: RefCell<Vec<u8>>,
    /// How many sections each task has left.
    left: RefCell<Vec<u64>>,
    callbacks: RefCell<Vec<(TaskSet, Callback)>>,
    /// Tasks in `synchronize_rcu`, with the readers that each waits for.
    waiting: RefCell<Vec<(TaskId, TaskSet)>>,
}

impl SimRcu {
    pub(crate) fn is_reader(&self, task: TaskId) -> bool {
        self.readers.get().contains(task)
    }

    pub(crate) fn reset(&self) {
        self.readers.set(TaskSet::EMPTY);
        let mut nesting = self.nesting.borrow_mut();
        nesting.clear();
        nesting.resize(MAX_TASKS, 0);
        let mut left = self.left.borrow_mut();
        left.clear();
        left.resize(MAX_TASKS, 0);
        self.callbacks.borrow_mut().clear();
        self.waiting.borrow_mut().clear();
    }

    /// The end of the section that a task is in, as a place of [`ObjId::RCU`]; place 0 is the set of those that are in one.
    fn end_of_section(&self, task: TaskId) -> u64 {
        1 + u64::from(task.0) + self.left.borrow()[task.index()] * MAX_TASKS as u64
    }
}

/// An open RCU read section.
pub struct RcuReadGuard<'a> {
    cx: &'a Cx<'a>,
    _pinned: Option<epoch::Guard>,
}

impl fmt::Debug for RcuReadGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RcuReadGuard").field("task", &self.cx.task()).finish()
    }
}

/// `rcu_read_lock`: until the guard is dropped, nothing that was unlinked afterwards is freed.
pub fn rcu_read_lock<'a>(cx: &'a Cx<'_>) -> RcuReadGuard<'a> {
    let Some(engine) = cx.engine() else {
        return RcuReadGuard { cx, _pinned: Some(epoch::pin()) };
    };
    let me = cx.task();
    engine.effect(EffectKind::RcuEnter, ObjId::RCU, 0);
    engine.rcu.nesting.borrow_mut()[me.index()] += 1;
    engine.rcu.readers.set(engine.rcu.readers.get().with(me));
    RcuReadGuard { cx, _pinned: None }
}

impl Drop for RcuReadGuard<'_> {
    fn drop(&mut self) {
        let Some(engine) = self.cx.engine() else { return };
        let me = self.cx.task();
        let mut nesting = engine.rcu.nesting.borrow_mut();
        nesting[me.index()] -= 1;
        if nesting[me.index()] > 0 {
            return;
        }
        drop(nesting);
        engine.effect(EffectKind::RcuExit, ObjId::RCU, engine.rcu.end_of_section(me));
        engine.rcu.left.borrow_mut()[me.index()] += 1;
        engine.rcu.readers.set(engine.rcu.readers.get().without(me));
        engine.rcu.waiting.borrow_mut().retain_mut(|(waiter, waits_for)| {
            *waits_for = waits_for.without(me);
            if waits_for.is_empty() {
                engine.wake_if(ObjId::NONE, waiting_index(*waiter), |op| op.access == Access::Await);
            }
            !waits_for.is_empty()
        });
        let mut callbacks = engine.rcu.callbacks.borrow_mut();
        if callbacks.is_empty() {
            return;
        }
        for (waits_for, _) in callbacks.iter_mut() {
            *waits_for = waits_for.without(me);
        }
        let done: Vec<_> = callbacks.extract_if(.., |(waits_for, _)| waits_for.is_empty()).collect();
        drop(callbacks);
        for (_, callback) in done {
            callback();
        }
    }
}

/// Index that tells grace-period waits apart from other operations without an object.
const RCU_INDEX: u64 = u64::MAX;

/// Index of the wait of one task for its grace period.
fn waiting_index(task: TaskId) -> u64 {
    RCU_INDEX - 1 - u64::from(task.0)
}

/// `call_rcu`: runs `callback` once every read section that is open now has been left.
pub fn call_rcu(cx: &Cx<'_>, callback: impl FnOnce() + Send + 'static) {
    let Some(engine) = cx.engine() else {
        epoch::pin().defer(callback);
        return;
    };
    engine.effect(EffectKind::RcuCall, ObjId::RCU, 0);
    let readers = engine.rcu.readers.get();
    if readers.is_empty() {
        callback();
    } else {
        engine.rcu.callbacks.borrow_mut().push((readers, Box::new(callback)));
    }
}

/// `synchronize_rcu`: returns once every read section that is open now has been left.
///
/// # Panics
/// If the calling task is inside a read section.
#[track_caller]
pub fn synchronize_rcu(cx: &Cx<'_>) {
    let Some(engine) = cx.engine() else {
        // Natively: repin until the epoch has advanced past every reader, by waiting for a deferred flag.
        let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let flag = std::sync::Arc::clone(&done);
        epoch::pin().defer(move || flag.store(true, std::sync::atomic::Ordering::Release));
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            epoch::pin().flush();
            std::thread::yield_now();
        }
        return;
    };
    let me = cx.task();
    assert!(!engine.rcu.readers.get().contains(me), "synchronize_rcu inside a read section");
    cx.point(Access::Synchronize, ObjId::NONE, RCU_INDEX);
    let waits_for = engine.rcu.readers.get();
    if waits_for.is_empty() {
        return;
    }
    let ends: Vec<u64> = waits_for.iter().map(|reader| engine.rcu.end_of_section(reader)).collect();
    engine.rcu.waiting.borrow_mut().push((me, waits_for));
    cx.await_condition(Op::new(Access::Await, ObjId::NONE, waiting_index(me)), || {
        engine.rcu.waiting.borrow().iter().all(|(waiter, _)| *waiter != me)
    });
    for end in ends {
        engine.effect(EffectKind::RcuDone, ObjId::RCU, end);
    }
}
