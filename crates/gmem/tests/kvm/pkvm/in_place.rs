//! guest_memfd under protected VMs, as it is proposed.

use super::Script;
use gmem::MachineConfig;
use sim_coco::pkvm::PageState;

fn script(flags: &str) -> Script {
    let mut script = Script::new(MachineConfig { pkvm_gmem: true, memlock: 0, ..MachineConfig::default() });
    script.run(&format!(
        "create_vm vm0 type=protected => ok
         create_vcpu vm0 c0 => ok
         create_guest_memfd vm0 g0 size=64K flags={flags} => ok
         mmap m0 fd=g0 len=64K shared=true => ok
         set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=64K hva=m0 guest_memfd=g0 => ok"
    ));
    script
}

#[test]
fn pages_change_in_place() {
    let mut script = script("mmap");
    script.run("host_read m0 0 => SIGBUS\n guest_write c0 0x200000 7 => hlt\n host_read m0 0 => SIGBUS");
    let pfn = script.frame(0x20_0000);
    assert_eq!((script.host_state(pfn), script.locked()), (PageState::NoPage, 0), "no pin, nothing accounted");
    script.run(
        "guest_set_memory c0 0x200000 4K shared => hlt 0
         host_read m0 0 => ok 7
         host_write m0 0 8 => ok
         guest_set_memory c0 0x200000 4K private => hlt 0
         host_read m0 0 => SIGBUS
         guest_read c0 0x200000 => hlt 8",
    );
    assert_eq!(script.frame(0x20_0000), pfn);
    script.end();
}

#[test]
fn taking_back_waits_for_who_holds_the_page() {
    let mut script = script("mmap");
    script.run("guest_write c0 0x200000 7 => hlt\n guest_set_memory c0 0x200000 4K shared => hlt 0");
    let pfn = script.frame(0x20_0000);
    // As get_user_pages does for a device.
    script.with(|_, world| world.process().host().phys().get(pfn));
    script.run("guest_set_memory c0 0x200000 4K private => memory_fault private\n host_read m0 0 => ok 7");
    script.with(|cx, world| world.process().host().phys().put(cx, pfn));
    script.run("guest_set_memory c0 0x200000 4K private => hlt 0\n host_read m0 0 => SIGBUS");
    script.end();
}

#[test]
fn an_image_is_loaded_in_place() {
    let mut script = script("mmap|init_shared");
    script.run("host_write m0 0 7 => ok\n guest_read c0 0x200000 => hlt 7\n host_read m0 0 => SIGBUS\n host_read m0 4K => ok 0");
    script.end();
}

#[test]
fn a_hole_takes_pages_by_force() {
    let mut script = script("mmap");
    script.run(
        "guest_write c0 0x200000 7 => hlt
         guest_write c0 0x201000 8 => hlt
         guest_set_memory c0 0x201000 4K shared => hlt 0",
    );
    let [private, shared] = [script.frame(0x20_0000), script.frame(0x20_1000)];
    script.run("fallocate g0 punch_hole 0 8K => ok");
    let allocated = |script: &mut Script, pfn| script.with(|_, world| world.process().host().phys().is_allocated(pfn));
    assert_eq!(script.host_state(private), PageState::Owned);
    assert!(!allocated(&mut script, private), "it is free");
    assert!(allocated(&mut script, shared), "the guest has it until the end");
    script.run("guest_read c0 0x200000 => EFAULT\n guest_read c0 0x201000 => hlt 8\n host_read m0 4K => ok 0");
    script.end();
}

#[test]
fn the_file_is_closed_before_the_vm() {
    let mut script = script("mmap");
    script.run(
        "guest_write c0 0x200000 7 => hlt
         munmap m0 0 64K => ok
         close g0 => ok
         guest_read c0 0x200000 => EFAULT
         guest_read c0 0x201000 => memory_fault private",
    );
    script.end();
}
