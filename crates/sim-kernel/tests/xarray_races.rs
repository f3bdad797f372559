//! Readers of an xarray that race a writer: under every kind of schedule, and on threads.

use sim_kernel::Cx;
use sim_kernel::sched::{Chooser, Config, LogLevel, Random, Sim, Verdict, run_native};
use sim_kernel::sync::rcu_read_lock;
use sim_kernel::xarray::{NodeCache, Value, XArray, XaFlags};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

type Array = XArray<Value>;

/// One write.
#[derive(Clone, Copy, Debug)]
enum Write {
    One(u64, Option<u64>),
    Range(u64, u64, Option<u64>),
    Each(u64, u64, Option<u64>),
    Reserve(u64, u64),
}

impl Write {
    fn apply(self, cx: &Cx<'_>, array: &Array) {
        match self {
            Write::One(i, v) => array.store(cx, i, v.map(Value)).map(|_| ()).unwrap(),
            Write::Range(a, b, v) => array.store_range(cx, a, b, v.map(Value)).unwrap(),
            Write::Each(a, b, v) => array.store_each(cx, a, b, v.map(Value)).unwrap(),
            Write::Reserve(a, b) => array.reserve_range(cx, a, b).unwrap(),
        }
    }
}

/// Writes that grow and shrink the tree, free subtrees, replace nodes by entries and entries by nodes, and reuse nodes.
const WRITES: &[Write] = &[
    Write::One(0, Some(1)),
    Write::One(70, Some(2)),
    Write::Range(64, 199, Some(3)),
    Write::One(70, None),
    Write::Each(62, 66, Some(4)),
    Write::Reserve(60, 70),
    Write::Range(0, 4095, Some(5)),
    Write::One(5000, Some(6)),
    Write::Range(0, 63, None),
    Write::Each(60, 71, Some(7)),
    Write::Range(64, 127, Some(8)),
    Write::Range(0, 8191, None),
    Write::Each(0, 3, Some(9)),
    Write::One(300_000, Some(10)),
    Write::Range(0, 4095, None),
    Write::One(300_000, None),
    Write::One(0, Some(11)),
];

const PROBES: &[u64] = &[0, 1, 62, 64, 70, 100, 198, 4095, 5000, 300_000];

/// What each probe reads after each number of writes.
fn history() -> Vec<Vec<Option<Value>>> {
    Sim::sequential().solo(|cx| {
        let array = Array::new(cx, "xa");
        let read = |array: &Array| PROBES.iter().map(|&i| array.peek(i)).collect::<Vec<_>>();
        let mut states = vec![read(&array)];
        for write in WRITES {
            write.apply(cx, &array);
            states.push(read(&array));
        }
        states
    })
}

/// The writer's progress, as the readers see it.
#[derive(Default)]
struct Progress {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

struct Race {
    array: Array,
    progress: Progress,
    history: Vec<Vec<Option<Value>>>,
}

impl Race {
    fn new(cx: &Cx<'_>, flags: XaFlags) -> Arc<Race> {
        let array = XArray::new_in(cx, "xa", &Arc::new(NodeCache::new()), flags);
        Arc::new(Race { array, progress: Progress::default(), history: history() })
    }

    fn write_all(&self, cx: &Cx<'_>) {
        for write in WRITES {
            self.progress.begun.fetch_add(1, Ordering::SeqCst);
            write.apply(cx, &self.array);
            self.progress.ended.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Reads a probe: the value must be one that stood there at some time during the read.
    fn read(&self, cx: &Cx<'_>, probe: usize) {
        let from = self.progress.ended.load(Ordering::SeqCst);
        let value = self.array.load(cx, PROBES[probe]);
        let to = self.progress.begun.load(Ordering::SeqCst);
        let fits = (from..=to).any(|n| self.history[n][probe] == value);
        assert!(fits, "{:#x} reads {value:?} between write {from} and {to}", PROBES[probe]);
    }

    /// Searches: whatever is found stood there at some time.
    fn search(&self, cx: &Cx<'_>) {
        let from = self.progress.ended.load(Ordering::SeqCst);
        let mut last = None;
        for (index, value) in self.array.iter(cx, 0, u64::MAX) {
            assert!(last.is_none_or(|last| last < index), "{index:#x} comes after {last:x?}");
            last = Some(index);
            let to = self.progress.begun.load(Ordering::SeqCst);
            if let Some(probe) = PROBES.iter().position(|&p| p == index) {
                let fits = (from..=to).any(|n| self.history[n][probe] == Some(value));
                assert!(fits, "a search finds {value:?} at {index:#x} between write {from} and {to}");
            }
        }
    }
}

/// Runs a race of two readers and a writer under many seeds; the first failure, if any.
fn first_failure(flags: XaFlags, seeds: u64) -> Option<(u64, String)> {
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    for seed in 0..seeds {
        let config = Config { seed, steps_max: 1_000_000, log: LogLevel::Off, ..Config::default() };
        let (race, verdict) = sim.execute(&config, |cx| {
            let race = Race::new(cx, flags);
            let writer = Arc::clone(&race);
            cx.spawn("writer", move |cx| writer.write_all(cx));
            for reader in 0..2 {
                let race = Arc::clone(&race);
                cx.spawn("reader", move |cx| {
                    for n in 0..30 {
                        race.read(cx, (n * 7 + reader * 3 + seed as usize) % PROBES.len());
                        if n % 10 == 0 {
                            race.search(cx);
                        }
                    }
                });
            }
            race
        });
        if verdict != Verdict::Completed {
            return Some((seed, verdict.to_string()));
        }
        assert!(race.array.check().is_empty(), "seed {seed}: {:?}", race.array.check());
        assert_eq!(race.array.cache().allocated() as u64, race.array.node_count(), "every grace period has ended");
    }
    None
}

#[test]
fn readers_see_only_what_stood_there() {
    assert_eq!(first_failure(XaFlags::empty(), 400), None);
    assert_eq!(first_failure(XaFlags::FINE_GRAINED, 800), None);
}

#[test]
fn without_a_grace_period_readers_walk_freed_nodes() {
    let (seed, message) =
        first_failure(XaFlags::FINE_GRAINED | XaFlags::MUTANT_FREE_AT_ONCE, 400).expect("a bug to find");
    assert!(message.contains("freed node") || message.contains("reads"), "seed {seed}: {message}");
}

/// The re-check of the page cache: between two looks at a slot its node is replaced.
fn slot_seems_unchanged(flags: XaFlags) -> bool {
    let stale = Arc::new(AtomicBool::new(false));
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    for seed in 0..100 {
        let (_, verdict) = sim.execute(&Config { seed, ..Config::default() }, |cx| {
            let array: Arc<Array> = Arc::new(XArray::new_in(cx, "i_pages", &Arc::new(NodeCache::new()), flags));
            array.store(cx, 3, Some(Value(1))).unwrap();
            array.store(cx, 9, Some(Value(1))).unwrap();
            let replaced = Arc::new(AtomicBool::new(false));
            let (writer, flag) = (Arc::clone(&array), Arc::clone(&replaced));
            cx.spawn("writer", move |cx| {
                writer.store_range(cx, 0, 63, Some(Value(2))).unwrap();
                flag.store(true, Ordering::Relaxed);
            });
            let stale = Arc::clone(&stale);
            cx.spawn("reader", move |cx| {
                let place = array.locate(cx, 3);
                let same = place.is_unchanged();
                if same && place.entry() == Some(Value(1)) && replaced.load(Ordering::Relaxed) {
                    stale.store(true, Ordering::Relaxed);
                }
            });
        });
        assert_eq!(verdict, Verdict::Completed);
    }
    stale.load(Ordering::Relaxed)
}

#[test]
fn entries_of_unlinked_nodes_are_overwritten() {
    assert!(!slot_seems_unchanged(XaFlags::empty()));
    assert!(slot_seems_unchanged(XaFlags::MUTANT_NO_RETRY));
}

#[test]
fn an_entry_that_moved_to_the_head_is_not_read_in_the_old_node() {
    Sim::sequential().solo(|cx| {
        let array = Array::new(cx, "xa");
        array.store(cx, 0, Some(Value(1))).unwrap();
        array.store(cx, 5, Some(Value(1))).unwrap();
        let place = array.locate(cx, 0);
        array.erase(cx, 5);
        array.store(cx, 0, Some(Value(2))).unwrap();
        assert_eq!((array.node_count(), place.is_unchanged()), (0, false));
    });
}

#[test]
fn nodes_wait_for_the_readers_that_may_be_in_them() {
    let mut sim = Sim::sequential();
    sim.solo(|cx| {
        let cache = Arc::new(NodeCache::new());
        let array: Array = XArray::new_in(cx, "xa", &cache, XaFlags::empty());
        array.store(cx, 5, Some(Value(1))).unwrap();
        let reader = rcu_read_lock(cx);
        array.erase(cx, 5);
        assert_eq!((cache.used(), cache.allocated()), (0, 1));
        array.store(cx, 5, Some(Value(1))).unwrap();
        assert_eq!((cache.used(), cache.allocated()), (1, 2), "the old node is not reused");
        drop(reader);
        assert_eq!((cache.used(), cache.allocated()), (1, 1));
    });
}

#[test]
fn threads_race_too() {
    for _ in 0..5 {
        run_native(|cx| {
            let race = Race::new(cx, XaFlags::empty());
            let done = Arc::new(AtomicBool::new(false));
            for reader in 0..3 {
                let (race, done) = (Arc::clone(&race), Arc::clone(&done));
                cx.spawn("reader", move |cx| {
                    let mut n = reader;
                    while !done.load(Ordering::Relaxed) {
                        // The history repeats, so any state may be seen; but nothing that never was.
                        let probe = n % PROBES.len();
                        let value = race.array.load(cx, PROBES[probe]);
                        assert!(race.history.iter().any(|state| state[probe] == value), "{probe} reads {value:?}");
                        let mut last = None;
                        race.array.for_each_range(cx, 0, 5000, |index, value| {
                            assert!(last.is_none_or(|last| last < index) && (1..=11).contains(&value.0));
                            last = Some(index);
                        });
                        race.array.all_equal(cx, 0, 9000, None);
                        n += 1;
                    }
                });
            }
            for _ in 0..3000 {
                for write in WRITES {
                    write.apply(cx, &race.array);
                }
                race.array.erase_each(cx, 0, u64::MAX);
            }
            done.store(true, Ordering::Relaxed);
            assert!(race.array.check().is_empty());
        });
    }
}
