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
        punch-hole: 500332b8318aa535 500332b8318aa535 500332b8318aa535 500332b8318aa535
        explicit-conversion: 586524bcd3b0f27f 586524bcd3b0f27f 586524bcd3b0f27f 586524bcd3b0f27f
        fault-against-punch: 812ed725fb8e3082 6e45a993bec738d2 7fe76aa951b1f07f bed12e1eba1407d8
        fault-against-conversion: 29c421dbd5391f87 9f84adbcec237443 d301fe98f2ed48c3 4f5159d76c89916f
        release-while-faulting: b58965a7bd1c24b2 9295ff81798220d3 cea0be42e43fbbb3 3c2ea43a4b4db658
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
