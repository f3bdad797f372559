//! Nested page faults that the RMP caused (`sev_handle_rmp_fault`).

use super::info::SevInfo;
use crate::kvm::memslots::Memslot;
use crate::kvm::mutants::{SEV_FAULT_NO_PSMASH, SEV_SMASH_NO_ZAP};
use crate::kvm::vcpu::{Vcpu, VcpuState};
use sim_kernel::sync::SrcuReadGuard;
use sim_kernel::{Cx, PAGES_PER_PMD, Pfn};
use sim_mmu::walker::ExitInfo1;
use sim_mmu::{Gfn, GfnRange, Gpa, Level};
use std::sync::Arc;

/// Faults in a row that lead nowhere, after which the vCPU waits for a change.
const VAIN_MAX: u32 = 3;

/// A fault whose error code has the RMP bit, after the MMU has resumed the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RmpFault {
    pub(crate) gpa: Gpa,
    pub(crate) error: ExitInfo1,
}

/// Faults in a row of which nothing came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VainFaults {
    gpa: Gpa,
    /// The state of what decides about the access, as it was after the first of them: counts of changes.
    seen: (u64, u64),
    count: u32,
}

impl Vcpu {
    /// `sev_handle_rmp_fault`: splits a page of 2 MiB of which the guest uses a part. Whatever else is wrong, the guest just tries again. Returns whether
    /// there is a reason to believe that the next try succeeds.
    pub(crate) fn sev_handle_rmp_fault(&self, cx: &Cx<'_>, state: &mut VcpuState, fault: RmpFault) -> bool {
        let sev = self.vm.sev().expect("only SNP guests have such faults");
        let gfn = fault.gpa.gfn();
        if self.vm.attributes.get(cx, gfn) & crate::kvm::uapi::KVM_MEMORY_ATTRIBUTE_PRIVATE == 0 {
            return false;
        }
        let Some(slot) = self.gmem_slot(cx, state, gfn) else { return false };
        let Ok(page) = self.vm.gmem_get_pfn(cx, &slot, gfn) else { return false };
        let resolved = self.split_rmp_page(cx, sev, gfn, page.pfn, fault);
        self.vm.host.phys.put(cx, page.pfn);
        resolved
    }

    /// The slot of a frame, if its private pages are a guest_memfd's. That of a slot which is on its way out has no file any more.
    pub(super) fn gmem_slot(&self, cx: &Cx<'_>, state: &mut VcpuState, gfn: Gfn) -> Option<Arc<Memslot>> {
        self.gfn_to_memslot(cx, state, gfn).1.filter(|slot| slot.has_gmem() && !slot.is_invalid())
    }

    /// Between two tries of an access that KVM can do nothing about. Linux lets the guest fault for ever (SNP-INV-038); here its task waits, after some
    /// tries, for something to change, and if nothing does, that is a deadlock. Outside SRCU, as whoever changes slots waits for its readers.
    pub(crate) fn sev_wait_after_vain_fault(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        srcu: &mut SrcuReadGuard<'_>,
        gpa: Gpa,
    ) {
        let sev = self.vm.sev().expect("only SNP guests try again in vain");
        let seen = (sev.host.changes(), self.vm.mmu.invalidate.peek_seq());
        let es = state.sev.as_deref_mut().expect("as its VM");
        let before = es.vain_faults.filter(|vain| (vain.gpa, vain.seen) == (gpa, seen)).map_or(0, |vain| vain.count);
        // What is remembered is from before the tries that follow: whatever changes after them ends the wait.
        es.vain_faults = (before + 1 < VAIN_MAX).then_some(VainFaults { gpa, seen, count: before + 1 });
        if es.vain_faults.is_some() || cx.signal_pending() {
            return;
        }
        let changed =
            || self.vm.mmu.invalidate.peek_seq() != seen.1 || self.peek_requests() != 0 || cx.signal_pending();
        srcu.outside(|| sev.host.wait_for_change(cx, seen.0, changed));
    }

    /// Whether the frame is mapped together with its neighbours: then an RMP entry of 4 KiB refuses it until somebody zaps. Not KVM's to know.
    fn is_mapped_large(&self, gfn: Gfn) -> bool {
        let block = gfn.block(Level::L2M).start;
        let inside = if gfn == block { gfn + 1 } else { gfn };
        self.vm.mmu.first_leaf_in(0, GfnRange::with_len(inside, 1)) == Some(block)
    }

    fn split_rmp_page(&self, cx: &Cx<'_>, sev: &SevInfo, gfn: Gfn, pfn: Pfn, fault: RmpFault) -> bool {
        let Some((true, level)) = sev.host.lookup_rmpentry(cx, pfn) else { return false };
        if level == Level::L4K {
            // Somebody was at work there, or the page is not the guest's at this address: which of them is not looked at.
            let entry = sev.host.snp().rmp().page(pfn);
            let is_right = Some(entry.asid) == sev.asid() && entry.gpa.gfn() == gfn && !entry.immutable;
            return is_right && !fault.error.contains(ExitInfo1::VMPL) && !self.is_mapped_large(gfn);
        }
        let smashed = if cx.has_mutant(SEV_FAULT_NO_PSMASH) { Ok(()) } else { sev.host.rmptable_psmash(cx, pfn) };
        if smashed.is_err() && sev.host.lookup_rmpentry(cx, pfn) == Some((true, Level::L4K)) {
            // Somebody else has split it meanwhile, and zaps. Anything else is a warning.
            return true;
        }
        // From the frame that faulted on, wherever in the page it is.
        if !cx.has_mutant(SEV_SMASH_NO_ZAP) {
            self.vm.zap_gfn_range(cx, GfnRange::with_len(gfn, PAGES_PER_PMD));
            self.vm.sev_wake_spinners(cx);
        }
        smashed.is_ok()
    }
}
