//! A processor over the TDP MMU: the guest's tables lie in the memory that faults map, entries of both stages are words that other
//! tasks change, and a translation that was not flushed shows as data.

use crate::vm::{BASE, Vm};
use sim_kernel::sched::{Chooser, Config, Random, Sim, Verdict};
use sim_kernel::{Cx, Pfn};
use sim_mmu::guest_paging::{AccessMode, Cr0, Cr3, Cr4, Efer, Encryption, GuestFormat, PagingRegisters};
use sim_mmu::processor::{GuestState, InveptType, Processor, Translated};
use sim_mmu::tlb::{TlbConfig, TlbTag};
use sim_mmu::walker::{CountReferences, Ept, EptExit, MmuFault};
use sim_mmu::{Access, Gfn, GfnRange, Gpa, Gva, Level, MayYield, RetPf, Root, RootFilter};
use std::sync::Arc;

/// A present entry that grants everything.
const RWX: u64 = 0b111;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PAGE: Gva = Gva(0x7000);
const DATA: Gfn = Gfn(BASE.0 + 40);

/// Guest frames of the tables from the root down.
fn table(level: u8) -> Gfn {
    Gfn(BASE.0 + 10 + u64::from(4 - level))
}

/// Writes the guest's tables, as its VMM does, and makes a processor for it.
fn guest(cx: &Cx<'_>, vm: &Vm, root: &Root, tlb: TlbConfig) -> Processor<Ept> {
    for level in (1..=4).rev() {
        let next = if level == 1 { DATA } else { table(level - 1) };
        let index = PAGE.index(Level::from_number(level).unwrap()) as u64;
        vm.phys.write_u64(cx, vm.pfn(table(level)), index * 8, RWX | next.0 << 12);
    }
    processor(cx, root, tlb)
}

fn processor(cx: &Cx<'_>, root: &Root, tlb: TlbConfig) -> Processor<Ept> {
    let registers = PagingRegisters {
        cr0: Cr0::PG | Cr0::WP,
        cr3: Cr3(table(4).0 << 12),
        cr4: Cr4::PAE,
        efer: Efer::LMA | Efer::NXE,
        ..PagingRegisters::default()
    };
    let encryption = Encryption::None;
    let format = GuestFormat { maxphyaddr: 46, has_1g_pages: true, upper_global_reserved: false, encryption };
    let state = GuestState { registers, tag: TlbTag(1), stage2: root.stage2() };
    Processor::new(cx, Ept::new(46, true), format, tlb, state).unwrap()
}

/// Accesses until nothing faults any more, serving faults as KVM does; returns where they were.
fn access(cx: &Cx<'_>, vm: &Vm, root: &Root, processor: &mut Processor<Ept>, kind: Access) -> (Translated, Vec<Gpa>) {
    let mut faults = Vec::new();
    loop {
        match processor.translate(cx, &vm.mmu, PAGE, kind) {
            Ok(found) => return (found, faults),
            Err(MmuFault::Stage2(EptExit::Violation(violation))) => {
                faults.push(violation.gpa);
                let mut fault = vm.fault(violation.gpa.gfn(), kind == Access::Write);
                fault.gpa = violation.gpa;
                while vm.serve(cx, root, &fault) == RetPf::Retry {}
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn tables_fault_in_from_the_root_down() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        let mut processor = guest(cx, &vm, &root, TlbConfig::SMALL);
        let (found, faults) = access(cx, &vm, &root, &mut processor, Access::Write);
        assert_eq!(found.pfn, vm.pfn(DATA));
        let index = |level: u8| PAGE.index(Level::from_number(level).unwrap()) as u64;
        let mut expected: Vec<_> = [4, 3, 2, 1].map(|level| table(level).gpa() + index(level) * 8).into();
        expected.push(DATA.gpa());
        assert_eq!(faults, expected);
        let entries = [4, 3, 2, 1].map(|level| vm.phys.read_u64(cx, vm.pfn(table(level)), index(level) * 8));
        assert!(entries.iter().all(|entry| entry & A != 0), "A at every level");
        assert_eq!(entries.map(|entry| entry & D != 0), [false, false, false, true], "D at the last");
        vm.mmu.put_root(cx, root);
    });
}

#[test]
fn what_is_not_flushed_is_seen_as_data() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        let mut processor = guest(cx, &vm, &root, TlbConfig::SMALL);
        vm.phys.write_u64(cx, vm.pfn(DATA), 0, 0x11);
        let (found, _) = access(cx, &vm, &root, &mut processor, Access::Read);
        assert_eq!(vm.phys.read_u64(cx, found.pfn, found.offset), 0x11);
        // The page is taken away and its frame becomes somebody else's.
        let mut lock = vm.mmu.mmu_lock.write(cx);
        let range = GfnRange::with_len(DATA, 1);
        let owed = vm.mmu.zap_leafs(cx, &mut lock, None, RootFilter::All, range, MayYield::No, &vm.flush);
        assert!(owed.discharge(cx, &vm.flush));
        drop(lock);
        vm.phys.write_u64(cx, vm.pfn(DATA), 0, 0x22);
        let stale = processor.translate(cx, &vm.mmu, PAGE, Access::Read).unwrap();
        assert_eq!(vm.phys.read_u64(cx, stale.pfn, stale.offset), 0x22, "the processor was not asked to flush");
        processor.invept(cx, InveptType::All);
        let refused = processor.translate(cx, &vm.mmu, PAGE, Access::Read);
        assert!(matches!(refused, Err(MmuFault::Stage2(EptExit::Violation(_)))), "{refused:?}");
        vm.mmu.put_root(cx, root);
    });
}

/// Steps of a task that makes so many accesses, of which the first walks, and then so many invalidations; with the walk's counts.
fn steps(tlb: TlbConfig, accesses: u32, invalidations: u32) -> (u64, CountReferences) {
    let mut sim = Sim::sequential();
    let setup = |cx: &Cx<'_>| {
        let vm = Arc::new(Vm::new(cx, 1));
        let root = vm.mmu.load_root(cx, 0).unwrap();
        let mut processor = guest(cx, &vm, &root, tlb);
        access(cx, &vm, &root, &mut processor, Access::Write);
        processor.invept(cx, InveptType::All);
        let counted = Arc::new(parking_lot::Mutex::new(CountReferences::default()));
        let (task_vm, result) = (Arc::clone(&vm), Arc::clone(&counted));
        cx.spawn("vcpu", move |cx| {
            let mut counts = CountReferences::default();
            for n in 0..accesses {
                let access = if n % 2 == 0 { Access::Write } else { Access::Read };
                if n == 0 {
                    let mode = AccessMode::Supervisor;
                    processor.translate_observed(cx, &task_vm.mmu, PAGE, mode, access, &mut counts).unwrap();
                } else {
                    processor.translate(cx, &task_vm.mmu, PAGE, access).unwrap();
                }
            }
            for _ in 0..invalidations {
                processor.invlpg(cx, PAGE);
            }
            *result.lock() = counts;
        });
        vm.mmu.put_root(cx, root);
        (vm, counted)
    };
    let ((vm, counted), verdict) = sim.execute(&Config::default(), setup);
    assert_eq!(verdict, Verdict::Completed);
    let steps = sim.steps();
    sim.solo(|cx| vm.mmu.uninit(cx));
    let counts = *counted.lock();
    (steps, counts)
}

#[test]
fn scheduling_points_of_an_access() {
    for tlb in [TlbConfig::SMALL, TlbConfig { acceleration_slots: 0, ..TlbConfig::SMALL }] {
        let (nothing, _) = steps(tlb, 0, 0);
        let (one, counts) = steps(tlb, 1, 0);
        assert_eq!(counts.updates, 0, "every bit is set already");
        assert!(counts.references() >= 8, "{counts:?}");
        assert_eq!(one - nothing, counts.references() + 1, "each reference, and the fill");
        assert_eq!(steps(tlb, 5, 0).0, one, "a hit is none");
        assert_eq!(steps(tlb, 1, 2).0, one + 2, "an invalidation is one");
    }
}

/// The guest's software takes its page away, and maps another, while two processors set A and D: no bit is set in an entry that the hardware
/// did not read, and a write through the old entry is never lost.
#[test]
fn guest_software_against_accessed_and_dirty_updates() {
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    let (mut old_was_written, mut restarted) = (0, 0);
    for seed in 0..600 {
        let setup = |cx: &Cx<'_>| {
            let vm = Arc::new(Vm::new(cx, 1));
            let root = vm.mmu.load_root(cx, 0).unwrap();
            let mut first = guest(cx, &vm, &root, TlbConfig::NONE);
            access(cx, &vm, &root, &mut first, Access::Write);
            vm.touch(cx, &root, DATA.0 + 1, true);
            let (leaf, place) = (vm.pfn(table(1)), PAGE.index(Level::L4K) as u64 * 8);
            vm.phys.write_u64(cx, leaf, place, RWX | DATA.0 << 12);
            let reached = Arc::new(parking_lot::Mutex::new(Vec::<Pfn>::new()));
            for name in ["vcpu0", "vcpu1"] {
                let (vm, reached) = (Arc::clone(&vm), Arc::clone(&reached));
                cx.spawn(name, move |cx| {
                    let root = vm.mmu.load_root(cx, 0).unwrap();
                    let mut processor = processor(cx, &root, TlbConfig::NONE);
                    let (found, faults) = access(cx, &vm, &root, &mut processor, Access::Write);
                    assert_eq!(faults, [], "everything is mapped");
                    reached.lock().push(found.pfn);
                    vm.mmu.put_root(cx, root);
                });
            }
            let software = Arc::clone(&vm);
            let taken = Arc::new(parking_lot::Mutex::new(0));
            let result = Arc::clone(&taken);
            cx.spawn("guest kernel", move |cx| {
                // A walk has some thirty steps; this task waits for some of them.
                for _ in 0..seed % 64 {
                    cx.cond_resched();
                }
                // xchg: what was there is what the hardware made of it.
                let mut old = RWX | DATA.0 << 12;
                let new = RWX | (DATA.0 + 1) << 12;
                while let Err(found) = software.phys.cmpxchg_u64(cx, leaf, place, old, new) {
                    old = found;
                }
                *result.lock() = old;
            });
            vm.mmu.put_root(cx, root);
            (vm, reached, taken, leaf, place)
        };
        let ((vm, reached, taken, leaf, place), verdict) = sim.execute(&Config { seed, ..Config::default() }, setup);
        assert_eq!(verdict, Verdict::Completed, "seed {seed}");
        sim.solo(|cx| {
            let (old, new) = (*taken.lock(), vm.phys.read_u64(cx, leaf, place));
            let reached = reached.lock();
            let [old_page, new_page] = [DATA, DATA + 1].map(|gfn| reached.contains(&vm.pfn(gfn)));
            assert_eq!(old & !(A | D), RWX | DATA.0 << 12);
            assert_eq!(new & !(A | D), RWX | (DATA.0 + 1) << 12, "seed {seed}: the old entry came back");
            assert!(!old_page || old & D != 0, "seed {seed}: a write through the old entry is lost");
            assert_eq!(new_page, new & D != 0, "seed {seed}: D of the new entry");
            old_was_written += u32::from(old_page);
            restarted += u32::from(old_page && new_page);
            vm.mmu.uninit(cx);
        });
    }
    assert!(old_was_written > 50 && restarted > 50, "both orders were seen: {old_was_written}, {restarted}");
}
