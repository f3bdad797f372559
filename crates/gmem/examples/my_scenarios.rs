//! Scenarios drawn by a swarm against a kernel with a rule switched off: what fails is made small, keeps its interleaving, and is printed with the
//! command that replays it.
//!
//! Run with `cargo run -p gmem --example my_scenarios --features proptest [MUTANT]`, with any id of `docs/mutants.md`.

use gmem::scenario::Scenario;
use gmem::testing::{race, swarm};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

/// Scenarios that are drawn.
const CASES: u32 = 400;
/// Interleavings of each.
const EXECUTIONS: u64 = 40;

/// Two threads: one where the guest writes, one that takes memory away.
fn scenarios() -> impl Strategy<Value = Scenario> {
    let guest = &["guest_write", "guest_read", "guest_rmw"];
    let vmm = &["fallocate", "set_memory_attributes", "madvise", "set_user_memory_region2"];
    let drawn = swarm::swarm().prop_flat_map(|swarm| {
        let guest = prop::collection::vec(swarm.ground.ops(guest), 1..=3);
        let vmm = prop::collection::vec(swarm.ground.ops(vmm), 1..=3);
        (Just(swarm), guest, vmm)
    });
    drawn.prop_map(|(swarm, guest, vmm)| swarm.scenario(vec![guest, vmm]))
}

/// The first failure, if there is one.
fn find(mutant: Option<&str>) -> Option<String> {
    let mutant = mutant.map(|id| gmem::mutants::named(id).unwrap_or_else(|problem| panic!("{problem}")).mutant);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    // The search makes failures small itself, and keeps the interleaving, which proptest knows nothing of.
    let result = runner.run(&scenarios().no_shrink(), |mut scenario| {
        if let Some(mutant) = mutant {
            scenario.machine.mutants = scenario.machine.mutants.with(mutant);
        }
        match race::search(&scenario, 0, EXECUTIONS) {
            Some(failure) => Err(TestCaseError::fail(failure.to_string())),
            None => Ok(()),
        }
    });
    match result {
        Ok(()) => None,
        Err(TestError::Fail(report, _)) => Some(report.to_string()),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

fn main() {
    let mutant = std::env::args().nth(1).unwrap_or_else(|| "RC-01".to_string());
    match find(Some(&mutant)) {
        Some(report) => println!("without the rule of {mutant}:\n\n{report}"),
        None => println!("without the rule of {mutant}, {CASES} scenarios show nothing"),
    }
}

#[test]
fn a_rule_that_is_missing_is_found_and_a_whole_kernel_is_clean() {
    let report = find(Some("RC-01")).expect("the sequence number is needed");
    assert!(report.contains("gmem run generated.toml --schedule gmem1:"), "{report}");
    assert_eq!(find(None), None);
}
