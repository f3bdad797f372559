//! MM-083, MM-084: the NX-huge-page mitigation, its tables and their recovery.

use crate::races::{race_with, spawn, start_with};
use crate::vm::{BASE, Vm, config};
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, MutantSet};
use sim_mmu::mutants::{BUG_66, NO_FREEZE_CHILDREN};
use sim_mmu::{Access, Age, Gfn, Level, MmuLock, RetPf, Root, Stage2Kind, TdpConfig, TdpFault};
use std::sync::Arc;

const PAGE: Gfn = Gfn(600);

fn mitigated(kind: Stage2Kind) -> TdpConfig {
    TdpConfig { nx_huge_pages: true, ..config(kind) }
}

fn fetch(vm: &Vm, gfn: Gfn) -> TdpFault {
    let mut fault = vm.fault(gfn, false);
    fault.exec = true;
    fault
}

fn recover(cx: &Cx<'_>, vm: &Vm, to_zap: u64, logged: bool) {
    let mut lock = vm.mmu.mmu_lock.read(cx);
    vm.mmu.recover_nx_huge_pages(cx, &mut lock, to_zap, |_, _| logged, &vm.flush);
}

fn may(cx: &Cx<'_>, vm: &Vm, root: &Root, gfn: Gfn, access: Access) -> bool {
    vm.mmu.translate(cx, root, gfn.gpa(), access).is_ok()
}

#[test]
fn mm_083_a_fetch_where_nothing_is_maps_one_small_page() {
    for kind in [Stage2Kind::Ept, Stage2Kind::Npt] {
        Sim::sequential().solo(|cx| {
            let vm = Vm::with(cx, 1, mitigated(kind));
            vm.slot.set_host(Level::L2M);
            let root = vm.mmu.load_root(cx, 0).unwrap();
            assert_eq!(vm.serve(cx, &root, &fetch(&vm, PAGE)), RetPf::Fixed);
            assert_eq!(vm.mmu.pages().leafs, [1, 0, 0], "the other 511 are not mapped");
            assert!(may(cx, &vm, &root, PAGE, Access::Exec));
            assert_eq!(vm.mmu.nx_huge_page_splits(), 1);
            vm.mmu.assert_consistent();
            vm.mmu.put_root(cx, root);
            vm.mmu.uninit(cx);
        });
    }
}

#[test]
fn mm_083_a_fetch_from_a_huge_page_splits_it() {
    for kind in [Stage2Kind::Ept, Stage2Kind::Npt] {
        Sim::sequential().solo(|cx| {
            let vm = Vm::with(cx, 1, mitigated(kind));
            vm.slot.set_host(Level::L2M);
            let root = vm.mmu.load_root(cx, 0).unwrap();
            vm.touch(cx, &root, PAGE.0, true);
            assert_eq!(vm.mmu.pages().leafs, [0, 1, 0]);
            assert!(!may(cx, &vm, &root, PAGE, Access::Exec), "a huge page is not executable");
            assert_eq!(vm.serve(cx, &root, &fetch(&vm, PAGE)), RetPf::Spurious, "the child may be executed already");
            assert_eq!(vm.mmu.pages().leafs, [512, 0, 0]);
            for gfn in [PAGE, BASE, BASE + 511] {
                assert!(may(cx, &vm, &root, gfn, Access::Exec) && may(cx, &vm, &root, gfn, Access::Write));
            }
            assert_eq!(vm.flush.take(), 0, "a split flushes nothing");
            vm.mmu.assert_consistent();
        });
    }
}

#[test]
fn mm_084_data_stays_small_until_recovery() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 2, mitigated(Stage2Kind::Ept));
        vm.slot.set_host(Level::L2M);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        vm.touch(cx, &root, PAGE.0, true);
        vm.serve(cx, &root, &fetch(&vm, PAGE));
        vm.serve(cx, &root, &fetch(&vm, Gfn(1024)));
        assert_eq!((vm.mmu.pages().leafs, vm.mmu.nx_huge_page_splits()), ([513, 0, 0], 2));
        let mut data = vm.fault(Gfn(1025), true);
        data.max_level = Level::L1G;
        assert_eq!(vm.serve(cx, &root, &data), RetPf::Fixed);
        assert_eq!(vm.mmu.pages().leafs, [514, 0, 0], "a later data fault stays below the table");

        // The oldest table first, one flush for the batch.
        recover(cx, &vm, 1, false);
        assert_eq!((vm.mmu.pages().leafs, vm.mmu.nx_huge_page_splits()), ([2, 0, 0], 1));
        assert_eq!(vm.flush.take(), 1);
        vm.touch(cx, &root, PAGE.0, true);
        assert_eq!(vm.mmu.pages().leafs, [2, 1, 0], "and data is huge again");
        vm.mmu.assert_consistent();
        recover(cx, &vm, 10, false);
        assert_eq!((vm.mmu.pages().leafs, vm.mmu.nx_huge_page_splits()), ([0, 1, 0], 0));
        recover(cx, &vm, 10, false);
        assert_eq!(vm.flush.take(), 1, "nothing to recover, nothing to flush");
        vm.mmu.put_root(cx, root);
        vm.mmu.uninit(cx);
    });
}

#[test]
fn mm_083_a_huge_page_that_waits_for_its_access_does_not_get_x_with_the_others() {
    let check = |cx: &Cx<'_>, vm: &Vm, root: &Root| {
        assert_eq!(vm.mmu.pages().leafs, [0, 1, 0]);
        assert!(vm.mmu.masks().is_access_track(vm.mmu.peek_leaf(root, PAGE).0));
        let read = vm.fault(PAGE, false);
        assert_eq!(vm.mmu.fast_page_fault(cx, root, &read, Some(&vm.slot)), RetPf::Fixed);
        assert!(may(cx, vm, root, PAGE, Access::Read) && !may(cx, vm, root, PAGE, Access::Exec));
        vm.mmu.assert_consistent();
    };
    let config = TdpConfig { accessed_dirty: false, ..mitigated(Stage2Kind::Ept) };
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 1, config);
        vm.slot.set_host(Level::L2M);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        let mut speculative = vm.fault(PAGE, false);
        speculative.prefetch = true;
        assert_eq!(vm.serve(cx, &root, &speculative), RetPf::Fixed);
        check(cx, &vm, &root);
    });
    // The same of small pages, which may be executed, that become huge again.
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 1, config);
        let root = start_with(cx, &vm, Level::L2M, &[PAGE.0]);
        let mut lock = vm.mmu.mmu_lock.read(cx);
        vm.mmu.split_huge_pages(cx, MmuLock::Read(&mut lock), 0, vm.slot.range, Level::L4K);
        assert!(may(cx, &vm, &root, PAGE, Access::Exec));
        assert!(vm.mmu.age_gfn_range(cx, 0, vm.slot.range, Age::Clear));
        vm.mmu.recover_huge_pages(cx, &mut lock, 0, &vm.slot, &vm.flush);
        drop(lock);
        check(cx, &vm, &root);
    });
}

#[test]
fn tables_of_logged_slots_are_forgotten() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 1, mitigated(Stage2Kind::Ept));
        vm.slot.set_host(Level::L2M);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        vm.serve(cx, &root, &fetch(&vm, PAGE));
        recover(cx, &vm, 1, true);
        assert_eq!((vm.mmu.pages().leafs, vm.mmu.nx_huge_page_splits()), ([1, 0, 0], 0));
        assert_eq!(vm.flush.take(), 0);
        vm.mmu.assert_consistent();
    });
}

#[test]
fn a_fetch_that_could_not_be_huge_is_not_tracked() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 1, mitigated(Stage2Kind::Ept));
        let root = vm.mmu.load_root(cx, 0).unwrap();
        vm.serve(cx, &root, &fetch(&vm, PAGE));
        assert_eq!(vm.mmu.nx_huge_page_splits(), 0, "the host's mapping is small");
    });
}

/// A vCPU that accesses one page until it succeeds.
fn vcpu(cx: &Cx<'_>, vm: &Vm, fault: &TdpFault) {
    let root = vm.mmu.load_root(cx, 0).unwrap();
    let mut tries = 0;
    while vm.serve(cx, &root, fault) == RetPf::Retry {
        tries += 1;
        assert!(tries < 40, "MMU-INV-056: {fault:?} is tried again and again");
    }
    vm.mmu.put_root(cx, root);
}

fn recovery_against_a_fetch(mutants: MutantSet) {
    race_with(
        mutants,
        |cx| {
            let vm = Arc::new(Vm::with(cx, 1, mitigated(Stage2Kind::Ept)));
            let root = start_with(cx, &vm, Level::L2M, &[]);
            vm.serve(cx, &root, &fetch(&vm, BASE + 1));
            vm.mmu.put_root(cx, root);
            spawn(cx, "vcpu", &vm, |cx, vm| vcpu(cx, vm, &fetch(vm, BASE)));
            spawn(cx, "recovery", &vm, |cx, vm| recover(cx, vm, 2, false));
            vm
        },
        |_, vm| assert!(vm.mmu.pages().leafs[0] <= 2),
    );
}

#[test]
fn recovery_against_faults() {
    recovery_against_a_fetch(MutantSet::EMPTY);
}

#[test]
#[should_panic(expected = "MMU-INV-00")]
fn entries_of_a_dead_table_must_be_frozen() {
    recovery_against_a_fetch(MutantSet::EMPTY.with(NO_FREEZE_CHILDREN));
}

fn data_against_a_fetch(mutants: MutantSet) {
    race_with(
        mutants,
        |cx| {
            let vm = Arc::new(Vm::with(cx, 1, mitigated(Stage2Kind::Ept)));
            let root = start_with(cx, &vm, Level::L2M, &[]);
            vm.mmu.put_root(cx, root);
            spawn(cx, "fetch", &vm, |cx, vm| vcpu(cx, vm, &fetch(vm, BASE)));
            spawn(cx, "data", &vm, |cx, vm| vcpu(cx, vm, &vm.fault(BASE + 1, true)));
            vm
        },
        |_, vm| assert!(vm.mmu.nx_huge_page_splits() <= 1),
    );
}

#[test]
fn a_fetch_and_data_of_one_block() {
    data_against_a_fetch(MutantSet::EMPTY);
}

#[test]
#[should_panic(expected = "MMU-INV-00")]
fn bug_66_a_table_says_too_late_why_it_is_there() {
    data_against_a_fetch(MutantSet::EMPTY.with(BUG_66));
}
