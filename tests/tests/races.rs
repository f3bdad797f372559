//! The two races that everything rests on, a hundred thousand random schedules each, with every invariant on (INV-201, 203, 208, 301,
//! 303 among them: a violation is a panic), and both orders really seen.

use std::collections::BTreeMap;
use std::fmt::Debug;

use gmem_benches::models::{fault_conversion, fault_punch};
use sim_kernel::sched::{Chooser, Config, Random, Sim};

const SCHEDULES: u64 = 100_000;

fn outcomes<O: Ord + Debug>(run: impl Fn(&mut Sim, &Config) -> O) -> BTreeMap<O, u64> {
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    let mut seen = BTreeMap::new();
    for seed in 0..SCHEDULES {
        *seen.entry(run(&mut sim, &Config { seed, ..Config::default() })).or_default() += 1;
    }
    println!("{seen:?}");
    seen
}

#[test]
fn fault_against_punch() {
    let seen = outcomes(fault_punch::run);
    assert_eq!(seen.len(), 2, "one of the two orders never came out: {seen:?}");
}

#[test]
fn fault_against_conversion() {
    let seen = outcomes(fault_conversion::run);
    assert!(seen.len() >= 3, "too few outcomes came out: {seen:?}");
}
