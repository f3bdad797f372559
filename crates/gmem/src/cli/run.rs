//! `gmem run`: reads a scenario and hands it to the simulator.

use std::io::Write;

use super::args;
use super::input::{ScenarioFile, read_scenario, state_facts, switch_off};
use super::output::whole_file;
use super::{Backend, RunOptions};
use crate::Status;

pub(super) fn run(
    args: &args::Run,
    backend: &dyn Backend,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Status> {
    let Some(ScenarioFile { name, mut scenario, .. }) = read_scenario(&args.scenario, complain)? else {
        return Ok(Status::BadInput);
    };
    let schedule = match args.schedule.as_deref().map(str::parse).transpose() {
        Ok(schedule) => schedule,
        Err(error) => anyhow::bail!("--schedule: {error}"),
    };
    state_facts(&mut scenario, &args.machine)?;
    if let Some(kernel) = args.kernel {
        scenario.machine.kernel = kernel;
    }
    let mutants = switch_off(&mut scenario, &args.mutant)?;
    let (seed, strategy, kernel) = (args.seed, args.strategy, args.kernel);
    let facts = args.machine.clone();
    let options = RunOptions { file: name, seed, strategy, schedule, facts, kernel, mutants };
    if args.pkvm_trace.is_some() && !scenario.machine.pkvm {
        anyhow::bail!("--pkvm-trace: the machine of {} has no pKVM", args.scenario.display());
    }
    scenario.machine.pkvm_trace = args.pkvm_trace.is_some();
    let mut run = |trace: Option<&mut dyn Write>| match &args.log {
        None => backend.run(&scenario, &options, out, None, trace),
        Some(path) => whole_file(path, |log| backend.run(&scenario, &options, out, Some(log), trace)),
    };
    match &args.pkvm_trace {
        None => run(None),
        Some(path) => whole_file(path, |trace| run(Some(trace))),
    }
}
