//! What a scheduling point says about itself: which object it touches, and how.
//!
//! Strategies, deadlock reports and partial-order reduction live off this. An [`Op`] is announced *before* it happens, so a
//! strategy sees the pending operation of every runnable task. Two operations are dependent when they touch the same index of
//! the same object, unless both read it or both acquire it for reading.

use super::effect::{Effect, EffectKind, Relation};
use std::panic::Location;

/// Number of a task within one simulation, dense from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct TaskId(pub u8);

impl TaskId {
    /// The boot task: set-up before the tasks start, and whatever runs alone after they ended.
    pub const BOOT: TaskId = TaskId(0);

    /// The task's number as an array index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Debug for TaskId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "T{}", self.0)
    }
}

/// Most tasks that one simulation can hold, the boot task included.
pub const MAX_TASKS: usize = 64;

/// A set of tasks, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct TaskSet(pub u64);

impl TaskSet {
    /// No task.
    pub const EMPTY: TaskSet = TaskSet(0);

    /// Just this task.
    #[inline]
    pub const fn only(task: TaskId) -> TaskSet {
        TaskSet(1 << task.0)
    }
    /// Whether no task is in the set.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// Whether `task` is in the set.
    #[inline]
    pub const fn contains(self, task: TaskId) -> bool {
        self.0 & (1 << task.0) != 0
    }
    /// The set with `task`.
    #[inline]
    #[must_use]
    pub const fn with(self, task: TaskId) -> TaskSet {
        TaskSet(self.0 | 1 << task.0)
    }
    /// The set without `task`.
    #[inline]
    #[must_use]
    pub const fn without(self, task: TaskId) -> TaskSet {
        TaskSet(self.0 & !(1 << task.0))
    }
    /// How many tasks are in the set.
    #[inline]
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }
    /// The only task of the set, if there is exactly one.
    #[inline]
    pub const fn single(self) -> Option<TaskId> {
        if self.0.is_power_of_two() { Some(TaskId(self.0.trailing_zeros() as u8)) } else { None }
    }
    /// The `n`-th task of the set in ascending order.
    ///
    /// # Panics
    /// If the set has no more than `n` tasks.
    #[inline]
    pub fn nth(self, n: u32) -> TaskId {
        let mut bits = self.0;
        for _ in 0..n {
            bits &= bits.wrapping_sub(1);
        }
        assert!(bits != 0, "task set has fewer than {} members", n + 1);
        TaskId(bits.trailing_zeros() as u8)
    }
    /// The tasks in ascending order.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = TaskId> {
        let mut bits = self.0;
        std::iter::from_fn(move || {
            if bits == 0 {
                return None;
            }
            let task = TaskId(bits.trailing_zeros() as u8);
            bits &= bits - 1;
            Some(task)
        })
    }
}

impl std::fmt::Debug for TaskSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Number of a shared object (a lock, a word, a table) within one simulation, in order of creation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjId(pub u32);

impl ObjId {
    /// The object of operations that touch nothing shared, and of all objects in native mode.
    pub const NONE: ObjId = ObjId(0);
    /// What is read by somebody who does not say what it is; an object of effects only.
    pub(crate) const ANYTHING: ObjId = ObjId(u32::MAX);
    /// The sections and callbacks of RCU; an object of effects only.
    pub(crate) const RCU: ObjId = ObjId(u32::MAX - 1);
    /// Pending signals, by task; an object of effects only.
    pub(crate) const SIGNALS: ObjId = ObjId(u32::MAX - 2);
    /// The numbering of tasks; an object of effects only.
    pub(crate) const TASKS: ObjId = ObjId(u32::MAX - 3);
    /// The store buffers; an object of effects only.
    pub(crate) const BUFFERS: ObjId = ObjId(u32::MAX - 4);
}

/// How an operation touches its object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Access {
    /// The first step of a task.
    Start,
    /// Atomic read.
    Load,
    /// Atomic write.
    Store,
    /// Atomic read-modify-write: exchange, compare-exchange, add.
    Rmw,
    /// Acquire a lock for reading; blocked while it is held for writing.
    LockShared,
    /// Acquire a lock exclusively; blocked while anybody holds it.
    LockExclusive,
    /// Try to acquire without blocking.
    TryLock,
    /// Release a lock (logged, never a point of its own).
    Unlock,
    /// Enter a sleepable-RCU read section.
    SrcuEnter,
    /// Leave a sleepable-RCU read section.
    SrcuExit,
    /// Wait for a grace period.
    Synchronize,
    /// Sleep on a wait queue until a condition holds.
    Wait,
    /// Wake the sleepers of a wait queue.
    Wake,
    /// Give others a chance (`cond_resched`); touches nothing.
    Yield,
    /// Atomic addition whose result nobody looks at; two of them commute.
    Add,
    /// Wait for the end of a grace period; the task is not runnable before.
    Await,
    /// Read a word once it has a certain value; the task is not runnable before.
    LoadUntil,
    /// Put a store into the store buffer, if there is one; whoever flushes it makes it visible.
    Buffer,
    /// Wait until the store buffer is empty (`smp_mb`).
    Fence,
}

impl Access {
    /// Whether the operation leaves its object as it was.
    #[inline]
    pub const fn is_read(self) -> bool {
        matches!(self, Access::Load | Access::LoadUntil | Access::Yield | Access::Start)
    }

    /// Whether the operation waits until a lock is free.
    #[inline]
    pub const fn is_acquire(self) -> bool {
        matches!(self, Access::LockShared | Access::LockExclusive)
    }

    /// The operation as a number in the event log's hash.
    pub(crate) const fn code(self) -> u8 {
        match self {
            // For whoever reads the log, what these are to each other makes no difference.
            Access::Add => Access::Rmw as u8,
            Access::Await => Access::Wait as u8,
            Access::LoadUntil => Access::Load as u8,
            Access::Buffer => Access::Store as u8,
            other => other as u8,
        }
    }

    /// Whether the operation can be performed while stores of its task are not visible yet.
    pub(crate) const fn passes_stores(self) -> bool {
        matches!(self, Access::Load | Access::Buffer | Access::Start | Access::Yield)
    }

    /// Short name, as the event log prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Access::Start => "start",
            Access::Load | Access::LoadUntil => "load",
            Access::Store | Access::Buffer => "store",
            Access::Fence => "fence",
            Access::Rmw | Access::Add => "rmw",
            Access::LockShared => "lock_shared",
            Access::LockExclusive => "lock",
            Access::TryLock => "try_lock",
            Access::Unlock => "unlock",
            Access::SrcuEnter => "srcu_enter",
            Access::SrcuExit => "srcu_exit",
            Access::Synchronize => "synchronize",
            Access::Wait | Access::Await => "wait",
            Access::Wake => "wake",
            Access::Yield => "yield",
        }
    }
}

/// One visible operation: what a task is about to do.
#[derive(Clone, Copy, Debug)]
pub struct Op {
    /// How the object is touched.
    pub access: Access,
    /// The object.
    pub object: ObjId,
    /// First index within the object (a word of a table, a page of a file); 0 for simple objects.
    pub index: u64,
    /// Number of consecutive indexes touched, at least 1.
    pub span: u32,
    /// Where in the model the operation stands.
    pub site: &'static Location<'static>,
}

impl Op {
    /// An operation on one index of an object, at the caller's place.
    #[inline]
    #[track_caller]
    pub fn new(access: Access, object: ObjId, index: u64) -> Op {
        Op { access, object, index, span: 1, site: Location::caller() }
    }

    /// Whether both operations name the same place.
    #[inline]
    pub fn same_place(&self, other: &Op) -> bool {
        self.object == other.object && self.index == other.index
    }

    /// Whether the order of the two operations can matter, as far as it can be known before they are performed.
    ///
    /// ```
    /// use sim_kernel::sched::{Access, ObjId, Op};
    /// let load = Op::new(Access::Load, ObjId(3), 0);
    /// let store = Op::new(Access::Store, ObjId(3), 0);
    /// let elsewhere = Op::new(Access::Store, ObjId(3), 1);
    /// assert!(load.depends_on(&store));
    /// assert!(!load.depends_on(&load));
    /// assert!(!load.depends_on(&elsewhere));
    /// ```
    pub fn depends_on(&self, other: &Op) -> bool {
        if self.object != other.object || self.object == ObjId::NONE {
            return false;
        }
        let (here, there) = (self.effect(), other.effect());
        let both = |a: &Effect, b: &Effect| a.relation(b) != Relation::Independent;
        both(&here, &there) || both(&there, &here)
    }

    /// The effect that performing the operation has at most.
    fn effect(&self) -> Effect {
        Effect::of(self).unwrap_or_else(|| {
            let kind = match self.access {
                Access::TryLock => EffectKind::TryAcquired,
                Access::SrcuExit => EffectKind::SrcuExit,
                _ => EffectKind::Read,
            };
            Effect { index: self.index, object: self.object.0, span: self.span, kind }
        })
    }
}
