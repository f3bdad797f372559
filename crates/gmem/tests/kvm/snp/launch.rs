//! SN-121 to SN-132: the launch.

use super::Script;
use gmem::kvm::ioctl;
use gmem::kvm::sev::{SevCmd, SevOp, SnpLaunchFinish, SnpLaunchUpdate, SnpPageType};
use gmem::{MachineConfig, SnpCpuid};
use sim_coco::snp::firmware::{Command, FwStatus, GuestState, IdBlock, LaunchDigest, PageInfo, PageType};
use sim_coco::snp::firmware::{CpuidEntry, CpuidPage, Injected};
use sim_coco::snp::{PageState, SevFeatures, Spa};
use sim_kernel::{Errno, Hva};
use sim_mmu::{Gfn, Gpa};

impl Script {
    /// One command by a descriptor of the caller's choice; the answer, what is left, and the firmware's error.
    pub(super) fn command(&mut self, op: SevOp, sev_fd: i32) -> (Result<(), Errno>, SevCmd) {
        self.with(|cx, world| {
            let mut cmd = SevCmd::new(op, sev_fd);
            let result = ioctl::memory_encrypt_op(cx, world.process(), world.fd(&"vm0".into()), &mut cmd);
            (result, cmd)
        })
    }

    pub(super) fn open_sev(&mut self) -> i32 {
        self.with(|cx, world| gmem::kvm::sev::open_sev(cx, world.process()).expect("there is SEV"))
    }

    pub(super) fn hva(&mut self, map: &str) -> Hva {
        self.with(|_, world| world.map(&map.into()))
    }
}

#[test]
fn sn_005_without_snp_every_call_refuses() {
    let mut script = Script { machine: gmem::interp::Sequential::new(MachineConfig::default()) };
    script.run(
        "create_vm vm0 type=snp                    => EINVAL
         create_vm vm0 type=sw_protected           => ok
         sev_init2 vm0                             => ENOTTY
         snp_launch_start vm0                      => ENOTTY",
    );
    for config in [
        MachineConfig { stage2: gmem::Stage2Kind::Ept, ..MachineConfig::default() },
        MachineConfig { tdp_enabled: false, ..MachineConfig::default() },
    ] {
        Script::new(config).run("create_vm vm0 type=snp => EINVAL");
    }
}

#[test]
fn sn_121_init2_checks_in_this_order() {
    let mut script = Script::new(MachineConfig::default());
    script.run(
        "create_vm vm0 type=snp                    => ok
         check_extension vm_types                  => ok 19
         sev_init2 vm0 flags=1                     => EINVAL
         sev_init2 vm0 vmsa_features=1             => EINVAL
         sev_init2 vm0 ghcb_version=1              => EINVAL
         sev_init2 vm0 ghcb_version=3              => EINVAL
         create_vcpu vm0 c0                        => ok
         sev_init2 vm0                             => EINVAL
         guest_read c0 0                           => EINVAL
         create_vm vm1 type=snp                    => ok
         sev_init2 vm1 debug_swap ghcb_version=0   => ok
         sev_init2 vm1                             => EPERM
         create_vm vm2                             => ok
         sev_init2 vm2                             => EINVAL
         snp_launch_start vm2                      => ENOTTY
         snp_launch_finish vm2                     => ENOTTY",
    );
    let features = script.of_vm("vm1", |_, vm| vm.sev().unwrap().vmsa_features());
    assert_eq!(features, SevFeatures::SNP_ACTIVE | SevFeatures::DEBUG_SWAP);
    script.end();
}

#[test]
fn sn_122_order_of_the_launch() {
    let mut script = Script::new(MachineConfig::default());
    script.run(
        "create_vm vm0 type=snp
         create_guest_memfd vm0 g0 size=64K
         mmap m0 len=64K
         snp_launch_start vm0                      => ENOTTY
         snp_launch_finish vm0                     => ENOTTY
         sev_init2 vm0                             => ok
         create_vcpu vm0 c0
         snp_launch_update vm0 0x200000 m0 4K      => EINVAL
         snp_launch_finish vm0                     => EINVAL
         snp_launch_start vm0 flags=1              => EINVAL
         snp_launch_start vm0                      => ok
         snp_launch_start vm0                      => EINVAL
         snp_launch_finish vm0 flags=1             => EINVAL
         snp_launch_finish vm0                     => ok
         snp_launch_finish vm0                     => EINVAL",
    );
    script.end();
    // Without a vCPU it is the firmware that refuses the second time.
    let mut script = Script::new(MachineConfig::default());
    script.run("create_vm vm0 type=snp\n sev_init2 vm0\n snp_launch_start vm0\n snp_launch_finish vm0 => ok");
    let fd = script.open_sev();
    let (result, cmd) = script.command(SevOp::SnpLaunchFinish(SnpLaunchFinish::default()), fd);
    assert_eq!((result, cmd.error), (Err(Errno::EIO), FwStatus::InvalidGuestState.code()));
    script.end();
}

#[test]
fn sn_123_sn_124_pages_that_are_shared_or_launched_already() {
    let mut script = Script::vm();
    script.run(
        "snp_launch_update vm0 0x208000 m0 4K      => EIO
         snp_launch_update vm0 0x200000 m0 4K      => ok
         snp_launch_update vm0 0x200000 m0 4K      => EIO",
    );
    let shared = script.frame(0x20_8000).expect("the look-up has made a page");
    assert_eq!(script.state(shared), PageState::Hypervisor);
    let launched = script.frame(0x20_0000).unwrap();
    assert_eq!(script.state(launched), PageState::GuestValid);
    script.end();
}

#[test]
fn sn_125_sn_126_a_call_ends_where_the_slot_does_or_a_page_fails() {
    let mut script = Script::vm();
    let (fd, hva) = (script.open_sev(), script.hva("m0"));
    let update = |gfn: u64, len: u64| {
        SevOp::SnpLaunchUpdate(SnpLaunchUpdate {
            gfn_start: Gfn(gfn),
            uaddr: hva,
            len,
            page_type: SnpPageType::NORMAL,
            flags: 0,
        })
    };
    // 32 KiB are private; the ninth page stops the call, and the next one says why.
    let (result, cmd) = script.command(update(0x200, 0x9000), fd);
    assert_eq!(
        (result, cmd.op),
        (Ok(()), {
            let SevOp::SnpLaunchUpdate(left) = update(0x208, 0x1000) else { unreachable!() };
            SevOp::SnpLaunchUpdate(SnpLaunchUpdate { uaddr: hva + 0x8000, ..left })
        })
    );
    assert_eq!(script.command(cmd.op, fd).0, Err(Errno::EIO));
    // Clamped at the end of the slot, whose last pages become private now.
    script.run("set_memory_attributes vm0 0x208000 32K private => ok");
    let (result, cmd) = script.command(update(0x20e, 0x4000), fd);
    let SevOp::SnpLaunchUpdate(left) = cmd.op else { unreachable!() };
    assert_eq!((result, left.gfn_start, left.len), (Ok(()), Gfn(0x210), 0x2000));
    assert_eq!(script.command(cmd.op, fd).0, Err(Errno::EINVAL), "no slot is there");
    script.run(
        "mmap m1 len=16K
         set_user_memory_region2 vm0 slot=1 gpa=0x400000 size=16K hva=m1 => ok
         snp_launch_update vm0 0x400000 m1 4K      => EINVAL
         snp_launch_update vm0 0x201000 m0 0       => EINVAL
         snp_launch_update vm0 0x201000 m0 100     => EINVAL
         snp_launch_update vm0 0x201000 m0+1 4K    => EINVAL
         snp_launch_update vm0 0x201000 0 4K       => EINVAL
         snp_launch_update vm0 0x201000 m0 4K flags=1 => EINVAL
         snp_launch_update vm0 0x201000 m0 4K type=2  => EINVAL
         snp_launch_update vm0 0x201000 m0 4K type=7  => EINVAL",
    );
    script.end();
}

#[test]
fn sn_127_what_the_firmware_refuses_goes_back_to_the_host() {
    let mut script = Script::vm();
    script.snp(|cx, snp| snp.inject(cx, Command::LaunchUpdate, Injected::Status(FwStatus::InvalidParam)));
    let (fd, uaddr) = (script.open_sev(), script.hva("m0"));
    let update =
        SnpLaunchUpdate { gfn_start: Gfn(0x200), uaddr, len: 0x1000, page_type: SnpPageType::NORMAL, flags: 0 };
    let (result, cmd) = script.command(SevOp::SnpLaunchUpdate(update), fd);
    assert_eq!((result, cmd.error), (Err(Errno::EIO), FwStatus::InvalidParam.code()));
    let page = script.frame(0x20_0000).unwrap();
    assert_eq!(script.state(page), PageState::Hypervisor);
    assert!(script.sev(|_, sev| sev.leaked()).is_empty());
    script.run("snp_launch_update vm0 0x200000 m0 4K => ok");
    // And if it cannot even be taken back, it is leaked, and the VM is of no use any more.
    script.snp(|cx, snp| {
        snp.inject(cx, Command::LaunchUpdate, Injected::Status(FwStatus::InvalidParam));
        snp.inject(cx, Command::PageReclaim, Injected::Status(FwStatus::InvalidPageState));
    });
    script.run(
        "snp_launch_update vm0 0x201000 m0 4K      => EIO
         set_memory_attributes vm0 0x200000 4K private => EIO",
    );
    let page = script.frame(0x20_1000).unwrap();
    assert_eq!(script.sev(|_, sev| sev.leaked()), [page]);
    assert!(script.of_vm("vm0", |_, vm| vm.is_bugged()));
    assert_eq!(script.state(page), PageState::PreGuest);
    // Linux frees it nevertheless with its file: on the list of pages that nobody uses again, and in the allocator.
    let message = script.finding();
    assert!(message.starts_with("SNP-INV-008: "), "{message}");
}

#[test]
fn sn_128_after_the_end_the_firmware_refuses() {
    let mut script = Script::running();
    let (fd, uaddr) = (script.open_sev(), script.hva("m0"));
    let update =
        SnpLaunchUpdate { gfn_start: Gfn(0x200), uaddr, len: 0x1000, page_type: SnpPageType::NORMAL, flags: 0 };
    let (result, cmd) = script.command(SevOp::SnpLaunchUpdate(update), fd);
    assert_eq!((result, cmd.error), (Err(Errno::EIO), FwStatus::InvalidGuestState.code()));
    let page = script.frame(0x20_0000).unwrap();
    assert_eq!(script.state(page), PageState::Hypervisor);
    script.end();
}

#[test]
fn sn_129_no_pre_fault_before_the_end() {
    let mut script = Script::vm();
    script.run(
        "pre_fault_memory c0 0x200000 4K           => EOPNOTSUPP
         snp_launch_finish vm0                     => ok
         pre_fault_memory c0 0x200000 4K           => ok",
    );
    let page = script.frame(0x20_0000).unwrap();
    assert_eq!(script.state(page), PageState::GuestInvalid);
    script.end();
}

#[test]
fn sn_130_the_digest_is_of_pages_in_order_then_of_one_vmsa_each() {
    let mut script = Script::vm();
    script.run(
        "create_vcpu vm0 c1 1                      => ok
         host_write64 m0 0 0x1122334455667788      => ok
         snp_launch_update vm0 0x202000 m0 4K normal     => ok
         snp_launch_update vm0 0x203000 m0 4K zero       => ok
         snp_launch_update vm0 0x204000 m0 4K unmeasured => ok
         snp_launch_update vm0 0x205000 m0 4K secrets    => ok
         snp_launch_finish vm0                     => ok",
    );
    let mut page = vec![0; 4096];
    page[..8].copy_from_slice(&0x1122_3344_5566_7788_u64.to_le_bytes());
    let digest = script.of_vm("vm0", |_, vm| {
        let sev = vm.sev().unwrap();
        let known = sev.host().snp().peek_guest(Spa::of(sev.context().unwrap()), |guest| (guest.state, guest.digest));
        let (state, digest) = known.expect("the guest was launched");
        assert_eq!(state, GuestState::Running);
        digest
    });
    let mut expected = LaunchDigest::ZERO;
    for (page_type, gpa) in [
        (PageType::Normal, 0x20_2000),
        (PageType::Zero, 0x20_3000),
        (PageType::Unmeasured, 0x20_4000),
        (PageType::Secrets, 0x20_5000),
    ] {
        expected = expected.extend(&PageInfo::new(page_type, Gpa(gpa)).with_contents(&page));
    }
    let info = PageInfo::new(PageType::Vmsa, Gpa(0xffff_ffff_f000));
    let bytes = gmem::kvm::sev::initial_vmsa(SevFeatures::SNP_ACTIVE);
    for _ in 0..2 {
        expected = expected.extend(&info.with_contents(&bytes[..]));
    }
    assert_eq!(digest, expected);
    script.end();
}

#[test]
fn sn_131_policies() {
    let mut script = Script::new(MachineConfig::default());
    script.run(
        "create_vm vm0 type=snp
         sev_init2 vm0
         snp_launch_start vm0 policy=0x10000       => EINVAL
         snp_launch_start vm0 policy=0x70000       => EINVAL
         snp_launch_start vm0 policy=0x80000000    => EINVAL
         snp_launch_start vm0 policy=0x20000       => EIO
         snp_launch_start vm0 usual|debug          => ok",
    );
    script.end();
}

#[test]
fn sn_132_certificates_are_asked_for_before_there_are_vcpus() {
    let mut script = Script::vm();
    let fd = script.open_sev();
    assert_eq!(script.command(SevOp::SnpEnableReqCerts, fd).0, Err(Errno::EINVAL), "there is a vCPU");
    script.end();
}

#[test]
fn sn_109_an_identity_block_with_another_digest() {
    let mut script = Script::vm();
    let fd = script.open_sev();
    let block = IdBlock {
        digest: LaunchDigest([7; 48]),
        family_id: [0; 16],
        image_id: [0; 16],
        version: 1,
        guest_svn: 0,
        policy: 0x30000,
    };
    let finish = SnpLaunchFinish { id_block: Some(block), ..SnpLaunchFinish::default() };
    let (result, cmd) = script.command(SevOp::SnpLaunchFinish(finish), fd);
    assert_eq!((result, cmd.error), (Err(Errno::EIO), FwStatus::BadMeasurement.code()));
    assert!(!script.of_vm("vm0", |_, vm| vm.peek_pre_fault_allowed()));
    // The vCPU is protected already.
    script.run("snp_launch_finish vm0 => EINVAL");
    script.end();
}

/// The page as the guest gets it, or the VMM back: functions with EAX to EDX.
fn cpuid_page(functions: &[(u32, [u32; 4])]) -> Box<[u8; 4096]> {
    let entry = |(eax_in, out): &(u32, [u32; 4])| CpuidEntry { eax_in: *eax_in, out: *out, ..CpuidEntry::default() };
    CpuidPage::build(&functions.iter().map(entry).collect::<Vec<_>>())
}

impl Script {
    /// Writes a page of the VMM's memory, or reads it.
    fn write_page(&mut self, hva: Hva, page: &[u8; 4096]) {
        self.with(|cx, world| {
            for (at, word) in (0..).step_by(8).zip(page.chunks_exact(8)) {
                world.process().write_u64(cx, hva + at, u64::from_le_bytes(word.try_into().unwrap())).unwrap();
            }
        });
    }

    fn read_page(&mut self, hva: Hva) -> Vec<u8> {
        self.with(|cx, world| {
            let word = |at: u64| world.process().read_u64(cx, hva + at).unwrap().to_le_bytes();
            (0..4096).step_by(8).flat_map(word).collect()
        })
    }

    fn digest(&mut self) -> LaunchDigest {
        let gctx = self.of_vm("vm0", |_, vm| Spa::of(vm.sev().unwrap().context().unwrap()));
        self.snp(|_, snp| snp.peek_guest(gctx, |guest| guest.digest).unwrap())
    }
}

#[test]
fn sn_095_values_of_cpuid_that_are_replaced_come_back() {
    let mut script = Script::vm();
    let (fd, uaddr) = (script.open_sev(), script.hva("m0"));
    // TSC_DEADLINE in function 1, TSC_ADJUST and SPEC_CTRL in function 7: the firmware of EPYC processors has none of them.
    let wanted = cpuid_page(&[(1, [1, 2, 1 << 24 | 7, 4]), (7, [5, 1 << 1 | 1, 6, 1 << 26 | 1]), (0x0d, [!0; 4])]);
    let offered = cpuid_page(&[(1, [1, 2, 7, 4]), (7, [5, 1, 6, 1]), (0x0d, [!0; 4])]);
    script.write_page(uaddr, &wanted);
    let before = script.digest();
    let update = SnpLaunchUpdate { gfn_start: Gfn(0x206), uaddr, len: 0x1000, page_type: SnpPageType::CPUID, flags: 0 };
    let (result, cmd) = script.command(SevOp::SnpLaunchUpdate(update), fd);
    assert_eq!((result, cmd.error), (Err(Errno::EIO), FwStatus::InvalidParam.code()));
    // What it would take is in the VMM's page; the guest's went back to the host, and nothing was measured.
    assert_eq!(script.read_page(uaddr), offered[..]);
    let frame = script.frame(0x20_6000).unwrap();
    assert_eq!((script.state(frame), script.digest()), (PageState::Hypervisor, before));
    // And that it takes; the page does not change any more.
    assert_eq!(script.command(SevOp::SnpLaunchUpdate(update), fd).0, Ok(()));
    assert_eq!(script.read_page(uaddr), offered[..]);
    let info = PageInfo::new(PageType::Cpuid, Gpa(0x20_6000)).with_contents(&offered[..]);
    assert_eq!((script.state(frame), script.digest()), (PageState::GuestValid, before.extend(&info)));
    // More functions than there can be are refused, and there is nothing to correct.
    let mut long = *wanted;
    long[0] = 65;
    script.write_page(uaddr, &long);
    let (result, cmd) = script.command(SevOp::SnpLaunchUpdate(SnpLaunchUpdate { gfn_start: Gfn(0x207), ..update }), fd);
    assert_eq!((result, cmd.error), (Err(Errno::EIO), FwStatus::InvalidParam.code()));
    assert_eq!(script.read_page(uaddr), long);
    script.end();
}

#[test]
fn sn_095_only_pages_of_that_type_are_looked_at() {
    for (machine, page_type, answer) in
        [(SnpCpuid::Epyc, "cpuid", "EIO"), (SnpCpuid::Any, "cpuid", "ok"), (SnpCpuid::Epyc, "unmeasured", "ok")]
    {
        let mut script = Script::new(MachineConfig { snp_cpuid: machine, ..MachineConfig::default() });
        script.run(super::VM);
        let uaddr = script.hva("m0");
        script.write_page(uaddr, &cpuid_page(&[(0x8000_0008, [0, 1 << 25, 0, 0])]));
        script.run(&format!("snp_launch_update vm0 0x206000 m0 4K {page_type} => {answer}"));
        script.end();
    }
}

#[test]
fn a_vcpu_runs_although_the_launch_has_not_ended() {
    let mut script = Script::vm();
    script.snp(|cx, snp| snp.inject(cx, Command::LaunchFinish, Injected::Status(FwStatus::InvalidParam)));
    // Its VMSA is launched, and the end of the launch fails: nothing refuses the vCPU, nor the page that it touches.
    script.run(
        "snp_launch_finish vm0                     => EIO
         pre_fault_memory c0 0x200000 4K           => EOPNOTSUPP
         guest_read c0 0x201000                    => system_event 0x100",
    );
    let page = script.frame(0x20_1000).unwrap();
    assert_eq!(script.state(page), PageState::GuestInvalid);
    script.end();
}
