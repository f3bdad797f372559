//! The protocol between KVM's faults and those who take memory away (`mmu_invalidate_seq`, `mmu_invalidate_in_progress`), alone.
//!
//! A fault notes the sequence number, looks up the page, and installs it under `mmu_lock` only if no invalidation ran in between; whoever takes the page away begins the
//! invalidation and zaps under the lock, removes the page, and ends it under the lock. 6 classes for one of each.

use super::judgement;
use crate::Cx;
use crate::explore::{Judgement, Program};
use crate::sched::{Sim, Verdict};
use crate::sync::{Atomic64, Mutex};
use std::sync::Arc;

/// One task that tries to handle a fault `faults` times, one that punches `punches` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqRetry {
    /// Attempts of the one task.
    pub faults: u64,
    /// Punches of the other.
    pub punches: u64,
}

/// What `mmu_lock` protects.
#[derive(Debug, Default)]
struct Mmu {
    in_progress: bool,
    /// The page that is mapped, 0 for none.
    spte: u64,
}

/// What both sides share.
#[derive(Debug)]
pub struct SeqRetryState {
    mmu_lock: Mutex<Mmu>,
    seq: Atomic64,
    /// The page that exists: the number of holes punched so far, plus one.
    page: Atomic64,
}

impl SeqRetryState {
    /// One attempt: if an invalidation ran, the guest would fault again (`RET_PF_RETRY`).
    fn fault(&self, cx: &Cx<'_>) {
        let seq = self.seq.load(cx);
        let page = self.page.load(cx);
        let mut mmu = self.mmu_lock.lock(cx);
        if !mmu.in_progress && self.seq.peek() == seq {
            mmu.spte = page;
        }
    }

    fn punch(&self, cx: &Cx<'_>) {
        {
            let mut mmu = self.mmu_lock.lock(cx);
            mmu.in_progress = true;
            mmu.spte = 0;
        }
        self.page.fetch_add(cx, 1);
        let mut mmu = self.mmu_lock.lock(cx);
        mmu.in_progress = false;
        self.seq.fetch_add(cx, 1);
    }
}

impl Program for SeqRetry {
    type State = Arc<SeqRetryState>;

    fn setup(&self, cx: &Cx<'_>) -> Self::State {
        let state = Arc::new(SeqRetryState {
            mmu_lock: Mutex::new(cx, "mmu_lock", Mmu::default()),
            seq: Atomic64::new(cx, "mmu_invalidate_seq", 0),
            page: Atomic64::new(cx, "page", 1),
        });
        let SeqRetry { faults, punches } = *self;
        let shared = Arc::clone(&state);
        cx.spawn("fault", move |cx| (0..faults).for_each(|_| shared.fault(cx)));
        let shared = Arc::clone(&state);
        cx.spawn("punch", move |cx| (0..punches).for_each(|_| shared.punch(cx)));
        state
    }

    fn judge(&self, _sim: &mut Sim, state: Self::State, verdict: &Verdict) -> Judgement {
        let page = state.page.peek();
        let spte = state.mmu_lock.peek(|mmu| mmu.spte);
        let is_stale = spte != 0 && spte != page;
        judgement(verdict, format!("spte {spte}"), is_stale.then(|| format!("page {spte} is mapped, and it is gone")))
    }
}
