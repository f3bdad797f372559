//! Reference counts with "get if live" (`refcount_inc_not_zero`, `get_file_active`).

use super::atomic::Atomic64;
use crate::Cx;

/// A count of references to an object that dies when it reaches zero.
///
/// ```
/// use sim_kernel::{sched::Sim, sync::RefCount};
/// Sim::sequential().solo(|cx| {
///     let count = RefCount::new(cx, "f_ref", 1);
///     assert!(count.get_if_live(cx));
///     assert!(!count.put(cx));
///     assert!(count.put(cx), "the last reference");
///     assert!(!count.get_if_live(cx), "a dead object stays dead");
/// });
/// ```
#[derive(Debug)]
pub struct RefCount {
    count: Atomic64,
    /// Id of the invariant that forbids to revive the object, with a colon; or nothing.
    rule: &'static str,
}

impl RefCount {
    /// A count of the given class, starting at `count`.
    pub fn new(cx: &Cx<'_>, class: &'static str, count: u64) -> RefCount {
        RefCount::with_rule(cx, class, count, "")
    }

    /// As [`RefCount::new`]; a failure begins with `rule`, such as `INV-110: `.
    pub fn with_rule(cx: &Cx<'_>, class: &'static str, count: u64, rule: &'static str) -> RefCount {
        RefCount { count: Atomic64::new(cx, class, count), rule }
    }

    /// One more reference, taken by somebody who already has one.
    ///
    /// # Panics
    /// If the object is already dead.
    #[track_caller]
    pub fn get(&self, cx: &Cx<'_>) {
        let old = self.count.fetch_add(cx, 1);
        assert!(old > 0, "{}a reference was taken to a dead object", self.rule);
    }

    /// One more reference unless the count already fell to zero.
    #[track_caller]
    #[must_use]
    pub fn get_if_live(&self, cx: &Cx<'_>) -> bool {
        self.count.rmw(cx, |n| if n == 0 { 0 } else { n + 1 }) != 0
    }

    /// One reference less; true if it was the last.
    ///
    /// # Panics
    /// If there was no reference left.
    #[track_caller]
    #[must_use]
    pub fn put(&self, cx: &Cx<'_>) -> bool {
        let old = self.count.rmw(cx, |n| n.wrapping_sub(1));
        assert!(old > 0, "a reference was put that nobody held");
        old == 1
    }

    /// The count, without a scheduling point: for checkers.
    pub fn peek(&self) -> u64 {
        self.count.peek()
    }
}
