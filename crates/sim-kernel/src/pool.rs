//! Storage that outlives the execution that allocated it, so that the next one on the same [`Sim`](crate::sched::Sim) need not ask the host
//! for it again.
//!
//! Models nothing: an explorer builds and destroys a machine a hundred thousand times a second, and most of what that costs is the
//! allocator's. What comes from here is as new, so no execution can tell whether there was another before it.

use parking_lot::Mutex;
use std::any::Any;

/// Pieces kept at most; a simulation has a handful of arenas.
const KEPT_MAX: usize = 32;

/// Pieces of storage that nobody uses at the moment, of any type.
#[derive(Default)]
pub(crate) struct Pool {
    kept: Mutex<Vec<Box<dyn Any + Send>>>,
}

impl Pool {
    /// A piece of this type, in the state in which it was put here.
    pub(crate) fn take<T: Any>(&self) -> Option<Box<T>> {
        let mut kept = self.kept.lock();
        let at = kept.iter().rposition(|piece| piece.is::<T>())?;
        kept.swap_remove(at).downcast().ok()
    }

    /// Keeps a piece for whoever asks next.
    pub(crate) fn put<T: Any + Send>(&self, piece: Box<T>) {
        let mut kept = self.kept.lock();
        if kept.len() < KEPT_MAX {
            kept.push(piece);
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("kept", &self.kept.lock().len()).finish()
    }
}
