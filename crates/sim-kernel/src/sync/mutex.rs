//! `struct mutex` and `spinlock_t`: exclusive locks.
//!
//! A task that cannot have the lock is not runnable until it is released. There is no queue: any waiter may get it next, which
//! covers every order that the kernel's hand-over could produce.

use crate::Cx;
use crate::sched::{Access, ObjId, Op};
use std::fmt;
use std::ops::{Deref, DerefMut};

/// An exclusive lock around a value.
///
/// ```
/// use sim_kernel::{sched::Sim, sync::Mutex};
/// Sim::sequential().solo(|cx| {
///     let slots_lock = Mutex::new(cx, "slots_lock", 1);
///     *slots_lock.lock(cx) += 1;
///     assert_eq!(*slots_lock.lock(cx), 2);
/// });
/// ```
pub struct Mutex<T> {
    object: ObjId,
    data: parking_lot::Mutex<T>,
}

impl<T> Mutex<T> {
    /// A lock of the given class (its name in the kernel).
    pub fn new(cx: &Cx<'_>, class: &'static str, value: T) -> Mutex<T> {
        Mutex { object: cx.new_object(class), data: parking_lot::Mutex::new(value) }
    }

    /// The lock's object number.
    pub fn object(&self) -> ObjId {
        self.object
    }

    /// Acquires the lock; the task sleeps until it is free.
    #[track_caller]
    pub fn lock<'a>(&'a self, cx: &'a Cx<'_>) -> MutexGuard<'a, T> {
        if !cx.is_native() {
            cx.acquire(Op::new(Access::LockExclusive, self.object, 0), || !self.data.is_locked());
        }
        MutexGuard { cx, object: self.object, data: Some(self.data.lock()) }
    }

    /// Acquires the lock if it is free.
    #[track_caller]
    pub fn try_lock<'a>(&'a self, cx: &'a Cx<'_>) -> Option<MutexGuard<'a, T>> {
        cx.point(Access::TryLock, self.object, 0);
        let data = self.data.try_lock();
        if let Some(engine) = cx.engine() {
            engine.tried(&Op::new(Access::LockExclusive, self.object, 0), data.is_some());
        }
        data.map(|data| MutexGuard { cx, object: self.object, data: Some(data) })
    }

    /// Whether the current task holds the lock. Always true natively, where it cannot be known.
    pub fn is_held(&self, cx: &Cx<'_>) -> bool {
        cx.engine().is_none_or(|e| e.is_aborting() || e.holds(self.object, 0, Access::LockExclusive))
    }

    /// The value, without locking: for checkers that run while nothing else does.
    ///
    /// # Panics
    /// If the lock is held.
    pub fn peek<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.data.try_lock().expect("peek at a lock that is held"))
    }

    /// The value, without locking, unless the lock is held: for checkers that look while others are in the middle of something.
    pub fn try_peek<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.data.try_lock().map(|data| look(&data))
    }

    /// Exclusive access to the value through exclusive access to the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mutex").field("object", &self.object).field("locked", &self.data.is_locked()).finish()
    }
}

/// Proof that a [`Mutex`] is held; dropping it releases the lock.
pub struct MutexGuard<'a, T> {
    cx: &'a Cx<'a>,
    object: ObjId,
    data: Option<parking_lot::MutexGuard<'a, T>>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        self.data.as_ref().expect("held until dropped")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.data.as_mut().expect("held until dropped")
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        drop(self.data.take());
        if let Some(engine) = self.cx.engine()
            && !engine.is_aborting()
        {
            engine.released(self.object, 0, |_| true);
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
