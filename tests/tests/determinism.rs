//! The same scenario and seed give the same events: on two runs, with one task and with several, in every build profile and on every
//! machine. The hashes below are part of the test: CI checks them in debug and in release builds.

use std::fmt::Write;
use std::path::Path;

use expect_test::expect;
use gmem::runner;
use gmem::scenario::parse;
use sim_kernel::sched::{Chooser, LogLevel, Random};

const SCENARIOS: [&str; 5] =
    ["punch-hole", "explicit-conversion", "fault-against-punch", "fault-against-conversion", "release-while-faulting"];

fn digests() -> String {
    let mut text = String::new();
    for name in SCENARIOS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../scenarios/{name}.toml"));
        let source = std::fs::read_to_string(path).unwrap();
        let scenario = parse(name, &source).unwrap_or_else(|error| panic!("{}", error.render(false)));
        write!(text, "{name}:").unwrap();
        for seed in [0, 1, 42, u64::MAX] {
            let report = runner::run(&scenario, Chooser::Random(Random::new()), seed, LogLevel::Hash);
            assert!(report.verdict.is_completed(), "{name}: {}", report.verdict);
            write!(text, " {:016x}", report.log_digest).unwrap();
        }
        text.push('\n');
    }
    text
}

#[test]
fn same_seed_same_hash_in_every_build() {
    expect![[r#"
        punch-hole: c4bb95d0636e10e3 c4bb95d0636e10e3 c4bb95d0636e10e3 c4bb95d0636e10e3
        explicit-conversion: d69d2fbfd5d20c4c d69d2fbfd5d20c4c d69d2fbfd5d20c4c d69d2fbfd5d20c4c
        fault-against-punch: 57e6045acd223019 559461efa9db9f56 cc1d2abc23262be8 a485dad3303b3700
        fault-against-conversion: a55c06fa554c6986 8c0cd6c576878d09 1be5e629d223fe07 50abc7f748aa8d99
        release-while-faulting: 042fe398bc227a15 8ed276c8c76125ba 9748488874c40fdd 6fd49cd5b07a6c8f
    "#]]
    .assert_eq(&digests());
}

#[test]
fn two_runs_in_one_process_do_not_meet() {
    let first = digests();
    let threads: Vec<_> =
        (0..2).map(|_| std::thread::Builder::new().spawn(digests).expect("the host can start a thread")).collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), first);
    }
}
