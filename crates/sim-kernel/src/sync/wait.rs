//! Wait queues: `wait_event`, `wake_up_all`, `rcuwait`.
//!
//! Testing the condition and going to sleep is one step, as the kernel's prepare-to-wait protocol makes it.

use crate::Cx;
use crate::sched::{Access, EffectKind, ObjId, Op};
use std::fmt;

/// The index of a queue that stands for what the condition of its sleepers reads; 0 is the queue itself.
const CONDITION: u64 = 1;

/// A queue of tasks that sleep until a condition holds.
pub struct WaitQueue {
    object: ObjId,
    native: parking_lot::Mutex<()>,
    condvar: parking_lot::Condvar,
}

impl WaitQueue {
    /// A queue of the given class.
    pub fn new(cx: &Cx<'_>, class: &'static str) -> WaitQueue {
        WaitQueue {
            object: cx.new_object(class),
            native: parking_lot::Mutex::new(()),
            condvar: parking_lot::Condvar::new(),
        }
    }

    /// Sleeps until `condition` holds; it is tested now and after every wake-up.
    #[track_caller]
    pub fn wait_event(&self, cx: &Cx<'_>, condition: impl Fn() -> bool) {
        if cx.is_native() {
            let mut guard = self.native.lock();
            while !condition() {
                self.condvar.wait(&mut guard);
            }
            return;
        }
        cx.sleep_until(Op::new(Access::Wait, self.object, 0), None, condition);
    }

    /// As [`WaitQueue::wait_event`] for a condition of which [`WaitQueue::condition_changes`] is told in every step that changes what it reads. For an
    /// explorer, the sleeper then has to do with those steps only, and not with every change of anything.
    #[track_caller]
    pub fn wait_event_told(&self, cx: &Cx<'_>, condition: impl Fn() -> bool) {
        if cx.is_native() {
            return self.wait_event(cx, condition);
        }
        cx.sleep_until(Op::new(Access::Wait, self.object, 0), Some(CONDITION), condition);
    }

    /// The running step has changed, or is about to change, something that the condition of [`WaitQueue::wait_event_told`] reads. Wakes nobody.
    #[inline]
    pub fn condition_changes(&self, cx: &Cx<'_>) {
        if let Some(engine) = cx.engine() {
            engine.effect(EffectKind::Write, self.object, CONDITION);
        }
    }

    /// As [`WaitQueue::wait_event`] for a condition that, once true, stays true for the waiter, and of which [`WaitQueue::wake_awaiting`] is told
    /// when it becomes true: simulated, the waiter is not runnable before, and tests nothing in between.
    #[track_caller]
    pub(super) fn await_event(&self, cx: &Cx<'_>, condition: impl Fn() -> bool) {
        if cx.is_native() {
            return self.wait_event(cx, condition);
        }
        cx.await_condition(Op::new(Access::Await, self.object, 0), condition);
    }

    /// The condition of [`WaitQueue::await_event`] holds now.
    pub(super) fn wake_awaiting(&self, cx: &Cx<'_>) {
        match cx.engine() {
            Some(engine) => engine.wake_if(self.object, 0, |op| op.access == Access::Await),
            None => self.wake_unscheduled(cx),
        }
    }

    /// Makes every sleeper test its condition again.
    #[track_caller]
    pub fn wake_up_all(&self, cx: &Cx<'_>) {
        cx.point(Access::Wake, self.object, 0);
        self.wake_unscheduled(cx);
    }

    /// As [`WaitQueue::wake_up_all`], as part of a step that was already announced.
    pub fn wake_unscheduled(&self, cx: &Cx<'_>) {
        match cx.engine() {
            Some(engine) => {
                engine.effect(EffectKind::Wake, self.object, 0);
                engine.wake_if(self.object, 0, |op| op.access == Access::Wait);
            }
            None => {
                drop(self.native.lock());
                self.condvar.notify_all();
            }
        }
    }
}

impl fmt::Debug for WaitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitQueue").field("object", &self.object).finish_non_exhaustive()
    }
}
