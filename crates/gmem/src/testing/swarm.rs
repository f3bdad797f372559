//! Swarm testing: every case draws which operations exist for it at all, its machine and how close its threads work together.
//!
//! If every operation may come at every step, few cases do much of one thing: files are closed before anything deep has happened to them. A case
//! that has no `close` gets there, and one that has only four operations repeats them until they meet.

use super::strategies::{self, Ground};
use super::values::{MEMORY, SetUp};
use crate::kvm::config::{KernelVersion, MachineConfig, Thp};
use crate::ops::Op;
use crate::scenario::{Scenario, Step, Thread};
use proptest::collection::vec;
use proptest::prelude::*;
use sim_kernel::Faults;

/// Operations that nearly every case should have, since without them nothing moves.
const USUAL: [&str; 4] = ["guest_write", "guest_read", "set_memory_attributes", "fallocate"];
/// Most of a scenario's operations of one thread. Longer ones are not more interesting, but have more interleavings.
const LONGEST: usize = 5;

/// The features of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swarm {
    /// The machine.
    pub machine: MachineConfig,
    /// How the objects are made that the threads work on.
    pub set_up: SetUp,
    /// How near to each other the threads work.
    pub ground: Ground,
    /// The names of the operations that the threads may do.
    pub enabled: Vec<&'static str>,
}

impl Swarm {
    /// An operation that the case may do.
    pub fn op(&self) -> BoxedStrategy<Op> {
        self.ground.ops(&self.enabled)
    }

    /// The whole scenario around what threads do: on this case's machine, after its set-up.
    ///
    /// # Panics
    /// If there are more threads than a scenario may have.
    pub fn scenario(&self, threads: Vec<Vec<Op>>) -> Scenario {
        assert!(threads.len() <= crate::scenario::THREADS_MAX, "too many threads");
        let steps = |ops: Vec<Op>| ops.into_iter().map(Step::new).collect();
        let threads = (0..).zip(threads).map(|(n, ops)| Thread { name: format!("t{n}"), steps: steps(ops) });
        Scenario {
            name: "generated".into(),
            teaches: None,
            machine: self.machine.clone(),
            setup: steps(self.set_up.ops()),
            threads: threads.collect(),
            finish: Vec::new(),
            outcomes: Vec::new(),
        }
    }
}

/// A machine whose kernel has no known mistake: the newest release, in any configuration that has guest_memfd. With [`kernel`] it gets another.
pub fn machine() -> impl Strategy<Value = MachineConfig> {
    let thp = prop::sample::select(vec![Thp::Always, Thp::Madvise, Thp::Never]);
    let memory = prop_oneof![3 => Just(MachineConfig::default().memory), 2 => prop::sample::select(MEMORY.to_vec())];
    let stage2 = prop::sample::select(vec!["npt", "ept"]);
    (stage2, memory, thp, prop::sample::select(vec![36, 40, 46, 52]), any::<[bool; 2]>()).prop_map(
        |(stage2, memory, transparent_hugepage, maxphyaddr, [smm, eager_page_split])| {
            let mut machine = MachineConfig {
                memory,
                transparent_hugepage,
                maxphyaddr,
                smm,
                eager_page_split,
                ..MachineConfig::default()
            };
            assert!(machine.set_stage2(stage2), "{stage2} is a second stage");
            machine
        },
    )
}

/// Any release that is modelled, with the mistakes that it really had.
pub fn kernel() -> impl Strategy<Value = KernelVersion> {
    prop::sample::select(KernelVersion::ALL.map(|(_, version)| version).to_vec())
}

/// Faults: none most of the time, else some of them, early enough to happen.
pub fn faults() -> impl Strategy<Value = Faults> {
    let nth = || prop_oneof![2 => Just(0), 1 => 1..40u64];
    // Pages are made private less often than frames are allocated.
    let busy = prop_oneof![2 => Just(0), 1 => 1..8u64];
    let some =
        (nth(), nth(), nth(), busy, nth(), 1..4u64).prop_map(|(frame, table, node, busy, signal_step, signal_task)| {
            let signal_task = if signal_step == 0 { 0 } else { signal_task };
            Faults { frame, table, node, busy, signal_step, signal_task, ..Faults::default() }
        });
    prop_oneof![2 => Just(Faults::default()), 1 => some]
}

/// The features of a case.
pub fn swarm() -> impl Strategy<Value = Swarm> {
    let ground = prop_oneof![6 => (1..5u64).prop_map(Ground::narrow), 1 => Just(Ground::WILD)];
    let names = strategies::names();
    let subset = vec(any::<bool>(), names.len()).prop_map(move |coins| {
        let drawn = names.iter().zip(coins).filter(|(_, coin)| *coin).map(|(name, _)| *name);
        drawn.collect::<Vec<_>>()
    });
    let enabled =
        (subset, prop::sample::subsequence(USUAL.to_vec(), 1..=USUAL.len())).prop_map(|(mut names, usual)| {
            for name in usual {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            names
        });
    (machine(), faults(), strategies::set_up(), ground, enabled).prop_map(
        |(machine, faults, set_up, ground, enabled)| Swarm {
            machine: MachineConfig { faults, ..machine },
            set_up,
            ground,
            enabled,
        },
    )
}

/// A scenario of two or three threads, each of one to five operations, that draws its features first.
///
/// ```
/// use gmem::scenario::{parse, print_file};
/// use proptest::prelude::*;
/// use proptest::test_runner::TestRunner;
///
/// TestRunner::deterministic().run(&gmem::testing::swarm::scenario(), |scenario| {
///     let again = parse("generated.toml", &print_file(&scenario)).unwrap();
///     prop_assert_eq!(again.threads.len(), scenario.threads.len());
///     Ok(())
/// }).unwrap();
/// ```
pub fn scenario() -> impl Strategy<Value = Scenario> {
    swarm().prop_flat_map(|swarm| {
        let threads = vec(vec(swarm.op(), 1..=LONGEST), 2..=3);
        threads.prop_map(move |threads| swarm.scenario(threads))
    })
}
