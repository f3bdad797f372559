//! The page-fault path: from a stage-2 fault to a mapping, an exit, or another try (`arch/x86/kvm/mmu/mmu.c`).
//!
//! What may vanish is looked up without `mmu_lock`, under a snapshot of the invalidation sequence; the mapping is made under
//! `mmu_lock` after testing that the snapshot still holds.

use super::hva::{HvaPfn, Intent};
use super::memslots::Memslot;
use super::mutants::*;
use super::uapi::*;
use super::vcpu::{ExitInfo, Vcpu, VcpuState};
use super::vm::Vm;
use sim_kernel::mm::HostLevel;
use sim_kernel::sync::RwLockReadGuard;
use sim_kernel::{Cx, Errno, PAGE_SIZE, Pfn};
use sim_mmu::walker::ExitInfo1;
use sim_mmu::{Gfn, GfnRange, Gpa, Level, NoSlot, RetPf, Root, SlotView, Stage2Fault, TdpFault};
use std::sync::Arc;

/// A slot as the MMU asks about it.
#[derive(Debug)]
pub(crate) struct KvmSlotView<'a> {
    vm: &'a Vm,
    slot: &'a Memslot,
}

impl SlotView for KvmSlotView<'_> {
    fn range(&self) -> GfnRange {
        self.slot.gfns()
    }

    fn is_dirty_logged(&self) -> bool {
        self.slot.dirty_bitmap.is_some()
    }

    fn mark_page_dirty(&self, cx: &Cx<'_>, gfn: Gfn) {
        if let Some(bitmap) = &self.slot.dirty_bitmap {
            bitmap.set(cx, gfn - self.slot.base_gfn);
        }
    }

    fn lpage_disallowed(&self, gfn: Gfn, level: Level) -> bool {
        self.slot.lpage_info.is_disallowed(gfn, level)
    }

    fn host_level(&self, cx: &Cx<'_>, gfn: Gfn, fault: Option<&TdpFault>) -> Level {
        let is_private = match fault {
            Some(fault) => fault.is_private,
            None => self.vm.attributes.is_private(gfn),
        };
        if is_private || self.slot.is_gmem_only() {
            // `kvm_gmem_max_mapping_level`: the size of the folio as it was when the fault found its page, which the machine may limit.
            return match fault.and_then(|fault| fault.pfn.map(|pfn| (pfn, fault.max_level))) {
                Some((pfn, max_level)) if max_level > Level::L4K => {
                    max_level.min(self.vm.gmem_max_mapping_level(cx, pfn, is_private))
                }
                _ => Level::L4K,
            };
        }
        match self.vm.mm.host_mapping_level(cx, self.slot.hva(gfn)) {
            HostLevel::Page4K => Level::L4K,
            HostLevel::Page2M => Level::L2M,
        }
    }
}

impl Vm {
    pub(crate) fn slot_view<'a>(&'a self, slot: &'a Memslot) -> KvmSlotView<'a> {
        KvmSlotView { vm: self, slot }
    }
}

/// A fault on its way: what the MMU needs, and what KVM knows beside it.
#[derive(Debug)]
struct Fault<'a> {
    tdp: TdpFault,
    slot: Option<&'a Memslot>,
    /// The snapshot of the invalidation sequence.
    mmu_seq: u64,
    /// The frame on which the fault holds a reference.
    page: Option<Pfn>,
}

/// How fault-in went on.
enum FaultIn {
    /// There is something to map.
    Map,
    /// The fault ended here.
    Done(RetPf),
}

impl Vcpu {
    /// `kvm_mmu_page_fault`: handles a fault of the running guest.
    ///
    /// # Errors
    /// What `KVM_RUN` answers; `state.exit` is a memory-fault exit where one was prepared.
    pub(crate) fn page_fault(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        fault: &Stage2Fault,
        info1: ExitInfo1,
    ) -> Result<RetPf, Errno> {
        let vm = &self.vm;
        cx.note("fault", "stage 2");
        let Some(root) = state.root.clone() else { return Ok(RetPf::Retry) };
        let is_private = vm.is_private_fault(cx, fault, info1);
        if fault.reserved {
            match self.handle_mmio_page_fault(cx, state, &root, fault.gpa) {
                RetPf::Continue => {}
                done => return Ok(done),
            }
        }
        let tdp = TdpFault {
            write: fault.access == sim_mmu::Access::Write,
            exec: fault.access == sim_mmu::Access::Exec,
            present: fault.present,
            rsvd: fault.reserved,
            ..TdpFault::at(fault.gpa, is_private)
        };
        self.page_fault_of_access(cx, state, &root, tdp)
    }

    /// What `kvm_mmu_page_fault` makes of an access to memory, on the root that it goes to: no access to private memory is emulated.
    ///
    /// # Errors
    /// As [`Vcpu::page_fault`].
    pub(crate) fn page_fault_of_access(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        root: &Arc<Root>,
        mut tdp: TdpFault,
    ) -> Result<RetPf, Errno> {
        let (gpa, is_private) = (tdp.gpa, tdp.is_private);
        let result = self.do_page_fault(cx, state, root, &mut tdp)?;
        if result == RetPf::Emulate && is_private {
            self.prepare_memory_fault(state, gpa, is_private);
            return Err(Errno::EFAULT);
        }
        Ok(result)
    }

    /// `handle_mmio_page_fault`: the entry says that no slot is here; is that still so?
    fn handle_mmio_page_fault(&self, cx: &Cx<'_>, state: &mut VcpuState, root: &Root, gpa: Gpa) -> RetPf {
        let slots =
            self.vm.memslots.read(cx, u32::from(root.as_id()), |set| (set.generation, set.by_gfn(gpa.gfn()).is_some()));
        let (generation, has_slot) = slots;
        if state.mmio_cache == Some((gpa.gfn().0, generation)) {
            self.vm.check_mmio(root.as_id(), gpa.gfn(), generation);
            return RetPf::Emulate;
        }
        let (spte, _) = self.vm.mmu.walk_lockless(cx, root, gpa);
        if !self.vm.mmu.masks().is_mmio(spte) {
            return RetPf::Retry;
        }
        if !self.vm.mmu.masks().check_mmio_spte(spte, generation) && !cx.has_mutant(RC_26) {
            return RetPf::Continue;
        }
        assert!(!has_slot, "INV-207: {:?} is in a slot, and an MMIO entry is believed", gpa.gfn());
        state.mmio_cache = Some((gpa.gfn().0, generation));
        self.vm.check_mmio(root.as_id(), gpa.gfn(), generation);
        RetPf::Emulate
    }

    /// `kvm_mmu_prepare_memory_fault_exit`.
    pub(crate) fn prepare_memory_fault(&self, state: &mut VcpuState, gpa: Gpa, is_private: bool) {
        state.exit = ExitInfo::MemoryFault {
            flags: if is_private { KVM_MEMORY_EXIT_FLAG_PRIVATE } else { 0 },
            gpa: gpa.gfn().gpa(),
            size: PAGE_SIZE,
        };
    }

    /// The slot of a frame in this vCPU's address space, through the cache of the last one.
    pub(crate) fn gfn_to_memslot(&self, cx: &Cx<'_>, state: &mut VcpuState, gfn: Gfn) -> (u64, Option<Arc<Memslot>>) {
        self.vm.memslots.read(cx, 0, |set| {
            if let Some((generation, slot)) = &state.last_used_slot
                && (*generation == set.generation || cx.has_mutant(RC_25))
                && slot.contains(gfn)
            {
                slot.assert_live();
                return (set.generation, Some(Arc::clone(slot)));
            }
            let slot = set.by_gfn(gfn).cloned();
            state.last_used_slot = slot.as_ref().map(|slot| (set.generation, Arc::clone(slot)));
            (set.generation, slot)
        })
    }

    /// [`Vcpu::handle_page_fault`], and a look at whether it had a reason to try again (INV-506).
    pub(crate) fn do_page_fault(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        root: &Arc<Root>,
        tdp: &mut TdpFault,
    ) -> Result<RetPf, Errno> {
        /// More than other faults can take away from one by winning races.
        const MOST: u32 = 16;
        let seq = self.vm.mmu.invalidate.peek_seq();
        let external = self.vm.tdx().filter(|_| root.is_mirror()).map(|tdx| (tdx, tdx.interference(cx)));
        let result = self.handle_page_fault(cx, state, root, tdp);
        // Of a mirror: others change the Secure EPT, or execute a leaf, or have done so meanwhile.
        let by_external = external.is_some_and(|(tdx, before)| {
            self.tdx_check_thawed(cx, root, tdp.gfn());
            before.explains(&tdx.interference(cx))
        });
        if result != Ok(RetPf::Retry) || by_external || self.explains_retry(seq, root, tdp.gfn()) {
            state.unexplained_retries = 0;
        } else {
            state.unexplained_retries += 1;
            let most = state.unexplained_retries <= MOST;
            assert!(most, "INV-506: a fault on {:?} was tried {MOST} times for no reason", tdp.gfn());
        }
        result
    }

    /// Whether something happened, or goes on, because of which a fault tries again.
    fn explains_retry(&self, seq: u64, root: &Root, gfn: Gfn) -> bool {
        let invalidate = &self.vm.mmu.invalidate;
        let slots_change = self.vm.memslots.peek_active(u32::from(root.as_id()), |set| {
            let updating = set.generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS != 0;
            updating || set.by_gfn(gfn).is_some_and(|slot| slot.is_invalid())
        });
        invalidate.in_progress() > 0 || invalidate.peek_seq() != seq || root.is_invalid() || slots_change
    }

    /// `kvm_mmu_do_page_fault` and `kvm_tdp_mmu_page_fault`. `tdp` gets the level that was chosen.
    fn handle_page_fault(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        root: &Arc<Root>,
        tdp: &mut TdpFault,
    ) -> Result<RetPf, Errno> {
        let vm = &self.vm;
        let (_, slot) = self.gfn_to_memslot(cx, state, tdp.gfn());

        // 3.2: without mmu_lock, only what needs no new mapping.
        let view = slot.as_deref().map(|slot| vm.slot_view(slot));
        let attribute_agrees = !vm.has_private_mem() || tdp.is_private == self.is_private_now(cx, tdp.gfn());
        // `page_fault_can_be_fast`: entries of a mirror change by their hooks alone.
        if !tdp.rsvd && (attribute_agrees || cx.has_mutant(FAST_FAULT_DISAGREES)) && !root.is_mirror() {
            let result = vm.mmu.fast_page_fault(cx, root, tdp, view.as_ref());
            if result != RetPf::Invalid {
                return Ok(result);
            }
        }

        let mut fault = Fault { tdp: tdp.clone(), slot: slot.as_deref(), mmu_seq: 0, page: None };
        match self.faultin(cx, state, &mut fault)? {
            FaultIn::Done(result) => return Ok(result),
            FaultIn::Map => {}
        }
        let lock = vm.mmu.mmu_lock.read(cx);
        // The root that the processor walks, also for a fault in the mirror.
        let walked = state.root.as_ref().unwrap_or(root);
        let stale = walked.is_invalid() && !cx.has_mutant(RC_24)
            || fault.slot.is_some_and(|slot| self.is_page_fault_stale(cx, &lock, &fault, slot));
        let result = if stale {
            Ok(RetPf::Retry)
        } else {
            match &view {
                Some(view) => {
                    vm.check_before_map(&fault.tdp, view.slot);
                    let result = vm.mmu.map(cx, &lock, root, &mut fault.tdp, Some(view), &**vm);
                    if result == Ok(RetPf::Fixed) {
                        vm.check_huge_leaf(&fault.tdp, view.slot);
                    }
                    result
                }
                None => vm.mmu.map(cx, &lock, root, &mut fault.tdp, None::<&NoSlot>, &**vm),
            }
        };
        if let Some(pfn) = fault.page.take() {
            vm.host.phys.put(cx, pfn);
        }
        tdp.goal_level = fault.tdp.goal_level;
        result
    }

    /// `is_page_fault_stale`, of a fault that has a slot and a root that is still in use: what was looked up may be gone.
    fn is_page_fault_stale(
        &self,
        cx: &Cx<'_>,
        lock: &RwLockReadGuard<'_, ()>,
        fault: &Fault<'_>,
        slot: &Memslot,
    ) -> bool {
        let is_gmem = fault.tdp.is_private || slot.is_gmem_only();
        if cx.has_mutant(RC_01) || cx.has_mutant(RC_32) && !is_gmem {
            return false;
        }
        let gfn = fault.tdp.gfn();
        let key = if cx.has_mutant(BUG_21) { Gfn(slot.hva(gfn).0 / PAGE_SIZE) } else { gfn };
        self.vm.mmu.invalidate.retry_gfn(cx, lock, fault.mmu_seq, key)
    }

    fn is_private_now(&self, cx: &Cx<'_>, gfn: Gfn) -> bool {
        self.vm.attributes.get(cx, gfn) & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0
    }

    /// `kvm_mmu_faultin_pfn`: finds what to map, without `mmu_lock`.
    fn faultin(&self, cx: &Cx<'_>, state: &mut VcpuState, fault: &mut Fault<'_>) -> Result<FaultIn, Errno> {
        let vm = &self.vm;
        let gfn = fault.tdp.gfn();
        // F2: before everything that may change.
        fault.mmu_seq = vm.mmu.invalidate.seq(cx);
        // F3.
        let checked = vm.has_private_mem() && !cx.has_mutant(RC_28);
        if checked && fault.tdp.is_private != self.is_private_now(cx, gfn) {
            self.prepare_memory_fault(state, fault.tdp.gpa, fault.tdp.is_private);
            return Err(Errno::EFAULT);
        }
        if cx.has_mutant(RC_27) {
            fault.mmu_seq = vm.mmu.invalidate.seq(cx);
        }
        // F4.
        let in_reach = gfn < vm.mmu.config().max_gfn;
        let Some(slot) = fault.slot.filter(|_| in_reach) else {
            return self.handle_noslot_fault(cx, state, fault);
        };
        // F5.
        if slot.is_invalid() {
            if cx.has_mutant(RC_22) {
                return self.handle_noslot_fault(cx, state, fault);
            }
            let spins = !fault.tdp.prefetch || vm.kernel().pre_fault_spins_on_invalid_slot() || cx.has_mutant(RC_23);
            return if spins { Ok(FaultIn::Done(RetPf::Retry)) } else { Err(Errno::EAGAIN) };
        }
        // F6.
        if vm.mmu.invalidate.retry_gfn_lockless(cx, fault.mmu_seq, gfn) {
            return Ok(FaultIn::Done(RetPf::Retry));
        }
        // F7, F8.
        if fault.tdp.is_private || slot.is_gmem_only() {
            self.faultin_pfn_gmem(cx, state, fault, slot)?;
        } else {
            match self.faultin_pfn_hva(cx, state, fault, slot)? {
                FaultIn::Map => {}
                done => return Ok(done),
            }
        }
        if cx.has_mutant(RC_02) {
            fault.mmu_seq = vm.mmu.invalidate.seq(cx);
        }
        if cx.has_mutant(RC_11)
            && (fault.tdp.is_private || slot.is_gmem_only())
            && let Some(pfn) = fault.page.take()
        {
            vm.host.phys.put(cx, pfn);
        }
        // F9.
        if vm.mmu.invalidate.retry_gfn_lockless(cx, fault.mmu_seq, gfn) {
            if let Some(pfn) = fault.page.take() {
                vm.host.phys.put(cx, pfn);
            }
            return Ok(FaultIn::Done(RetPf::Retry));
        }
        Ok(FaultIn::Map)
    }

    /// `kvm_handle_noslot_fault`.
    fn handle_noslot_fault(&self, cx: &Cx<'_>, state: &mut VcpuState, fault: &mut Fault<'_>) -> Result<FaultIn, Errno> {
        if fault.tdp.is_private {
            self.prepare_memory_fault(state, fault.tdp.gpa, true);
            return Err(Errno::EFAULT);
        }
        let gfn = fault.tdp.gfn();
        let covered = fault.slot.is_some() && gfn < self.vm.mmu.config().max_gfn;
        assert!(!covered, "INV-604: an access to {gfn:?}, which a slot covers, becomes MMIO");
        let generation = self.vm.memslots.read(cx, 0, |set| set.generation);
        // While slots are swapped, "no slot" is what the old set says and the generation is the new one's.
        if generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS == 0 {
            state.mmio_cache = Some((gfn.0, generation));
        }
        fault.tdp.mmio_generation = generation;
        if gfn >= self.vm.mmu.config().max_gfn || !self.vm.mmu.masks().mmio_caching() {
            return Ok(FaultIn::Done(RetPf::Emulate));
        }
        Ok(FaultIn::Map)
    }

    /// `kvm_mmu_faultin_pfn_gmem`.
    fn faultin_pfn_gmem(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        fault: &mut Fault<'_>,
        slot: &Memslot,
    ) -> Result<(), Errno> {
        let found = if slot.has_gmem() { self.vm.gmem_get_pfn(cx, slot, fault.tdp.gfn()) } else { Err(Errno::EFAULT) };
        match found {
            Ok(page) => {
                fault.page = Some(page.pfn);
                fault.tdp.pfn = Some(page.pfn);
                fault.tdp.map_writable = !slot.is_readonly();
                fault.tdp.max_level = fault.tdp.max_level.min(page.level);
                Ok(())
            }
            Err(errno) => {
                self.prepare_memory_fault(state, fault.tdp.gpa, fault.tdp.is_private);
                Err(errno)
            }
        }
    }

    /// `__kvm_mmu_faultin_pfn`.
    fn faultin_pfn_hva(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        fault: &mut Fault<'_>,
        slot: &Memslot,
    ) -> Result<FaultIn, Errno> {
        let intent = if fault.tdp.write { Intent::Write } else { Intent::Read };
        match self.vm.follow_pfn(cx, slot, fault.tdp.gfn(), intent) {
            HvaPfn::Page(page) => {
                fault.page = Some(page.pfn);
                fault.tdp.pfn = Some(page.pfn);
                fault.tdp.map_writable = page.writable;
                Ok(FaultIn::Map)
            }
            HvaPfn::ReadOnly => Ok(FaultIn::Done(RetPf::Emulate)),
            HvaPfn::HwPoison => {
                // `kvm_send_hwpoison_signal`: SIGBUS to the task itself, which ends the run before the retry.
                cx.send_signal(cx.task());
                Ok(FaultIn::Done(RetPf::Retry))
            }
            HvaPfn::Error(Errno::EINTR) => {
                state.exit = ExitInfo::Intr;
                Err(Errno::EINTR)
            }
            HvaPfn::Error(errno) => Err(errno),
        }
    }
}
