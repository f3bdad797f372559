//! Taking mappings away: leaf by leaf, or whole trees (`tdp_mmu_zap_leafs`, `kvm_tdp_mmu_unmap_gfn_range`, `tdp_mmu_zap_root`,
//! `kvm_tdp_mmu_zap_invalidated_roots`, `kvm_tdp_mmu_zap_all` of `arch/x86/kvm/mmu/tdp_mmu.c`).

use super::changed::Frames;
use super::iter::TdpIter;
use super::root::Root;
use super::{MayYield, MmuLock, RootFilter, TdpMmu};
use crate::addr::{GfnRange, Level};
use crate::flush::{FlushNeeded, RemoteFlush};
use crate::mutants::{BUG_62, YIELD_STALE_ITER};
use crate::spte::Spte;
use sim_kernel::Cx;
use sim_kernel::sync::{RwLockWriteGuard, rcu_read_lock, synchronize_rcu};

impl TdpMmu {
    /// `kvm_tdp_mmu_unmap_gfn_range` / `kvm_tdp_mmu_zap_leafs`: clears every leaf that overlaps `range`; tables and MMIO entries
    /// stay. Leafs of a mirror that overlap it in part were split before ([`TdpMmu::split_cross_boundary_leafs`]). `as_id` `None` means all address spaces. A yield flushes first what is owed.
    #[expect(clippy::too_many_arguments)]
    pub fn zap_leafs(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockWriteGuard<'_, ()>,
        as_id: Option<u16>,
        roots: RootFilter,
        range: GfnRange,
        may_yield: MayYield,
        flush: &impl RemoteFlush,
    ) -> FlushNeeded {
        let wanted = |root: &Root| {
            as_id.is_none_or(|as_id| root.as_id() == as_id) && roots.selects(root, self.has_mirrored_tdp())
        };
        let mut lock = MmuLock::Write(lock);
        let mut owed = false;
        self.for_each_root(cx, wanted, |root| {
            let mut rcu = Some(rcu_read_lock(cx));
            let mut iter = TdpIter::new(cx, &self.tables, root, Level::L4K, range, true);
            while iter.is_valid() {
                iter.skip_absent(&self.tables, |iter| may_yield == MayYield::Yes && iter.need_resched(&lock));
                // At the entry for a table there is nothing to do yet: a yield may as well be later.
                let yielded = may_yield == MayYield::Yes
                    && !iter.old_spte.is_table(iter.level)
                    && iter.cond_resched(cx, &mut lock, &mut rcu, || {
                        if std::mem::take(&mut owed) && !cx.has_mutant(BUG_62) {
                            flush.flush_remote_tlbs(cx);
                        }
                    });
                let is_void = yielded && !cx.has_mutant(YIELD_STALE_ITER);
                if !is_void && iter.old_spte.is_leaf(iter.level) {
                    // What was in the rest of the page cannot be had again.
                    let is_whole = !iter.tree.is_mirror || range.covers(&iter.gfn.block(iter.level));
                    assert!(
                        is_whole,
                        "MMU-INV-060: {:?} at {:?} leaves a mirror for a part of it",
                        iter.gfn, iter.level
                    );
                    self.set_spte(cx, &mut iter, Spte::NONPRESENT, Frames::Count);
                    // Every vCPU was forced off an invalid root, with a flush before it may run again.
                    owed |= !root.is_invalid();
                }
                iter.next(cx, &self.tables);
            }
        });
        FlushNeeded::new(owed)
    }

    /// `tdp_mmu_zap_root`: in passes from small to large, so that no step takes long.
    fn zap_root(&self, cx: &Cx<'_>, lock: &mut MmuLock<'_, '_>, root: &Root) {
        for level in [Level::L4K, Level::L2M, Level::L1G, root.level()] {
            self.zap_root_pass(cx, lock, root, level);
        }
    }

    /// `__tdp_mmu_zap_root`: clears the present entries of `level` and unlinks what hangs below them.
    ///
    /// The kernel may yield at every entry. Here it is the entries that are cleared: between one and the next nothing is done and nobody else adds
    /// anything, so that whoever gets the lock at another entry could have had it there.
    fn zap_root_pass(&self, cx: &Cx<'_>, lock: &mut MmuLock<'_, '_>, root: &Root, level: Level) {
        let exclusive = lock.is_exclusive();
        let mut rcu = Some(rcu_read_lock(cx));
        let mut iter = TdpIter::new(cx, &self.tables, root, level, GfnRange::ALL, exclusive);
        while iter.is_valid() {
            iter.skip_absent(&self.tables, |_| false);
            // A compare-exchange that failed refreshed the entry: look at it once more.
            loop {
                let is_due = iter.old_spte.is_present() && iter.level <= level;
                if !is_due || iter.cond_resched(cx, lock, &mut rcu, || {}) {
                    break;
                }
                if exclusive {
                    self.set_spte(cx, &mut iter, Spte::NONPRESENT, Frames::Count);
                    break;
                }
                if self.set_spte_atomic(cx, &mut iter, Spte::NONPRESENT, Frames::Count).is_ok() {
                    break;
                }
            }
            iter.next(cx, &self.tables);
        }
    }

    /// `kvm_tdp_mmu_zap_invalidated_roots`, the back half of "zap all fast". Takes mmu_lock for reading and yields.
    pub fn zap_invalidated_roots(&self, cx: &Cx<'_>) {
        let mut guard = self.mmu_lock.read(cx);
        let mut lock = MmuLock::Read(&mut guard);
        self.for_each_scheduled_root(cx, |root| self.zap_root(cx, &mut lock, root));
    }

    /// `kvm_tdp_mmu_zap_all`: the process is gone and no vCPU will run. Takes mmu_lock for writing; roots stay, and mirrors as they are: what
    /// they map goes with the guest_memfd, their tables when the external ones are not in use any more.
    pub fn zap_all(&self, cx: &Cx<'_>) {
        let mut guard = self.mmu_lock.write(cx);
        let mut lock = MmuLock::Write(&mut guard);
        self.for_each_root(cx, |root| !root.is_mirror(), |root| self.zap_root(cx, &mut lock, root));
    }

    /// `kvm_mmu_uninit_tdp_mmu`: frees everything once all vCPUs have put their roots.
    ///
    /// # Panics
    /// If a vCPU still has a root, or a table or leaf is left (MMU-INV-007).
    pub fn uninit(&self, cx: &Cx<'_>) {
        {
            let mut guard = self.mmu_lock.write(cx);
            self.invalidate_roots(cx, |_| true);
            let mut lock = MmuLock::Write(&mut guard);
            self.for_each_scheduled_root(cx, |root| self.zap_root(cx, &mut lock, root));
        }
        assert_eq!(self.roots.len(), 0, "MMU-INV-007: a root is left when the VM dies");
        assert_eq!(self.pages(), Default::default(), "MMU-INV-007: leafs or tables are left when the VM dies");
        assert_eq!(self.invalidate.in_progress(), 0, "INV-301: an invalidation is open when the VM dies");
        assert!(self.nx_huge_page_splits() == 0, "MMU-INV-007: tables wait for recovery when the VM dies");
        synchronize_rcu(cx);
        // Natively a callback may still sit in another thread's bag.
        assert!(cx.is_native() || self.tables.allocated() == 0, "MMU-INV-007: the VM leaks tables");
    }
}
