//! `gmem report`: a run, recorded, and a page or a file that shows it.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::Path;

use super::explore::{for_a_shell, mutants_of};
use super::input::{ScenarioFile, machine_arguments, read_scenario, state_facts, switch_off};
use super::interrupt::silence_explorers;
use super::output::{can_be_written, whole_file};
use super::{Backend, RecordOptions, args};
use crate::Status;
use crate::explore::portfolio::Memory;
use crate::explore::report::Origin;
use crate::record::Recording;
use crate::trace::Reader;
use crate::visual::{html, perfetto};

pub(super) fn report(
    args: &args::Report,
    backend: &dyn Backend,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Status> {
    silence_explorers();
    // Before there is anything to lose.
    can_be_written(&args.output)?;
    let recording = if args.input.extension().is_some_and(|extension| extension == "jsonl") {
        of_trace(args, backend)?
    } else {
        match of_scenario(args, backend, complain)? {
            Some(recording) => recording,
            None => return Ok(Status::BadInput),
        }
    };
    let bytes = whole_file(&args.output, |file| {
        let mut counted = Counted { inner: file, bytes: 0 };
        if args.perfetto {
            perfetto::write(&recording, &mut counted)?;
        } else {
            html::write(&recording, &mut counted)?;
        }
        Ok(counted.bytes)
    })?;
    let (name, steps) = (&recording.title, recording.steps.len());
    writeln!(out, "{name}: {steps} steps, events {:016x}", recording.digest)?;
    writeln!(out, "{}", recording.ending)?;
    writeln!(out, "{}: {} KiB", args.output.display(), bytes.div_ceil(1024))?;
    Ok(Status::Success)
}

/// Runs a scenario. `None` if there is a mistake in it, which `complain` was told.
fn of_scenario(
    args: &args::Report,
    backend: &dyn Backend,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Option<Recording>> {
    let Some(ScenarioFile { name, mut scenario, .. }) = read_scenario(&args.input, complain)? else { return Ok(None) };
    let schedule = args.schedule.as_deref().map(str::parse).transpose();
    let schedule = schedule.map_err(|error| anyhow::anyhow!("--schedule: {error}"))?;
    state_facts(&mut scenario, &args.machine)?;
    if let Some(kernel) = args.kernel {
        scenario.machine.kernel = kernel;
    }
    let off = switch_off(&mut scenario, &args.mutant)?;
    let mut command = format!("gmem explore {}", for_a_shell(&name));
    command.push_str(&machine_arguments(&args.machine));
    if let Some(kernel) = args.kernel {
        command.push_str(&format!(" --kernel {kernel}"));
    }
    if args.memory_model != Memory::Sc {
        command.push_str(&format!(" --memory-model {}", args.memory_model));
    }
    for id in off {
        command.push_str(&format!(" --mutant {id}"));
    }
    let origin =
        Origin { memory: args.memory_model, found_by: "report".into(), command, mutants: mutants_of(&scenario) };
    let (seed, strategy, steps_max) = (args.seed, args.strategy, args.steps);
    let options = RecordOptions { seed, strategy, schedule, steps_max, origin };
    backend.record(&scenario, &options).map(Some).map_err(anyhow::Error::msg)
}

/// Performs a trace.
fn of_trace(args: &args::Report, backend: &dyn Backend) -> anyhow::Result<Recording> {
    for (given, option) in [
        (!args.machine.is_empty(), "--machine"),
        (args.schedule.is_some(), "--schedule"),
        (!args.mutant.is_empty(), "--mutant"),
        (args.memory_model != Memory::Sc, "--memory-model"),
    ] {
        anyhow::ensure!(!given, "{option} is for scenarios; a trace is one thread on the kernel that was recorded");
    }
    let file = args.input.display().to_string();
    let input = File::open(&args.input).map_err(|error| anyhow::anyhow!("cannot read {file}: {error}"))?;
    let mut reader = Reader::new(file.clone(), BufReader::new(input)).map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut header = reader.header().clone();
    if let Some(kernel) = args.kernel {
        header.kernel = kernel.to_string();
    }
    let mut next = || {
        let line = reader.next().transpose().map_err(|error| error.to_string())?;
        Ok(line.map(|line| (line.number, line.op)))
    };
    let recorded = backend.record_trace(&header, &mut next).map_err(anyhow::Error::msg)?;
    let stem = Path::new(&file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    Ok(Recording { title: stem.unwrap_or(file), ..recorded })
}

/// Counts what goes through.
struct Counted<'a> {
    inner: &'a mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
