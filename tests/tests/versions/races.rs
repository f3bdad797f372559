//! `scenarios/versions`: mistakes that releases really had. Each scenario holds on every release that has the mistake repaired, under
//! every schedule tried; on the others some schedule breaks an invariant or ends in a deadlock.

use gmem::KernelVersion;
use gmem::runner::{self, RunReport};
use gmem::scenario::{Scenario, parse};
use sim_kernel::sched::{Chooser, LogLevel, Random};
use std::path::{Path, PathBuf};

const SEEDS: u64 = 300;

/// A scenario, the releases with the mistake, and what is said of it.
const MISTAKES: [(&str, &str, &[&str], &str); 5] = [
    (
        "V7",
        "bind-past-the-end",
        &["6.8", "6.18", "6.18.44"],
        "INV-306: slot SlotId(0) is bound to pages after the end of its file",
    ),
    ("V9", "close-while-deleting", &["6.8"], "INV-401: slot SlotId(0) is used after it was freed"),
    (
        "V17",
        "huge-mapping-while-converting",
        &["6.8"],
        // INV-209 where the huge leaf is made, or INV-208 where the conversion ends.
        "INV-20",
    ),
    ("V19b", "slot-loses-guest-memfd", &["6.8", "6.18"], "INV-401: slot SlotId(0) is used after it was freed"),
    ("V21", "prefault-while-deleting", &["6.12"], "deadlock: 2 tasks wait for each other"),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/versions")
}

fn scenario(path: &Path) -> (String, Scenario) {
    let source = std::fs::read_to_string(path).unwrap();
    let scenario = parse(&path.display().to_string(), &source);
    (source, scenario.unwrap_or_else(|error| panic!("{}", error.render(false))))
}

fn run(scenario: &Scenario, kernel: KernelVersion, seed: u64) -> RunReport {
    let mut scenario = scenario.clone();
    scenario.machine.kernel = kernel;
    runner::run(&scenario, Chooser::Random(Random::new()), seed, LogLevel::Off)
}

/// Everything that a failed run says.
fn complaints(report: &RunReport) -> String {
    let problems = report.steps.iter().filter_map(|step| step.problem.clone());
    let verdict = (!report.verdict.is_completed()).then(|| report.verdict.to_string());
    problems
        .chain(verdict)
        .chain(report.invariant.clone())
        .chain(report.outcome.clone().err())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn every_scenario_is_of_a_mistake() {
    let mut files: Vec<_> =
        std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    let mut expected: Vec<_> = MISTAKES.iter().map(|(_, name, ..)| format!("{name}.toml")).collect();
    expected.sort();
    assert_eq!(files, expected);
}

#[test]
fn mistakes_show_on_the_releases_that_have_them_and_on_no_other() {
    for (row, name, releases, words) in MISTAKES {
        let (_, scenario) = scenario(&folder().join(format!("{name}.toml")));
        assert!(scenario.teaches.is_some(), "{name} teaches nothing");
        for (release, kernel) in KernelVersion::ALL {
            // Pre-faulting itself is newer than 6.8.
            if row == "V21" && release == "6.8" {
                continue;
            }
            let failed: Vec<_> =
                (0..SEEDS).map(|seed| run(&scenario, kernel, seed)).filter(|report| !report.is_as_expected()).collect();
            if releases.contains(&release) {
                assert!(!failed.is_empty(), "{row}: {name} finds nothing on Linux {release}");
            } else {
                assert!(failed.is_empty(), "{row}: {name} on Linux {release}: {}", complaints(&failed[0]));
            }
            for report in &failed {
                assert!(complaints(report).contains(words), "{row}: {name} on Linux {release}: {}", complaints(report));
            }
        }
    }
}

/// The command that a scenario's first lines name shows the mistake.
#[test]
fn the_commands_in_the_scenarios_show_the_mistakes() {
    for (_, name, ..) in MISTAKES {
        let (source, scenario) = scenario(&folder().join(format!("{name}.toml")));
        let command = source.lines().find(|line| line.contains("gmem run ")).expect("a command");
        let words: Vec<&str> = command.split_whitespace().collect();
        let after = |flag: &str| words.iter().position(|word| *word == flag).map(|at| words[at + 1]);
        let kernel = after("--kernel").unwrap().parse().unwrap();
        let seed = after("--seed").map_or(0, |seed| seed.parse().unwrap());
        assert!(words.contains(&format!("scenarios/versions/{name}.toml").as_str()), "{command}");
        assert!(!run(&scenario, kernel, seed).is_as_expected(), "{command}");
    }
}
