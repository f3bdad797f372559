//! The hooks of a TD's mirror: what changes in it is carried out in the Secure EPT (`tdx_sept_set_private_spte`, `tdx_sept_free_private_spt`).
//!
//! Additions come under `mmu_lock` for reading and may meet a lock of the module: then the mirror's entry gets its old value back and the fault is tried
//! again. Removals come under `mmu_lock` for writing and must succeed. What may be in their way is a vCPU in its TD, in the middle of a TDCALL or on its way in; so who meets a
//! lock has all vCPUs leave, keeps them out, and tries a second time, which cannot fail ([`no_vcpus`](MirrorHooks::no_vcpus)).

use super::vm::{KvmTdx, TdState};
use crate::kvm::mutants::*;
use crate::kvm::vm::Vm;
use sim_coco::tdx::{Hpa, Leaf, Seam, SeamFail, Seamcall, SeptInfo, StatusName};
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::{ExternalChange, ExternalTable, ExternalTables, Gfn, Level};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The hooks of one TD.
pub(crate) struct MirrorHooks {
    tdx: Arc<KvmTdx>,
}

impl fmt::Debug for MirrorHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MirrorHooks")
    }
}

impl ExternalTables for MirrorHooks {
    /// `tdx_sept_set_private_spte`.
    fn set_external_spte(&self, cx: &Cx<'_>, change: &ExternalChange) -> Result<(), Errno> {
        let Some(vm) = self.tdx.vm() else { return Err(Errno::EIO) };
        self.tdx.begun.fetch_add(1, Ordering::Relaxed);
        let result = if change.old.is_present() {
            self.remove_leaf(cx, &vm, change)
        } else if !change.new.is_leaf(change.level) {
            self.map_nonleaf(cx, &vm, change)
        } else {
            self.map_leaf(cx, &vm, change)
        };
        self.tdx.done.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// `tdx_sept_free_private_spt`.
    fn free_external_spt(&self, cx: &Cx<'_>, table: &ExternalTable) -> Result<(), Errno> {
        if self.tdx.is_hkid_assigned() {
            if let Some(vm) = self.tdx.vm() {
                vm.bug(cx);
            }
            self.tdx.host.leak_page(table.external_spt);
            return Err(Errno::EIO);
        }
        self.tdx.host.reclaim_page(cx, table.external_spt).inspect_err(|_| {
            self.tdx.host.leak_page(table.external_spt);
        })
    }

    fn is_vm_dead(&self) -> bool {
        self.tdx.vm().is_none_or(|vm| vm.is_dead())
    }
}

/// The first frame and level of an entry as an operand.
fn info(gfn: Gfn, level: Level) -> SeptInfo {
    SeptInfo::new(gfn.gpa(), level)
}

impl MirrorHooks {
    pub(crate) fn new(tdx: Arc<KvmTdx>) -> MirrorHooks {
        MirrorHooks { tdx }
    }

    pub(super) fn host(&self) -> &super::host::TdxHost {
        &self.tdx.host
    }

    /// What an addition comes to: a lock that is held is `EBUSY`, everything else breaks the VM.
    ///
    /// # Panics
    /// TDX-INV-015: if it is because of what stands in the Secure EPT, which the mirror says is free; unless a failure has broken the VM already, after which they
    /// disagree.
    fn added<T>(&self, cx: &Cx<'_>, vm: &Vm, result: Seamcall<T>) -> Result<(), Errno> {
        match result {
            Ok(_) => Ok(()),
            Err(fail) if fail.is_operand_busy() => Err(Errno::EBUSY),
            Err(fail) => {
                let disagree = matches!(fail.name(), StatusName::EptEntryStateIncorrect | StatusName::EptWalkFailed);
                assert!(
                    !disagree || vm.is_dead(),
                    "TDX-INV-015: the mirror says that an entry is free, and the module answers {fail}"
                );
                vm.bug(cx);
                Err(Errno::EIO)
            }
        }
    }

    /// `tdx_sept_map_nonleaf_spte`.
    fn map_nonleaf(&self, cx: &Cx<'_>, vm: &Vm, change: &ExternalChange) -> Result<(), Errno> {
        let page = change.external_spt.expect("MMU-INV-062: a table of a mirror has a page of the external tables");
        let (host, tdr) = (&self.tdx.host, self.tdx.tdr_hpa());
        host.clflush_page(cx, page);
        let at = info(change.gfn, change.level);
        let added = host.call(cx, Leaf::MemSeptAdd, |seam| seam.mem_sept_add(cx, at, tdr, Hpa::of(page)));
        self.added(cx, vm, added)
    }

    /// `tdx_sept_map_leaf_spte`.
    fn map_leaf(&self, cx: &Cx<'_>, vm: &Vm, change: &ExternalChange) -> Result<(), Errno> {
        if change.level != Level::L4K {
            vm.bug(cx);
            return Err(Errno::EIO);
        }
        let pfn = change.new.pfn();
        if !cx.has_mutant(TDX_NO_CLFLUSH) {
            self.tdx.host.clflush_page(cx, pfn);
        }
        if self.tdx.state(cx) == TdState::Runnable {
            self.page_aug(cx, vm, change.gfn, pfn)
        } else {
            self.page_add(cx, vm, change.gfn, pfn)
        }
    }

    /// `tdx_mem_page_add`.
    fn page_add(&self, cx: &Cx<'_>, vm: &Vm, gfn: Gfn, pfn: Pfn) -> Result<(), Errno> {
        let source = *self.tdx.page_add_src.lock();
        let Some(source) = source.filter(|_| !vm.peek_pre_fault_allowed()) else {
            vm.bug(cx);
            return Err(Errno::EIO);
        };
        assert!(vm.slots_lock.is_held(cx), "TDX-INV-021: {gfn:?} is added to a TD without slots_lock");
        let (tdr, at) = (self.tdx.tdr_hpa(), info(gfn, Level::L4K));
        let added = self
            .tdx
            .host
            .call(cx, Leaf::MemPageAdd, |seam| seam.mem_page_add(cx, at, tdr, Hpa::of(pfn), Hpa::of(source)));
        self.added(cx, vm, added)
    }

    /// `tdx_mem_page_aug`.
    fn page_aug(&self, cx: &Cx<'_>, vm: &Vm, gfn: Gfn, pfn: Pfn) -> Result<(), Errno> {
        let (tdr, at) = (self.tdx.tdr_hpa(), info(gfn, Level::L4K));
        let added = self.tdx.host.call(cx, Leaf::MemPageAug, |seam| seam.mem_page_aug(cx, at, tdr, Hpa::of(pfn)));
        self.added(cx, vm, added)
    }

    /// `tdh_do_no_vcpus`: once, and if a lock is in the way, again after all vCPUs have left and while none enters.
    fn no_vcpus<T>(
        &self,
        cx: &Cx<'_>,
        vm: &Vm,
        leaf: Leaf,
        call: impl Fn(Seam<'_>) -> Seamcall<T>,
    ) -> Result<T, SeamFail> {
        let host = &self.tdx.host;
        match host.call(cx, leaf, &call) {
            Err(fail) if fail.is_operand_busy() && !cx.has_mutant(TDX_BUSY_NO_RETRY) => {}
            result => return result,
        }
        if !cx.has_mutant(TDX_RETRY_NO_WAIT_FLAG) {
            self.tdx.wait_for_sept_zap.store(cx, 1);
        }
        if !cx.has_mutant(TDX_RETRY_NO_KICK) {
            self.kick(cx, vm);
        }
        let result = host.call(cx, leaf, &call);
        self.check_kept_out(vm);
        self.tdx.wait_for_sept_zap.store(cx, 0);
        result
    }

    /// `KVM_REQ_OUTSIDE_GUEST_MODE` to all vCPUs: each has been out of the guest when this returns.
    fn kick(&self, cx: &Cx<'_>, vm: &Vm) {
        self.tdx.kicks.fetch_add(1, Ordering::Relaxed);
        vm.kick_all_and_wait(cx);
    }

    /// `tdx_track`.
    fn track(&self, cx: &Cx<'_>, vm: &Vm) {
        if self.tdx.state(cx) != TdState::Runnable {
            return;
        }
        if cx.has_mutant(TDX_KICK_BEFORE_TRACK) {
            self.kick(cx, vm);
        }
        let tdr = self.tdx.tdr_hpa();
        if !cx.has_mutant(TRACK_SKIPPED)
            && self.no_vcpus(cx, vm, Leaf::MemTrack, |seam| seam.mem_track(cx, tdr)).is_err()
        {
            vm.bug(cx);
        }
        if !cx.has_mutant(TRACK_NO_KICK) && !cx.has_mutant(TDX_KICK_BEFORE_TRACK) {
            self.kick(cx, vm);
        }
    }

    /// `tdx_sept_remove_leaf_spte`: under `mmu_lock` for writing. A failure breaks the VM; the page stays the TD's, and whoever gets its frame next finds
    /// that out.
    fn remove_leaf(&self, cx: &Cx<'_>, vm: &Vm, change: &ExternalChange) -> Result<(), Errno> {
        let (gfn, pfn) = (change.gfn, change.old.pfn());
        let bugged = || {
            vm.bug(cx);
            Errno::EIO
        };
        let Some(hkid) = self.tdx.hkid() else {
            // Only a TD that was terminated has memory without a KeyID.
            if !vm.host.config.tdx_terminate_vm || !vm.is_dead() {
                return Err(bugged());
            }
            self.tdx.host.reclaim_page(cx, pfn).map_err(|_| bugged())?;
            self.check_returned(pfn);
            return Ok(());
        };
        if change.level != Level::L4K {
            return Err(bugged());
        }
        let (tdr, at) = (self.tdx.tdr_hpa(), info(gfn, Level::L4K));
        if !cx.has_mutant(TDX_NO_BLOCK) {
            let blocked = self.no_vcpus(cx, vm, Leaf::MemRangeBlock, |seam| seam.mem_range_block(cx, at, tdr));
            blocked.map_err(|_| bugged())?;
        }
        self.track(cx, vm);
        let removed = self.no_vcpus(cx, vm, Leaf::MemPageRemove, |seam| seam.mem_page_remove(cx, at, tdr));
        removed.map_err(|_| bugged())?;
        let host = &self.tdx.host;
        if !cx.has_mutant(TDX_NO_WBINVD) {
            let page = Hpa::of(pfn).with_keyid(hkid, host.tdx().config().keyid_shift);
            let written = host.call(cx, Leaf::PhymemPageWbinvd, |seam| seam.phymem_page_wbinvd(cx, page));
            written.map_err(|_| bugged())?;
        }
        if !cx.has_mutant(TDX_NO_RESET) {
            host.quirk_reset_page(cx, pfn);
        }
        self.check_returned(pfn);
        Ok(())
    }
}
