//! SN-141 to SN-144, SN-146, SN-150, SN-151: faults, conversions, holes.

use super::Script;
use super::races::faults_for_ever;
use super::rmp::Large;
use gmem::MachineConfig;
use sim_coco::snp::PageState;
use sim_mmu::Level;

#[test]
fn sn_141_first_touch_assigns_a_page_and_the_guest_hears_of_it() {
    let mut script = Script::running();
    assert_eq!(script.frame(0x20_1000), None);
    script.run("guest_read c0 0x201000                   => system_event 0x100");
    let page = script.frame(0x20_1000).unwrap();
    assert_eq!(script.state(page), PageState::GuestInvalid);
    let entry = script.entry(page);
    assert_eq!((entry.asid.0, entry.gpa.0, entry.immutable), (1, 0x20_1000, false));
    script.run(
        "guest_pvalidate c0 0x201000              => hlt 0
         guest_write c0 0x201000 5                => hlt
         guest_read c0 0x201000                   => hlt 5",
    );
    assert_eq!(script.frame(0x20_1000), Some(page));
    assert_eq!(script.state(page), PageState::GuestValid);
    // One RMPUPDATE for the page, whatever came after the first touch.
    assert_eq!(script.snp(|_, snp| snp.rmp().changes(page)[0]), 1);
    script.end();
}

#[test]
fn sn_142_sn_067_sn_047_an_access_against_the_attribute_asks_the_vmm() {
    let mut script = Script::running();
    script.run(
        "guest_read c0 0x209000                   => memory_fault private 0x209000
         guest_pvalidate c0 0x209000              => memory_fault private 0x209000
         guest_read_shared c0 0x201000            => memory_fault shared 0x201000
         guest_write_shared c0 0x201000 1         => memory_fault shared 0x201000
         guest_read c0 0x900000                   => memory_fault private 0x900000",
    );
    script.end();
}

#[test]
fn sn_143_to_shared_and_back_is_the_same_page() {
    let mut script = Script::running();
    script.run(
        "guest_pvalidate c0 0x201000              => hlt 0
         guest_write c0 0x201000 7                => hlt
         guest_pvalidate c0 0x201000 validate=rescind => hlt 0
         set_memory_attributes vm0 0x201000 4K shared => ok
         guest_write_shared c0 0x201000 1         => hlt",
    );
    let page = script.frame(0x20_1000).unwrap();
    // It stays assigned: KVM does not touch the RMP in a conversion.
    assert_eq!(script.state(page), PageState::GuestInvalid);
    script.run(
        "set_memory_attributes vm0 0x201000 4K private => ok
         guest_pvalidate c0 0x201000              => hlt 0
         guest_read c0 0x201000                   => hlt 7
         set_memory_attributes vm0 0x201000 4K shared  => ok
         set_memory_attributes vm0 0x201000 4K private => ok
         guest_pvalidate c0 0x201000              => hlt 255
         guest_read c0 0x201000                   => hlt 7",
    );
    assert_eq!(script.frame(0x20_1000), Some(page));
    // With a hole in between it is another page, and what is in it means nothing.
    script.run(
        "guest_pvalidate c0 0x201000 validate=rescind => hlt 0
         set_memory_attributes vm0 0x201000 4K shared  => ok
         fallocate g0 punch_hole 4K 4K            => ok
         set_memory_attributes vm0 0x201000 4K private => ok
         guest_read c0 0x201000                   => system_event 0x100
         guest_pvalidate c0 0x201000              => hlt 0",
    );
    let found = script.with(|cx, world| {
        let op = gmem::scenario::parse_line("guest_read c0 0x201000").unwrap().op;
        world.execute(cx, &op).to_string()
    });
    assert!(!found.contains("\"value\": 7}") && !found.contains("\"value\": 0}"), "{found}");
    script.end();
}

#[test]
fn sn_144_a_hole_gives_the_page_back() {
    let mut script = Script::running();
    script.run(
        "guest_pvalidate c0 0x201000              => hlt 0
         guest_write c0 0x201000 7                => hlt",
    );
    let page = script.frame(0x20_1000).unwrap();
    script.run("fallocate g0 punch_hole 4K 4K            => ok");
    assert_eq!(script.state(page), PageState::Hypervisor);
    assert_eq!(script.frame(0x20_1000), None);
    let is_free = script.with(|_, world| !world.process().host().phys().is_allocated(page));
    assert!(is_free);
    // The translation went, too: a new page, which nobody has accepted.
    script.run("guest_read c0 0x201000                   => system_event 0x100");
    assert!(script.frame(0x20_1000).is_some());
    script.run("fallocate g0 punch_hole 4K 4K            => ok");
    // Whoever gets it may write it.
    script.run("mmap m1 len=64K => ok\n host_fill64 m1 0 64K 9 => ok");
    script.end();
}

#[test]
fn sn_061_the_host_sees_ciphertext() {
    let mut script = Script::running();
    script.run("guest_pvalidate c0 0x201000 => hlt 0\n guest_write c0 0x201000 7 => hlt");
    let page = script.frame(0x20_1000).unwrap();
    let read = |script: &mut Script| {
        script.snp(|cx, snp| {
            let mut bytes = [0; 4];
            snp.host_read(cx, page, 0, &mut bytes);
            u32::from_le_bytes(bytes)
        })
    };
    let first = read(&mut script);
    assert_ne!(first, 7);
    // The same value again is the same ciphertext: there is nothing fresh in it.
    script.run("guest_write c0 0x201000 8 => hlt");
    assert_ne!(read(&mut script), first);
    script.run("guest_write c0 0x201000 7 => hlt");
    assert_eq!(read(&mut script), first);
    script.end();

    let mut hidden = Script::new(MachineConfig { ciphertext_hiding: true, ..MachineConfig::default() });
    hidden.run(super::VM);
    hidden.run(super::RUNNING);
    hidden.run("guest_pvalidate c0 0x201000 => hlt 0\n guest_write c0 0x201000 7 => hlt");
    let page = hidden.frame(0x20_1000).unwrap();
    let bytes = hidden.snp(|cx, snp| {
        let mut bytes = [0; 4];
        snp.host_read(cx, page, 0, &mut bytes);
        bytes
    });
    assert_eq!(bytes, [0xff; 4]);
    hidden.end();
}

/// The slot is made again at another address, over a page that the guest has accepted and written.
const MOVED: &str = "
    guest_pvalidate c0 0x200000              => hlt 0
    guest_write c0 0x200000 7                => hlt
    set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=0 hva=m0 guest_memfd=g0 => ok
    set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x400000 size=64K hva=m0 guest_memfd=g0 => ok
    set_memory_attributes vm0 0x400000 64K private => ok
    pre_fault_memory c0 0x400000 4K          => ok
";

#[test]
fn sn_150_a_page_that_was_assigned_at_another_address_only_faults() {
    let mut script = Script::running();
    script.run(MOVED);
    let page = script.frame(0x20_0000).unwrap();
    let entry = script.entry(page);
    assert_eq!(entry.gpa.0, 0x20_0000, "KVM looks only whether it is assigned");
    // So the guest faults for ever, and reads nothing. Neither can it accept the page.
    for operation in ["guest_read c0 0x400000", "guest_write c0 0x400000 1", "guest_pvalidate c0 0x400000"] {
        faults_for_ever(&format!("{}{}{MOVED}", super::VM, super::RUNNING), operation);
    }
    // After a hole it works.
    script.run(
        "fallocate g0 punch_hole 0 4K             => ok
         guest_pvalidate c0 0x400000              => hlt 0
         guest_write c0 0x400000 1                => hlt
         guest_read c0 0x400000                   => hlt 1",
    );
    script.end();
}

#[test]
fn sn_151_a_slot_that_goes_leaves_the_rmp_as_it_is() {
    let mut script = Script::running();
    script.run("guest_pvalidate c0 0x201000 => hlt 0");
    let page = script.frame(0x20_1000).unwrap();
    script.run("set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=0 hva=m0 guest_memfd=g0 => ok");
    assert_eq!(script.state(page), PageState::GuestValid);
    script.run("close g0 => ok");
    assert_eq!(script.state(page), PageState::Hypervisor);
    script.end();
}

#[test]
fn sn_049_what_was_rescinded_is_vc() {
    let mut script = Script::running();
    script.run(
        "guest_pvalidate c0 0x201000              => hlt 0
         guest_write c0 0x201000 7                => hlt
         guest_pvalidate c0 0x201000 validate=rescind => hlt 0
         guest_read c0 0x201000                   => system_event 0x100
         guest_pvalidate c0 0x201000              => hlt 0
         guest_read c0 0x201000                   => hlt 7",
    );
    script.end();
}

#[test]
fn sn_045_sn_051_answers_of_guest_instructions() {
    let mut script = Script::running();
    script.run(
        "guest_pvalidate c0 0x200000 size=2M      => hlt 6
         guest_pvalidate c0 0x201000 size=2M      => hlt 1
         guest_rmpadjust c0 0x201000 vmpl=0       => hlt 2
         guest_rmpadjust c0 0x201000 vmpl=9       => hlt 1
         guest_rmpadjust c0 0x201000 vmpl=256     => hlt 1
         guest_rmpadjust c0 0x201000 vmpl=1 perms=256 => hlt 1
         guest_pvalidate c0 0x201000 size=1G      => hlt 1
         guest_pvalidate c0 0x201000 size=3       => hlt 1
         guest_pvalidate c0 0x201000              => hlt 0
         guest_rmpadjust c0 0x201000 vmpl=1 perms=r|w => hlt 0",
    );
    let page = script.frame(0x20_1000).unwrap();
    assert_eq!(script.entry(page).perms[1].bits(), 3);
    script.end();
}

#[test]
fn sn_045_sn_051_registers_are_looked_at_before_the_page() {
    let mut script = Script::running();
    // Neither page may be touched: one is shared, the other is nowhere.
    script.run(
        "guest_pvalidate c0 0x20c000 size=2M      => hlt 1
         guest_pvalidate c0 0x901000 size=2M      => hlt 1
         guest_rmpadjust c0 0x20c000 vmpl=0       => hlt 2
         guest_rmpadjust c0 0x901000 vmpl=9       => hlt 1
         guest_pvalidate c0 0x20c000              => memory_fault private 0x20c000",
    );
    script.end();
}

#[test]
fn sn_121_flags_are_passed_on_whole() {
    let mut script = Script::new(MachineConfig::default());
    script.run("create_vm vm0 type=snp => ok\n sev_init2 vm0 flags=0x100000000 => EINVAL\n sev_init2 vm0 => ok");
    script.end();
}

#[test]
fn sn_146_a_page_of_2m_is_split_when_a_part_is_used() {
    let Large { mut script, head, gpa } = Large::new();
    let levels = |script: &mut Script| {
        script.of_vm("vm0", |cx, vm| {
            let sev = vm.sev().unwrap();
            [head, head + 5, head + 511].map(|pfn| sev.gmem_max_mapping_level(cx, pfn))
        })
    };
    assert_eq!(levels(&mut script), [Level::L2M; 3]);
    // What is mapped around the page that faults: in front of it, behind it in the region, in the 512 pages from it on, and behind those.
    let around = [0, 4, 6, 511, 512, 516, 517, 519];
    let mapped = |script: &mut Script| {
        script.of_vm("vm0", |_, vm| {
            let root = vm.mmu().peek_roots().into_iter().next().expect("the vCPU has faulted");
            around.map(|i| vm.mmu().peek_leaf(&root, gpa.gfn() + i).0.is_present())
        })
    };
    script.run(&format!("pre_fault_memory c0 {:#x} 0x8000 => ok", gpa.0 + (2 << 20)));
    assert_eq!(mapped(&mut script), [true; 8]);
    let part = gpa.0 + 0x5000;
    script.run(&format!("guest_read c0 {part:#x} => system_event 0x100"));
    assert_eq!(levels(&mut script), [Level::L4K; 3]);
    assert_eq!(
        mapped(&mut script),
        [true, true, false, false, false, false, true, true],
        "512 pages from the fault on"
    );
    script.run(&format!("guest_pvalidate c0 {part:#x} => hlt 0\n guest_write c0 {part:#x} 7 => hlt"));
    assert_eq!(script.state(head + 5), PageState::GuestValid);
    assert_eq!(script.state(head + 6), PageState::GuestInvalid);
    script.end();
}
