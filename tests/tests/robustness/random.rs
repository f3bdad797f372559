//! The properties.

use gmem::MachineConfig;
use gmem::interp::{Sequential, World};
use gmem::ops::{Answer, Op};
use gmem::replay::{Executor, Outcome};
use gmem::testing::strategies::{self, Ground};
use gmem::testing::values::check_and_end;
use proptest::prelude::*;
use proptest::test_runner::Config as ProptestConfig;
use sim_kernel::sched::{Chooser, Config, LogLevel, Random, Sim, Verdict};
use std::sync::Arc;

/// Performs the operations one after the other.
pub(crate) fn run_sequentially(machine: &MachineConfig, ops: &[Op]) -> Vec<Outcome> {
    let mut executor = Sequential::new(machine.clone());
    let outcomes = ops.iter().map(|op| executor.execute(op)).collect();
    executor.with(check_and_end);
    outcomes
}

/// Performs the set-up, then deals the operations to tasks. Returns all answers in the order in which they came, and the hash of
/// the event log.
pub(crate) fn run_in_tasks(machine: &MachineConfig, set_up: &[Op], tasks: &[Vec<Op>], seed: u64) -> (Vec<Answer>, u64) {
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    let answers: Arc<parking_lot::Mutex<Vec<Answer>>> = Arc::default();
    let config = Config { seed, steps_max: 5_000_000, log: LogLevel::Hash, ..Config::default() };
    let (world, verdict) = sim.execute(&config, |cx| {
        let world = Arc::new(World::watched(cx, machine.clone()));
        for op in set_up {
            world.execute(cx, op);
        }
        for (n, ops) in tasks.iter().enumerate() {
            let (world, answers, ops) = (Arc::clone(&world), Arc::clone(&answers), ops.clone());
            cx.spawn(&format!("task{n}"), move |cx| {
                for op in &ops {
                    let answer = world.execute(cx, op);
                    answers.lock().push(answer);
                }
            });
        }
        world
    });
    assert_eq!(verdict, Verdict::Completed);
    sim.solo(|cx| check_and_end(cx, &world));
    let answers = std::mem::take(&mut *answers.lock());
    (answers, sim.log_digest().expect("the run is hashed"))
}

pub(crate) fn cases(committed: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(committed);
    ProptestConfig { cases, max_shrink_iters: 4000, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn every_program_has_its_answers_and_leaves_nothing_behind(
        machine in strategies::machine(),
        ops in strategies::program(60),
    ) {
        let first = run_sequentially(&machine, &ops);
        prop_assert_eq!(first, run_sequentially(&machine, &ops));
    }

    #[test]
    fn every_interleaving_ends_and_leaves_nothing_behind(
        machine in strategies::machine(),
        set_up in strategies::set_up().prop_map(|set_up| set_up.ops()),
        tasks in prop::collection::vec(prop::collection::vec(Ground::WILD.op(), 1..12), 2..4),
        seed: u64,
    ) {
        let first = run_in_tasks(&machine, &set_up, &tasks, seed);
        prop_assert_eq!(first, run_in_tasks(&machine, &set_up, &tasks, seed));
    }
}
