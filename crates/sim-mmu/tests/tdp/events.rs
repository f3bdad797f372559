//! Which events a change makes, and in which order: what the recordings of real kernels show.

use crate::vm::{Run, Vm, runs};
use sim_kernel::Cx;
use sim_kernel::sched::Sim;
use sim_mmu::{Gfn, GfnRange, Gpa, Level, MayYield, MmuLock, RetPf, Root, RootFilter};
use std::sync::atomic::Ordering::SeqCst;

type Step = fn(&Cx<'_>, &Vm, &Root);

/// A name, what happens before, what is observed, and the expected runs of events.
struct Case {
    name: &'static str,
    before: Step,
    step: Step,
    events: &'static [Run],
}

fn small_leafs(cx: &Cx<'_>, vm: &Vm, root: &Root) {
    for gfn in [515, 1023] {
        assert_eq!(vm.touch(cx, root, gfn, true), RetPf::Fixed);
    }
}

fn huge_leafs(cx: &Cx<'_>, vm: &Vm, root: &Root) {
    vm.slot.set_host(Level::L2M);
    for gfn in [515, 1500] {
        assert_eq!(vm.touch(cx, root, gfn, true), RetPf::Fixed);
    }
}

fn mixed(cx: &Cx<'_>, vm: &Vm, root: &Root) {
    small_leafs(cx, vm, root);
    assert_eq!(vm.touch(cx, root, 3, false), RetPf::Emulate);
    vm.slot.set_host(Level::L2M);
    assert_eq!(vm.touch(cx, root, 1024, true), RetPf::Fixed);
}

fn enable_logging(cx: &Cx<'_>, vm: &Vm, _root: &Root) {
    vm.slot.logged.store(true, SeqCst);
    let mut lock = vm.mmu.mmu_lock.read(cx);
    vm.mmu.split_huge_pages(cx, MmuLock::Read(&mut lock), 0, vm.slot.range, Level::L4K);
    vm.mmu.wrprot_slot(cx, &mut lock, 0, vm.slot.range, Level::L4K);
}

fn zap(cx: &Cx<'_>, vm: &Vm, start: u64, end: u64) -> bool {
    let mut lock = vm.mmu.mmu_lock.write(cx);
    let range = GfnRange::new(Gfn(start), Gfn(end));
    vm.mmu.zap_leafs(cx, &mut lock, Some(0), RootFilter::All, range, MayYield::Yes, &vm.flush).discharge(cx, &vm.flush)
}

const CASES: &[Case] = &[
    Case {
        name: "a first fault links tables top-down, then the leaf",
        before: |_, _, _| {},
        step: |cx, vm, root| assert_eq!(vm.touch(cx, root, 515, false), RetPf::Fixed),
        events: &[
            (0, 1, 4, "none", "table"),
            (0, 1, 3, "none", "table"),
            (512, 1, 2, "none", "table"),
            (515, 1, 1, "none", "leaf+w"),
        ],
    },
    Case {
        name: "a huge leaf",
        before: |_, vm, _| vm.slot.set_host(Level::L2M),
        step: |cx, vm, root| assert_eq!(vm.touch(cx, root, 515, false), RetPf::Fixed),
        events: &[(0, 1, 4, "none", "table"), (0, 1, 3, "none", "table"), (512, 1, 2, "none", "leaf+w")],
    },
    Case {
        name: "a fault that needs nothing",
        before: small_leafs,
        step: |cx, vm, root| assert_eq!(vm.touch(cx, root, 515, true), RetPf::Spurious),
        events: &[],
    },
    Case {
        name: "a fault below a huge leaf splits it although it permits the access",
        before: huge_leafs,
        step: |cx, vm, root| {
            vm.slot.set_host(Level::L4K);
            assert_eq!(vm.touch(cx, root, 515, true), RetPf::Spurious);
        },
        events: &[(512, 1, 2, "leaf+w", "table")],
    },
    Case {
        name: "a huge leaf replaces a table: 512 children, then the entry",
        before: small_leafs,
        step: |cx, vm, root| {
            vm.slot.set_host(Level::L2M);
            assert_eq!(vm.touch(cx, root, 600, false), RetPf::Fixed);
            assert_eq!(vm.flush.take(), 1, "at once");
        },
        events: &[
            (512, 3, 1, "none", "frozen"),
            (515, 1, 1, "leaf+w", "frozen"),
            (516, 507, 1, "none", "frozen"),
            (1023, 1, 1, "leaf+w", "frozen"),
            (512, 1, 2, "table", "leaf+w"),
        ],
    },
    Case {
        name: "MMIO entries: installed, met again, refreshed, replaced",
        before: |cx, vm, root| {
            small_leafs(cx, vm, root);
            let mut fault = vm.fault(Gfn(600), false);
            fault.pfn = None;
            assert_eq!(vm.serve(cx, root, &fault), RetPf::Emulate);
        },
        step: |cx, vm, root| {
            let mut fault = vm.fault(Gfn(600), false);
            fault.pfn = None;
            assert_eq!(vm.serve(cx, root, &fault), RetPf::Emulate, "the same value: no event");
            fault.mmio_generation += 2;
            assert_eq!(vm.serve(cx, root, &fault), RetPf::Emulate);
            let refused = vm.mmu.translate(cx, root, Gpa(600 << 12), sim_mmu::Access::Read).unwrap_err();
            assert!(refused.reserved);
            assert_eq!(vm.touch(cx, root, 600, false), RetPf::Fixed);
        },
        events: &[(600, 1, 1, "mmio", "mmio"), (600, 1, 1, "mmio", "leaf+w")],
    },
    Case {
        name: "logging: all splits ascending, then W, ascending",
        before: huge_leafs,
        step: enable_logging,
        events: &[(512, 2, 2, "leaf+w", "table"), (512, 1024, 1, "leaf+w", "leaf")],
    },
    Case {
        name: "a collected page is write-protected once; the fast path and the hardware's bits are no events",
        before: |cx, vm, root| {
            huge_leafs(cx, vm, root);
            enable_logging(cx, vm, root);
        },
        step: |cx, vm, root| {
            let mut fault = vm.fault(Gfn(520), true);
            fault.present = true;
            assert_eq!(vm.mmu.fast_page_fault(cx, root, &fault, Some(&vm.slot)), RetPf::Fixed);
            assert_eq!(vm.mmu.fast_page_fault(cx, root, &fault, Some(&vm.slot)), RetPf::Spurious);
            assert_eq!(vm.slot.dirty.lock().pop_last(), Some(520));
            vm.mmu.translate(cx, root, fault.gpa, sim_mmu::Access::Write).unwrap();
            let mut lock = vm.mmu.mmu_lock.write(cx);
            vm.mmu.enable_log_dirty_pt_masked(cx, &mut MmuLock::Write(&mut lock), 0, Gfn(512), 0x1fe, false);
            vm.mmu.enable_log_dirty_pt_masked(cx, &mut MmuLock::Write(&mut lock), 0, Gfn(512), 0x1fe, false);
        },
        events: &[(520, 1, 1, "leaf+w", "leaf")],
    },
    Case {
        name: "initially set: a collected word splits what it touches",
        before: huge_leafs,
        step: |cx, vm, _| {
            vm.slot.logged.store(true, SeqCst);
            let mut lock = vm.mmu.mmu_lock.write(cx);
            vm.mmu.enable_log_dirty_pt_masked(cx, &mut MmuLock::Write(&mut lock), 0, Gfn(512 + 448), 1 << 63 | 1, true);
        },
        events: &[(512, 1, 2, "leaf+w", "table"), (960, 1, 1, "leaf+w", "leaf"), (1023, 1, 1, "leaf+w", "leaf")],
    },
    Case {
        name: "recovery takes W from the first leaf; a table without leafs stays",
        before: |cx, vm, root| {
            huge_leafs(cx, vm, root);
            enable_logging(cx, vm, root);
            assert_eq!(vm.touch(cx, root, 512, true), RetPf::Fixed);
            zap(cx, vm, 1024, 1536);
            vm.slot.logged.store(false, SeqCst);
            vm.flush.take();
        },
        step: |cx, vm, _| {
            let mut lock = vm.mmu.mmu_lock.read(cx);
            vm.mmu.recover_huge_pages(cx, &mut lock, 0, &vm.slot, &vm.flush);
            assert_eq!(vm.flush.take(), 1);
        },
        events: &[(512, 1, 1, "leaf+w", "frozen"), (513, 511, 1, "leaf", "frozen"), (512, 1, 2, "table", "leaf+w")],
    },
    Case {
        name: "leafs are zapped where they overlap, tables and MMIO stay",
        before: mixed,
        step: |cx, vm, _| {
            assert!(!zap(cx, vm, 0, 515), "nothing was mapped");
            assert!(zap(cx, vm, 516, 1025));
        },
        events: &[(1023, 1, 1, "leaf+w", "none"), (1024, 1, 2, "leaf+w", "none")],
    },
    Case {
        name: "an invalidated root: leafs, then tables level by level",
        before: mixed,
        step: |cx, vm, _| {
            vm.mmu.invalidate_all_roots(cx, &mut vm.mmu.mmu_lock.write(cx));
            vm.mmu.zap_invalidated_roots(cx);
        },
        events: &[
            // 4 KiB leafs; the MMIO entry is not present and stays.
            (515, 1, 1, "leaf+w", "none"),
            (1023, 1, 1, "leaf+w", "none"),
            // Level 2, ascending.
            (0, 3, 1, "none", "frozen"),
            (3, 1, 1, "mmio", "frozen"),
            (4, 508, 1, "none", "frozen"),
            (0, 1, 2, "table", "none"),
            (512, 512, 1, "none", "frozen"),
            (512, 1, 2, "table", "none"),
            (1024, 1, 2, "leaf+w", "none"),
            // Level 3 and the root's entries.
            (0, 512, 2, "none", "frozen"),
            (0, 1, 3, "table", "none"),
            (0, 512, 3, "none", "frozen"),
            (0, 1, 4, "table", "none"),
        ],
    },
    Case {
        name: "under mmu_lock for writing only present children are frozen",
        before: |cx, vm, root| {
            small_leafs(cx, vm, root);
            zap(cx, vm, 1023, 1024);
        },
        step: |cx, vm, _| vm.mmu.zap_all(cx),
        events: &[
            (515, 1, 1, "leaf+w", "none"),
            (512, 1, 2, "table", "none"),
            (0, 1, 3, "table", "none"),
            (0, 1, 4, "table", "none"),
        ],
    },
];

#[test]
fn order_of_events() {
    for kind in [sim_mmu::Stage2Kind::Ept, sim_mmu::Stage2Kind::Npt] {
        for case in CASES {
            Sim::sequential().solo(|cx| {
                let vm = Vm::with(cx, 3, crate::vm::config(kind));
                let root = vm.mmu.load_root(cx, 0).unwrap();
                (case.before)(cx, &vm, &root);
                cx.capture_trace(true);
                (case.step)(cx, &vm, &root);
                assert_eq!(runs(cx, &vm.mmu), case.events, "{}", case.name);
                vm.mmu.assert_consistent();
                vm.mmu.put_root(cx, root);
                vm.mmu.uninit(cx);
                assert_eq!(vm.mmu.table_frames(), 0);
            });
        }
    }
}
