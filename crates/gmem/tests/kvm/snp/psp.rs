//! SN-106, SN-121 and SN-132: the driver of the secure processor and its descriptor: what a command says when the firmware does not answer, refuses, or is not reached.

use super::Script;
use gmem::MachineConfig;
use gmem::kvm::sev::{SevCmd, SevOp, SnpLaunchFinish, SnpLaunchStart, SnpLaunchUpdate, SnpPageType};
use sim_coco::snp::firmware::{Command, FwStatus, Injected};
use sim_coco::snp::{Asid, PageState};
use sim_kernel::{Errno, Faults};
use sim_mmu::Gfn;

/// What the caller left in `error`, to see who writes it.
const BEFORE: u32 = 0x77;

const START: SevOp = SevOp::SnpLaunchStart(SnpLaunchStart { policy: 0x3_0000, gosvw: [0; 16], flags: 0 });

fn finish() -> SevOp {
    SevOp::SnpLaunchFinish(SnpLaunchFinish::default())
}

impl Script {
    /// A command on this VM, whose structure has [`BEFORE`] in `error`: the answer, and what is there afterwards.
    fn told(&mut self, vm: &str, op: SevOp, sev_fd: i32) -> (Result<(), Errno>, u32) {
        self.with(|cx, world| {
            let mut cmd = SevCmd { error: BEFORE, ..SevCmd::new(op, sev_fd) };
            let fd = world.fd(&vm.into());
            (gmem::kvm::ioctl::memory_encrypt_op(cx, world.process(), fd, &mut cmd), cmd.error)
        })
    }

    /// LAUNCH_UPDATE of the page at this address of `vm0`.
    fn update(&mut self, gpa: u64) -> SevOp {
        let uaddr = self.hva("m0");
        let (page_type, gfn_start) = (SnpPageType::NORMAL, Gfn(gpa >> 12));
        SevOp::SnpLaunchUpdate(SnpLaunchUpdate { gfn_start, uaddr, len: 0x1000, page_type, flags: 0 })
    }

    /// From now on, this command is not answered, and none after it.
    fn dies_at(&mut self, command: Command) {
        self.snp(|cx, snp| snp.inject(cx, command, Injected::NoAnswer));
    }

    fn leaked(&mut self) -> Vec<sim_kernel::Pfn> {
        self.sev(|_, sev| sev.leaked())
    }

    fn is_bugged(&mut self) -> bool {
        self.of_vm("vm0", |_, vm| vm.is_bugged())
    }
}

#[test]
fn sn_106_a_launch_whose_firmware_dies() {
    let mut script = Script::vm();
    let fd = script.open_sev();
    let update = script.update(0x20_0000);
    script.dies_at(Command::LaunchUpdate);
    // The page cannot be reclaimed any more: leaked, and the VM of no use.
    assert_eq!(script.told("vm0", update, fd), (Err(Errno::EIO), 0));
    let page = script.frame(0x20_0000).unwrap();
    assert_eq!((script.leaked(), script.state(page), script.is_bugged()), (vec![page], PageState::PreGuest, true));
    // Another VM gets no context; nobody writes the firmware's error then.
    script.run("create_vm vm1 type=snp => ok\n sev_init2 vm1 => ok");
    assert_eq!(script.told("vm1", START, fd), (Err(Errno::ENOTTY), BEFORE));
    let page_of_context = script.leaked()[1];
    assert_eq!(script.state(page_of_context), PageState::Firmware, "what would have become its context");
}

#[test]
fn sn_106_the_end_of_a_launch_whose_firmware_dies() {
    let mut script = Script::vm();
    let fd = script.open_sev();
    script.dies_at(Command::LaunchFinish);
    assert_eq!(script.told("vm0", finish(), fd), (Err(Errno::ETIMEDOUT), 0));
    assert!(!script.of_vm("vm0", |_, vm| vm.peek_pre_fault_allowed()));
    // The VMSA was launched before that, so KVM itself refuses a second try; a VM without vCPUs hears that nobody is asked.
    assert_eq!(script.told("vm0", finish(), fd), (Err(Errno::EINVAL), BEFORE));
    script.end();

    let mut script = Script::new(MachineConfig::default());
    script.run("create_vm vm0 type=snp => ok\n sev_init2 vm0 => ok\n snp_launch_start vm0 => ok");
    let fd = script.open_sev();
    script.dies_at(Command::LaunchFinish);
    assert_eq!(script.told("vm0", finish(), fd), (Err(Errno::ETIMEDOUT), 0));
    assert_eq!(script.told("vm0", finish(), fd), (Err(Errno::EBUSY), BEFORE));
    script.end();
}

#[test]
fn sn_106_a_vmsa_that_cannot_be_reclaimed_is_leaked_once() {
    let mut script = Script::vm();
    let fd = script.open_sev();
    let vmsa = script.with(|cx, world| {
        let vcpu = gmem::kvm::ioctl::peek_vcpu(cx, world.process(), world.fd(&"c0".into())).unwrap();
        vcpu.sev().unwrap().vmsa()
    });
    script.dies_at(Command::LaunchUpdate);
    assert_eq!(script.told("vm0", finish(), fd), (Err(Errno::ETIMEDOUT), 0));
    assert_eq!((script.leaked(), script.state(vmsa), script.is_bugged()), (vec![vmsa], PageState::PreGuest, true));
    script.run("close c0\n close vm0\n close g0");
    assert_eq!(script.leaked().iter().filter(|pfn| **pfn == vmsa).count(), 1, "neither twice nor freed");
    script.end();
}

#[test]
fn sn_106_a_guest_outlives_its_firmware_and_its_end_leaks() {
    let mut script = Script::running();
    script.run(
        "guest_pvalidate c0 0x201000              => hlt 0
         guest_write c0 0x201000 7                => hlt",
    );
    let page = script.frame(0x20_1000).unwrap();
    let context = script.of_vm("vm0", |_, vm| vm.sev().unwrap().context().unwrap());
    script.dies_at(Command::GuestRequest);
    let message = "guest_vmgexit c0 0x208000 guest_request info1=0x209000 info2=0x20a000";
    script.run(&format!("{message} => ETIMEDOUT\n {message} => EBUSY\n {message} => EBUSY"));
    // Memory needs the hardware only.
    script.run(
        "guest_read c0 0x201000                   => hlt 7
         guest_convert c0 0x202000 private        => hlt
         fallocate g0 punch_hole 4K 4K            => ok",
    );
    assert_eq!(script.state(page), PageState::Hypervisor);
    script.run("close c0 => ok\n close g0 => ok\n close vm0 => ok");
    let leaked = script.leaked();
    let states: Vec<PageState> = leaked.iter().map(|pfn| script.state(*pfn)).collect();
    assert_eq!(states, [PageState::Firmware, PageState::Context], "the response page of messages, and the context");
    assert_eq!(leaked[1], context);
    assert_eq!(script.sev(|_, sev| sev.peek_asids()), (vec![Asid(1)], vec![]), "the ASID is never used again");
    script.end();
}

#[test]
fn sn_106_asids_are_not_recycled_by_a_dead_firmware() {
    let mut script = Script::new(MachineConfig { snp_asids: 1, ..MachineConfig::default() });
    script.run("create_vm vm0 type=snp\n sev_init2 vm0 => ok\n close vm0 => ok\n create_vm vm1 type=snp");
    script.dies_at(Command::DfFlush);
    script.run("sev_init2 vm1 => EBUSY\n sev_init2 vm1 => EBUSY");
    assert_eq!(script.sev(|_, sev| sev.peek_asids()), (vec![Asid(1)], vec![Asid(1)]));
    script.end();
}

/// The fault as scenarios have it: whichever command it is, what only the firmware could give back is leaked, and nothing else is lost.
#[test]
fn sn_106_whichever_command_is_not_answered() {
    let lines = "
        create_vm vm0 type=snp
        sev_init2 vm0
        create_vcpu vm0 c0
        mmap m0 len=64K
        create_guest_memfd vm0 g0 size=64K
        set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=64K hva=m0 guest_memfd=g0
        set_memory_attributes vm0 0x200000 32K private
        snp_launch_start vm0
        snp_launch_update vm0 0x200000 m0 8K
        snp_launch_finish vm0
        guest_read c0 0x200000
        fallocate g0 punch_hole 0 4K
    ";
    let mut kinds = std::collections::BTreeSet::new();
    for nth in 1..=9 {
        let faults = Faults { firmware: nth, ..Faults::default() };
        let mut script = Script::new(MachineConfig { faults, ..MachineConfig::default() });
        script.run(lines);
        script.run("close c0\n close g0\n close vm0");
        let leaked = script.leaked();
        kinds.extend(leaked.iter().map(|pfn| format!("{:?}", script.state(*pfn))));
        // GCTX_CREATE, START, ACTIVATE, two UPDATEs, the VMSA, FINISH, reclaim of the response page, DECOMMISSION.
        assert!(!leaked.is_empty(), "{nth}: somebody's page cannot be taken back");
        if matches!(nth, 2..=5) {
            // A START that failed with its context still there lets UPDATE go on. As Linux has it, a page of a guest_memfd that was leaked goes to the allocator with its file all the same.
            let message = script.finding();
            assert!(message.starts_with("SNP-INV-008: "), "{message}");
        } else {
            script.end();
        }
    }
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), ["Context", "Firmware", "PreGuest"]);
}

#[test]
fn who_writes_the_firmwares_error() {
    let mut script = Script::new(MachineConfig::default());
    let lines: Vec<&str> = super::VM.lines().filter(|line| !line.contains("snp_launch_start")).collect();
    script.run(&lines.join("\n"));
    let fd = script.open_sev();
    assert_eq!(script.told("vm0", finish(), fd), (Err(Errno::EINVAL), BEFORE), "nobody was asked");
    script.snp(|cx, snp| snp.inject(cx, Command::Activate, Injected::Status(FwStatus::ResourceLimit)));
    assert_eq!(script.told("vm0", START, fd), (Err(Errno::EIO), FwStatus::ResourceLimit.code()));
    assert_eq!(script.told("vm0", START, fd), (Ok(()), 0));
    let (launched, shared) = (script.update(0x20_0000), script.update(0x20_8000));
    assert_eq!(script.told("vm0", launched, fd), (Ok(()), BEFORE), "of UPDATE, failures only");
    assert_eq!(script.told("vm0", launched, fd), (Err(Errno::EIO), 0), "it is launched already: KVM's own reason");
    assert_eq!(script.told("vm0", shared, fd), (Err(Errno::EIO), 0));
    script.snp(|cx, snp| snp.inject(cx, Command::LaunchUpdate, Injected::Status(FwStatus::InvalidAddress)));
    let refused = script.update(0x20_1000);
    assert_eq!(script.told("vm0", refused, fd), (Err(Errno::EIO), FwStatus::InvalidAddress.code()));
    assert_eq!(script.told("vm0", finish(), fd), (Ok(()), 0));
    script.end();
}

#[test]
fn sn_121_a_context_that_could_not_be_decommissioned_is_still_there() {
    let mut script = Script::new(MachineConfig::default());
    script.run("create_vm vm0 type=snp => ok\n sev_init2 vm0 => ok");
    let fd = script.open_sev();
    script.snp(|cx, snp| {
        snp.inject(cx, Command::LaunchStart, Injected::Status(FwStatus::ResourceLimit));
        snp.inject(cx, Command::Decommission, Injected::Status(FwStatus::InvalidGuest));
    });
    assert_eq!(script.told("vm0", START, fd).0, Err(Errno::EIO));
    assert_eq!(script.told("vm0", START, fd), (Err(Errno::EINVAL), BEFORE), "there is a context");
    assert!(script.leaked().is_empty(), "the end of the VM tries again");
    script.run("close vm0 => ok");
    assert!(script.leaked().is_empty());
    assert_eq!(script.sev(|_, sev| sev.peek_asids()), (vec![Asid(1)], vec![Asid(1)]));
    script.end();
}

#[test]
fn sn_121_descriptors_that_are_not_dev_sev() {
    let mut script = Script::new(MachineConfig::default());
    let lines: Vec<&str> = super::VM.lines().filter(|line| !line.contains("snp_launch_start")).collect();
    script.run(&lines.join("\n"));
    script.run("memfd_create f0 size=4K => ok");
    let foreign = script.with(|_, world| world.fd(&"f0".into()));
    for fd in [-1, 999, foreign] {
        // START cannot tell it from a context that could not be made.
        assert_eq!(script.told("vm0", START, fd), (Err(Errno::ENOTTY), BEFORE), "{fd}");
    }
    let good = script.open_sev();
    assert_eq!(script.told("vm0", START, good), (Ok(()), 0));
    let update = script.update(0x20_0000);
    let vmsa = script.with(|cx, world| {
        let vcpu = gmem::kvm::ioctl::peek_vcpu(cx, world.process(), world.fd(&"c0".into())).unwrap();
        vcpu.sev().unwrap().vmsa()
    });
    for fd in [-1, 999, foreign] {
        assert_eq!(script.told("vm0", update, fd), (Err(Errno::EIO), 0), "{fd}");
        let page = script.frame(0x20_0000).unwrap();
        assert_eq!(script.state(page), PageState::Hypervisor, "it was closed, and reclaimed without a descriptor");
        // The step that measures VMSAs uses the caller's; the VMSA is taken back, so that FINISH can be tried again.
        assert_eq!(script.told("vm0", finish(), fd), (Err(Errno::EBADF), BEFORE), "{fd}");
        assert_eq!(script.state(vmsa), PageState::Hypervisor);
    }
    assert_eq!(script.told("vm0", update, good).0, Ok(()));
    // FINISH itself goes by the number that START was given: closed, then another file's.
    let second = script.open_sev();
    script.with(|cx, world| world.process().close(cx, good)).unwrap();
    assert_eq!(script.told("vm0", finish(), second), (Err(Errno::EBADF), 0), "the VMSA was launched by the caller's");
    script.end();
}

#[test]
fn sn_121_finish_goes_by_the_number_that_start_was_given() {
    let mut script = Script::new(MachineConfig::default());
    script.run("create_vm vm0 type=snp => ok\n sev_init2 vm0 => ok");
    let fd = script.open_sev();
    assert_eq!(script.told("vm0", START, fd), (Ok(()), 0));
    script.with(|cx, world| world.process().close(cx, fd)).unwrap();
    assert_eq!(script.told("vm0", finish(), fd), (Err(Errno::EBADF), BEFORE), "closed since");
    script.run("memfd_create f0 size=4K => ok");
    assert_eq!(script.with(|_, world| world.fd(&"f0".into())), fd, "the lowest number is used again");
    assert_eq!(script.told("vm0", finish(), fd), (Err(Errno::EBADF), BEFORE), "another file's");
    script.run("close f0 => ok");
    assert_eq!(script.open_sev(), fd);
    assert_eq!(script.told("vm0", finish(), -1), (Ok(()), 0), "without vCPUs the caller's is not used");
    script.end();
}

#[test]
fn sn_132_commands_of_sev_before_and_after_init2() {
    let mut script = Script::new(MachineConfig::default());
    script.run("create_vm vm0 type=snp => ok\n create_vm vm1 => ok");
    let fd = script.open_sev();
    // START, UPDATE_VMSA, SEND_START, RECEIVE_FINISH, DBG_DECRYPT, SEND_CANCEL look first whether it is a guest of theirs.
    let of_guests = [2, 4, 8, 15, 17, 21];
    // SEV_INIT, SEND_UPDATE_VMSA, RECEIVE_UPDATE_DATA, CERT_EXPORT, and numbers that nobody has.
    let others = [0, 10, 13, 19, 23, 99, 104];
    for vm in ["vm0", "vm1"] {
        for (ids, errno) in [(&of_guests[..], Errno::ENOTTY), (&others[..], Errno::EINVAL)] {
            for id in ids {
                assert_eq!(script.told(vm, SevOp::Other(*id), fd), (Err(errno), BEFORE), "{id} of {vm}");
            }
        }
    }
    script.run("sev_init2 vm0 => ok");
    for id in of_guests.into_iter().chain(others).filter(|id| *id < 100) {
        assert_eq!(script.told("vm0", SevOp::Other(id), fd), (Err(Errno::EPERM), BEFORE), "{id}");
    }
    assert_eq!(script.told("vm0", SevOp::Other(104), fd), (Err(Errno::EINVAL), BEFORE));
    script.end();
}
