//! `KVM_PRE_FAULT_MEMORY`: populates stage 2 without an access (`kvm_vcpu_pre_fault_memory`).

use super::memslots::MemslotSet;
use super::mutants::{BUG_27, SEV_PRE_FAULT_EARLY};
use super::uapi::*;
use super::vcpu::{Vcpu, VcpuState};
use crate::invariants::api_results::inv_605;
use sim_kernel::{Cx, Errno, PAGE_SIZE};
use sim_mmu::{Gpa, Level, RetPf, TdpFault};

/// Tries on a root that is gone after which it is clear that no other will come.
const STALE_MAX: u32 = 100;

impl Vcpu {
    /// `KVM_PRE_FAULT_MEMORY`. `range` is updated to what is left, whatever the answer.
    ///
    /// # Errors
    /// `EINVAL` for flags and malformed ranges; otherwise only if nothing was populated: `EINTR`, `ENOENT` where no slot is,
    /// `EAGAIN` where one is being deleted, `EOPNOTSUPP` with shadow paging, `EFAULT` and others from the fault path.
    pub fn pre_fault_memory(&self, cx: &Cx<'_>, range: &mut kvm_pre_fault_memory) -> Result<(), Errno> {
        if range.flags != 0 {
            return Err(Errno::EINVAL);
        }
        if !range.gpa.is_multiple_of(PAGE_SIZE)
            || !range.size.is_multiple_of(PAGE_SIZE)
            || range.gpa.wrapping_add(range.size) <= range.gpa
        {
            return Err(Errno::EINVAL);
        }
        let mut state = self.mutex.lock(cx);
        self.tdx_vcpu_load(cx);
        let before = *range;
        let result = {
            let _srcu = self.vm.srcu.read(cx);
            let full = range.size;
            let mut result = Ok(());
            while range.size > 0 {
                if cx.signal_pending() {
                    result = Err(Errno::EINTR);
                    break;
                }
                match self.pre_fault_one(cx, &mut state, Gpa(range.gpa), range.size) {
                    Ok(bytes) => {
                        range.gpa += bytes;
                        range.size -= bytes;
                    }
                    Err(errno) => {
                        result = Err(errno);
                        break;
                    }
                }
                cx.cond_resched();
            }
            if range.size < full { Ok(()) } else { result }
        };
        drop(state);
        cx.task_work_run();
        if let Err(message) = inv_605(&before, range, result) {
            panic!("INV-605: {message}");
        }
        result
    }

    /// `kvm_arch_vcpu_pre_fault_memory`: returns the bytes up to the end of the mapping, `size` at most.
    fn pre_fault_one(&self, cx: &Cx<'_>, state: &mut VcpuState, gpa: Gpa, size: u64) -> Result<u64, Errno> {
        let vm = &self.vm;
        if !vm.pre_fault_allowed(cx) && !cx.has_mutant(SEV_PRE_FAULT_EARLY) {
            return Err(Errno::EOPNOTSUPP);
        }
        // `kvm_is_gfn_alias`.
        if vm.tdx().is_some_and(|tdx| !tdx.is_private_gpa(gpa)) {
            return Err(Errno::EINVAL);
        }
        if state.root.as_ref().is_some_and(|root| root.is_invalid_lockless(cx)) {
            let root = state.root.take().expect("just seen");
            vm.mmu.put_root(cx, root);
        }
        self.load_mmu(cx, state)?;
        if let Some(tdx) = vm.tdx() {
            tdx.pamt_topup(cx)?;
        }
        let root = state.root.clone().expect("just loaded");
        if !vm.host.config.tdp_enabled {
            return Err(Errno::EOPNOTSUPP);
        }
        let is_private = vm.has_private_mem() && vm.attributes.get(cx, gpa.gfn()) & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0;
        assert!(
            !is_private || vm.peek_pre_fault_allowed(),
            "SNP-INV-012: {gpa:?} is pre-faulted while the guest is being measured"
        );
        let root = if vm.tdx().is_some() { self.tdx_root(state, is_private).expect("just loaded") } else { root };
        let level = self.map_page(cx, state, root, gpa, is_private)?;
        let bytes = level.span() * PAGE_SIZE;
        let end = (gpa.0 & !(bytes - 1)).saturating_add(bytes);
        Ok((end - gpa.0).min(size))
    }

    /// `kvm_tdp_page_prefault`.
    fn map_page(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        mut root: std::sync::Arc<sim_mmu::Root>,
        gpa: Gpa,
        is_private: bool,
    ) -> Result<Level, Errno> {
        let vm = &self.vm;
        let mut stale = 0;
        loop {
            if cx.signal_pending() {
                return Err(Errno::EINTR);
            }
            if vm.is_dead() {
                return Err(Errno::EIO);
            }
            let mut fault = TdpFault { prefetch: true, ..TdpFault::at(gpa, is_private) };
            match self.do_page_fault(cx, state, &root, &mut fault)? {
                RetPf::Retry => {
                    self.wait_while_invalid(cx, gpa);
                    self.vm.mmu.invalidate.wait_while_kept_away(cx, gpa.gfn());
                    if root.is_mirror() {
                        vm.mmu.wait_while_frozen(cx, &root, gpa.gfn());
                        self.tdx_reload_stale_root(cx, state)?;
                    }
                    let gone = root.is_invalid_lockless(cx);
                    if gone && cx.has_mutant(BUG_27) {
                        stale += 1;
                        assert!(stale < STALE_MAX, "INV-506: a pre-fault tries again and again on a root that is gone");
                    } else if gone {
                        state.root = None;
                        self.vm.mmu.put_root(cx, root);
                        self.load_mmu(cx, state)?;
                        root = state.root.clone().expect("just loaded");
                    }
                    cx.cond_resched();
                }
                RetPf::Fixed | RetPf::Spurious | RetPf::WriteProtected => {
                    return Ok(fault.goal_level);
                }
                RetPf::Emulate => {
                    if is_private {
                        self.prepare_memory_fault(state, gpa, true);
                        return Err(Errno::EFAULT);
                    }
                    return Err(Errno::ENOENT);
                }
                other => unreachable!("MMU-INV-055: {other:?} leaves the fault handler"),
            }
        }
    }

    /// On a kernel where pre-faulting a slot that is being deleted tries again and again: nothing comes of it until other slots are
    /// published, so the task sleeps until then instead of spinning. If whoever publishes waits for this task, that is a deadlock.
    fn wait_while_invalid(&self, cx: &Cx<'_>, gpa: Gpa) {
        let Some(spinners) = &self.vm.pre_fault_spinners else { return };
        let is_invalid = || {
            let invalid = |set: &MemslotSet| set.by_gfn(gpa.gfn()).is_some_and(|slot| slot.is_invalid());
            self.vm.memslots.peek_active(0, invalid)
        };
        if is_invalid() {
            spinners.wait_event(cx, || cx.signal_pending() || !is_invalid());
        }
    }
}
