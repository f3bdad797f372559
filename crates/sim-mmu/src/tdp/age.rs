//! Ageing: which pages were accessed since somebody last asked (`kvm_tdp_mmu_age_gfn_range`, `kvm_tdp_mmu_test_age_gfn` of
//! `arch/x86/kvm/mmu/tdp_mmu.c`).
//!
//! Where the hardware sets A bits, they are read and cleared. Elsewhere a leaf that is found accessed gives up its rights until the next access,
//! which then is a fault that the fast path serves. Nothing is flushed: an access through a TLB may go unseen until the entry is evicted.

use super::TdpMmu;
use super::iter::TdpIter;
use crate::addr::GfnRange;
use crate::mutants::BUG_68;
use sim_kernel::Cx;
use sim_kernel::sync::rcu_read_lock;

/// What is asked of the leafs of a range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Age {
    /// Whether one was accessed (`mmu_notifier_test_young`).
    Test,
    /// The same, and they count as not accessed from now on (`mmu_notifier_clear_young`).
    Clear,
}

impl TdpMmu {
    /// `kvm_tdp_mmu_age_gfn_range`: whether a leaf of the range was accessed, in the trees that processors walk. Takes no lock: a leaf that
    /// changes meanwhile counts as young, and is left to whoever changed it.
    pub fn age_gfn_range(&self, cx: &Cx<'_>, as_id: u16, range: GfnRange, age: Age) -> bool {
        let masks = &self.tables.masks;
        let mut young = false;
        for root in self.roots.snapshot() {
            // The RCU section keeps the root and its tables; no reference is taken.
            let _rcu = rcu_read_lock(cx);
            if root.as_id() != as_id || root.is_mirror() || root.is_invalid_lockless(cx) {
                continue;
            }
            let mut iter = TdpIter::lockless(cx, &self.tables, &root, range);
            while iter.is_valid() {
                let old = iter.old_spte;
                if old.is_leaf(iter.level) && masks.is_accessed(old) {
                    young = true;
                    if age == Age::Test {
                        return true;
                    }
                    let new = masks.mark_spte_for_access_track(old);
                    if cx.has_mutant(BUG_68) {
                        iter.word(cx, &self.tables).store(new.0);
                    } else if iter.word(cx, &self.tables).cmpxchg(old.0, new.0).is_ok() {
                        self.trace_spte_changed(cx, iter.tree, iter.gfn, iter.level, old, new);
                    }
                }
                iter.next(cx, &self.tables);
            }
        }
        young
    }
}
