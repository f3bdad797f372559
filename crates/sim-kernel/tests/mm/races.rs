//! Tasks that change, access and pin the same memory at the same time, under many random schedules.
//!
//! A second MMU takes part: it maps pages with KVM's retry protocol and forgets them in notifiers. When all tasks are done it must
//! not know anything that is not so, and no frame may be lost.

use sim_kernel::fs::{File, Shmem};
use sim_kernel::mm::{Advice, GupFlags, Mm, MmapArgs, MmuNotifier, PhysMem, Prot};
use sim_kernel::sched::{Chooser, Config, LogLevel, Random, Sim, Verdict};
use sim_kernel::sync::Mutex;
use sim_kernel::{Cx, Hva, HvaRange, PAGE_SIZE, Pfn};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What one task does; pages are counted from the start of the anonymous (`A`) or file mapping (`F`).
#[derive(Clone, Copy, Debug)]
enum Do {
    ReadA(u64),
    WriteA(u64),
    ReadF(u64),
    WriteF(u64),
    ShadowA(u64, bool),
    ShadowF(u64, bool),
    DropA(u64, u64),
    DropF(u64, u64),
    MunmapA(u64, u64),
    MunmapF(u64, u64),
    ProtectA(u64, u64, Prot),
    Collapse,
    Punch(u64, u64),
    Truncate(u64),
    Unregister,
}

#[derive(Debug, Default)]
struct Mmu {
    in_progress: u64,
    seq: u64,
    unregistered: bool,
    entries: BTreeMap<Hva, (Pfn, bool)>,
}

/// A second MMU: `mmu_invalidate_in_progress`, `mmu_invalidate_seq` and the leaves.
#[derive(Debug)]
struct SecondMmu(Mutex<Mmu>);

impl MmuNotifier for SecondMmu {
    fn invalidate_range_start(&self, cx: &Cx<'_>, range: HvaRange) {
        let mut mmu = self.0.lock(cx);
        assert!(!mmu.unregistered, "told of a start after unregistering");
        mmu.in_progress += 1;
        mmu.entries.retain(|hva, _| !(range.start <= *hva && *hva < range.end));
    }

    fn invalidate_range_end(&self, cx: &Cx<'_>, _range: HvaRange) {
        let mut mmu = self.0.lock(cx);
        assert!(!mmu.unregistered, "told of an end after unregistering");
        mmu.seq += 1;
        mmu.in_progress -= 1;
    }
}

struct World {
    phys: Arc<PhysMem>,
    mm: Arc<Mm>,
    mmu: Arc<SecondMmu>,
    file: Arc<File>,
    anon: Hva,
    shared: Hva,
}

impl World {
    fn new(cx: &Cx<'_>) -> World {
        let phys = Arc::new(PhysMem::new(cx, 64 << 20));
        let mm = Mm::new(cx, Arc::clone(&phys));
        let mmu = Arc::new(SecondMmu(Mutex::new(cx, "mmu_lock", Mmu::default())));
        mm.register_notifier(cx, Arc::clone(&mmu) as Arc<dyn MmuNotifier>);
        let file = File::new(cx, Arc::new(Shmem::new(cx, Arc::clone(&phys), 1, 4 * PAGE_SIZE)));
        let map = |pages: u64, file: Option<&Arc<File>>| {
            let shared = file.is_some();
            mm.mmap(cx, &MmapArgs { len: pages * PAGE_SIZE, prot: Prot::RW, shared, file, offset: 0, align: 1 << 21 })
        };
        let (anon, shared) = (map(512, None).unwrap(), map(4, Some(&file)).unwrap());
        World { phys, mm, mmu, file, anon, shared }
    }

    /// KVM's page fault: pin, then map unless an invalidation runs or ran.
    fn shadow(&self, cx: &Cx<'_>, hva: Hva, write: bool) {
        for _ in 0..3 {
            let seq = self.mmu.0.lock(cx).seq;
            let Ok(page) = self.mm.get_user_page(cx, hva, GupFlags { write }) else { return };
            let mut mmu = self.mmu.0.lock(cx);
            let stale = mmu.in_progress > 0 || mmu.seq != seq;
            if !stale {
                mmu.entries.insert(hva, (page.pfn, page.writable));
            }
            drop(mmu);
            self.phys.put(cx, page.pfn);
            if !stale {
                return;
            }
        }
    }

    fn act(&self, cx: &Cx<'_>, act: Do) {
        let anon = |page: u64| self.anon + page * PAGE_SIZE;
        let shared = |page: u64| self.shared + page * PAGE_SIZE;
        let operations = self.file.operations();
        // Whether a call succeeds depends on the schedule; what it leaves behind is checked at the end.
        let _ = match act {
            Do::ReadA(page) => self.mm.read_u32(cx, anon(page)).is_ok(),
            Do::WriteA(page) => self.mm.write_u32(cx, anon(page), 1 + page as u32).is_ok(),
            Do::ReadF(page) => self.mm.read_u32(cx, shared(page)).is_ok(),
            Do::WriteF(page) => self.mm.write_u32(cx, shared(page), 1 + page as u32).is_ok(),
            Do::ShadowA(page, write) => {
                self.shadow(cx, anon(page), write);
                true
            }
            Do::ShadowF(page, write) => {
                self.shadow(cx, shared(page), write);
                true
            }
            Do::DropA(page, pages) => self.mm.madvise(cx, anon(page), pages * PAGE_SIZE, Advice::Dontneed).is_ok(),
            Do::DropF(page, pages) => self.mm.madvise(cx, shared(page), pages * PAGE_SIZE, Advice::Dontneed).is_ok(),
            Do::MunmapA(page, pages) => self.mm.munmap(cx, anon(page), pages * PAGE_SIZE).is_ok(),
            Do::MunmapF(page, pages) => self.mm.munmap(cx, shared(page), pages * PAGE_SIZE).is_ok(),
            Do::ProtectA(page, pages, prot) => self.mm.mprotect(cx, anon(page), pages * PAGE_SIZE, prot).is_ok(),
            Do::Collapse => self.mm.madvise(cx, self.anon, 512 * PAGE_SIZE, Advice::Collapse).is_ok(),
            Do::Punch(page, pages) => operations.fallocate(cx, 3, page * PAGE_SIZE, pages * PAGE_SIZE).is_ok(),
            Do::Truncate(pages) => operations.truncate(cx, pages * PAGE_SIZE).is_ok(),
            Do::Unregister => {
                self.mm.unregister_notifier(cx, &(Arc::clone(&self.mmu) as Arc<dyn MmuNotifier>));
                let mut mmu = self.mmu.0.lock(cx);
                mmu.unregistered = true;
                mmu.entries.clear();
                true
            }
        };
    }

    fn check(self, cx: &Cx<'_>) -> usize {
        let entries = self.mmu.0.peek(|mmu| mmu.entries.clone());
        for (hva, (pfn, writable)) in &entries {
            let page = self.mm.get_user_page_fast_only(cx, *hva, *writable);
            assert_eq!(page.map(|page| page.pfn), Some(*pfn), "a stale entry for {hva:?}");
            self.phys.put(cx, *pfn);
        }
        for page in 0..4 {
            if let Ok(mapped) = self.mm.read_u32(cx, self.shared + page * PAGE_SIZE) {
                let cached = self.file.operations().read_at(cx, page * PAGE_SIZE, 4).unwrap();
                assert_eq!(mapped.to_le_bytes(), cached[..], "page {page} is mapped but not the file's any more");
            }
        }
        self.mm.exit_mmap(cx);
        cx.task_work_run();
        self.file.put_sync(cx);
        assert_eq!(self.phys.used_frames(), self.phys.reserved_frames(), "frames leak");
        entries.len()
    }
}

/// Runs the tasks under many schedules; returns the numbers of entries that the second MMU ended with.
fn race(setup: &[Do], tasks: &[&[Do]]) -> BTreeSet<usize> {
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    let mut left = BTreeSet::new();
    for seed in 0..300 {
        let config = Config { seed, steps_max: 100_000, log: LogLevel::Off, ..Config::default() };
        let (world, verdict) = sim.execute(&config, |cx| {
            let world = Arc::new(World::new(cx));
            setup.iter().for_each(|act| world.act(cx, *act));
            for (n, acts) in tasks.iter().enumerate() {
                let (world, acts) = (Arc::clone(&world), acts.to_vec());
                cx.spawn(&format!("task{n}"), move |cx| acts.iter().for_each(|act| world.act(cx, *act)));
            }
            world
        });
        assert_eq!(verdict, Verdict::Completed, "seed {seed}: {verdict}");
        let world = Arc::into_inner(world).expect("every task is done");
        left.insert(sim.solo(|cx| world.check(cx)));
    }
    left
}

#[test]
fn host_fault_against_munmap() {
    race(&[], &[&[Do::WriteA(3), Do::ReadA(4)], &[Do::MunmapA(2, 5)], &[Do::ShadowA(3, false)]]);
    race(&[], &[&[Do::WriteF(1), Do::ReadF(2)], &[Do::MunmapF(1, 2)], &[Do::ShadowF(2, true)]]);
}

#[test]
fn host_fault_against_truncation() {
    let both = race(&[Do::WriteF(1)], &[&[Do::ReadF(1), Do::WriteF(2)], &[Do::Truncate(1)], &[Do::ShadowF(1, true)]]);
    assert_eq!(both, BTreeSet::from([0]), "nothing beyond the end stays mapped");
    race(
        &[Do::WriteF(1)],
        &[&[Do::ReadF(1), Do::ReadF(1)], &[Do::Punch(0, 4)], &[Do::ShadowF(1, true), Do::MunmapF(0, 1)]],
    );
}

#[test]
fn first_touches_meet() {
    race(&[], &[&[Do::ReadA(1)], &[Do::WriteA(2)], &[Do::ReadA(3), Do::WriteA(3)], &[Do::ShadowA(2, false)]]);
    race(&[], &[&[Do::ReadF(1)], &[Do::WriteF(1)], &[Do::ReadF(1)]]);
}

#[test]
fn copies_of_zero_pages_meet() {
    let left = race(&[Do::ReadA(1)], &[&[Do::WriteA(1)], &[Do::WriteA(2)], &[Do::ShadowA(1, false)]]);
    assert_eq!(left, BTreeSet::from([0, 1]), "the second MMU maps before or after the copy");
    let small = [Do::WriteA(9), Do::DropA(0, 2), Do::ReadA(1)];
    race(
        &small,
        &[&[Do::WriteA(1)], &[Do::WriteA(1)], &[Do::ShadowA(1, false), Do::ShadowA(1, true)], &[Do::DropA(1, 1)]],
    );
}

#[test]
fn splits_drops_and_rights_meet() {
    let setup = [Do::WriteA(1), Do::ShadowA(1, true)];
    race(&setup, &[&[Do::DropA(3, 1)], &[Do::DropA(0, 512)], &[Do::WriteA(1)], &[Do::ShadowA(1, true)]]);
    race(&setup, &[&[Do::ProtectA(0, 7, Prot::READ)], &[Do::DropA(0, 512)], &[Do::WriteA(1)], &[Do::ShadowA(1, true)]]);
    race(&setup, &[&[Do::DropA(3, 1), Do::Collapse], &[Do::WriteA(1)], &[Do::DropA(0, 512)], &[Do::ShadowA(3, false)]]);
}

#[test]
fn drops_of_file_pages_meet() {
    let setup = [Do::WriteF(1), Do::ShadowF(1, true)];
    race(&setup, &[&[Do::DropF(0, 4)], &[Do::Punch(1, 1)], &[Do::ReadF(1)], &[Do::ShadowF(1, true)]]);
}

#[test]
fn a_listener_leaves_while_it_is_told() {
    race(&[Do::WriteA(1)], &[&[Do::DropA(0, 3)], &[Do::Unregister], &[Do::MunmapA(7, 1)]]);
}

#[test]
fn threads_of_the_host_do_the_same() {
    let world = sim_kernel::sched::run_native(|cx| {
        let world = Arc::new(World::new(cx));
        let tasks: [&'static [Do]; 4] = [
            &[Do::WriteA(1), Do::ReadF(1), Do::WriteF(2), Do::ReadA(3)],
            &[Do::DropA(0, 512), Do::DropA(3, 1), Do::DropF(0, 4)],
            &[Do::ShadowA(1, false), Do::ShadowF(1, true), Do::ShadowA(3, true)],
            &[Do::Punch(0, 4), Do::ProtectA(0, 7, Prot::READ), Do::ProtectA(0, 7, Prot::RW)],
        ];
        for acts in tasks {
            let world = Arc::clone(&world);
            cx.spawn("task", move |cx| (0..200).for_each(|_| acts.iter().for_each(|act| world.act(cx, *act))));
        }
        world
    });
    let world = Arc::into_inner(world).expect("every task is done");
    sim_kernel::sched::run_native(|cx| world.check(cx));
}
