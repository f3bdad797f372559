//! Every scenario under `scenarios/` does what it says, under every strategy and many seeds.

use std::path::{Path, PathBuf};

use gmem::MachineConfig;
use gmem::cli::args::Strategy;
use gmem::kinds::KINDS;
use gmem::runner::{self, RunReport};
use gmem::scenario::{Scenario, parse};
use sim_kernel::sched::{Chooser, LogLevel, Random, Replay};

fn scenarios() -> Vec<(PathBuf, Scenario)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let entries = |folder: PathBuf| std::fs::read_dir(folder).expect("scenarios exist").map(|e| e.unwrap().path());
    let mut paths: Vec<PathBuf> =
        ["", "course", "snp", "tdx", "pkvm", "kinds"].into_iter().flat_map(|sub| entries(folder.join(sub))).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    paths.sort();
    assert!(paths.len() >= 10, "only {} scenarios", paths.len());
    paths
        .into_iter()
        .flat_map(|path| {
            let source = std::fs::read_to_string(&path).unwrap();
            let scenario = parse(&path.display().to_string(), &source);
            let scenario = scenario.unwrap_or_else(|error| panic!("{}", error.render(false)));
            // Those that are the same on every machine, on every machine.
            let kinds = if path.parent().is_some_and(|folder| folder.ends_with("kinds")) { &KINDS[..] } else { &[] };
            let on_kinds = kinds.iter().map(|kind| kind.machine(&scenario.machine).unwrap());
            let machines: Vec<MachineConfig> = on_kinds.collect();
            let machines = if machines.is_empty() { vec![scenario.machine.clone()] } else { machines };
            machines
                .into_iter()
                .map(|machine| (path.clone(), Scenario { machine, ..scenario.clone() }))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn assert_as_expected(path: &Path, how: &str, report: &RunReport) {
    let problems: Vec<_> = report.steps.iter().filter_map(|s| s.problem.as_ref().map(|p| (s.line, p))).collect();
    assert!(
        report.is_as_expected(),
        "{} under {how}: {}, {:?}, {:?}, {problems:?}\n{}",
        path.display(),
        report.verdict,
        report.outcome,
        report.invariant,
        report.schedule
    );
}

#[test]
fn every_scenario_comes_out_as_it_says() {
    for (path, scenario) in scenarios() {
        assert!(scenario.teaches.is_some(), "{} teaches nothing", path.display());
        for strategy in [Strategy::RoundRobin, Strategy::RunToCompletion] {
            let report = runner::run(&scenario, runner::chooser(strategy, None), 0, LogLevel::Off);
            assert_as_expected(&path, &format!("{strategy:?}"), &report);
        }
        for seed in 0..100 {
            let report = runner::run(&scenario, Chooser::Random(Random::new()), seed, LogLevel::Off);
            assert_as_expected(&path, &format!("seed {seed}"), &report);
        }
    }
}

#[test]
fn every_outcome_that_a_race_names_really_comes_out() {
    for (path, scenario) in scenarios() {
        let mut missing: Vec<_> = (0..scenario.outcomes.len()).collect();
        // Where one thread makes many steps and the other few, uniform choices hardly ever let the first one end before the second begins.
        let in_turn =
            [Strategy::RunToCompletion, Strategy::RoundRobin].map(|strategy| (runner::chooser(strategy, None), 0));
        let drawn = (0..3000).map(|seed| (Chooser::Random(Random::new()), seed));
        for (chooser, seed) in in_turn.into_iter().chain(drawn) {
            if missing.is_empty() {
                break;
            }
            let report = runner::run(&scenario, chooser, seed, LogLevel::Off);
            let answer =
                |label: &str| report.steps.iter().find(|s| s.label.as_deref() == Some(label)).map(|s| &s.answer);
            missing.retain(|&i| !scenario.outcomes[i].holds(&answer));
        }
        assert!(missing.is_empty(), "{}: outcomes {missing:?} never came out", path.display());
    }
}

#[test]
fn a_schedule_repeats_a_run_to_the_last_event() {
    for (path, scenario) in scenarios() {
        for seed in 0..5 {
            let first = runner::run(&scenario, Chooser::Random(Random::new()), seed, LogLevel::Full);
            let again = runner::run(&scenario, Chooser::Replay(Replay::new(first.schedule.clone())), 0, LogLevel::Full);
            assert_eq!(first.log, again.log, "{} seed {seed}", path.display());
            assert_eq!(first.log_digest, again.log_digest);
            assert_eq!(first.steps, again.steps);
        }
    }
}
