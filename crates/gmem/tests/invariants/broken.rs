//! Each check over a state is silent on a sound picture of a host and fails on one in which its rule is broken.

use gmem::MachineConfig;
use gmem::interp::World;
use gmem::invariants::snapshot::{FileState, MmioState, SlotState, VmState};
use gmem::invariants::{self, Check, Snapshot, check};
use gmem::kvm::uapi::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use gmem::scenario::parse_line;
use sim_kernel::mm::FrameFlags;
use sim_kernel::sched::{Access, HeldLock, ObjId, Sim, TaskId};
use sim_kernel::{Pfn, Pgoff};
use sim_mmu::{Gfn, GfnRange, Level};
use std::collections::BTreeSet;

/// VM 0 has private memory, private pages, a huge shared page and an MMIO page; VM 1 shares a guest_memfd with the VMM.
const OPERATIONS: &str = "
    create_vm vm0 type=sw_protected
    create_vcpu vm0 c0
    mmap m0 len=8M align=2M
    create_guest_memfd vm0 g0 size=8M
    set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x800000 size=8M hva=m0 guest_memfd=g0
    set_memory_attributes vm0 0x800000 16K private
    fallocate g0 keep_size 32K 4K
    guest_write c0 0x800000 1
    guest_write c0 0x801000 2
    host_write m0 4M 3
    guest_write c0 0xc00000 4
    guest_read c0 0x40000000
    create_vm vm1
    create_vcpu vm1 c1
    create_guest_memfd vm1 g1 size=16K flags=mmap|init_shared
    mmap m1 fd=g1 len=16K shared=shared
    set_user_memory_region2 vm1 slot=0 flags=guest_memfd gpa=0x200000 size=16K hva=0 guest_memfd=g1
    host_write m1 0 5
    guest_read c1 0x200000
    guest_read c1 0x201000
";

fn sound() -> Snapshot {
    Sim::sequential().solo(|cx| {
        let world = World::checked(cx, MachineConfig::default());
        for line in OPERATIONS.lines().filter(|line| !line.trim().is_empty()) {
            world.execute(cx, &parse_line(line).unwrap().op);
        }
        let shot = Snapshot::of(world.process().host(), true, cx.held_locks());
        world.process().exit(cx);
        shot
    })
}

/// A frame that nothing in the picture names.
const STRANGER: Pfn = Pfn(0x7777);

fn slot(shot: &mut Snapshot, vm: usize) -> &mut SlotState {
    shot.vms[vm].spaces[0].active.iter_mut().find(|slot| slot.gmem).unwrap()
}

/// The slots that are the same in both sets and in the file's view.
fn each_slot(shot: &mut Snapshot, vm: usize, change: impl Fn(&mut SlotState)) {
    let handle = slot(shot, vm).handle;
    let space = &mut shot.vms[vm].spaces[0];
    let sets = space.active.iter_mut().chain(&mut space.inactive);
    sets.chain(shot.inodes[vm].views[0].slots.values_mut()).filter(|slot| slot.handle == handle).for_each(change);
}

fn private_leaf(vm: &mut VmState) -> &mut gmem::invariants::snapshot::LeafState {
    vm.leafs.iter_mut().find(|leaf| leaf.gfn == Gfn(0x800)).unwrap()
}

fn huge_leaf(vm: &mut VmState) -> &mut gmem::invariants::snapshot::LeafState {
    vm.leafs.iter_mut().find(|leaf| leaf.level == Level::L2M).unwrap()
}

/// The slot of the huge leaf, which also has private leafs in front of it: those are marked.
fn slot_of_huge_leaf(shot: &mut Snapshot) -> &mut SlotState {
    slot(shot, 0)
}

fn cached(shot: &Snapshot, inode: usize, index: u64) -> Pfn {
    shot.inodes[inode].pages[&Pgoff(index)]
}

type Break = fn(&mut Snapshot);

/// An id, what is done to the picture, and a part of what is said of it.
const BROKEN: &[(&str, Break, &str)] = &[
    ("INV-101", |s| s.frames.get_mut(&cached(&s.clone(), 0, 8)).unwrap().index = Pgoff(9), "is cached at Pgoff(0x8)"),
    ("INV-101", |s| s.frames.get_mut(&cached(&s.clone(), 0, 8)).unwrap().mapping = None, "names (None"),
    (
        "INV-102",
        |s| {
            let other = cached(s, 1, 1);
            let mine = cached(s, 1, 0);
            s.inodes[1].pages.insert(Pgoff(0), other);
            assert_ne!(other, mine);
        },
        "which has Some(",
    ),
    ("INV-103", |s| s.inodes[0].size = 0x2000, "which ends at 0x2"),
    (
        "INV-105",
        |s| s.frames.get_mut(&cached(&s.clone(), 0, 0)).unwrap().refcount = 5,
        "while nothing happens, of which 1 are known",
    ),
    ("INV-105", |s| s.frames.get_mut(&cached(&s.clone(), 1, 0)).unwrap().refcount = 1, "of which 2 are known"),
    (
        "INV-105",
        |s| s.frames.get_mut(&cached(&s.clone(), 0, 0)).unwrap().refcount = 0,
        "has 0 references and is in use",
    ),
    (
        "INV-105",
        |s| {
            let frame = s.frames.get_mut(&cached(&s.clone(), 0, 0)).unwrap();
            (frame.refcount, frame.flags) = (0, FrameFlags::LOCKED);
        },
        "is free, and locked",
    ),
    (
        "INV-106",
        |s| s.frames.get_mut(&cached(&s.clone(), 0, 0)).unwrap().flags = FrameFlags::ALLOCATED,
        "contents are undefined",
    ),
    ("INV-106", |s| s.frames.get_mut(&cached(&s.clone(), 0, 0)).unwrap().undefined = true, "contents are undefined"),
    (
        "INV-109",
        |s| {
            s.frames.get_mut(&cached(&s.clone(), 0, 8)).unwrap().flags = FrameFlags::ALLOCATED | FrameFlags::UPTODATE;
        },
        "but nobody has written it",
    ),
    ("INV-111", |s| slot(s, 0).file = Some(FileState::Of(s.inodes[1].id)), "which does not know it"),
    (
        "INV-201",
        |s| {
            let allocated = cached(s, 0, 8);
            s.inodes[0].pages.insert(Pgoff(0), allocated);
        },
        "at Pgoff(0x0)",
    ),
    ("INV-201", |s| s.frames.get_mut(&cached(&s.clone(), 0, 0)).unwrap().mapping = None, "which is in no page cache"),
    ("INV-203", |s| _ = s.frames.remove(&huge_leaf(&mut s.clone().vms[0]).pfn), "which is free"),
    ("INV-203", |s| s.frames.get_mut(&cached(&s.clone(), 1, 0)).unwrap().flags = FrameFlags::UPTODATE, "which is free"),
    ("INV-204", |s| private_leaf(&mut s.vms[0]).gfn = Gfn(0x10), "outside every slot"),
    (
        "INV-204",
        |s| {
            let space = &mut s.vms[0].spaces[0];
            space.active.iter_mut().for_each(|slot| slot.invalid = true);
            space.inactive.iter_mut().for_each(|slot| slot.zapped = true);
        },
        "although the zap of slot",
    ),
    (
        "INV-207",
        |s| {
            let generation = s.vms[0].mmio_generation(0).unwrap();
            s.vms[0].mmio.push(MmioState { as_id: 0, invalid_root: false, gfn: Gfn(0x900), generation });
        },
        "of the current generation stands at",
    ),
    ("INV-208", |s| private_leaf(&mut s.vms[0]).private = false, "is shared, but backed by the slot's guest_memfd"),
    ("INV-208", |s| huge_leaf(&mut s.vms[0]).private = true, "is private, but not backed by guest_memfd"),
    ("INV-208", |s| slot(s, 0).gmem = false, "has no guest_memfd"),
    ("INV-209", |s| slot(s, 0).blocks[0].mixed = false, "is marked uniform"),
    ("INV-209", |s| slot(s, 0).blocks[1].mixed = true, "is marked MIXED"),
    ("INV-209", |s| huge_leaf(&mut s.vms[0]).differs = true, "covers different attributes"),
    (
        "INV-209",
        |s| slot(s, 0).blocks.iter_mut().for_each(|block| block.disallowed = true),
        "where the slot allows none",
    ),
    (
        "INV-210",
        |s| {
            let hva = slot(s, 0).hva_of(Gfn(0xc00));
            s.processes[0].behind_leafs.as_mut().unwrap().insert(hva, Some(STRANGER));
        },
        "but the VMM has",
    ),
    (
        "INV-211",
        |s| s.frames.get_mut(&cached(&s.clone(), 0, 0)).unwrap().flags |= FrameFlags::HWPOISON,
        "is broken, and mapped 1 times by guests",
    ),
    ("INV-212", |s| s.frames.get_mut(&cached(&s.clone(), 1, 0)).unwrap().mapping = None, "has left the page cache"),
    ("INV-213", |s| private_leaf(&mut s.vms[0]).level = Level::L2M, "is a page of guest_memfd, mapped as L2M"),
    ("INV-213", |s| huge_leaf(&mut s.vms[0]).gfn = Gfn(0xc01), "as L2M"),
    ("INV-301", |s| s.vms[0].in_progress = 1, "is 1, 0 invalidations are open"),
    ("INV-301", |s| (s.vms[0].in_progress, s.vms[0].open) = (1, 1), "while nothing happens"),
    (
        "INV-301",
        |s| (s.vms[0].in_progress, s.vms[0].open, s.vms[0].mn_open) = (1, 1, 1),
        "0 notifier pairs are counted, 1 are open",
    ),
    ("INV-301", |s| s.vms[0].mn_open = 1, "1 notifiers hold an invalidation, 0 are open"),
    ("INV-302", |s| (s.vms[0].open, s.vms[0].hull) = (1, Some(GfnRange::with_len(Gfn(1), 1))), "the range is"),
    ("INV-303", |s| s.inodes[0].views[0].bindings[0].2 = 99, "are bound to an unknown slot"),
    ("INV-303", |s| s.inodes[0].views[0].slots.values_mut().for_each(|slot| slot.freed = true), "which was freed"),
    (
        "INV-303",
        |s| s.inodes[0].views[0].slots.values_mut().for_each(|slot| slot.pgoff = Pgoff(1)),
        "which does not cover them",
    ),
    ("INV-303", |s| s.inodes[0].views[0].slots.values_mut().for_each(|slot| slot.file = None), "which names None"),
    ("INV-303", |s| _ = s.inodes[0].views[0].bindings.pop(), "pages of slot"),
    ("INV-304", |s| slot(s, 0).file = None, "is visible and has no file"),
    ("INV-305", |s| _ = s.vms[0].attributes.insert(Gfn(0x800), 4), "has attributes 0x4"),
    ("INV-306", |s| s.inodes[0].size = 0x9000, "it ends at 0x9"),
    ("INV-307", |s| s.vms[0].seq += 1, "mmu_invalidate_seq is"),
    ("INV-308", |s| drop(s.vms[0].spaces[0].inactive.pop()), "the two sets of an address space differ"),
    (
        "INV-308",
        |s| {
            let gfns = slot(s, 0).gfns;
            s.vms[0].spaces[0].active.iter_mut().for_each(|slot| slot.gfns = gfns);
        },
        "have one number, or overlap",
    ),
    ("INV-308", |s| s.vms[0].nr_memslot_pages = Some(1), "nr_memslot_pages is 1"),
    ("INV-308", |s| slot(s, 0).invalid = true, "the stand-in of slot"),
    ("INV-309", |s| s.vms[0].spaces[0].generation |= 1 << 63, "but nobody makes it"),
    ("INV-309", |s| s.vms[1].spaces[1].generation += 1, "address space 1 has generation"),
    ("INV-310", |s| slot(s, 0).flags |= KVM_MEM_LOG_DIRTY_PAGES, "has guest_memfd and flags"),
    ("INV-310", |s| slot(s, 1).flags |= KVM_MEM_READONLY, "has guest_memfd and flags"),
    ("INV-310", |s| slot(s, 1).gmem_only = false, "its file can be mapped: true"),
    ("INV-310", |s| slot(s, 0).gmem = false, "has no guest_memfd, but a file"),
    ("INV-401", |s| slot(s, 0).freed = true, "is visible and was freed"),
    ("INV-402", |s| s.inodes[0].views[0].freed = true, "lists a view that was freed"),
    ("INV-403", |s| s.inodes[1].views.clear(), "is mapped and has no view any more"),
    ("INV-405", |s| s.vms[0].destroyed = true, "has a view of a VM that was destroyed"),
    ("INV-406", |s| slot(s, 0).file = Some(FileState::Freed), "names a file that was freed"),
    ("INV-407", |s| s.vms[0].destroyed = true, "a VM died with 2 slots"),
    ("INV-407", |s| (s.vms[0].destroyed, s.vms[0].in_progress) = (true, 2), "with 2 invalidations open"),
    (
        "INV-407",
        |s| {
            s.vms[0].destroyed = true;
            s.vms[0].leafs.clear();
            s.vms[0].spaces[0].active.clear();
        },
        "its files have",
    ),
    (
        "INV-502",
        |s| {
            let site = std::panic::Location::caller();
            let access = Access::LockExclusive;
            s.held.push(HeldLock { task: TaskId(1), class: "folio_lock", object: ObjId(1), index: 7, access, site });
        },
        "folio_lock (taken at",
    ),
    ("INV-701", |s| s.vms[0].malformed.push("count".into()), "in the tree of memory attributes: count"),
    ("INV-701", |s| s.inodes[0].views[0].malformed.push("count".into()), "in the tree of bindings"),
    ("INV-701", |s| s.inodes[0].malformed.push("count".into()), "in the tree of a page cache"),
    ("MMU-INV-006", |s| s.vms[0].pages[0] += 1, "leafs of the three sizes"),
    ("MMU-INV-006", |s| _ = s.vms[1].leafs.pop(), "leafs of the three sizes"),
    ("MMU-INV-007", |s| s.vms[0].table_frames += 1, "frames are tables"),
    ("MMU-INV-017", |s| slot_of_huge_leaf(s).dirty = Some(vec![u64::MAX; 32]), "which is logged"),
    ("MMU-INV-018", |s| s.vms[0].nx_huge_pages = true, "as an executable L2M"),
    ("MMU-INV-019", |s| slot(s, 0).flags |= KVM_MEM_READONLY, "which is read-only"),
    (
        "MMU-INV-040",
        |s| {
            s.vms[0].initially_set = true;
            let mut dirty = vec![u64::MAX; 32];
            dirty[20] &= !4;
            slot_of_huge_leaf(s).dirty = Some(dirty);
        },
        "Gfn(0xd02)",
    ),
    ("MMU-INV-041", |s| slot(s, 1).dirty = Some(vec![0x10]), "which has 4 pages"),
];

#[test]
fn a_sound_state_breaks_nothing() {
    let shot = sound();
    assert_eq!(check(&shot), Ok(()));
    // It is a state in which the checks have something to look at.
    assert_eq!((shot.vms.len(), shot.inodes.len(), shot.processes.len()), (2, 2, 1));
    let levels: Vec<Level> = shot.vms[0].leafs.iter().map(|leaf| leaf.level).collect();
    assert!(levels.contains(&Level::L2M) && levels.contains(&Level::L4K), "{levels:?}");
    assert!(!shot.vms[0].mmio.is_empty() && shot.vms[1].leafs.len() >= 2);
    assert!(!shot.processes[0].pages.as_ref().unwrap().is_empty());
}

#[test]
fn each_check_fails_where_its_rule_is_broken() {
    let shot = sound();
    for (id, break_it, part) in BROKEN {
        let Check::State(function) = invariants::find(id).unwrap().check else { panic!("{id} has no state") };
        assert_eq!(function(&shot), Ok(()), "{id}");
        let mut broken = shot.clone();
        break_it(&mut broken);
        let said = function(&broken).expect_err(id);
        assert!(said.contains(part), "{id}: {said}");
        assert!(check(&broken).is_err());
    }
}

#[test]
fn every_check_over_a_state_is_shown_to_fail() {
    let shown: BTreeSet<&str> = BROKEN.iter().map(|(id, ..)| *id).collect();
    let states = invariants::all().filter(|inv| matches!(inv.check, Check::State(_)));
    let missing: Vec<&str> = states.map(|inv| inv.id).filter(|id| !shown.contains(id)).collect();
    assert_eq!(missing, [] as [&str; 0]);
}

/// Windows: what may be while somebody is in the middle of it.
#[test]
fn windows_are_open_only_as_stated() {
    let shot = sound();
    let within = |change: Break| {
        let mut shot = shot.clone();
        shot.quiescent = false;
        change(&mut shot);
        check(&shot).err().map(|violation| violation.id)
    };
    // A conversion: MIXED is not up to date while slots_lock is held.
    assert_eq!(within(|s| slot(s, 0).blocks[1].mixed = true), Some("INV-209"));
    assert_eq!(within(|s| (slot(s, 0).blocks[1].mixed, s.vms[0].slots_changing) = (true, true)), None);
    // A notifier: the VMM's page table has changed, stage 2 not yet.
    assert_eq!(
        within(|s| s.processes[0].behind_leafs.as_mut().unwrap().values_mut().for_each(|pfn| *pfn = None)),
        Some("INV-210")
    );
    assert_eq!(
        within(|s| {
            s.processes[0].behind_leafs.as_mut().unwrap().values_mut().for_each(|pfn| *pfn = None);
            s.vms.iter_mut().for_each(|vm| vm.mn_active = 1);
        }),
        None
    );
    // A deletion: the stand-in is active until the zap has ended.
    assert_eq!(
        within(|s| {
            s.vms[0].slots_changing = true;
            each_slot(s, 0, |slot| slot.invalid = true);
        }),
        None
    );
    // A release: the slot has lost its file, and the view still knows the slot.
    assert_eq!(
        within(|s| {
            each_slot(s, 0, |slot| (slot.file, slot.released) = (None, true));
        }),
        None
    );
    // mmu_lock: the words of the protocol change one after the other.
    assert_eq!(within(|s| (s.vms[0].in_progress, s.vms[0].zapping) = (1, true)), None);
}
