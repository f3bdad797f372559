//! Litmus tests: exactly the outcomes that sequential consistency and x86-TSO allow.

use sim_kernel::Cx;
use sim_kernel::explore::{Exploration, Judgement, Options, Program, StrategyKind};
use sim_kernel::sched::{MemoryModel, Sim, Verdict};
use sim_kernel::sync::{Atomic64, Mutex, smp_mb};
use std::collections::BTreeSet;
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
enum Do {
    /// Stores 1.
    Store(usize),
    Load(usize),
    Fence,
    /// Exchanges for 1.
    Xchg(usize),
    /// Takes and releases a lock.
    Lock,
}

/// Tasks of stores and loads; the outcome is what the loads saw, in order of tasks.
struct Litmus(&'static [&'static [Do]]);

struct State {
    words: [Atomic64; 2],
    lock: Mutex<()>,
    seen: std::sync::Mutex<Vec<String>>,
}

impl Program for Litmus {
    type State = Arc<State>;

    fn setup(&self, cx: &Cx<'_>) -> Arc<State> {
        let state = Arc::new(State {
            words: ["x", "y"].map(|name| Atomic64::new(cx, name, 0)),
            lock: Mutex::new(cx, "lock", ()),
            seen: std::sync::Mutex::new(vec![String::new(); self.0.len()]),
        });
        for (me, task) in self.0.iter().enumerate() {
            let state = Arc::clone(&state);
            cx.spawn("task", move |cx| {
                for step in *task {
                    match *step {
                        Do::Store(w) => state.words[w].store(cx, 1),
                        Do::Load(w) => {
                            let value = state.words[w].load(cx);
                            state.seen.lock().unwrap()[me].push_str(&value.to_string());
                        }
                        Do::Fence => smp_mb(cx),
                        Do::Xchg(w) => drop(state.words[w].rmw(cx, |_| 1)),
                        Do::Lock => drop(state.lock.lock(cx)),
                    }
                }
            });
        }
        state
    }

    fn judge(&self, _sim: &mut Sim, state: Arc<State>, verdict: &Verdict) -> Judgement {
        assert_eq!(*verdict, Verdict::Completed);
        let all = self.0.iter().flat_map(|task| task.iter());
        for step in all {
            if let Do::Store(w) | Do::Xchg(w) = step {
                assert_eq!(state.words[*w].peek(), 1, "a store is still in a buffer");
            }
        }
        Judgement::outcome(state.seen.lock().unwrap().concat())
    }
}

fn outcomes(litmus: &Litmus, memory: MemoryModel, kind: StrategyKind) -> BTreeSet<String> {
    let mut exploration = Exploration::new(litmus, kind, 0, Options { memory, ..Options::default() });
    for _ in 0..200_000 {
        if exploration.step().is_none() {
            break;
        }
    }
    assert!(exploration.is_exhausted(), "{kind} on {memory:?} does not end");
    exploration.statistics().outcomes.keys().cloned().collect()
}

#[track_caller]
fn check(litmus: &'static [&'static [Do]], sc: &[&str], tso: &[&str]) {
    let litmus = Litmus(litmus);
    for (memory, expected) in [(MemoryModel::Sc, sc), (MemoryModel::Tso, tso)] {
        for kind in [StrategyKind::Dfs, StrategyKind::Sleep, StrategyKind::Dpor] {
            // Four tasks and their buffers are too much without reduction.
            if kind == StrategyKind::Dfs && memory == MemoryModel::Tso && litmus.0.len() > 2 {
                continue;
            }
            let found = outcomes(&litmus, memory, kind);
            let expected: BTreeSet<String> = expected.iter().map(|s| (*s).to_string()).collect();
            assert_eq!(found, expected, "{kind} on {memory:?}");
        }
    }
}

use Do::{Fence, Load, Lock, Store, Xchg};

#[test]
fn store_buffering() {
    check(&[&[Store(0), Load(1)], &[Store(1), Load(0)]], &["01", "10", "11"], &["00", "01", "10", "11"]);
}

#[test]
fn store_buffering_with_fences_and_locked_operations() {
    let sc = &["01", "10", "11"];
    check(&[&[Store(0), Fence, Load(1)], &[Store(1), Fence, Load(0)]], sc, sc);
    check(&[&[Xchg(0), Load(1)], &[Xchg(1), Load(0)]], sc, sc);
    check(&[&[Store(0), Lock, Load(1)], &[Store(1), Lock, Load(0)]], sc, sc);
    // One fence is not enough.
    check(&[&[Store(0), Fence, Load(1)], &[Store(1), Load(0)]], sc, &["00", "01", "10", "11"]);
}

#[test]
fn message_passing() {
    let both = &["00", "01", "11"];
    check(&[&[Store(0), Store(1)], &[Load(1), Load(0)]], both, both);
}

#[test]
fn load_buffering() {
    let both = &["00", "01", "10"];
    check(&[&[Load(0), Store(1)], &[Load(1), Store(0)]], both, both);
}

#[test]
fn independent_reads_of_independent_writes() {
    // Both readers agree on the order of the stores: 1010 does not exist.
    let all = (0..16).map(|n| format!("{n:04b}")).filter(|s| s != "1010").collect::<Vec<_>>();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    check(&[&[Store(0)], &[Store(1)], &[Load(0), Load(1)], &[Load(1), Load(0)]], &all, &all);
}

#[test]
fn a_task_sees_its_own_stores() {
    check(&[&[Store(0), Load(0)], &[Load(0)]], &["10", "11"], &["10", "11"]);
    // Each sees its own store before the other's: allowed with forwarding only.
    check(
        &[&[Store(0), Load(0), Load(1)], &[Store(1), Load(1), Load(0)]],
        &["1011", "1110", "1111"],
        &["1010", "1011", "1110", "1111"],
    );
}
