//! KVM as an MMU notifier: what happens when the host's page tables change (`kvm_mmu_notifier_*`).
//!
//! A start opens an invalidation over the guest frames of every slot whose host addresses intersect, an end closes it. Because a
//! change of the slots waits until no pair is open, start and end see the same slots.

use super::memslots::Memslot;
use super::mutants::{BUG_63, RC_06, RC_08, RC_33};
use super::vm::{Vm, WeakVm};
use sim_kernel::mm::{INVALIDATE_RANGE, MmuNotifier};
use sim_kernel::sync::RwLockWriteGuard;
use sim_kernel::{Cx, HvaRange};
use sim_mmu::{Age, FlushNeeded, GfnRange, Invalidation, MayYield, RootFilter};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The notifier of one VM.
pub(crate) struct KvmMmuNotifier {
    vm: WeakVm,
}

impl KvmMmuNotifier {
    pub(crate) fn new(vm: &Arc<Vm>) -> KvmMmuNotifier {
        KvmMmuNotifier { vm: Arc::downgrade(vm) }
    }
}

impl fmt::Debug for KvmMmuNotifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KvmMmuNotifier")
    }
}

impl MmuNotifier for KvmMmuNotifier {
    fn invalidate_range_start(&self, cx: &Cx<'_>, range: HvaRange) {
        let Some(vm) = self.vm.upgrade() else { return };
        {
            let _lock = vm.mn_invalidate_lock.lock(cx);
            vm.mn_active_invalidate_count.fetch_add(1, Ordering::SeqCst);
            vm.mn_memslots_update_wait.condition_changes(cx);
        }
        vm.notifier_start(cx, range);
    }

    fn invalidate_range_end(&self, cx: &Cx<'_>, range: HvaRange) {
        let Some(vm) = self.vm.upgrade() else { return };
        vm.notifier_end(cx, range);
        let last = {
            let _lock = vm.mn_invalidate_lock.lock(cx);
            let count = vm.mn_active_invalidate_count.fetch_sub(1, Ordering::SeqCst);
            vm.mn_memslots_update_wait.condition_changes(cx);
            assert!(count > 0, "INV-301: a notifier ended that never started");
            count == 1
        };
        if last {
            vm.mn_memslots_update_wait.wake_up_all(cx);
        }
    }

    fn clear_young(&self, cx: &Cx<'_>, range: HvaRange) -> bool {
        let Some(vm) = self.vm.upgrade() else { return false };
        let _srcu = vm.srcu.read(cx);
        if let Some(pkvm) = vm.pkvm() {
            let slots = vm.slots_at(cx, range).into_iter();
            return slots.fold(false, |young, (_, gfns)| vm.pkvm_age_gfn(cx, pkvm, gfns) | young);
        }
        // Without mmu_lock, and without a flush: a TLB may hide the next access.
        let age = |(slot, gfns): (Arc<Memslot>, GfnRange)| vm.mmu.age_gfn_range(cx, slot.as_id, gfns, Age::Clear);
        vm.slots_at(cx, range).into_iter().fold(false, |young, part| age(part) | young)
    }

    fn release(&self, cx: &Cx<'_>) {
        if let Some(vm) = self.vm.upgrade() {
            vm.pkvm_flush_shadow_all(cx);
        }
    }
}

impl Vm {
    /// The parts of slots at these host addresses, in all address spaces. The caller is inside SRCU.
    fn slots_at(&self, cx: &Cx<'_>, range: HvaRange) -> Vec<(Arc<Memslot>, GfnRange)> {
        let mut found = Vec::new();
        for as_id in 0..self.address_spaces() {
            self.memslots.read(cx, as_id, |set| {
                for slot in set.in_hva_range(range) {
                    let gfns = slot.gfns_at(range).expect("the slot intersects the range");
                    found.push((Arc::clone(slot), gfns));
                }
            });
        }
        found
    }

    /// Opens an invalidation over guest frames of address spaces, zaps them in trees of this kind and flushes, all under `mmu_lock`. A conversion does the same with
    /// a wider range in between.
    pub(crate) fn invalidate_frames(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        lock: &mut RwLockWriteGuard<'_, ()>,
        kind: RootFilter,
        frames: impl IntoIterator<Item = (u16, GfnRange)>,
    ) -> Invalidation {
        let invalidation = self.mmu.invalidate.begin(cx, lock);
        let mut flush = FlushNeeded::NONE;
        let roots = if cx.has_mutant(BUG_63) { RootFilter::ValidOnly } else { kind };
        let late = cx.has_mutant(RC_06);
        for (as_id, range) in frames {
            if !late {
                self.mmu.invalidate.add_range(cx, lock, range);
            }
            if self.pkvm().is_some() {
                self.pkvm_unmap_gfn_range(cx, lock, range);
                continue;
            }
            let more = self.mmu.zap_leafs(cx, lock, Some(as_id), roots, range, MayYield::Yes, &**self);
            if late {
                self.mmu.invalidate.add_range(cx, lock, range);
            }
            flush = flush.merge(more);
        }
        if cx.has_mutant(RC_08) {
            flush.into_inner();
        } else {
            flush.discharge(cx, &**self);
        }
        invalidation
    }

    fn notifier_start(self: &Arc<Vm>, cx: &Cx<'_>, range: HvaRange) {
        let _srcu = self.srcu.read(cx);
        let slots = self.slots_at(cx, range);
        if slots.is_empty() {
            return;
        }
        let mut lock = self.mmu.mmu_lock.write(cx);
        let frames = slots.iter().map(|(slot, gfns)| (slot.as_id, *gfns));
        let invalidation = self.invalidate_frames(cx, &mut lock, RootFilter::Shared, frames);
        // Under mmu_lock, so that the list and the count agree; the kernel has no such list.
        self.mn_open.lock().push(invalidation);
    }

    fn notifier_end(self: &Arc<Vm>, cx: &Cx<'_>, range: HvaRange) {
        let _srcu = self.srcu.read(cx);
        if self.slots_at(cx, range).is_empty() {
            return;
        }
        let mut lock = self.mmu.mmu_lock.write(cx);
        let invalidation = self.mn_open.lock().pop().expect("INV-301: the start of this notifier found a slot too");
        self.mmu.invalidate.end(cx, &mut lock, invalidation);
    }

    /// Waits until no notifier pair is open and runs `publish` while none can start.
    pub(crate) fn wait_for_notifiers_and(&self, cx: &Cx<'_>, publish: impl FnOnce()) {
        INVALIDATE_RANGE.wait(cx);
        loop {
            let lock = self.mn_invalidate_lock.lock(cx);
            if self.mn_active_invalidate_count.load(Ordering::SeqCst) == 0 || cx.has_mutant(RC_33) {
                publish();
                return;
            }
            drop(lock);
            let none_active = || self.mn_active_invalidate_count.load(Ordering::SeqCst) == 0;
            self.mn_memslots_update_wait.wait_event_told(cx, none_active);
        }
    }
}
