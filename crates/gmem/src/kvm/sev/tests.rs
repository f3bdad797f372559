//! SN-024, SN-025, SN-035 and SN-145: the kernel's wrappers around RMPUPDATE and PSMASH, when the hardware says that somebody else is at work.

use super::SevHost;
use crate::MachineConfig;
use crate::interp::{Sequential, World};
use crate::scenario::parse_line;
use sim_coco::snp::vmsa::{SevFeatures, offset};
use sim_coco::snp::{
    Asid, CpuId, GuestCpu, GuestKind, KeyPath, PageOperand, RmpAdjust, RmpFail, RmpSize, RmpUpdate, Spa, Vmpl,
    VmplPerms, Vmrun,
};
use sim_kernel::sched::{Chooser, Config, LogLevel, Random, Sim, Verdict};
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gpa, Level};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A region that nobody has.
const REGION: Pfn = Pfn(64 * 512);

fn config(snp_contention: bool) -> MachineConfig {
    MachineConfig { snp: true, snp_contention, ..MachineConfig::default() }
}

fn sev_of(world: &World) -> Arc<SevHost> {
    Arc::clone(world.process().host().sev().expect("the machine has SNP"))
}

fn guest(gpa: u64) -> RmpUpdate {
    RmpUpdate::guest(Asid(1), Gpa(gpa))
}

#[test]
fn sn_025_an_overlap_that_nobody_ends_is_tried_for_ever() {
    Sequential::new(config(false)).with(|cx, world| {
        let sev = sev_of(world);
        sev.rmpupdate(cx, REGION, guest(0x20_0000).sized(RmpSize::Size2M)).unwrap();
        for (pfn, new) in
            [(REGION, guest(0x20_0000)), (REGION + 5, guest(0x20_5000)), (REGION + 5, RmpUpdate::HYPERVISOR)]
        {
            let tried = catch_unwind(AssertUnwindSafe(|| sev.rmpupdate(cx, pfn, new)));
            let message = *tried.expect_err("it never returns").downcast::<String>().unwrap();
            assert!(message.starts_with("SNP-INV-038: "), "{message}");
        }
        // Split, it is as good as any.
        sev.psmash(cx, REGION).unwrap();
        sev.rmpupdate(cx, REGION + 5, RmpUpdate::HYPERVISOR).unwrap();
    });
}

#[test]
fn sn_024_an_overlap_that_ends_is_tried_again() {
    let seen = Arc::new(AtomicU64::new(0));
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    for seed in 0..200 {
        let config = Config { seed, log: LogLevel::Off, ..Config::default() };
        let (sev, verdict) = sim.execute(&config, |cx| {
            let world = World::new(cx, self::config(true));
            let sev = sev_of(&world);
            let (kernel, hardware) = (Arc::clone(&sev), Arc::clone(&sev));
            let seen = Arc::clone(&seen);
            cx.spawn("kernel", move |cx| kernel.rmpupdate(cx, REGION, guest(0)).expect("tried until it is done"));
            cx.spawn("hardware", move |cx| {
                if hardware.snp().rmpupdate(cx, REGION + 1, guest(0x1000)) == Err(RmpFail::Overlap) {
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
            sev
        });
        assert_eq!(verdict, Verdict::Completed, "seed {seed}");
        assert!(sev.snp().rmp().is_assigned(REGION));
    }
    assert!(seen.load(Ordering::Relaxed) > 0, "they never met");
}

fn perform(cx: &Cx<'_>, world: &World, lines: &str) {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let step = parse_line(line).unwrap_or_else(|error| panic!("{line}: {}", error.title));
        let answer = world.execute(cx, &step.op);
        step.expect.expect("each line says").check(&answer).unwrap_or_else(|problem| panic!("{line}: {problem}"));
    }
}

/// A guest with a page of 2 MiB in the RMP that KVM maps page by page; a vCPU of it is in the guest with a VMSA in that page. Returns where it is, and the address.
fn large_page(cx: &Cx<'_>, world: &World) -> (Pfn, Gpa) {
    perform(
        cx,
        world,
        "create_vm vm0 type=snp                   => ok
         sev_init2 vm0                            => ok
         create_vcpu vm0 c0                       => ok
         mmap m0 len=8M                           => ok
         create_guest_memfd vm0 g0 size=8M        => ok
         fallocate g0 keep_size 0 8M              => ok",
    );
    let gmem = crate::kvm::ioctl::peek_gmem(cx, world.process(), world.fd(&"g0".into())).expect("g0 is open");
    let first = gmem.mapping().peek(sim_kernel::Pgoff(0)).expect("allocated");
    let base = (0x1000 + first.0 % 512) << 12;
    let head = Pfn(first.0.next_multiple_of(512));
    let gpa = Gpa(base + ((head.0 - first.0) << 12));
    perform(
        cx,
        world,
        &format!(
            "set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa={base:#x} size=8M hva=m0 guest_memfd=g0 => ok
             set_memory_attributes vm0 {base:#x} 8M private => ok
             snp_launch_start vm0                     => ok
             snp_launch_finish vm0                    => ok
             pre_fault_memory c0 {:#x} 2M             => ok",
            gpa.0
        ),
    );
    let sev = sev_of(world);
    let snp = sev.snp();
    (0..512).for_each(|i| snp.rmpupdate(cx, head + i, RmpUpdate::HYPERVISOR).unwrap());
    snp.rmpupdate(cx, head, RmpUpdate::guest(Asid(1), gpa).sized(RmpSize::Size2M)).unwrap();
    let (cpu, page) = (GuestCpu::snp(9, Asid(1)), PageOperand { size: 1, ..PageOperand::page(gpa, head) });
    snp.pvalidate(cx, &cpu, &page, 1).unwrap();
    let rdx = RmpAdjust::new(Vmpl::new(1).expect("there are four"), VmplPerms::empty(), true);
    snp.rmpadjust(cx, &cpu, &page, rdx).unwrap().unwrap();
    (head, gpa)
}

#[test]
fn sn_035_psmash_of_a_page_in_use_is_tried_again() {
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    for seed in 0..20 {
        let config = Config { seed, log: LogLevel::Off, ..Config::default() };
        let ((world, flushes, head), verdict) = sim.execute(&config, |cx| {
            let world = Arc::new(World::new(cx, self::config(false)));
            let (head, gpa) = large_page(cx, &world);
            let sev = sev_of(&world);
            let vm = world.vm(cx, &"vm0".into()).expect("the VM is open");
            let flushes = vm.remote_tlb_flushes();
            let vmsa = head + 3;
            let key = KeyPath::Guest(Asid(1));
            sev.snp().memory().write(key, vmsa, offset::SEV_FEATURES, &SevFeatures::SNP_ACTIVE.bits().to_le_bytes());
            sev.snp().memory().write(key, vmsa, offset::VMPL, &[0]);
            let vmrun = Vmrun {
                cpu: CpuId(0),
                vmcb: Spa::of(sev.alloc_page(cx).expect("there is memory")),
                kind: GuestKind::Snp,
                asid: Asid(1),
                vmsa: Some(Spa::of(vmsa)),
                avic_backing: None,
                allowed_sev_features: None,
            };
            let in_guest = sev.snp().vmrun(cx, &vmrun).expect("a VMSA as it should be");
            assert_eq!(sev.snp().psmash(cx, head), Err(RmpFail::Inuse));
            let left = Arc::new(AtomicBool::new(false));
            let (other, read) = (Arc::clone(&world), Arc::clone(&left));
            cx.spawn("faults", move |cx| {
                // Accepted, as all of the page; what is in it nobody wrote.
                let op = parse_line(&format!("guest_read c0 {:#x}", gpa.0 + 0x5000)).expect("a line").op;
                let answer = other.execute(cx, &op).to_string();
                assert!(answer.contains("hlt"), "{answer}");
                assert!(read.load(Ordering::Relaxed), "the other vCPU is still in the guest with a page of it");
            });
            cx.spawn("leaves", move |cx| {
                (0..30).for_each(|_| cx.cond_resched());
                left.store(true, Ordering::Relaxed);
                sev.snp().vmexit(cx, in_guest);
            });
            (world, flushes, head)
        });
        assert_eq!(verdict, Verdict::Completed, "seed {seed}: {verdict}");
        sim.solo(|cx| {
            let vm = world.vm(cx, &"vm0".into()).expect("the VM is open");
            // One zap, after the page was split: not one for each try.
            assert_eq!(vm.remote_tlb_flushes().0, flushes.0 + 1, "seed {seed}");
            assert_eq!(vm.sev().expect("of this type").gmem_max_mapping_level(cx, head), Level::L4K);
        });
    }
}

#[test]
fn sn_145_a_fault_on_a_page_of_4k_changes_nothing() {
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    let config = Config { log: LogLevel::Off, ..Config::default() };
    let ((world, page, before), verdict) = sim.execute(&config, |cx| {
        let world = Arc::new(World::new(cx, self::config(false)));
        perform(
            cx,
            &world,
            "create_vm vm0 type=snp                   => ok
             sev_init2 vm0                            => ok
             create_vcpu vm0 c0                       => ok
             mmap m0 len=64K                          => ok
             create_guest_memfd vm0 g0 size=64K       => ok
             set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=64K hva=m0 guest_memfd=g0 => ok
             set_memory_attributes vm0 0x200000 64K private => ok
             set_memory_attributes vm0 0x400000 64K private => ok
             snp_launch_start vm0                     => ok
             snp_launch_finish vm0                    => ok
             guest_pvalidate c0 0x200000              => hlt 0
             set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=0 hva=m0 guest_memfd=g0 => ok
             set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x400000 size=64K hva=m0 guest_memfd=g0 => ok",
        );
        let gmem = crate::kvm::ioctl::peek_gmem(cx, world.process(), world.fd(&"g0".into())).expect("g0 is open");
        let page = gmem.mapping().peek(sim_kernel::Pgoff(0)).expect("it was accepted");
        let vm = world.vm(cx, &"vm0".into()).expect("the VM is open");
        let before = (sev_of(&world).snp().rmp().entry(page), vm.remote_tlb_flushes());
        let (other, sev) = (Arc::clone(&world), sev_of(&world));
        // It is assigned at the other address; the guest faults until somebody interrupts its vCPU.
        let faults = cx.spawn("faults", move |cx| {
            let op = parse_line("guest_read c0 0x400000").expect("a line").op;
            let answer = other.execute(cx, &op).to_string();
            assert!(answer.contains("EINTR"), "{answer}");
        });
        cx.spawn("interrupts", move |cx| {
            (0..400).for_each(|_| cx.cond_resched());
            cx.send_signal(faults);
            sev.wake_spinners(cx);
        });
        (world, page, before)
    });
    assert_eq!(verdict, Verdict::Completed, "{verdict}");
    sim.solo(|cx| {
        let vm = world.vm(cx, &"vm0".into()).expect("the VM is open");
        assert_eq!((sev_of(&world).snp().rmp().entry(page), vm.remote_tlb_flushes()), before);
    });
}
