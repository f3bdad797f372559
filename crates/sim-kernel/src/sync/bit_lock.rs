//! Locks that are one bit of a page's flags (`folio_lock`), with shared wait queues for native sleepers (`folio_wait_table`).

use crate::Cx;
use crate::sched::{Access, ObjId, Op};
use parking_lot::{Condvar, Mutex};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of native wait queues; pages share them by number.
const QUEUES: usize = 16;

/// The lock bits of all pages of a machine.
pub struct PageLocks {
    object: ObjId,
    queues: [(Mutex<()>, Condvar); QUEUES],
}

impl PageLocks {
    /// The locks of the given class; `bit` of a page's flag word is its lock.
    pub fn new(cx: &Cx<'_>, class: &'static str) -> PageLocks {
        PageLocks { object: cx.new_object(class), queues: Default::default() }
    }

    /// The object of all of them; its indexes are the pages' numbers.
    pub(crate) fn object(&self) -> ObjId {
        self.object
    }

    /// Locks the page with this number, whose flag word is `flags`; sleeps until `bit` is clear.
    #[track_caller]
    pub fn lock(&self, cx: &Cx<'_>, page: u64, flags: &AtomicU64, bit: u64) {
        if cx.is_native() {
            if flags.fetch_or(bit, Ordering::Acquire) & bit == 0 {
                return;
            }
            let (mutex, condvar) = &self.queues[page as usize % QUEUES];
            let mut guard = mutex.lock();
            while flags.fetch_or(bit, Ordering::Acquire) & bit != 0 {
                condvar.wait(&mut guard);
            }
            return;
        }
        let op = Op::new(Access::LockExclusive, self.object, page);
        cx.acquire(op, || flags.load(Ordering::Relaxed) & bit == 0);
        flags.store(flags.load(Ordering::Relaxed) | bit, Ordering::Relaxed);
    }

    /// Locks the page if it is not locked; true on success.
    #[track_caller]
    #[must_use]
    pub fn try_lock(&self, cx: &Cx<'_>, page: u64, flags: &AtomicU64, bit: u64) -> bool {
        cx.point(Access::TryLock, self.object, page);
        let acquired = flags.fetch_or(bit, Ordering::Acquire) & bit == 0;
        if let Some(engine) = cx.engine() {
            engine.tried(&Op::new(Access::LockExclusive, self.object, page), acquired);
        }
        acquired
    }

    /// Unlocks the page.
    ///
    /// # Panics
    /// If it is not locked.
    pub fn unlock(&self, cx: &Cx<'_>, page: u64, flags: &AtomicU64, bit: u64) {
        if let Some(engine) = cx.engine() {
            let old = flags.load(Ordering::Relaxed);
            flags.store(old & !bit, Ordering::Relaxed);
            if !engine.is_aborting() {
                assert!(old & bit != 0, "unlock of page {page:#x}, which is not locked");
                engine.released(self.object, page, |_| true);
            }
            return;
        }
        let (mutex, condvar) = &self.queues[page as usize % QUEUES];
        let guard = mutex.lock();
        let old = flags.fetch_and(!bit, Ordering::Release);
        assert!(old & bit != 0, "unlock of page {page:#x}, which is not locked");
        drop(guard);
        condvar.notify_all();
    }
}

impl fmt::Debug for PageLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageLocks").field("object", &self.object).finish_non_exhaustive()
    }
}
