//! The hooks of a TD's mirror: what changes in it is carried out in the Secure EPT (`tdx_sept_set_private_spte`, `tdx_sept_free_private_spt`).
//!
//! Additions come under `mmu_lock` for reading and may meet a lock of the module: then the mirror's entry gets its old value back and the fault is tried
//! again. Removals come under `mmu_lock` for writing and must succeed. What may be in their way is a vCPU in its TD, in the middle of a TDCALL or on its way in; so who meets a
//! lock has all vCPUs leave, keeps them out, and tries a second time, which cannot fail ([`no_vcpus`](MirrorHooks::no_vcpus)).

use super::vm::{KvmTdx, TdState};
use crate::kvm::mutants::*;
use crate::kvm::vm::Vm;
use sim_coco::tdx::{Hpa, Leaf, Seam, SeamFail, Seamcall, SeptInfo, StatusName};
use sim_kernel::mm::PhysMem;
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::{ExternalChange, ExternalTable, ExternalTables, Gfn, Level};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The hooks of one TD.
pub(crate) struct MirrorHooks {
    pub(super) tdx: Arc<KvmTdx>,
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
        self.tdx.begun.add(cx);
        let result = if change.old.is_present() && change.new.is_table(change.level) {
            self.split_leaf(cx, &vm, change)
        } else if change.old.is_present() {
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
            self.check_released(table);
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

    fn alloc_external_spt(&self, cx: &Cx<'_>, _phys: &PhysMem) -> Result<Pfn, Errno> {
        self.tdx.host.alloc_page(cx)
    }

    fn put_external_spt(&self, cx: &Cx<'_>, _phys: &PhysMem, page: Pfn) {
        self.tdx.host.free_page(cx, page);
    }

    fn prepare_split(&self, cx: &Cx<'_>) -> Result<(), Errno> {
        self.tdx.pamt_topup(cx)
    }

    fn max_level(&self) -> Level {
        if self.tdx.host.has_large_pages() { Level::L2M } else { Level::L4K }
    }

    fn is_vm_dead(&self) -> bool {
        self.tdx.vm().is_none_or(|vm| vm.is_dead())
    }
}

/// Frames of a leaf.
fn frames(first: Pfn, level: Level) -> impl Iterator<Item = Pfn> {
    (0..level.span()).map(move |i| first + i)
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
        let (host, level, pfn) = (&self.tdx.host, change.level, change.new.pfn());
        if level > self.max_level() {
            vm.bug(cx);
            return Err(Errno::EIO);
        }
        if level == Level::L4K {
            let found = self.tdx.pamt_get_spare(cx, pfn);
            found.inspect_err(|errno| {
                if *errno != Errno::EBUSY {
                    vm.bug(cx)
                }
            })?;
        }
        if !cx.has_mutant(TDX_NO_CLFLUSH) {
            frames(pfn, level).for_each(|pfn| host.clflush_page(cx, pfn));
        }
        let result = if self.tdx.state(cx) == TdState::Runnable {
            self.page_aug(cx, vm, info(change.gfn, level), pfn)
        } else if level == Level::L4K {
            self.page_add(cx, vm, change.gfn, pfn)
        } else {
            vm.bug(cx);
            Err(Errno::EIO)
        };
        if level == Level::L4K && result.is_err() {
            self.tdx.pamt_put_spare(cx, pfn);
        }
        result
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
    fn page_aug(&self, cx: &Cx<'_>, vm: &Vm, at: SeptInfo, pfn: Pfn) -> Result<(), Errno> {
        let tdr = self.tdx.tdr_hpa();
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
        cx.note("TLB", "all vCPUs kicked");
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
            let is_terminated = vm.host.config.tdx_terminate_vm && vm.is_dead();
            assert!(is_terminated, "TDX-INV-020: {gfn:?} is taken from a TD that has no KeyID any more");
            self.tdx.host.reclaim(cx, pfn).map_err(|_| bugged())?;
            self.returned(cx, change);
            return Ok(());
        };
        let (tdr, at) = (self.tdx.tdr_hpa(), info(gfn, change.level));
        self.block_and_track(cx, vm, at).map_err(|()| bugged())?;
        let removed = self.no_vcpus(cx, vm, Leaf::MemPageRemove, |seam| seam.mem_page_remove(cx, at, tdr));
        removed.map_err(|_| bugged())?;
        let host = &self.tdx.host;
        if !cx.has_mutant(TDX_NO_WBINVD) {
            // Of whatever size the page was, it is written back in those of 4 KiB.
            for pfn in frames(pfn, change.level) {
                let page = Hpa::of(pfn).with_keyid(hkid, host.tdx().config().keyid_shift);
                let written = host.call(cx, Leaf::PhymemPageWbinvd, |seam| seam.phymem_page_wbinvd(cx, page));
                written.map_err(|_| bugged())?;
            }
        }
        self.returned(cx, change);
        Ok(())
    }

    /// BLOCK, TRACK, and the kick: no vCPU can use what the entry maps any more.
    fn block_and_track(&self, cx: &Cx<'_>, vm: &Vm, at: SeptInfo) -> Result<(), ()> {
        let tdr = self.tdx.tdr_hpa();
        if !cx.has_mutant(TDX_NO_BLOCK) {
            let blocked = self.no_vcpus(cx, vm, Leaf::MemRangeBlock, |seam| seam.mem_range_block(cx, at, tdr));
            blocked.map_err(drop)?;
        }
        self.track(cx, vm);
        Ok(())
    }

    /// The frames of a leaf are the host's again.
    fn returned(&self, cx: &Cx<'_>, change: &ExternalChange) {
        let (host, first) = (&self.tdx.host, change.old.pfn());
        for pfn in frames(first, change.level) {
            if !cx.has_mutant(TDX_NO_RESET) {
                host.quirk_reset_page(cx, pfn);
            }
            self.check_returned(pfn);
        }
        if change.level == Level::L4K {
            host.pamt_put(cx, first);
        }
    }

    /// `tdx_sept_split_private_spte`: under `mmu_lock` for writing. No vCPU is in the TD when DEMOTE comes, and none that was out has the large page in its TLB; an
    /// interrupt of the host puts DEMOTE off. A failure breaks the VM.
    fn split_leaf(&self, cx: &Cx<'_>, vm: &Vm, change: &ExternalChange) -> Result<(), Errno> {
        let bugged = || {
            vm.bug(cx);
            Errno::EIO
        };
        let (host, tdr, at) = (&self.tdx.host, self.tdx.tdr_hpa(), info(change.gfn, change.level));
        let table = change.external_spt.expect("MMU-INV-062: a table of a mirror has a page of the external tables");
        if !self.tdx.is_hkid_assigned() || change.level != Level::L2M {
            return Err(bugged());
        }
        self.block_and_track(cx, vm, at).map_err(|()| bugged())?;
        host.clflush_page(cx, table);
        let metadata = self.tdx.pamt_take_spare(cx);
        let pamt = metadata.map(|pages| pages.map(Hpa::of));
        let demote = |seam: Seam<'_>| seam.mem_page_demote(cx, at, tdr, Hpa::of(table), pamt);
        loop {
            match self.no_vcpus(cx, vm, Leaf::MemPageDemote, demote) {
                Ok(()) => break,
                Err(fail) if fail.name() == StatusName::InterruptedRestartable => {
                    // It is served between two tries.
                    host.tdx().ack_interrupt(host.lp(cx));
                }
                Err(_) => {
                    metadata.into_iter().flatten().for_each(|page| host.leak_page(page));
                    return Err(bugged());
                }
            }
        }
        host.pamt_note_split(cx, change.old.pfn());
        self.tdx.splits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
