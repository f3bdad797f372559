//! Sleepable RCU (`kernel/rcu/srcutree.c`): readers that may sleep, and a writer that waits for all of them.
//!
//! Two counters as in the kernel: readers count themselves in under the current index, a grace period flips the index and waits
//! until the old counter is zero. Entering is one step here, so the kernel's second flip, which covers readers between fetching
//! the index and counting, is not needed.

use super::mutex::Mutex;
use super::rmw::Rmw;
use super::wait::WaitQueue;
use crate::Cx;
use crate::sched::{Access, EffectKind, ObjId, Op};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A domain of sleepable read sections.
///
/// ```
/// use sim_kernel::{sched::Sim, sync::Srcu};
/// Sim::sequential().solo(|cx| {
///     let srcu = Srcu::new(cx, "kvm->srcu");
///     drop(srcu.read(cx));
///     srcu.synchronize(cx);
/// });
/// ```
pub struct Srcu {
    object: ObjId,
    index: AtomicUsize,
    nesting: [AtomicU64; 2],
    grace_period: Mutex<()>,
    drained: WaitQueue,
}

/// Which counter a read section is counted under; what `srcu_read_lock` returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a read section must be left with the index it was entered with"]
pub struct SrcuIdx(usize);

/// Where the two counters are, as places of the domain's object; place 0 is the index.
fn counter_place(index: usize) -> u64 {
    1 + index as u64
}

impl Srcu {
    /// A domain of the given class.
    pub fn new(cx: &Cx<'_>, class: &'static str) -> Srcu {
        Srcu {
            object: cx.new_object(class),
            index: AtomicUsize::new(0),
            nesting: [AtomicU64::new(0), AtomicU64::new(0)],
            grace_period: Mutex::new(cx, "srcu_gp", ()),
            drained: WaitQueue::new(cx, "srcu_drained"),
        }
    }

    /// The domain's object: for what it protects, if that has none of its own.
    pub(crate) fn object(&self) -> ObjId {
        self.object
    }

    /// `srcu_read_lock`: enters a read section.
    #[track_caller]
    pub fn read_lock(&self, cx: &Cx<'_>) -> SrcuIdx {
        cx.point(Access::SrcuEnter, self.object, 0);
        let rmw = Rmw::new(cx);
        cx.section_entered(&Op::new(Access::SrcuEnter, self.object, 0));
        loop {
            let index = self.index.load(Ordering::SeqCst);
            rmw.add(&self.nesting[index], 1);
            // Natively the index may have flipped in between; then count under the new one.
            if self.index.load(Ordering::SeqCst) == index {
                return SrcuIdx(index);
            }
            rmw.add(&self.nesting[index], u64::MAX);
            self.drained.wake_awaiting(cx);
        }
    }

    /// `srcu_read_unlock`: leaves the read section entered with `index`.
    #[track_caller]
    pub fn read_unlock(&self, cx: &Cx<'_>, index: SrcuIdx) {
        cx.point(Access::SrcuExit, self.object, 0);
        cx.section_left(self.object);
        if let Some(engine) = cx.engine() {
            engine.effect(EffectKind::SrcuExit, self.object, counter_place(index.0));
        }
        let old = Rmw::new(cx).add(&self.nesting[index.0], u64::MAX);
        assert!(old > 0, "an SRCU read section was left twice");
        if old == 1 && self.index.load(Ordering::SeqCst) != index.0 {
            self.drained.wake_awaiting(cx);
        }
    }

    /// Enters a read section that ends when the guard is dropped.
    #[track_caller]
    pub fn read<'a>(&'a self, cx: &'a Cx<'_>) -> SrcuReadGuard<'a> {
        SrcuReadGuard { srcu: self, cx, index: Some(self.read_lock(cx)) }
    }

    /// `synchronize_srcu`: waits until every read section that is open now has been left.
    #[track_caller]
    pub fn synchronize(&self, cx: &Cx<'_>) {
        cx.section_wanted(&Op::new(Access::Synchronize, self.object, 0));
        let _grace_period = self.grace_period.lock(cx);
        cx.point(Access::Synchronize, self.object, 0);
        let old = self.index.fetch_xor(1, Ordering::SeqCst);
        self.drained.await_event(cx, || self.nesting[old].load(Ordering::SeqCst) == 0);
        if let Some(engine) = cx.engine() {
            engine.effect(EffectKind::SrcuDone, self.object, counter_place(old));
        }
    }

    /// Open read sections, without a scheduling point: for checkers.
    pub fn readers(&self) -> u64 {
        self.nesting.iter().map(|n| n.load(Ordering::SeqCst)).sum()
    }
}

impl fmt::Debug for Srcu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Srcu").field("object", &self.object).field("readers", &self.readers()).finish()
    }
}

/// An open read section.
#[derive(Debug)]
pub struct SrcuReadGuard<'a> {
    srcu: &'a Srcu,
    cx: &'a Cx<'a>,
    index: Option<SrcuIdx>,
}

impl SrcuReadGuard<'_> {
    /// Leaves the section, runs `outside`, and enters a new one: what a vCPU does around running the guest.
    pub fn outside<R>(&mut self, outside: impl FnOnce() -> R) -> R {
        let index = self.index.take().expect("the section is open");
        self.srcu.read_unlock(self.cx, index);
        let value = outside();
        self.index = Some(self.srcu.read_lock(self.cx));
        value
    }
}

impl Drop for SrcuReadGuard<'_> {
    fn drop(&mut self) {
        if let Some(index) = self.index.take() {
            self.srcu.read_unlock(self.cx, index);
        }
    }
}
