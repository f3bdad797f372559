//! SN-013, SN-026, SN-149, SN-167 to SN-169: RMPUPDATE that fails, and how guests end.

use super::Script;
use gmem::MachineConfig;
use gmem::kvm::mutants::SEV_NO_INVALIDATE;
use sim_coco::snp::firmware::{Command, FwStatus, Injected};
use sim_coco::snp::{Asid, CpuId, GuestKind, PageState, RmpUpdate, Spa, Vmrun};
use sim_kernel::MutantSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn sn_167_pages_may_go_before_the_guest_or_after() {
    for files_first in [true, false] {
        let mut script = Script::running();
        script.run("guest_pvalidate c0 0x201000 => hlt 0\n guest_write c0 0x201000 7 => hlt");
        let page = script.frame(0x20_1000).unwrap();
        let context = script.of_vm("vm0", |_, vm| vm.sev().unwrap().context().unwrap());
        assert_eq!(script.state(context), PageState::Context);
        script.run(if files_first {
            "close g0 => ok\n close c0 => ok\n close vm0 => ok"
        } else {
            "close vm0 => ok\n close c0 => ok\n close g0 => ok"
        });
        assert_eq!(script.state(page), PageState::Hypervisor);
        assert_eq!(script.state(context), PageState::Hypervisor);
        assert_eq!(script.sev(|_, sev| sev.peek_asids()), (vec![Asid(1)], vec![Asid(1)]));
        script.end();
    }
}

#[test]
fn sn_168_asids_run_out_and_are_used_again_after_a_flush() {
    let mut script = Script::new(MachineConfig { snp_asids: 2, ..MachineConfig::default() });
    script.run(
        "create_vm vm0 type=snp\n create_vm vm1 type=snp\n create_vm vm2 type=snp
         sev_init2 vm0                            => ok
         sev_init2 vm1                            => ok
         sev_init2 vm2                            => EBUSY
         snp_launch_start vm0                     => ok
         close vm0                                => ok
         sev_init2 vm2                            => ok
         snp_launch_start vm2                     => ok
         snp_launch_start vm1                     => ok",
    );
    assert_eq!(script.sev(|_, sev| sev.peek_asids()), (vec![Asid(1), Asid(2)], vec![]));
    script.end();
    let mut script = Script::new(MachineConfig { snp_asids: 0, ..MachineConfig::default() });
    script.run("create_vm vm0 type=snp => ok\n sev_init2 vm0 => ENOTTY");
    script.end();
}

#[test]
fn sn_169_a_guest_that_cannot_be_decommissioned_keeps_its_asid_and_its_context() {
    let mut script = Script::new(MachineConfig { snp_asids: 1, ..MachineConfig::default() });
    script.run("create_vm vm0 type=snp\n sev_init2 vm0\n snp_launch_start vm0 => ok");
    let context = script.of_vm("vm0", |_, vm| vm.sev().unwrap().context().unwrap());
    script.snp(|cx, snp| snp.inject(cx, Command::Decommission, Injected::Status(FwStatus::InvalidGuest)));
    script.run("close vm0 => ok\n create_vm vm1 type=snp\n sev_init2 vm1 => EBUSY");
    assert_eq!(script.sev(|_, sev| sev.leaked()), [context]);
    assert_eq!(script.state(context), PageState::Context);
    script.end();
}

#[test]
fn sn_149_a_page_that_is_not_taken_back_is_noticed() {
    let mutants = MutantSet::EMPTY.with(SEV_NO_INVALIDATE);
    let mut script = Script::new(MachineConfig { mutants, ..MachineConfig::default() });
    script.run(super::VM);
    script.run(super::RUNNING);
    script.run("guest_pvalidate c0 0x201000 => hlt 0\n fallocate g0 punch_hole 4K 4K => ok");
    let checked = script.of_vm("vm0", |_, vm| catch_unwind(AssertUnwindSafe(|| vm.check_invariants())));
    let message = *checked.unwrap_err().downcast::<String>().unwrap();
    assert!(message.starts_with("SNP-INV-009: "), "{message}");
}

#[test]
fn sn_013_sn_149_a_page_that_hardware_refuses_to_give_back() {
    let mut script = Script::running();
    script.run("guest_pvalidate c0 0x201000 => hlt 0");
    let page = script.frame(0x20_1000).unwrap();
    // Somebody has closed it: RMPUPDATE fails, KVM warns, and the page is freed as it is.
    script.snp(|cx, snp| {
        let entry = snp.rmp().entry(page);
        snp.rmpupdate(cx, page, RmpUpdate::guest(entry.asid, entry.gpa).immutable()).unwrap();
    });
    script.run("fallocate g0 punch_hole 4K 4K => ok");
    let checked = script.of_vm("vm0", |_, vm| catch_unwind(AssertUnwindSafe(|| vm.check_invariants())));
    let message = *checked.unwrap_err().downcast::<String>().unwrap();
    assert!(message.starts_with("SNP-INV-008: "), "{message}");
}

#[test]
fn a_host_write_to_a_page_of_the_guest_is_a_signal() {
    let mut script = Script::running();
    script.run("host_write m0 0x1000 5 => ok");
    // The VMM's own page, as if it were the guest's.
    let page = script.with(|_, world| {
        let hva = world.map(&"m0".into()) + 0x1000;
        world.process().mm().peek_pfn(hva).flatten().expect("the page is mapped")
    });
    script.snp(|cx, snp| snp.rmpupdate(cx, page, RmpUpdate::guest(Asid(9), sim_mmu::Gpa(0))).unwrap());
    script.run("host_write m0 0x1000 6 => SIGBUS\n host_read m0 0x1000 => ok 5");
    script.snp(|cx, snp| snp.rmpupdate(cx, page, RmpUpdate::HYPERVISOR).unwrap());
    script.run("host_write m0 0x1000 6 => ok\n host_read m0 0x1000 => ok 6");
    script.end();
}

#[test]
fn sn_026_a_page_in_use_is_not_tried_again() {
    let mut script = Script::running();
    script.run("guest_pvalidate c0 0x203000 => hlt 0\n guest_make_vmsa c0 0x203000 => hlt 0");
    let page = script.frame(0x20_3000).unwrap();
    let vmcb = script.with(|cx, world| {
        let vcpu = gmem::kvm::ioctl::peek_vcpu(cx, world.process(), world.fd(&"c0".into())).unwrap();
        vcpu.sev().unwrap().vmcb()
    });
    // Another processor is in the guest with it.
    let in_guest = script.snp(|cx, snp| {
        let vmrun = Vmrun {
            cpu: CpuId(0),
            vmcb: Spa::of(vmcb),
            kind: GuestKind::Snp,
            asid: Asid(1),
            vmsa: Some(Spa::of(page)),
            avic_backing: None,
            allowed_sev_features: None,
        };
        snp.vmrun(cx, &vmrun).unwrap()
    });
    script.run("fallocate g0 punch_hole 12K 4K => ok");
    assert_eq!(script.state(page), PageState::GuestValid);
    script.snp(|cx, snp| snp.vmexit(cx, in_guest));
    let checked = script.of_vm("vm0", |_, vm| catch_unwind(AssertUnwindSafe(|| vm.check_invariants())));
    let message = *checked.unwrap_err().downcast::<String>().unwrap();
    assert!(message.starts_with("SNP-INV-008: "), "{message}");
}
