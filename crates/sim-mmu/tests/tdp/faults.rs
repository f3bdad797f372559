//! Single-task behaviour of faults, the hardware's walk, roots and flush obligations.

use crate::vm::{Vm, config};
use sim_kernel::mm::PhysMem;
use sim_kernel::sched::Sim;
use sim_kernel::{Errno, Pfn};
use sim_mmu::{
    Access, Gfn, GfnRange, Gpa, Level, MayYield, MmuLock, RetPf, RootFilter, SpteState, Stage2Kind, TdpConfig, TdpMmu,
};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

#[test]
fn the_hardware_sees_what_was_mapped() {
    for kind in [Stage2Kind::Ept, Stage2Kind::Npt] {
        Sim::sequential().solo(|cx| {
            let vm = Vm::with(cx, 1, config(kind));
            let root = vm.mmu.load_root(cx, 0).unwrap();
            let gpa = Gpa(600 << 12 | 0x18);
            let refused = vm.mmu.translate(cx, &root, gpa, Access::Read).unwrap_err();
            assert!(!refused.present && !refused.reserved);
            let mut fault = vm.fault(Gfn(600), false);
            fault.map_writable = false;
            assert_eq!(vm.serve(cx, &root, &fault), RetPf::Fixed);
            let read = vm.mmu.translate(cx, &root, gpa, Access::Exec).unwrap();
            assert_eq!((read.pfn, read.offset, read.level), (vm.pfn(Gfn(600)), 0x18, Level::L4K));
            assert!(!read.writable && read.executable && !read.dirty);
            assert!(vm.mmu.translate(cx, &root, gpa, Access::Write).unwrap_err().present);
            // The host makes the page writable in place: the leaf gains H, M and W.
            assert_eq!(vm.touch(cx, &root, 600, true), RetPf::Fixed);
            let write = vm.mmu.translate(cx, &root, gpa, Access::Write).unwrap();
            assert!(write.writable && write.dirty);
            let mmio = vm.touch(cx, &root, 4, false);
            assert_eq!(mmio, RetPf::Emulate);
            let refused = vm.mmu.translate(cx, &root, Gpa(4 << 12), Access::Read).unwrap_err();
            assert_eq!((refused.reserved, refused.present), (true, kind == Stage2Kind::Npt));
            let (spte, level) = vm.mmu.walk_lockless(cx, &root, Gpa(4 << 12));
            assert_eq!((vm.mmu.masks().mmio_gfn(spte), level), (Gfn(4), Level::L4K));
            let far = vm.mmu.walk_lockless(cx, &root, Gpa(1 << 40));
            assert_eq!(far, (sim_mmu::Spte::NONPRESENT, Level::L512G));
        });
    }
}

#[test]
fn a_speculative_mapping_is_not_accessed() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        let mut fault = vm.fault(Gfn(700), false);
        fault.prefetch = true;
        assert_eq!(vm.serve(cx, &root, &fault), RetPf::Fixed);
        assert_eq!(vm.serve(cx, &root, &fault), RetPf::Spurious);
        let accessed = |vm: &Vm| vm.mmu.peek_leaf(&root, Gfn(700)).0.has(vm.mmu.masks().accessed);
        assert!(!accessed(&vm));
        vm.mmu.translate(cx, &root, fault.gpa, Access::Read).unwrap();
        assert!(accessed(&vm));
    });
}

#[test]
fn the_fast_path_declines() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        vm.slot.set_host(Level::L2M);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        let mut fault = vm.fault(Gfn(600), true);
        let fast = |fault: &_| vm.mmu.fast_page_fault(cx, &root, fault, Some(&vm.slot));
        fault.present = true;
        assert_eq!(fast(&fault), RetPf::Invalid, "nothing is mapped");
        vm.touch(cx, &root, 600, true);
        assert_eq!(fast(&fault), RetPf::Spurious);
        vm.mmu.wrprot_slot(cx, &mut vm.mmu.mmu_lock.read(cx), 0, vm.slot.range, Level::L4K);
        vm.slot.logged.store(true, SeqCst);
        assert_eq!(fast(&fault), RetPf::Invalid, "a huge leaf of a logged slot");
        vm.slot.logged.store(false, SeqCst);
        fault.write = false;
        assert_eq!(fast(&fault), RetPf::Invalid, "not a write");
        fault.write = true;
        fault.present = false;
        assert_eq!(fast(&fault), RetPf::Invalid, "not a protection fault");
        fault.present = true;
        assert_eq!(fast(&fault), RetPf::Fixed);
        assert!(vm.slot.dirty.lock().is_empty());
    });
}

#[test]
fn flushes_are_owed_for_valid_roots_only() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let old = vm.mmu.load_root(cx, 0).unwrap();
        vm.touch(cx, &old, 600, true);
        vm.mmu.invalidate_all_roots(cx, &mut vm.mmu.mmu_lock.write(cx));
        let new = vm.mmu.load_root(cx, 0).unwrap();
        let other = vm.mmu.load_root(cx, 1).unwrap();
        assert_ne!(old.table(), new.table());
        let zap = |as_id, filter| {
            let mut lock = vm.mmu.mmu_lock.write(cx);
            let range = GfnRange::with_len(Gfn(600), 1);
            vm.mmu.zap_leafs(cx, &mut lock, as_id, filter, range, MayYield::No, &vm.flush)
        };
        assert!(!zap(Some(0), RootFilter::ValidOnly).needed());
        assert_eq!(vm.phys.spte_count(vm.pfn(Gfn(600))), 1);
        assert!(!zap(Some(1), RootFilter::All).needed());
        assert!(!zap(Some(0), RootFilter::All).needed(), "the leaf of an invalid root");
        assert_eq!(vm.phys.spte_count(vm.pfn(Gfn(600))), 0);
        vm.touch(cx, &new, 600, true);
        vm.touch(cx, &other, 600, true);
        assert!(zap(None, RootFilter::All).discharge(cx, &vm.flush));
        assert_eq!(vm.flush.take(), 1);
        vm.mmu.put_root(cx, old);
        assert_eq!(vm.mmu.pages().roots, 3, "the old root stays listed until it is zapped");
        vm.mmu.zap_invalidated_roots(cx);
        assert_eq!(vm.mmu.pages().roots, 2);
        vm.mmu.put_root(cx, new);
        vm.mmu.put_root(cx, other);
        vm.mmu.assert_consistent();
        vm.mmu.uninit(cx);
    });
}

#[test]
fn splitting_a_gigabyte() {
    Sim::sequential().solo(|cx| {
        let phys = Arc::new(PhysMem::new(cx, 4 << 30));
        let mmu = TdpMmu::new(cx, Arc::clone(&phys), config(Stage2Kind::Npt));
        let span = Level::L1G.span();
        let base = loop {
            let pfn = phys.alloc_huge_zeroed().unwrap();
            if pfn.0.is_multiple_of(span) && pfn.0 > 0 {
                break pfn;
            }
        };
        for i in 1..512 {
            assert_eq!(phys.alloc_huge_zeroed(), Ok(base + i * 512));
        }
        let mut vm = Vm::new(cx, 1);
        vm.slot.range = GfnRange::new(Gfn(span), Gfn(2 * span));
        vm.slot.set_host(Level::L1G);
        let root = mmu.load_root(cx, 0).unwrap();
        let mut fault = vm.fault(Gfn(0), true);
        fault.gpa = Gpa((span + 777) << 12);
        fault.pfn = Some(base + 777);
        let lock = mmu.mmu_lock.read(cx);
        assert_eq!(mmu.map(cx, &lock, &root, &mut fault.clone(), Some(&vm.slot), &vm.flush), Ok(RetPf::Fixed));
        drop(lock);
        assert_eq!(mmu.pages().leafs, [0, 0, 1]);
        assert_eq!(phys.spte_count(base + 262_143), 1);
        let at = |gfn: u64| mmu.translate(cx, &root, Gpa(gfn << 12), Access::Write).unwrap();
        assert_eq!((at(span + 262_143).pfn, at(span).level), (base + 262_143, Level::L1G));
        let narrow = GfnRange::with_len(Gfn(span + 600), 1);
        let mut lock = mmu.mmu_lock.write(cx);
        mmu.split_huge_pages(cx, sim_mmu::MmuLock::Write(&mut lock), 0, narrow, Level::L4K);
        drop(lock);
        assert_eq!(mmu.pages().leafs, [512, 511, 0]);
        mmu.assert_consistent();
        assert_eq!((at(span + 600).pfn, at(span + 600).level), (base + 600, Level::L4K));
        assert_eq!((at(span + 3 * 512).pfn, at(span + 3 * 512).level), (base + 3 * 512, Level::L2M));
        mmu.recover_huge_pages(cx, &mut mmu.mmu_lock.read(cx), 0, &vm.slot, &vm.flush);
        assert_eq!(mmu.pages().leafs, [0, 0, 1], "the larger level first");
        assert_eq!((phys.spte_count(base), phys.spte_count(base + 600)), (1, 1));
        mmu.put_root(cx, root);
        mmu.uninit(cx);
        assert_eq!(phys.spte_count(base), 0);
    });
}

#[test]
fn without_memory() {
    Sim::sequential().solo(|cx| {
        let phys = Arc::new(PhysMem::new(cx, 4 * 4096));
        let mmu = TdpMmu::new(cx, Arc::clone(&phys), config(Stage2Kind::Ept));
        let data = phys.alloc_zeroed().unwrap();
        let root = mmu.load_root(cx, 0).unwrap();
        let vm = Vm::new(cx, 1);
        let mut fault = vm.fault(Gfn(600), true);
        fault.pfn = Some(data);
        let lock = mmu.mmu_lock.read(cx);
        let result = mmu.map(cx, &lock, &root, &mut fault.clone(), Some(&vm.slot), &vm.flush);
        assert_eq!(result, Err(Errno::ENOMEM), "three tables are needed and two frames are left");
        drop(lock);
        mmu.assert_consistent();
        assert_eq!(mmu.load_root(cx, 1).err(), Some(Errno::ENOMEM));
        mmu.put_root(cx, root);
        mmu.uninit(cx);
        assert_eq!(phys.used_frames(), 1);
    });
}

#[test]
fn five_levels() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 1, TdpConfig { levels: 5, max_gfn: Gfn(1 << 40), ..config(Stage2Kind::Ept) });
        let root = vm.mmu.load_root(cx, 0).unwrap();
        let far = Gfn((1 << 40) - 1);
        assert_eq!(vm.serve(cx, &root, &vm.fault(far, false)), RetPf::Emulate);
        let (spte, level) = vm.mmu.walk_lockless(cx, &root, far.gpa());
        assert_eq!(vm.mmu.classify(spte.0, level), SpteState::Mmio);
        assert_eq!(vm.touch(cx, &root, 600, true), RetPf::Fixed);
        assert_eq!(vm.mmu.pages().tables, 4 + 3 + 1);
        vm.mmu.assert_consistent();
        vm.mmu.put_root(cx, root);
        vm.mmu.uninit(cx);
    });
}

#[test]
#[should_panic(expected = "INV-206")]
fn a_leaf_of_another_frame() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        vm.touch(cx, &root, 600, true);
        let mut fault = vm.fault(Gfn(600), true);
        fault.pfn = Some(Pfn(fault.pfn.unwrap().0 + 1));
        vm.serve(cx, &root, &fault);
    });
}

#[test]
#[should_panic(expected = "MMU-INV-012")]
fn a_frame_changes_only_by_way_of_a_zap() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        let mut fault = vm.fault(Gfn(600), false);
        fault.map_writable = false;
        vm.serve(cx, &root, &fault);
        let mut fault = vm.fault(Gfn(600), true);
        fault.pfn = Some(Pfn(fault.pfn.unwrap().0 + 1));
        vm.serve(cx, &root, &fault);
    });
}

#[test]
#[should_panic(expected = "INV-203")]
fn a_free_frame_is_not_mapped() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        // Its tables first, or one of them would get the frame.
        vm.touch(cx, &root, 601, true);
        vm.phys.put(cx, vm.pfn(Gfn(600)));
        vm.touch(cx, &root, 600, true);
    });
}

#[test]
#[should_panic(expected = "MMU-INV-007")]
fn a_vcpu_keeps_its_root() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let _root = vm.mmu.load_root(cx, 0).unwrap();
        vm.mmu.uninit(cx);
    });
}

/// A slot that looks at the entry at the moment when the frame is marked dirty.
struct Watching<'a> {
    vm: &'a Vm,
    root: &'a sim_mmu::Root,
    writable_when_marked: std::cell::RefCell<Vec<bool>>,
}

impl sim_mmu::SlotView for Watching<'_> {
    fn range(&self) -> GfnRange {
        self.vm.slot.range
    }
    fn is_dirty_logged(&self) -> bool {
        true
    }
    fn mark_page_dirty(&self, _cx: &sim_kernel::Cx<'_>, gfn: Gfn) {
        let (spte, _) = self.vm.mmu.peek_leaf(self.root, gfn);
        self.writable_when_marked.borrow_mut().push(spte.is_present() && spte.is_writable());
    }
    fn lpage_disallowed(&self, _gfn: Gfn, _level: Level) -> bool {
        false
    }
    fn host_level(&self, _cx: &sim_kernel::Cx<'_>, _gfn: Gfn, _fault: Option<&sim_mmu::TdpFault>) -> Level {
        Level::L1G
    }
}

#[test]
fn when_a_frame_is_marked_dirty() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::new(cx, 1);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        let slot = Watching { vm: &vm, root: &root, writable_when_marked: Default::default() };
        let mut fault = vm.fault(Gfn(600), false);
        let lock = vm.mmu.mmu_lock.read(cx);
        assert_eq!(vm.mmu.map(cx, &lock, &root, &mut fault.clone(), Some(&slot), &vm.flush), Ok(RetPf::Fixed));
        drop(lock);
        vm.mmu.wrprot_slot(cx, &mut vm.mmu.mmu_lock.read(cx), 0, vm.slot.range, Level::L4K);
        fault.write = true;
        fault.present = true;
        assert_eq!(vm.mmu.fast_page_fault(cx, &root, &fault, Some(&slot)), RetPf::Fixed);
        // The slow path before it installs (mmu_lock keeps the collector out), the fast path after it set W (nothing does).
        assert_eq!(*slot.writable_when_marked.borrow(), [false, true]);
    });
}

#[test]
fn the_initially_set_bitmap_write_protects_huge_leafs_for_good() {
    Sim::sequential().solo(|cx| {
        let vm = Vm::with(cx, 3, TdpConfig { eager_page_split: false, ..config(Stage2Kind::Ept) });
        vm.slot.set_host(Level::L2M);
        let root = vm.mmu.load_root(cx, 0).unwrap();
        for gfn in [512, 1024, 1536] {
            vm.touch(cx, &root, gfn, true);
        }
        vm.slot.logged.store(true, SeqCst);
        let mut lock = vm.mmu.mmu_lock.write(cx);
        let mut collect = |base: u64, mask| {
            vm.mmu.enable_log_dirty_pt_masked(cx, &mut MmuLock::Write(&mut lock), 0, Gfn(base), mask, true);
            [512, 1024, 1536].map(|gfn| vm.mmu.peek_leaf(&root, Gfn(gfn)).0.is_writable())
        };
        // Rounding up takes 1023 and 1024 for neighbours within one large page, as the kernel does.
        assert_eq!(collect(1000, 3 << 23), [false, true, true]);
        assert_eq!(collect(1500, 1 << 35 | 1 << 37), [false, false, false]);
        drop(lock);
        assert!(!vm.mmu.peek_leaf(&root, Gfn(512)).0.has(vm.mmu.masks().mmu_writable), "not even the fast path");
        assert_eq!(vm.touch(cx, &root, 700, true), RetPf::Fixed);
        assert_eq!(*vm.slot.dirty.lock(), [700].into());
        vm.mmu.assert_consistent();
    });
}
