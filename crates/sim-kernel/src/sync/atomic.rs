//! Atomic words whose every access is a scheduling point.
//!
//! [`Word`] is a view of one word that belongs to a larger object (an entry of a page table, a slot of a node), [`Atomic64`] a
//! word that is an object of its own. Simulated executions are sequentially consistent; natively, loads acquire, stores release
//! and read-modify-writes are sequentially consistent.

use crate::Cx;
use crate::sched::{Access, ObjId};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// One word of a shared object, seen by a task.
#[derive(Clone, Copy)]
pub struct Word<'a> {
    cx: &'a Cx<'a>,
    object: ObjId,
    index: u64,
    word: &'a AtomicU64,
}

impl<'a> Word<'a> {
    /// The word at `index` of `object`.
    #[inline]
    pub fn new(cx: &'a Cx<'_>, object: ObjId, index: u64, word: &'a AtomicU64) -> Word<'a> {
        Word { cx, object, index, word }
    }

    /// Reads the word.
    #[inline]
    #[track_caller]
    pub fn load(self) -> u64 {
        self.cx.point(Access::Load, self.object, self.index);
        self.word.load(Ordering::Acquire)
    }

    /// Writes the word.
    #[inline]
    #[track_caller]
    pub fn store(self, value: u64) {
        self.cx.point(Access::Store, self.object, self.index);
        self.word.store(value, Ordering::Release);
    }

    /// Exchanges the word and returns the old value.
    #[inline]
    #[track_caller]
    pub fn xchg(self, value: u64) -> u64 {
        self.rmw(|_| value)
    }

    /// Stores `new` if the word is `old`.
    ///
    /// # Errors
    /// The value found, if it is not `old`.
    #[inline]
    #[track_caller]
    pub fn cmpxchg(self, old: u64, new: u64) -> Result<(), u64> {
        self.cx.point(Access::Rmw, self.object, self.index);
        if self.cx.is_native() {
            return self.word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).map(|_| ());
        }
        let found = self.word.load(Ordering::Relaxed);
        if found != old {
            if let Some(engine) = self.cx.engine() {
                engine.only_read(self.object, self.index);
            }
            return Err(found);
        }
        self.word.store(new, Ordering::Relaxed);
        Ok(())
    }

    /// Adds to the word, wrapping, and does not look at it: the order of two additions cannot be told.
    #[inline]
    #[track_caller]
    pub fn add(self, n: u64) {
        self.cx.point(Access::Add, self.object, self.index);
        if self.cx.is_native() {
            self.word.fetch_add(n, Ordering::SeqCst);
        } else {
            self.word.store(self.word.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        }
    }

    /// Replaces the word by a function of it and returns the old value. Natively the function may run more than once.
    #[inline]
    #[track_caller]
    pub fn rmw(self, change: impl Fn(u64) -> u64) -> u64 {
        self.cx.point(Access::Rmw, self.object, self.index);
        self.rmw_unscheduled(change)
    }

    #[inline]
    fn rmw_unscheduled(self, change: impl Fn(u64) -> u64) -> u64 {
        if self.cx.is_native() {
            let result = self.word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |v| Some(change(v)));
            return result.unwrap_or_else(|v| v);
        }
        // One OS thread runs all tasks, so a plain load and store is one step; the locked instruction would cost more.
        let old = self.word.load(Ordering::Relaxed);
        let new = change(old);
        if new == old
            && let Some(engine) = self.cx.engine()
        {
            engine.only_read(self.object, self.index);
        }
        self.word.store(new, Ordering::Relaxed);
        old
    }
}

impl fmt::Debug for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}[{}]={:#x}", self.object, self.index, self.word.load(Ordering::Relaxed))
    }
}

/// An atomic word that is a shared object of its own.
pub struct Atomic64 {
    object: ObjId,
    word: AtomicU64,
}

impl Atomic64 {
    /// A word of the given class (its name in the kernel).
    pub fn new(cx: &Cx<'_>, class: &'static str, value: u64) -> Atomic64 {
        Atomic64 { object: cx.new_object(class), word: AtomicU64::new(value) }
    }

    /// The word as a task sees it.
    #[inline]
    pub fn at<'a>(&'a self, cx: &'a Cx<'_>) -> Word<'a> {
        Word::new(cx, self.object, 0, &self.word)
    }

    /// Reads the word.
    #[inline]
    #[track_caller]
    pub fn load(&self, cx: &Cx<'_>) -> u64 {
        self.at(cx).load()
    }

    /// Writes the word.
    #[inline]
    #[track_caller]
    pub fn store(&self, cx: &Cx<'_>, value: u64) {
        self.at(cx).store(value);
    }

    /// Adds to the word, wrapping, without looking at it: the order of two additions cannot be told.
    #[inline]
    #[track_caller]
    pub fn add(&self, cx: &Cx<'_>, n: u64) {
        self.at(cx).add(n);
    }

    /// Adds to the word, wrapping, and returns the old value.
    #[inline]
    #[track_caller]
    pub fn fetch_add(&self, cx: &Cx<'_>, n: u64) -> u64 {
        self.at(cx).rmw(|v| v.wrapping_add(n))
    }

    /// Replaces the word by a function of it and returns the old value.
    #[inline]
    #[track_caller]
    pub fn rmw(&self, cx: &Cx<'_>, change: impl Fn(u64) -> u64) -> u64 {
        self.at(cx).rmw(change)
    }

    /// Stores `new` if the word is `old`.
    ///
    /// # Errors
    /// The value found, if it is not `old`.
    #[inline]
    #[track_caller]
    pub fn cmpxchg(&self, cx: &Cx<'_>, old: u64, new: u64) -> Result<(), u64> {
        self.at(cx).cmpxchg(old, new)
    }

    /// The value, without a scheduling point: for code under a lock that all writers hold, and for checkers.
    #[inline]
    pub fn peek(&self) -> u64 {
        self.word.load(Ordering::Acquire)
    }

    /// Writes without a scheduling point: only for writers under a lock that every reader who cares also holds.
    #[inline]
    pub fn set_locked(&self, value: u64) {
        self.word.store(value, Ordering::Release);
    }
}

impl fmt::Debug for Atomic64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Atomic64({:#x})", self.peek())
    }
}
