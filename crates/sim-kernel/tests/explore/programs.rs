//! Random small programs over all primitives, made from a seed.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use sim_kernel::Cx;
use sim_kernel::explore::{Judgement, Program};
use sim_kernel::sched::{Sim, TaskId, Verdict};
use sim_kernel::sync::{Atomic64, Mutex, RwLock, Srcu, Until, WaitQueue, call_rcu, rcu_read_lock, synchronize_rcu};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One statement of a task.
#[derive(Clone, Debug)]
pub(crate) enum Stmt {
    Load(usize),
    Store(usize, u64),
    /// Adds without looking.
    Add(usize),
    FetchAdd(usize),
    Cmpxchg(usize, u64, u64),
    Lock(usize, Vec<Stmt>),
    TryLock(usize, Vec<Stmt>),
    Read(Vec<Stmt>),
    Write(Vec<Stmt>),
    /// Takes the lock for writing and lets go of it if somebody waits.
    WriteRelaxed(Vec<Stmt>),
    /// The same for reading, if a writer waits.
    ReadRelaxed(Vec<Stmt>),
    Srcu(Vec<Stmt>),
    SrcuSync,
    Rcu(Vec<Stmt>),
    RcuSync,
    RcuCall,
    /// Sleeps until a word is at least so much.
    Wait(usize, u64),
    /// Sleeps until somebody has given something away, and takes it.
    WaitTold,
    /// Gives something away; the flag says whether whoever waits for it is woken, too.
    Give(bool),
    Wake,
    Signal(u8),
    Pending,
    /// Spins until a word is this.
    Spin(usize, u64),
    /// Fails if the word is this.
    AssertNot(usize, u64),
    Spawn(Vec<Stmt>),
    Yield,
}

/// Which statements a program may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    Words,
    Locks,
    TryLocks,
    Rwlocks,
    Sleepers,
    Spinners,
    Rcu,
    Yielders,
    Takers,
    Everything,
}

impl Flavour {
    pub(crate) const ALL: [Flavour; 10] = [
        Flavour::Words,
        Flavour::Locks,
        Flavour::TryLocks,
        Flavour::Rwlocks,
        Flavour::Sleepers,
        Flavour::Spinners,
        Flavour::Rcu,
        Flavour::Yielders,
        Flavour::Takers,
        Flavour::Everything,
    ];
}

/// A generated program.
#[derive(Clone, Debug)]
pub(crate) struct Generated {
    tasks: Vec<Vec<Stmt>>,
}

struct Generator {
    rng: Pcg64Mcg,
    flavour: Flavour,
    left: u32,
}

impl Generator {
    fn block(&mut self, depth: u32, most: u32) -> Vec<Stmt> {
        let n = self.rng.random_range(1..=most);
        (0..n).map_while(|_| self.stmt(depth)).collect()
    }

    fn stmt(&mut self, depth: u32) -> Option<Stmt> {
        self.left = self.left.checked_sub(1)?;
        let word = self.rng.random_range(0..2);
        let value = self.rng.random_range(1..3);
        let lock = self.rng.random_range(0..2);
        let plain = match self.rng.random_range(0..10) {
            0..3 => Stmt::Load(word),
            3..6 => Stmt::Store(word, value),
            6 => Stmt::Add(word),
            7 => Stmt::FetchAdd(word),
            8 => Stmt::Cmpxchg(word, self.rng.random_range(0..2), value),
            _ => Stmt::AssertNot(word, value),
        };
        if depth == 0 || self.rng.random_bool(0.4) {
            return Some(plain);
        }
        let flavour = match self.flavour {
            Flavour::Everything => Flavour::ALL[self.rng.random_range(0..9)],
            other => other,
        };
        Some(match flavour {
            Flavour::Words | Flavour::Everything => plain,
            Flavour::Locks => Stmt::Lock(lock, self.block(depth - 1, 2)),
            Flavour::TryLocks if self.rng.random_bool(0.5) => Stmt::TryLock(lock, self.block(depth - 1, 2)),
            Flavour::TryLocks => Stmt::Lock(lock, self.block(depth - 1, 2)),
            Flavour::Rwlocks => match self.rng.random_range(0..6) {
                0..3 => Stmt::Read(self.block(depth - 1, 2)),
                3..5 => Stmt::Write(self.block(depth - 1, 2)),
                _ => Stmt::WriteRelaxed(self.block(depth - 1, 1)),
            },
            Flavour::Yielders => match self.rng.random_range(0..6) {
                0..2 => Stmt::ReadRelaxed(self.block(depth - 1, 2)),
                2..4 => Stmt::Write(self.block(depth - 1, 2)),
                4 => Stmt::Read(self.block(depth - 1, 1)),
                _ => Stmt::WriteRelaxed(self.block(depth - 1, 1)),
            },
            Flavour::Takers => match self.rng.random_range(0..6) {
                0..2 => Stmt::WaitTold,
                2..4 => Stmt::Give(true),
                4 => Stmt::Give(false),
                _ => Stmt::Wake,
            },
            Flavour::Sleepers => match self.rng.random_range(0..8) {
                0..2 => Stmt::Wait(word, 1),
                2..4 => Stmt::Wake,
                4 => Stmt::Signal(self.rng.random_range(1..3)),
                5 => Stmt::Pending,
                6 => Stmt::Yield,
                _ => Stmt::Spawn(self.block(0, 2)),
            },
            Flavour::Spinners => Stmt::Spin(word, self.rng.random_range(0..3)),
            Flavour::Rcu => match self.rng.random_range(0..7) {
                0..2 => Stmt::Srcu(self.block(depth - 1, 2)),
                2 => Stmt::SrcuSync,
                3..5 => Stmt::Rcu(self.block(0, 2)),
                5 => Stmt::RcuSync,
                _ => Stmt::RcuCall,
            },
        })
    }
}

impl Generated {
    /// The program number `seed` of a flavour.
    pub(crate) fn new(flavour: Flavour, seed: u64) -> Generated {
        let mut generator = Generator { rng: Pcg64Mcg::seed_from_u64(seed), flavour, left: 0 };
        let tasks = generator.rng.random_range(2..=3);
        // Small enough for a search without reduction.
        let most = if tasks == 2 { 4 } else { 3 };
        let tasks = (0..tasks)
            .map(|_| {
                generator.left = most;
                generator.block(2, 3)
            })
            .collect();
        Generated { tasks }
    }
}

/// What the tasks of an execution share, and what they saw.
pub(crate) struct Shared {
    words: [Atomic64; 2],
    mutexes: [Mutex<()>; 2],
    rwlock: RwLock<()>,
    srcu: Srcu,
    queue: WaitQueue,
    /// What was given away and not taken yet; no step is about it alone.
    given: AtomicU64,
    takers: WaitQueue,
    called: Arc<AtomicU64>,
    seen: std::sync::Mutex<Vec<String>>,
}

impl Shared {
    fn saw(&self, me: usize, what: std::fmt::Arguments<'_>) {
        let mut seen = self.seen.lock().unwrap();
        if seen.len() <= me {
            seen.resize(me + 1, String::new());
        }
        write!(seen[me], " {what}").unwrap();
    }
}

fn run(cx: &Cx<'_>, shared: &Arc<Shared>, me: usize, block: &[Stmt]) {
    for stmt in block {
        match stmt {
            Stmt::Load(w) => shared.saw(me, format_args!("{}", shared.words[*w].load(cx))),
            Stmt::Store(w, v) => shared.words[*w].store(cx, *v),
            Stmt::Add(w) => shared.words[*w].add(cx, 1),
            Stmt::FetchAdd(w) => shared.saw(me, format_args!("{}", shared.words[*w].fetch_add(cx, 1))),
            Stmt::Cmpxchg(w, old, new) => {
                shared.saw(me, format_args!("{:?}", shared.words[*w].cmpxchg(cx, *old, *new)));
            }
            Stmt::Lock(m, body) => {
                let _guard = shared.mutexes[*m].lock(cx);
                run(cx, shared, me, body);
            }
            Stmt::TryLock(m, body) => {
                let guard = shared.mutexes[*m].try_lock(cx);
                shared.saw(me, format_args!("{}", guard.is_some()));
                if guard.is_some() {
                    run(cx, shared, me, body);
                }
            }
            Stmt::Read(body) => {
                let _guard = shared.rwlock.read(cx);
                run(cx, shared, me, body);
            }
            Stmt::Write(body) => {
                let _guard = shared.rwlock.write(cx);
                run(cx, shared, me, body);
            }
            Stmt::WriteRelaxed(body) => {
                let mut guard = shared.rwlock.write(cx);
                run(cx, shared, me, body);
                let needs_break = guard.needs_break();
                shared.saw(me, format_args!("{needs_break}"));
                if needs_break {
                    guard.relax();
                }
            }
            Stmt::ReadRelaxed(body) => {
                let mut guard = shared.rwlock.read(cx);
                run(cx, shared, me, body);
                let needs_break = guard.needs_break();
                shared.saw(me, format_args!("{needs_break}"));
                if needs_break {
                    guard.relax();
                }
            }
            Stmt::WaitTold => {
                shared.takers.wait_event_told(cx, || shared.given.load(Ordering::Relaxed) > 0);
                let left = shared.given.fetch_sub(1, Ordering::Relaxed) - 1;
                shared.takers.condition_changes(cx);
                shared.saw(me, format_args!("left {left}"));
            }
            Stmt::Give(wakes) => {
                cx.cond_resched();
                shared.given.fetch_add(1, Ordering::Relaxed);
                shared.takers.condition_changes(cx);
                if *wakes {
                    shared.takers.wake_up_all(cx);
                }
            }
            Stmt::Srcu(body) => {
                let _section = shared.srcu.read(cx);
                run(cx, shared, me, body);
            }
            Stmt::SrcuSync => shared.srcu.synchronize(cx),
            Stmt::Rcu(body) => {
                let _section = rcu_read_lock(cx);
                run(cx, shared, me, body);
            }
            Stmt::RcuSync => synchronize_rcu(cx),
            Stmt::RcuCall => {
                let called = Arc::clone(&shared.called);
                call_rcu(cx, move || {
                    called.fetch_add(1, Ordering::Relaxed);
                });
            }
            Stmt::Wait(w, v) => shared.queue.wait_event(cx, || shared.words[*w].peek() >= *v),
            Stmt::Spin(w, v) => drop(shared.words[*w].wait_until(cx, Until::Equal(*v))),
            Stmt::Wake => shared.queue.wake_up_all(cx),
            Stmt::Signal(task) => cx.send_signal(TaskId(*task)),
            Stmt::Pending => shared.saw(me, format_args!("{}", cx.signal_pending())),
            Stmt::AssertNot(w, v) => {
                if shared.words[*w].load(cx) == *v {
                    // As a failed assertion, without a line on the terminal for each.
                    std::panic::resume_unwind(Box::new(format!("assertion: word {w} is {v}")));
                }
            }
            Stmt::Spawn(body) => {
                let (inner, body) = (Arc::clone(shared), body.clone());
                cx.spawn("child", move |cx| run(cx, &inner, cx.task().index(), &body));
            }
            Stmt::Yield => cx.cond_resched(),
        }
    }
}

impl Program for Generated {
    type State = Arc<Shared>;

    fn setup(&self, cx: &Cx<'_>) -> Arc<Shared> {
        let shared = Arc::new(Shared {
            words: ["x", "y"].map(|name| Atomic64::new(cx, name, 0)),
            mutexes: ["a", "b"].map(|name| Mutex::new(cx, name, ())),
            rwlock: RwLock::new(cx, "rwlock", ()),
            srcu: Srcu::new(cx, "srcu"),
            queue: WaitQueue::new(cx, "queue"),
            given: AtomicU64::new(0),
            takers: WaitQueue::new(cx, "takers"),
            called: Arc::default(),
            seen: std::sync::Mutex::default(),
        });
        for (n, block) in self.tasks.iter().enumerate() {
            let (shared, block) = (Arc::clone(&shared), block.clone());
            cx.spawn(["a", "b", "c"][n], move |cx| run(cx, &shared, cx.task().index(), &block));
        }
        shared
    }

    fn judge(&self, _sim: &mut Sim, shared: Arc<Shared>, verdict: &Verdict) -> Judgement {
        let seen = || shared.seen.lock().unwrap().join(" |");
        let words = || format!("{} {}", shared.words[0].peek(), shared.words[1].peek());
        Judgement::outcome(match verdict {
            Verdict::Completed => {
                let called = shared.called.load(Ordering::Relaxed);
                format!("{} called {called}:{}", words(), seen())
            }
            Verdict::Deadlock(deadlock) => format!("{} {deadlock}:{}", words(), seen()),
            // What the others had done by then is not the failed task's.
            Verdict::Panicked { task, message } => format!("{task}: {message}"),
            other => panic!("{other}"),
        })
    }
}
