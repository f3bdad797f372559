//! Lock maps (`struct lockdep_map`): what is waited for like a lock without being one, for the graph of lock orders.

use crate::Cx;
use crate::sched::Access;
use std::panic::Location;

/// A kind of work whose end others wait for, such as "a notifier pair is open".
///
/// It blocks nobody and is no scheduling point; it tells the lock order what a wait queue cannot: who has to move on before the wait can end.
///
/// ```
/// use sim_kernel::{sched::Sim, sync::{LockMap, Mutex}};
/// const PAIRS: LockMap = LockMap::new("pairs");
/// let mut sim = Sim::sequential();
/// sim.solo(|cx| {
///     let lock = Mutex::new(cx, "lock", ());
///     PAIRS.enter(cx);
///     drop(lock.lock(cx));
///     PAIRS.leave(cx);
///     let _guard = lock.lock(cx);
///     PAIRS.wait(cx);
/// });
/// assert!(sim.lock_order().circle(|_| true).is_some());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct LockMap {
    class: &'static str,
}

impl LockMap {
    /// A map of the given class.
    pub const fn new(class: &'static str) -> LockMap {
        LockMap { class }
    }

    /// The task begins what others may wait for.
    #[track_caller]
    pub fn enter(self, cx: &Cx<'_>) {
        if let Some(engine) = cx.watched() {
            engine.hold_class(self.class, Access::LockShared, Location::caller());
        }
    }

    /// The task has ended it.
    ///
    /// # Panics
    /// If it had not begun it.
    pub fn leave(self, cx: &Cx<'_>) {
        if let Some(engine) = cx.watched() {
            engine.unhold_class(self.class);
        }
    }

    /// The task is about to wait until nobody is inside, or might have had to.
    #[track_caller]
    pub fn wait(self, cx: &Cx<'_>) {
        if let Some(engine) = cx.watched() {
            engine.wants_class(self.class, Access::Wait, Location::caller());
        }
    }
}
