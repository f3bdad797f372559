//! `gmem run`: reads a scenario and hands it to the simulator.

use std::fs;
use std::io::Write;

use anyhow::Context;

use super::args;
use super::output::whole_file;
use super::{Backend, RunOptions};
use crate::{Status, scenario};

pub(super) fn run(
    args: &args::Run,
    backend: &dyn Backend,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Status> {
    let name = args.scenario.display().to_string();
    let source = fs::read_to_string(&args.scenario).with_context(|| format!("cannot read {name}"))?;
    let scenario = match scenario::parse(&name, &source) {
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
    let options = RunOptions { file: name, seed: args.seed, strategy: args.strategy, schedule };
    match &args.log {
        None => backend.run(&scenario, &options, out, None),
        Some(path) => whole_file(path, |log| backend.run(&scenario, &options, out, Some(log))),
    }
}
