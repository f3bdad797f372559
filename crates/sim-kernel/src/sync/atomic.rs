//! Atomic words whose every access is a scheduling point.
//!
//! [`Word`] is a view of one word that belongs to a larger object (an entry of a page table, a slot of a node), [`Atomic64`] a
//! word that is an object of its own. Simulated executions are sequentially consistent, or have the store buffers of x86 if that is asked
//! for ([`MemoryModel`](crate::sched::MemoryModel)); natively, loads acquire, stores release and read-modify-writes are sequentially consistent.

use crate::Cx;
use crate::sched::{Access, ObjId, Op};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One word of a shared object, seen by a task.
#[derive(Clone, Copy)]
pub struct Word<'a> {
    cx: &'a Cx<'a>,
    object: ObjId,
    index: u64,
    word: &'a AtomicU64,
    /// The same word, if its stores can be buffered.
    shared: Option<&'a Arc<AtomicU64>>,
}

/// What a task waits for a word to be (`smp_cond_load_acquire`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// This value.
    Equal(u64),
    /// Any value but this.
    NotEqual(u64),
    /// These bits are set.
    AllSet(u64),
    /// None of these bits is set.
    NoneSet(u64),
}

impl Until {
    /// Whether `value` is what was waited for.
    #[inline]
    pub const fn holds(self, value: u64) -> bool {
        match self {
            Until::Equal(v) => value == v,
            Until::NotEqual(v) => value != v,
            Until::AllSet(bits) => value & bits == bits,
            Until::NoneSet(bits) => value & bits == 0,
        }
    }
}

impl<'a> Word<'a> {
    /// The word at `index` of `object`.
    #[inline]
    pub fn new(cx: &'a Cx<'_>, object: ObjId, index: u64, word: &'a AtomicU64) -> Word<'a> {
        Word { cx, object, index, word, shared: None }
    }

    /// Reads the word.
    #[inline]
    #[track_caller]
    pub fn load(self) -> u64 {
        self.cx.point(Access::Load, self.object, self.index);
        if self.shared.is_some()
            && let Some(engine) = self.cx.engine()
            && let Some(value) = engine.forwarded(self.object)
        {
            return value;
        }
        self.word.load(Ordering::Acquire)
    }

    /// Reads the word once it is what is waited for. A spin, but simulated nothing spins: the task is not runnable while the word is something else.
    ///
    /// Whoever changes the word must do so with a scheduling point; [`Atomic64::set_locked`] goes unnoticed.
    #[inline]
    #[track_caller]
    pub fn wait_until(self, until: Until) -> u64 {
        self.cx.spin_until(Op::new(Access::LoadUntil, self.object, self.index), self.word, until)
    }

    /// Writes the word.
    #[inline]
    #[track_caller]
    pub fn store(self, value: u64) {
        if self.shared.is_some() {
            return self.store_buffered(value);
        }
        self.cx.point(Access::Store, self.object, self.index);
        self.word.store(value, Ordering::Release);
        self.written(value);
    }

    #[cold]
    #[track_caller]
    fn store_buffered(self, value: u64) {
        let site = std::panic::Location::caller();
        match (self.cx.engine(), self.shared) {
            (Some(engine), Some(word)) if !self.cx.is_solo() => {
                self.cx.point(Access::Buffer, self.object, self.index);
                engine.buffer_store(self.object, word, value, site);
            }
            _ => {
                self.cx.point(Access::Store, self.object, self.index);
                self.word.store(value, Ordering::Release);
            }
        }
    }

    /// Tells those who wait for the word to be something.
    #[inline]
    fn written(self, value: u64) {
        if let Some(engine) = self.cx.engine() {
            engine.written(self.object, self.index, value);
        }
    }

    /// Exchanges the word and returns the old value.
    #[inline]
    #[track_caller]
    pub fn xchg(self, value: u64) -> u64 {
        self.cx.point(Access::Rmw, self.object, self.index);
        if self.cx.is_native() {
            return self.word.swap(value, Ordering::SeqCst);
        }
        self.rmw_unscheduled(|_| value)
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
        self.written(new);
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
            let new = self.word.load(Ordering::Relaxed).wrapping_add(n);
            self.word.store(new, Ordering::Relaxed);
            self.written(new);
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
        self.written(new);
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
    word: Storage,
}

/// Where a word is: with store buffers, those hold on to it, too.
enum Storage {
    Here(AtomicU64),
    Shared(Arc<AtomicU64>),
}

impl Storage {
    #[inline]
    fn word(&self) -> &AtomicU64 {
        match self {
            Storage::Here(word) => word,
            Storage::Shared(word) => word,
        }
    }
}

/// `smp_mb`: what the task stored before is visible to others before it goes on. Nothing without store buffers, but a scheduling point.
#[track_caller]
pub fn smp_mb(cx: &Cx<'_>) {
    if cx.is_native() {
        std::sync::atomic::fence(Ordering::SeqCst);
    } else {
        cx.point(Access::Fence, ObjId::NONE, 0);
    }
}

impl Atomic64 {
    /// A word of the given class (its name in the kernel).
    pub fn new(cx: &Cx<'_>, class: &'static str, value: u64) -> Atomic64 {
        let is_buffered = cx.engine().is_some_and(|engine| engine.stores.is_on.get());
        let word = AtomicU64::new(value);
        let word = if is_buffered { Storage::Shared(Arc::new(word)) } else { Storage::Here(word) };
        Atomic64 { object: cx.new_object(class), word }
    }

    /// The word as a task sees it.
    #[inline]
    pub fn at<'a>(&'a self, cx: &'a Cx<'_>) -> Word<'a> {
        let shared = match &self.word {
            Storage::Here(_) => None,
            Storage::Shared(word) => Some(word),
        };
        Word { cx, object: self.object, index: 0, word: self.word.word(), shared }
    }

    /// Reads the word.
    #[inline]
    #[track_caller]
    pub fn load(&self, cx: &Cx<'_>) -> u64 {
        self.at(cx).load()
    }

    /// Reads the word once it is what is waited for; see [`Word::wait_until`].
    #[inline]
    #[track_caller]
    pub fn wait_until(&self, cx: &Cx<'_>, until: Until) -> u64 {
        self.at(cx).wait_until(until)
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
        self.word.word().load(Ordering::Acquire)
    }

    /// As [`Atomic64::peek`], but what this task has stored counts although it may still wait in its store buffer.
    #[inline]
    pub fn peek_own(&self, cx: &Cx<'_>) -> u64 {
        let own = match &self.word {
            Storage::Here(_) => None,
            Storage::Shared(_) => {
                cx.engine().and_then(|engine| engine.stores.forward(engine.current.get(), self.object))
            }
        };
        own.map_or_else(|| self.peek(), |(value, _)| value)
    }

    /// Writes without a scheduling point: only for writers under a lock that every reader who cares also holds.
    #[inline]
    pub fn set_locked(&self, value: u64) {
        self.word.word().store(value, Ordering::Release);
    }
}

impl fmt::Debug for Atomic64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Atomic64({:#x})", self.peek())
    }
}
