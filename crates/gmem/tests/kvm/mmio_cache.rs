//! What a vCPU remembers about a missing slot must not outlive the swap that brings one.

use super::*;
use gmem::kvm::vcpu::ExitInfo;
use sim_mmu::Gfn;

/// Runs a write again and again; once the slot was active before a run began, that run must not see MMIO.
pub(super) fn run_until_slot(cx: &Cx<'_>, m: &Machine, vcpu: &Vcpu, gpa: u64) {
    for _ in 0..4 {
        let active = m.vm.memslots().peek_active(0, |set| set.by_gfn(Gfn(gpa >> 12)).is_some());
        vcpu.set_program(cx, &[write(gpa)]);
        let (result, exit) = vcpu.run(cx);
        assert_eq!(result, Ok(()));
        let is_mmio = matches!(exit, ExitInfo::Mmio { .. });
        assert!(!(active && is_mmio), "INV-604: MMIO at an address that had a slot all the time");
        if active {
            return;
        }
    }
}

#[test]
fn a_missing_slot_is_not_remembered_while_slots_are_swapped() {
    let setup = |cx: &Cx<'_>| {
        let m = Machine::new(cx, 0);
        let (_, vcpu) = m.vcpu(cx, 0);
        // Emulation would go to address 0, where nothing is, not to the file.
        let gmem = m.gmem(cx, PAGE_SIZE, GUEST_MEMFD_FLAG_MMAP);
        let (creator, runner) = (m.clone(), m.clone());
        cx.spawn("create", move |cx| creator.gmem_slot(cx, 0, 0x5000, PAGE_SIZE, gmem));
        cx.spawn("vcpu", move |cx| run_until_slot(cx, &runner, &vcpu, 0x5000));
        m
    };
    race(3000, setup, |_, m| m.vm.check_invariants());
}
