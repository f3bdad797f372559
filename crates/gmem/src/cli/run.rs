//! `gmem run`: reads a scenario and hands it to the simulator.

use std::io::Write;

use super::args;
use super::output::whole_file;
use super::{Backend, RunOptions};
use crate::{Status, scenario, source};

pub(super) fn run(
    args: &args::Run,
    backend: &dyn Backend,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Status> {
    let name = args.scenario.display().to_string();
    let source = source::text(&args.scenario).map_err(anyhow::Error::msg)?;
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
    let options = RunOptions { file: name, seed: args.seed, strategy: args.strategy, schedule, kernel: args.kernel };
    match &args.log {
        None => backend.run(&scenario, &options, out, None),
        Some(path) => whole_file(path, |log| backend.run(&scenario, &options, out, Some(log))),
    }
}
