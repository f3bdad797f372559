//! VMRUN and implicit accesses: SN-023, SN-077, the erratum.

use crate::machine::{G, GPA, H, Machine, config, fill_vmsa, with, with_config};
use sim_coco::AccessKind;
use sim_coco::snp::{
    CpuId, Gp0, GuestCpu, GuestKind, HostSnpAccess, InGuest, PageOperand, PageState, RmpAdjust, RmpFail, RmpSize,
    RmpUpdate, SevFeatures, SnpConfig, Spa, Vmpl, VmplPerms, Vmrun, VmrunFail,
};
use sim_kernel::{Cx, Pfn};
use sim_mmu::Level;

const CPU: CpuId = CpuId(0);

fn has_save_area(cx: &Cx<'_>, machine: &Machine) {
    machine.snp.wrmsr_vm_hsave_pa(cx, CPU, Spa::of(machine.page())).unwrap();
}

fn snp(machine: &Machine, vmsa: Pfn) -> Vmrun {
    Vmrun {
        cpu: CPU,
        vmcb: Spa::of(machine.page()),
        kind: GuestKind::Snp,
        asid: G,
        vmsa: Some(Spa::of(vmsa)),
        avic_backing: None,
        allowed_sev_features: Some(SevFeatures::SNP_ACTIVE | SevFeatures::DEBUG_SWAP),
    }
}

/// A page of guest `G` that may be a VMSA.
fn vmsa(cx: &Cx<'_>, machine: &Machine, state: PageState) -> Pfn {
    let pfn = machine.in_state(cx, PageState::GuestValid);
    let rdx = RmpAdjust::new(Vmpl::new(1).unwrap(), VmplPerms::empty(), true);
    let cpu = GuestCpu::snp(0, G);
    machine.snp.rmpadjust(cx, &cpu, &PageOperand::page(GPA, pfn), rdx).unwrap().unwrap();
    fill_vmsa(machine, pfn, SevFeatures::SNP_ACTIVE, 0);
    match state {
        PageState::GuestInvalid => assert!(machine.snp.pvalidate(cx, &cpu, &PageOperand::page(GPA, pfn), 0).is_ok()),
        PageState::PreSwap => machine.assign(cx, pfn, RmpUpdate::guest(G, GPA).immutable()),
        _ => {}
    }
    assert_eq!(machine.state(pfn), state);
    pfn
}

/// What VMRUN answers; a guest that was entered leaves at once.
fn answer(cx: &Cx<'_>, machine: &Machine, vmrun: &Vmrun) -> Result<(), VmrunFail> {
    machine.snp.vmrun(cx, vmrun).map(|running| machine.snp.vmexit(cx, running))
}

#[test]
fn sn_077_what_vmrun_wants() {
    with(|cx, machine| {
        let good = snp(machine, vmsa(cx, machine, PageState::GuestValid));
        assert_eq!(answer(cx, machine, &good), Err(VmrunFail::Gp0), "no host save area");
        has_save_area(cx, machine);
        assert_eq!(answer(cx, machine, &good), Ok(()));
        let assigned = machine.in_state(cx, PageState::GuestValid);
        let at = Some(Spa::of(assigned));
        let rows = [
            (Vmrun { vmcb: Spa::of(assigned), ..good }, VmrunFail::Gp0),
            (Vmrun { avic_backing: at, ..good }, VmrunFail::Invalid),
            (Vmrun { vmsa: at, ..good }, VmrunFail::Invalid),
            (Vmrun { vmsa: None, ..good }, VmrunFail::Invalid),
            (Vmrun { asid: H, ..good }, VmrunFail::Invalid),
            (snp(machine, vmsa(cx, machine, PageState::PreSwap)), VmrunFail::Invalid),
            // SEV-ES wants the opposite.
            (Vmrun { kind: GuestKind::Sev, ..good }, VmrunFail::Invalid),
        ];
        for (vmrun, fail) in rows {
            assert_eq!(answer(cx, machine, &vmrun), Err(fail), "{vmrun:?}");
        }
        let page = machine.page();
        let es = Vmrun { kind: GuestKind::Sev, vmsa: Some(Spa::of(page)), ..good };
        fill_vmsa(machine, page, SevFeatures::SNP_ACTIVE, 0);
        assert_eq!(answer(cx, machine, &es), Err(VmrunFail::Invalid), "SNP is active in a guest without it");
        fill_vmsa(machine, page, SevFeatures::empty(), 0);
        assert_eq!(answer(cx, machine, &es), Ok(()));
        // Validated is not asked for, and the tables beside the backing page are not looked at.
        assert_eq!(answer(cx, machine, &snp(machine, vmsa(cx, machine, PageState::GuestInvalid))), Ok(()));
        // The other implicit writes.
        assert_eq!(machine.snp.wrmsr_vm_hsave_pa(cx, CPU, Spa::of(assigned)), Err(Gp0));
        assert_eq!(machine.snp.vmsave(cx, Spa::of(assigned)), Err(Gp0));
        assert_eq!(machine.snp.vmsave(cx, Spa::of(machine.page())), Ok(()));
        assert_eq!(machine.snp.wrmsr_vm_hsave_pa(cx, CPU, Spa(0)), Ok(()));
        assert_eq!(answer(cx, machine, &good), Err(VmrunFail::Gp0), "the save area was taken away");
    });
}

#[test]
fn sn_077_what_vmrun_reads_in_the_vmsa() {
    with(|cx, machine| {
        has_save_area(cx, machine);
        let pfn = vmsa(cx, machine, PageState::GuestValid);
        let vmrun = snp(machine, pfn);
        let level = |features, vmpl| {
            fill_vmsa(machine, pfn, features, vmpl);
            machine.snp.vmrun(cx, &vmrun).map(|running| {
                let level = running.vmpl().index();
                machine.snp.vmexit(cx, running);
                level
            })
        };
        let (active, debug_swap) = (SevFeatures::SNP_ACTIVE, SevFeatures::DEBUG_SWAP);
        for vmpl in 0..4 {
            assert_eq!(level(active, vmpl), Ok(usize::from(vmpl)));
        }
        assert_eq!(level(active | debug_swap, 0), Ok(0));
        for (features, vmpl) in [
            (active, 4),
            (SevFeatures::empty(), 0),
            (debug_swap, 0),
            (active | SevFeatures::SECURE_TSC, 0),
            (active | SevFeatures::from_bits_retain(1 << 40), 0),
        ] {
            assert_eq!(level(features, vmpl), Err(VmrunFail::Invalid), "{features:?} at VMPL {vmpl}");
        }
        let other = Vmrun { allowed_sev_features: None, ..vmrun };
        fill_vmsa(machine, pfn, active | SevFeatures::SECURE_TSC, 0);
        assert_eq!(answer(cx, machine, &other), Ok(()), "the VMCB does not say what is allowed");
    });
}

#[test]
fn sn_023_and_snp_inv_021_pages_of_a_vcpu_that_runs() {
    with(|cx, machine| {
        has_save_area(cx, machine);
        let avic = machine.page();
        let vmrun =
            Vmrun { avic_backing: Some(Spa::of(avic)), ..snp(machine, vmsa(cx, machine, PageState::GuestValid)) };
        let running: InGuest = machine.snp.vmrun(cx, &vmrun).unwrap();
        let pages = [vmrun.vmcb.pfn(), vmrun.vmsa.unwrap().pfn(), avic];
        for pfn in pages {
            assert!(machine.snp.rmp().is_in_use(pfn));
            assert_eq!(machine.snp.rmpupdate(cx, pfn, RmpUpdate::HYPERVISOR), Err(RmpFail::Inuse));
        }
        assert_eq!(RmpFail::Inuse.code(), Some(3));
        assert_eq!(answer(cx, machine, &vmrun), Err(VmrunFail::Invalid), "its VMSA runs already");
        machine.snp.vmexit(cx, running);
        for pfn in pages {
            machine.assign(cx, pfn, RmpUpdate::HYPERVISOR);
        }
    });
}

#[test]
fn sn_031_a_region_with_a_page_in_use_is_not_smashed() {
    with(|cx, machine| {
        has_save_area(cx, machine);
        let head = machine.sized_in_state(cx, PageState::GuestInvalid, RmpSize::Size2M);
        // The VMCB in a region of its own.
        let region = machine.huge();
        let vmrun = Vmrun { vmcb: Spa::of(region + 3), kind: GuestKind::Plain, vmsa: None, ..snp(machine, head) };
        let running = machine.snp.vmrun(cx, &vmrun).unwrap();
        assert_eq!(machine.snp.psmash(cx, region), Err(RmpFail::Inuse));
        let huge = RmpUpdate::guest(G, GPA).sized(RmpSize::Size2M);
        assert_eq!(machine.snp.rmpupdate(cx, region, huge), Err(RmpFail::Inuse));
        assert_eq!(machine.snp.rmpupdate(cx, region + 4, RmpUpdate::guest(G, GPA)), Ok(()), "a neighbour is free");
        machine.snp.vmexit(cx, running);
    });
}

#[test]
fn erratum_of_2m_aligned_pages_in_use() {
    for erratum_2m_vmsa in [false, true] {
        with_config(SnpConfig { erratum_2m_vmsa, ..config() }, |cx, machine| {
            has_save_area(cx, machine);
            let region = machine.huge();
            let write = |level| HostSnpAccess { level, ..HostSnpAccess::kernel(AccessKind::Write, region + 9) };
            let plain = Vmrun { kind: GuestKind::Plain, vmsa: None, ..snp(machine, region) };
            for (vmcb, aligned) in [(region, true), (region + 1, false)] {
                let running = machine.snp.vmrun(cx, &Vmrun { vmcb: Spa::of(vmcb), ..plain }).unwrap();
                let faults = machine.snp.check_host(&write(Level::L2M)).is_err();
                assert_eq!(faults, erratum_2m_vmsa && aligned);
                assert!(machine.snp.check_host(&write(Level::L4K)).is_ok());
                machine.snp.vmexit(cx, running);
            }
            assert!(machine.snp.check_host(&write(Level::L2M)).is_ok());
        });
    }
}
