//! PVALIDATE, RMPADJUST, RMPQUERY: SN-041 to SN-055.

use crate::machine::{DONE, G, GPA, H, Machine, UNCHANGED, config, running, set_vmsa, with, with_config};
use sim_coco::AccessKind;
use sim_coco::snp::{
    GuestCpu, GuestFault, GuestKind, Gva, NpfError, PageOperand, PageState, Pvalidated, RmpAdjust, RmpFail, RmpQueried,
    RmpSize, RmpUpdate, SnpAccess, SnpConfig, Vmpl, VmplPerms,
};
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gpa, Level};

const CPU: GuestCpu = GuestCpu::snp(0, G);

fn vmpl(number: u8) -> Vmpl {
    Vmpl::new(number).unwrap()
}

fn operand(pfn: Pfn) -> PageOperand {
    PageOperand::page(GPA, pfn)
}

fn failed(fail: RmpFail) -> Result<Pvalidated, GuestFault> {
    Ok(Pvalidated { result: Err(fail), unchanged: false })
}

/// An NPF of the operand: RMP, private, a read, at the final translation.
#[track_caller]
fn assert_npf<T: std::fmt::Debug>(answer: Result<T, GuestFault>, more: NpfError) {
    let error = NpfError::P | NpfError::U | NpfError::RMP | NpfError::ENC | NpfError::FINAL | more;
    assert_eq!(answer.unwrap_err(), GuestFault::Npf { error, gpa: GPA });
}

fn adjust(
    cx: &Cx<'_>,
    machine: &Machine,
    cpu: &GuestCpu,
    pfn: Pfn,
    rdx: RmpAdjust,
) -> Result<Result<(), RmpFail>, GuestFault> {
    machine.snp.rmpadjust(cx, cpu, &operand(pfn), rdx)
}

#[test]
fn sn_041_a_repeat_is_told() {
    with(|cx, machine| {
        let pfn = machine.in_state(cx, PageState::GuestInvalid);
        for (edx, expected) in [(1, DONE), (1, UNCHANGED), (0, DONE), (0, UNCHANGED), (1, DONE)] {
            assert_eq!(machine.snp.pvalidate(cx, &CPU, &operand(pfn), edx), Ok(expected));
            assert_eq!(machine.entry(pfn).validated, edx == 1);
        }
    });
}

#[test]
fn sn_042_who_may_validate() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let pfn = machine.in_state(cx, PageState::GuestInvalid);
        assert_eq!(snp.pvalidate(cx, &CPU.at_cpl(3), &operand(pfn), 1), Err(GuestFault::Gp0));
        assert_eq!(snp.pvalidate(cx, &CPU.at_vmpl(vmpl(1)), &operand(pfn), 1), Err(GuestFault::Gp0));
        for kind in [GuestKind::Plain, GuestKind::Sev] {
            assert_eq!(snp.pvalidate(cx, &GuestCpu { kind, ..CPU }, &operand(pfn), 1), Ok(UNCHANGED));
        }
        assert_eq!(machine.state(pfn), PageState::GuestInvalid);
    });
}

#[test]
fn sn_043_input() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let head = machine.sized_in_state(cx, PageState::GuestInvalid, RmpSize::Size2M);
        let misaligned = PageOperand { gva: Gva(GPA.0 + 0x1000), ..operand(head).huge() };
        assert_eq!(snp.pvalidate(cx, &CPU, &misaligned, 1), failed(RmpFail::Input));
        assert_eq!(snp.pvalidate(cx, &CPU, &PageOperand { size: 2, ..operand(head) }, 1), failed(RmpFail::Input));
        assert_eq!(snp.pvalidate(cx, &CPU, &operand(head).huge(), 2), failed(RmpFail::Input));
        assert_eq!(machine.state(head), PageState::GuestInvalid);
    });
}

#[test]
fn sn_044_sn_045_and_sn_050_sizes() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let head = machine.sized_in_state(cx, PageState::GuestInvalid, RmpSize::Size2M);
        assert_npf(snp.pvalidate(cx, &CPU, &operand(head), 1), NpfError::SIZEM);
        assert_npf(
            snp.rmpadjust(cx, &CPU, &operand(head), RmpAdjust::new(vmpl(1), VmplPerms::R, false)),
            NpfError::SIZEM,
        );
        // 2 MiB at once; then the guest uses 4 KiB of it through a nested leaf of 2 MiB.
        assert_eq!(snp.pvalidate(cx, &CPU, &operand(head).huge(), 1), Ok(DONE));
        let at = Gpa(GPA.0 + 0x3000);
        let write = SnpAccess::private(AccessKind::Write, at, head + 3).at_level(Level::L2M);
        assert_eq!(snp.guest_write(cx, &CPU, &write, &[1]), Ok(()));
        snp.psmash(cx, head).unwrap();
        assert_eq!(snp.pvalidate(cx, &CPU, &operand(head), 1), Ok(UNCHANGED));
        assert_eq!(snp.pvalidate(cx, &CPU, &operand(head).huge(), 0), failed(RmpFail::SizeMismatch));
        let huge = operand(head).huge();
        let gives = RmpAdjust::new(vmpl(1), VmplPerms::R, false);
        assert_eq!(snp.rmpadjust(cx, &CPU, &huge, gives), Ok(Err(RmpFail::SizeMismatch)));
        assert_eq!(RmpFail::SizeMismatch.code(), Some(6));
        assert_eq!(machine.state(head), PageState::GuestValid, "nothing changed");
    });
}

#[test]
fn sn_046_only_ones_own_page_at_its_own_address() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let pfn = machine.in_state(cx, PageState::GuestInvalid);
        let elsewhere = PageOperand { gpa: Gpa(GPA.0 + 0x1000), ..operand(pfn) };
        let answer = snp.pvalidate(cx, &CPU, &elsewhere, 1);
        assert!(matches!(answer, Err(GuestFault::Npf { error, .. }) if error.contains(NpfError::RMP)));
        assert_npf(snp.pvalidate(cx, &GuestCpu { asid: H, ..CPU }, &operand(pfn), 1), NpfError::empty());
        for state in
            [PageState::Hypervisor, PageState::PreGuest, PageState::PreSwap, PageState::Reclaim, PageState::Firmware]
        {
            let pfn = machine.in_state(cx, state);
            assert_npf(snp.pvalidate(cx, &CPU, &operand(pfn), 1), NpfError::empty());
            assert_npf(adjust(cx, machine, &CPU, pfn, RmpAdjust::new(vmpl(1), VmplPerms::R, false)), NpfError::empty());
            assert_npf(snp.rmpquery(cx, &CPU, &operand(pfn), 1), NpfError::empty());
            assert_eq!(machine.state(pfn), state);
        }
    });
}

#[test]
fn sn_048_validating_does_not_change_contents() {
    with(|cx, machine| {
        let pfn = machine.page();
        let gctx = machine.launching(cx, G, sim_coco::snp::firmware::GuestPolicy::USUAL);
        machine.phys.poke_u64(pfn, 0, 0x1234);
        machine.validated(cx, pfn, RmpUpdate::guest(G, GPA));
        assert_eq!(machine.phys.peek_u64(pfn, 0), 0x1234);
        let read = machine.snp.guest_read_u64(cx, &CPU, GPA, pfn).unwrap();
        assert_ne!(read, 0x1234);
        assert_eq!(machine.snp.guest_read_u64(cx, &CPU, GPA, pfn), Ok(read), "SNP-INV-027: the same garbage");
        assert!(machine.snp.peek_guest(gctx, |_| ()).is_some());
    });
}

#[test]
fn sn_049_a_rescinded_page_is_told_to_the_guest_alone() {
    for guest_tlb in [false, true] {
        with_config(SnpConfig { guest_tlb, ..config() }, |cx, machine| {
            let snp = &machine.snp;
            let pfn = machine.in_state(cx, PageState::GuestValid);
            let read = SnpAccess { gva: Gva(0x7000_0123), ..SnpAccess::private(AccessKind::Read, GPA, pfn) };
            assert!(snp.check_guest(&CPU, &read).is_ok());
            snp.pvalidate(cx, &CPU, &operand(pfn), 0).unwrap();
            // OP-20: what is cached stays until the guest flushes.
            assert_eq!(snp.check_guest(&CPU, &read).is_ok(), guest_tlb);
            snp.flush_guest_tlb(CPU.vcpu);
            assert_eq!(snp.check_guest(&CPU, &read), Err(GuestFault::NotValidated { cr2: Gva(0x7000_0123) }));
        });
    }
}

#[test]
fn sn_051_levels_give_what_they_have_to_lower_ones() {
    with(|cx, machine| {
        let pfn = machine.in_state(cx, PageState::GuestValid);
        let rw = VmplPerms::R | VmplPerms::W;
        assert_eq!(adjust(cx, machine, &CPU, pfn, RmpAdjust::new(vmpl(1), rw, false)), Ok(Ok(())));
        let at_1 = CPU.at_vmpl(vmpl(1));
        for target in [0, 1] {
            let answer = adjust(cx, machine, &at_1, pfn, RmpAdjust::new(vmpl(target), VmplPerms::R, false));
            assert_eq!(answer, Ok(Err(RmpFail::Permission)));
        }
        let answer = adjust(cx, machine, &at_1, pfn, RmpAdjust::new(vmpl(2), rw | VmplPerms::XU, false));
        assert_eq!(answer, Ok(Err(RmpFail::Permission)));
        assert_eq!(adjust(cx, machine, &at_1, pfn, RmpAdjust::new(vmpl(2), VmplPerms::R, true)), Ok(Ok(())));
        let entry = machine.entry(pfn);
        assert_eq!((entry.perms[1], entry.perms[2], entry.vmsa), (rw, VmplPerms::R, false));
        assert_eq!(adjust(cx, machine, &CPU, pfn, RmpAdjust::new(vmpl(3), VmplPerms::empty(), true)), Ok(Ok(())));
        assert!(machine.entry(pfn).vmsa);
        // Reserved bits, no such level, and a right that the machine does not have.
        for rdx in [1 << 17 | 1, 4, 0x2001, 0x1001] {
            assert_eq!(adjust(cx, machine, &CPU, pfn, RmpAdjust(rdx)), Ok(Err(RmpFail::Input)), "{rdx:#x}");
        }
        let gives = RmpAdjust::new(vmpl(1), VmplPerms::R, false);
        assert_eq!(adjust(cx, machine, &CPU.at_cpl(3), pfn, gives), Err(GuestFault::Gp0));
        assert_eq!(adjust(cx, machine, &GuestCpu { kind: GuestKind::Sev, ..CPU }, pfn, gives), Err(GuestFault::Ud));
        let invalid = machine.in_state(cx, PageState::GuestInvalid);
        assert!(matches!(adjust(cx, machine, &CPU, invalid, gives), Err(GuestFault::NotValidated { .. })), "OP-6");
    });
}

#[test]
fn sn_052_the_vmsa_of_a_vcpu_that_runs_is_not_taken_away() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let (running, pfn) = running(cx, machine);
        assert_npf(adjust(cx, machine, &CPU, pfn, set_vmsa(false)), NpfError::empty());
        // Data accesses are not held up: the guest clears PCPU_ID to learn of the next entry.
        assert_eq!(snp.guest_write_u64(cx, &CPU, GPA, pfn, 0), Ok(()));
        snp.vmexit(cx, running);
        assert_eq!(adjust(cx, machine, &CPU, pfn, set_vmsa(false)), Ok(Ok(())));
    });
}

#[test]
fn sn_053_what_a_level_may_do() {
    with(|cx, machine| {
        let (r, w, xu, xs) = (VmplPerms::R, VmplPerms::W, VmplPerms::XU, VmplPerms::XS);
        let pfn = machine.in_state(cx, PageState::GuestValid);
        let at_1 = CPU.at_vmpl(vmpl(1));
        let all: [(AccessKind, u8); 4] =
            [(AccessKind::Read, 0), (AccessKind::Write, 0), (AccessKind::Fetch, 0), (AccessKind::Fetch, 3)];
        let rows = [
            (VmplPerms::empty(), [false; 4]),
            (r, [true, false, false, false]),
            (w, [false; 4]),
            (w | xs | xu, [false; 4]),
            (r | w, [true, true, false, false]),
            (xs, [false, false, true, false]),
            (r | xu, [true, false, false, true]),
            (r | w | xu | xs, [true; 4]),
        ];
        for (perms, expected) in rows {
            assert_eq!(adjust(cx, machine, &CPU, pfn, RmpAdjust::new(vmpl(1), perms, false)), Ok(Ok(())));
            for ((kind, cpl), allowed) in all.into_iter().zip(expected) {
                let answer = machine.snp.check_guest(&at_1.at_cpl(cpl), &SnpAccess::private(kind, GPA, pfn));
                assert_eq!(answer.is_ok(), allowed, "{perms:?} {kind:?} at CPL {cpl}");
                if let Err(fault) = answer {
                    let expected = NpfError::RMP | NpfError::VMPL | NpfError::ENC;
                    assert!(matches!(fault, GuestFault::Npf { error, .. } if error.contains(expected)));
                }
            }
        }
    });
}

#[test]
fn sn_055_rmpquery_tells_and_changes_nothing() {
    with(|cx, machine| {
        let snp = &machine.snp;
        let pfn = machine.in_state(cx, PageState::GuestValid);
        adjust(cx, machine, &CPU, pfn, RmpAdjust::new(vmpl(2), VmplPerms::R, true)).unwrap().unwrap();
        let before = machine.entry(pfn);
        let perms = VmplPerms::R;
        let told = RmpQueried { perms, vmsa: true, page_size: RmpSize::Size4K };
        assert_eq!(snp.rmpquery(cx, &CPU, &operand(pfn), 2), Ok(Ok(told)));
        assert_eq!(snp.rmpquery(cx, &CPU.at_vmpl(vmpl(3)), &operand(pfn), 2), Ok(Err(RmpFail::Permission)));
        assert_eq!(snp.rmpquery(cx, &CPU, &operand(pfn), 4), Ok(Err(RmpFail::Input)));
        assert_eq!(snp.rmpquery(cx, &CPU.at_cpl(1), &operand(pfn), 2), Err(GuestFault::Gp0));
        assert_eq!(machine.entry(pfn), before);
        let invalid = machine.in_state(cx, PageState::GuestInvalid);
        assert!(matches!(snp.rmpquery(cx, &CPU, &operand(invalid), 2), Err(GuestFault::NotValidated { .. })));
    });
}
