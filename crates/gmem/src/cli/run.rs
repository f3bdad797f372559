//! `gmem run`: reads a scenario and hands it to the simulator.

use std::fs;
use std::io::Write;

use anyhow::Context;

use super::args;
use super::output::whole_file;
use super::{Backend, RunOptions};
use crate::{Status, mutants, scenario};

pub(super) fn run(
    args: &args::Run,
    backend: &dyn Backend,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Status> {
    let name = args.scenario.display().to_string();
    let bytes = fs::read(&args.scenario).with_context(|| format!("cannot read {name}"))?;
    let source = match String::from_utf8(bytes) {
        Ok(source) => source,
        Err(error) => {
            let (line, column) = place(error.as_bytes(), error.utf8_error().valid_up_to());
            let byte = error.as_bytes()[error.utf8_error().valid_up_to()];
            anyhow::bail!("{name}:{line}:{column}: expected UTF-8 text, found the byte {byte:#04x}");
        }
    };
    let mut scenario = match scenario::parse(&name, &source) {
        Ok(scenario) => scenario,
        Err(diagnostic) => {
            complain(&diagnostic.render(true));
            return Ok(Status::BadInput);
        }
    };
    let schedule = match args.schedule.as_deref().map(str::parse).transpose() {
        Ok(schedule) => schedule,
        Err(error) => anyhow::bail!("--schedule: {error}"),
    };
    if let Some(kernel) = args.kernel {
        scenario.machine.kernel = kernel;
    }
    let mut mutants = Vec::new();
    for id in &args.mutant {
        let info = mutants::named(id).map_err(|problem| anyhow::anyhow!("--mutant: {problem}"))?;
        scenario.machine.mutants = scenario.machine.mutants.with(info.mutant);
        mutants.push(info.id());
    }
    let (seed, strategy, kernel) = (args.seed, args.strategy, args.kernel);
    let options = RunOptions { file: name, seed, strategy, schedule, kernel, mutants };
    match &args.log {
        None => backend.run(&scenario, &options, out, None),
        Some(path) => whole_file(path, |log| backend.run(&scenario, &options, out, Some(log))),
    }
}

/// Line and column of a byte, in bytes, from 1.
fn place(text: &[u8], at: usize) -> (usize, usize) {
    let before = &text[..at];
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    (before.iter().filter(|byte| **byte == b'\n').count() + 1, at - line_start + 1)
}
