//! Leaves of 2 MiB in the Secure EPT (the machine's `tdx_2m`, over the folios of `gmem_2m_enabled`), what splits them, and what they spare.

use super::{Script, config};
use gmem::MachineConfig;
use gmem::kvm::mutants::TDX_NO_SPLIT;
use sim_coco::tdx::{Leaf, SeptState};
use sim_kernel::{MutantSet, PAGE_SHIFT};
use sim_mmu::Level;

/// A TD that runs, with 4 MiB of private memory at 0x200000 and two vCPUs.
const LARGE: &str = "
    create_vm vm0 type=tdx                                   => ok
    tdx_init_vm vm0 attributes=0                             => ok
    enable_cap vm0 exit_hypercall 4096                       => ok
    mmap m0 len=4M                                           => ok
    create_guest_memfd vm0 g0 size=4M                        => ok
    set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=4M hva=m0 guest_memfd=g0 => ok
    set_memory_attributes vm0 0x200000 4M private            => ok
    create_vcpu vm0 c0                                       => ok
    tdx_init_vcpu c0                                         => ok
    create_vcpu vm0 c1 index=1                               => ok
    tdx_init_vcpu c1                                         => ok
";
const FINAL: &str = "tdx_finalize_vm vm0 => ok";

/// PAGE_SIZE_MISMATCH at 2 MiB.
const MISMATCH: &str = "hlt 0xc0000b0b00000001";

fn machine() -> MachineConfig {
    MachineConfig { tdx_2m: true, gmem_2m_enabled: true, ..config() }
}

fn large_on(config: MachineConfig) -> Script {
    let mut script = Script::new(config);
    script.run(LARGE);
    script.run(FINAL);
    script
}

fn large() -> Script {
    large_on(machine())
}

impl Script {
    /// State of the entry of 2 MiB in the Secure EPT.
    fn sept_2m(&mut self, gpa: u64) -> Option<SeptState> {
        self.entry(gpa, Level::L2M).and_then(|entry| entry.state())
    }

    fn splits(&mut self) -> u64 {
        self.of_td(|tdx| tdx.splits())
    }

    fn check(&mut self) {
        self.of_vm("vm0", |_, vm| vm.check_invariants());
    }
}

#[test]
fn a_page_of_2m_is_mapped_accepted_and_used_as_one() {
    let mut script = large();
    script.run(
        "guest_accept c0 0x200000 size=2M         => hlt 0
         guest_write c0 0x3ff000 7                => hlt
         guest_read c1 0x3ff000                   => hlt 7
         guest_accept c0 0x300000                 => hlt 0xb0a00000001
         guest_read c0 0x200000                   => hlt 0",
    );
    assert_eq!(script.sept_2m(0x20_0000), Some(SeptState::Mapped));
    assert_eq!((script.calls(Leaf::MemPageAug), script.splits()), (1, 0));
    script.check();
    script.end();
}

#[test]
fn an_access_to_what_is_not_there_maps_2m_and_so_does_a_prefault() {
    let mut script = large();
    script.run(
        "guest_read c0 0x205000                   => system_event
         pre_fault_memory c0 0x400000 4K          => ok",
    );
    for gpa in [0x20_0000, 0x40_0000] {
        assert_eq!(script.sept_2m(gpa), Some(SeptState::Pending));
    }
    script.check();
    script.end();
}

#[test]
fn a_guest_that_accepts_4k_gets_4k() {
    let mut script = large();
    script.run("guest_accept c0 0x205000              => hlt 0");
    assert_eq!(script.sept_2m(0x20_0000), Some(SeptState::NlMapped));
    // Where nothing was there is nothing to split, but the mark stays.
    assert_eq!(script.splits(), 0);
    script.run(&format!("guest_accept c0 0x200000 size=2M => {MISMATCH}"));
    script.run("guest_accept c0 0x206000              => hlt 0");
    assert_eq!(script.calls(Leaf::MemPageAug), 2);
    script.check();
    script.end();
}

#[test]
fn what_is_there_as_2m_is_split_when_a_part_is_accepted() {
    let mut script = large();
    script.run(
        "pre_fault_memory c0 0x200000 2M          => ok
         guest_accept c0 0x205000                 => hlt 0
         guest_write c0 0x205000 5                => hlt
         guest_accept c1 0x206000                 => hlt 0
         guest_read c1 0x205000                   => hlt 5",
    );
    assert_eq!(script.splits(), 1);
    let leaves = [Leaf::MemPageAug, Leaf::MemRangeBlock, Leaf::MemTrack, Leaf::MemPageDemote];
    assert_eq!(leaves.map(|leaf| script.calls(leaf)), [1, 1, 1, 1]);
    assert_eq!(script.sept(0x20_7000), Some(SeptState::Pending));
    // Never merged again, and the other page is as it was.
    script.run(&format!("guest_accept c0 0x200000 size=2M => {MISMATCH}"));
    script.run("guest_accept c0 0x400000 size=2M      => hlt 0");
    script.check();
    script.end();
}

/// A page of 2 MiB that the guest uses at three places.
const USED: &str = "
    guest_accept c0 0x200000 size=2M         => hlt 0
    guest_write c0 0x201000 1                => hlt
    guest_write c0 0x202000 2                => hlt
    guest_write c0 0x3ff000 3                => hlt
";
/// What is left of it without one of them.
const REST: &str = "
    guest_read c0 0x201000                   => hlt 1
    guest_read c1 0x3ff000                   => hlt 3
    guest_accept c0 0x202000                 => hlt 0
    guest_read c0 0x202000                   => hlt 0
";

#[test]
fn a_hole_in_a_page_of_2m_leaves_the_rest_to_the_guest() {
    let mut script = large();
    script.run(USED);
    script.run("fallocate g0 punch_hole 8K 4K            => ok");
    assert_eq!((script.splits(), script.calls(Leaf::MemPageRemove)), (1, 1));
    script.check();
    script.run(REST);
    script.check();
    script.end();
}

#[test]
fn a_conversion_of_a_part_leaves_the_rest_to_the_guest() {
    let mut script = large();
    script.run(USED);
    script.run(
        "guest_convert c0 0x202000 shared         => hlt
         guest_write_shared c0 0x202000 9         => hlt
         guest_read c0 0x201000                   => hlt 1
         set_memory_attributes vm0 0x202000 4K private => ok",
    );
    script.run(REST);
    assert_eq!((script.splits(), script.calls(Leaf::MemPageRemove)), (1, 1));
    script.check();
    script.end();
}

#[test]
#[should_panic(expected = "MMU-INV-060")]
fn without_the_split_the_rest_would_be_lost() {
    let mut script = large_on(MachineConfig { mutants: MutantSet::EMPTY.with(TDX_NO_SPLIT), ..machine() });
    script.run(USED);
    script.run("fallocate g0 punch_hole 8K 4K            => ok");
}

#[test]
fn a_whole_page_of_2m_goes_and_comes_back_as_one() {
    for erratum in [false, true] {
        let mut script = large_on(MachineConfig { tdx_erratum: erratum, ..machine() });
        script.run(USED);
        script.run("fallocate g0 punch_hole 0 2M             => ok");
        let leaves =
            [Leaf::MemRangeBlock, Leaf::MemTrack, Leaf::MemPageRemove, Leaf::PhymemPageWbinvd, Leaf::MemPageDemote];
        assert_eq!(leaves.map(|leaf| script.calls(leaf)), [1, 1, 1, 512, 0]);
        assert_eq!(script.of_td(|tdx| tdx.kicks()), 1);
        script.run(
            "set_memory_attributes vm0 0x200000 2M shared  => ok
             set_memory_attributes vm0 0x200000 2M private => ok
             guest_accept c0 0x200000 size=2M         => hlt 0
             guest_read c0 0x201000                   => hlt 0",
        );
        assert_eq!(script.calls(Leaf::MemPageAug), 2);
        script.check();
        script.end();
    }
}

#[test]
fn memory_is_added_to_a_td_that_does_not_run_in_pages_of_4k() {
    let mut script = Script::new(machine());
    script.run(LARGE);
    script.run(
        "mmap m1 len=8K                           => ok
         host_write m1 0 7                        => ok
         tdx_init_mem_region c0 0x200000 m1 8K    => ok
         tdx_finalize_vm vm0                      => ok
         guest_read c0 0x200000                   => hlt 7
         guest_accept c0 0x205000                 => hlt 0",
    );
    script.run(&format!("guest_accept c0 0x200000 size=2M => {MISMATCH}"));
    assert_eq!(script.sept_2m(0x20_0000), Some(SeptState::NlMapped));
    script.check();
    script.end();
}

#[test]
fn a_slot_that_is_not_congruent_with_its_file_has_small_pages() {
    let mut script = Script::new(machine());
    script.run(
        &LARGE
            .replace("guest_memfd=g0 =>", "guest_memfd=g0 guest_memfd_offset=4K =>")
            .replace("gpa=0x200000 size=4M", "gpa=0x200000 size=2M"),
    );
    script.run(FINAL);
    script.run(&format!("guest_accept c0 0x200000 size=2M => {MISMATCH}"));
    assert_eq!(script.sept_2m(0x20_0000), Some(SeptState::NlMapped));
    script.end();
}

#[test]
fn a_page_of_2m_spares_seamcalls() {
    let counts = [false, true].map(|large| {
        let mut script = large_on(MachineConfig { tdx_2m: large, ..machine() });
        for page in 0..512 {
            let gpa = 0x20_0000 + (page << PAGE_SHIFT);
            match (large, page) {
                (true, 0) => script.run("guest_accept c0 0x200000 size=2M => hlt 0"),
                (true, _) => {}
                (false, _) => script.run(&format!("guest_accept c0 {gpa:#x} => hlt 0")),
            }
        }
        script.run("set_memory_attributes vm0 0x200000 2M shared => ok");
        let leaves = [Leaf::MemPageAug, Leaf::MemRangeBlock, Leaf::MemTrack, Leaf::MemPageRemove];
        let counts = leaves.map(|leaf| script.calls(leaf));
        let kicks = script.of_td(|tdx| tdx.kicks());
        script.end();
        (counts, kicks)
    });
    assert_eq!(counts, [([512; 4], 512), ([1; 4], 1)]);
}
