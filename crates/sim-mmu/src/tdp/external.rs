//! Mirror trees and the external tables behind them (`set_external_spte` and `free_external_spt` of `struct kvm_x86_ops`, the mirror halves of
//! `arch/x86/kvm/mmu/tdp_mmu.c`).
//!
//! A TD's private memory is mapped by tables that only the TDX module writes. KVM keeps a *mirror* of them, a tree like any other that no
//! processor walks, and carries each change of it out through two hooks. A mapping is added under mmu_lock for reading: the mirror's entry is
//! frozen, the hook runs, and the entry gets its value, or its old one back if the hook failed. A mapping is taken away under mmu_lock for
//! writing: the mirror's entry is cleared first, and the hook must not fail. Each table of a mirror but the root owns one page of the external
//! tables, from its link until the VM dies.
//!
//! A large leaf is never replaced by a table on the way of a fault, nor a table by a large leaf. What needs a part of one has it split first, under
//! mmu_lock for writing ([`TdpMmu::split_cross_boundary_leafs`]), with the mirror's entry written before the hook as in a removal.
//!
//! What the hooks do (S-EPT calls, retries while the module is busy, kicking vCPUs) is not here: whoever makes the VM gives them.

use super::TdpMmu;
use super::root::Root;
use super::tables::{TableInfo, Tables};
use crate::addr::{Gfn, Level};
use crate::fault::{RetPf, SlotView, TdpFault};
use crate::flush::RemoteFlush;
use crate::spte::Spte;
use sim_kernel::mm::PhysMem;
use sim_kernel::sync::Until;
use sim_kernel::{Cx, Errno, Pfn};
use std::fmt;
use std::sync::atomic::Ordering;

/// A change of one entry that is to be carried out in the external tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExternalChange {
    /// First frame of the entry.
    pub gfn: Gfn,
    /// Level of the entry.
    pub level: Level,
    /// The mirror's entry before. Present: the leaf is to be removed, or split if `new` is a table, and mmu_lock is held for writing.
    pub old: Spte,
    /// The mirror's entry afterwards: a table, a leaf, or not present.
    pub new: Spte,
    /// If `new` is a table: the page that it is in the external tables.
    pub external_spt: Option<Pfn>,
}

impl ExternalChange {
    pub(super) fn new(tables: &Tables, gfn: Gfn, level: Level, old: Spte, new: Spte) -> ExternalChange {
        let external_spt = if new.is_table(level) { tables.info(new.pfn()).external } else { None };
        ExternalChange { gfn, level, old, new, external_spt }
    }
}

/// A table of a mirror that is being freed, with everything below it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExternalTable {
    /// First frame that the table covers.
    pub gfn: Gfn,
    /// Level of the table's entries.
    pub level: Level,
    /// The page that it is in the external tables.
    pub external_spt: Pfn,
}

/// The hooks through which a mirror's changes reach the tables that it mirrors.
pub trait ExternalTables: Send + Sync + fmt::Debug {
    /// `set_external_spte`: links a table, maps a leaf, splits one, or removes one, which the two values of the entry tell apart.
    ///
    /// # Errors
    /// `EBUSY`: not now; the fault will be tried again. Anything else means that the VM is broken, which the hook itself has noted. A removal
    /// or a split only fails when the VM is broken.
    fn set_external_spte(&self, cx: &Cx<'_>, change: &ExternalChange) -> Result<(), Errno>;

    /// `free_external_spt`: takes the page of a table back. Only when the VM dies: the external tables must not be in use any more.
    ///
    /// # Errors
    /// The page cannot be had; it is leaked.
    fn free_external_spt(&self, cx: &Cx<'_>, table: &ExternalTable) -> Result<(), Errno>;

    /// A page for a table of the external tables (`tdx_alloc_control_page`).
    ///
    /// # Errors
    /// `ENOMEM`.
    fn alloc_external_spt(&self, _cx: &Cx<'_>, phys: &PhysMem) -> Result<Pfn, Errno> {
        phys.alloc()
    }

    /// Such a page goes back: it was never linked, or was taken back.
    fn put_external_spt(&self, cx: &Cx<'_>, phys: &PhysMem, page: Pfn) {
        phys.put(cx, page);
    }

    /// What a split needs beside the page of a table is there afterwards.
    ///
    /// # Errors
    /// `ENOMEM`.
    fn prepare_split(&self, _cx: &Cx<'_>) -> Result<(), Errno> {
        Ok(())
    }

    /// The largest leaf that the external tables are given.
    fn max_level(&self) -> Level {
        Level::L4K
    }

    /// `KVM_REQ_VM_DEAD`: the VM is of no use any more, and no retry will succeed.
    fn is_vm_dead(&self) -> bool {
        false
    }
}

impl TdpMmu {
    /// `kvm_has_mirrored_tdp`: private memory is mapped by external tables.
    #[inline]
    pub fn has_mirrored_tdp(&self) -> bool {
        self.external.is_some()
    }

    /// `kvm_gfn_direct_bits`: what the place of a shared gfn has in the direct root beside the gfn.
    #[inline]
    pub fn gfn_direct_bits(&self) -> u64 {
        self.guest_width.get().map_or(self.config().gfn_direct_bits, |(_, bits)| *bits)
    }

    pub(super) fn external(&self) -> &dyn ExternalTables {
        &**self.external.as_ref().expect("a mirror has external tables")
    }

    pub(super) fn set_external_spte(&self, cx: &Cx<'_>, change: &ExternalChange) -> Result<(), Errno> {
        self.external().set_external_spte(cx, change)
    }

    /// A table for an entry of a walk, with a page for the external tables if it is one of a mirror.
    pub(super) fn alloc_sp(
        &self,
        cx: &Cx<'_>,
        gfn: Gfn,
        level: Level,
        as_id: u16,
        is_mirror: bool,
    ) -> Result<Pfn, Errno> {
        let table = self.tables.alloc(gfn, level, as_id)?;
        if is_mirror {
            match self.external().alloc_external_spt(cx, &self.tables.phys) {
                Ok(external) => {
                    self.tables.set_external(table, Some(external));
                    self.external_pages.fetch_add(1, Ordering::Relaxed);
                }
                Err(errno) => {
                    self.tables.free_unlinked(table);
                    return Err(errno);
                }
            }
        }
        Ok(table)
    }

    /// `tdp_mmu_free_unused_sp` of a table that was never linked.
    pub(super) fn free_unlinked_sp(&self, cx: &Cx<'_>, table: Pfn) {
        if let Some(external) = self.tables.info(table).external {
            self.put_external_page(cx, external);
        }
        self.tables.free_unlinked(table);
    }

    fn put_external_page(&self, cx: &Cx<'_>, page: Pfn) {
        let old = self.external_pages.fetch_sub(1, Ordering::Relaxed);
        assert!(old > 0, "MMU-INV-062: a page of the external tables is freed twice");
        self.external().put_external_spt(cx, &self.tables.phys, page);
    }

    /// A table was taken out of the mirror. Its external page is freed at once: nobody walks it without the hardware, which is done with the
    /// VM. If the hook fails the page is leaked.
    pub(super) fn free_external_spt(&self, cx: &Cx<'_>, table: Pfn, info: &TableInfo) {
        let external_spt = info.external.expect("MMU-INV-062: a table of a mirror has a page of the external tables");
        self.tables.set_external(table, None);
        let freed =
            self.external().free_external_spt(cx, &ExternalTable { gfn: info.gfn, level: info.level, external_spt });
        if freed.is_ok() {
            self.put_external_page(cx, external_spt);
        }
    }

    /// What a fault's retries come to while an entry on its way is frozen: nothing changes until whoever froze it goes on, so the task is not
    /// runnable until then. KVM lets the guest run into the fault again, or tries again in the exit handler of a TD; the outcome is the same.
    pub fn wait_while_frozen(&self, cx: &Cx<'_>, root: &Root, gfn: Gfn) {
        if let Some((table, index, _)) = self.frozen(root, gfn) {
            self.tables.word(cx, table, index).wait_until(Until::NotEqual(Spte::FROZEN.0));
        }
    }

    /// Level of the frozen entry on the way to a frame: for checkers.
    pub fn peek_frozen(&self, root: &Root, gfn: Gfn) -> Option<Level> {
        self.frozen(root, gfn).map(|(_, _, level)| level)
    }

    fn frozen(&self, root: &Root, gfn: Gfn) -> Option<(Pfn, usize, Level)> {
        let (mut table, mut level) = (root.table(), root.level());
        loop {
            let index = Gfn(gfn.0 | root.gfn_bits()).index(level);
            let spte = self.tables.peek(table, index);
            if spte.is_frozen() {
                return Some((table, index, level));
            }
            (table, level) = (spte.pfn(), level.down().filter(|_| spte.is_table(level))?);
        }
    }

    /// Pages of the external tables that were not given back: for checkers.
    pub fn external_pages(&self) -> u64 {
        self.external_pages.load(Ordering::Relaxed)
    }

    /// `kvm_tdp_mmu_map_private_pfn`: maps a page of a TD that is being built, without a fault. The caller holds `slots_lock` and the
    /// guest_memfd's `invalidate_lock`, so that the page stays; there is nothing to test against. Takes mmu_lock for reading.
    ///
    /// # Errors
    /// `EIO` if something is mapped there already, or the VM is dead; `EINTR` for a signal; `ENOMEM`.
    pub fn map_private_pfn<S: SlotView>(
        &self,
        cx: &Cx<'_>,
        mirror: &Root,
        gfn: Gfn,
        pfn: Pfn,
        slot: &S,
        flush: &impl RemoteFlush,
    ) -> Result<(), Errno> {
        loop {
            if cx.signal_pending() {
                return Err(Errno::EINTR);
            }
            if self.external.as_ref().is_some_and(|external| external.is_vm_dead()) {
                return Err(Errno::EIO);
            }
            let mut fault = TdpFault {
                write: true,
                prefetch: true,
                pfn: Some(pfn),
                map_writable: true,
                max_level: Level::L4K,
                ..TdpFault::at(gfn.gpa(), true)
            };
            let lock = self.mmu_lock.read(cx);
            let result = self.map(cx, &lock, mirror, &mut fault, Some(slot), flush)?;
            drop(lock);
            match result {
                RetPf::Retry => {
                    self.wait_while_frozen(cx, mirror, gfn);
                    cx.cond_resched();
                }
                RetPf::Fixed => return Ok(()),
                _ => return Err(Errno::EIO),
            }
        }
    }
}
