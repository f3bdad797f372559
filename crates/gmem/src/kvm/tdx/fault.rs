//! EPT violations of a TD (`tdx_handle_ept_violation`): one of private memory is served until something comes of it, so that the module does not take the vCPU
//! for one that its host single-steps.

use super::exit::is_unexpected_pending;
use super::vcpu::{tdx_state, tdx_state_mut};
use crate::kvm::mutants::{BUG_58, TDX_RETRIES_INVALID_SLOT};
use crate::kvm::run::Next;
use crate::kvm::vcpu::{Request, Vcpu, VcpuState};
use sim_coco::tdx::TdExit;
use sim_kernel::sync::SrcuReadGuard;
use sim_kernel::{Cx, Errno};
use sim_mmu::{Gfn, GfnRange, Gpa, Level, RetPf, Root, TdpFault};
use std::sync::Arc;

/// Bits of an exit qualification.
const WRITES: u64 = 1 << 1;
const FETCHES: u64 = 1 << 2;

impl Vcpu {
    /// `tdx_handle_ept_violation`.
    ///
    /// # Errors
    /// What `KVM_RUN` answers; `EIO` for an access to a page that the guest has not accepted, and if the VM is dead.
    pub(super) fn tdx_handle_ept_violation(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        srcu: &mut SrcuReadGuard<'_>,
        exit: &TdExit,
    ) -> Result<Next, Errno> {
        cx.note("fault", "stage 2");
        let tdx = self.vm.tdx().expect("a vCPU of a TD");
        let is_private = tdx.is_private_gpa(exit.gpa);
        if is_private && is_unexpected_pending(exit) {
            self.vm.die(cx);
            return Err(Errno::EIO);
        }
        if !is_private && exit.qualification & FETCHES != 0 {
            self.vm.bug(cx);
            return Err(Errno::EIO);
        }
        let gpa = tdx.without_shared_bit(exit.gpa);
        self.tdx_check_accept_level(cx, state, exit, gpa.gfn())?;
        // A private page is mapped with all rights: whatever the guest did counts as a write.
        let write = is_private || exit.qualification & WRITES != 0;
        loop {
            match self.tdx_page_fault(cx, state, gpa, write, is_private)? {
                RetPf::Retry => {}
                RetPf::Spurious if exit.accept_level().is_some() => {
                    self.tdx_note_spurious_accept(state, gpa);
                    return Ok(Next::Enter);
                }
                // KVM cannot decode what a TD executes: the guest tries again, and finds the MMIO entry.
                RetPf::Emulate | RetPf::Fixed | RetPf::Spurious => return Ok(Next::Enter),
                other => unreachable!("MMU-INV-055: {other:?} leaves the fault handler"),
            }
            if !is_private || cx.signal_pending() {
                break;
            }
            if self.peek_requests() & Request::VmDead as u64 != 0 {
                return Err(Errno::EIO);
            }
            let slot = self.gfn_to_memslot(cx, state, gpa.gfn()).1;
            if slot.is_some_and(|slot| slot.is_invalid()) && !cx.has_mutant(TDX_RETRIES_INVALID_SLOT) {
                break;
            }
            self.tdx_wait_before_retry(cx, state, gpa);
        }
        self.wait_before_retry(cx, state, srcu, gpa);
        Ok(Next::Enter)
    }

    /// `tdx_check_accept_level`: a guest that accepts a page of 4 KiB where one of 2 MiB is, or would come, has it split, and gets none there any more. The mark comes after the
    /// split: who sees it need not look.
    ///
    /// # Errors
    /// `ENOMEM`.
    fn tdx_check_accept_level(&self, cx: &Cx<'_>, state: &mut VcpuState, exit: &TdExit, gfn: Gfn) -> Result<(), Errno> {
        let tdx = self.vm.tdx().expect("a vCPU of a TD");
        let accepts_small = exit.accept_level() == Some(Level::L4K);
        if !accepts_small || !tdx.host.has_large_pages() || cx.has_mutant(BUG_58) {
            return Ok(());
        }
        let Some(slot) = self.gfn_to_memslot(cx, state, gfn).1 else { return Ok(()) };
        if slot.lpage_info.is_guest_inhibited(gfn, Level::L2M) {
            return Ok(());
        }
        let mut lock = self.vm.mmu.mmu_lock.write(cx);
        self.vm.mmu.split_cross_boundary_leafs(cx, &mut lock, GfnRange::with_len(gfn, 1))?;
        slot.lpage_info.set_guest_inhibit(gfn, Level::L2M);
        Ok(())
    }

    /// The guest wants to accept what is mapped, and the module did not let it: that happens while the Secure EPT changes, and not again and again (INV-506).
    fn tdx_note_spurious_accept(&self, state: &mut VcpuState, gpa: Gpa) {
        /// As of faults that are tried again.
        const MOST: u32 = 16;
        let begun = self.vm.tdx().expect("a vCPU of a TD").begun.all();
        let last = &mut tdx_state_mut(state).spurious_accepts;
        *last = if last.0 == begun { (begun, last.1 + 1) } else { (begun, 0) };
        assert!(
            last.1 < MOST,
            "INV-506: the guest accepts a page at {gpa:?} for the {MOST}th time, and nothing comes of it"
        );
    }

    /// What the local retries come to: nothing changes until whoever is in the way goes on, so the task is not runnable until then. Of a
    /// lock of the module that is the leaf that has it.
    fn tdx_wait_before_retry(&self, cx: &Cx<'_>, state: &VcpuState, gpa: Gpa) {
        self.vm.mmu.invalidate.wait_while_kept_away(cx, gpa.gfn());
        if cx.has_mutant(TDX_RETRIES_INVALID_SLOT) {
            // What a loop comes to that only ends with other slots.
            self.vm.memslots.wait_while_invalid(cx, 0, gpa.gfn());
        }
        let mirror = tdx_state(state).mirror.clone().expect("a vCPU that runs has the mirror");
        self.vm.mmu.wait_while_frozen(cx, &mirror, gpa.gfn());
        self.vm.tdx().expect("a vCPU of a TD").host.wait_for_lock(cx);
    }

    /// `__vmx_handle_ept_violation` and `kvm_mmu_page_fault`: the fault goes to the tree of its kind of memory.
    fn tdx_page_fault(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gpa: Gpa,
        write: bool,
        is_private: bool,
    ) -> Result<RetPf, Errno> {
        let Some(root) = self.tdx_root(state, is_private) else { return Ok(RetPf::Retry) };
        if is_private {
            self.vm.tdx().expect("a vCPU of a TD").pamt_topup(cx)?;
        }
        self.page_fault_of_access(cx, state, &root, TdpFault { write, ..TdpFault::at(gpa, is_private) })
    }

    /// `tdp_mmu_get_root_for_fault`.
    pub(crate) fn tdx_root(&self, state: &VcpuState, is_private: bool) -> Option<Arc<Root>> {
        if is_private { tdx_state(state).mirror.clone() } else { state.root.clone() }
    }
}
