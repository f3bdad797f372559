//! Folios of 512 pages in a page cache: they come as one, have one lock, and go as one or are split first.

use sim_kernel::fs::AddressSpace;
use sim_kernel::mm::{PhysMem, Placement};
use sim_kernel::sched::{Chooser, Config, Pct, Random, Sim, Verdict};
use sim_kernel::xarray::NodeCache;
use sim_kernel::{Cx, PAGES_PER_PMD, Pfn, Pgoff};
use std::sync::Arc;

const SEEDS: u64 = 400;

struct Cache {
    phys: Arc<PhysMem>,
    pages: AddressSpace,
}

impl Cache {
    fn new(cx: &Cx<'_>, bytes: u64) -> Cache {
        let phys = Arc::new(PhysMem::new(cx, bytes));
        let pages = AddressSpace::new(cx, &phys, &Arc::new(NodeCache::new()), 1);
        Cache { phys, pages }
    }

    /// A look-up that has come to its end.
    fn touch(&self, cx: &Cx<'_>, index: u64) -> Pfn {
        let pfn = self.pages.find_or_create_large_in(cx, Pgoff(index), || Placement::LOCAL).expect("there is memory");
        assert!(self.phys.is_locked(pfn));
        assert_eq!(self.phys.index(pfn), Pgoff(index));
        self.phys.unlock(cx, pfn);
        self.phys.put(cx, pfn);
        pfn
    }

    /// Truncates; what left, by first frame and number.
    fn truncate(&self, cx: &Cx<'_>, range: std::ops::Range<u64>) -> Vec<(Pfn, u64)> {
        let mut left = Vec::new();
        self.pages.truncate(cx, range, &mut |pfn, pages| left.push((pfn, pages)));
        left
    }

    fn cached(&self) -> usize {
        self.pages.peek_range(0..u64::MAX, usize::MAX).len()
    }
}

fn with(test: impl FnOnce(&Cx<'_>, &Cache)) {
    Sim::sequential().solo(|cx| test(cx, &Cache::new(cx, 64 << 20)));
}

#[test]
fn a_folio_comes_and_goes_as_one() {
    with(|cx, cache| {
        let pfn = cache.touch(cx, 515);
        assert_eq!((pfn.0 % PAGES_PER_PMD, cache.cached()), (3, 512));
        assert_eq!((cache.touch(cx, 1023), cache.phys.is_large(pfn)), (pfn + 508, true));
        assert_eq!(cache.truncate(cx, 512..1024), [(Pfn(pfn.0 - 3), 512)]);
        assert_eq!((cache.cached(), cache.phys.used_frames()), (0, 0));
        // The frames are together again.
        assert_eq!(cache.touch(cx, 0), Pfn(pfn.0 - 3));
    });
}

#[test]
fn a_part_that_goes_splits_the_folio() {
    with(|cx, cache| {
        let head = cache.touch(cx, 0);
        assert_eq!(cache.truncate(cx, 3..5), [(head + 3, 1), (head + 4, 1)]);
        assert_eq!((cache.cached(), cache.phys.used_frames()), (510, 510));
        assert!(!cache.phys.is_large(head) && !cache.phys.is_locked(head + 9));
        // One page of it is there: what comes back is small.
        let new = cache.touch(cx, 3);
        assert!(!cache.phys.is_large(new));
        assert_eq!(cache.truncate(cx, 0..512).len(), 511);
        assert_eq!(cache.phys.used_frames(), 0);
    });
}

#[test]
fn a_file_with_a_page_or_a_host_without_memory_gets_small_ones() {
    with(|cx, cache| {
        let small = cache.pages.find_or_create(cx, Pgoff(7)).unwrap();
        cache.phys.unlock(cx, small);
        cache.phys.put(cx, small);
        assert!(!cache.phys.is_large(cache.touch(cx, 8)));
        assert!(cache.phys.is_large(cache.touch(cx, 600)));
    });
    Sim::sequential().solo(|cx| {
        let cache = Cache::new(cx, 2 << 20);
        assert!(!cache.phys.is_large(cache.touch(cx, 0)));
    });
}

#[test]
fn look_ups_and_truncations_meet() {
    let by_priority = Chooser::Pct(Box::new(Pct::new(3, 4000)));
    let mut sims = [Sim::new(Chooser::Random(Random::new())), Sim::new(by_priority)];
    let mut sizes = std::collections::BTreeSet::new();
    for seed in 0..SEEDS {
        let sim = &mut sims[seed as usize % 2];
        let config = Config { seed, steps_max: 100_000, ..Config::default() };
        let (cache, verdict) = sim.execute(&config, |cx| {
            let cache = Arc::new(Cache::new(cx, 64 << 20));
            cache.touch(cx, 0);
            for (name, index) in [("one", 510), ("two", 512)] {
                let cache = Arc::clone(&cache);
                cx.spawn(name, move |cx| {
                    cache.touch(cx, index);
                    cache.touch(cx, index + 1);
                });
            }
            // A part of a folio that is there, and of one that may come meanwhile: so few pages that a look-up can come after each.
            let cache_of_hole = Arc::clone(&cache);
            cx.spawn("hole", move |cx| {
                cache_of_hole.truncate(cx, 510..514);
            });
            cache
        });
        assert_eq!(verdict, Verdict::Completed, "seed {seed}: {verdict}");
        let cache = Arc::into_inner(cache).expect("every task is done");
        sim.solo(|cx| {
            assert!(cache.pages.check().is_empty(), "seed {seed}");
            assert_eq!(cache.phys.used_frames(), cache.cached() as u64, "seed {seed}: frames that are in no cache");
            sizes.insert(cache.cached());
            cache.truncate(cx, 0..u64::MAX);
            assert_eq!(cache.phys.used_frames(), 0, "seed {seed}");
        });
    }
    assert!(sizes.len() > 2, "several orders came out: {sizes:?}");
}
