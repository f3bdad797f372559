//! The host's accesses to what it does not have.

use super::{INVALID_PARAMETER, Script};
use sim_coco::pkvm::PageState;

#[test]
fn pk_003_pk_012_a_process_gets_a_signal_and_a_system_call_an_error() {
    let mut script = Script::vm();
    script.run(
        "guest_write c0 0x200000 7 => hlt
         host_read m0 0 => SIGSEGV
         host_write m0 0 1 => SIGSEGV
         host_write64 m0 8 1 => SIGSEGV
         guest_read c0 0x200000 => hlt 7",
    );
    script.end();
}

#[test]
fn pk_014_the_kernel_takes_the_page() {
    let mut script = Script::vm();
    script.run(
        "memfd_create f0 size=16K => ok
         mmap m1 fd=f0 len=16K shared=true => ok
         set_user_memory_region vm0 slot=1 gpa=0x400000 size=16K hva=m1 => ok
         guest_write c0 0x400000 7 => hlt
         guest_write c0 0x401000 8 => hlt",
    );
    let pfn = script.frame(0x40_0000);
    script.run("pread f0 0 4K => ok 0x1000");
    assert_eq!((script.host_state(pfn), script.locked()), (PageState::Owned, 2), "it stays pinned and accounted");
    script.run(&format!(
        "host_read m1 0 => ok 0
         guest_read c0 0x400000 => EFAULT
         guest_read c0 0x400000 => EFAULT
         guest_set_memory c0 0x400000 4K shared => {INVALID_PARAMETER}
         guest_set_memory c0 0x400000 4K private => {INVALID_PARAMETER}
         guest_read c0 0x401000 => hlt 8
         guest_set_memory c0 0x401000 4K shared => hlt 0
         pread f0 4K 4K => ok 0x1000
         guest_read c0 0x401000 => hlt 8
         pwrite f0 8K 4K => ok 0x1000
         guest_read c0 0x402000 => hlt 0",
    ));
    script.end();
}

#[test]
fn a_huge_page_with_a_page_of_a_guest_does_not_collapse() {
    let mut script = Script::vm();
    script.run(
        "mmap m1 len=2M align=2M => ok
         madvise m1 0 2M nohugepage => ok
         host_write m1 0 1 => ok
         set_user_memory_region vm0 slot=1 gpa=0x400000 size=2M hva=m1 => ok
         guest_read c0 0x400000 => hlt 1
         madvise m1 0 2M hugepage => ok
         madvise m1 0 2M collapse => EAGAIN
         guest_read c0 0x400000 => hlt 1",
    );
    script.end();
}
