//! Lock maps (`struct lockdep_map`): what is waited for like a lock without being one, for the graph of lock orders.

use crate::Cx;
use crate::sched::{Access, ObjId, Op};
use std::fmt;

/// A stretch of work whose end others wait for, such as "a notifier pair is open".
///
/// It blocks nobody; it tells the lock order what a wait queue cannot: who has to move on before the wait can end.
///
/// ```
/// use sim_kernel::{sched::Sim, sync::{LockMap, Mutex}};
/// let mut sim = Sim::sequential();
/// sim.solo(|cx| {
///     let (pairs, lock) = (LockMap::new(cx, "pairs"), Mutex::new(cx, "lock", ()));
///     pairs.enter(cx);
///     drop(lock.lock(cx));
///     pairs.leave(cx);
///     let _guard = lock.lock(cx);
///     pairs.wait(cx);
/// });
/// assert!(sim.lock_order().circle(|_| true).is_some());
/// ```
pub struct LockMap {
    object: ObjId,
}

impl LockMap {
    /// A map of the given class.
    pub fn new(cx: &Cx<'_>, class: &'static str) -> LockMap {
        LockMap { object: cx.new_object(class) }
    }

    /// The task begins what others may wait for. No scheduling point.
    #[track_caller]
    pub fn enter(&self, cx: &Cx<'_>) {
        cx.section_entered(&Op::new(Access::LockShared, self.object, 0));
    }

    /// The task has ended it. No scheduling point.
    pub fn leave(&self, cx: &Cx<'_>) {
        cx.section_left(self.object);
    }

    /// The task is about to wait until nobody is inside, or might have had to. No scheduling point.
    #[track_caller]
    pub fn wait(&self, cx: &Cx<'_>) {
        cx.section_wanted(&Op::new(Access::Wait, self.object, 0));
    }
}

impl fmt::Debug for LockMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockMap").field("object", &self.object).finish()
    }
}
