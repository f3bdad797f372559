//! The records of what is mapped, and everything that is done through them (`struct pkvm_mapping`, `pkvm_pgtable_stage2_*`).
//!
//! The tables are the hypervisor's, which KVM cannot read: a record says which frames were given for which guest frames. Records are in an interval tree in Linux and in an ordered
//! map here; they never overlap. They change under `mmu_lock` for writing.

use super::vm::KvmPkvm;
use crate::kvm::mutants::{PKVM_NO_RECORD_CHECK, PKVM_RECLAIM_SKIPS, PKVM_UNMAP_INSIDE_ONLY, PKVM_WP_NO_FLUSH};
use crate::kvm::vm::Vm;
use sim_coco::pkvm::{HostCall, Prot};
use sim_kernel::sync::{RwLockReadGuard, RwLockWriteGuard};
use sim_kernel::{Cx, Errno, PAGES_PER_PMD, Pfn};
use sim_mmu::{Gfn, GfnRange, RemoteFlush};
use std::collections::BTreeMap;

/// What was mapped at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First guest frame.
    pub gfn: Gfn,
    /// First frame.
    pub pfn: Pfn,
    /// 1, or a block's.
    pub nr_pages: u64,
    /// The frame came from a guest_memfd, which has not given it up: a reference instead of a pin, and nothing is accounted.
    pub gmem: bool,
    /// A punched hole has taken the page back by force: the record stays because the guest's mark does, and holds nothing.
    pub taken: bool,
}

impl Mapping {
    /// Its guest frames.
    pub fn gfns(&self) -> GfnRange {
        GfnRange::new(self.gfn, self.gfn + self.nr_pages)
    }
}

/// The records of a VM (`pkvm_mappings`).
#[derive(Debug, Default)]
pub(super) struct Mappings(BTreeMap<Gfn, Mapping>);

impl Mappings {
    /// Those that intersect a range.
    pub(super) fn in_range(&self, range: GfnRange) -> Vec<Mapping> {
        let before = self.0.range(..range.start).next_back().filter(|(_, mapping)| mapping.gfns().end > range.start);
        before.into_iter().chain(self.0.range(range.start..range.end)).map(|(_, mapping)| *mapping).collect()
    }

    pub(super) fn all(&self) -> Vec<Mapping> {
        self.0.values().copied().collect()
    }

    pub(super) fn insert(&mut self, mapping: Mapping) {
        let overlaps = !self.in_range(mapping.gfns()).is_empty();
        assert!(!overlaps, "PKVM-INV-012: a second record of {:?}", mapping.gfn);
        self.0.insert(mapping.gfn, mapping);
    }

    pub(super) fn remove(&mut self, gfn: Gfn) {
        self.0.remove(&gfn);
    }

    pub(super) fn set_taken(&mut self, gfn: Gfn) {
        self.0.get_mut(&gfn).expect("a page is taken that has a record").taken = true;
    }
}

impl KvmPkvm {
    /// `pkvm_pgtable_stage2_map` for a protected VM: donates a page, and keeps a record of it.
    ///
    /// # Errors
    /// `EAGAIN` if another vCPU has mapped it; `EFAULT` if the guest's page was taken by force, or the hypervisor cannot say; those of the hypervisor.
    pub(super) fn stage2_donate(
        &self,
        cx: &Cx<'_>,
        _lock: &RwLockWriteGuard<'_, ()>,
        gfn: Gfn,
        pfn: Pfn,
        gmem: bool,
    ) -> Result<(), Errno> {
        let page = GfnRange::new(gfn, gfn + 1);
        let known = !self.records(cx).in_range(page).is_empty();
        if known && !cx.has_mutant(PKVM_NO_RECORD_CHECK) {
            let poisoned = self.host.call(cx, HostCall::VcpuInPoisonFault);
            return Err(match poisoned {
                Ok(0) => Errno::EAGAIN,
                _ => Errno::EFAULT,
            });
        }
        assert!(!known, "PKVM-INV-012: {pfn:?} is donated at {gfn:?}, of which there is a record");
        self.host.call(cx, HostCall::HostDonateGuest { pfn, gfn })?;
        self.records(cx).insert(Mapping { gfn, pfn, nr_pages: 1, gmem, taken: false });
        Ok(())
    }

    /// `pkvm_pgtable_stage2_map` for another VM: shares a page or a block. What is there in another size is unshared first.
    ///
    /// # Errors
    /// `EAGAIN` if it is there in this size; those of the hypervisor.
    pub(super) fn stage2_share(
        &self,
        cx: &Cx<'_>,
        lock: &mut RwLockWriteGuard<'_, ()>,
        mapping: Mapping,
        prot: Prot,
    ) -> Result<(), Errno> {
        let Mapping { gfn, pfn, nr_pages: pages, .. } = mapping;
        let known = self.records(cx).in_range(mapping.gfns());
        if let Some(first) = known.first() {
            if first.nr_pages == pages {
                return Err(Errno::EAGAIN);
            }
            self.stage2_unshare(cx, lock, mapping.gfns());
        }
        self.host.call(cx, HostCall::HostShareGuest { pfn, gfn, pages, prot })?;
        self.records(cx).insert(mapping);
        Ok(())
    }

    /// `__pkvm_pgtable_stage2_unshare`: takes back everything of which there is a record in the range, also what reaches beyond it.
    ///
    /// # Panics
    /// PKVM-INV-012: if the hypervisor does not have what a record says. The kernel warns, and gives up.
    pub(super) fn stage2_unshare(&self, cx: &Cx<'_>, _lock: &mut RwLockWriteGuard<'_, ()>, range: GfnRange) {
        self.unshare(cx, range);
    }

    /// The same where nobody else has the records: under `mmu_lock`, or when the stage 2 goes.
    fn unshare(&self, cx: &Cx<'_>, range: GfnRange) {
        let known = self.records(cx).in_range(range);
        for Mapping { gfn, nr_pages: pages, .. } in known {
            if cx.has_mutant(PKVM_UNMAP_INSIDE_ONLY) && gfn < range.start {
                continue;
            }
            let handle = self.handle();
            let unshared = self.host.call(cx, HostCall::HostUnshareGuest { handle, gfn, pages });
            assert_eq!(unshared, Ok(0), "PKVM-INV-012: a record of {gfn:?} is of something that is not shared");
            self.records(cx).remove(gfn);
        }
    }

    /// `pkvm_pgtable_stage2_wrprotect`.
    pub(super) fn stage2_wrprotect(&self, cx: &Cx<'_>, _lock: &mut RwLockWriteGuard<'_, ()>, range: GfnRange) {
        let known = self.records(cx).in_range(range);
        for Mapping { gfn, nr_pages: pages, .. } in known {
            let call = HostCall::HostWrprotectGuest { handle: self.handle(), gfn, pages };
            assert_eq!(self.host.call(cx, call), Ok(0), "PKVM-INV-012: the record of {gfn:?} is wrong");
        }
    }

    /// The same for pages that were collected from a dirty log.
    pub(crate) fn wrprotect_dirty(&self, cx: &Cx<'_>, lock: &mut RwLockWriteGuard<'_, ()>, range: GfnRange) {
        if !self.is_protected() {
            self.stage2_wrprotect(cx, lock, range);
        }
    }

    /// `pkvm_pgtable_stage2_test_clear_young`, under `mmu_lock`.
    pub(super) fn stage2_age(&self, cx: &Cx<'_>, range: GfnRange) -> bool {
        let known = self.records(cx).in_range(range);
        let age = |Mapping { gfn, nr_pages: pages, .. }: Mapping| {
            let handle = self.handle();
            let young = self.host.call(cx, HostCall::HostTestClearYoungGuest { handle, gfn, pages, mkold: true });
            young.expect("PKVM-INV-012: a record is of a page or a block that is mapped") != 0
        };
        // All are asked, whatever the first says.
        known.into_iter().fold(false, |young, mapping| age(mapping) | young)
    }

    /// `pkvm_pgtable_stage2_relax_perms`.
    ///
    /// # Errors
    /// `EAGAIN` if nothing is mapped any more.
    pub(super) fn stage2_relax_perms(&self, cx: &Cx<'_>, gfn: Gfn, prot: Prot) -> Result<(), Errno> {
        self.host.call(cx, HostCall::HostRelaxPermsGuest { gfn, prot }).map(|_| ())
    }

    /// `pkvm_pgtable_stage2_mkyoung`, under `mmu_lock` for reading.
    pub(super) fn stage2_mkyoung(&self, cx: &Cx<'_>, _lock: &RwLockReadGuard<'_, ()>, gfn: Gfn) {
        let done = self.host.call(cx, HostCall::HostMkyoungGuest { gfn });
        assert_eq!(done, Ok(0), "the page of a vCPU that is loaded, and not protected, becomes young");
    }
}

impl Vm {
    /// The end of all that is mapped (`pkvm_pgtable_stage2_destroy_range`), without `mmu_lock`, because nobody finds it any more: pages of a protected VM are taken back one by one, and their pins and accounting end with the record.
    /// What cannot be taken back stays pinned for ever.
    pub(super) fn pkvm_destroy_mappings(&self, cx: &Cx<'_>, pkvm: &KvmPkvm) {
        let handle = pkvm.handle();
        if handle.0 == 0 {
            return;
        }
        if !pkvm.is_protected() {
            return pkvm.unshare(cx, GfnRange::new(Gfn(0), Gfn(u64::MAX)));
        }
        // Not inside the `for`: its lock would last.
        let all = pkvm.records(cx).all();
        for (i, mapping) in all.into_iter().enumerate() {
            if cx.has_mutant(PKVM_RECLAIM_SKIPS) && i == 0 {
                continue;
            }
            if pkvm.host.call(cx, HostCall::ReclaimDyingGuestPage { handle, gfn: mapping.gfn }).is_err() {
                continue;
            }
            if !mapping.taken {
                self.host.phys.put(cx, mapping.pfn);
            }
            if !mapping.gmem {
                let unlimited = self.mm.account_locked_vm(cx, 1, false, u64::MAX);
                unlimited.expect("less is always possible");
            }
            pkvm.records(cx).remove(mapping.gfn);
        }
    }

    /// `kvm_unmap_gfn_range`, under `mmu_lock` for writing. Pages of protected VMs are pinned, so nothing has to happen.
    pub(crate) fn pkvm_unmap_gfn_range(&self, cx: &Cx<'_>, lock: &mut RwLockWriteGuard<'_, ()>, range: GfnRange) {
        if let Some(pkvm) = self.pkvm().filter(|pkvm| !pkvm.is_protected() && pkvm.has_pgt(cx)) {
            pkvm.check_handle();
            pkvm.stage2_unshare(cx, lock, range);
        }
    }

    /// `kvm_age_gfn`. Of protected VMs nothing is known.
    pub(crate) fn pkvm_age_gfn(&self, cx: &Cx<'_>, pkvm: &KvmPkvm, range: GfnRange) -> bool {
        let _lock = self.mmu.mmu_lock.write(cx);
        !pkvm.is_protected() && pkvm.has_pgt(cx) && pkvm.stage2_age(cx, range)
    }

    /// `kvm_mmu_wp_memory_region`, and the same for a part: pages become read-only, and no processor remembers that they were not.
    pub(crate) fn pkvm_wp_range(&self, cx: &Cx<'_>, pkvm: &KvmPkvm, range: GfnRange) {
        {
            let mut lock = self.mmu.mmu_lock.write(cx);
            pkvm.stage2_wrprotect(cx, &mut lock, range);
        }
        if !cx.has_mutant(PKVM_WP_NO_FLUSH) {
            self.flush_remote_tlbs(cx);
        }
    }

    /// `kvm_arch_flush_remote_tlbs`: the processors do that, without the vCPUs. True if the VM has pKVM.
    pub(crate) fn pkvm_flush_remote_tlbs(&self, cx: &Cx<'_>) -> bool {
        let Some(pkvm) = self.pkvm() else { return false };
        pkvm.check_handle();
        // Before the first run there is no VM, and the call says so.
        let _answer = pkvm.host.call(cx, HostCall::TlbFlushVmid { handle: pkvm.handle() });
        true
    }
}

/// Pages of a block.
pub(super) const BLOCK: u64 = PAGES_PER_PMD;
