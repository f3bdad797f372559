//! The kernel's synchronisation primitives, simulated and native.
//!
//! Every operation through which a task could notice another is a scheduling point in a simulated execution and the real thing in a
//! native one. The data of a lock lives behind the host's lock in both, so no primitive needs `unsafe`: in a simulated execution
//! the engine guarantees that the host's lock is free when it is taken.
//!
//! Releasing a lock is not a scheduling point: whatever another task could see of it, it sees at its own next point.

mod atomic;
mod bit_lock;
mod lock_map;
mod mutex;
pub(crate) mod rcu;
mod refcount;
mod rmw;
mod rwlock;
mod srcu;
mod wait;

pub use atomic::{Atomic64, Until, Word, smp_mb};
pub use bit_lock::PageLocks;
pub use lock_map::LockMap;
pub use mutex::{Mutex, MutexGuard};
pub use rcu::{RcuReadGuard, call_rcu, rcu_read_lock, synchronize_rcu};
pub use refcount::RefCount;
pub use rmw::{Rmw, RmwWord};
pub use rwlock::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use srcu::{Srcu, SrcuIdx, SrcuReadGuard};
pub use wait::WaitQueue;
