//! Dirty logging, by write protection or by D bits, and its end (`kvm_tdp_mmu_wrprot_slot`, `kvm_tdp_mmu_clear_dirty_pt_masked`,
//! `kvm_tdp_mmu_write_protect_gfn`, `kvm_tdp_mmu_recover_huge_pages` of `arch/x86/kvm/mmu/tdp_mmu.c`,
//! `kvm_tdp_mmu_clear_dirty_slot`, `kvm_arch_mmu_enable_log_dirty_pt_masked` of `mmu.c`).
//!
//! With Intel's page-modification log ([`TdpConfig::pml`](super::TdpConfig::pml)) a page counts as clean while D is clear in its entry; the
//! hardware records the write that sets it. Huge leafs are write-protected all the same, since the log would name one page of them.

use super::changed::{Frames, Rules};
use super::iter::TdpIter;
use super::root::{Root, Tree};
use super::{MmuLock, TdpMmu};
use crate::addr::{Gfn, GfnRange, Level};
use crate::fault::SlotView;
use crate::flush::RemoteFlush;
use crate::mutants::{COLLECT_READLOCK, RCU_BEFORE_FLUSH, RECOVER_IGNORES_MIXED, RECOVER_NO_FLUSH};
use crate::spte::Spte;
use crate::stage2::PT_WRITABLE_MASK;
use sim_kernel::Cx;
use sim_kernel::sync::{RwLockReadGuard, rcu_read_lock};

impl TdpMmu {
    /// `kvm_tdp_mmu_wrprot_slot`: removes W from the leafs of at least `min_level` in `range`; whether any had it. The caller
    /// flushes unconditionally once mmu_lock is released.
    pub fn wrprot_slot(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockReadGuard<'_, ()>,
        as_id: u16,
        range: GfnRange,
        min_level: Level,
    ) -> bool {
        self.clear_bits_slot(cx, lock, as_id, range, min_level, PT_WRITABLE_MASK)
    }

    /// Removes `bit` from the leafs of at least `min_level` in `range` by compare-exchange; whether any had it.
    fn clear_bits_slot(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockReadGuard<'_, ()>,
        as_id: u16,
        range: GfnRange,
        min_level: Level,
        bit: u64,
    ) -> bool {
        let mut lock = MmuLock::Read(lock);
        let mut any = false;
        let valid = |root: &Root| root.is_valid_direct(as_id);
        self.for_each_root(cx, valid, |root| {
            let mut rcu = Some(rcu_read_lock(cx));
            let mut iter = TdpIter::new(cx, &self.tables, root, min_level, range, false);
            while iter.is_valid() {
                loop {
                    if iter.cond_resched(cx, &mut lock, &mut rcu, || {})
                        || !iter.old_spte.is_leaf(iter.level)
                        || !iter.old_spte.has(bit)
                    {
                        break;
                    }
                    let new = iter.old_spte.without(bit);
                    if self.set_spte_atomic(cx, &mut iter, new, Frames::Count).is_ok() {
                        any = true;
                        break;
                    }
                }
                iter.next(cx, &self.tables);
            }
        });
        any
    }

    /// `kvm_tdp_mmu_clear_dirty_slot`: removes D from the leafs of every size in `range`, or W where the hardware sets no D; whether any had
    /// it. The caller flushes unconditionally once mmu_lock is released.
    pub fn clear_dirty_slot(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockReadGuard<'_, ()>,
        as_id: u16,
        range: GfnRange,
    ) -> bool {
        self.clear_bits_slot(cx, lock, as_id, range, Level::L4K, self.dirty_log_bit())
    }

    /// What is taken out of a leaf so that the next write to it is seen.
    fn dirty_log_bit(&self) -> u64 {
        let masks = &self.tables.masks;
        if self.config().pml && masks.ad_enabled() { masks.dirty } else { PT_WRITABLE_MASK }
    }

    /// `kvm_arch_mmu_enable_log_dirty_pt_masked`: after the bits of `mask` (bit i is frame `base` + i) were taken from the bitmap.
    /// Whether any entry changed. The caller flushes iff it took any bit, whatever changed: an entry that had lost W before may have it in a TLB.
    pub fn enable_log_dirty_pt_masked(
        &self,
        cx: &Cx<'_>,
        lock: &mut MmuLock<'_, '_>,
        as_id: u16,
        base: Gfn,
        mask: u64,
        initially_set: bool,
    ) -> bool {
        let excludes_faults = lock.is_exclusive() || cx.has_mutant(COLLECT_READLOCK);
        assert!(excludes_faults, "MMU-INV-053: pages are collected with mmu_lock held for reading");
        if mask == 0 {
            return false;
        }
        let mut changed = false;
        if initially_set {
            // Enabling touched nothing, so huge leafs are still writable.
            let first = base + u64::from(mask.trailing_zeros());
            let last = base + u64::from(63 - mask.leading_zeros());
            if self.config().eager_page_split {
                let range = GfnRange::new(first, last + 1);
                self.split_huge_pages(cx, lock.again(), as_id, range, Level::L4K);
            }
            changed |= self.write_protect_gfn(cx, lock, as_id, first, Level::L2M);
            // As in the kernel, which rounds up: two neighbours of which the second starts a large page count as one page.
            let up = |gfn: Gfn| gfn.0.next_multiple_of(Level::L2M.span());
            if up(first) != up(last) {
                changed |= self.write_protect_gfn(cx, lock, as_id, last, Level::L2M);
            }
        }
        changed | self.clear_dirty_pt_masked(cx, lock, as_id, base, mask)
    }

    /// `kvm_tdp_mmu_clear_dirty_pt_masked`: removes W from the 4 KiB leafs in `mask`, or D where that is logged; whether any had it.
    pub fn clear_dirty_pt_masked(&self, cx: &Cx<'_>, lock: &MmuLock<'_, '_>, as_id: u16, base: Gfn, mask: u64) -> bool {
        if mask == 0 {
            return false;
        }
        let mut changed = false;
        let first = base + u64::from(mask.trailing_zeros());
        let last = base + u64::from(63 - mask.leading_zeros());
        let bit = self.dirty_log_bit();
        let valid = |root: &Root| root.is_valid_direct(as_id);
        self.for_each_root(cx, valid, |root| {
            let _rcu = rcu_read_lock(cx);
            let range = GfnRange::new(first, last + 1);
            let mut iter = TdpIter::new(cx, &self.tables, root, Level::L4K, range, lock.is_exclusive());
            while iter.is_valid() {
                if iter.level == Level::L4K && mask >> (iter.gfn - base) & 1 != 0 && iter.old_spte.is_present() {
                    changed |= self.clear_spte_bits(cx, &mut iter, bit);
                }
                iter.next(cx, &self.tables);
            }
        });
        changed
    }

    /// `tdp_mmu_clear_spte_bits`; whether the entry had any.
    fn clear_spte_bits(&self, cx: &Cx<'_>, iter: &mut TdpIter, bit: u64) -> bool {
        if !iter.old_spte.has(bit) {
            return false;
        }
        let word = iter.word(cx, &self.tables);
        if self.tables.masks.needs_atomic_update(iter.old_spte) {
            iter.old_spte = Spte(word.rmw(|v| v & !bit));
        } else {
            word.store(iter.old_spte.without(bit).0);
        }
        let new = iter.old_spte.without(bit);
        self.handle_changed_spte(cx, Rules::of(iter, false), iter.gfn, iter.level, iter.old_spte, new);
        true
    }

    /// `kvm_tdp_mmu_write_protect_gfn`: removes W and M from the leaf of at least `min_level` over `gfn`, so that not even the
    /// fast path makes it writable; whether it had either.
    fn write_protect_gfn(&self, cx: &Cx<'_>, lock: &MmuLock<'_, '_>, as_id: u16, gfn: Gfn, min_level: Level) -> bool {
        let mut changed = false;
        let valid = |root: &Root| root.is_valid_direct(as_id);
        self.for_each_root(cx, valid, |root| {
            let _rcu = rcu_read_lock(cx);
            let range = GfnRange::with_len(gfn, 1);
            let mut iter = TdpIter::new(cx, &self.tables, root, min_level, range, lock.is_exclusive());
            while iter.is_valid() {
                if iter.old_spte.is_leaf(iter.level) {
                    let new = iter.old_spte.without(PT_WRITABLE_MASK | self.tables.masks.mmu_writable);
                    if new != iter.old_spte {
                        self.set_spte(cx, &mut iter, new, Frames::Count);
                        changed = true;
                    }
                }
                iter.next(cx, &self.tables);
            }
        });
        changed
    }

    /// `kvm_tdp_mmu_recover_huge_pages`: dirty logging of the slot ended; tables below which everything could be one huge leaf are
    /// replaced by it. Flushes by itself.
    pub fn recover_huge_pages<S: SlotView>(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockReadGuard<'_, ()>,
        as_id: u16,
        slot: &S,
        flush: &impl RemoteFlush,
    ) {
        let mut lock = MmuLock::Read(lock);
        let valid = |root: &Root| root.is_valid_direct(as_id);
        self.for_each_root(cx, valid, |root| self.recover_huge_pages_root(cx, &mut lock, root, slot, flush));
    }

    fn recover_huge_pages_root<S: SlotView>(
        &self,
        cx: &Cx<'_>,
        lock: &mut MmuLock<'_, '_>,
        root: &Root,
        slot: &S,
        flush: &impl RemoteFlush,
    ) {
        let range = slot.range();
        let mut owed = false;
        let mut rcu = Some(rcu_read_lock(cx));
        let mut iter = TdpIter::new(cx, &self.tables, root, Level::L2M, range, false);
        while iter.is_valid() {
            loop {
                let yielded = iter.cond_resched(cx, lock, &mut rcu, || {
                    if std::mem::take(&mut owed) {
                        flush.flush_remote_tlbs(cx);
                    }
                });
                if yielded || iter.level > Level::L1G || !iter.old_spte.is_table(iter.level) {
                    break;
                }
                // An entry that is only partly in the slot cannot become a leaf.
                if !range.contains(iter.gfn) || !self.may_recover(cx, slot, &iter) {
                    break;
                }
                let Some(small) = self.first_leaf_below(cx, &iter) else { break };
                if iter.need_resched(lock) {
                    continue;
                }
                let mut huge = self.tables.masks.make_huge_spte(small, iter.level);
                if self.config().nx_huge_pages {
                    huge = self.tables.masks.make_nonexecutable(huge);
                }
                if self.set_spte_atomic(cx, &mut iter, huge, Frames::Count).is_ok() {
                    owed = true;
                    break;
                }
            }
            iter.next(cx, &self.tables);
        }
        if cx.has_mutant(RCU_BEFORE_FLUSH) {
            drop(rcu.take());
        }
        // Before the RCU section ends: paging-structure caches may still point to the unlinked tables.
        if owed && !cx.has_mutant(RECOVER_NO_FLUSH) {
            flush.flush_remote_tlbs(cx);
        }
    }

    /// Whether everything below an entry may be one huge leaf.
    fn may_recover<S: SlotView>(&self, cx: &Cx<'_>, slot: &S, iter: &TdpIter) -> bool {
        if cx.has_mutant(RECOVER_IGNORES_MIXED) {
            return slot.range().covers(&iter.gfn.block(iter.level))
                && slot.host_level(cx, iter.gfn, None) >= iter.level;
        }
        self.max_mapping_level(cx, slot, iter.gfn, Level::L1G, None) >= iter.level
    }

    /// `tdp_mmu_make_huge_spte`: the first present leaf below a table.
    fn first_leaf_below(&self, cx: &Cx<'_>, parent: &TdpIter) -> Option<Spte> {
        let below = parent.level.down().expect("a table has a level below");
        let range = parent.gfn.block(parent.level);
        let tables = &self.tables;
        let tree = Tree { table: parent.old_spte.pfn(), level: below, ..parent.tree };
        let mut iter = TdpIter::below(cx, tables, tree, Level::L4K, range, parent.unraced);
        while iter.is_valid() {
            if iter.old_spte.is_leaf(iter.level) {
                let congruent = (iter.gfn.0 ^ iter.old_spte.pfn().0) & (parent.level.span() - 1) == 0;
                assert!(congruent, "MMU-INV-014: {:?} is no part of a huge page at {:?}", iter.old_spte, iter.gfn);
                return Some(iter.old_spte);
            }
            iter.next(cx, tables);
        }
        None
    }
}
