//! MM-060, MM-070, MM-071, MM-074, MM-075, MM-080, MM-085, MM-086, MM-110, MM-111, MM-115 to MM-118, MM-120: faults, levels, zaps and roots,
//! as far as stage 2 alone decides them.

use crate::races::{race, spawn, start_with};
use crate::vm::{BASE, Vm, config, runs};
use sim_kernel::Cx;
use sim_kernel::sched::{Chooser, Config, Divergence, LogLevel, Ready, Sim, Strategy, TaskId, Verdict};
use sim_mmu::{
    Access, Age, Gfn, GfnRange, Level, MayYield, MmuLock, RetPf, RootFilter, Spte, Stage2Kind, TdpConfig, TdpFault,
};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

const PAGE: Gfn = Gfn(600);

fn zap(cx: &Cx<'_>, vm: &Vm, range: GfnRange) -> bool {
    let mut lock = vm.mmu.mmu_lock.write(cx);
    let owed = vm.mmu.zap_leafs(cx, &mut lock, Some(0), RootFilter::All, range, MayYield::Yes, &vm.flush);
    owed.discharge(cx, &vm.flush)
}

#[test]
fn mm_060_the_second_vcpu_has_nothing_to_do() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        // Access, the same again, and a stronger one.
        let steps = [(false, RetPf::Fixed), (false, RetPf::Spurious), (true, RetPf::Spurious)];
        for (write, expected) in steps {
            assert_eq!(vm.touch(cx, &root, PAGE.0, write), expected, "a writable page is writable at once");
        }
    });
}

#[test]
fn mm_070_mm_071_the_hull_of_open_invalidations_and_the_global_sequence() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let invalidate = &vm.mmu.invalidate;
        let stale = |seq, gfn| invalidate.retry_gfn(cx, &vm.mmu.mmu_lock.read(cx), seq, Gfn(gfn));
        let begin = |start| {
            let mut lock = vm.mmu.mmu_lock.write(cx);
            let open = invalidate.begin(cx, &mut lock);
            invalidate.add_range(cx, &mut lock, GfnRange::with_len(Gfn(start), 2));
            open
        };
        let seq = invalidate.seq(cx);
        let first = begin(520);
        assert_eq!([519, 520, 521, 522].map(|gfn| stale(seq, gfn)), [false, true, true, false]);
        let second = begin(530);
        // The hull: what lies between is kept away too.
        assert_eq!([519, 520, 525, 531, 532].map(|gfn| stale(seq, gfn)), [false, true, true, true, false]);
        invalidate.end(cx, &mut vm.mmu.mmu_lock.write(cx), first);
        assert!(stale(seq, 700), "any fault that was on its way when one ended");
        let seq = invalidate.seq(cx);
        assert_eq!(
            [700, 520, 531].map(|gfn| stale(seq, gfn)),
            [false, true, true],
            "the hull stays until none is open"
        );
        invalidate.end(cx, &mut vm.mmu.mmu_lock.write(cx), second);
        let seq = invalidate.seq(cx);
        assert!(![520, 531].map(|gfn| stale(seq, gfn)).contains(&true));
    });
}

#[test]
fn mm_074_the_fast_path_changes_w_alone() {
    for kind in [Stage2Kind::Ept, Stage2Kind::Npt] {
        Sim::sequential().solo(|cx| {
            let vm = Vm::with(cx, 1, config(kind));
            let root = start_with(cx, &vm, Level::L4K, &[PAGE.0]);
            vm.slot.logged.store(true, SeqCst);
            vm.mmu.wrprot_slot(cx, &mut vm.mmu.mmu_lock.read(cx), 0, vm.slot.range, Level::L4K);
            let before = vm.mmu.peek_leaf(&root, PAGE).0;
            cx.capture_trace(true);
            let mut fault = vm.fault(PAGE, true);
            fault.present = true;
            let fast = |fault: &TdpFault| vm.mmu.fast_page_fault(cx, &root, fault, Some(&vm.slot));
            assert_eq!(fast(&fault), RetPf::Fixed);
            let after = vm.mmu.peek_leaf(&root, PAGE).0;
            assert_eq!(after, before.with(1 << 1), "W and nothing else");
            assert!(vm.slot.dirty.lock().contains(&PAGE.0));
            assert_eq!(runs(cx, &vm.mmu), [], "and it is no event");
            // What it declines: a page of a read-only mapping, one with W and M taken away, and none.
            let mut readonly = vm.fault(Gfn(601), false);
            readonly.map_writable = false;
            vm.serve(cx, &root, &readonly);
            for gfn in [601, 602] {
                let mut fault = vm.fault(Gfn(gfn), true);
                fault.present = true;
                assert_eq!(fast(&fault), RetPf::Invalid, "{gfn}");
            }
        });
    }
}

/// Lets the second task change an entry each time that the first is about to, and counts how often that is.
struct Spoiler {
    spoiled: bool,
    attempts: Arc<AtomicU64>,
}

impl Strategy for Spoiler {
    fn begin(&mut self, _seed: u64) {}

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let (fault, other) = (TaskId(1), TaskId(2));
        let exchanges = |task: TaskId| {
            let next = ready.pending(task);
            next.access == sim_kernel::sched::Access::Rmw && next.site.file().contains("tdp")
        };
        if !exchanges(fault) {
            self.spoiled = false;
            return Ok(fault);
        }
        if !self.spoiled {
            self.spoiled = exchanges(other);
            return Ok(other);
        }
        self.attempts.fetch_add(1, SeqCst);
        Ok(fault)
    }
}

#[test]
fn mm_075_after_five_failures_the_slow_path_has_to_do_it() {
    let attempts = Arc::new(AtomicU64::new(0));
    let mut sim = Sim::new(Chooser::Custom(Box::new(Spoiler { spoiled: false, attempts: Arc::clone(&attempts) })));
    let settings = Config { steps_max: 10_000, log: LogLevel::Off, ..Config::default() };
    let (root, verdict) = sim.execute(&settings, |cx| {
        let vm = Arc::new(Vm::new(cx, 1));
        let root = start_with(cx, &vm, Level::L4K, &[PAGE.0]);
        vm.slot.logged.store(true, SeqCst);
        vm.mmu.wrprot_slot(cx, &mut vm.mmu.mmu_lock.read(cx), 0, vm.slot.range, Level::L4K);
        let (first, second) = (Arc::clone(&root), Arc::clone(&root));
        spawn(cx, "fault", &vm, move |cx, vm| {
            let mut fault = vm.fault(PAGE, true);
            fault.present = true;
            assert_eq!(vm.mmu.fast_page_fault(cx, &first, &fault, Some(&vm.slot)), RetPf::Invalid);
        });
        // The entry's A bit goes and comes.
        spawn(cx, "age", &vm, move |cx, vm| {
            for _ in 0..10 {
                vm.mmu.age_gfn_range(cx, 0, GfnRange::with_len(PAGE, 1), Age::Clear);
                vm.mmu.translate(cx, &second, PAGE.gpa(), Access::Read).unwrap();
            }
        });
        (vm, root)
    });
    assert_eq!(verdict, Verdict::Completed, "{verdict}");
    assert_eq!(attempts.load(SeqCst), 5);
    sim.solo(|cx| root.0.mmu.put_root(cx, root.1));
}

#[test]
fn mm_080_the_level_of_a_mapping() {
    // Aligned to 2 MiB, 1 GiB is out of the slot; the limit of the host, of the fault, of the processor.
    let cases = [
        (Level::L2M, Level::L1G, Level::L1G, [0, 1, 0]),
        (Level::L1G, Level::L1G, Level::L1G, [0, 1, 0]),
        (Level::L4K, Level::L1G, Level::L1G, [1, 0, 0]),
        (Level::L2M, Level::L4K, Level::L1G, [1, 0, 0]),
        (Level::L2M, Level::L1G, Level::L4K, [1, 0, 0]),
    ];
    for (host, fault_max, processor_max, leafs) in cases {
        Sim::sequential().solo(|cx| {
            let vm = Vm::with(cx, 1, TdpConfig { max_level: processor_max, ..config(Stage2Kind::Npt) });
            vm.slot.set_host(host);
            let root = vm.mmu.load_root(cx, 0).unwrap();
            let fault = TdpFault { max_level: fault_max, ..vm.fault(PAGE, true) };
            assert_eq!(vm.serve(cx, &root, &fault), RetPf::Fixed);
            assert_eq!(vm.mmu.pages().leafs, leafs, "{host:?} {fault_max:?} {processor_max:?}");
        });
    }
}

#[test]
fn mm_085_a_logged_slot_is_mapped_small() {
    for write in [false, true] {
        Sim::sequential().solo(|cx| {
            let vm = Vm::new(cx, 1);
            vm.slot.set_host(Level::L2M);
            vm.slot.logged.store(true, SeqCst);
            let root = vm.mmu.load_root(cx, 0).unwrap();
            vm.touch(cx, &root, PAGE.0, write);
            assert_eq!(vm.mmu.pages().leafs, [1, 0, 0]);
            assert!(vm.slot.dirty.lock().contains(&PAGE.0), "a writable entry marks its page, whatever the access");
        });
    }
}

#[test]
fn mm_086_a_table_that_a_huge_page_replaces_is_flushed_once() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let root = start_with(cx, &vm, Level::L4K, &[PAGE.0, PAGE.0 + 1]);
        assert_eq!(vm.flush.take(), 0, "nothing that was absent needs a flush");
        vm.slot.set_host(Level::L2M);
        assert_eq!(vm.touch(cx, &root, PAGE.0 + 2, true), RetPf::Fixed);
        assert_eq!((vm.mmu.pages().leafs, vm.flush.take()), ([0, 1, 0], 1));
    });
}

#[test]
fn mm_110_mm_111_a_hole() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 2);
        let root = start_with(cx, &vm, Level::L4K, &[PAGE.0, PAGE.0 + 1]);
        vm.slot.set_host(Level::L2M);
        vm.touch(cx, &root, 1100, true);
        assert!(!zap(cx, &vm, GfnRange::with_len(Gfn(700), 10)), "MM-111: nothing was mapped");
        assert_eq!(vm.flush.take(), 0);
        assert!(zap(cx, &vm, GfnRange::with_len(PAGE, 1)));
        assert_eq!(vm.flush.take(), 1);
        assert_eq!(vm.mmu.peek_leaf(&root, PAGE).0, Spte::NONPRESENT);
        assert_eq!(vm.mmu.pages().leafs, [1, 1, 0], "the neighbour stays");
        assert!(zap(cx, &vm, GfnRange::with_len(Gfn(1400), 1)));
        assert_eq!(vm.mmu.pages().leafs, [1, 0, 0], "a huge leaf goes as a whole");
        assert_eq!(vm.mmu.pages().tables, 3, "and tables stay");
    });
}

#[test]
fn mm_115_mm_116_roots() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let (a, b) = (vm.mmu.load_root(cx, 0).unwrap(), vm.mmu.load_root(cx, 0).unwrap());
        let other = vm.mmu.load_root(cx, 1).unwrap();
        assert!(Arc::ptr_eq(&a, &b) && a.table() != other.table());
        vm.mmu.put_root(cx, a);
        let again = vm.mmu.load_root(cx, 0).unwrap();
        assert!(Arc::ptr_eq(&b, &again), "a reload finds the same");
        vm.touch(cx, &b, PAGE.0, true);
        vm.mmu.invalidate_all_roots(cx, &mut vm.mmu.mmu_lock.write(cx));
        let new = vm.mmu.load_root(cx, 0).unwrap();
        assert_ne!(new.table(), b.table(), "MM-116: an invalid root is never loaded");
        vm.mmu.zap_invalidated_roots(cx);
        assert_eq!(vm.mmu.pages().leafs, [0; 3], "and empty when the call returns");
        assert!(vm.mmu.translate(cx, &b, PAGE.gpa(), Access::Read).is_err());
        for root in [b, again, other, new] {
            vm.mmu.put_root(cx, root);
        }
        assert_eq!(vm.mmu.pages().roots, 1, "the new one; those of both address spaces were taken apart");
        vm.mmu.uninit(cx);
    });
}

#[test]
fn mm_117_a_notifier_clears_the_root_that_is_being_taken_apart_and_owes_nothing_for_it() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let root = start_with(cx, &vm, Level::L4K, &[PAGE.0]);
        vm.mmu.invalidate_all_roots(cx, &mut vm.mmu.mmu_lock.write(cx));
        assert!(!zap(cx, &vm, GfnRange::with_len(PAGE, 1)));
        assert_eq!(vm.mmu.pages().leafs, [0; 3]);
        vm.mmu.put_root(cx, root);
        vm.mmu.zap_invalidated_roots(cx);
        assert_eq!(vm.mmu.pages().roots, 0);
    });
}

#[test]
fn mm_118_a_zap_that_yields_does_what_one_does_that_cannot() {
    race(
        |cx| {
            let vm = Arc::new(Vm::new(cx, 1));
            let root = start_with(cx, &vm, Level::L4K, &[600, 602, 604, 606]);
            vm.mmu.put_root(cx, root);
            spawn(cx, "zap", &vm, |cx, vm| {
                zap(cx, vm, GfnRange::with_len(PAGE, 6));
            });
            // Somebody wants the lock again and again.
            spawn(cx, "reader", &vm, |cx, vm| {
                for _ in 0..3 {
                    drop(vm.mmu.mmu_lock.read(cx));
                }
            });
            vm
        },
        |_, vm| {
            assert_eq!(vm.mmu.pages().leafs, [1, 0, 0], "606 lies outside");
            assert!(
                (1..=3).contains(&vm.flush.take()),
                "one at the end, and one before each yield with something owed"
            );
        },
    );
}

#[test]
fn mm_120_taking_m_away_is_a_change_even_without_w_and_taking_w_away_flushes_nothing() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 1, TdpConfig { eager_page_split: false, ..config(Stage2Kind::Ept) });
        let root = start_with(cx, &vm, Level::L2M, &[PAGE.0]);
        let mmu_writable = vm.mmu.masks().mmu_writable;
        vm.slot.logged.store(true, SeqCst);
        assert!(vm.mmu.wrprot_slot(cx, &mut vm.mmu.mmu_lock.read(cx), 0, vm.slot.range, Level::L4K));
        let collect = |initially_set| {
            let mut lock = vm.mmu.mmu_lock.write(cx);
            let mut lock = MmuLock::Write(&mut lock);
            vm.mmu.enable_log_dirty_pt_masked(cx, &mut lock, 0, BASE + 64, 1 << 24, initially_set)
        };
        let before = vm.mmu.peek_leaf(&root, PAGE);
        assert!(!before.0.is_writable() && before.0.has(mmu_writable));
        assert!(!collect(false), "huge leafs have lost W when logging began");
        assert_eq!(vm.mmu.peek_leaf(&root, PAGE), before);
        assert!(collect(true), "where logging began with every page dirty they lose M too: the caller must flush");
        assert_eq!(vm.mmu.peek_leaf(&root, PAGE), (before.0.without(mmu_writable), before.1));
        assert!(!collect(true), "once");
        assert_eq!(vm.flush.take(), 0, "what lost W or M is the caller's to flush");
    });
}
