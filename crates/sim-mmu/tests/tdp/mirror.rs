//! MM-130 to MM-138 as far as they are KVM's: mirrors of external tables, against hooks that keep a shadow copy and hold every call against it.

use crate::races::{Race, explore, spawn};
use crate::vm::{BASE, Flushes, Slot, Vm, config};
use sim_kernel::explore::StrategyKind;
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Sim;
use sim_kernel::sync::{Atomic64, Until};
use sim_kernel::{Cx, Errno, MutantSet, Pfn};
use sim_mmu::mutants::{MIRROR_NO_FREEZE, MIRROR_STUCK_FROZEN};
use sim_mmu::{
    Age, ExternalChange, ExternalTable, ExternalTables, Gfn, GfnRange, Level, MayYield, RetPf, Root, RootFilter, Spte,
    Stage2Kind, TdpConfig, TdpFault, TdpMmu, WalkMemory,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};

/// A TD's shared bit is bit 47 of a gpa.
const SHARED: u64 = 1 << (47 - 12);
const PAGE: Gfn = Gfn(BASE.0 + 88);

/// An entry of the external tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum External {
    Table(Pfn),
    Leaf(Pfn),
}

/// The external tables: what they hold, and whether somebody is in them.
#[derive(Debug)]
struct Sept {
    entries: parking_lot::Mutex<BTreeMap<(Level, u64), External>>,
    /// 0, or somebody is changing the tables: whoever comes then is told that they are busy. The module's own lock.
    busy: Atomic64,
    /// `wait_for_sept_zap`: guests must stay away from the tables.
    zapping: Atomic64,
    /// Refuses this many more calls, whoever is there.
    refusals: AtomicU64,
    /// Whether the key is still assigned: no table can be taken back.
    keyed: AtomicU64,
    calls: parking_lot::Mutex<Vec<(&'static str, u8, u64)>>,
    vm: OnceLock<Weak<Vm>>,
    broken: AtomicU64,
    /// Whether leaves may be of 2 MiB.
    large: AtomicU64,
    /// Splits for which there is memory.
    splits: AtomicU64,
}

impl Sept {
    fn new(cx: &Cx<'_>) -> Arc<Sept> {
        Arc::new(Sept {
            entries: Default::default(),
            busy: Atomic64::new(cx, "sept_lock", 0),
            zapping: Atomic64::new(cx, "wait_for_sept_zap", 0),
            refusals: AtomicU64::new(0),
            keyed: AtomicU64::new(1),
            calls: Default::default(),
            vm: OnceLock::new(),
            broken: AtomicU64::new(0),
            large: AtomicU64::new(0),
            splits: AtomicU64::new(u64::MAX),
        })
    }

    fn vm(&self) -> Arc<Vm> {
        self.vm.get().and_then(Weak::upgrade).expect("the VM is alive")
    }

    /// The mirror's entry, if its table is there.
    fn mirrored(&self, gfn: Gfn, level: Level) -> Option<Spte> {
        let vm = self.vm();
        let root = vm.mirror.get().expect("a mirror is loaded");
        vm.mmu.peek_entry(root, gfn, level)
    }

    /// One call into the module.
    fn enter(&self, cx: &Cx<'_>) -> Result<(), Errno> {
        let refused = self.refusals.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
        if refused || self.busy.cmpxchg(cx, 0, 1).is_err() {
            return Err(Errno::EBUSY);
        }
        Ok(())
    }

    fn leave(&self, cx: &Cx<'_>) {
        self.busy.store(cx, 0);
    }

    /// The entry above is a table there: MMU-INV-061.
    fn assert_parent(&self, gfn: Gfn, level: Level) {
        let Some(parent) = level.up().filter(|parent| *parent < Level::L512G) else { return };
        let above = self.entries.lock().get(&(parent, gfn.round_down(parent).0)).copied();
        let is_table = matches!(above, Some(External::Table(_)));
        assert!(is_table, "MMU-INV-061: {gfn:?} at {level:?} is added below {above:?}");
    }

    /// A guest that accepts a page is in the tables for a moment.
    fn guest(&self, cx: &Cx<'_>) {
        if self.zapping.load(cx) == 0 && self.busy.cmpxchg(cx, 0, 1).is_ok() {
            cx.cond_resched();
            self.busy.store(cx, 0);
        }
    }

    /// Mirror and external tables agree while nothing is under way: MMU-INV-060.
    fn assert_agrees(&self) {
        let vm = self.vm();
        let mut mirror = BTreeMap::new();
        let root = vm.mirror.get().expect("a mirror is loaded");
        vm.mmu.for_each_entry(root, |gfn, level, spte| {
            assert!(!spte.is_frozen(), "MMU-INV-063: {gfn:?} is frozen and no hook runs");
            if spte.is_leaf(level) {
                mirror.insert((level, gfn.0), spte.pfn());
            }
        });
        let entries = self.entries.lock();
        let leafs = entries.iter().filter_map(|(at, entry)| match entry {
            External::Leaf(pfn) => Some((*at, *pfn)),
            External::Table(_) => None,
        });
        assert_eq!(mirror, leafs.collect(), "MMU-INV-060: mirror and external tables");
        let tables = entries.values().filter(|entry| matches!(entry, External::Table(_))).count() as u64;
        assert_eq!(tables, vm.mmu.external_pages(), "MMU-INV-062: pages of the external tables");
    }
}

impl ExternalTables for Sept {
    fn set_external_spte(&self, cx: &Cx<'_>, change: &ExternalChange) -> Result<(), Errno> {
        let ExternalChange { gfn, level, old, new, external_spt } = *change;
        let at = (level, gfn.0);
        if old.is_present() && new.is_table(level) {
            // The mirror has its table already, and the same pages are in it.
            assert_eq!((self.mirrored(gfn, level), level), (Some(new), Level::L2M), "MMU-INV-060: a split of {gfn:?}");
            let mut entries = self.entries.lock();
            let was = entries.insert(at, External::Table(external_spt.expect("MMU-INV-062: a table has a page")));
            assert_eq!(was, Some(External::Leaf(old.pfn())), "MMU-INV-060: what was split at {gfn:?}");
            for i in 0..512 {
                let was = entries.insert((Level::L4K, gfn.0 + i), External::Leaf(old.pfn() + i));
                assert_eq!(was, None, "MMU-INV-060: a page below a leaf of 2 MiB");
            }
            self.calls.lock().push(("split", level.number(), gfn.0));
            return Ok(());
        }
        if old.is_present() {
            // The mirror was cleared first.
            let mirrored = self.mirrored(gfn, level);
            let gone = mirrored.is_none_or(|spte| !spte.is_present());
            assert!(gone && !new.is_present(), "MMU-INV-060: {gfn:?} is removed while the mirror says {mirrored:?}");
            if self.enter(cx).is_err() {
                // Guests stay away, and the second try must succeed.
                self.zapping.store(cx, 1);
                self.busy.at(cx).wait_until(Until::Equal(0));
                let second = self.busy.cmpxchg(cx, 0, 1);
                assert!(second.is_ok(), "MM-134: the second try of a removal is busy");
                self.zapping.store(cx, 0);
            }
            let was = self.entries.lock().remove(&at);
            assert_eq!(was, Some(External::Leaf(old.pfn())), "MMU-INV-060: what was removed at {gfn:?}");
            self.calls.lock().push(("remove", level.number(), gfn.0));
            self.leave(cx);
            return Ok(());
        }
        let mirrored = self.mirrored(gfn, level);
        assert_eq!(mirrored, Some(Spte::FROZEN), "MMU-INV-060: {gfn:?} is added while the mirror says {mirrored:?}");
        self.enter(cx)?;
        cx.cond_resched();
        self.assert_parent(gfn, level);
        let (name, entry) = match external_spt {
            Some(page) => ("table", External::Table(page)),
            None => {
                assert!(level <= self.max_level(), "MMU-INV-060: a huge leaf in the external tables");
                assert!(new.is_writable(), "a TD's pages may be written");
                ("leaf", External::Leaf(new.pfn()))
            }
        };
        let was = self.entries.lock().insert(at, entry);
        assert_eq!(was, None, "MMU-INV-060: {gfn:?} is added twice");
        self.calls.lock().push((name, level.number(), gfn.0));
        self.leave(cx);
        Ok(())
    }

    fn prepare_split(&self, _cx: &Cx<'_>) -> Result<(), Errno> {
        let left = self.splits.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        left.map(drop).map_err(|_| Errno::ENOMEM)
    }

    fn max_level(&self) -> Level {
        if self.large.load(SeqCst) != 0 { Level::L2M } else { Level::L4K }
    }

    fn free_external_spt(&self, _cx: &Cx<'_>, table: &ExternalTable) -> Result<(), Errno> {
        let parent = table.level.up().expect("a table has an entry above it");
        assert_eq!(self.keyed.load(SeqCst), 0, "MMU-INV-062: a table is taken back while the key is assigned");
        let mut entries = self.entries.lock();
        let end = table.gfn.0 + parent.span();
        let below = entries.range((table.level, table.gfn.0)..(table.level, end)).next();
        assert_eq!(below, None, "MMU-INV-061: a table is freed with something below it");
        let was = entries.remove(&(parent, table.gfn.0));
        assert_eq!(was, Some(External::Table(table.external_spt)), "MMU-INV-062: the page of a table");
        self.calls.lock().push(("free", table.level.number(), table.gfn.0));
        if self.broken.load(SeqCst) != 0 { Err(Errno::EIO) } else { Ok(()) }
    }
}

fn sept_of(vm: &Vm) -> Arc<Sept> {
    Arc::clone(vm.external.get().unwrap()).downcast().unwrap()
}

fn td(cx: &Cx<'_>) -> (Arc<Vm>, Arc<Sept>) {
    td_with(cx, TdpConfig { gfn_direct_bits: SHARED, ..config(Stage2Kind::Ept) })
}

fn td_with(cx: &Cx<'_>, config: TdpConfig) -> (Arc<Vm>, Arc<Sept>) {
    let sept = Sept::new(cx);
    let phys = Arc::new(PhysMem::new(cx, 64 << 20));
    let external: Arc<dyn ExternalTables> = Arc::clone(&sept) as _;
    let mmu = TdpMmu::with_external(cx, Arc::clone(&phys), config, external);
    let blocks = vec![phys.alloc_huge_zeroed().unwrap()];
    let slot = Slot::new(GfnRange::with_len(BASE, 512));
    let vm = Arc::new(Vm {
        phys,
        mmu,
        slot,
        flush: Flushes::default(),
        blocks,
        mirror: OnceLock::new(),
        external: OnceLock::new(),
    });
    sept.vm.set(Arc::downgrade(&vm)).unwrap();
    assert!(vm.external.set(Arc::clone(&sept) as _).is_ok());
    vm.mirror.set(vm.mmu.load_mirror_root(cx, 0).unwrap()).unwrap();
    (vm, sept)
}

fn private(vm: &Vm, gfn: Gfn) -> TdpFault {
    TdpFault { is_private: true, max_level: Level::L4K, ..vm.fault(gfn, true) }
}

fn mirror(vm: &Vm) -> &Root {
    vm.mirror.get().unwrap()
}

/// Serves a private fault as the handler of a TD does: it goes on until something else than RETRY comes of it.
fn serve_private(cx: &Cx<'_>, vm: &Vm, gfn: Gfn) -> RetPf {
    for _ in 0..40 {
        match vm.serve(cx, mirror(vm), &private(vm, gfn)) {
            RetPf::Retry => {
                vm.mmu.wait_while_frozen(cx, mirror(vm), gfn);
                sept_of(vm).busy.at(cx).wait_until(Until::Equal(0));
            }
            done => return done,
        }
    }
    panic!("MMU-INV-056: a private fault at {gfn:?} is tried again and again");
}

fn zap(cx: &Cx<'_>, vm: &Vm, filter: RootFilter, range: GfnRange) {
    let mut lock = vm.mmu.mmu_lock.write(cx);
    let owed = vm.mmu.zap_leafs(cx, &mut lock, Some(0), filter, range, MayYield::Yes, &vm.flush);
    owed.discharge(cx, &vm.flush);
}

/// The VM dies: what it maps is zapped, the vCPU puts its mirror, the key is released, the tables are freed.
fn tear_down(cx: &Cx<'_>, vm: &Vm, sept: &Sept) {
    zap(cx, vm, RootFilter::Private, vm.slot.range);
    sept.assert_agrees();
    vm.mmu.put_root(cx, Arc::clone(vm.mirror.get().unwrap()));
    vm.mmu.zap_all(cx);
    sept.keyed.store(0, SeqCst);
    vm.mmu.uninit(cx);
    assert!(sept.entries.lock().is_empty(), "MMU-INV-062: external tables are left");
}

#[test]
fn mm_130_tables_are_added_from_the_top_then_the_leaf() {
    Sim::sequential().solo(|cx| {
        let (vm, sept) = td(cx);
        assert_eq!(serve_private(cx, &vm, PAGE), RetPf::Fixed);
        assert_eq!(serve_private(cx, &vm, PAGE), RetPf::Spurious);
        assert_eq!(serve_private(cx, &vm, PAGE + 1), RetPf::Fixed);
        let calls = std::mem::take(&mut *sept.calls.lock());
        let expected = [("table", 4, 0), ("table", 3, 0), ("table", 2, 512), ("leaf", 1, 600), ("leaf", 1, 601)];
        assert_eq!(calls, expected);
        sept.assert_agrees();
        vm.mmu.assert_consistent();
        assert_eq!(vm.flush.take(), 0);
        tear_down(cx, &vm, &sept);
        let freed: Vec<_> = sept.calls.lock().iter().map(|call| (call.0, call.1)).collect();
        assert_eq!(freed, [("remove", 1), ("remove", 1), ("free", 1), ("free", 2), ("free", 3)]);
    });
}

#[test]
fn mm_131_a_busy_table_restores_the_entry_and_frees_the_child() {
    Sim::sequential().solo(|cx| {
        let (vm, sept) = td(cx);
        let before = vm.phys.used_frames();
        sept.refusals.store(1, SeqCst);
        assert_eq!(vm.serve(cx, mirror(&vm), &private(&vm, PAGE)), RetPf::Retry);
        assert_eq!(vm.phys.used_frames(), before, "child and external page are freed");
        assert_eq!(vm.mmu.external_pages(), 0);
        vm.mmu.assert_consistent();
        // The leaf itself is refused: the tables stay.
        assert_eq!(serve_private(cx, &vm, PAGE + 1), RetPf::Fixed);
        sept.refusals.store(2, SeqCst);
        assert_eq!(vm.serve(cx, mirror(&vm), &private(&vm, PAGE)), RetPf::Retry);
        assert_eq!(vm.mmu.peek_leaf(mirror(&vm), PAGE).0, Spte::NONPRESENT);
        assert_eq!(vm.phys.spte_count(vm.pfn(PAGE)), 0);
        assert_eq!(serve_private(cx, &vm, PAGE), RetPf::Fixed, "after one more refusal");
        sept.assert_agrees();
        tear_down(cx, &vm, &sept);
    });
}

#[test]
fn mm_134_a_removal_that_is_busy_succeeds_the_second_time() {
    Sim::sequential().solo(|cx| {
        let (vm, sept) = td(cx);
        assert_eq!(serve_private(cx, &vm, PAGE), RetPf::Fixed);
        sept.refusals.store(1, SeqCst);
        zap(cx, &vm, RootFilter::Private, vm.slot.range);
        assert_eq!(vm.phys.spte_count(vm.pfn(PAGE)), 0);
        sept.assert_agrees();
        tear_down(cx, &vm, &sept);
    });
}

#[test]
fn mm_135_tables_stay_until_the_vm_dies_and_what_cannot_be_had_is_leaked() {
    Sim::sequential().solo(|cx| {
        let (vm, sept) = td(cx);
        assert_eq!(serve_private(cx, &vm, PAGE), RetPf::Fixed);
        zap(cx, &vm, RootFilter::All, vm.slot.range);
        assert_eq!((vm.mmu.pages().leafs[0], vm.mmu.external_pages()), (0, 3));
        sept.broken.store(1, SeqCst);
        tear_down(cx, &vm, &sept);
        assert_eq!(vm.mmu.external_pages(), 3, "the hook refused to give them back");
    });
}

#[test]
fn mm_136_populating_what_is_mapped_fails() {
    Sim::sequential().solo(|cx| {
        let (vm, sept) = td(cx);
        let map = |gfn| vm.mmu.map_private_pfn(cx, mirror(&vm), gfn, vm.pfn(gfn), &vm.slot, &vm.flush);
        sept.refusals.store(3, SeqCst);
        assert_eq!(map(PAGE), Ok(()), "it goes on while the tables are busy");
        assert_eq!(map(PAGE), Err(Errno::EIO));
        assert_eq!(map(PAGE + 1), Ok(()));
        sept.assert_agrees();
        tear_down(cx, &vm, &sept);
    });
}

#[test]
fn mm_137_deleting_slots_leaves_the_mirror_root_alone() {
    Sim::sequential().solo(|cx| {
        let (vm, sept) = td(cx);
        let direct = vm.mmu.load_root(cx, 0).unwrap();
        assert_eq!(vm.serve(cx, &direct, &vm.fault(PAGE, true)), RetPf::Fixed);
        assert_eq!(serve_private(cx, &vm, PAGE + 1), RetPf::Fixed);
        vm.mmu.invalidate_all_roots(cx, &mut vm.mmu.mmu_lock.write(cx));
        assert!(direct.is_invalid() && !mirror(&vm).is_invalid());
        vm.mmu.put_root(cx, direct);
        vm.mmu.zap_invalidated_roots(cx);
        assert_eq!((vm.mmu.pages().roots, vm.mmu.pages().leafs[0]), (1, 1));
        let again = vm.mmu.load_mirror_root(cx, 0).unwrap();
        assert_eq!(again.table(), mirror(&vm).table(), "and vCPUs share it");
        vm.mmu.put_root(cx, again);
        tear_down(cx, &vm, &sept);
    });
}

#[test]
fn mm_138_shared_memory_lies_in_the_upper_half_of_the_direct_root() {
    for (levels, bit, first) in [(4, 47, 256), (5, 51, 8)] {
        Sim::sequential().solo(|cx| {
            let shared = 1 << (bit - 12);
            let max_gfn = Gfn(shared);
            let ept = TdpConfig { levels, max_gfn, gfn_direct_bits: shared, ..config(Stage2Kind::Ept) };
            let (vm, sept) = td_with(cx, ept);
            let direct = vm.mmu.load_root(cx, 0).unwrap();
            assert_eq!(vm.serve(cx, &direct, &vm.fault(PAGE, true)), RetPf::Fixed);
            let entry = |index| Spte(vm.mmu.stage2_entry(cx, direct.table(), direct.level(), index));
            assert!(entry(first).is_present() && !entry(0).is_present());
            // The processor finds it with the bit in the address, and nothing without.
            let read = sim_mmu::Access::Read;
            let gpa = sim_mmu::Gpa(PAGE.gpa().0 | 1 << bit);
            assert_eq!(vm.mmu.translate(cx, &direct, gpa, read).unwrap().pfn, vm.pfn(PAGE));
            assert!(vm.mmu.translate(cx, &direct, PAGE.gpa(), read).is_err());
            // Checkers and zaps see the gfn without it.
            assert_eq!(vm.mmu.first_leaf_in(0, vm.slot.range), Some(PAGE));
            let mut leafs = Vec::new();
            vm.mmu.for_each_leaf(|leaf| leafs.push((leaf.gfn, leaf.is_mirror)));
            assert_eq!(leafs, [(PAGE, false)]);
            vm.mmu.assert_consistent();
            zap(cx, &vm, RootFilter::Shared, GfnRange::with_len(PAGE, 1));
            assert_eq!(vm.mmu.pages().leafs[0], 0);
            vm.mmu.put_root(cx, direct);
            tear_down(cx, &vm, &sept);
        });
    }
}

#[test]
fn mm_112_a_zap_goes_through_the_tree_of_its_kind() {
    Sim::sequential().solo(|cx| {
        let (vm, sept) = td(cx);
        let direct = vm.mmu.load_root(cx, 0).unwrap();
        for (filter, private_left, shared_left) in [
            (RootFilter::Shared, 1, 0),
            (RootFilter::Private, 0, 1),
            (RootFilter::All, 0, 0),
            (RootFilter::ValidOnly, 0, 0),
        ] {
            vm.serve(cx, &direct, &vm.fault(PAGE, true));
            serve_private(cx, &vm, PAGE + 1);
            zap(cx, &vm, filter, vm.slot.range);
            let count = |gfn| vm.phys.spte_count(vm.pfn(gfn));
            assert_eq!((count(PAGE + 1), count(PAGE)), (private_left, shared_left), "{filter:?}");
            sept.assert_agrees();
        }
        vm.mmu.put_root(cx, direct);
        tear_down(cx, &vm, &sept);
    });
}

#[test]
fn mirrors_are_not_logged_split_recovered_or_aged() {
    Sim::sequential().solo(|cx| {
        let (vm, sept) = td(cx);
        assert_eq!(serve_private(cx, &vm, PAGE), RetPf::Fixed);
        let before = vm.mmu.peek_leaf(mirror(&vm), PAGE);
        assert!(!vm.mmu.age_gfn_range(cx, 0, vm.slot.range, Age::Clear));
        {
            let mut lock = vm.mmu.mmu_lock.read(cx);
            assert!(!vm.mmu.wrprot_slot(cx, &mut lock, 0, vm.slot.range, Level::L4K));
            vm.slot.set_host(Level::L2M);
            vm.mmu.recover_huge_pages(cx, &mut lock, 0, &vm.slot, &vm.flush);
        }
        let mut fault = private(&vm, PAGE);
        fault.present = true;
        assert_eq!(vm.mmu.fast_page_fault(cx, mirror(&vm), &fault, Some(&vm.slot)), RetPf::Invalid);
        assert_eq!(vm.mmu.peek_leaf(mirror(&vm), PAGE), before);
        tear_down(cx, &vm, &sept);
    });
}

/// Two private faults that share tables, a guest in the tables, and a zap, all at once.
fn race(mutants: MutantSet, with_zap: bool) -> Race<impl Fn(&Cx<'_>) -> Arc<Vm>, impl Fn(&Cx<'_>, &Vm)> {
    let setup = move |cx: &Cx<'_>| {
        let (vm, sept) = td(cx);
        for (name, gfn) in [("vcpu0", PAGE), ("vcpu1", PAGE + u64::from(with_zap))] {
            spawn(cx, name, &vm, move |cx, vm| {
                serve_private(cx, vm, gfn);
            });
        }
        if with_zap {
            let sept = Arc::clone(&sept);
            spawn(cx, "guest", &vm, move |cx, _| sept.guest(cx));
            spawn(cx, "convert", &vm, |cx, vm| {
                let range = GfnRange::with_len(PAGE, 1);
                let open = {
                    let mut lock = vm.mmu.mmu_lock.write(cx);
                    let open = vm.mmu.invalidate.begin(cx, &mut lock);
                    vm.mmu.invalidate.add_range(cx, &mut lock, range);
                    let filter = RootFilter::Private;
                    let owed = vm.mmu.zap_leafs(cx, &mut lock, Some(0), filter, range, MayYield::Yes, &vm.flush);
                    owed.discharge(cx, &vm.flush);
                    open
                };
                vm.mmu.invalidate.end(cx, &mut vm.mmu.mmu_lock.write(cx), open);
            });
        }
        vm
    };
    let check = |cx: &Cx<'_>, vm: &Vm| {
        let sept = sept_of(vm);
        sept.assert_agrees();
        zap(cx, vm, RootFilter::Private, vm.slot.range);
        vm.mmu.put_root(cx, Arc::clone(vm.mirror.get().unwrap()));
        sept.keyed.store(0, SeqCst);
    };
    Race { mutants, setup, check }
}

#[test]
fn faults_guests_and_zaps_of_one_mirror() {
    let race = race(MutantSet::EMPTY, true);
    explore(&race, StrategyKind::Random, 400);
    explore(&race, StrategyKind::Pct { depth: 3 }, 400);
    explore(&race, StrategyKind::Dpor, 400);
}

#[test]
fn two_faults_of_one_mirror_in_every_order() {
    explore(&race(MutantSet::EMPTY, false), StrategyKind::Dpor, 3000);
}

/// What a mutant is found by: the message of the failure. An entry that stays frozen is waited for for ever.
fn found(mutants: MutantSet, kind: StrategyKind) -> String {
    for with_zap in [false, true] {
        let race = race(mutants, with_zap);
        let run = std::panic::AssertUnwindSafe(|| explore(&race, kind, 4000));
        if let Err(payload) = std::panic::catch_unwind(run) {
            return payload.downcast_ref::<String>().cloned().unwrap_or_default();
        }
    }
    panic!("nothing was found under {kind}");
}

fn split(cx: &Cx<'_>, vm: &Vm, range: GfnRange) -> Result<(), Errno> {
    let mut lock = vm.mmu.mmu_lock.write(cx);
    vm.mmu.split_cross_boundary_leafs(cx, &mut lock, range)
}

#[test]
fn a_large_leaf_of_a_mirror_is_split_where_a_range_ends_in_it_and_never_merged() {
    Sim::sequential().solo(|cx| {
        let (vm, sept) = td(cx);
        sept.large.store(1, SeqCst);
        vm.slot.set_host(Level::L2M);
        let huge = |gfn| TdpFault { max_level: Level::L2M, ..private(&vm, gfn) };
        assert_eq!(vm.serve(cx, mirror(&vm), &huge(PAGE)), RetPf::Fixed);
        assert_eq!(vm.serve(cx, mirror(&vm), &huge(PAGE + 1)), RetPf::Spurious);
        // A fault that wants a part only is served by what is there.
        assert_eq!(serve_private(cx, &vm, PAGE), RetPf::Spurious);
        vm.mmu.assert_consistent();
        sept.assert_agrees();
        sept.calls.lock().clear();
        // What lies in the range as a whole stays whole.
        split(cx, &vm, vm.slot.range).unwrap();
        split(cx, &vm, GfnRange::with_len(vm.slot.range.end, 1)).unwrap();
        assert!(sept.calls.lock().is_empty());
        // Without memory nothing happens.
        sept.splits.store(0, SeqCst);
        let part = GfnRange::with_len(PAGE, 1);
        assert_eq!(split(cx, &vm, part), Err(Errno::ENOMEM));
        assert!(sept.calls.lock().is_empty());
        sept.assert_agrees();
        sept.splits.store(u64::MAX, SeqCst);
        split(cx, &vm, part).unwrap();
        vm.mmu.assert_consistent();
        sept.assert_agrees();
        zap(cx, &vm, RootFilter::Private, part);
        assert_eq!(*sept.calls.lock(), [("split", 2, BASE.0), ("remove", 1, PAGE.0)]);
        assert_eq!(vm.mmu.pages().leafs, [511, 0, 0]);
        // Faults that may map 2 MiB map the page.
        assert_eq!(vm.serve(cx, mirror(&vm), &huge(PAGE + 1)), RetPf::Spurious);
        assert_eq!(vm.serve(cx, mirror(&vm), &huge(PAGE)), RetPf::Fixed);
        assert_eq!(vm.mmu.pages().leafs, [512, 0, 0]);
        sept.assert_agrees();
        tear_down(cx, &vm, &sept);
    });
}

#[test]
#[should_panic(expected = "MMU-INV-060")]
fn a_large_leaf_of_a_mirror_does_not_go_for_a_part_of_it() {
    Sim::sequential().solo(|cx| {
        let (vm, sept) = td(cx);
        sept.large.store(1, SeqCst);
        vm.slot.set_host(Level::L2M);
        vm.serve(cx, mirror(&vm), &TdpFault { max_level: Level::L2M, ..private(&vm, PAGE) });
        zap(cx, &vm, RootFilter::Private, GfnRange::with_len(PAGE, 1));
    });
}

#[test]
fn mutants_of_the_mirror_are_found() {
    for (mutant, text) in [(MIRROR_NO_FREEZE, "MMU-INV-060"), (MIRROR_STUCK_FROZEN, "Deadlock")] {
        for kind in [StrategyKind::Random, StrategyKind::Dpor] {
            let message = found(MutantSet::EMPTY.with(mutant), kind);
            assert!(message.contains(text), "{} by {kind}: {message}", mutant.id());
        }
    }
}
