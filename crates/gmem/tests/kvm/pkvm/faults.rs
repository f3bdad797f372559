//! Faults of protected guests and of others.

use super::{INVALID_PARAMETER, Script, VM};
use gmem::MachineConfig;
use sim_coco::pkvm::PageState;
use sim_kernel::Errno;

#[test]
fn pk_007_a_donation_keeps_contents_and_is_pinned_and_accounted() {
    let mut script = Script::vm();
    script.run("host_write m0 0 7 => ok\n guest_read c0 0x200000 => hlt 7");
    let pfn = script.frame(0x20_0000);
    assert_eq!((script.host_state(pfn), script.locked()), (PageState::NoPage, 1));
    script.run("madvise m0 0 4K dontneed => ok\n guest_read c0 0x200000 => hlt 7\n host_read m0 0 => ok 0");
    assert_eq!(script.frame(0x20_0000), pfn, "the mapping has another page by now, the guest has not");
    script.end();
}

#[test]
fn pk_008_one_page_at_two_addresses() {
    let mut script = Script::vm();
    script.run(
        "set_user_memory_region vm0 slot=1 gpa=0x400000 size=64K hva=m0 => ok
         guest_write c0 0x200000 1 => hlt
         guest_read c0 0x400000 => EPERM",
    );
    assert_eq!((script.records().len(), script.locked()), (1, 1), "who fails gives pin and accounting back");
    script.run(
        "create_vm vm1 => ok
         create_vcpu vm1 c1 => ok
         set_user_memory_region vm1 slot=0 gpa=0x200000 size=64K hva=m0 => ok
         guest_read c1 0x200000 => EPERM
         set_user_memory_region vm1 slot=1 gpa=0x400000 size=64K hva=m0 => ok
         guest_read c1 0x203000 => hlt 0
         guest_read c1 0x403000 => hlt 0",
    );
    script.end();
}

#[test]
fn pk_012_pk_013_what_a_guest_shares() {
    let mut script = Script::vm();
    script.run(&format!(
        "guest_hypercall c0 0xc6000002 [0, 0, 0] => hlt 0x1000
         guest_hypercall c0 0xc6000002 [1, 0, 0] => {INVALID_PARAMETER}
         guest_hypercall c0 0xc6000007 [0x200000, 0, 0] => hlt 0xffffffffffffffff
         guest_hypercall c0 0xc6000004 [0x200000, 0, 0] => {INVALID_PARAMETER}
         guest_hypercall c0 0xc6000003 [0x200800, 0, 0] => {INVALID_PARAMETER}
         guest_hypercall c0 0xc6000003 [0x200000, 1, 0] => {INVALID_PARAMETER}
         guest_hypercall c0 0xc6000003 [0x200000, 0, 0] => hlt 0
         host_write m0 0 9 => ok
         guest_read c0 0x200000 => hlt 9
         guest_hypercall c0 0xc6000003 [0x200000, 0, 0] => {INVALID_PARAMETER}
         guest_hypercall c0 0xc6000004 [0x200000, 0, 0] => hlt 0
         host_read m0 0 => SIGSEGV
         guest_read c0 0x200000 => hlt 9
         guest_set_memory c0 0x20f000 8K shared => system_event 0",
    ));
    script.end();
}

#[test]
fn pk_022_what_cannot_be_pinned() {
    // A page of a file that is not swapped: guest_memfd's, through a mapping of the VMM.
    let mut script = Script::new(MachineConfig { memlock: 8 << 10, ..MachineConfig::default() });
    script.run(VM);
    script.run(
        "create_guest_memfd vm0 g0 size=16K flags=mmap|init_shared => ok
         mmap m1 fd=g0 len=16K shared=true => ok
         set_user_memory_region vm0 slot=1 gpa=0x400000 size=16K hva=m1 => ok
         guest_read c0 0x400000 => EIO
         mmap m2 len=16K prot=r => ok
         set_user_memory_region vm0 slot=2 gpa=0x500000 size=16K hva=m2 => ok
         guest_read c0 0x500000 => EFAULT
         guest_write c0 0x200000 1 => hlt
         guest_write c0 0x201000 1 => hlt
         guest_write c0 0x202000 1 => ENOMEM",
    );
    assert_eq!((script.locked(), script.records().len()), (2, 2));
    script.run("guest_write c0 0x200000 2 => hlt");
    // SIGBUS for the VMM, and the guest would try again.
    let mut broken = Script::new(MachineConfig { memory_failure: true, ..MachineConfig::default() });
    broken.run(VM);
    broken.run(
        "create_guest_memfd vm0 g0 size=16K flags=mmap|init_shared => ok
         mmap m1 fd=g0 len=16K shared=true => ok
         set_user_memory_region vm0 slot=1 gpa=0x400000 size=16K hva=m1 => ok
         host_write m1 0x1000 1 => ok
         madvise m1 0x1000 4K hwpoison
         guest_read c0 0x401000 => intr",
    );
    assert_eq!(broken.locked(), 0);
    script.end();
}

#[test]
fn pk_005_what_vms_of_the_other_kind_ask() {
    let mut script = Script::new(MachineConfig::default());
    script.run(
        "create_vm vm0 => ok
         create_vm vm1 type=0x80000028 => ok
         create_vm vm2 type=0x80000027 => EINVAL
         create_vm vm3 type=0x100000000 => EINVAL
         create_vm vm4 type=1 => EINVAL
         create_vcpu vm0 c0 => ok
         mmap m0 len=16K => ok
         set_user_memory_region vm0 slot=0 gpa=0x200000 size=16K hva=m0 => ok
         guest_write c0 0x200000 1 => hlt
         guest_set_memory c0 0x200000 4K shared => hlt 0xffffffffffffffff
         host_read m0 0 => ok 1",
    );
    let pfn = script.frame(0x20_0000);
    assert_eq!(script.host_state(pfn), PageState::SharedOwned);
    script.end();
    // Elsewhere the type does not exist.
    let mut plain = gmem::interp::Sequential::new(MachineConfig::default());
    let answer = plain
        .with(|cx, world| world.execute(cx, &gmem::scenario::parse_line("create_vm vm0 type=protected").unwrap().op));
    assert!(answer.to_string().contains(&Errno::EINVAL.to_string()), "{answer}");
}

#[test]
fn a_vcpu_that_was_created_after_the_first_run_never_runs() {
    let mut script = Script::vm();
    script.run(
        "guest_read c0 0x200000 => hlt 0
         create_vcpu vm0 c1 index=1 => ok
         guest_read c1 0x200000 => EINVAL
         guest_read c0 0x200000 => hlt 0",
    );
    script.end();
}

#[test]
fn what_is_no_memory_is_user_spaces() {
    let mut script = Script::vm();
    script.run(
        "guest_read c0 0x800000 => mmio read
         guest_write c0 0x800000 1 => mmio write
         guest_rmw c0 0x800000 1 => system_event 0
         guest_read c0 0xfffffffff000 => system_event 0
         create_vm vm1 => ok
         create_vcpu vm1 c1 => ok
         guest_rmw c1 0x800000 1 => ENOSYS",
    );
    script.end();
}

#[test]
fn pk_010_pk_026_blocks_of_other_vms_and_their_permissions() {
    let mut script = Script::new(MachineConfig::default());
    script.run(
        "create_vm vm0 => ok
         create_vcpu vm0 c0 => ok
         mmap m0 len=4M align=2M => ok
         set_user_memory_region vm0 slot=0 gpa=0x200000 size=4M hva=m0 => ok
         host_write m0 0 7 => ok
         guest_read c0 0x205000 => hlt 0",
    );
    let [record] = script.records()[..] else { panic!("one record") };
    assert_eq!((record.gfn.0, record.nr_pages), (0x200, 512));
    script.run(
        "mprotect m0 0 4K r => ok
         guest_read c0 0x200000 => hlt 7
         guest_write c0 0x200000 8 => EFAULT
         mprotect m0 0 4K rw => ok
         guest_write c0 0x200000 8 => hlt
         set_user_memory_region vm0 slot=0 flags=log_dirty gpa=0x200000 size=4M hva=m0 => ok
         guest_write c0 0x201000 9 => hlt
         get_dirty_log vm0 0 1024 => ok [1]
         page_idle_mark m0 0 16K => ok
         guest_read c0 0x201000 => hlt 9
         host_read m0 4K => ok 9",
    );
    script.end();
}
