//! Random operations against a flat map from frame to (frame of the host, writable).

use crate::vm::{BASE, Vm, config};
use proptest::prelude::*;
use sim_kernel::sched::Sim;
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Access, Gfn, GfnRange, Level, MayYield, MmuLock, RetPf, Root, RootFilter, Stage2Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

const BLOCKS: u64 = 3;
const PAGES: u64 = BLOCKS * 512;

#[derive(Clone, Debug)]
enum Op {
    /// A fault at a page of the slot, the host's mapping being small or huge, writable or not.
    Map {
        page: u64,
        write: bool,
        huge: bool,
        host_writable: bool,
    },
    /// A write-protection fault.
    Fast {
        page: u64,
    },
    Zap {
        page: u64,
        len: u64,
    },
    /// Dirty logging is enabled or disabled.
    Log {
        on: bool,
        host_huge: bool,
    },
    /// A word of the dirty bitmap is collected.
    Collect {
        word: u64,
        mask: u64,
    },
    /// All roots are invalidated, and the vCPU takes a new one.
    NewRoot,
    ZapAll,
}

fn op() -> impl Strategy<Value = Op> {
    // Near the ends of blocks, where things go wrong.
    let page = || prop_oneof![0..PAGES, (1..BLOCKS, 0..4u64).prop_map(|(block, i)| block * 512 - 2 + i)];
    prop_oneof![
        6 => (page(), any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(page, write, huge, host_writable)| Op::Map { page, write, huge, host_writable }),
        2 => page().prop_map(|page| Op::Fast { page }),
        2 => (page(), prop_oneof![1..4u64, 1..PAGES]).prop_map(|(page, len)| Op::Zap { page, len }),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(on, host_huge)| Op::Log { on, host_huge }),
        2 => (0..PAGES / 64, any::<u64>()).prop_map(|(word, mask)| Op::Collect { word, mask }),
        1 => Just(Op::NewRoot),
        1 => Just(Op::ZapAll),
    ]
}

/// What ought to be mapped.
#[derive(Default)]
struct Model {
    pages: BTreeMap<u64, (Pfn, bool)>,
    huge: BTreeSet<u64>,
    dirty: BTreeSet<u64>,
    logged: bool,
}

impl Model {
    fn map(&mut self, vm: &Vm, page: u64, write: bool, huge: bool, host_writable: bool) -> RetPf {
        let block = page / 512;
        if huge && !self.logged {
            let permitted = self.huge.contains(&block) && (!write || self.pages[&page].1);
            if permitted {
                return RetPf::Spurious;
            }
            // A leaf that was writable keeps H: see the caller.
            self.huge.insert(block);
            for page in block * 512..(block + 1) * 512 {
                self.pages.insert(page, (vm.pfn(BASE + page), host_writable));
            }
            return RetPf::Fixed;
        }
        self.huge.remove(&block);
        if self.pages.get(&page).is_some_and(|&(_, writable)| !write || writable) {
            return RetPf::Spurious;
        }
        self.pages.insert(page, (vm.pfn(BASE + page), host_writable));
        if host_writable && self.logged {
            self.dirty.insert(page);
        }
        RetPf::Fixed
    }

    fn zap(&mut self, page: u64, len: u64) -> bool {
        let before = self.pages.len();
        let mut doomed: BTreeSet<u64> = (page..page + len).collect();
        for block in page / 512..=(page + len - 1) / 512 {
            if self.huge.remove(&block) {
                doomed.extend(block * 512..(block + 1) * 512);
            }
        }
        self.pages.retain(|page, _| !doomed.contains(page));
        self.pages.len() != before
    }

    fn recover(&mut self, vm: &Vm) {
        for block in 0..BLOCKS {
            let first = self.pages.range(block * 512..(block + 1) * 512).next().map(|(_, &(_, writable))| writable);
            let Some(writable) = first else { continue };
            if self.huge.insert(block) {
                for page in block * 512..(block + 1) * 512 {
                    self.pages.insert(page, (vm.pfn(BASE + page), writable));
                }
            }
        }
    }
}

fn apply(cx: &Cx<'_>, vm: &Vm, root: &mut Arc<Root>, model: &mut Model, op: &Op) {
    let mmu = &vm.mmu;
    let host = |huge| vm.slot.set_host(if huge { Level::L2M } else { Level::L4K });
    match *op {
        Op::Map { page, write, huge, host_writable } => {
            // A write fault always comes with a writable host page.
            let host_writable = host_writable || write;
            host(huge);
            let mut fault = vm.fault(BASE + page, write);
            fault.map_writable = host_writable;
            assert_eq!(vm.serve(cx, root, &fault), model.map(vm, page, write, huge, host_writable));
        }
        Op::Fast { page } => {
            let mut fault = vm.fault(BASE + page, true);
            fault.present = true;
            let mmu_writable = mmu.peek_leaf(root, BASE + page).0.has(mmu.masks().mmu_writable);
            let expected = match model.pages.get_mut(&page) {
                Some((_, true)) => RetPf::Spurious,
                Some((_, writable)) if mmu_writable && !model.huge.contains(&(page / 512)) => {
                    *writable = true;
                    if model.logged {
                        model.dirty.insert(page);
                    }
                    RetPf::Fixed
                }
                Some(_) if mmu_writable && !model.logged => {
                    let block = page / 512;
                    model.pages.range_mut(block * 512..(block + 1) * 512).for_each(|(_, page)| page.1 = true);
                    RetPf::Fixed
                }
                _ => RetPf::Invalid,
            };
            assert_eq!(mmu.fast_page_fault(cx, root, &fault, Some(&vm.slot)), expected);
        }
        Op::Zap { page, len } => {
            let len = len.min(PAGES - page);
            let range = GfnRange::with_len(BASE + page, len);
            let mut lock = mmu.mmu_lock.write(cx);
            let owed = mmu.zap_leafs(cx, &mut lock, None, RootFilter::All, range, MayYield::Yes, &vm.flush);
            assert_eq!(owed.discharge(cx, &vm.flush), model.zap(page, len));
        }
        Op::Log { on: true, .. } => {
            vm.slot.logged.store(true, SeqCst);
            model.logged = true;
            let mut lock = mmu.mmu_lock.read(cx);
            mmu.split_huge_pages(cx, MmuLock::Read(&mut lock), 0, vm.slot.range, Level::L4K);
            mmu.wrprot_slot(cx, &mut lock, 0, vm.slot.range, Level::L4K);
            model.huge.clear();
            model.pages.values_mut().for_each(|page| page.1 = false);
        }
        Op::Log { on: false, host_huge } => {
            vm.slot.logged.store(false, SeqCst);
            model.logged = false;
            host(host_huge);
            mmu.recover_huge_pages(cx, &mut mmu.mmu_lock.read(cx), 0, &vm.slot, &vm.flush);
            if host_huge {
                model.recover(vm);
            }
        }
        Op::Collect { word, mask } => {
            let mut lock = mmu.mmu_lock.write(cx);
            mmu.enable_log_dirty_pt_masked(cx, &mut MmuLock::Write(&mut lock), 0, BASE + word * 64, mask, false);
            for page in (0..64).filter(|i| mask >> i & 1 != 0).map(|i| word * 64 + i) {
                if !model.huge.contains(&(page / 512))
                    && let Some(entry) = model.pages.get_mut(&page)
                {
                    entry.1 = false;
                }
            }
        }
        Op::NewRoot => {
            mmu.invalidate_all_roots(cx, &mut mmu.mmu_lock.write(cx));
            let new = mmu.load_root(cx, 0).unwrap();
            mmu.put_root(cx, std::mem::replace(root, new));
            mmu.zap_invalidated_roots(cx);
            model.pages.clear();
            model.huge.clear();
        }
        Op::ZapAll => {
            mmu.zap_all(cx);
            model.pages.clear();
            model.huge.clear();
        }
    }
}

fn compare(vm: &Vm, root: &Root, model: &Model) {
    vm.mmu.assert_consistent();
    let stats = vm.mmu.pages();
    let huge = model.huge.len() as u64;
    assert_eq!(stats.leafs, [model.pages.len() as u64 - huge * 512, huge, 0]);
    assert_eq!(vm.mmu.table_frames(), stats.tables + 1);
    assert_eq!(*vm.slot.dirty.lock(), model.dirty.iter().map(|page| (BASE + *page).0).collect());
    for page in 0..PAGES {
        let (spte, level) = vm.mmu.peek_leaf(root, BASE + page);
        let found = spte.is_present().then(|| (spte.pfn() + page % level.span(), spte.is_writable()));
        assert_eq!(found, model.pages.get(&page).copied(), "page {page}");
        assert_eq!(vm.phys.spte_count(vm.pfn(BASE + page)), u32::from(found.is_some()), "page {page}");
    }
}

fn run(kind: Stage2Kind, ops: &[Op]) {
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, BLOCKS as usize, config(kind));
        let mut root = vm.mmu.load_root(cx, 0).unwrap();
        let mut model = Model::default();
        for op in ops {
            apply(cx, &vm, &mut root, &mut model, op);
            compare(&vm, &root, &model);
        }
        for page in (0..PAGES).step_by(7) {
            for access in [Access::Read, Access::Write, Access::Exec] {
                let result = vm.mmu.translate(cx, &root, Gfn(BASE.0 + page).gpa(), access);
                match model.pages.get(&page) {
                    Some(&(pfn, writable)) if writable || access != Access::Write => {
                        let result = result.unwrap();
                        assert_eq!((result.pfn, result.writable), (pfn, writable));
                    }
                    mapped => assert_eq!(result.unwrap_err().present, mapped.is_some()),
                }
            }
        }
        vm.mmu.put_root(cx, root);
        vm.mmu.uninit(cx);
        assert_eq!(vm.phys.used_frames(), PAGES);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_operations(npt in any::<bool>(), ops in prop::collection::vec(op(), 1..40)) {
        run(if npt { Stage2Kind::Npt } else { Stage2Kind::Ept }, &ops);
    }
}
