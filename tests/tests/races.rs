//! The race scenarios under many schedules: whatever the order, nothing but an expected outcome comes out, and the same seed
//! gives the same events.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use gmem::runner::{self, RunReport};
use gmem::scenario::{Scenario, parse};
use sim_kernel::sched::{Chooser, LogLevel, Random, Replay, RoundRobin, RunToCompletion};

/// Seeds of each scenario; `.ci/run` runs more with the release build.
const SEEDS: u64 = 40;

/// The scenarios in which threads race.
fn races() -> Vec<Scenario> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let scenario = |path: &std::path::PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        parse(&path.display().to_string(), &text).unwrap_or_else(|error| panic!("{}", error.render(false)))
    };
    let races: Vec<_> = paths.iter().map(scenario).filter(|scenario| scenario.threads.len() > 1).collect();
    assert!(races.len() >= 5, "where are the races?");
    races
}

fn run(scenario: &Scenario, chooser: Chooser, seed: u64) -> RunReport {
    let report = runner::run(scenario, chooser, seed, LogLevel::Hash);
    assert!(report.is_as_expected(), "{} with seed {seed}: {report:#?}", scenario.name);
    report
}

#[test]
fn every_schedule_ends_as_expected() {
    for scenario in races() {
        run(&scenario, Chooser::RoundRobin(RoundRobin), 0);
        run(&scenario, Chooser::RunToCompletion(RunToCompletion), 0);
        let digests: BTreeSet<u64> =
            (0..SEEDS).map(|seed| run(&scenario, Chooser::Random(Random::new()), seed).log_digest).collect();
        assert!(digests.len() > 1, "{}: the seed makes no difference", scenario.name);
    }
}

#[test]
fn the_same_seed_gives_the_same_events() {
    for scenario in races() {
        for seed in 0..5 {
            let first = run(&scenario, Chooser::Random(Random::new()), seed);
            let again = run(&scenario, Chooser::Random(Random::new()), seed);
            let replayed = run(&scenario, Chooser::Replay(Replay::new(first.schedule.clone())), 0);
            assert_eq!(first.log_digest, again.log_digest, "{} with seed {seed}", scenario.name);
            assert_eq!(first.log_digest, replayed.log_digest, "{}, {}", scenario.name, first.schedule);
            assert_eq!(first.steps, replayed.steps, "{}, {}", scenario.name, first.schedule);
        }
    }
}
