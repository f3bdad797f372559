//! Invariants that KVM itself asserts while it runs: cheap, at the step that could break them, and on in release builds.
//!
//! Together with the counts that frames keep of their stage-2 and host mappings (INV-201, INV-203, INV-105 in
//! [`sim_kernel::mm::PhysMem`]) and the bookkeeping of the invalidation protocol (INV-301, INV-302 in
//! [`sim_mmu::MmuInvalidate`]). [`Vm::check_invariants`] walks everything, for quiescent moments.

use super::guest_memfd::GmemFile;
use super::lpage_info::LARGE_LEVELS;
use super::memslots::Memslot;
use super::uapi::KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS;
use super::vcpu::{Vcpu, VcpuState};
use super::vm::Vm;
use sim_kernel::PAGE_SHIFT;
use sim_kernel::mm::FrameFlags;
use sim_mmu::{Gfn, GfnRange, Level, TdpFault};
use std::collections::BTreeMap;

impl Vcpu {
    /// MMU-INV-031, MMU-INV-035: what the vCPU is about to use is still there.
    #[inline]
    pub(super) fn check_at_entry(&self, state: &VcpuState) {
        let root = state.root.as_ref().expect("it was loaded");
        // Who declares roots invalid holds mmu_lock until every vCPU is out and will look.
        let may_use = !root.is_invalid() || self.vm.mmu.mmu_lock.is_write_locked();
        assert!(may_use, "MMU-INV-035: vCPU {} enters the guest on an invalid root", self.id());
        if self.is_watched {
            self.check_reached(state, "MMU-INV-031: on the way into the guest");
        }
    }

    /// No frame that a TLB may lead to was freed. Where the guest was not inside when it was, it was flushed since.
    pub(super) fn check_reached(&self, state: &VcpuState, rule: &str) {
        let phys = &self.vm.host.phys;
        for (pfn, generation) in &state.reached {
            let same = phys.is_allocated(*pfn) && phys.generation(*pfn) == *generation;
            assert!(same, "{rule}, vCPU {}'s TLB leads to {pfn:?}, which was freed", self.id());
        }
    }
}

impl Vm {
    /// INV-105, INV-106, INV-201, INV-204, INV-208, INV-210, INV-211: under `mmu_lock` and after the stale test, what the fault found is still the
    /// truth.
    pub(crate) fn check_before_map(&self, fault: &TdpFault, slot: &Memslot) {
        slot.assert_live();
        let Some(pfn) = fault.pfn else { return };
        let gfn = fault.gfn();
        assert!(!slot.is_zapped(), "INV-204: {gfn:?} is mapped through a slot that is deleted or moved, after its zap");
        let phys = &self.host.phys;
        if let Some(sev) = self.sev().filter(|_| fault.is_private) {
            let assigned = sev.host().snp().rmp().is_assigned(pfn);
            assert!(assigned, "SNP-INV-010: {gfn:?} is mapped as private to {pfn:?}, which is not assigned");
            let uptodate = phys.flags(pfn).contains(FrameFlags::UPTODATE);
            assert!(uptodate, "SNP-INV-036: {gfn:?} is mapped to {pfn:?}, which would be cleared again");
        }
        if self.has_private_mem() && !slot.is_gmem_only() {
            assert_eq!(
                fault.is_private,
                self.attributes.is_private(gfn),
                "INV-208: {gfn:?} is mapped from the wrong backing for its attribute"
            );
        }
        if fault.is_private || slot.is_gmem_only() {
            let index = slot.gmem_index(gfn);
            assert!(phys.mapping(pfn).is_some(), "INV-201: {gfn:?} is mapped to {pfn:?}, which left its page cache");
            assert_eq!(phys.index(pfn), index, "INV-201: {gfn:?} is mapped to another page of the file");
            // A release forgets the slot's file first and zaps afterwards; in between a fault may still map.
            if let Some(file) = slot.gmem.peek_file().and_then(|file| file.upgrade()) {
                let view = file.downcast::<GmemFile>().expect("a slot is bound to a guest_memfd");
                let cached = view.inode().mapping().peek(index);
                assert_eq!(cached, Some(pfn), "INV-201: {gfn:?} is not mapped to the file's page at {index:?}");
                assert_eq!(view.peek_binding(index), Some(slot.handle), "INV-303: {gfn:?} is mapped without a binding");
                let broken = phys.flags(pfn).contains(FrameFlags::HWPOISON) && !view.inode().is_failing(pfn);
                assert!(!broken, "INV-211: {gfn:?} is mapped to a broken page");
            }
            let uptodate = phys.flags(pfn).contains(FrameFlags::UPTODATE);
            let defined = uptodate && !phys.is_undefined(pfn);
            assert!(defined, "INV-106: {gfn:?} is mapped before its page was cleared");
        } else if let Some(now) = self.mm.peek_pfn(slot.hva(gfn)) {
            assert_eq!(now, Some(pfn), "INV-210: {gfn:?} is mapped to another page than the host has there");
        }
        // The cache's or the page table's, and the fault's own.
        let counted = !phys.flags(pfn).contains(FrameFlags::RESERVED);
        let held = phys.refcount(pfn) >= 2 || !counted;
        assert!(held, "INV-105: {gfn:?} is mapped to {pfn:?}, to which the fault has no reference of its own");
    }

    /// INV-209: a huge leaf was just made, `mmu_lock` is still held.
    pub(crate) fn check_huge_leaf(&self, fault: &TdpFault, slot: &Memslot) {
        let (gfn, level) = (fault.gfn(), fault.goal_level);
        if level == Level::L4K || !self.has_private_mem() {
            return;
        }
        let block = gfn.block(level);
        let is_other = |i: &u64| self.attributes.is_private(block.start + *i) != fault.is_private;
        if fault.is_private {
            let shared = (0..block.end - block.start).find(is_other);
            assert!(shared.is_none(), "INV-209: a huge leaf at {:?} covers shared +{shared:?}", block.start);
            let head = fault.pfn.map(|pfn| pfn.0 & !(level.span() - 1)).expect("it was mapped");
            let whole = (0..level.span()).all(|i| self.host.phys.is_large(sim_kernel::Pfn(head + i)));
            assert!(whole, "INV-201: a huge leaf at {:?} covers a folio that was split", block.start);
        } else {
            let private = self.attributes.next_present(block.start, block.end);
            assert!(private.is_none(), "INV-209: a huge leaf at {:?} covers private {private:?}", block.start);
        }
        let disallowed = slot.lpage_info.is_disallowed(gfn, level);
        assert!(!disallowed, "INV-209: a huge leaf at {:?}, where the slot allows none", block.start);
    }

    /// INV-207: an access is emulated because of what was remembered of this generation. If the slots have not changed since it was
    /// read, there is no slot.
    pub(crate) fn check_mmio(&self, as_id: u16, gfn: Gfn, generation: u64) {
        let slot = self.memslots.peek_active(u32::from(as_id), |set| {
            let same = set.generation == generation && generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS == 0;
            set.by_gfn(gfn).filter(|_| same).map(|slot| slot.id)
        });
        assert_eq!(slot, None, "INV-207: {gfn:?} acts as MMIO, but a slot of the current generation covers it");
    }

    /// INV-208: at the end of a conversion nothing is mapped in the converted frames.
    pub(crate) fn assert_unmapped(&self, as_id: u16, range: GfnRange) {
        let mapped = self.mmu.first_leaf_in(as_id, range);
        assert!(mapped.is_none(), "INV-208: {mapped:?} is mapped in the middle of a conversion of {range:?}");
    }

    /// Everything that must hold while no operation is under way: slots, bindings, page caches, stage 2.
    ///
    /// # Panics
    /// If something does not, naming the invariant.
    pub fn check_invariants(&self) {
        if let Some(pkvm) = self.pkvm() {
            pkvm.host().check_quiescent(&self.host.existing());
        }
        if let Some(sev) = self.sev() {
            sev.host().check_quiescent(&self.host.existing());
        }
        if let Some(tdx) = self.tdx() {
            tdx.host().check_quiescent(&self.host.existing());
        }
        assert_eq!(self.mmu.invalidate.in_progress(), 0, "INV-301: an invalidation is open while nothing happens");
        self.mmu.assert_consistent();
        self.check_stores();
        let pages = self.mmu.pages();
        let reached = pages.tables + pages.roots;
        assert_eq!(
            self.mmu.table_frames(),
            reached,
            "MMU-INV-007: frames that are tables, and tables that can be reached"
        );
        let mut by_handle = BTreeMap::new();
        for as_id in 0..self.address_spaces() {
            let active: Vec<_> = self.memslots.peek_active(as_id, |set| set.iter().cloned().collect());
            let inactive: Vec<_> = self.memslots.peek_inactive(as_id, |set| set.iter().map(|s| s.handle).collect());
            let handles: Vec<_> = active.iter().map(|s| s.handle).collect();
            assert_eq!(handles, inactive, "INV-308: the two sets of an address space differ");
            for slot in active {
                slot.assert_live();
                assert!(!slot.is_invalid(), "INV-308: a stand-in is left");
                self.check_binding(&slot);
                self.check_mixed(&slot);
                by_handle.insert((as_id, slot.base_gfn), slot);
            }
        }
        let as_ids = self.address_spaces();
        self.mmu.for_each_leaf(|leaf| {
            if leaf.invalid_root || u32::from(leaf.as_id) >= as_ids {
                return;
            }
            let slot = by_handle.range(..=(u32::from(leaf.as_id), leaf.gfn)).next_back().map(|(_, slot)| slot);
            let slot = slot.filter(|slot| slot.as_id == leaf.as_id && slot.contains(leaf.gfn));
            let slot = slot.unwrap_or_else(|| panic!("INV-204: {:?} is mapped outside every slot", leaf.gfn));
            self.check_leaf(slot, &leaf);
            self.check_logged_leaf(slot, &leaf);
        });
    }

    /// INV-209: what a slot says of its blocks' attributes is so.
    fn check_mixed(&self, slot: &Memslot) {
        if !self.has_private_mem() {
            return;
        }
        for level in LARGE_LEVELS {
            let mut start = slot.base_gfn.0.next_multiple_of(level.span());
            while start + level.span() <= slot.gfns().end.0 {
                let block = GfnRange::with_len(Gfn(start), level.span());
                let mixed = slot.lpage_info.is_mixed(block.start, level);
                assert_eq!(mixed, !self.attributes.is_uniform(block), "INV-209: whether {block:?} is mixed");
                start += level.span();
            }
        }
    }

    /// INV-303, INV-304, INV-310 for one slot.
    fn check_binding(&self, slot: &Memslot) {
        let Some(file) = slot.gmem.peek_file().and_then(|file| file.upgrade()) else { return };
        assert!(slot.has_gmem(), "INV-310: a slot without guest_memfd has a file");
        let view = file.downcast::<GmemFile>().expect("a slot is bound to a guest_memfd");
        assert_eq!(slot.is_gmem_only(), view.is_mappable(), "INV-310: GMEM_ONLY follows from the file");
        let end = (slot.gmem.pgoff.0 + slot.npages) << PAGE_SHIFT;
        assert!(end <= view.inode().size(), "INV-306: slot {:?} is bound to pages after the end of its file", slot.id);
        for index in [slot.gmem.pgoff.0, slot.gmem.pgoff.0 + slot.npages - 1] {
            let bound = view.peek_binding(sim_kernel::Pgoff(index));
            assert_eq!(bound, Some(slot.handle), "INV-303: page {index} of the file is not bound to its slot");
        }
    }

    /// MMU-INV-017, MMU-INV-040: what can be written unnoticed is marked dirty.
    fn check_logged_leaf(&self, slot: &Memslot, leaf: &sim_mmu::LeafInfo) {
        let Some(bitmap) = &slot.dirty_bitmap else { return };
        let huge = leaf.level != sim_mmu::Level::L4K && leaf.spte.is_writable();
        assert!(!huge || self.dirty_log_initially_set(), "MMU-INV-017: {:?} is huge, writable and logged", leaf.gfn);
        let unnoticed = leaf.spte.is_writable() && (!self.mmu.config().pml || leaf.spte.has(self.mmu.masks().dirty));
        if !unnoticed {
            return;
        }
        for gfn in (leaf.gfn.0..leaf.gfn.0 + leaf.level.span()).map(Gfn) {
            let marked = bitmap.peek_page(gfn - slot.base_gfn);
            assert!(marked, "MMU-INV-040: {gfn:?} can be written unnoticed and is not marked dirty");
        }
    }

    /// INV-201, INV-208, INV-213 for one leaf.
    fn check_leaf(&self, slot: &Memslot, leaf: &sim_mmu::LeafInfo) {
        let pfn = leaf.spte.pfn();
        assert!(self.host.phys.is_allocated(pfn), "INV-203: {:?} is mapped to a free frame", leaf.gfn);
        let is_private = self.attributes.is_private(leaf.gfn);
        if is_private || slot.is_gmem_only() {
            let fits = leaf.level == sim_mmu::Level::L4K || self.host.phys.is_large(pfn);
            assert!(fits, "INV-213: {:?} is a leaf of {:?} over a page of guest_memfd", leaf.gfn, leaf.level);
            let file = slot.gmem.peek_file().and_then(|file| file.upgrade());
            let file = file.unwrap_or_else(|| panic!("INV-201: {:?} outlived its guest_memfd", leaf.gfn));
            let view = file.downcast::<GmemFile>().expect("a slot is bound to a guest_memfd");
            let cached = view.inode().mapping().peek(slot.gmem_index(leaf.gfn));
            assert_eq!(cached, Some(pfn), "INV-201: {:?} is not the file's page", leaf.gfn);
        } else if leaf.level != sim_mmu::Level::L4K {
            let block = GfnRange::with_len(leaf.gfn, leaf.level.span());
            let private = self.attributes.next_present(block.start, block.end);
            assert!(private.is_none(), "INV-209: a huge leaf at {:?} covers private {private:?}", leaf.gfn);
        }
    }
}
