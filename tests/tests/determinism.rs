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
fn mm_150_same_seed_same_hash_in_every_build() {
    expect![[r#"
        punch-hole: 505a6eafeaea4860 505a6eafeaea4860 505a6eafeaea4860 505a6eafeaea4860
        explicit-conversion: 7a9b4fe7752b29c0 7a9b4fe7752b29c0 7a9b4fe7752b29c0 7a9b4fe7752b29c0
        fault-against-punch: 6d1cf41ace15db61 9c0146f7a68734e2 8495e6275074079c f3cd06b1dd2ac9b8
        fault-against-conversion: d272aff99d597636 07bcd749d724f1f6 59e6d528cda5e606 26da7162fea6f90c
        release-while-faulting: ae54e797493fd129 559a8fc11f817e63 6746a097288ce348 654935af924104bb
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
