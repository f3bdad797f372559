//! What Linux releases differ in: the rows V1 to V28 of the table in `docs/fidelity.md`, as far as they can be observed.
//!
//! `answers` has programs and what each release answers, `races` scenarios of which old releases break the promise, and `inside` what
//! only a look into the machine shows.

mod answers;
mod inside;
mod races;

use gmem::interp::Sequential;
use gmem::ops::Op;
use gmem::replay::{Executor, Outcome};
use gmem::scenario::parse_line;
use gmem::{KernelVersion, MachineConfig};

/// An operation, written as in a scenario.
fn op(line: &str) -> Op {
    parse_line(line).unwrap_or_else(|error| panic!("{line}: {error:?}")).op
}

/// A machine on which this release runs.
fn machine(kernel: KernelVersion) -> MachineConfig {
    MachineConfig { kernel, ..MachineConfig::default() }
}

/// Runs a program, one operation a line, and returns what came of each.
fn run(machine: &mut Sequential, program: &str) -> Vec<Outcome> {
    let lines = program.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.map(|line| machine.execute(&op(line))).collect()
}

/// How many releases there are: a row of the tests has as many answers, so that none is forgotten when one is added.
const RELEASES: usize = KernelVersion::ALL.len();

/// Each release, by name, with what is expected of it.
fn releases<T>(expected: [T; RELEASES]) -> impl Iterator<Item = ((&'static str, KernelVersion), T)> {
    KernelVersion::ALL.into_iter().zip(expected)
}
