//! The NX-huge-page mitigation: no huge leaf is executable (`nx_huge_pages` of `arch/x86/kvm/mmu/mmu.c`, the parts in `tdp_mmu.c`).
//!
//! On processors where a fetch through a huge page can be made to hang them (ITLB multihit), a fetch splits the page instead. The table that
//! comes of it says why it is there, so that later faults stay below it; from time to time a worker takes such tables out, and pages that are
//! only read and written become huge again.

use super::changed::{Frames, Rules};
use super::root::Tree;
use super::tables::TableInfo;
use super::{MmuLock, TdpMmu};
use crate::addr::Gfn;
use crate::flush::RemoteFlush;
use crate::spte::Spte;
use sim_kernel::sched::Access;
use sim_kernel::sync::{RwLockReadGuard, rcu_read_lock};
use sim_kernel::{Cx, Pfn};

impl TdpMmu {
    /// `track_possible_nx_huge_page`: the table was linked because of the mitigation; the worker will find it. Not if somebody has taken it out
    /// since.
    pub(super) fn track_possible_nx_huge_page(&self, cx: &Cx<'_>, table: Pfn, late: bool) {
        let _pages = self.roots.tdp_mmu_pages_lock.lock(cx);
        if late {
            self.tables.announce_nx(cx, Access::Store, table);
            self.tables.set_nx_disallowed(table, true);
        }
        if self.tables.is_nx_disallowed(table) {
            self.possible_nx_huge_pages.lock().push_back(table);
        }
    }

    /// `tdp_mmu_unlink_sp`, the part about the worker: the table was taken out.
    pub(super) fn untrack_nx_huge_page(&self, cx: &Cx<'_>, table: Pfn) {
        self.tables.announce_nx(cx, Access::Load, table);
        if !self.tables.is_nx_disallowed(table) {
            return;
        }
        let _pages = self.roots.tdp_mmu_pages_lock.lock(cx);
        self.untrack_locked(table);
    }

    fn untrack_locked(&self, table: Pfn) {
        self.tables.set_nx_disallowed(table, false);
        self.possible_nx_huge_pages.lock().retain(|other| *other != table);
    }

    /// Tables that wait for the worker (`nx_lpage_splits`).
    pub fn nx_huge_page_splits(&self) -> u64 {
        self.possible_nx_huge_pages.lock().len() as u64
    }

    /// `kvm_recover_nx_huge_pages`: takes out as many tables as `to_zap`, the oldest first, so that the next fault may map a huge page. Those
    /// of slots that are logged, which `is_dirty_logged` tells, are forgotten instead: they could not become huge. Flushes by itself.
    pub fn recover_nx_huge_pages(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockReadGuard<'_, ()>,
        to_zap: u64,
        is_dirty_logged: impl Fn(u16, Gfn) -> bool,
        flush: &impl RemoteFlush,
    ) {
        let mut lock = MmuLock::Read(lock);
        let mut owed = false;
        let mut rcu = Some(rcu_read_lock(cx));
        for _ in 0..to_zap {
            let first = {
                let _pages = self.roots.tdp_mmu_pages_lock.lock(cx);
                let Some(first) = self.possible_nx_huge_pages.lock().front().copied() else { break };
                let info = self.tables.info(first);
                if is_dirty_logged(info.as_id, info.gfn) {
                    self.untrack_locked(first);
                    continue;
                }
                (first, info)
            };
            owed |= self.zap_possible_nx_huge_page(cx, first.0, &first.1);
            if lock.needs_break() {
                // Paging-structure caches may still point to tables that are freed when the RCU section ends.
                if std::mem::take(&mut owed) {
                    flush.flush_remote_tlbs(cx);
                }
                drop(rcu.take());
                lock.relax();
                rcu = Some(rcu_read_lock(cx));
            }
        }
        if owed {
            flush.flush_remote_tlbs(cx);
        }
        drop(rcu);
    }

    /// `kvm_tdp_mmu_zap_possible_nx_huge_page`: only if the entry above still points to the table.
    fn zap_possible_nx_huge_page(&self, cx: &Cx<'_>, table: Pfn, info: &TableInfo) -> bool {
        let (parent, index) = info.parent.expect("a table that is tracked was linked");
        let level = info.level.up().expect("a table has an entry above it");
        let word = self.tables.word(cx, parent, index);
        let old = Spte(word.load());
        if !old.is_table(level) || old.pfn() != table || word.cmpxchg(old.0, Spte::NONPRESENT.0).is_err() {
            return false;
        }
        let tree = Tree { table: parent, level, as_id: info.as_id, is_mirror: false, gfn_bits: 0 };
        let rules = Rules { tree, shared: true, unraced: false, frames: Frames::Count };
        self.handle_changed_spte(cx, rules, info.gfn, level, old, Spte::NONPRESENT);
        true
    }
}
