//! SN-147 to SN-149, SN-170: RMP entries of 2 MiB beneath KVM's mappings of 4 KiB, entries that cannot be taken back, and the direct map.

use super::Script;
use gmem::MachineConfig;
use sim_coco::snp::{Asid, PageState, RmpSize, RmpUpdate, Spa};
use sim_kernel::Pfn;
use sim_mmu::{Gpa, Level};

/// A guest of whose memory 2 MiB are one page of the RMP, and mapped page by page.
struct Large {
    script: Script,
    /// The first frame of the 2 MiB, and where it is in the guest.
    head: Pfn,
    gpa: Gpa,
}

impl Large {
    fn new() -> Large {
        let mut script = Script::new(MachineConfig::default());
        script.run(
            "create_vm vm0 type=snp                   => ok
             sev_init2 vm0                            => ok
             create_vcpu vm0 c0                       => ok
             mmap m0 len=8M                           => ok
             create_guest_memfd vm0 g0 size=8M        => ok
             fallocate g0 keep_size 0 8M              => ok",
        );
        // So that the guest's addresses are as far from a border of 2 MiB as the frames.
        let first = script.frame(0x20_0000).unwrap();
        let base = (0x1000 + first.0 % 512) << 12;
        script.run(&format!(
            "set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa={base:#x} size=8M hva=m0 guest_memfd=g0 => ok
             set_memory_attributes vm0 {base:#x} 8M private => ok
             snp_launch_start vm0                     => ok
             snp_launch_finish vm0                    => ok"
        ));
        let head = Pfn(first.0.next_multiple_of(512));
        let gpa = Gpa(base + ((head.0 - first.0) << 12));
        script.run(&format!("pre_fault_memory c0 {:#x} 2M => ok", gpa.0));
        script.snp(|cx, snp| {
            (0..512).for_each(|i| snp.rmpupdate(cx, head + i, RmpUpdate::HYPERVISOR).unwrap());
            snp.rmpupdate(cx, head, RmpUpdate::guest(Asid(1), gpa).sized(RmpSize::Size2M)).unwrap();
        });
        Large { script, head, gpa }
    }

    /// KVM's levels of the first page, one in the middle, the last, and the one behind.
    fn levels(&mut self) -> [Level; 4] {
        let frames = [0, 5, 511, 512].map(|i| self.head + i);
        self.script.of_vm("vm0", |cx, vm| frames.map(|pfn| vm.sev().unwrap().gmem_max_mapping_level(cx, pfn)))
    }
}

#[test]
fn sn_148_the_level_is_that_of_the_entry() {
    let mut large = Large::new();
    // The neighbour behind was never touched: not assigned, and then it is 4 KiB.
    assert_eq!(large.levels(), [Level::L2M, Level::L2M, Level::L2M, Level::L4K]);
    let part = large.gpa.0 + 0x5000;
    large.script.run(&format!("guest_pvalidate c0 {part:#x} => hlt 0"));
    assert_eq!(large.levels(), [Level::L4K; 4], "assigned, and split");
    large.script.end();
}

#[test]
fn sn_147_an_exit_to_user_space_comes_before_what_the_rmp_refused() {
    let mut large = Large::new();
    let flushes = large.script.of_vm("vm0", |_, vm| vm.remote_tlb_flushes());
    // A write without the C-bit to a page that is the guest's: the RMP refuses it, with its bit, and the access is not what the attribute says. KVM asks user space, and
    // leaves page and mappings alone; the attribute being private, the handler would find something to split.
    let part = large.gpa.0 + 0x5000;
    large.script.run(&format!("guest_write_shared c0 {part:#x} 1 => memory_fault shared {part:#x}"));
    assert_eq!(large.levels(), [Level::L2M, Level::L2M, Level::L2M, Level::L4K]);
    assert_eq!(large.script.of_vm("vm0", |_, vm| vm.remote_tlb_flushes()), flushes, "nothing was zapped");
    // The same access with the C-bit is the handler's: PSMASH, and a zap.
    large.script.run(&format!("guest_read c0 {part:#x} => system_event 0x100"));
    assert_eq!(large.levels(), [Level::L4K; 4]);
    assert!(large.script.of_vm("vm0", |_, vm| vm.remote_tlb_flushes()) > flushes);
    large.script.end();
}

#[test]
fn sn_149_a_page_that_rmpupdate_refuses_is_freed_as_it_is() {
    let mut script = Script::running();
    script.run("guest_pvalidate c0 0x201000 => hlt 0\n guest_write c0 0x201000 7 => hlt");
    let page = script.frame(0x20_1000).unwrap();
    // Closed while it is punched out: RMPUPDATE is refused, KVM warns, and frees it. Then the firmware opens it again.
    script.snp(|cx, snp| {
        let entry = snp.rmp().entry(page);
        snp.rmpupdate(cx, page, RmpUpdate::guest(entry.asid, entry.gpa).immutable()).unwrap();
    });
    script.run("fallocate g0 punch_hole 4K 4K => ok");
    script.snp(|cx, snp| snp.snp_page_reclaim(cx, Spa::of(page), RmpSize::Size4K).unwrap());
    assert_eq!((script.frame(0x20_1000), script.state(page)), (None, PageState::GuestValid));
    assert!(script.sev(|_, sev| sev.leaked()).is_empty(), "Linux does not even put it on its list");
    let message = script.finding();
    assert!(message.starts_with("SNP-INV-009: "), "{message}");
}

#[test]
fn sn_170_the_direct_map_is_split_once_and_for_good() {
    let mut script = Script::new(MachineConfig::default());
    script.run(
        "create_vm vm0 type=snp                   => ok
         sev_init2 vm0                            => ok
         create_vcpu vm0 c0                       => ok
         mmap m0 len=8M                           => ok
         create_guest_memfd vm0 g0 size=8M        => ok
         fallocate g0 keep_size 0 8M              => ok
         set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=8M hva=m0 guest_memfd=g0 => ok
         set_memory_attributes vm0 0x200000 8M private => ok
         snp_launch_start vm0                     => ok
         snp_launch_finish vm0                    => ok",
    );
    // 4 MiB apart: in no region in which anything was assigned before.
    let [page, other] = [0x40_0000, 0x80_0000].map(|gpa| script.frame(gpa).unwrap());
    assert_ne!(page.0 / 512, other.0 / 512);
    let is_split = |script: &mut Script| [page, page + 1, other].map(|pfn| script.sev(|_, sev| sev.is_split(pfn)));
    assert_eq!(is_split(&mut script), [false; 3], "allocated, and still the host's");
    script.run("guest_pvalidate c0 0x400000              => hlt 0");
    assert_eq!(is_split(&mut script), [true, page.0 % 512 != 511, false], "the region of the page, and no other");
    script.run("fallocate g0 punch_hole 0 8M             => ok");
    assert_eq!(script.state(page), PageState::Hypervisor);
    assert_eq!(is_split(&mut script), [true, page.0 % 512 != 511, false], "never merged, nor split to give back");
    script.end();
}
