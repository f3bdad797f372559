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
        punch-hole: d08600f484b9d70b d08600f484b9d70b d08600f484b9d70b d08600f484b9d70b
        explicit-conversion: eb1e0f87353bff3c eb1e0f87353bff3c eb1e0f87353bff3c eb1e0f87353bff3c
        fault-against-punch: 7eef0774492a9d22 24f45f266062f9f0 166dd96848e45430 780fa85724823db2
        fault-against-conversion: 04a29f584db414a4 4e7969ded64f5d2e 2b1b6e7dd99ddd93 70408a3926b50695
        release-while-faulting: 88d664b604757d79 5484aa568472620d 3b854764fbf47083 5f0de0df4bbf9f48
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
