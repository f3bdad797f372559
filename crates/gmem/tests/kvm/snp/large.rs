//! Pages of 2 MiB from guest_memfd (OP-11, the machine's `gmem_2m_enabled`): one entry of the RMP, one nested leaf, one folio, and what splits them.

use super::Script;
use gmem::MachineConfig;
use gmem::kvm::mutants::SEV_NO_SPLIT;
use sim_coco::snp::{PageState, RmpSize};
use sim_kernel::{MutantSet, Pfn};
use sim_mmu::{Gpa, Level};

/// A VM that runs, with 4 MiB of private memory at 0x200000.
const LARGE: &str = "
    create_vm vm0 type=snp                                   => ok
    sev_init2 vm0                                            => ok
    create_vcpu vm0 c0                                       => ok
    mmap m0 len=4M                                           => ok
    create_guest_memfd vm0 g0 size=4M                        => ok
    set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=4M hva=m0 guest_memfd=g0 => ok
    set_memory_attributes vm0 0x200000 4M private            => ok
    snp_launch_start vm0                                     => ok
    snp_launch_finish vm0                                    => ok
";

fn config() -> MachineConfig {
    MachineConfig { gmem_2m_enabled: true, ..MachineConfig::default() }
}

fn large() -> Script {
    let mut script = Script::new(config());
    script.run(LARGE);
    script
}

fn level_of(script: &mut Script, pfn: Pfn) -> Level {
    script.of_vm("vm0", |cx, vm| vm.sev().unwrap().gmem_max_mapping_level(cx, pfn))
}

fn is_split(script: &mut Script, pfn: Pfn) -> bool {
    script.sev(|_, sev| sev.is_split(pfn))
}

fn used_frames(script: &mut Script) -> u64 {
    script.with(|_, world| world.process().host().phys().used_frames())
}

#[test]
fn sn_050_a_page_of_2m_is_accepted_and_used_as_one() {
    let mut script = large();
    script.run(
        "guest_pvalidate c0 0x200000 size=2M      => hlt 0
         guest_pvalidate c0 0x200000 size=2M      => hlt 255
         guest_write c0 0x3ff000 7                => hlt
         guest_read c0 0x3ff000                   => hlt 7",
    );
    let head = script.frame(0x20_0000).unwrap();
    assert!(head.0.is_multiple_of(512));
    assert_eq!(script.entry(head).page_size, RmpSize::Size2M);
    assert_eq!(script.state(head + 511), PageState::GuestValid);
    assert_eq!(level_of(&mut script, head + 511), Level::L2M);
    assert!(!is_split(&mut script, head), "a page of 2 MiB needs no mapping of its own");
    // The second folio is not there yet.
    assert_eq!(script.frame(0x40_0000), None);
    script.end();
}

#[test]
fn sn_044_a_part_is_accepted_after_psmash() {
    let mut script = large();
    script.run("guest_pvalidate c0 0x205000              => hlt 0");
    let head = script.frame(0x20_0000).unwrap();
    for i in [0, 5, 6, 511] {
        let entry = script.entry(head + i);
        assert_eq!((entry.page_size, entry.gpa), (RmpSize::Size4K, Gpa(0x20_0000 + i * 0x1000)));
        assert_eq!(entry.validated, i == 5);
    }
    script.run(
        "guest_write c0 0x205000 7                => hlt
         guest_read c0 0x205000                   => hlt 7
         guest_pvalidate c0 0x200000 size=2M      => hlt 6",
    );
    script.end();
}

#[test]
fn sn_033_sn_034_a_hole_in_a_page_of_2m_leaves_the_rest_to_the_guest() {
    let mut script = large();
    script.run(
        "guest_pvalidate c0 0x200000 size=2M      => hlt 0
         guest_write c0 0x201000 1                => hlt
         guest_write c0 0x202000 2                => hlt",
    );
    let head = script.frame(0x20_0000).unwrap();
    script.run("fallocate g0 punch_hole 8K 4K            => ok");
    assert_eq!(script.frame(0x20_2000), None);
    assert!(!script.snp(|_, snp| snp.rmp().is_assigned(head + 2)));
    assert_eq!(script.state(head + 1), PageState::GuestValid);
    assert!(is_split(&mut script, head), "pages of several owners are in it");
    script.run(
        "guest_read c0 0x201000                   => hlt 1
         guest_read c0 0x202000                   => system_event 0x100
         guest_pvalidate c0 0x202000              => hlt 0
         guest_write c0 0x202000 3                => hlt
         guest_read c0 0x202000                   => hlt 3",
    );
    script.end();
}

#[test]
fn a_whole_page_of_2m_goes_back_as_one() {
    let mut script = large();
    let before = used_frames(&mut script);
    script.run("guest_pvalidate c0 0x200000 size=2M      => hlt 0");
    let head = script.frame(0x20_0000).unwrap();
    script.run("fallocate g0 punch_hole 0 2M             => ok");
    assert!((0..512).all(|i| !script.snp(|_, snp| snp.rmp().is_assigned(head + i))));
    assert!(!is_split(&mut script, head));
    // A table or two of the nested tree are left.
    assert!(used_frames(&mut script) - before < 8);
    // It comes back as one, unaccepted.
    script.run("guest_pvalidate c0 0x200000 size=2M      => hlt 0");
    script.end();
}

#[test]
fn sn_071_a_part_that_is_shared_has_the_rest_mapped_page_by_page() {
    let mut script = large();
    script.run(
        "guest_pvalidate c0 0x200000 size=2M      => hlt 0
         guest_write c0 0x202000 2                => hlt
         set_memory_attributes vm0 0x201000 4K shared => ok
         guest_read_shared c0 0x201000            => hlt 0
         guest_read c0 0x202000                   => hlt 2",
    );
    let head = script.frame(0x20_0000).unwrap();
    // The leaf of 4 KiB did not fit the entry of 2 MiB; what is shared now stays assigned until a hole takes it back.
    assert_eq!(script.entry(head).page_size, RmpSize::Size4K);
    assert_eq!(script.state(head + 1), PageState::GuestValid);
    script.end();
}

#[test]
fn a_part_that_was_launched_keeps_the_folio_in_pages_of_4k() {
    let mut script = Script::new(config());
    let launch = "host_write m0 0 5\n snp_launch_update vm0 0x200000 m0 4K => ok\n snp_launch_finish vm0";
    script.run(&LARGE.replace("snp_launch_finish vm0 ", launch));
    script.run(
        "guest_read c0 0x200000                   => hlt 5
         guest_pvalidate c0 0x201000              => hlt 0
         guest_read c0 0x202000                   => system_event 0x100",
    );
    let head = script.frame(0x20_0000).unwrap();
    assert_eq!((0..3).map(|i| script.entry(head + i).page_size).collect::<Vec<_>>(), [RmpSize::Size4K; 3]);
    script.end();
}

#[test]
fn without_memory_for_a_folio_pages_come_one_by_one() {
    let mut script = Script::new(MachineConfig { memory: 3 << 20, ..config() });
    script.run(LARGE);
    script.run("guest_pvalidate c0 0x200000 size=2M      => hlt 6\n guest_pvalidate c0 0x200000 => hlt 0");
    script.end();
}

#[test]
fn sn_148_slots_that_do_not_fit_have_small_pages() {
    // The slot begins one page later than its block; and ends before its block does.
    for slot in ["gpa=0x201000 size=4M", "gpa=0x200000 size=1M"] {
        let mut script = Script::new(config());
        script.run(&LARGE.replace("gpa=0x200000 size=4M", slot));
        script.run("guest_pvalidate c0 0x202000              => hlt 0\n guest_write c0 0x202000 1 => hlt");
        let pages = if slot.starts_with("gpa=0x201") { 1 } else { 2 };
        let head = script.frame(0x20_0000).unwrap();
        assert_eq!(script.entry(head + pages).page_size, RmpSize::Size4K, "{slot}");
        assert!(!script.snp(|_, snp| snp.rmp().is_assigned(head + pages + 1)), "{slot}");
        script.end();
    }
}

#[test]
fn a_software_protected_vm_has_folios_of_2m_too() {
    let mut script = Script::new(config());
    script.run(
        "create_vm vm1 type=sw_protected          => ok
         create_vcpu vm1 c1                       => ok
         mmap m1 len=4M                           => ok
         create_guest_memfd vm1 g0 size=4M        => ok
         set_user_memory_region2 vm1 slot=0 flags=guest_memfd gpa=0x200000 size=4M hva=m1 guest_memfd=g0 => ok
         set_memory_attributes vm1 0x200000 4M private => ok
         guest_write c1 0x203000 7                => hlt",
    );
    assert!(script.frame(0x20_0000).unwrap().0.is_multiple_of(512));
    script.run(
        "fallocate g0 punch_hole 4K 4K            => ok
         guest_read c1 0x203000                   => hlt 7
         guest_read c1 0x201000                   => hlt 0
         set_memory_attributes vm1 0x200000 4K shared => ok
         guest_read c1 0x203000                   => hlt 7",
    );
    script.end();
}

#[test]
fn sn_063_the_kernel_cannot_write_beside_an_assigned_page_in_a_mapping_of_2m() {
    let mutants = MutantSet::EMPTY.with(SEV_NO_SPLIT);
    let wrote = std::panic::catch_unwind(|| {
        let mut script = Script::new(MachineConfig { mutants, ..MachineConfig::default() });
        script.run(super::VM);
    });
    let message = *wrote.expect_err("no page beside the first can be cleared").downcast::<String>().unwrap();
    assert!(message.starts_with("SNP-INV-003"), "{message}");
}
