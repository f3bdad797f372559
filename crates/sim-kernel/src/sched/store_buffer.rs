//! Store buffers: the memory model of x86 (x86-TSO), if it is asked for.
//!
//! A plain store goes into its task's buffer and becomes visible to others when it is flushed, in order. The task itself reads its own latest
//! buffered value. Each buffer is a task of its own to strategies, whose next operation is to flush its oldest store, so every algorithm that picks among
//! tasks explores the reorderings, and a schedule records them. Locked read-modify-writes, fences, acquisitions and all other
//! announced changes wait until the buffer of their task is empty; releasing a lock empties it within the step, so what a critical section wrote is visible
//! to the next owner.
//!
//! Simplified: only words that are objects of their own ([`Atomic64`](crate::sync::Atomic64)) are buffered; stores to entries of tables and
//! to memory contents wait for an empty buffer, as if they were locked. On x86 most of those are (`xchg`), the others lose reorderings here, and gain none.

use super::op::{ObjId, TaskId, TaskSet};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which reorderings of plain loads and stores are explored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryModel {
    /// None: sequential consistency.
    #[default]
    Sc,
    /// Those of x86: a load may be performed before an earlier store to another word.
    Tso,
}

/// Number of the task that is the buffer of task 0; with store buffers there are at most so many tasks.
pub const BUFFERS_FROM: u8 = 32;

/// The buffer of a task, as strategies see it.
pub(crate) const fn buffer_of(task: TaskId) -> TaskId {
    TaskId(task.0 + BUFFERS_FROM)
}

/// The task whose buffer this is.
pub(crate) const fn owner_of(buffer: TaskId) -> Option<TaskId> {
    if buffer.0 >= BUFFERS_FROM { Some(TaskId(buffer.0 - BUFFERS_FROM)) } else { None }
}

/// A store that only its task knows of.
#[derive(Clone, Debug)]
pub(crate) struct Buffered {
    pub(crate) object: ObjId,
    pub(crate) word: Arc<AtomicU64>,
    pub(crate) value: u64,
    pub(crate) site: &'static Location<'static>,
    /// Its number among the stores of its task.
    pub(crate) number: u32,
}

/// The buffers of all tasks, and who waits for its own.
#[derive(Debug, Default)]
pub(crate) struct StoreBuffers {
    pub(crate) is_on: Cell<bool>,
    buffers: RefCell<Vec<VecDeque<Buffered>>>,
    counts: RefCell<Vec<u32>>,
    /// Tasks whose announced operation waits for their buffer to be empty.
    pub(crate) fenced: Cell<TaskSet>,
    /// Those of them that nothing else keeps from running.
    pub(crate) behind: Cell<TaskSet>,
}

impl StoreBuffers {
    pub(crate) fn reset(&self, is_on: bool) {
        if is_on || self.is_on.get() {
            self.buffers.borrow_mut().clear();
            self.counts.borrow_mut().clear();
        }
        self.is_on.set(is_on);
        self.fenced.set(TaskSet::EMPTY);
        self.behind.set(TaskSet::EMPTY);
    }

    pub(crate) fn is_empty(&self, task: TaskId) -> bool {
        self.buffers.borrow().get(task.index()).is_none_or(VecDeque::is_empty)
    }

    /// Adds a store of `task` and returns its number.
    pub(crate) fn push(
        &self,
        task: TaskId,
        object: ObjId,
        word: &Arc<AtomicU64>,
        value: u64,
        site: &'static Location<'static>,
    ) -> u32 {
        let (mut buffers, mut counts) = (self.buffers.borrow_mut(), self.counts.borrow_mut());
        if buffers.len() <= task.index() {
            buffers.resize_with(task.index() + 1, VecDeque::new);
            counts.resize(task.index() + 1, 0);
        }
        let number = counts[task.index()];
        counts[task.index()] += 1;
        buffers[task.index()].push_back(Buffered { object, word: Arc::clone(word), value, site, number });
        number
    }

    /// How many stores `task` has made.
    pub(crate) fn count(&self, task: TaskId) -> u32 {
        self.counts.borrow().get(task.index()).copied().unwrap_or(0)
    }

    /// The latest value of `object` that `task` has buffered, with the number of its store.
    pub(crate) fn forward(&self, task: TaskId, object: ObjId) -> Option<(u64, u32)> {
        let buffers = self.buffers.borrow();
        let found = buffers.get(task.index())?.iter().rev().find(|b| b.object == object);
        found.map(|b| (b.value, b.number))
    }

    /// Makes the oldest store of `task` visible.
    pub(crate) fn pop(&self, task: TaskId) -> Option<Buffered> {
        let oldest = self.buffers.borrow_mut().get_mut(task.index())?.pop_front()?;
        oldest.word.store(oldest.value, Ordering::Relaxed);
        Some(oldest)
    }

    /// The oldest store of `task`.
    pub(crate) fn oldest(&self, task: TaskId) -> Option<Buffered> {
        self.buffers.borrow().get(task.index())?.front().cloned()
    }
}
