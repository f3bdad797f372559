//! What a step did to shared state, and which orders of two steps can be told apart.
//!
//! A step is everything from one scheduling point of a task to its next. It begins with the operation that was announced, and may do more: release
//! locks, wake sleepers, enter and leave RCU sections, run callbacks, send signals, start tasks. Each of these is an [`Effect`]; partial-order
//! reduction compares effects and not announcements, so that nothing that a step does is overlooked.
//!
//! What has no effect here, and why its order cannot matter: taking frames, nodes and object numbers from allocators (the numbers differ, what
//! is done with them does not; an outcome must not print them); data inside a lock and data that the model reads and writes under one
//! (the lock's effects order it); the end of a task (nobody can wait for it).

use super::op::{Access, ObjId, Op, TaskId};

/// How an effect touches its object. Kinds that commute with each other are told apart from those that do not by [`EffectKind::relation`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
#[repr(u8)]
pub enum EffectKind {
    /// Reads: a load, a compare-and-exchange that failed.
    Read,
    /// Writes, or reads and writes.
    Write,
    /// Adds to a counter without looking at it.
    Add,
    /// Acquired for reading.
    LockShared,
    /// Acquired exclusively.
    LockExclusive,
    /// A try-lock that succeeded.
    TryAcquired,
    /// A try-lock that failed.
    TryFailed,
    /// Released a lock that was held for reading.
    UnlockShared,
    /// Released a lock that was held exclusively.
    UnlockExclusive,
    /// Is about to acquire for reading: what `rwlock_needbreak` of a writer sees.
    Queued,
    /// Is about to acquire exclusively: what `rwlock_needbreak` of anybody sees.
    QueuedExclusive,
    /// Asked whether somebody waits for the lock.
    Contended,
    /// Asked whether a writer waits for the lock.
    ContendedByWriter,
    /// Entered an SRCU read section.
    SrcuEnter,
    /// Left an SRCU read section.
    SrcuExit,
    /// Began an SRCU grace period.
    SrcuSync,
    /// Saw an SRCU grace period end.
    SrcuDone,
    /// Entered an RCU read section.
    RcuEnter,
    /// Left an RCU read section.
    RcuExit,
    /// Looked at who is in an RCU section: `call_rcu`, `synchronize_rcu`.
    RcuCall,
    /// Saw an RCU grace period end.
    RcuDone,
    /// Read a word that had the value that the task waited for.
    ReadAwaited,
    /// Put a store into the store buffer.
    BufferPush,
    /// Flushed a store.
    BufferPop,
    /// Read a value that was still in the buffer.
    BufferRead,
    /// Found the buffer empty.
    BufferEmpty,
    /// Tested the condition of a wait queue, and perhaps went to sleep.
    Wait,
    /// Woke a wait queue.
    Wake,
    /// Read something that it does not name: the condition of a sleeper of which nobody says what it is about. Depends on every change of anything.
    ReadAnything,
}

/// How the order of two effects of different tasks on the same place can matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    /// It cannot.
    Independent,
    /// The later could not have happened before the earlier, so they are ordered and there is nothing to reverse.
    Enables,
    /// The other order is possible and can give something else.
    Race,
}

impl EffectKind {
    /// What `self`, the earlier, is to `later`, in another task and on the same place.
    pub const fn relation(self, later: EffectKind) -> Relation {
        use EffectKind::*;
        use Relation::*;
        match (self, later) {
            (Read, Read) | (Add, Add) => Independent,
            (Read | Write | Add, Read | Write | Add) => Race,

            (ReadAwaited, Write | Add) | (Write | Add, ReadAwaited) => Race,

            (BufferPush, BufferPop) | (BufferPop, BufferEmpty) => Enables,
            (BufferRead, BufferPop) => Race,

            (UnlockShared, LockExclusive) => Enables,
            (UnlockExclusive, LockShared | LockExclusive) => Enables,
            (LockShared, LockShared) | (TryFailed, TryFailed) => Independent,
            (
                LockShared | LockExclusive | TryAcquired | TryFailed,
                LockShared | LockExclusive | TryAcquired | TryFailed,
            ) => Race,
            (UnlockShared | UnlockExclusive, TryAcquired | TryFailed) => Race,
            (TryAcquired | TryFailed, UnlockShared | UnlockExclusive) => Race,
            (Contended, Queued | QueuedExclusive | LockShared | LockExclusive)
            | (Queued | QueuedExclusive | LockShared | LockExclusive, Contended) => Race,
            (ContendedByWriter, QueuedExclusive | LockExclusive)
            | (QueuedExclusive | LockExclusive, ContendedByWriter) => Race,

            (SrcuEnter, SrcuSync) | (SrcuSync, SrcuEnter) => Race,
            (SrcuExit, SrcuDone) => Enables,
            (SrcuSync, SrcuSync) => Race,

            (RcuEnter, RcuCall) | (RcuCall, RcuEnter) => Race,
            (RcuExit, RcuDone) => Enables,

            (Wait, Wake) | (Wake, Wait) => Race,

            (ReadAnything, other) | (other, ReadAnything) => {
                if other.is_change() {
                    Race
                } else {
                    Independent
                }
            }
            _ => Independent,
        }
    }

    /// Whether the effect changes something that a condition could read.
    pub const fn is_change(self) -> bool {
        use EffectKind::*;
        !matches!(
            self,
            Read | ReadAwaited
                | BufferPush
                | BufferPop
                | BufferRead
                | BufferEmpty
                | ReadAnything
                | TryFailed
                | Queued
                | QueuedExclusive
                | Contended
                | ContendedByWriter
                | Wait
                | Wake
                | SrcuDone
                | RcuDone
        )
    }

    /// Whether everything before this, on the same place, that a later effect depends on is itself before this one.
    pub(crate) const fn shields(self, later: EffectKind) -> bool {
        use EffectKind::*;
        match self {
            Write => matches!(later, Read | Write | Add),
            LockExclusive => {
                matches!(later, LockShared | LockExclusive | TryAcquired | TryFailed | UnlockShared | UnlockExclusive)
            }
            _ => false,
        }
    }

    /// Whether the task waits until it can do this.
    pub(crate) const fn is_blocking(self) -> bool {
        matches!(self, EffectKind::LockShared | EffectKind::LockExclusive | EffectKind::ReadAwaited)
    }
}

/// One thing that a step did to a shared object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Effect {
    /// First index within the object.
    pub index: u64,
    /// The object's number.
    pub object: u32,
    /// Number of consecutive indexes, at least 1.
    pub span: u32,
    /// How it was touched.
    pub kind: EffectKind,
}

impl Effect {
    /// An effect on one index.
    pub fn new(kind: EffectKind, object: ObjId, index: u64) -> Effect {
        Effect { index, object: object.0, span: 1, kind }
    }

    /// Started a task. All starts touch one place, because they number the tasks; the span is the number and one.
    pub(crate) fn spawn(task: TaskId) -> Effect {
        Effect { span: u32::from(task.0) + 1, ..Effect::new(EffectKind::Write, ObjId::TASKS, 0) }
    }

    /// The task that was started, if this is that.
    pub(crate) fn spawned(&self) -> Option<TaskId> {
        (self.object == ObjId::TASKS.0).then(|| TaskId((self.span - 1) as u8))
    }

    /// What performing an announced operation does, as far as the announcement tells; `None` if nothing, or if it depends.
    pub fn of(op: &Op) -> Option<Effect> {
        let kind = match op.access {
            Access::Load => EffectKind::Read,
            Access::LoadUntil => EffectKind::ReadAwaited,
            Access::Store | Access::Rmw => EffectKind::Write,
            Access::Add => EffectKind::Add,
            Access::LockShared => EffectKind::LockShared,
            Access::LockExclusive => EffectKind::LockExclusive,
            Access::SrcuEnter => EffectKind::SrcuEnter,
            Access::Synchronize if op.object == ObjId::NONE => {
                return Some(Effect::new(EffectKind::RcuCall, ObjId::RCU, 0));
            }
            Access::Synchronize => EffectKind::SrcuSync,
            Access::Wait => EffectKind::Wait,
            Access::Wake => EffectKind::Wake,
            // What a try-lock did is known afterwards, and of which sections the end was.
            Access::TryLock | Access::SrcuExit => return None,
            Access::Start | Access::Unlock | Access::Yield | Access::Await | Access::Buffer | Access::Fence => {
                return None;
            }
        };
        Some(Effect { index: op.index, object: op.object.0, span: op.span, kind })
    }

    /// Whether both touch a common index of one object.
    #[inline]
    pub fn overlaps(&self, other: &Effect) -> bool {
        self.object == other.object
            && self.index < other.index.saturating_add(u64::from(other.span))
            && other.index < self.index.saturating_add(u64::from(self.span))
    }

    /// Whether this touches every index that `other` touches.
    #[inline]
    pub(crate) fn covers(&self, other: &Effect) -> bool {
        self.index <= other.index
            && self.index.saturating_add(u64::from(self.span)) >= other.index.saturating_add(u64::from(other.span))
    }

    /// What this, in an earlier step of another task, is to `later`.
    #[inline]
    pub fn relation(&self, later: &Effect) -> Relation {
        let anything = self.kind == EffectKind::ReadAnything || later.kind == EffectKind::ReadAnything;
        if anything || self.overlaps(later) { self.kind.relation(later.kind) } else { Relation::Independent }
    }
}

/// Whether the order of two steps with these effects can matter, both of which could be made now.
pub(crate) fn depend(a: &[Effect], b: &[Effect]) -> bool {
    // What enables the other cannot stand beside it as an alternative.
    a.iter().any(|x| b.iter().any(|y| x.relation(y) == Relation::Race || y.relation(x) == Relation::Race))
}
