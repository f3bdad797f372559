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
        punch-hole: aba6ea3ee057239a aba6ea3ee057239a aba6ea3ee057239a aba6ea3ee057239a
        explicit-conversion: 3c503cc1ff9952f2 3c503cc1ff9952f2 3c503cc1ff9952f2 3c503cc1ff9952f2
        fault-against-punch: 0ec425cc05dd3b65 b96064f07fb65b4a 56b2a39511371e1c fde0b4410e2df339
        fault-against-conversion: 5460907f902599cd 2540c88559a06c22 779d7a90cf8737fe ea08ffd3710bf46e
        release-while-faulting: 9d142f08c286b081 79458fe577525f24 f06ca1d59867e030 f35a383cdda622fb
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
