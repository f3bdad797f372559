//! The end of a VM.

use super::Script;
use sim_coco::pkvm::PageState;

/// A VM with a page of its own, one that it shares, and one that was taken by force.
fn mixed() -> Script {
    let mut script = Script::vm();
    script.run(
        "memfd_create f0 size=16K => ok
         mmap m1 fd=f0 len=16K shared=true => ok
         set_user_memory_region vm0 slot=1 gpa=0x400000 size=16K hva=m1 => ok
         guest_write c0 0x400000 1 => hlt
         guest_write c0 0x401000 2 => hlt
         guest_set_memory c0 0x401000 4K shared => hlt 0
         guest_write c0 0x402000 3 => hlt
         pread f0 8K 4K => ok 0x1000",
    );
    script
}

#[test]
fn pk_017_what_each_page_holds_afterwards() {
    let mut script = mixed();
    let pages = [0x40_0000, 0x40_1000, 0x40_2000].map(|gpa| script.frame(gpa));
    assert_eq!(script.locked(), 3);
    script.run("close c0 => ok\n close vm0 => ok");
    assert_eq!(pages.map(|pfn| script.host_state(pfn)), [PageState::Owned; 3]);
    assert_eq!(script.locked(), 0, "pins and locked memory are as at the start");
    script.run("host_read m1 0 => ok 0\n host_read m1 4K => ok 2\n host_read m1 8K => ok 0");
    script.end();
}

#[test]
fn pk_017_the_process_ends_before_its_vm() {
    // Its descriptors are closed after its memory is gone.
    mixed().end();
}

#[test]
fn a_vm_that_never_ran_gives_its_handle_back() {
    let mut script = Script::vm();
    let first = script.of_vm("vm0", |_, vm| vm.pkvm().unwrap().handle());
    script.run("close c0 => ok\n close vm0 => ok\n create_vm vm0 => ok");
    assert_eq!(script.of_vm("vm0", |_, vm| vm.pkvm().unwrap().handle()), first);
    script.end();
}

#[test]
fn pk_023_two_vcpus_have_one_page() {
    let mut script = Script::vm();
    script.run(
        "create_vcpu vm0 c1 index=1 => ok
         guest_write c0 0x200000 1 => hlt
         guest_read c1 0x200000 => hlt 1",
    );
    assert_eq!((script.records().len(), script.locked()), (1, 1));
    script.end();
}
