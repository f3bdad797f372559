//! MM-090 to MM-101 as far as stage 2 decides: dirty logging by write protection and by the processor's log, splits, recovery.

use crate::races::{race, spawn, start_with};
use crate::vm::{BASE, Vm, config, runs};
use sim_kernel::Cx;
use sim_kernel::sched::Sim;
use sim_mmu::guest_paging::{Encryption, GuestFormat, PagingRegisters};
use sim_mmu::processor::{GuestState, Processor};
use sim_mmu::tlb::{TlbConfig, TlbTag};
use sim_mmu::walker::{Ept, EptExit, MmuFault, PML_ENTRIES};
use sim_mmu::{Access, Gfn, Gva, Level, MmuLock, RetPf, Root, Stage2Kind, TdpConfig};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

const PAGE: Gfn = Gfn(600);
/// The 64 frames of a bitmap's word that has the page, and its bit.
const WORD: Gfn = Gfn(BASE.0 + 64);
const BIT: u64 = 1 << (PAGE.0 - WORD.0);

fn with_log() -> TdpConfig {
    TdpConfig { pml: true, ..config(Stage2Kind::Ept) }
}

/// What KVM does when logging of the slot is switched on.
fn enable(cx: &Cx<'_>, vm: &Vm) {
    vm.slot.logged.store(true, SeqCst);
    let mut lock = vm.mmu.mmu_lock.read(cx);
    if vm.mmu.config().eager_page_split {
        vm.mmu.split_huge_pages(cx, MmuLock::Read(&mut lock), 0, vm.slot.range, Level::L4K);
    }
    let smallest = if vm.mmu.config().pml {
        vm.mmu.clear_dirty_slot(cx, &mut lock, 0, vm.slot.range);
        Level::L2M
    } else {
        Level::L4K
    };
    vm.mmu.wrprot_slot(cx, &mut lock, 0, vm.slot.range, smallest);
}

fn disable(cx: &Cx<'_>, vm: &Vm) {
    vm.slot.logged.store(false, SeqCst);
    vm.mmu.recover_huge_pages(cx, &mut vm.mmu.mmu_lock.read(cx), 0, &vm.slot, &vm.flush);
}

/// Takes the page's bit, as reading the log does; whether it was set.
fn collect(cx: &Cx<'_>, vm: &Vm) -> bool {
    let mut lock = vm.mmu.mmu_lock.write(cx);
    cx.cond_resched();
    let taken = vm.slot.dirty.lock().remove(&PAGE.0);
    if taken {
        vm.mmu.enable_log_dirty_pt_masked(cx, &mut MmuLock::Write(&mut lock), 0, WORD, BIT, false);
    }
    taken
}

/// A processor without guest paging and with nothing cached; its log is on where the VM's is.
fn processor(cx: &Cx<'_>, vm: &Vm, root: &Root) -> Processor<Ept> {
    let mut ept = Ept::new(46, true);
    ept.pml = vm.mmu.config().pml;
    let encryption = Encryption::None;
    let format = GuestFormat { maxphyaddr: 46, has_1g_pages: true, upper_global_reserved: false, encryption };
    let registers = PagingRegisters::default();
    let state = GuestState { registers, tag: TlbTag(1), stage2: root.stage2() };
    Processor::new(cx, ept, format, TlbConfig::NONE, state).unwrap()
}

/// The guest writes; faults are served, and on every way out of the guest the log is emptied first.
fn write(cx: &Cx<'_>, vm: &Vm, root: &Root, processor: &mut Processor<Ept>, gfn: Gfn, drains: bool) {
    loop {
        let result = processor.translate(cx, &vm.mmu, Gva(gfn.gpa().0), Access::Write);
        if drains || result.is_err() {
            for gpa in processor.log().drain(cx) {
                vm.slot.dirty.lock().insert(gpa.gfn().0);
            }
        }
        match result {
            Ok(_) => return,
            Err(MmuFault::Stage2(EptExit::PmlFull)) => {}
            Err(MmuFault::Stage2(EptExit::Violation(violation))) => {
                let mut fault = vm.fault(violation.gpa.gfn(), true);
                fault.present = vm.mmu.peek_leaf(root, fault.gpa.gfn()).0.is_present();
                if vm.mmu.fast_page_fault(cx, root, &fault, Some(&vm.slot)) == RetPf::Invalid {
                    vm.serve(cx, root, &fault);
                }
            }
            Err(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn mm_090_mm_093_enabling_splits_everything_and_protects_it() {
    for config in [config(Stage2Kind::Npt), config(Stage2Kind::Ept), with_log()] {
        Sim::sequential().solo(|cx| {
            let vm = Vm::with(cx, 2, config);
            let root = start_with(cx, &vm, Level::L2M, &[600, 1200]);
            enable(cx, &vm);
            assert_eq!(vm.mmu.pages().leafs, [1024, 0, 0]);
            let spte = vm.mmu.peek_leaf(&root, PAGE).0;
            assert_eq!(spte.is_writable(), config.pml, "W goes, or D does");
            assert_eq!(spte.has(vm.mmu.masks().dirty), !config.pml);
            assert!(spte.has(vm.mmu.masks().mmu_writable));
            assert_eq!(vm.flush.take(), 0, "MM-093: the one flush is the caller's, after mmu_lock");
        });
    }
}

#[test]
fn mm_090_mm_101_without_eager_splits_huge_leafs_lose_w_with_the_log_too() {
    for config in [config(Stage2Kind::Ept), with_log()] {
        Sim::sequential().solo(|cx| {
            let vm = Vm::with(cx, 1, TdpConfig { eager_page_split: false, ..config });
            let root = start_with(cx, &vm, Level::L2M, &[600]);
            enable(cx, &vm);
            assert_eq!(vm.mmu.pages().leafs, [0, 1, 0]);
            assert!(!vm.mmu.peek_leaf(&root, PAGE).0.is_writable());
            // MM-101: one byte is written, one page is dirty.
            let mut processor = processor(cx, &vm, &root);
            write(cx, &vm, &root, &mut processor, PAGE, true);
            assert_eq!(vm.slot.dirty.lock().iter().copied().collect::<Vec<_>>(), [PAGE.0]);
            assert_eq!(vm.mmu.pages().leafs, [512, 0, 0], "MM-085");
        });
    }
}

#[test]
fn mm_091_mm_092_a_recovered_page_takes_w_and_d_of_its_first_child() {
    for (written, fast) in [(BASE, false), (PAGE, true)] {
        Sim::sequential().solo(|cx| {
            let vm = Vm::new(cx, 1);
            let root = start_with(cx, &vm, Level::L2M, &[600]);
            enable(cx, &vm);
            let mut fault = vm.fault(written, true);
            fault.present = true;
            assert_eq!(vm.mmu.fast_page_fault(cx, &root, &fault, Some(&vm.slot)), RetPf::Fixed);
            disable(cx, &vm);
            assert_eq!(vm.mmu.pages().leafs, [0, 1, 0], "MM-091");
            assert_eq!(vm.flush.take(), 1);
            let mut fault = vm.fault(Gfn(700), true);
            fault.present = true;
            let expected = if fast { RetPf::Fixed } else { RetPf::Spurious };
            assert_eq!(vm.mmu.fast_page_fault(cx, &root, &fault, Some(&vm.slot)), expected);
        });
    }
}

#[test]
fn mm_097_what_nobody_wrote_is_not_reported_again() {
    for config in [config(Stage2Kind::Ept), with_log()] {
        Sim::sequential().solo(|cx| {
            let vm = Vm::with(cx, 1, config);
            let root = start_with(cx, &vm, Level::L4K, &[600]);
            enable(cx, &vm);
            let mut processor = processor(cx, &vm, &root);
            for _ in 0..3 {
                write(cx, &vm, &root, &mut processor, PAGE, true);
                write(cx, &vm, &root, &mut processor, PAGE, true);
                assert!(collect(cx, &vm) && !collect(cx, &vm));
            }
        });
    }
}

#[test]
fn mm_099_records_that_were_not_drained_come_next_round() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 1, with_log());
        let root = start_with(cx, &vm, Level::L4K, &[600]);
        enable(cx, &vm);
        let mut processor = processor(cx, &vm, &root);
        write(cx, &vm, &root, &mut processor, PAGE, false);
        assert!(!collect(cx, &vm), "the record is still with the processor");
        assert!(vm.mmu.peek_leaf(&root, PAGE).0.has(vm.mmu.masks().dirty), "and D stays, since the bit was not taken");
        cx.capture_trace(true);
        write(cx, &vm, &root, &mut processor, BASE, true);
        assert!(collect(cx, &vm));
        let mapped = (512, 1, 1, "none", "leaf+w");
        assert_eq!(runs(cx, &vm.mmu), [mapped, (600, 1, 1, "leaf+w", "leaf+w")], "D is cleared");
        assert!(!vm.mmu.peek_leaf(&root, PAGE).0.has(vm.mmu.masks().dirty));
        write(cx, &vm, &root, &mut processor, PAGE, true);
        assert!(collect(cx, &vm), "without a fault");
    });
}

#[test]
fn mm_032_a_full_log_is_emptied_before_the_access() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 2, with_log());
        let root = start_with(cx, &vm, Level::L2M, &[600, 1200]);
        enable(cx, &vm);
        let mut processor = processor(cx, &vm, &root);
        for n in 0..u64::from(PML_ENTRIES) {
            write(cx, &vm, &root, &mut processor, BASE + n, false);
        }
        assert!(vm.slot.dirty.lock().is_empty());
        write(cx, &vm, &root, &mut processor, BASE + 600, false);
        assert_eq!(vm.slot.dirty.lock().len(), 512, "the exit came first");
        assert_eq!(processor.log().index(), PML_ENTRIES - 2);
    });
}

#[test]
fn no_write_is_lost_by_the_log() {
    race(
        |cx| {
            let vm = Arc::new(Vm::with(cx, 1, with_log()));
            let root = start_with(cx, &vm, Level::L4K, &[600]);
            enable(cx, &vm);
            vm.mmu.put_root(cx, root);
            spawn(cx, "vcpu", &vm, |cx, vm| {
                let root = vm.mmu.load_root(cx, 0).unwrap();
                let mut processor = processor(cx, vm, &root);
                for _ in 0..3 {
                    write(cx, vm, &root, &mut processor, PAGE, true);
                }
                vm.mmu.put_root(cx, root);
            });
            spawn(cx, "collect", &vm, |cx, vm| {
                for _ in 0..2 {
                    collect(cx, vm);
                }
            });
            vm
        },
        |cx, vm| {
            let root = vm.mmu.load_root(cx, 0).unwrap();
            let dirty = vm.mmu.peek_leaf(&root, PAGE).0.has(vm.mmu.masks().dirty);
            let marked = vm.slot.dirty.lock().contains(&PAGE.0);
            assert!(marked || !dirty, "MMU-INV-040: D is set and the page is not marked");
            vm.mmu.put_root(cx, root);
        },
    );
}
