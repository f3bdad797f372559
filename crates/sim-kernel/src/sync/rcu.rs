//! RCU: read sections that never block, and callbacks that run after a grace period.
//!
//! Entering and leaving a read section is not a scheduling point of its own: nobody can notice it except by waiting for it, and
//! the reads inside are points. Natively a section pins the epoch of crossbeam-epoch and callbacks are deferred there.

use crate::Cx;
use crate::sched::{Access, MAX_TASKS, ObjId, Op, TaskId, TaskSet};
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
    callbacks: RefCell<Vec<(TaskSet, Callback)>>,
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
        self.callbacks.borrow_mut().clear();
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
        engine.rcu.readers.set(engine.rcu.readers.get().without(me));
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
        engine.wake_if(ObjId::NONE, RCU_INDEX, |op| op.access == Access::Synchronize);
    }
}

/// Index that tells grace-period waits apart from other operations without an object.
const RCU_INDEX: u64 = u64::MAX;

/// `call_rcu`: runs `callback` once every read section that is open now has been left.
pub fn call_rcu(cx: &Cx<'_>, callback: impl FnOnce() + Send + 'static) {
    let Some(engine) = cx.engine() else {
        epoch::pin().defer(callback);
        return;
    };
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
    // A callback is the flag: it has run when every reader of this moment has left.
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = std::sync::Arc::clone(&done);
    let set = Box::new(move || flag.store(true, std::sync::atomic::Ordering::Release));
    engine.rcu.callbacks.borrow_mut().push((waits_for, set));
    cx.sleep_until(Op::new(Access::Synchronize, ObjId::NONE, RCU_INDEX), || {
        done.load(std::sync::atomic::Ordering::Acquire)
    });
}
