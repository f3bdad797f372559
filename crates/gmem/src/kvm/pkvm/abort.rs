//! Faults of guests on arm64 (`kvm_handle_guest_abort`): a protected guest's page is pinned and donated, another's is found by its slot or its guest_memfd, and shared.

use super::mappings::{BLOCK, Mapping};
use super::vcpu::PkvmVcpu;
use super::vm::KvmPkvm;
use crate::kvm::hva::{HvaPfn, Intent};
use crate::kvm::memslots::Memslot;
use crate::kvm::mutants::{PKVM_ABORT_NO_RETRY, PKVM_NO_PIN, PKVM_SEQ_LATE};
use crate::kvm::run::Next;
use crate::kvm::uapi::{KVM_MEM_READONLY, KVM_MEMORY_EXIT_FLAG_PRIVATE};
use crate::kvm::vcpu::{ExitInfo, Vcpu, VcpuState};
use sim_coco::AccessKind;
use sim_coco::pkvm::{AbortKind, GuestAbort, Prot, S2Level};
use sim_kernel::mm::{GupError, HostLevel};
use sim_kernel::{Cx, Errno, PAGE_SIZE, PMD_SIZE, Pfn};
use sim_mmu::{Gfn, SlotView};

/// An abort, where it belongs (`struct kvm_s2_fault_desc`).
pub(super) struct S2Fault<'a> {
    pub(super) pkvm: &'a KvmPkvm,
    pub(super) vcpu: &'a PkvmVcpu,
    pub(super) abort: GuestAbort,
    pub(super) slot: &'a Memslot,
}

impl S2Fault<'_> {
    pub(super) fn gfn(&self) -> Gfn {
        self.abort.ipa.gfn()
    }

    pub(super) fn is_write(&self) -> bool {
        self.abort.access == AccessKind::Write
    }

    fn is_perm(&self) -> bool {
        self.abort.kind == AbortKind::Permission
    }
}

impl Vcpu {
    /// `kvm_handle_guest_abort`.
    ///
    /// # Errors
    /// What `KVM_RUN` answers.
    pub(super) fn pkvm_guest_abort(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        pkvm: &KvmPkvm,
        abort: GuestAbort,
    ) -> Result<Next, Errno> {
        cx.note("fault", "stage 2");
        let vm = &self.vm;
        let gfn = abort.ipa.gfn();
        if gfn >= vm.mmu.config().max_gfn {
            return Ok(self.pkvm_guest_dies(state));
        }
        let srcu = vm.srcu.read(cx);
        let (_, slot) = self.gfn_to_memslot(cx, state, gfn);
        // A slot that is being deleted has no host addresses (`KVM_HVA_ERR_BAD`), just as none.
        let slot = slot.filter(|slot| !slot.is_invalid());
        let slot = slot.filter(|slot| abort.access != AccessKind::Write || slot.flags & KVM_MEM_READONLY == 0);
        let Some(slot) = slot else { return self.pkvm_io_mem_abort(state, &abort) };
        if abort.kind == AbortKind::AccessFlag {
            let lock = vm.mmu.mmu_lock.read(cx);
            pkvm.stage2_mkyoung(cx, &lock, gfn);
            return Ok(Next::Enter);
        }
        let vcpu = self.pkvm().expect("a vCPU of a VM with pKVM");
        let fault = S2Fault { pkvm, vcpu, abort, slot: &slot };
        let done = if pkvm.is_protected() && slot.has_gmem() && pkvm.host.backs_with_gmem() {
            self.pkvm_gmem_private_abort(cx, state, &fault)
        } else if pkvm.is_protected() {
            self.pkvm_mem_abort(cx, &fault)
        } else if slot.has_gmem() {
            self.gmem_abort(cx, state, &fault)
        } else {
            self.user_mem_abort(cx, &fault)
        };
        drop(srcu);
        match done {
            Ok(()) => Ok(Next::Enter),
            // One with an exit is for user space.
            Err(Errno::EAGAIN) if state.exit == ExitInfo::Unknown => {
                // The guest comes back to the same place; nothing is different until the invalidation that was in the way has ended.
                if !pkvm.is_protected() || slot.has_gmem() {
                    vm.mmu.invalidate.wait_while_any(cx);
                }
                Ok(Next::Enter)
            }
            Err(errno) => Err(errno),
        }
    }

    /// `pkvm_mem_abort`: the page behind a protected guest's address is pinned for as long as the VM lives, and given to it.
    ///
    /// # Errors
    /// `ENOMEM` without pages for tables, or beyond `RLIMIT_MEMLOCK`; `EFAULT` if there is no page, or it was taken from the guest by force; `EIO` for a page of a file
    /// that is not swapped; `EPERM` if the page is not the host's alone; `EAGAIN` if another vCPU was first.
    fn pkvm_mem_abort(&self, cx: &Cx<'_>, fault: &S2Fault<'_>) -> Result<(), Errno> {
        let (vm, gfn, pkvm) = (&self.vm, fault.gfn(), fault.pkvm);
        fault.vcpu.topup_memcache(cx).map_err(|_| Errno::ENOMEM)?;
        vm.mm.account_locked_vm(cx, 1, true, pkvm.host.memlock())?;
        let unaccount = || vm.mm.account_locked_vm(cx, 1, false, u64::MAX).expect("less is always possible");
        let pfn = match vm.mm.pin_user_page(cx, fault.slot.hva(gfn)) {
            Ok(pfn) => pfn,
            Err(GupError::HwPoison) => {
                unaccount();
                // `kvm_send_hwpoison_signal`: SIGBUS, which ends the run before the retry.
                cx.send_signal(cx.task());
                return Ok(());
            }
            Err(_) => {
                unaccount();
                return Err(Errno::EFAULT);
            }
        };
        let result = if self.is_swapbacked(pfn) {
            let lock = vm.mmu.mmu_lock.write(cx);
            pkvm.stage2_donate(cx, &lock, gfn, pfn, false)
        } else {
            Err(Errno::EIO)
        };
        if result.is_err() {
            vm.host.phys.put(cx, pfn);
            unaccount();
        } else if cx.has_mutant(PKVM_NO_PIN) {
            vm.host.phys.put(cx, pfn);
        }
        result
    }

    /// `folio_test_swapbacked`: anonymous memory and that of ordinary memory files, but not of a guest_memfd.
    fn is_swapbacked(&self, pfn: Pfn) -> bool {
        self.vm.host.phys.mapping(pfn).is_none_or(|mapping| mapping == sim_kernel::fs::Shmem::MAPPING)
    }

    /// `gmem_abort`: a page of the slot's guest_memfd is shared with a guest that is not protected.
    ///
    /// # Errors
    /// Those of the look-up, with a memory-fault exit; `ENOMEM`; `EAGAIN` if it has to be tried again.
    fn gmem_abort(&self, cx: &Cx<'_>, state: &mut VcpuState, fault: &S2Fault<'_>) -> Result<(), Errno> {
        let (vm, gfn) = (&self.vm, fault.gfn());
        if !fault.is_perm() {
            fault.vcpu.topup_memcache(cx)?;
        }
        let mut seq = vm.mmu.invalidate.seq(cx);
        let page = vm.gmem_get_pfn(cx, fault.slot, gfn).inspect_err(|_| self.pkvm_memory_fault(state, fault, false))?;
        if cx.has_mutant(PKVM_SEQ_LATE) {
            seq = vm.mmu.invalidate.seq(cx);
        }
        let exec = if fault.abort.access == AccessKind::Fetch { Prot::X } else { Prot::empty() };
        let prot = if fault.slot.is_readonly() { Prot::R } else { Prot::RW } | exec;
        let result = {
            let mut lock = vm.mmu.mmu_lock.write(cx);
            if vm.mmu.invalidate.retry(cx, &lock, seq) && !cx.has_mutant(PKVM_ABORT_NO_RETRY) {
                Err(Errno::EAGAIN)
            } else if fault.is_perm() {
                fault.pkvm.stage2_relax_perms(cx, gfn, prot)
            } else {
                let mapping = Mapping { gfn, pfn: page.pfn, nr_pages: 1, gmem: true, taken: false };
                fault.pkvm.stage2_share(cx, &mut lock, mapping, prot)
            }
        };
        vm.host.phys.put(cx, page.pfn);
        self.pkvm_mark_dirty(cx, fault.slot, gfn, prot, result);
        result
    }

    /// `kvm_prepare_memory_fault_exit`.
    pub(super) fn pkvm_memory_fault(&self, state: &mut VcpuState, fault: &S2Fault<'_>, private: bool) {
        let flags = if private { KVM_MEMORY_EXIT_FLAG_PRIVATE } else { 0 };
        state.exit = ExitInfo::MemoryFault { flags, gpa: fault.gfn().gpa(), size: PAGE_SIZE };
    }

    fn pkvm_mark_dirty(&self, cx: &Cx<'_>, slot: &Memslot, gfn: Gfn, prot: Prot, result: Result<(), Errno>) {
        if prot.contains(Prot::W) && result.is_ok() {
            self.vm.slot_view(slot).mark_page_dirty(cx, gfn);
        }
    }

    /// `user_mem_abort`: what the VMM has at the address is shared with a guest that is not protected, as a block if it is a huge page there.
    ///
    /// # Errors
    /// `ENOMEM`; `EFAULT` if there is no page; `EAGAIN` if it has to be tried again; those of the hypervisor.
    fn user_mem_abort(&self, cx: &Cx<'_>, fault: &S2Fault<'_>) -> Result<(), Errno> {
        let (vm, gfn, slot) = (&self.vm, fault.gfn(), fault.slot);
        fault.vcpu.topup_memcache(cx)?;
        let mut seq = vm.mmu.invalidate.seq(cx);
        let intent = if fault.is_write() { Intent::Write } else { Intent::Read };
        let page = match vm.follow_pfn(cx, slot, gfn, intent) {
            HvaPfn::Page(page) => page,
            HvaPfn::HwPoison => {
                cx.send_signal(cx.task());
                return Ok(());
            }
            HvaPfn::ReadOnly | HvaPfn::Error(_) => return Err(Errno::EFAULT),
        };
        if cx.has_mutant(PKVM_SEQ_LATE) {
            seq = vm.mmu.invalidate.seq(cx);
        }
        let is_logged = slot.dirty_bitmap.is_some();
        let mut prot = Prot::R;
        prot.set(Prot::W, page.writable && (!is_logged || fault.is_write()));
        prot.set(Prot::X, fault.abort.access == AccessKind::Fetch);
        let result = {
            let mut lock = vm.mmu.mmu_lock.write(cx);
            if vm.mmu.invalidate.retry(cx, &lock, seq) && !cx.has_mutant(PKVM_ABORT_NO_RETRY) {
                Err(Errno::EAGAIN)
            } else {
                let block = !is_logged && self.fits_block(cx, slot, gfn);
                let pages = if block { BLOCK } else { 1 };
                let first = |number: u64| number & !(pages - 1);
                let (gfn, pfn) = (Gfn(first(gfn.0)), Pfn(first(page.pfn.0)));
                let granule = fault.is_perm().then(|| fault.abort.level.pages());
                if granule == Some(pages) {
                    fault.pkvm.stage2_relax_perms(cx, gfn, prot)
                } else {
                    let mapping = Mapping { gfn, pfn, nr_pages: pages, gmem: false, taken: false };
                    fault.pkvm.stage2_share(cx, &mut lock, mapping, prot)
                }
            }
        };
        vm.host.phys.put(cx, page.pfn);
        self.pkvm_mark_dirty(cx, slot, gfn, prot, result);
        result
    }

    /// `transparent_hugepage_adjust`, `fault_supports_stage2_huge_mapping`: whether the host maps a huge page there, and the whole of it lies alike in the slot.
    fn fits_block(&self, cx: &Cx<'_>, slot: &Memslot, gfn: Gfn) -> bool {
        debug_assert_eq!(S2Level::BLOCK.pages(), BLOCK);
        let alike = (slot.base_gfn.gpa().0 ^ slot.userspace_addr.0).is_multiple_of(PMD_SIZE);
        let first = Gfn(gfn.0 & !(BLOCK - 1));
        let inside = first >= slot.base_gfn && first + BLOCK <= slot.gfns().end;
        alike && inside && self.vm.mm.host_mapping_level(cx, slot.hva(gfn)) == HostLevel::Page2M
    }
}
