//! MM-076, MM-119: ageing with and without A bits of the hardware, and what races with it.

use crate::races::{race, race_with, spawn, start_with};
use crate::vm::{Vm, config, runs};
use sim_kernel::Cx;
use sim_kernel::MutantSet;
use sim_kernel::sched::Sim;
use sim_mmu::mutants::BUG_68;
use sim_mmu::{
    Access, Age, Gfn, GfnRange, Level, MayYield, RetPf, Root, RootFilter, Stage2Kind, TdpConfig, Translation,
};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

const PAGE: Gfn = Gfn(600);

fn without_a_bits() -> TdpConfig {
    TdpConfig { accessed_dirty: false, ..config(Stage2Kind::Ept) }
}

fn age(cx: &Cx<'_>, vm: &Vm, age: Age) -> bool {
    vm.mmu.age_gfn_range(cx, 0, vm.slot.range, age)
}

fn access(cx: &Cx<'_>, vm: &Vm, root: &Root, access: Access) -> Result<Translation, RetPf> {
    vm.mmu.translate(cx, root, PAGE.gpa(), access).map_err(|refused| {
        let mut fault = vm.fault(PAGE, access == Access::Write);
        fault.present = refused.present;
        match vm.mmu.fast_page_fault(cx, root, &fault, Some(&vm.slot)) {
            RetPf::Invalid => vm.serve(cx, root, &fault),
            fast => fast,
        }
    })
}

#[test]
fn mm_119_young_is_reported_once_per_access() {
    for config in [config(Stage2Kind::Npt), config(Stage2Kind::Ept), without_a_bits()] {
        Sim::sequential().solo(|cx| {
            let vm = Vm::with(cx, 1, config);
            let root = vm.mmu.load_root(cx, 0).unwrap();
            assert!(!age(cx, &vm, Age::Test), "nothing is mapped");
            vm.touch(cx, &root, PAGE.0, true);
            for _ in 0..3 {
                assert!(age(cx, &vm, Age::Test) && age(cx, &vm, Age::Test), "looking changes nothing");
                assert!(age(cx, &vm, Age::Clear));
                assert!(!age(cx, &vm, Age::Clear) && !age(cx, &vm, Age::Test));
                while access(cx, &vm, &root, Access::Read).is_err() {}
            }
            assert_eq!(vm.flush.take(), 0, "ageing never flushes");
            vm.mmu.assert_consistent();
        });
    }
}

#[test]
fn mm_119_what_is_not_aged() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 2);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        vm.touch(cx, &root, PAGE.0, true);
        let elsewhere = GfnRange::with_len(Gfn(1024), 512);
        assert!(!vm.mmu.age_gfn_range(cx, 0, elsewhere, Age::Clear), "another range");
        assert!(!vm.mmu.age_gfn_range(cx, 1, vm.slot.range, Age::Clear), "another address space");
        vm.mmu.invalidate_all_roots(cx, &mut vm.mmu.mmu_lock.write(cx));
        assert!(!age(cx, &vm, Age::Clear), "an invalid root");
    });
}

#[test]
fn mm_076_an_aged_page_gets_its_rights_back_from_the_fast_path() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 1, without_a_bits());
        let root = vm.mmu.load_root(cx, 0).unwrap();
        vm.touch(cx, &root, PAGE.0, true);
        let full = vm.mmu.peek_leaf(&root, PAGE).0;
        assert!(age(cx, &vm, Age::Clear));
        let aged = vm.mmu.peek_leaf(&root, PAGE).0;
        assert!(aged.is_present() && vm.mmu.masks().is_access_track(aged));
        let refused = vm.mmu.translate(cx, &root, PAGE.gpa(), Access::Read).unwrap_err();
        assert!(!refused.present && !refused.reserved, "the hardware takes it for absent");
        let pages = vm.mmu.pages();
        cx.capture_trace(true);

        assert_eq!(access(cx, &vm, &root, Access::Read), Err(RetPf::Fixed));
        let read = access(cx, &vm, &root, Access::Exec).unwrap();
        assert!(!read.writable && read.executable, "a read gives R and X back, not W");
        assert_eq!(access(cx, &vm, &root, Access::Write), Err(RetPf::Fixed));
        assert_eq!(vm.mmu.peek_leaf(&root, PAGE).0, full);
        assert_eq!(vm.mmu.pages(), pages, "nothing was mapped anew");
        assert_eq!(runs(cx, &vm.mmu), [], "and the fast path reports nothing");

        // A write at once; and one that M does not allow.
        assert!(age(cx, &vm, Age::Clear));
        assert_eq!(access(cx, &vm, &root, Access::Write), Err(RetPf::Fixed));
        assert_eq!(vm.mmu.peek_leaf(&root, PAGE).0, full);
        let mut readonly = vm.fault(Gfn(601), false);
        readonly.map_writable = false;
        assert_eq!(vm.serve(cx, &root, &readonly), RetPf::Fixed);
        assert!(age(cx, &vm, Age::Clear));
        let mut fault = vm.fault(Gfn(601), true);
        assert_eq!(
            vm.mmu.fast_page_fault(cx, &root, &fault, Some(&vm.slot)),
            RetPf::Invalid,
            "a write, and M is clear"
        );
        fault.write = false;
        assert_eq!(vm.mmu.fast_page_fault(cx, &root, &fault, Some(&vm.slot)), RetPf::Fixed);
        assert!(!vm.mmu.peek_leaf(&root, Gfn(601)).0.is_writable());
    });
}

#[test]
fn mm_072_a_speculative_mapping_without_a_bits_waits_for_its_access() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 1, without_a_bits());
        let root = vm.mmu.load_root(cx, 0).unwrap();
        let mut speculative = vm.fault(PAGE, false);
        speculative.prefetch = true;
        assert_eq!(vm.serve(cx, &root, &speculative), RetPf::Fixed);
        assert!(!age(cx, &vm, Age::Test));
        assert_eq!(access(cx, &vm, &root, Access::Write), Err(RetPf::Fixed), "one fault, without a new mapping");
        assert!(access(cx, &vm, &root, Access::Write).unwrap().writable);
        assert!(age(cx, &vm, Age::Test));
    });
}

#[test]
fn a_logged_page_that_is_aged_is_marked_when_it_is_written() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 1, without_a_bits());
        let root = vm.mmu.load_root(cx, 0).unwrap();
        vm.touch(cx, &root, PAGE.0, true);
        vm.slot.logged.store(true, SeqCst);
        vm.mmu.wrprot_slot(cx, &mut vm.mmu.mmu_lock.read(cx), 0, vm.slot.range, Level::L4K);
        assert!(age(cx, &vm, Age::Clear));
        assert_eq!(access(cx, &vm, &root, Access::Read), Err(RetPf::Fixed));
        assert!(vm.slot.dirty.lock().is_empty(), "a read dirties nothing");
        assert_eq!(access(cx, &vm, &root, Access::Write), Err(RetPf::Fixed));
        assert!(vm.slot.dirty.lock().contains(&PAGE.0));
    });
}

/// Ageing races with a zap: the leaf that is gone must not come back.
fn against_a_zap(mutants: MutantSet) {
    race_with(
        mutants,
        |cx| {
            let vm = Arc::new(Vm::new(cx, 1));
            let root = start_with(cx, &vm, Level::L4K, &[PAGE.0]);
            vm.mmu.put_root(cx, root);
            spawn(cx, "age", &vm, |cx, vm| {
                age(cx, vm, Age::Clear);
            });
            spawn(cx, "zap", &vm, |cx, vm| {
                let mut lock = vm.mmu.mmu_lock.write(cx);
                let range = GfnRange::with_len(PAGE, 1);
                let owed = vm.mmu.zap_leafs(cx, &mut lock, Some(0), RootFilter::Shared, range, MayYield::No, &vm.flush);
                owed.discharge(cx, &vm.flush);
            });
            vm
        },
        |_, vm| assert_eq!(vm.mmu.pages().leafs, [0; 3]),
    );
}

#[test]
fn ageing_resurrects_nothing() {
    against_a_zap(MutantSet::EMPTY);
}

#[test]
#[should_panic(expected = "MMU-INV-006")]
fn bug_68_a_plain_store_resurrects_what_was_zapped() {
    against_a_zap(MutantSet::EMPTY.with(BUG_68));
}

#[test]
fn ageing_against_the_fast_path_and_the_hardware() {
    race(
        |cx| {
            let vm = Arc::new(Vm::with(cx, 1, without_a_bits()));
            let root = start_with(cx, &vm, Level::L4K, &[PAGE.0]);
            vm.mmu.put_root(cx, root);
            spawn(cx, "age", &vm, |cx, vm| {
                for _ in 0..2 {
                    age(cx, vm, Age::Clear);
                }
            });
            spawn(cx, "vcpu", &vm, |cx, vm| {
                let root = vm.mmu.load_root(cx, 0).unwrap();
                let mut tries = 0;
                while access(cx, vm, &root, Access::Write).is_err() {
                    tries += 1;
                    assert!(tries < 10, "MMU-INV-056: the fault comes again and again");
                }
                vm.mmu.put_root(cx, root);
            });
            vm
        },
        |_, vm| assert_eq!(vm.mmu.pages().leafs, [1, 0, 0]),
    );
}
