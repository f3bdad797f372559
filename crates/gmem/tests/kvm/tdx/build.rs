//! TD-060 to TD-063, TD-067: a TD is built, what is refused on the way, and its measurement.

use super::{Script, TD, config};
use gmem::kvm::ioctl;
use gmem::kvm::tdx::{
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, TdxCapabilities, TdxCmd, TdxCpuidEntry, TdxInitMemRegion, TdxInitVm, TdxOp,
};
use sim_coco::tdx::{Leaf, SeptState};
use sim_kernel::{Cx, Errno, Hva, Pgoff};
use sim_mmu::Gpa;

impl Script {
    /// A command on the VM: its answer, and what became of it.
    fn of_vm_command(&mut self, cmd: TdxCmd) -> (Result<(), Errno>, TdxCmd) {
        self.with(|cx, world| {
            let mut cmd = cmd;
            let result = ioctl::memory_encrypt_op_tdx(cx, world.process(), world.fd(&"vm0".into()), &mut cmd);
            (result, cmd)
        })
    }

    /// The same on the vCPU.
    fn of_vcpu_command(&mut self, cmd: TdxCmd) -> (Result<(), Errno>, TdxCmd) {
        self.with(|cx, world| {
            let mut cmd = cmd;
            let result = ioctl::memory_encrypt_op_vcpu(cx, world.process(), world.fd(&"c0".into()), &mut cmd);
            (result, cmd)
        })
    }

    fn init_vm(&mut self, init: TdxInitVm) -> Result<(), Errno> {
        self.of_vm_command(TdxCmd::new(TdxOp::InitVm(Box::new(init)))).0
    }

    fn hva(&mut self, map: &str) -> Hva {
        self.with(|_, world| world.map(&map.into()))
    }

    fn mrtd(&mut self) -> String {
        let mrtd = self.of_td(|tdx| tdx.host().tdx().peek_td(tdx.tdr().unwrap()).unwrap().mrtd.expect("it is final"));
        mrtd.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[test]
fn without_tdx_there_are_no_tds() {
    Script::new(gmem::MachineConfig::default()).run("create_vm vm0 type=tdx => EINVAL");
    let npt = gmem::MachineConfig { stage2: gmem::Stage2Kind::Npt, ..config() };
    Script::new(npt).run(
        "create_vm vm0 type=tdx     => EINVAL
         create_vm vm1              => ok
         create_vcpu vm1 c1         => ok
         tdx_init_vcpu c1           => ENOTTY",
    );
    let no_dirty_bits = gmem::MachineConfig { ept_ad_bits: false, ..config() };
    Script::new(no_dirty_bits).run("create_vm vm0 type=tdx => EINVAL");
    let mut script = Script::new(config());
    script.run(
        "create_vm vm0 type=tdx     => ok
         check_extension vm_types   => ok 35
         create_vm vm1              => ok
         tdx_init_vm vm1            => ENOTTY
         tdx_finalize_vm vm1        => ENOTTY
         create_vcpu vm1 c1         => ok
         tdx_init_vcpu c1           => EINVAL",
    );
    script.end();
}

/// A TD with a value of CPUID more.
fn with_entry(entry: TdxCpuidEntry) -> TdxInitVm {
    let default = TdxInitVm::default();
    TdxInitVm { cpuid: [default.cpuid.clone(), vec![entry]].concat(), nent: 2, ..default }
}

/// The checks in their order: each input is wrong in what is checked there and in all that is checked later.
#[test]
fn td_060_init_vm_checks_in_this_order() {
    let mut script = Script::new(config());
    script.run(
        "create_vm vm0 type=tdx  => ok
         create_vcpu vm0 c0      => EIO
         tdx_finalize_vm vm0     => EINVAL",
    );
    let wrong = TdxInitVm {
        attributes: 1,
        is_clean: false,
        nent: 257,
        cpuid: vec![TdxCpuidEntry { function: 0x4000_0000, ..TdxCpuidEntry::default() }],
        ..TdxInitVm::default()
    };
    let command = |init: &TdxInitVm| TdxCmd::new(TdxOp::InitVm(Box::new(init.clone())));
    let supplied = TdxCmd { hw_error: 1, flags: 1, ..command(&wrong) };
    assert_eq!(script.of_vm_command(supplied).0, Err(Errno::EINVAL));
    assert_eq!(script.of_vm_command(TdxCmd { flags: 1, ..command(&wrong) }).0, Err(Errno::EINVAL));
    assert_eq!(script.init_vm(wrong.clone()), Err(Errno::E2BIG));
    let wrong = TdxInitVm { nent: 1, ..wrong };
    assert_eq!(script.init_vm(wrong.clone()), Err(Errno::EINVAL), "reserved fields");
    let wrong = TdxInitVm { is_clean: true, nent: 2, ..wrong };
    assert_eq!(script.init_vm(wrong.clone()), Err(Errno::EINVAL), "a number of entries that changes");
    for init in [
        TdxInitVm { attributes: 1, ..TdxInitVm::default() },
        TdxInitVm { xfam: 1 << 40, ..TdxInitVm::default() },
        TdxInitVm { cpuid: Vec::new(), nent: 0, ..TdxInitVm::default() },
        TdxInitVm::with_width(47),
        TdxInitVm {
            cpuid: [TdxInitVm::default().cpuid, vec![TdxCpuidEntry { function: 2, ..TdxCpuidEntry::default() }]]
                .concat(),
            nent: 2,
            ..TdxInitVm::default()
        },
        TdxInitVm {
            cpuid: [TdxInitVm::default().cpuid, TdxInitVm::default().cpuid].concat(),
            nent: 2,
            ..TdxInitVm::default()
        },
        with_entry(TdxCpuidEntry { function: 7, registers: [0, 1 << 11, 0, 0], ..TdxCpuidEntry::default() }),
        with_entry(TdxCpuidEntry { function: 7, registers: [0, 1 << 4, 0, 0], ..TdxCpuidEntry::default() }),
        with_entry(TdxCpuidEntry { function: 7, registers: [0, 0, 1 << 5, 0], ..TdxCpuidEntry::default() }),
        with_entry(TdxCpuidEntry {
            function: 1,
            index: 7,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            ..TdxCpuidEntry::default()
        }),
    ] {
        assert_eq!(script.init_vm(init.clone()), Err(Errno::EINVAL), "{init:?}");
    }
    assert_eq!(script.calls(Leaf::MngCreate), 0, "nothing was created for any of them");
    // What only the module refuses: bits of XFAM that belong together.
    let (refused, cmd) = script.of_vm_command(command(&TdxInitVm { xfam: 1 << 5 | 3, ..TdxInitVm::default() }));
    assert_eq!((refused, cmd.hw_error), (Err(Errno::EINVAL), 0xc000_0100_0000_0041), "OPERAND_INVALID|XFAM");
    assert!(script.host(|_, host| host.peek_keyids()).is_empty(), "what was created has been taken apart");
    // An index counts only if the entry says so.
    let entry = TdxCpuidEntry { function: 1, index: 7, ..TdxCpuidEntry::default() };
    assert_eq!(script.init_vm(with_entry(entry)), Ok(()));
    assert_eq!(script.init_vm(TdxInitVm::default()), Err(Errno::EINVAL), "once");
    script.run("create_vcpu vm0 c0 => ok");
    script.end();
}

#[test]
fn td_060_keyids_are_limited_and_come_back() {
    let mut script = Script::new(gmem::MachineConfig { tdx_hkids: 1, ..config() });
    script.run(
        "create_vm vm0 type=tdx  => ok
         create_vm vm1 type=tdx  => ok
         tdx_init_vm vm0         => ok
         tdx_init_vm vm1         => ENOSPC
         close vm0               => ok
         tdx_init_vm vm1         => ok",
    );
    script.end();
}

#[test]
fn td_060_a_td_of_52_bits_has_its_shared_bit_at_51() {
    let mut script = Script::new(config());
    script.run(&TD.replace("tdx_init_vm vm0 ", "tdx_init_vm vm0 width=52"));
    script.run(
        "tdx_finalize_vm vm0             => ok
         guest_accept c0 0x201000        => hlt 0
         guest_write c0 0x201000 3       => hlt
         guest_read c0 0x201000          => hlt 3
         guest_write_shared c0 0x208000 4  => hlt
         host_read m0 0x8000             => ok 4",
    );
    script.end();
}

#[test]
fn capabilities_say_what_init_vm_takes() {
    let mut script = Script::new(config());
    script.run("create_vm vm0 type=tdx => ok");
    let with_room =
        |entries| TdxCapabilities { cpuid: vec![TdxCpuidEntry::default(); entries], ..TdxCapabilities::default() };
    let few = TdxCmd::new(TdxOp::Capabilities(with_room(3)));
    assert_eq!(script.of_vm_command(few.clone()), (Err(Errno::E2BIG), few));
    let (result, cmd) = script.of_vm_command(TdxCmd::new(TdxOp::Capabilities(with_room(9))));
    let TdxOp::Capabilities(known) = cmd.op else { panic!("it stays what it was") };
    assert_eq!((result, known.supported_attrs, known.user_tdvmcallinfo_1_r11), (Ok(()), 1 << 28, 2));
    assert_eq!(known.cpuid.len(), 4);
    let features = known.cpuid.iter().find(|entry| entry.function == 7).expect("features may be given");
    assert_eq!(features.registers, [u32::MAX, !(1 << 4 | 1 << 11), !(1 << 5), u32::MAX]);
    let all = TdxInitVm { attributes: known.supported_attrs, xfam: known.supported_xfam, ..TdxInitVm::default() };
    assert_eq!(script.init_vm(all), Ok(()));
    script.end();
}

#[test]
fn td_061_what_a_region_must_be() {
    let mut script = Script::td();
    script.run(
        "mmap m1 len=16K                                         => ok
         tdx_init_mem_region c0 0x200000 m1 4K flags=2           => EINVAL
         tdx_init_mem_region c0 0x200800 m1 4K                   => EINVAL
         tdx_init_mem_region c0 0x200000 m1+0x10 4K              => EINVAL
         tdx_init_mem_region c0 0x200000 0 4K                    => EINVAL
         tdx_init_mem_region c0 0x200000 m1 0                    => EINVAL
         tdx_init_mem_region c0 0x800000200000 m1 4K             => EINVAL
         tdx_init_mem_region c0 0x7ffffffff000 m1 8K             => EINVAL
         tdx_init_mem_region c0 0xfffffffffffff000 m1 8K         => EINVAL
         tdx_init_mem_region c0 0x208000 m1 4K                   => EINVAL
         tdx_init_mem_region c0 0x400000 m1 4K                   => EINVAL
         tdx_init_mem_region c0 0x200000 0x1000 4K               => EFAULT
         tdx_init_mem_region c0 0x200000 m1 4K                   => ok
         tdx_init_mem_region c0 0x200000 m1 4K                   => EIO
         create_vcpu vm0 c1 index=1                              => ok
         tdx_init_mem_region c1 0x201000 m1 4K                   => EINVAL
         tdx_init_vcpu c1 flags=1                                => EINVAL
         tdx_init_vcpu c1                                        => ok
         tdx_init_vcpu c1                                        => EINVAL
         tdx_init_mem_region c1 0x201000 m1 4K                   => ok
         tdx_finalize_vm vm0                                     => ok
         tdx_init_mem_region c0 0x202000 m1 4K                   => EINVAL",
    );
    script.end();
}

#[test]
fn td_061_what_a_page_must_be() {
    let mut script = Script::td();
    script.run(
        "mmap m1 len=16K                                                         => ok
         set_user_memory_region vm0 slot=1 gpa=0x400000 size=16K hva=m1          => ok
         set_memory_attributes vm0 0x400000 16K private                          => ok
         set_memory_attributes vm0 0x800000 16K private                          => ok
         tdx_init_mem_region c0 0x400000 m1 4K                                   => EINVAL
         tdx_init_mem_region c0 0x800000 m1 4K                                   => EINVAL
         fallocate g0 keep_size 4K 4K                                            => ok",
    );
    let broken = script.with(|cx, world| {
        let file = ioctl::peek_gmem(cx, world.process(), world.fd(&"g0".into())).unwrap();
        file.memory_failure(cx, Pgoff(1))
    });
    assert_eq!(broken, Err(Errno::EBUSY), "nobody can mend it");
    script.run(
        "tdx_init_mem_region c0 0x200000 m1 8K                                   => EHWPOISON
         close g0                                                                => ok
         tdx_init_mem_region c0 0x202000 m1 4K                                   => EFAULT",
    );
    script.of_vm("vm0", |_, vm| assert!(!vm.is_dead()));
}

#[test]
fn td_061_progress_is_told_also_with_an_error() {
    let mut script = Script::td();
    script.run("mmap m1 len=64K => ok");
    let region = TdxInitMemRegion { source_addr: script.hva("m1"), gpa: Gpa(0x20_6000), nr_pages: 4 };
    // The third page is shared.
    let (result, cmd) = script.of_vcpu_command(TdxCmd::new(TdxOp::InitMemRegion(region)));
    let left = TdxInitMemRegion { source_addr: region.source_addr + 0x2000, gpa: Gpa(0x20_8000), nr_pages: 2 };
    assert_eq!((result, cmd.op), (Err(Errno::EINVAL), TdxOp::InitMemRegion(left)));
    script.end();
}

#[test]
fn td_061_a_signal_stops_it_and_it_goes_on_from_there() {
    let mut script = Script::td();
    script.run("mmap m1 len=64K => ok");
    let region = TdxInitMemRegion { source_addr: script.hva("m1"), gpa: Gpa(0x20_0000), nr_pages: 4 };
    script.with(|cx, _| cx.send_signal(cx.task()));
    let (result, cmd) = script.of_vcpu_command(TdxCmd::new(TdxOp::InitMemRegion(region)));
    assert_eq!((result, &cmd.op), (Err(Errno::EINTR), &TdxOp::InitMemRegion(region)));
    script.with(|cx: &Cx<'_>, _| cx.clear_signals());
    assert_eq!(script.of_vcpu_command(cmd).0, Ok(()));
    script.end();
}

/// The vectors of the specification's section 11, through KVM: each page is added, then measured.
#[test]
fn td_062_mrtd_is_that_of_what_was_added() {
    let none = "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b";
    let mut script = Script::td();
    script.run("tdx_finalize_vm vm0 => ok");
    assert_eq!(script.mrtd(), none);
    script.end();

    let low = TD.replace("gpa=0x200000", "gpa=0").replace("vm0 0x200000 32K", "vm0 0 32K");
    let v1 = "8f3e9a8aca6784eab874f7aa4dda5d49104a88047f1f86695ef2a88f5691a90e34aac48ce45ffa1f5a23c7d62980d570";
    let v3 = "236f0efa607ff8843f1855d7ef80dc3dda8fb455787a186b8787212951eab0096e3193bb26f817c2b63c21f5e10f9938";
    let v5 = "ce2d39d83ed72dec8f6e303d395baf5ba5dc0e3627f1f5804d1bcf7145ea602f564175835bd53a98e68db61209a99e79";
    let v7 = "ccd5746e64f677a4135861ab4ea44fff8f1976b9a78eee76351e1339c6878ffb14e378c43d523aea8ea2f961bb4a4643";
    let one = "tdx_init_mem_region c0 0 m1 4K";
    for (lines, mrtd) in [
        (one.to_string(), v1),
        (format!("{one} measure"), v3),
        (format!("tdx_init_mem_region c0 0x1000 m1 4K => ok\n{one} => ok"), v7),
    ] {
        let mut script = Script::new(config());
        script.run(&format!("{low}\nmmap m1 len=8K => ok\n{lines}\ntdx_finalize_vm vm0 => ok"));
        assert_eq!(script.mrtd(), mrtd, "{lines}");
        script.end();
    }
    // Pages 0 and 1, page n filled with byte n.
    let mut script = Script::new(config());
    script.run(&format!("{low}\nmmap m1 len=8K => ok"));
    for word in (0..4096).step_by(8) {
        script.run(&format!("host_write64 m1 {} 0x0101010101010101 => ok", 4096 + word));
    }
    script.run("tdx_init_mem_region c0 0 m1 8K measure => ok\ntdx_finalize_vm vm0 => ok");
    assert_eq!(script.mrtd(), v5);
    script.end();
}

#[test]
fn td_063_nothing_runs_before_the_end_of_the_launch() {
    let mut script = Script::new(config());
    script.run(TD);
    script.run(
        "guest_read c0 0x200000                  => EINVAL
         pre_fault_memory c0 0x200000 4K         => EOPNOTSUPP
         tdx_finalize_vm vm0                     => ok
         tdx_finalize_vm vm0                     => EINVAL
         create_vcpu vm0 c1 index=1              => EIO
         pre_fault_memory c0 0x800000200000 4K   => EINVAL
         pre_fault_memory c0 0x200000 4K         => ok",
    );
    assert_eq!(script.sept(0x20_0000), Some(SeptState::Pending));
    script.end();
}

/// `KVM_RUN` asks whether the vCPU was initialised; a pre-fault does not, and has KVM tell the module of a vCPU that there is not.
#[test]
fn td_063_a_vcpu_that_was_not_initialised() {
    let mut script = Script::td();
    script.run(
        "create_vcpu vm0 c1 index=1              => ok
         tdx_finalize_vm vm0                     => ok
         guest_read c1 0x200000                  => EINVAL
         guest_accept c0 0x200000                => hlt 0
         pre_fault_memory c1 0x201000 4K         => EIO
         enable_cap vm0 exit_hypercall 0         => EIO",
    );
    assert_eq!(script.sept(0x20_1000), Some(SeptState::Free));
    assert!(script.with(|cx, world| world.vm(cx, &"vm0".into()).is_some_and(|vm| vm.is_bugged())));
    script.end();
}

#[test]
fn td_063_a_td_without_a_vcpu_is_broken_by_its_end() {
    let mut script = Script::new(config());
    script.run(
        "create_vm vm0 type=tdx             => ok
         tdx_init_vm vm0                    => ok
         tdx_finalize_vm vm0                => EIO
         enable_cap vm0 exit_hypercall 0     => EIO",
    );
    script.end();
}

#[test]
fn td_067_before_the_end_of_the_launch_a_page_goes_without_tracking() {
    let mut script = Script::td();
    script.run(
        "mmap m1 len=4K                                  => ok
         tdx_init_mem_region c0 0x200000 m1 4K           => ok
         fallocate g0 punch_hole 0 4K                    => ok",
    );
    assert_eq!(script.sept(0x20_0000), Some(SeptState::Free));
    let [block, track, remove] =
        [Leaf::MemRangeBlock, Leaf::MemTrack, Leaf::MemPageRemove].map(|leaf| script.calls(leaf));
    assert_eq!((block, track, remove, script.of_td(|tdx| tdx.kicks())), (1, 0, 1, 0));
    script.run("tdx_init_mem_region c0 0x200000 m1 4K => ok");
    script.end();
}
