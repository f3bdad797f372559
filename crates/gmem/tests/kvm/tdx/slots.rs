//! What KVM's own interface answers for a TD otherwise than for an ordinary VM: slots, the dirty log, registers, capabilities, and a VM that is dead.

use super::{RUNNING, Script, TD, config};
use gmem::interp::World;
use gmem::kvm::ioctl::peek_vcpu;
use gmem::kvm::vcpu::Vcpu;
use sim_kernel::{Cx, Errno};
use std::sync::Arc;

fn vcpu(cx: &Cx<'_>, world: &World) -> Arc<Vcpu> {
    peek_vcpu(cx, world.process(), world.fd(&"c0".into())).expect("it was created")
}

#[test]
fn no_slot_is_read_only_or_above_the_shared_bit() {
    let mut script = Script::new(gmem::MachineConfig { maxphyaddr: 52, ..config() });
    script.run(TD);
    script.run(
        "set_user_memory_region vm0 slot=1 flags=readonly gpa=0x400000 size=16K hva=m0 => EINVAL
         set_user_memory_region vm0 slot=1 gpa=0x800000000000 size=16K hva=m0      => EINVAL
         set_user_memory_region vm0 slot=1 gpa=0x7ffffffff000 size=8K hva=m0       => EINVAL
         set_user_memory_region vm0 slot=1 gpa=0x7fffffffe000 size=8K hva=m0       => ok",
    );
    script.end();
}

#[test]
fn what_a_td_may_have_is_asked_of_the_td() {
    let mut script = Script::td();
    script.run(
        "check_extension 81                             => ok 1
         check_extension 81 vm0                         => ok 0
         check_extension 66                                => ok 4096
         check_extension 66 vm0                            => ok 64",
    );
    script.end();
}

#[test]
fn the_registers_of_a_td_are_not_to_be_set() {
    let mut script = Script::running();
    script.with(|cx, world| {
        let vcpu = vcpu(cx, world);
        let context = vcpu.context(cx);
        assert_eq!(vcpu.start(cx, &context, &[]), Err(Errno::EINVAL));
    });
    script.end();
}

/// A processor's log of modified pages is no business of TDs: with or without it their shared memory is write-protected to log it.
#[test]
fn shared_memory_is_logged_by_write_protection() {
    for pml in [false, true] {
        let mut script = Script::new(gmem::MachineConfig { pml, ..config() });
        script.run(&format!("{TD}{RUNNING}"));
        script.run(
            "mmap m2 len=16K                                          => ok
             set_user_memory_region vm0 slot=1 flags=log_dirty gpa=0x400000 size=16K hva=m2 => ok
             guest_write_shared c0 0x401000 1                         => hlt
             get_dirty_log vm0 1 4                                    => ok [1]
             guest_write_shared c0 0x401000 2                         => hlt
             guest_write_shared c0 0x403000 2                         => hlt
             get_dirty_log vm0 1 4                                    => ok [1, 3]
             get_dirty_log vm0 1 4                                    => ok []",
        );
        script.end();
    }
}

/// A request that says so is never taken: whoever enters later is refused like the first.
#[test]
fn a_vm_that_is_dead_stays_dead() {
    let mut script = Script::running();
    script.run(
        "fallocate g0 punch_hole 0 4K                             => ok
         guest_read c0 0x200000                                   => EIO",
    );
    let answers = script.with(|cx, world| [(); 3].map(|()| vcpu(cx, world).run(cx).0));
    assert_eq!(answers, [Err(Errno::EIO); 3]);
    script.end();
}
