//! Two or three tasks under random schedules; afterwards counts must be right and nothing may be leaked.

use crate::vm::{BASE, Vm};
use sim_kernel::explore::{Exploration, Judgement, Options, Program, StrategyKind};
use sim_kernel::sched::{Sim, Verdict};
use sim_kernel::sync::{Mutex, rcu_read_lock};
use sim_kernel::{Cx, MutantSet, Pfn};
use sim_mmu::{Access, Gfn, GfnRange, Level, MayYield, MmuLock, RetPf, Root, RootFilter};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

const SEEDS: u64 = 400;

/// A program of tasks over one VM; `check` sees what is left of it before it is torn down.
pub(crate) struct Race<S, C> {
    pub(crate) mutants: MutantSet,
    pub(crate) setup: S,
    pub(crate) check: C,
}

impl<S: Fn(&Cx<'_>) -> Arc<Vm>, C: Fn(&Cx<'_>, &Vm)> Race<S, C> {
    fn tear_down(&self, cx: &Cx<'_>, vm: &Vm) {
        vm.mmu.assert_consistent();
        let stats = vm.mmu.pages();
        assert_eq!(vm.mmu.table_frames(), stats.tables + stats.roots, "MMU-INV-007: a table is leaked");
        (self.check)(cx, vm);
        vm.mmu.uninit(cx);
    }
}

impl<S: Fn(&Cx<'_>) -> Arc<Vm>, C: Fn(&Cx<'_>, &Vm)> Program for Race<S, C> {
    type State = Arc<Vm>;

    fn setup(&self, cx: &Cx<'_>) -> Arc<Vm> {
        cx.set_mutants(self.mutants);
        (self.setup)(cx)
    }

    fn judge(&self, sim: &mut Sim, vm: Arc<Vm>, verdict: &Verdict) -> Judgement {
        assert_eq!(*verdict, Verdict::Completed);
        sim.solo(|cx| self.tear_down(cx, &vm));
        Judgement::default()
    }
}

/// Executes a program so often under one strategy, or until the space is exhausted, which is what it returns. Panics at the first failure.
pub(crate) fn explore(program: &impl Program, kind: StrategyKind, executions: u64) -> bool {
    let mut exploration = Exploration::new(program, kind, 0, Options::default());
    for _ in 0..executions {
        if exploration.step().is_none() {
            return true;
        }
    }
    exploration.is_exhausted()
}

/// Runs tasks under many schedules; `check` sees what is left, then everything is torn down.
pub(crate) fn race(setup: impl Fn(&Cx<'_>) -> Arc<Vm>, check: impl Fn(&Cx<'_>, &Vm)) {
    race_with(MutantSet::EMPTY, setup, check);
}

/// The same with rules switched off; more schedules, and by several strategies.
pub(crate) fn race_with(mutants: MutantSet, setup: impl Fn(&Cx<'_>) -> Arc<Vm>, check: impl Fn(&Cx<'_>, &Vm)) {
    let race = Race { mutants, setup, check };
    explore(&race, StrategyKind::Random, SEEDS);
    if !mutants.is_empty() {
        explore(&race, StrategyKind::Pct { depth: 3 }, 10 * SEEDS);
        explore(&race, StrategyKind::Random, 20 * SEEDS);
    }
}

pub(crate) fn spawn(cx: &Cx<'_>, name: &str, vm: &Arc<Vm>, body: impl FnOnce(&Cx<'_>, &Vm) + Send + 'static) {
    let vm = Arc::clone(vm);
    cx.spawn(name, move |cx| body(cx, &vm));
}

/// A vCPU that accesses one frame until it succeeds, as `faultin_pfn` and `direct_page_fault` do it.
fn vcpu(cx: &Cx<'_>, vm: &Vm, backing: &Mutex<Pfn>, gfn: Gfn, write: bool) {
    let root = vm.mmu.load_root(cx, 0).unwrap();
    loop {
        let seq = vm.mmu.invalidate.seq(cx);
        let pfn = *backing.lock(cx);
        if !vm.phys.try_get(cx, pfn) {
            continue;
        }
        let lock = vm.mmu.mmu_lock.read(cx);
        let stale = vm.mmu.invalidate.retry_gfn(cx, &lock, seq, gfn);
        let mut fault = vm.fault(gfn, write);
        fault.pfn = Some(pfn);
        let result =
            (!stale).then(|| vm.mmu.map(cx, &lock, &root, &mut fault.clone(), Some(&vm.slot), &vm.flush).unwrap());
        vm.phys.put(cx, pfn);
        if result.is_some_and(|result| result != RetPf::Retry) {
            break;
        }
    }
    vm.mmu.put_root(cx, root);
}

#[test]
fn map_against_zap() {
    race(
        |cx| {
            let vm = Arc::new(Vm::new(cx, 1));
            let gfn = BASE + 5;
            let backing = Arc::new(Mutex::new(cx, "backing", vm.phys.alloc_zeroed().unwrap()));
            for name in ["vcpu0", "vcpu1"] {
                let backing = Arc::clone(&backing);
                spawn(cx, name, &vm, move |cx, vm| vcpu(cx, vm, &backing, gfn, true));
            }
            spawn(cx, "punch", &vm, move |cx, vm| {
                for _ in 0..2 {
                    let mut lock = vm.mmu.mmu_lock.write(cx);
                    let open = vm.mmu.invalidate.begin(cx, &mut lock);
                    let range = GfnRange::with_len(gfn, 1);
                    vm.mmu.invalidate.add_range(cx, &mut lock, range);
                    let owed =
                        vm.mmu.zap_leafs(cx, &mut lock, Some(0), RootFilter::All, range, MayYield::Yes, &vm.flush);
                    owed.discharge(cx, &vm.flush);
                    drop(lock);
                    // Freed at once if no fault holds it; then a leftover entry fails INV-203.
                    let old = std::mem::replace(&mut *backing.lock(cx), vm.phys.alloc_zeroed().unwrap());
                    vm.phys.put(cx, old);
                    vm.mmu.invalidate.end(cx, &mut vm.mmu.mmu_lock.write(cx), open);
                }
            });
            vm
        },
        |_, vm| assert!(vm.mmu.pages().leafs[0] <= 1),
    );
}

#[test]
fn two_maps_of_one_frame() {
    race(
        |cx| {
            let vm = Arc::new(Vm::new(cx, 1));
            for (name, gfn) in [("vcpu0", 5), ("vcpu1", 5), ("vcpu2", 6)] {
                let backing = Mutex::new(cx, "backing", vm.pfn(BASE + gfn));
                spawn(cx, name, &vm, move |cx, vm| vcpu(cx, vm, &backing, BASE + gfn, gfn == 5));
            }
            vm
        },
        |_, vm| {
            assert_eq!(vm.mmu.pages().leafs, [2, 0, 0]);
            assert_eq!(vm.mmu.pages().tables, 3);
            assert_eq!(vm.mmu.pages().roots, 1, "vCPUs share a root");
        },
    );
}

/// A vCPU that faults until its leaf is there, giving its root up when it is told to.
fn touch_until_done(cx: &Cx<'_>, vm: &Vm, gfn: Gfn) {
    let mut root = vm.mmu.load_root(cx, 0).unwrap();
    while vm.serve(cx, &root, &vm.fault(gfn, true)) == RetPf::Retry {
        if root.is_invalid_lockless(cx) {
            let new = vm.mmu.load_root(cx, 0).unwrap();
            vm.mmu.put_root(cx, std::mem::replace(&mut root, new));
        }
    }
    vm.mmu.put_root(cx, root);
}

#[test]
fn map_against_root_invalidation() {
    race(
        |cx| {
            let vm = Arc::new(Vm::new(cx, 1));
            for (name, gfn) in [("vcpu0", 5), ("vcpu1", 9)] {
                spawn(cx, name, &vm, move |cx, vm| touch_until_done(cx, vm, BASE + gfn));
            }
            spawn(cx, "delete", &vm, |cx, vm| {
                vm.mmu.invalidate_all_roots(cx, &mut vm.mmu.mmu_lock.write(cx));
                vm.mmu.zap_invalidated_roots(cx);
            });
            spawn(cx, "notifier", &vm, |cx, vm| {
                let mut lock = vm.mmu.mmu_lock.write(cx);
                let all = RootFilter::All;
                let owed = vm.mmu.zap_leafs(cx, &mut lock, None, all, vm.slot.range, MayYield::Yes, &vm.flush);
                owed.discharge(cx, &vm.flush);
            });
            vm
        },
        |_, vm| assert!(vm.mmu.pages().roots <= 1, "the invalidated root is gone"),
    );
}

pub(crate) fn start_with(cx: &Cx<'_>, vm: &Vm, level: Level, gfns: &[u64]) -> Arc<Root> {
    vm.slot.set_host(level);
    let root = vm.mmu.load_root(cx, 0).unwrap();
    for &gfn in gfns {
        assert_eq!(vm.touch(cx, &root, gfn, true), RetPf::Fixed);
    }
    root
}

#[test]
fn recovery_against_faults_and_the_hardware() {
    race(
        |cx| {
            let vm = Arc::new(Vm::new(cx, 1));
            let root = start_with(cx, &vm, Level::L4K, &[600]);
            vm.mmu.put_root(cx, root);
            vm.slot.set_host(Level::L2M);
            // The slot's host mapping turns huge while a fault is on its way with the small size. Its entry is the first that is
            // frozen, so that few steps lie between the unlink and the freeze.
            let mut small = vm.fault(BASE, true);
            small.max_level = Level::L4K;
            spawn(cx, "vcpu0", &vm, move |cx, vm| {
                let root = vm.mmu.load_root(cx, 0).unwrap();
                while vm.serve(cx, &root, &small) == RetPf::Retry {}
                vm.mmu.put_root(cx, root);
            });
            spawn(cx, "vcpu1", &vm, |cx, vm| touch_until_done(cx, vm, Gfn(700)));
            spawn(cx, "recover", &vm, |cx, vm| {
                let mut lock = vm.mmu.mmu_lock.read(cx);
                vm.mmu.recover_huge_pages(cx, &mut lock, 0, &vm.slot, &vm.flush);
            });
            spawn(cx, "hardware", &vm, |cx, vm| {
                let root = vm.mmu.load_root(cx, 0).unwrap();
                for _ in 0..3 {
                    // Stands for guest mode, which a flush would wait for.
                    let rcu = rcu_read_lock(cx);
                    let found = vm.mmu.translate(cx, &root, Gfn(600).gpa(), Access::Write).unwrap();
                    assert_eq!(found.pfn, vm.pfn(Gfn(600)));
                    drop(rcu);
                }
                vm.mmu.put_root(cx, root);
            });
            vm
        },
        |_, vm| assert_eq!(vm.phys.spte_count(vm.pfn(BASE)), 1),
    );
}

#[test]
fn no_write_is_lost() {
    race(
        |cx| {
            let vm = Arc::new(Vm::new(cx, 1));
            let root = start_with(cx, &vm, Level::L2M, &[600]);
            vm.mmu.put_root(cx, root);
            // Logging is enabled while a vCPU writes; a collector takes the bits meanwhile.
            vm.slot.logged.store(true, SeqCst);
            let mut lock = vm.mmu.mmu_lock.read(cx);
            vm.mmu.split_huge_pages(cx, sim_mmu::MmuLock::Read(&mut lock), 0, vm.slot.range, Level::L4K);
            vm.mmu.wrprot_slot(cx, &mut lock, 0, vm.slot.range, Level::L4K);
            drop(lock);
            spawn(cx, "vcpu", &vm, |cx, vm| {
                let root = vm.mmu.load_root(cx, 0).unwrap();
                for _ in 0..3 {
                    let mut fault = vm.fault(Gfn(600), true);
                    fault.present = true;
                    if vm.mmu.fast_page_fault(cx, &root, &fault, Some(&vm.slot)) == RetPf::Invalid {
                        vm.serve(cx, &root, &fault);
                    }
                }
                vm.mmu.put_root(cx, root);
            });
            spawn(cx, "collect", &vm, |cx, vm| {
                for _ in 0..2 {
                    let mut lock = vm.mmu.mmu_lock.write(cx);
                    cx.cond_resched();
                    if vm.slot.dirty.lock().remove(&600) {
                        let base = Gfn(512 + 64);
                        vm.mmu.enable_log_dirty_pt_masked(cx, &mut MmuLock::Write(&mut lock), 0, base, 1 << 24, false);
                    }
                }
            });
            vm
        },
        |cx, vm| {
            let root = vm.mmu.load_root(cx, 0).unwrap();
            let writable = vm.mmu.peek_leaf(&root, Gfn(600)).0.is_writable();
            let marked = vm.slot.dirty.lock().contains(&600);
            assert!(marked || !writable, "MMU-INV-040: the page is writable and not marked");
            vm.mmu.put_root(cx, root);
        },
    );
}

#[test]
fn lockless_walks_against_freed_tables() {
    race(
        |cx| {
            let vm = Arc::new(Vm::new(cx, 1));
            let root = start_with(cx, &vm, Level::L4K, &[600]);
            vm.mmu.put_root(cx, root);
            spawn(cx, "walker", &vm, |cx, vm| {
                let root = vm.mmu.load_root(cx, 0).unwrap();
                for _ in 0..3 {
                    let (spte, level) = vm.mmu.walk_lockless(cx, &root, Gfn(600).gpa());
                    assert!(!spte.is_present() || (spte.pfn(), level) == (vm.pfn(Gfn(600)), Level::L4K));
                }
                vm.mmu.put_root(cx, root);
            });
            // Under mmu_lock for writing few entries are touched, so tables die quickly.
            spawn(cx, "zap", &vm, |cx, vm| vm.mmu.zap_all(cx));
            vm
        },
        |_, vm| assert_eq!(vm.mmu.pages().tables, 0),
    );
}

#[test]
fn the_hardware_resurrects_nothing() {
    race(
        |cx| {
            let vm = Arc::new(Vm::new(cx, 1));
            let root = start_with(cx, &vm, Level::L4K, &[]);
            let mut speculative = vm.fault(Gfn(600), false);
            speculative.prefetch = true;
            assert_eq!(vm.serve(cx, &root, &speculative), RetPf::Fixed);
            vm.mmu.put_root(cx, root);
            spawn(cx, "hardware", &vm, |cx, vm| {
                let root = vm.mmu.load_root(cx, 0).unwrap();
                let _ = vm.mmu.translate(cx, &root, Gfn(600).gpa(), Access::Read);
                vm.mmu.put_root(cx, root);
            });
            spawn(cx, "notifier", &vm, |cx, vm| {
                let mut lock = vm.mmu.mmu_lock.write(cx);
                let range = vm.slot.range;
                let owed = vm.mmu.zap_leafs(cx, &mut lock, None, RootFilter::All, range, MayYield::No, &vm.flush);
                assert!(owed.discharge(cx, &vm.flush));
            });
            vm
        },
        |_, vm| assert_eq!(vm.mmu.pages().leafs, [0, 0, 0]),
    );
}

#[test]
fn two_splits_of_one_leaf() {
    race(
        |cx| {
            let vm = Arc::new(Vm::new(cx, 2));
            let root = start_with(cx, &vm, Level::L2M, &[600, 1200]);
            vm.mmu.put_root(cx, root);
            vm.slot.set_host(Level::L4K);
            spawn(cx, "vcpu", &vm, |cx, vm| touch_until_done(cx, vm, Gfn(601)));
            for name in ["enable0", "enable1"] {
                spawn(cx, name, &vm, |cx, vm| {
                    let mut lock = vm.mmu.mmu_lock.read(cx);
                    vm.mmu.split_huge_pages(cx, sim_mmu::MmuLock::Read(&mut lock), 0, vm.slot.range, Level::L4K);
                });
            }
            vm
        },
        |_, vm| assert_eq!(vm.mmu.pages().leafs, [1024, 0, 0]),
    );
}

#[test]
fn on_threads() {
    let vm = sim_kernel::sched::run_native(|cx| {
        let vm = Arc::new(Vm::new(cx, 2));
        for i in 0..3u64 {
            spawn(cx, "vcpu", &vm, move |cx, vm| {
                for n in 0..400 {
                    let gfn = BASE + (n * (i + 7) + i) % 1024;
                    if n % 50 == 0 {
                        vm.slot.set_host(if n % 100 == 0 { Level::L2M } else { Level::L4K });
                    }
                    touch_until_done(cx, vm, gfn);
                    let mut fault = vm.fault(gfn, true);
                    fault.present = true;
                    let root = vm.mmu.load_root(cx, 0).unwrap();
                    vm.mmu.fast_page_fault(cx, &root, &fault, Some(&vm.slot));
                    let _rcu = rcu_read_lock(cx);
                    let _ = vm.mmu.translate(cx, &root, fault.gpa, Access::Write);
                    vm.mmu.put_root(cx, root);
                }
            });
        }
        spawn(cx, "notifier", &vm, |cx, vm| {
            for n in 0..200 {
                let mut lock = vm.mmu.mmu_lock.write(cx);
                let range = GfnRange::with_len(BASE + n * 5, 9);
                let owed = vm.mmu.zap_leafs(cx, &mut lock, None, RootFilter::All, range, MayYield::Yes, &vm.flush);
                owed.discharge(cx, &vm.flush);
            }
        });
        spawn(cx, "slots", &vm, |cx, vm| {
            for n in 0..60 {
                if n % 10 == 0 {
                    vm.mmu.invalidate_all_roots(cx, &mut vm.mmu.mmu_lock.write(cx));
                    vm.mmu.zap_invalidated_roots(cx);
                }
                let mut lock = vm.mmu.mmu_lock.read(cx);
                vm.mmu.split_huge_pages(cx, sim_mmu::MmuLock::Read(&mut lock), 0, vm.slot.range, Level::L4K);
                vm.mmu.wrprot_slot(cx, &mut lock, 0, vm.slot.range, Level::L4K);
                vm.mmu.recover_huge_pages(cx, &mut lock, 0, &vm.slot, &vm.flush);
            }
        });
        vm
    });
    vm.mmu.assert_consistent();
    sim_kernel::sched::run_native(|cx| vm.mmu.uninit(cx));
}
