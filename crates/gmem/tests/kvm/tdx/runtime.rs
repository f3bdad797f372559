//! TD-064 to TD-077: a TD runs, memory comes and goes, and the guest asks for conversions.

use super::{RUNNING, Script, TD, config, leaves};
use gmem::kvm::ioctl;
use gmem::kvm::tdx::insn::TdInsn;
use gmem::kvm::vcpu::{ExitInfo, GuestInsn};
use sim_coco::tdx::{Leaf, LineOwner, SeptState};
use std::sync::Arc;

#[test]
fn a_td_is_built_runs_and_ends() {
    let mut script = Script::running();
    script.run(
        "guest_read c0 0x200000                                   => hlt 7
         guest_write c0 0x200000 9                                => hlt
         guest_rmw c0 0x200000 2                                  => hlt
         guest_read c0 0x200000                                   => hlt 11
         guest_accept c0 0x201000                                 => hlt 0
         guest_read c0 0x201000                                   => hlt 0
         guest_write_shared c0 0x208000 5                         => hlt
         host_read m0 0x8000                                      => ok 5
         guest_convert c0 0x208000 private                        => hlt
         guest_read c0 0x208000                                   => hlt 0
         guest_convert c0 0x208000 shared                         => hlt
         guest_read_shared c0 0x208000                            => hlt 5",
    );
    script.of_vm("vm0", |_, vm| vm.check_invariants());
    script.end();
}

#[test]
fn td_064_the_attribute_and_the_access_must_agree() {
    let mut script = Script::running();
    script.run(
        "guest_read c0 0x208000                                   => memory_fault private 0x208000
         guest_read_shared c0 0x200000                            => memory_fault shared 0x200000
         guest_read c0 0x400000                                   => memory_fault private 0x400000
         set_memory_attributes vm0 0x400000 4K private            => ok
         guest_read c0 0x400000                                   => memory_fault private 0x400000",
    );
    script.end();
}

#[test]
fn td_068_a_page_leaves_in_this_order() {
    for erratum in [false, true] {
        let mut script = Script::new(gmem::MachineConfig { tdx_erratum: erratum, ..config() });
        script.run(&format!("{TD}{RUNNING}"));
        script.run("guest_accept c0 0x201000 => hlt 0");
        let page = script.frame(0x20_1000);
        let called = script.with(|cx, world| {
            drop(cx.take_trace());
            let step = gmem::scenario::parse_line("fallocate g0 punch_hole 4K 4K").unwrap();
            world.execute(cx, &step.op);
            leaves(&cx.take_trace())
        });
        let expected = [Leaf::MemRangeBlock, Leaf::MemTrack, Leaf::MemPageRemove, Leaf::PhymemPageWbinvd];
        assert_eq!(called, expected);
        assert_eq!(script.of_td(|tdx| tdx.kicks()), 1);
        assert_eq!(script.sept(0x20_1000), Some(SeptState::Free));
        // Where it matters the page was written as a whole; elsewhere its lines are as the guest's accept has left them.
        let module = script.of_td(|tdx| Arc::clone(tdx.host().tdx()));
        let is_hosts = (0..64).all(|line| module.peek_line(page, line).owner == LineOwner::Host);
        assert_eq!(is_hosts, erratum);
        script.end();
    }
}

#[test]
fn td_071_what_was_shared_comes_back_empty() {
    let mut script = Script::running();
    script.run(
        "guest_accept c0 0x201000                                 => hlt 0
         guest_write c0 0x201000 3                                => hlt
         set_memory_attributes vm0 0x201000 4K shared             => ok
         set_memory_attributes vm0 0x201000 4K private            => ok
         guest_accept c0 0x201000                                 => hlt 0
         guest_read c0 0x201000                                   => hlt 0",
    );
    script.run("set_memory_attributes vm0 0x201000 4K shared => ok");
    assert_eq!(script.sept(0x20_1000), Some(SeptState::Free));
    script.run(
        "set_memory_attributes vm0 0x201000 4K private            => ok
         pre_fault_memory c0 0x201000 4K                          => ok",
    );
    assert_eq!(script.sept(0x20_1000), Some(SeptState::Pending));
    script.end();
}

#[test]
fn td_072_an_access_to_what_was_not_accepted_ends_the_vm() {
    let mut script = Script::running();
    script.run(
        "fallocate g0 punch_hole 0 4K                             => ok
         guest_read c0 0x200000                                   => EIO
         guest_read c0 0x200000                                   => EIO
         enable_cap vm0 exit_hypercall 0                           => EIO",
    );
    assert!(script.with(|cx, world| world.vm(cx, &"vm0".into()).is_some_and(|vm| vm.is_dead() && !vm.is_bugged())));
    script.end();
}

#[test]
fn td_072_without_sept_ve_disable_the_guest_is_told() {
    let mut script = Script::new(config());
    script.run(&TD.replace("tdx_init_vm vm0 ", "tdx_init_vm vm0 attributes=0 "));
    script.run(RUNNING);
    script.run(
        "fallocate g0 punch_hole 0 4K                             => ok
         guest_read c0 0x200000                                   => system_event
         guest_accept c0 0x200000                                 => hlt 0
         guest_read c0 0x200000                                   => hlt 0",
    );
    script.end();
}

#[test]
fn td_073_a_device_is_asked_for_by_tdvmcall() {
    let mut script = Script::running();
    script.run("guest_read_shared c0 0x400000 => mmio read");
    script.run("guest_write_shared c0 0x400000 1 => mmio write");
    let shared = 0x8000_0040_0000_u64;
    for (r12, r13, r14) in [(3, 0, shared), (4, 2, shared), (4, 0, 0x40_0000), (16, 0, shared)] {
        script.run(&format!("guest_tdvmcall c0 mmio r12={r12} r13={r13} r14={r14:#x} => hlt 0x8000000000000000"));
    }
    script.run(&format!("guest_tdvmcall c0 mmio r12=8 r13=0 r14={shared:#x} => mmio read"));
    script.end();
}

#[test]
fn td_070_map_gpa_checks() {
    let mut script = Script::new(config());
    script.run(&TD.replace("enable_cap vm0 exit_hypercall 4096", "check_extension user_memory"));
    script.run(RUNNING);
    script.run("guest_map_gpa c0 0x200000 4K shared => hlt 0x8000000000000003");
    script.run(
        "enable_cap vm0 exit_hypercall 4096                       => ok
         guest_tdvmcall c0 map_gpa r12=0x200000                   => hlt 0x8000000000000000
         guest_tdvmcall c0 map_gpa r12=0x1000000000000 r13=0x1000 => hlt 0x8000000000000000
         guest_tdvmcall c0 map_gpa r12=0x7ffffffff000 r13=0x2000  => hlt 0x8000000000000000
         guest_tdvmcall c0 map_gpa r12=0xfffffffffffff000 r13=0x2000 => hlt 0x8000000000000000
         guest_tdvmcall c0 map_gpa r12=0x200800 r13=0x1000        => hlt 0x8000000000000002
         guest_tdvmcall c0 map_gpa r12=0x200000 r13=0x800         => hlt 0x8000000000000002
         guest_map_gpa c0 0x200000 4K shared reply=11             => hlt 1
         guest_map_gpa c0 0x200000 4K shared reply=22             => hlt 0x8000000000000000
         guest_map_gpa c0 0x200000 4K shared reply=12             => EINVAL
         guest_map_gpa c0 0x200000 4K shared                      => hlt 0
         guest_tdvmcall c0 0x20000                                => hlt 0x8000000000000003
         guest_tdvmcall c0 get_td_vm_call_info                    => hlt 0",
    );
    script.end();
}

/// What user space is told of a MapGPA of 5 MiB, and where its guest goes on.
#[test]
fn td_070_map_gpa_goes_in_pieces_of_2_mib() {
    const AT: u64 = 0x4000_0000;
    const SHARED: u64 = 1 << 47;
    let (again, invalid) = (11, 22);
    for (answers, status, progress) in [
        (vec![0, 0, 0], 0, None),
        (vec![again], 1, Some(AT)),
        (vec![0, again], 1, Some(AT + (2 << 20))),
        (vec![0, 0, invalid], 1 << 63, Some(AT + (4 << 20))),
    ] {
        for shared in [0, SHARED] {
            let mut script = Script::running();
            let (told, rbx, rax) = script.with(|cx, world| {
                let fd = world.fd(&"c0".into());
                let vcpu = ioctl::peek_vcpu(cx, world.process(), fd).unwrap();
                let operands = [AT | shared, 5 << 20, 0, 0];
                vcpu.set_program(cx, &[GuestInsn::Td(TdInsn::VmCall { leaf: 0x1_0001, operands })]);
                let mut told = Vec::new();
                let mut answer = None;
                loop {
                    match ioctl::run_answered(cx, world.process(), fd, answer) {
                        Ok((Ok(()), ExitInfo::Hypercall { nr: 12, args, ret: 0, .. })) => {
                            answer = Some(answers[told.len()]);
                            told.push(args);
                        }
                        Ok((Ok(()), ExitInfo::Hlt)) => break,
                        other => panic!("{other:?}"),
                    }
                }
                let regs = vcpu.regs(cx);
                (told, regs.rbx, regs.rax)
            });
            let encrypted = if shared == 0 { 1 << 4 } else { 0 };
            let pieces =
                [(0, 512), (2 << 20, 512), (4 << 20, 256)].map(|(from, pages)| [AT + from, pages, encrypted, 0]);
            assert_eq!(told, pieces[..answers.len()], "the shared bit is not told");
            assert_eq!(rbx, status);
            if let Some(progress) = progress {
                assert_eq!(rax, progress | shared, "R11 has it");
            }
            script.end();
        }
    }
}

#[test]
fn td_076_a_notifier_does_not_touch_the_mirror() {
    let mut script = Script::running();
    script.run("guest_read c0 0x200000 => hlt 7");
    let before = script.calls(Leaf::MemRangeBlock);
    script.run(
        "madvise m0 0 64K dontneed                                => ok
         guest_read c0 0x200000                                   => hlt 7",
    );
    assert_eq!(script.calls(Leaf::MemRangeBlock), before);
    script.end();
}

#[test]
fn td_077_memory_goes_before_the_keyid() {
    let mut script = Script::running();
    script.run("guest_accept c0 0x201000 => hlt 0");
    let called = script.with(|cx, world| {
        drop(cx.take_trace());
        world.process().exit(cx);
        leaves(&cx.take_trace())
    });
    let first_of = |leaf| called.iter().position(|other| *other == leaf).expect("it is called");
    let last_removal = called.iter().rposition(|leaf| *leaf == Leaf::MemPageRemove).expect("two pages go");
    assert!(last_removal < first_of(Leaf::VpFlush), "{called:?}");
    assert!(first_of(Leaf::MngVpflushdone) < first_of(Leaf::PhymemCacheWb), "{called:?}");
    assert!(first_of(Leaf::PhymemCacheWb) < first_of(Leaf::MngKeyFreeid), "{called:?}");
    assert!(first_of(Leaf::MngKeyFreeid) < first_of(Leaf::PhymemPageReclaim), "{called:?}");
    // Two pages, each with its own TRACK.
    let count = |leaf| called.iter().filter(|other| **other == leaf).count();
    assert_eq!([Leaf::MemRangeBlock, Leaf::MemTrack, Leaf::MemPageRemove].map(count), [2, 2, 2]);
}

#[test]
fn tds_of_one_host_do_not_meet() {
    let mut script = Script::running();
    let other = TD
        .replace("vm0", "vm1")
        .replace("g0", "g1")
        .replace("m0 ", "n0 ")
        .replace("hva=m0", "hva=n0")
        .replace("c0", "d0");
    script.run(&other);
    script.run(
        "tdx_finalize_vm vm1            => ok
         guest_accept d0 0x200000       => hlt 0
         guest_write d0 0x200000 1      => hlt
         guest_read c0 0x200000         => hlt 7
         guest_read d0 0x200000         => hlt 1
         close vm1                      => ok
         close d0                       => ok
         close g1                       => ok
         guest_read c0 0x200000         => hlt 7",
    );
    script.end();
}
