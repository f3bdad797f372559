//! The recording of a whole run, held against the checker that knows nothing else (`crates/sim-coco/tests/pkvm/discipline.rs`).

#[path = "../../../../sim-coco/tests/pkvm/discipline.rs"]
#[allow(dead_code, reason = "the hypervisor's own tests use more of it")]
mod discipline;

use discipline::Checker;
use gmem::runner;
use gmem::scenario::{Scenario, parse};
use sim_coco::pkvm::mutants::{NO_BBM, NO_TLBI, NO_ZERO};
use sim_kernel::Mutant;
use sim_kernel::sched::{Chooser, LogLevel, Random};
use std::path::{Path, PathBuf};

fn scenarios() -> Vec<(PathBuf, Scenario)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios/pkvm");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let source = std::fs::read_to_string(&path).unwrap();
        let mut scenario =
            parse(&path.display().to_string(), &source).unwrap_or_else(|e| panic!("{}", e.render(false)));
        scenario.machine.pkvm_trace = true;
        (path, scenario)
    };
    paths.into_iter().map(read).collect()
}

fn recorded(scenario: &Scenario, seed: u64) -> String {
    let report = runner::run(scenario, Chooser::Random(Random::new()), seed, LogLevel::Hash);
    report.pkvm_trace.expect("the machine records")
}

#[test]
fn whole_runs_keep_the_discipline_of_stage_2() {
    for (path, scenario) in scenarios() {
        for seed in 0..20 {
            let trace = recorded(&scenario, seed);
            assert!(trace.contains("init_vm"), "{}: a VM was made", path.display());
            let checked = Checker::check(&trace);
            assert_eq!(checked, Ok(()), "{} with seed {seed}", path.display());
        }
    }
}

#[test]
fn the_checker_sees_what_a_run_does_without_a_rule() {
    let broken = |mutant: Mutant| {
        scenarios().into_iter().any(|(_, mut scenario)| {
            scenario.machine.mutants = scenario.machine.mutants.with(mutant);
            (0..20).any(|seed| Checker::check(&recorded(&scenario, seed)).is_err())
        })
    };
    for mutant in [NO_TLBI, NO_BBM, NO_ZERO] {
        assert!(broken(mutant), "{}", mutant.id());
    }
}
