//! The fault path without mmu_lock, and lockless look-ups (`fast_page_fault` of `arch/x86/kvm/mmu/mmu.c`,
//! `kvm_tdp_mmu_fast_pf_get_last_sptep`, `kvm_tdp_mmu_get_walk` of `tdp_mmu.c`).

use super::TdpMmu;
use super::iter::TdpIter;
use super::root::Root;
use crate::addr::{Gfn, GfnRange, Gpa, Level};
use crate::fault::{RetPf, SlotView, TdpFault};
use crate::mutants::{FAST_HUGE_LOG, MARK_BEFORE_W};
use crate::spte::Spte;
use crate::stage2::PT_WRITABLE_MASK;
use sim_kernel::Cx;
use sim_kernel::sync::{RcuReadGuard, rcu_read_lock};

/// Compare-exchanges that may fail before the slow path has to do it.
const ATTEMPTS: usize = 5;

impl TdpMmu {
    /// An iterator on the last entry for `gfn`; its table stays while the RCU section is open.
    fn last_spte(&self, cx: &Cx<'_>, _rcu: &RcuReadGuard<'_>, root: &Root, gfn: Gfn) -> Option<TdpIter<'_>> {
        let range = GfnRange::with_len(gfn, 1);
        // Without mmu_lock the root may turn invalid at any time: every read is a scheduling point.
        let mut iter = TdpIter::lockless(cx, &self.tables, root, range);
        if !iter.is_valid() {
            return None;
        }
        while iter.old_spte.is_table(iter.level) && iter.try_step_down(cx, &self.tables) {}
        Some(iter)
    }

    /// `fast_page_fault`: makes a write-protected leaf writable if nothing but the hardware bit is missing, and gives one that waits for its
    /// next access its rights back.
    /// [`RetPf::Invalid`] if declined. The caller has compared the private attribute.
    pub fn fast_page_fault<S: SlotView>(&self, cx: &Cx<'_>, root: &Root, fault: &TdpFault, slot: Option<&S>) -> RetPf {
        let masks = &self.tables.masks;
        // A present entry forbade a write: W may be all that is missing. An absent one is worth a look only where entries that wait for their
        // next access seem absent. A mirror is never looked at: faults for it are no matter of rights.
        let eligible = if fault.present { fault.write } else { !masks.ad_enabled() };
        if fault.rsvd || !eligible || root.is_mirror() {
            return RetPf::Invalid;
        }
        let dirty_logged = slot.filter(|slot| slot.is_dirty_logged());
        let rcu = rcu_read_lock(cx);
        for _ in 0..ATTEMPTS {
            let Some(iter) = self.last_spte(cx, &rcu, root, fault.gfn()) else { return RetPf::Invalid };
            let spte = iter.old_spte;
            if !spte.is_leaf(iter.level) {
                return RetPf::Invalid;
            }
            if masks.is_access_allowed(spte, fault.access()) {
                return RetPf::Spurious;
            }
            let mut new = spte;
            if masks.is_access_track(spte) {
                new = masks.restore_acc_track_spte(spte).with(masks.accessed);
            }
            if fault.write && spte.has(masks.mmu_writable) {
                new = new.with(PT_WRITABLE_MASK);
                // Only one gfn would be marked dirty, 511 more would be written unseen.
                if iter.level > Level::L4K && dirty_logged.is_some() && !cx.has_mutant(FAST_HUGE_LOG) {
                    return RetPf::Invalid;
                }
            }
            if new == spte || !masks.is_access_allowed(new, fault.access()) {
                return RetPf::Invalid;
            }
            let dirtied = dirty_logged.filter(|_| new.is_writable() && !spte.is_writable());
            let early = cx.has_mutant(MARK_BEFORE_W);
            if let Some(slot) = dirtied.filter(|_| early) {
                slot.mark_page_dirty(cx, fault.gfn());
            }
            if iter.word(cx, &self.tables).cmpxchg(spte.0, new.0).is_ok() {
                // After the entry: marked before, the bit could be collected and the page write-protected in between.
                if let Some(slot) = dirtied.filter(|_| !early) {
                    slot.mark_page_dirty(cx, fault.gfn());
                }
                return RetPf::Fixed;
            }
        }
        RetPf::Invalid
    }

    /// `kvm_tdp_mmu_get_walk`: the last entry on the way to `gpa` and its level, without mmu_lock.
    pub fn walk_lockless(&self, cx: &Cx<'_>, root: &Root, gpa: Gpa) -> (Spte, Level) {
        let rcu = rcu_read_lock(cx);
        let last = self.last_spte(cx, &rcu, root, gpa.gfn());
        last.map_or((Spte::NONPRESENT, root.level()), |iter| (iter.old_spte, iter.level))
    }
}
