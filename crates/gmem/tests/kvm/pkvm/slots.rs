//! Slots and notifiers.

use super::Script;
use gmem::MachineConfig;
use gmem::kvm::mutants::PKVM_ABORT_NO_RETRY;
use gmem::runner;
use gmem::scenario::{Scenario, parse};
use sim_coco::pkvm::PageState;
use sim_kernel::sched::{Chooser, LogLevel, Random};
use std::path::Path;

#[test]
fn pk_020_slots_of_a_vm_that_has_run() {
    let mut script = Script::vm();
    script.run(
        "set_user_memory_region vm0 slot=1 flags=readonly gpa=0x400000 size=4K hva=m0 => EPERM
         set_user_memory_region vm0 slot=0 flags=log_dirty gpa=0x200000 size=64K hva=m0 => EPERM
         set_user_memory_region vm0 slot=0 gpa=0x300000 size=64K hva=m0 => ok
         set_user_memory_region vm0 slot=0 gpa=0x200000 size=64K hva=m0 => ok
         guest_write c0 0x200000 1 => hlt
         set_user_memory_region vm0 slot=0 gpa=0x300000 size=64K hva=m0 => EPERM
         set_user_memory_region vm0 slot=0 gpa=0x200000 size=0 hva=m0 => EPERM
         set_user_memory_region vm0 slot=0 flags=log_dirty gpa=0x200000 size=64K hva=m0 => EPERM
         set_user_memory_region vm0 slot=1 gpa=0x400000 size=4K hva=m0 => ok
         guest_read c0 0x200000 => hlt 1
         enable_cap vm0 exit_hypercall 4096 => EINVAL
         check_extension 14 vm0 => ok 0
         check_extension 16 vm0 => ok 1
         check_extension 81 vm0 => ok 0
         check_extension guest_memfd vm0 => ok 1
         check_extension memory_attributes vm0 => ok 0
         set_memory_attributes vm0 0x200000 4K private => ENOTTY",
    );
    script.end();
}

#[test]
fn pk_021_notifiers() {
    let mut script = Script::vm();
    script.run(
        "create_vm vm1 => ok
         create_vcpu vm1 c1 => ok
         set_user_memory_region vm1 slot=0 gpa=0x200000 size=64K hva=m0 => ok
         guest_write c0 0x200000 1 => hlt
         guest_write c1 0x201000 2 => hlt",
    );
    let protected = script.frame(0x20_0000);
    let shared = script.of_vm("vm1", |_, vm| vm.pkvm().unwrap().mappings()[0].pfn);
    assert_eq!((script.host_state(protected), script.host_state(shared)), (PageState::NoPage, PageState::SharedOwned));
    script.run("munmap m0 0 8K => ok");
    assert_eq!((script.host_state(protected), script.host_state(shared)), (PageState::NoPage, PageState::Owned));
    assert!(script.of_vm("vm1", |_, vm| vm.pkvm().unwrap().mappings().is_empty()));
    script.run("guest_read c0 0x200000 => hlt 1\n guest_read c1 0x201000 => EFAULT");
    script.end();
}

#[test]
fn pk_028_guest_memfds_on_arm64() {
    let mut script = Script::vm();
    script.run(
        "create_guest_memfd vm0 g0 size=16K => ok
         set_user_memory_region2 vm0 slot=1 flags=guest_memfd gpa=0x400000 size=16K hva=m0 guest_memfd=g0 => EINVAL
         create_guest_memfd vm0 g1 size=16K flags=mmap|init_shared => ok
         mmap m1 fd=g1 len=16K shared=true => ok
         set_user_memory_region2 vm0 slot=1 flags=guest_memfd gpa=0x400000 size=16K hva=m1 guest_memfd=g1 => ok
         guest_read c0 0x400000 => EIO
         guest_read c0 0x200000 => hlt 0",
    );
    script.end();
}

#[test]
fn pk_030_a_hole_in_what_another_guest_has() {
    let mut script = Script::new(MachineConfig::default());
    script.run(
        "create_vm vm0 => ok
         create_vcpu vm0 c0 => ok
         create_guest_memfd vm0 g0 size=16K flags=mmap|init_shared => ok
         mmap m0 fd=g0 len=16K shared=true => ok
         set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=16K hva=m0 guest_memfd=g0 => ok
         guest_write c0 0x200000 7 => hlt
         guest_write c0 0x201000 8 => hlt
         host_read m0 0 => ok 7",
    );
    let pfn = script.frame(0x20_0000);
    assert_eq!(script.host_state(pfn), PageState::SharedOwned);
    script.run("fallocate g0 punch_hole 0 4K => ok");
    assert_eq!((script.host_state(pfn), script.records().len()), (PageState::Owned, 1));
    script.run("guest_read c0 0x200000 => hlt 0\n close g0 => ok\n munmap m0 0 16K => ok\n guest_read c0 0x200000 => memory_fault shared");
    script.end();
}

/// The same as a race: whatever the order, the guest has nothing after the hole that the file has not; without the test of the sequence it has.
#[test]
fn pk_030_a_hole_against_a_fault() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios/pkvm/np-fault-against-punch.toml");
    let source = std::fs::read_to_string(&path).unwrap();
    let scenario = parse("np-fault-against-punch.toml", &source).unwrap_or_else(|e| panic!("{}", e.render(false)));
    let runs = |scenario: &Scenario| -> Vec<bool> {
        let run = |seed| runner::run(scenario, Chooser::Random(Random::new()), seed, LogLevel::Off).is_as_expected();
        (0..300).map(run).collect()
    };
    assert!(runs(&scenario).into_iter().all(|held| held));
    let mut without = scenario.clone();
    without.machine.mutants = without.machine.mutants.with(PKVM_ABORT_NO_RETRY);
    assert!(runs(&without).into_iter().any(|held| !held));
}
