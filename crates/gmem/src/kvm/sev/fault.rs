//! Nested page faults that the RMP caused (`sev_handle_rmp_fault`).

use super::info::SevInfo;
use crate::kvm::memslots::Memslot;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use sim_coco::snp::RmpFail;
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

    fn split_rmp_page(&self, cx: &Cx<'_>, sev: &SevInfo, gfn: Gfn, pfn: Pfn, fault: RmpFault) -> bool {
        let Some((true, level)) = sev.host.lookup_rmpentry(cx, pfn) else { return false };
        if level == Level::L4K {
            // Somebody was at work there, or the page is not the guest's at this address: which of them is not looked at.
            let entry = sev.host.snp().rmp().page(pfn);
            let is_right = Some(entry.asid) == sev.asid() && entry.gpa.gfn() == gfn && !entry.immutable;
            return is_right && !fault.error.contains(ExitInfo1::VMPL);
        }
        let head = Pfn(pfn.0 & !(PAGES_PER_PMD - 1));
        let smashed = loop {
            match sev.host.psmash(cx, head) {
                Err(RmpFail::Inuse) => cx.cond_resched(),
                other => break other,
            }
        };
        // Somebody else may have split it meanwhile; anything else is a warning.
        let is_split = smashed.is_ok() || sev.host.lookup_rmpentry(cx, pfn) == Some((true, Level::L4K));
        // From the frame that faulted on, wherever in the page it is.
        self.vm.zap_gfn_range(cx, GfnRange::with_len(gfn, PAGES_PER_PMD));
        is_split
    }
}
