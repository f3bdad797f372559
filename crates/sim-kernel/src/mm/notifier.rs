//! MMU notifiers (`mm/mmu_notifier.c`): who is told before and after a process's translations change.
//!
//! A start is called before the first entry changes and an end after the last; in between a listener must not use translations of
//! the range. Pairs may nest. Both run under SRCU, so that unregistering can wait for the ones that run.
//!
//! Simplified: of ageing only `clear_young`, since nothing here reclaims (`clear_flush_young`) or makes pages huge by itself
//! (`test_young`), and it is called without the page-table lock. All callbacks may sleep, and none fails.

use crate::sched::Access;
use crate::sync::{LockMap, Srcu};
use crate::{Cx, HvaRange};
use std::fmt;
use std::sync::Arc;

/// Someone who holds translations of a process's addresses of its own (`struct mmu_notifier_ops`).
///
/// Called with `mmap_lock`, a folio lock or `i_mmap_rwsem` held, never with the page-table lock.
pub trait MmuNotifier: Send + Sync + fmt::Debug {
    /// `invalidate_range_start`: the translations of `range` are about to change; forget them and make no new ones.
    fn invalidate_range_start(&self, cx: &Cx<'_>, range: HvaRange);

    /// `invalidate_range_end`: the translations of `range` are settled again.
    fn invalidate_range_end(&self, cx: &Cx<'_>, range: HvaRange);

    /// `clear_young`: whether the listener's translations of `range` were used since they were last asked. From now on they count as not used; nobody
    /// flushes anything for that. A listener without A bits of its own has not used any.
    fn clear_young(&self, _cx: &Cx<'_>, _range: HvaRange) -> bool {
        false
    }

    /// `release`: the address space ends, and nobody runs in it any more; forget all its translations. Called before anything is unmapped.
    fn release(&self, _cx: &Cx<'_>) {}
}

/// `__mmu_notifier_invalidate_range_start_map`: from a start to its end. Whoever waits until no pair is open waits for this.
pub const INVALIDATE_RANGE: LockMap = LockMap::new("mmu_notifier_invalidate_range");

/// The list, as a place of its SRCU's object, whose others are its counters. Looking at it is no step of its own: it belongs to the one under way.
const LIST: u64 = 1 << 32;

type Subscription = (u64, Arc<dyn MmuNotifier>);

/// The listeners of one address space (`struct mmu_notifier_subscriptions`).
pub(super) struct Notifiers {
    srcu: Srcu,
    /// In order of registration. The number tells a listener from one that is registered again later.
    list: parking_lot::Mutex<(u64, Arc<[Subscription]>)>,
}

/// An invalidation that was started and must be ended.
#[must_use = "an invalidation that was started must be ended"]
pub(super) struct Invalidation {
    range: HvaRange,
    told: Arc<[Subscription]>,
}

impl Notifiers {
    pub(super) fn new(cx: &Cx<'_>) -> Notifiers {
        Notifiers { srcu: Srcu::new(cx, "mmu_notifier_srcu"), list: parking_lot::Mutex::new((0, Arc::new([]))) }
    }

    pub(super) fn register(&self, cx: &Cx<'_>, notifier: Arc<dyn MmuNotifier>) {
        cx.also(Access::Store, self.srcu.object(), LIST, 1);
        let mut list = self.list.lock();
        list.0 += 1;
        let number = list.0;
        list.1 = list.1.iter().cloned().chain([(number, notifier)]).collect();
    }

    /// # Panics
    /// If the listener is not registered.
    pub(super) fn unregister(&self, cx: &Cx<'_>, notifier: &Arc<dyn MmuNotifier>) {
        {
            cx.also(Access::Store, self.srcu.object(), LIST, 1);
            let mut list = self.list.lock();
            let at = list.1.iter().position(|(_, n)| std::ptr::addr_eq(Arc::as_ptr(n), Arc::as_ptr(notifier)));
            let number = list.1[at.expect("only a registered notifier is unregistered")].0;
            list.1 = list.1.iter().filter(|(n, _)| *n != number).cloned().collect();
        }
        self.srcu.synchronize(cx);
    }

    fn current(&self, cx: &Cx<'_>) -> Arc<[Subscription]> {
        cx.also(Access::Load, self.srcu.object(), LIST, 1);
        Arc::clone(&self.list.lock().1)
    }

    /// `mmu_notifier_invalidate_range_start`.
    pub(super) fn start(&self, cx: &Cx<'_>, range: HvaRange) -> Invalidation {
        // `mm_has_notifiers`: most processes have none and pay nothing.
        if self.current(cx).is_empty() {
            return Invalidation { range, told: Arc::new([]) };
        }
        let _srcu = self.srcu.read(cx);
        let told = self.current(cx);
        if !told.is_empty() {
            INVALIDATE_RANGE.enter(cx);
        }
        for (_, notifier) in &*told {
            notifier.invalidate_range_start(cx, range);
        }
        Invalidation { range, told }
    }

    /// `mmu_notifier_release`, at the end of the address space.
    pub(super) fn release(&self, cx: &Cx<'_>) {
        for (_, notifier) in &*self.current(cx) {
            notifier.release(cx);
        }
    }

    /// `mmu_notifier_clear_young`: whether any listener has used the range.
    pub(super) fn clear_young(&self, cx: &Cx<'_>, range: HvaRange) -> bool {
        if self.current(cx).is_empty() {
            return false;
        }
        let _srcu = self.srcu.read(cx);
        // All are asked, whatever the first says.
        self.current(cx).iter().fold(false, |young, (_, notifier)| notifier.clear_young(cx, range) | young)
    }

    /// `mmu_notifier_invalidate_range_end`. Who unregistered meanwhile is not called any more; who registered meanwhile was
    /// never told of the start and is not told of the end.
    pub(super) fn end(&self, cx: &Cx<'_>, invalidation: Invalidation) {
        if invalidation.told.is_empty() {
            return;
        }
        let _srcu = self.srcu.read(cx);
        let registered = self.current(cx);
        for (number, notifier) in &*invalidation.told {
            if registered.iter().any(|(n, _)| n == number) {
                notifier.invalidate_range_end(cx, invalidation.range);
            }
        }
        INVALIDATE_RANGE.leave(cx);
    }
}

impl fmt::Debug for Notifiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifiers").field("registered", &self.list.lock().1.len()).finish()
    }
}
