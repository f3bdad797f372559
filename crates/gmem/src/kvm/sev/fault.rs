//! Nested page faults that the RMP caused (`sev_handle_rmp_fault`).

use super::info::SevInfo;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use sim_coco::snp::RmpFail;
use sim_kernel::{Cx, PAGES_PER_PMD, Pfn};
use sim_mmu::walker::ExitInfo1;
use sim_mmu::{Gfn, GfnRange, Gpa, Level};

/// RMP faults in a row that lead nowhere, after which the vCPU waits for a change.
const VAIN_MAX: u32 = 3;

/// A fault whose error code has the RMP bit, after the MMU has resumed the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RmpFault {
    pub(crate) gpa: Gpa,
    pub(crate) error: ExitInfo1,
}

impl Vcpu {
    /// `sev_handle_rmp_fault`: splits a page of 2 MiB of which the guest uses a part. Whatever else is wrong, the guest just tries again.
    pub(crate) fn sev_handle_rmp_fault(&self, cx: &Cx<'_>, state: &mut VcpuState, fault: RmpFault) {
        let sev = self.vm.sev().expect("only SNP guests have such faults");
        let seen = (sev.host.changes(), self.vm.mmu.invalidate.peek_seq());
        if self.handle_rmp_fault(cx, state, sev, fault) {
            state.sev.as_deref_mut().expect("as above").vain_faults = 0;
            return;
        }
        let es = state.sev.as_deref_mut().expect("as above");
        es.vain_faults += 1;
        if es.vain_faults < VAIN_MAX || cx.signal_pending() {
            return;
        }
        es.vain_faults = 0;
        // SNP-INV-038: Linux lets the guest fault for ever. Here its task waits for something to change; if nothing does, that is a deadlock.
        let changed =
            || self.vm.mmu.invalidate.peek_seq() != seen.1 || self.peek_requests() != 0 || cx.signal_pending();
        sev.host.wait_for_change(cx, seen.0, changed);
    }

    /// Whether there is a reason to believe that the next try succeeds.
    fn handle_rmp_fault(&self, cx: &Cx<'_>, state: &mut VcpuState, sev: &SevInfo, fault: RmpFault) -> bool {
        let gfn = fault.gpa.gfn();
        if self.vm.attributes.get(cx, gfn) & crate::kvm::uapi::KVM_MEMORY_ATTRIBUTE_PRIVATE == 0 {
            return false;
        }
        let (_, slot) = self.gfn_to_memslot(cx, state, gfn);
        let Some(slot) = slot.filter(|slot| slot.has_gmem()) else { return false };
        let Ok(page) = self.vm.gmem_get_pfn(cx, &slot, gfn) else { return false };
        let resolved = self.split_rmp_page(cx, sev, gfn, page.pfn, fault);
        self.vm.host.phys.put(cx, page.pfn);
        resolved
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
