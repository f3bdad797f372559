//! SN-160 to SN-162, SN-164, SN-165: vCPUs that a guest starts and stops; messages to the firmware.

use super::Script;
use super::races::faults_for_ever;
use gmem::kvm::ioctl;
use gmem::kvm::sev::{MpState, SevOp, SnpLaunchStart};
use sim_coco::snp::PageState;
use sim_kernel::{Errno, Faults};

/// A second vCPU, and an accepted page at 0x203000 that is a VMSA.
const AP: &str = "
    guest_pvalidate c0 0x200000                              => hlt 0
    guest_write c0 0x200000 7                                => hlt
    guest_pvalidate c0 0x203000                              => hlt 0
    guest_make_vmsa c0 0x203000                              => hlt 0
";

fn two_vcpus() -> Script {
    let mut script = Script::vm();
    script.run("create_vcpu vm0 c1 1                              => ok");
    script.run(super::RUNNING);
    script.run(AP);
    script
}

#[test]
fn sn_160_what_ap_creation_takes() {
    let mut script = two_vcpus();
    let malformed = "hlt 0x8000000000000005";
    for (what, arguments) in [
        ("features", "info1=0x100000001 info2=0x203000 rax=5"),
        ("misaligned", "info1=0x100000001 info2=0x203008"),
        ("2 MiB aligned", "info1=0x100000001 info2=0x400000"),
        ("beyond memory", "info1=0x100000001 info2=0xfffffffff000"),
        ("no such vCPU", "info1=0x900000001 info2=0x203000"),
        ("no such request", "info1=0x100000003 info2=0x203000"),
        ("from VMPL 1", "info1=0x100010001 info2=0x203000"),
    ] {
        println!("{what}");
        script.run(&format!("guest_vmgexit c0 0x208000 ap_creation {arguments} => {malformed}"));
    }
    script.run(
        "guest_vmgexit c0 0x208000 ap_creation info1=0x100000001 info2=0x203000 => hlt 0
         guest_read c1 0x200000                   => hlt 7",
    );
    script.end();
}

#[test]
fn sn_160_a_page_that_is_no_vmsa_is_not_entered_with() {
    let mut script = two_vcpus();
    script.run(
        "guest_pvalidate c0 0x204000              => hlt 0
         guest_vmgexit c0 0x208000 ap_creation info1=0x100000001 info2=0x204000 => hlt 0
         guest_read c1 0x200000                   => fail_entry
         guest_vmgexit c0 0x208000 ap_creation info1=0x100000001 info2=0x500000 => hlt 0
         guest_read c1 0x200000                   => EINVAL",
    );
    script.end();
}

#[test]
fn sn_161_a_vcpu_without_vmsa_does_not_run() {
    let mut script = two_vcpus();
    script.run(
        "guest_vmgexit c0 0x208000 ap_creation info1=0x100000001 info2=0x203000 => hlt 0
         guest_read c1 0x200000                   => hlt 7
         guest_vmgexit c0 0x208000 ap_creation info1=0x100000002 => hlt 0",
    );
    let runnable = |script: &mut Script| {
        script.with(|cx, world| {
            let vcpu = ioctl::peek_vcpu(cx, world.process(), world.fd(&"c1".into())).unwrap();
            vcpu.set_mp_state(cx, MpState::Runnable).unwrap();
        });
    };
    // The request that is still to be served halts it; another vCPU's program would wait for ever.
    script.with(|cx, world| {
        let vcpu = ioctl::peek_vcpu(cx, world.process(), world.fd(&"c1".into())).unwrap();
        assert_ne!(vcpu.peek_requests(), 0);
        cx.send_signal(cx.task());
        let (result, _) = vcpu.run(cx);
        assert_eq!(result, Err(sim_kernel::Errno::EINTR));
        cx.clear_signals();
    });
    runnable(&mut script);
    script.run("guest_read c1 0x200000                    => EINVAL");
    script.run(
        "guest_vmgexit c0 0x208000 ap_creation info1=0x100000001 info2=0x203000 => hlt 0
         guest_read c1 0x200000                   => hlt 7",
    );
    script.end();
}

#[test]
fn sn_162_a_hole_under_a_vmsa() {
    let mut script = two_vcpus();
    script.run(
        "guest_vmgexit c0 0x208000 ap_creation info1=0x100000001 info2=0x203000 => hlt 0
         guest_read c1 0x200000                   => hlt 7",
    );
    let page = script.frame(0x20_3000).unwrap();
    script.run("fallocate g0 punch_hole 12K 4K           => ok");
    assert_eq!(script.state(page), PageState::Hypervisor);
    // The vCPU looks the page up again; a new one is no VMSA.
    script.run("guest_read c1 0x200000                    => fail_entry");
    let fresh = script.frame(0x20_3000).unwrap();
    assert_eq!(script.state(fresh), PageState::GuestInvalid);
    assert!(!script.entry(fresh).vmsa);
    script.end();
}

#[test]
fn sn_162_a_vmsa_that_cannot_be_had_again_is_none() {
    let mut script = two_vcpus();
    script.run(
        "guest_vmgexit c0 0x208000 ap_creation info1=0x100000001 info2=0x203000 => hlt 0
         guest_read c1 0x200000                   => hlt 7
         fallocate g0 punch_hole 12K 4K           => ok",
    );
    // The frame for the new page is the next that is asked for.
    script.with(|_, world| world.process().host().phys().inject(&Faults { frame: 1, ..Faults::default() }));
    script.run(
        "guest_read c1 0x200000                   => EINVAL
         guest_read c1 0x200000                   => EINVAL
         guest_read c0 0x200000                   => hlt 7",
    );
    assert_eq!(script.frame(0x20_3000), None);
    script.end();
}

#[test]
fn sn_160_sn_077_what_the_vmsa_says_decides_whether_it_runs() {
    for (vmsa, answer) in [
        ("features=snp_active vmpl=0", "hlt 7"),
        ("features=0", "fail_entry"),
        ("features=debug_swap", "fail_entry"),
        ("features=snp_active|debug_swap", "fail_entry"),
        ("features=0x201", "fail_entry"),
        ("vmpl=4", "fail_entry"),
    ] {
        let mut script = two_vcpus();
        script.run(&format!(
            "guest_make_vmsa c0 0x203000 {vmsa}       => hlt 0
             guest_vmgexit c0 0x208000 ap_creation info1=0x100000001 info2=0x203000 => hlt 0
             guest_read c1 0x200000                   => {answer}"
        ));
        script.end();
    }
}

#[test]
fn sn_053_a_vcpu_at_another_vmpl_may_do_nothing_else() {
    let second = super::VM.replace("snp_launch_start", "create_vcpu vm0 c1 1 => ok\n snp_launch_start");
    let at_2 = "
        guest_make_vmsa c0 0x203000 vmpl=2       => hlt 0
        guest_vmgexit c0 0x208000 ap_creation info1=0x100000001 info2=0x203000 => hlt 0
        guest_rmpadjust c0 0x200000 vmpl=2 perms=r => hlt 0
        guest_read c1 0x200000                   => hlt 7
    ";
    // A write where it may read, and a read of what it was not given: the RMP refuses, KVM has nothing to do, the guest tries again.
    for operation in ["guest_write c1 0x200000 1", "guest_read c1 0x203000"] {
        faults_for_ever(&format!("{second}{}{AP}{at_2}", super::RUNNING), operation);
    }
}

#[test]
fn sn_053_a_vcpu_at_another_vmpl_may_do_what_it_was_given() {
    let mut script = two_vcpus();
    script.run(
        "guest_pvalidate c0 0x204000              => hlt 0
         guest_write c0 0x204000 5                => hlt
         guest_rmpadjust c0 0x204000 vmpl=2 perms=r => hlt 0
         guest_make_vmsa c0 0x203000 vmpl=2       => hlt 0
         guest_vmgexit c0 0x208000 ap_creation info1=0x100000001 info2=0x203000 => hlt 0
         guest_read c1 0x204000                   => hlt 5
         guest_rmpadjust c1 0x204000 vmpl=1       => hlt 2
         guest_rmpadjust c1 0x204000 vmpl=3 perms=r => hlt 0
         guest_rmpadjust c1 0x204000 vmpl=3 perms=r|w => hlt 2
         guest_rmpadjust c0 0x204000 vmpl=2 perms=r|w => hlt 0
         guest_write c1 0x204000 6                => hlt
         guest_read c0 0x204000                   => hlt 6",
    );
    script.end();
}

#[test]
fn sn_164_the_answer_of_the_firmware_is_copied_also_if_it_refuses() {
    let mut script = Script::running();
    // An empty message: the firmware knows no such key or type. The response page is filled nevertheless.
    script.run(
        "set_memory_attributes vm0 0x209000 8K shared => ok
         guest_vmgexit c0 0x208000 guest_request info1=0x209000 info2=0x209000 => hlt 0x8000000000000005
         guest_vmgexit c0 0x208000 guest_request info1=0x209001 info2=0x20a000 => hlt 0x8000000000000005
         host_write64 m0 0xa000 0x1111            => ok
         host_write64 m0 0xaff8 0x2222            => ok
         guest_vmgexit c0 0x208000 guest_request info1=0x209000 info2=0x20a000 => hlt 0x16
         host_read64 m0 0xa000                    => ok 0
         host_read64 m0 0xaff8                    => ok 0",
    );
    script.end();
}

#[test]
fn no_vcpu_is_half_made_at_the_end_of_the_launch() {
    let mut script = Script::vm();
    script.run(
        "create_vcpu vm0 c1 1                     => ok
         create_vcpu vm0 c2 1                     => EEXIST
         snp_launch_finish vm0                    => ok
         guest_pvalidate c0 0x201000              => hlt 0
         guest_write c1 0x201000 3                => hlt
         guest_read c0 0x201000                   => hlt 3",
    );
    script.end();
}

#[test]
fn sn_160_a_vmsa_where_there_is_no_guest_memfd_is_none() {
    let mut script = two_vcpus();
    script.run(
        "mmap m1 len=16K                          => ok
         set_user_memory_region vm0 slot=1 gpa=0x400000 size=16K hva=m1 => ok
         guest_vmgexit c0 0x208000 ap_creation info1=0x100000001 info2=0x401000 => hlt 0
         guest_read c1 0x200000                   => EINVAL
         guest_vmgexit c0 0x208000 ap_creation info1=0x100000001 info2=0x203000 => hlt 0
         guest_read c1 0x200000                   => hlt 7",
    );
    script.end();
}

#[test]
fn sn_164_pages_of_a_message_that_cannot_be_reached_are_errors_of_kvm_run() {
    let mut script = Script::running();
    script.run(
        "set_memory_attributes vm0 0x209000 8K shared => ok
         mmap m1 len=16K                          => ok
         set_user_memory_region vm0 slot=1 gpa=0x400000 size=16K hva=m1 flags=readonly => EINVAL
         set_user_memory_region vm0 slot=1 gpa=0x400000 size=16K hva=m1 => ok
         mprotect m1 0 16K r                      => ok
         guest_vmgexit c0 0x208000 guest_request info1=0x900000 info2=0x209000 => EIO
         guest_vmgexit c0 0x208000 guest_request info1=0x209000 info2=0x900000 => EIO
         guest_vmgexit c0 0x208000 guest_request info1=0x209000 info2=0x400000 => EIO
         guest_vmgexit c0 0x208000 ext_guest_request info1=0x900000 info2=0x209000 => EIO
         guest_vmgexit c0 0x208000 guest_request info1=0x209000 info2=0x20a000 => hlt 0x16",
    );
    script.end();
}

#[test]
fn sn_164_a_message_goes_by_the_descriptor_that_start_was_given() {
    let mut script = Script::new(gmem::MachineConfig::default());
    let lines: Vec<&str> = super::VM.lines().filter(|line| !line.contains("snp_launch_start")).collect();
    script.run(&lines.join("\n"));
    let fd = script.open_sev();
    let start = SnpLaunchStart { policy: 0x3_0000, ..SnpLaunchStart::default() };
    let (started, _) = script.command(SevOp::SnpLaunchStart(start), fd);
    assert_eq!(started, Ok(()));
    script.run(super::RUNNING);
    let message = "guest_vmgexit c0 0x208000 guest_request info1=0x209000 info2=0x20a000";
    script.run(&format!("{message} => hlt 0x16"));
    script.with(|cx, world| world.process().close(cx, fd)).unwrap();
    script.run(&format!("{message} => EBADF"));
    script.end();
}

#[test]
fn sn_165_certificates_are_the_vmms() {
    let mut script = Script::new(gmem::MachineConfig::default());
    let (before, after) = super::VM.split_once("create_vcpu").unwrap();
    script.run(before);
    let fd = script.open_sev();
    assert_eq!(script.command(SevOp::SnpEnableReqCerts, fd).0, Ok(()));
    script.run(&format!("create_vcpu{after}"));
    script.run(super::RUNNING);
    assert_eq!(script.command(SevOp::SnpEnableReqCerts, fd).0, Err(Errno::EINVAL), "there are vCPUs");
    // The type of a request for a report, and the GHCB's RBX.
    script.run("host_write64 m0 0x9030 0x500000000 => ok");
    let message = "guest_vmgexit c0 0x208000 ext_guest_request info1=0x209000 info2=0x20a000 rax=0x20b000";
    for (reply, answer) in [
        ("28", "hlt 0x100000000"),
        ("0x30000001c", "hlt 0x100000000"),
        ("11", "hlt 0x200000000"),
        ("5", "hlt 0xffffffff00000000"),
        ("1", "EINVAL"),
        ("0", "hlt 0x16"),
    ] {
        script.run(&format!("{message} reply={reply} => {answer}"));
        let pages = if reply == "0x30000001c" { 3 } else { 0 };
        script.run(&format!("host_read64 m0 0x8318 => ok {pages}"));
    }
    script.end();
}
