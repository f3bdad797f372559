//! The slow path of a fault under mmu_lock for reading: level choice, tables, the leaf (`kvm_mmu_hugepage_adjust` of
//! `arch/x86/kvm/mmu/mmu.c`, `kvm_tdp_mmu_map` and `tdp_mmu_map_handle_target_level` of `tdp_mmu.c`).

use super::TdpMmu;
use super::changed::Frames;
use super::iter::TdpIter;
use super::root::Root;
use crate::addr::{Gfn, GfnRange, Level};
use crate::fault::{RetPf, SlotView, TdpFault};
use crate::flush::RemoteFlush;
use crate::mutants::{BUG_57, BUG_66, BUG_67, LOST_LINK};
use crate::spte::Spte;
use sim_kernel::sched::Access;
use sim_kernel::sync::{RwLockReadGuard, rcu_read_lock};
use sim_kernel::{Cx, Errno, Pfn};

/// What [`TdpMmu::hugepage_adjust`] decides.
struct MapLevel {
    /// Where the leaf goes.
    goal: Level,
    /// Where it would go if it were not for the mitigation.
    req: Level,
    /// A fetch, and huge pages may not be executable.
    huge_disallowed: bool,
}

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
    fn hugepage_adjust<S: SlotView>(&self, cx: &Cx<'_>, fault: &TdpFault, slot: Option<&S>) -> MapLevel {
        let req = match slot {
            Some(slot) if fault.max_level > Level::L4K && fault.pfn.is_some() && !slot.is_dirty_logged() => {
                self.max_mapping_level(cx, slot, fault.gfn(), fault.max_level, Some(fault))
            }
            _ => Level::L4K,
        };
        let huge_disallowed = fault.exec && self.config().nx_huge_pages;
        MapLevel { goal: if huge_disallowed { Level::L4K } else { req }, req, huge_disallowed }
    }

    /// `disallowed_hugepage_adjust`: a table that is there because its huge page may not be executed stays, and the fault goes on below it. So does a table of a
    /// mirror: external tables are never merged on the way of a fault, because others use them meanwhile.
    fn disallowed_hugepage_adjust(&self, cx: &Cx<'_>, iter: &TdpIter, goal: &mut Level) {
        let splits = iter.level > Level::L4K && iter.level == *goal && iter.old_spte.is_table(iter.level);
        if !splits {
            return;
        }
        if iter.tree.is_mirror {
            if !cx.has_mutant(BUG_57) {
                *goal = goal.down().expect("above 4 KiB");
            }
            return;
        }
        self.tables.announce_nx(cx, Access::Load, iter.old_spte.pfn());
        if self.tables.is_nx_disallowed(iter.old_spte.pfn()) {
            *goal = goal.down().expect("above 4 KiB");
        }
    }

    /// `kvm_tdp_mmu_map`; the caller has made the stale check under the same `lock`. `flush` is called when a huge leaf replaces
    /// a table.
    ///
    /// # Errors
    /// `ENOMEM`: no frame for a table.
    ///
    /// # Panics
    /// If `root` is invalid (INV-205), if a present leaf that permits the access maps another frame (INV-206), or if a private fault of a VM
    /// with external tables is not for the mirror.
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
        let is_for_mirror = self.has_mirrored_tdp() && fault.is_private;
        assert_eq!(
            root.is_mirror(),
            is_for_mirror,
            "MMU-INV-023: the fault at {:?} is served in the wrong tree",
            fault.gpa
        );
        let MapLevel { mut goal, req, huge_disallowed } = self.hugepage_adjust(cx, fault, slot);
        fault.goal_level = goal;
        let is_allowed = !is_for_mirror || goal <= self.external().max_level();
        assert!(is_allowed, "MMU-INV-060: a leaf of {goal:?} in a mirror");
        let rcu = rcu_read_lock(cx);
        let range = GfnRange::with_len(fault.gfn(), 1);
        assert!(range.start < self.config().max_gfn, "a fault at {:?}, which the host cannot address", fault.gpa);
        let mut iter = TdpIter::new(cx, &self.tables, root, Level::L4K, range, false);
        while iter.is_valid() {
            if self.config().nx_huge_pages || is_for_mirror {
                self.disallowed_hugepage_adjust(cx, &iter, &mut goal);
            }
            if iter.old_spte.is_frozen() && !cx.has_mutant(BUG_67) {
                return Ok(RetPf::Retry);
            }
            if iter.level == goal {
                fault.goal_level = goal;
                let result = self.map_target_level(cx, &mut iter, fault, slot, flush);
                drop(rcu);
                return Ok(result);
            }
            if iter.old_spte.is_leaf(iter.level) && is_for_mirror {
                // It maps the page of the fault already, and no fault splits it.
                return Ok(RetPf::Spurious);
            }
            if iter.old_spte.is_leaf(iter.level) && !self.config().splits_on_fault {
                if self.set_spte_atomic(cx, &mut iter, Spte::NONPRESENT, Frames::Count).is_err() {
                    return Ok(RetPf::Retry);
                }
                flush.flush_remote_tlbs(cx);
            }
            if !iter.old_spte.is_table(iter.level) {
                let below = iter.level.down().expect("above the goal level");
                let child = self.alloc_sp(cx, iter.gfn, below, iter.tree.as_id, iter.tree.is_mirror)?;
                // Before the link: whoever sees the table must see why it is there.
                let late = cx.has_mutant(BUG_66);
                self.tables.set_nx_disallowed(child, huge_disallowed && !late);
                let linked = if iter.old_spte.is_present() {
                    self.split_huge_page(cx, &mut iter, child, true)
                } else {
                    self.link_table(cx, &mut iter, child, true, Frames::Count)
                };
                if linked.is_err() {
                    if !cx.has_mutant(LOST_LINK) {
                        self.free_unlinked_sp(cx, child);
                    }
                    return Ok(RetPf::Retry);
                }
                if huge_disallowed && req >= iter.level {
                    self.track_possible_nx_huge_page(cx, child, late);
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
        let mut new = self.tables.masks.make_spte(pfn, iter.level, fault.map_writable, fault.prefetch);
        if iter.level > Level::L4K && self.config().nx_huge_pages {
            new = self.tables.masks.make_nonexecutable(new);
        }
        if new.is_writable() && slot.is_dirty_logged() {
            assert_eq!(iter.level, Level::L4K, "MMU-INV-017: a writable huge leaf in a logged memslot");
            slot.mark_page_dirty(cx, fault.gfn());
        }
        new
    }
}
