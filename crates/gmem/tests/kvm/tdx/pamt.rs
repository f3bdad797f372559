//! Dynamic PAMT (the machine's `tdx_dynamic_pamt`): metadata comes with the first page of 4 KiB that a region of 2 MiB has, and goes with the last.

use super::{RUNNING, Script, TD, config};
use gmem::MachineConfig;
use sim_coco::tdx::Leaf;
use sim_kernel::Faults;

fn machine() -> MachineConfig {
    MachineConfig { tdx_dynamic_pamt: true, ..config() }
}

impl Script {
    /// Pages that hold metadata.
    fn metadata(&mut self) -> u64 {
        self.host(|_, host| host.pamt_pages())
    }

    fn metadata_calls(&mut self) -> [u64; 2] {
        [Leaf::PhymemPamtAdd, Leaf::PhymemPamtRemove].map(|leaf| self.calls(leaf))
    }
}

/// Before everything else: a slot has large pages only if this is aligned.
const SHARED: &str = "mmap m2 len=4M => ok";

/// 4 MiB of private memory at 0x600000 from a file of its own, whose pages come from regions where nothing else of the TD is.
const MORE: &str = "
    create_guest_memfd vm0 g1 size=4M                        => ok
    set_user_memory_region2 vm0 slot=1 flags=guest_memfd gpa=0x600000 size=4M hva=m2 guest_memfd=g1 => ok
    set_memory_attributes vm0 0x600000 4M private            => ok
";

#[test]
fn a_td_is_built_runs_and_ends_with_metadata_for_what_it_has() {
    let mut script = Script::new(machine());
    assert_eq!(script.metadata(), 0);
    script.run(TD);
    assert_eq!(script.metadata(), 2, "its pages lie in one region");
    script.run(RUNNING);
    script.run(
        "guest_read c0 0x200000                                   => hlt 7
         guest_accept c0 0x201000                                 => hlt 0
         fallocate g0 punch_hole 0 8K                             => ok
         guest_accept c0 0x201000                                 => hlt 0",
    );
    assert_eq!((script.metadata(), script.metadata_calls()), (2, [1, 0]), "the region always has a page");
    script.of_vm("vm0", |_, vm| vm.check_invariants());
    // The end itself looks whether any metadata is left.
    script.end();
}

#[test]
fn the_last_page_of_a_region_takes_the_metadata_with_it() {
    // Folios of their own region, in pages of 4 KiB.
    let mut script = Script::new(MachineConfig { gmem_2m_enabled: true, ..machine() });
    script.run(&format!("{SHARED}{TD}{RUNNING}{MORE}"));
    let (before, [adds, removes]) = (script.metadata(), script.metadata_calls());
    script.run(
        "guest_accept c0 0x605000                                 => hlt 0
         guest_accept c0 0x606000                                 => hlt 0",
    );
    assert_eq!((script.metadata(), script.metadata_calls()), (before + 2, [adds + 1, removes]));
    script.run("fallocate g1 punch_hole 0x5000 4K => ok");
    assert_eq!((script.metadata(), script.metadata_calls()), (before + 2, [adds + 1, removes]));
    script.run("fallocate g1 punch_hole 0x6000 4K => ok");
    assert_eq!((script.metadata(), script.metadata_calls()), (before, [adds + 1, removes + 1]));
    script.run("guest_accept c0 0x606000 => hlt 0");
    assert_eq!(script.metadata_calls(), [adds + 2, removes + 1]);
    script.of_vm("vm0", |_, vm| vm.check_invariants());
    script.end();
}

#[test]
fn a_page_of_2m_needs_no_metadata_until_it_is_split() {
    for tdx_caches in [false, true] {
        let config = MachineConfig { gmem_2m_enabled: true, tdx_2m: true, tdx_caches, tdx_erratum: true, ..machine() };
        let mut script = Script::new(config);
        script.run(&format!("{SHARED}{TD}{RUNNING}{MORE}"));
        let (before, calls) = (script.metadata(), script.metadata_calls());
        script.run(
            "guest_accept c0 0x600000 size=2M                         => hlt 0
             guest_write c0 0x601000 7                                => hlt",
        );
        assert_eq!((script.metadata(), script.metadata_calls()), (before, calls));
        script.run("fallocate g1 punch_hole 0x5000 4K => ok");
        // DEMOTE takes the pages itself.
        assert_eq!((script.metadata(), script.metadata_calls()), (before + 2, calls));
        script.run("guest_read c0 0x601000 => hlt 7");
        script.of_vm("vm0", |_, vm| vm.check_invariants());
        script.run("fallocate g1 punch_hole 0 2M => ok");
        assert_eq!((script.metadata(), script.metadata_calls()), (before, [calls[0], calls[1] + 1]));
        script.of_vm("vm0", |_, vm| vm.check_invariants());
        script.end();
    }
}

#[test]
fn wherever_memory_runs_out_nothing_is_lost() {
    let lines = format!("{SHARED}{TD}{RUNNING}{MORE}")
        + "guest_accept c0 0x600000 size=2M
           fallocate g1 punch_hole 0x5000 4K
           guest_accept c0 0x605000
           set_memory_attributes vm0 0x607000 4K shared
           guest_accept c0 0x800000
           fallocate g1 punch_hole 0 4M";
    let mut failed = 0;
    for frame in 1..90 {
        let faults = Faults { frame, ..Faults::default() };
        let mut script = Script::new(MachineConfig { gmem_2m_enabled: true, tdx_2m: true, faults, ..machine() });
        let mut is_whole = true;
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let step = gmem::scenario::parse_line(line).unwrap();
            let answer = script.with(|cx, world| world.execute(cx, &step.op));
            let is_failure = format!("{answer:?}").contains("ENOMEM");
            is_whole &= !is_failure;
            if is_failure && script.with(|cx, world| world.vm(cx, &"vm0".into()).is_some()) {
                script.of_vm("vm0", |_, vm| vm.check_invariants());
            }
        }
        failed += u32::from(!is_whole);
        script.end();
    }
    assert!(failed > 40, "{failed}");
}
