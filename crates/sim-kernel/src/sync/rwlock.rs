//! `rwlock_t` and `struct rw_semaphore`: many readers or one writer, with the kernel's "yield if contended".
//!
//! Simplified: there is no queue, so a waiting writer does not hold back new readers. Every order of acquisitions that a fair
//! lock could produce is still possible; what cannot happen here is the deadlock of a task that reads twice around a waiting
//! writer.

use crate::Cx;
use crate::sched::{Access, ObjId, Op};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};

/// A reader-writer lock around a value.
///
/// ```
/// use sim_kernel::{sched::Sim, sync::RwLock};
/// Sim::sequential().solo(|cx| {
///     let mmu_lock = RwLock::new(cx, "mmu_lock", 0);
///     *mmu_lock.write(cx) = 5;
///     let (a, b) = (mmu_lock.read(cx), mmu_lock.read(cx));
///     assert_eq!((*a, *b), (5, 5));
/// });
/// ```
pub struct RwLock<T> {
    object: ObjId,
    /// Native tasks that are about to block; simulated contention is known from the pending operations.
    waiting: AtomicU32,
    data: parking_lot::RwLock<T>,
}

impl<T> RwLock<T> {
    /// A lock of the given class (its name in the kernel).
    pub fn new(cx: &Cx<'_>, class: &'static str, value: T) -> RwLock<T> {
        RwLock { object: cx.new_object(class), waiting: AtomicU32::new(0), data: parking_lot::RwLock::new(value) }
    }

    /// The lock's object number.
    pub fn object(&self) -> ObjId {
        self.object
    }

    /// Acquires the lock for reading.
    #[track_caller]
    pub fn read<'a>(&'a self, cx: &'a Cx<'_>) -> RwLockReadGuard<'a, T> {
        if !cx.is_native() {
            cx.acquire(Op::new(Access::LockShared, self.object, 0), || !self.data.is_locked_exclusive());
        }
        RwLockReadGuard { cx, lock: self, data: Some(self.data.read()) }
    }

    /// Acquires the lock for writing.
    #[track_caller]
    pub fn write<'a>(&'a self, cx: &'a Cx<'_>) -> RwLockWriteGuard<'a, T> {
        RwLockWriteGuard { cx, lock: self, data: Some(self.write_raw(cx)) }
    }

    #[track_caller]
    fn write_raw<'a>(&'a self, cx: &Cx<'_>) -> parking_lot::RwLockWriteGuard<'a, T> {
        if cx.is_native() {
            return self.data.try_write().unwrap_or_else(|| {
                self.waiting.fetch_add(1, Ordering::Relaxed);
                let data = self.data.write();
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                data
            });
        }
        cx.acquire(Op::new(Access::LockExclusive, self.object, 0), || !self.data.is_locked());
        self.data.write()
    }

    /// Whether the current task holds the lock, in either mode. Always true natively, where it cannot be known.
    pub fn is_held(&self, cx: &Cx<'_>) -> bool {
        cx.engine().is_none_or(|e| e.is_aborting() || e.holds(self.object, 0, Access::LockShared))
    }

    /// Whether the current task holds the lock for writing. Always true natively, where it cannot be known.
    pub fn is_held_for_write(&self, cx: &Cx<'_>) -> bool {
        cx.engine().is_none_or(|e| e.is_aborting() || e.holds(self.object, 0, Access::LockExclusive))
    }

    /// Whether any task holds the lock now, in either mode.
    pub fn is_locked(&self) -> bool {
        self.data.is_locked()
    }

    /// Whether any task holds the lock for writing now.
    pub fn is_write_locked(&self) -> bool {
        self.data.is_locked_exclusive()
    }

    /// The value, without locking: for checkers that run while nothing else does.
    ///
    /// # Panics
    /// If the lock is held for writing.
    pub fn peek<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.data.try_read().expect("peek at a lock that is held for writing"))
    }

    /// The value, without locking, unless the lock is held for writing: for checkers that look while others are in the middle of something.
    pub fn try_peek<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        self.data.try_read().map(|data| look(&data))
    }

    /// Exclusive access to the value through exclusive access to the lock.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }

    fn released(&self, cx: &Cx<'_>) {
        if let Some(engine) = cx.engine()
            && !engine.is_aborting()
        {
            let held_by_readers = self.data.is_locked();
            engine.released(self.object, 0, |access| access == Access::LockShared || !held_by_readers);
        }
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLock").field("object", &self.object).field("locked", &self.data.is_locked()).finish()
    }
}

/// Proof that a [`RwLock`] is held for reading.
pub struct RwLockReadGuard<'a, T> {
    cx: &'a Cx<'a>,
    lock: &'a RwLock<T>,
    data: Option<parking_lot::RwLockReadGuard<'a, T>>,
}

impl<T> RwLockReadGuard<'_, T> {
    /// Whether another task waits for the lock (`rwlock_needbreak`): a writer, because readers get it meanwhile.
    pub fn needs_break(&self) -> bool {
        needs_break(self.cx, self.lock, true)
    }

    /// Drops the lock, lets others run and takes it again (`cond_resched_rwlock_read`). What was read before is void.
    #[track_caller]
    pub fn relax(&mut self) {
        drop(self.data.take());
        self.lock.released(self.cx);
        if !self.cx.is_native() {
            let op = Op::new(Access::LockShared, self.lock.object, 0);
            self.cx.acquire(op, || !self.lock.data.is_locked_exclusive());
        }
        self.data = Some(self.lock.data.read());
    }
}

impl<T> Deref for RwLockReadGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        self.data.as_ref().expect("held until dropped")
    }
}

impl<T> Drop for RwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        if self.data.take().is_some() {
            self.lock.released(self.cx);
        }
    }
}

impl<T> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLockReadGuard").field("lock", &self.lock.object).finish()
    }
}

/// Proof that a [`RwLock`] is held for writing.
pub struct RwLockWriteGuard<'a, T> {
    cx: &'a Cx<'a>,
    lock: &'a RwLock<T>,
    data: Option<parking_lot::RwLockWriteGuard<'a, T>>,
}

impl<T> RwLockWriteGuard<'_, T> {
    /// Whether another task waits for the lock (`rwlock_needbreak`).
    pub fn needs_break(&self) -> bool {
        needs_break(self.cx, self.lock, false)
    }

    /// Drops the lock, lets others run and takes it again (`cond_resched_rwlock_write`). What was read before is void.
    #[track_caller]
    pub fn relax(&mut self) {
        drop(self.data.take());
        self.lock.released(self.cx);
        self.data = Some(self.lock.write_raw(self.cx));
    }
}

fn needs_break<T>(cx: &Cx<'_>, lock: &RwLock<T>, as_reader: bool) -> bool {
    match cx.engine() {
        Some(engine) => !engine.is_aborting() && engine.is_contended(lock.object, 0, as_reader),
        None => lock.waiting.load(Ordering::Relaxed) > 0,
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        self.data.as_ref().expect("held until dropped")
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.data.as_mut().expect("held until dropped")
    }
}

impl<T> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        if self.data.take().is_some() {
            self.lock.released(self.cx);
        }
    }
}

impl<T> fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLockWriteGuard").field("lock", &self.lock.object).finish()
    }
}
