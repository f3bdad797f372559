//! The slow path of a fault under mmu_lock for reading: level choice, tables, the leaf (`kvm_mmu_hugepage_adjust` of
//! `arch/x86/kvm/mmu/mmu.c`, `kvm_tdp_mmu_map` and `tdp_mmu_map_handle_target_level` of `tdp_mmu.c`).

use super::TdpMmu;
use super::changed::Frames;
use super::iter::TdpIter;
use super::root::Root;
use crate::addr::{Gfn, GfnRange, Level};
use crate::fault::{RetPf, SlotView, TdpFault};
use crate::flush::RemoteFlush;
use crate::spte::Spte;
use sim_kernel::sync::{RwLockReadGuard, rcu_read_lock};
use sim_kernel::{Cx, Errno, Pfn};

impl TdpMmu {
    /// `kvm_mmu_max_mapping_level`: the largest leaf that the slot, its attributes and the host's mapping allow at `gfn`.
    pub(super) fn max_mapping_level<S: SlotView>(
        &self,
        cx: &Cx<'_>,
        slot: &S,
        gfn: Gfn,
        max_level: Level,
        fault: Option<&TdpFault>,
    ) -> Level {
        let mut level = max_level.min(self.config().max_level);
        while level > Level::L4K && slot.lpage_disallowed(gfn, level) {
            level = level.down().expect("above 4 KiB");
        }
        if level == Level::L4K { level } else { level.min(slot.host_level(cx, gfn, fault)) }
    }

    /// `kvm_mmu_hugepage_adjust`: the level to map at.
    fn hugepage_adjust<S: SlotView>(&self, cx: &Cx<'_>, fault: &TdpFault, slot: Option<&S>) -> Level {
        match slot {
            Some(slot) if fault.max_level > Level::L4K && fault.pfn.is_some() && !slot.is_dirty_logged() => {
                self.max_mapping_level(cx, slot, fault.gfn(), fault.max_level, Some(fault))
            }
            _ => Level::L4K,
        }
    }

    /// `kvm_tdp_mmu_map`; the caller has made the stale check under the same `lock`. `flush` is called when a huge leaf replaces
    /// a table.
    ///
    /// # Errors
    /// `ENOMEM`: no frame for a table.
    ///
    /// # Panics
    /// If `root` is invalid (INV-205), or a present leaf that permits the access maps another frame (INV-206).
    pub fn map<S: SlotView>(
        &self,
        cx: &Cx<'_>,
        _lock: &RwLockReadGuard<'_, ()>,
        root: &Root,
        fault: &mut TdpFault,
        slot: Option<&S>,
        flush: &impl RemoteFlush,
    ) -> Result<RetPf, Errno> {
        assert!(!root.is_invalid(), "INV-205: a fault is served from an invalid root");
        assert_eq!(slot.is_some(), fault.pfn.is_some(), "a fault has a frame iff it has a memslot");
        let goal = self.hugepage_adjust(cx, fault, slot);
        fault.goal_level = goal;
        let rcu = rcu_read_lock(cx);
        let range = GfnRange::with_len(fault.gfn(), 1);
        assert!(range.start < self.config().max_gfn, "a fault at {:?}, which the host cannot address", fault.gpa);
        let mut iter = TdpIter::new(cx, &self.tables, root, Level::L4K, range, false);
        while iter.is_valid() {
            if iter.old_spte.is_frozen() {
                return Ok(RetPf::Retry);
            }
            if iter.level == goal {
                let result = self.map_target_level(cx, &mut iter, fault, slot, flush);
                drop(rcu);
                return Ok(result);
            }
            if iter.old_spte.is_leaf(iter.level) && !self.config().splits_on_fault {
                if self.set_spte_atomic(cx, &mut iter, Spte::NONPRESENT, Frames::Count).is_err() {
                    return Ok(RetPf::Retry);
                }
                flush.flush_remote_tlbs(cx);
            }
            if !iter.old_spte.is_table(iter.level) {
                let below = iter.level.down().expect("above the goal level");
                let child = self.tables.alloc(iter.gfn, below, iter.as_id)?;
                let linked = if iter.old_spte.is_present() {
                    self.split_huge_page(cx, &mut iter, child, true)
                } else {
                    self.link_table(cx, &mut iter, child, true, Frames::Count)
                };
                if linked.is_err() {
                    self.tables.free_unlinked(child);
                    return Ok(RetPf::Retry);
                }
            }
            iter.next(cx, &self.tables);
        }
        // An upper entry went away on the way down.
        Ok(RetPf::Retry)
    }

    /// `tdp_mmu_map_handle_target_level`.
    fn map_target_level<S: SlotView>(
        &self,
        cx: &Cx<'_>,
        iter: &mut TdpIter,
        fault: &TdpFault,
        slot: Option<&S>,
        flush: &impl RemoteFlush,
    ) -> RetPf {
        let masks = &self.tables.masks;
        let old = iter.old_spte;
        let pfn = fault.pfn.map(|pfn| {
            let inside = fault.gfn().0 & (iter.level.span() - 1);
            assert_eq!(pfn.0 & (iter.level.span() - 1), inside, "MMU-INV-014: {pfn:?} for {:?}", fault.gfn());
            Pfn(pfn.0 - inside)
        });
        if old.is_leaf(iter.level) && (fault.prefetch || masks.is_access_allowed(old, fault.access())) {
            // A fault that found no slot may meet what another vCPU mapped through a slot that was just created: it is not tested
            // against the sequence, and the kernel only warns.
            let same = pfn.is_none_or(|pfn| pfn == old.pfn());
            assert!(same, "INV-206: {:?} is mapped to {:?}, not to {pfn:?}", fault.gfn(), old.pfn());
            return RetPf::Spurious;
        }
        let new = match (pfn, slot) {
            (Some(pfn), Some(slot)) => self.make_leaf(cx, iter, fault, pfn, slot),
            _ => masks.make_mmio_spte(fault.gfn(), fault.mmio_generation),
        };
        let result = if new == old { RetPf::Spurious } else { RetPf::Fixed };
        if new == old {
            // Nothing to write, and no event.
        } else if self.set_spte_atomic(cx, iter, new, Frames::Count).is_err() {
            return RetPf::Retry;
        } else if old.is_table(iter.level)
            || old.is_leaf(iter.level) && old.has(masks.mmu_writable) && masks.is_mmio(new)
        {
            // Paging-structure caches may still know the table: nobody may reuse it before they forgot. A leaf in the place of an
            // MMIO entry is of the kind above.
            flush.flush_remote_tlbs(cx);
        }
        if masks.is_mmio(new) { RetPf::Emulate } else { result }
    }

    /// `make_spte` with the dirty mark that belongs to a writable entry of a logged slot.
    fn make_leaf<S: SlotView>(&self, cx: &Cx<'_>, iter: &TdpIter, fault: &TdpFault, pfn: Pfn, slot: &S) -> Spte {
        let block = fault.gfn().block(iter.level);
        assert!(slot.range().covers(&block), "MMU-INV-014: a leaf over {block:?} reaches out of its memslot");
        let new = self.tables.masks.make_spte(pfn, iter.level, fault.map_writable, fault.prefetch);
        if new.is_writable() && slot.is_dirty_logged() {
            assert_eq!(iter.level, Level::L4K, "MMU-INV-017: a writable huge leaf in a logged memslot");
            slot.mark_page_dirty(cx, fault.gfn());
        }
        new
    }
}
