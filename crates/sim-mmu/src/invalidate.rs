//! The invalidation and retry protocol between whoever takes memory away and page faults (`kvm_mmu_invalidate_start`,
//! `kvm_mmu_invalidate_range_add`, `kvm_mmu_invalidate_end` of `virt/kvm/kvm_main.c`, `mmu_invalidate_retry_gfn` of
//! `include/linux/kvm_host.h`).
//!
//! Writers hold mmu_lock for writing. Readers snapshot the sequence, look their frame up and test again: without the lock as an
//! optimisation, and at last under mmu_lock, which is the test that counts. The four words are atomic because the lockless test
//! reads them while a writer changes them.

use crate::addr::{Gfn, GfnRange};
use crate::mutants::{INPROGRESS_ONLY, RC_04, RC_05, RC_34, RC_35, SEQ_ONLY};
use sim_kernel::Cx;
use sim_kernel::sync::{Atomic64, RwLockReadGuard, RwLockWriteGuard, Until};
use std::sync::atomic::{AtomicU64, Ordering};

/// `INVALID_GPA`: no range was added yet.
const UNSET: u64 = u64::MAX;

/// State of the invalidations of one VM.
#[derive(Debug)]
pub struct MmuInvalidate {
    seq: Atomic64,
    in_progress: Atomic64,
    range_start: Atomic64,
    range_end: Atomic64,
    kept: Kept,
}

/// What the protocol's words should say, kept beside them by the same writers: for checking only.
#[derive(Debug, Default)]
struct Kept {
    open: AtomicU64,
    ended: AtomicU64,
    hull_start: AtomicU64,
    hull_end: AtomicU64,
}

/// An invalidation that was begun. It must be given to [`MmuInvalidate::end`]; dropping it fails an assertion (INV-301).
#[derive(Debug)]
#[must_use = "an invalidation that was begun must be ended"]
pub struct Invalidation {
    ended: bool,
}

impl Invalidation {
    /// Ends the obligation: the VM itself is dropped, in the middle of whatever it did.
    pub fn abandon(mut self) {
        self.ended = true;
    }
}

impl Drop for Invalidation {
    fn drop(&mut self) {
        assert!(self.ended || std::thread::panicking(), "INV-301: an invalidation was begun and never ended");
    }
}

impl MmuInvalidate {
    /// No invalidation is open; the sequence starts at 0.
    pub fn new(cx: &Cx<'_>) -> MmuInvalidate {
        MmuInvalidate {
            seq: Atomic64::new(cx, "mmu_invalidate_seq", 0),
            in_progress: Atomic64::new(cx, "mmu_invalidate_in_progress", 0),
            range_start: Atomic64::new(cx, "mmu_invalidate_range_start", UNSET),
            range_end: Atomic64::new(cx, "mmu_invalidate_range_end", UNSET),
            kept: Kept::default(),
        }
    }

    /// `kvm_mmu_invalidate_start`. At least one range must be added before the lock is released.
    pub fn begin(&self, cx: &Cx<'_>, _lock: &mut RwLockWriteGuard<'_, ()>) -> Invalidation {
        // Only the first of several overlapping invalidations forgets the old range: the others extend it.
        let first = self.in_progress.fetch_add(cx, 1) == 0;
        if first || cx.has_mutant(RC_35) {
            self.range_start.store(cx, UNSET);
            self.range_end.store(cx, UNSET);
        }
        if self.kept.open.fetch_add(1, Ordering::Relaxed) == 0 {
            self.kept.hull_start.store(u64::MAX, Ordering::Relaxed);
            self.kept.hull_end.store(0, Ordering::Relaxed);
        }
        Invalidation { ended: false }
    }

    /// `kvm_mmu_invalidate_range_add`: the range becomes part of the hull that faults stay away from. Before its zap.
    ///
    /// # Panics
    /// If the range is empty, no invalidation is open (INV-301), or an earlier range was forgotten (INV-302).
    pub fn add_range(&self, cx: &Cx<'_>, _lock: &mut RwLockWriteGuard<'_, ()>, range: GfnRange) {
        assert!(!range.is_empty(), "INV-302: the empty range {range:?} was added to an invalidation");
        assert!(self.in_progress.peek() > 0, "INV-301: a range was added while no invalidation is open");
        let hull = self.own_range(cx).map_or(range, |old| old.hull(&range));
        self.range_start.store(cx, hull.start.0);
        self.range_end.store(cx, hull.end.0);
        self.kept.hull_start.fetch_min(range.start.0, Ordering::Relaxed);
        self.kept.hull_end.fetch_max(range.end.0, Ordering::Relaxed);
        assert_eq!(self.own_range(cx), self.hull(), "INV-302: the range is not the hull of all that was added");
    }

    /// `kvm_mmu_invalidate_end`: faults that looked their frame up before now will retry.
    ///
    /// # Panics
    /// If no invalidation is open (INV-301), or no range was added (INV-302).
    pub fn end(&self, cx: &Cx<'_>, _lock: &mut RwLockWriteGuard<'_, ()>, mut invalidation: Invalidation) {
        invalidation.ended = true;
        self.kept.ended.fetch_add(1, Ordering::Relaxed);
        self.kept.open.fetch_sub(1, Ordering::Relaxed);
        // The sequence first: whoever sees no invalidation in progress also sees the new sequence.
        let late = cx.has_mutant(RC_05);
        if !late && !cx.has_mutant(RC_04) {
            self.seq.fetch_add(cx, 1);
        }
        let open = if cx.has_mutant(RC_34) {
            self.in_progress.rmw(cx, |_| 0)
        } else {
            self.in_progress.fetch_add(cx, 1u64.wrapping_neg())
        };
        if late {
            self.seq.fetch_add(cx, 1);
        }
        assert!(open > 0, "INV-301: an invalidation was ended that was never begun");
        assert!(self.range().is_some(), "INV-302: an invalidation ended without a range");
    }

    /// The sequence as a fault remembers it, before it looks anything up.
    pub fn seq(&self, cx: &Cx<'_>) -> u64 {
        self.seq.load(cx)
    }

    /// `mmu_invalidate_retry_gfn`, the test that decides: whether what a fault looked up since `seq` may be gone.
    ///
    /// # Panics
    /// If an invalidation is open and has no range although mmu_lock was free (INV-302).
    pub fn retry_gfn(&self, cx: &Cx<'_>, _lock: &RwLockReadGuard<'_, ()>, seq: u64, gfn: Gfn) -> bool {
        if self.in_progress.peek() > 0 && !cx.has_mutant(SEQ_ONLY) {
            let range = self.range();
            assert!(range.is_some(), "INV-302: an invalidation is open without a range while mmu_lock was released");
            if range.is_some_and(|range| range.contains(gfn)) {
                return true;
            }
        }
        self.seq.peek() != seq && !cx.has_mutant(INPROGRESS_ONLY)
    }

    /// `mmu_invalidate_retry`, as arm64 asks it, under `mmu_lock` for writing: whether anything was taken away since `seq`, or is about to be, wherever.
    pub fn retry(&self, cx: &Cx<'_>, _lock: &RwLockWriteGuard<'_, ()>, seq: u64) -> bool {
        let open = self.in_progress.peek() > 0 && !cx.has_mutant(SEQ_ONLY);
        open || self.seq.peek() != seq && !cx.has_mutant(INPROGRESS_ONLY)
    }

    /// As [`wait_while_kept_away`](Self::wait_while_kept_away), for those who ask [`retry`](Self::retry).
    pub fn wait_while_any(&self, cx: &Cx<'_>) {
        let open = self.in_progress.peek();
        if open > 0 {
            self.in_progress.at(cx).wait_until(Until::NotEqual(open));
        }
    }

    /// `mmu_invalidate_retry_gfn_unsafe`: the same without the lock. It may be wrong in both directions.
    pub fn retry_gfn_lockless(&self, cx: &Cx<'_>, seq: u64, gfn: Gfn) -> bool {
        if self.in_progress.load(cx) > 0 {
            // Both bounds UNSET while the first range is still missing: contains nothing.
            let range = GfnRange::new(Gfn(self.range_start.load(cx)), Gfn(self.range_end.load(cx)));
            if range.contains(gfn) {
                return true;
            }
        }
        self.seq.load(cx) != seq
    }

    /// Invalidations that were begun and not ended, whatever the words say: for checkers.
    pub fn open(&self) -> u64 {
        self.kept.open.load(Ordering::Relaxed)
    }

    /// Invalidations that were ended: for checkers.
    pub fn ended(&self) -> u64 {
        self.kept.ended.load(Ordering::Relaxed)
    }

    /// The hull of the ranges added since none was open, whatever the words say: for checkers.
    pub fn hull(&self) -> Option<GfnRange> {
        let (start, end) = (self.kept.hull_start.load(Ordering::Relaxed), self.kept.hull_end.load(Ordering::Relaxed));
        (start < end).then(|| GfnRange::new(Gfn(start), Gfn(end)))
    }

    /// Whether a fault of this frame can only try again until an invalidation has ended.
    #[inline]
    pub fn keeps_away(&self, gfn: Gfn) -> bool {
        self.in_progress.peek() > 0 && self.range().is_some_and(|range| range.contains(gfn))
    }

    /// What a fault's retries come to while [`keeps_away`](Self::keeps_away) holds: nothing changes until an invalidation begins or ends,
    /// so the task is not runnable until then. The kernel spins through the whole fault; the outcome is the same, and an exploration
    /// has no endless schedules in which one vCPU does nothing else.
    pub fn wait_while_kept_away(&self, cx: &Cx<'_>, gfn: Gfn) {
        let open = self.in_progress.peek();
        if self.keeps_away(gfn) {
            self.in_progress.at(cx).wait_until(Until::NotEqual(open));
        }
    }

    /// Invalidations open now: for checkers.
    pub fn in_progress(&self) -> u64 {
        self.in_progress.peek()
    }

    /// The hull of the ranges added since no invalidation was open; stale while none is. For checkers.
    pub fn range(&self) -> Option<GfnRange> {
        let start = self.range_start.peek();
        (start != UNSET).then(|| GfnRange::new(Gfn(start), Gfn(self.range_end.peek())))
    }

    /// The same as the task sees it that has just stored it, and whose stores may not be visible to others yet.
    fn own_range(&self, cx: &Cx<'_>) -> Option<GfnRange> {
        let start = self.range_start.peek_own(cx);
        (start != UNSET).then(|| GfnRange::new(Gfn(start), Gfn(self.range_end.peek_own(cx))))
    }

    /// The sequence without a scheduling point: for checkers.
    pub fn peek_seq(&self) -> u64 {
        self.seq.peek()
    }
}
