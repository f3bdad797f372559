//! `gmem record`, `gmem fuzz-compare`, and the hidden `gmem live-worker` that both start: a real `/dev/kvm`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::args;
use super::output::{can_be_written, error, whole_file};
use crate::Status;
use crate::compare::generate::{self, Abilities};
use crate::compare::{Difference, Pair, Tally, Unrepeated, Verdict, shrink};
use crate::kvm::config::MachineConfig;
use crate::live::worker::{self, Options};
use crate::live::{Limits, LiveMachine, Program, ProgramError, Recording, Starter, record as record_program};
use crate::ops::Op;
use crate::ops::json::recorded_style;
use crate::trace::emit;

/// Attempts to make a difference smaller.
const SHRINK_ATTEMPTS: u32 = 600;

pub(super) fn worker(args: &args::LiveWorker, out: &mut dyn Write) -> anyhow::Result<Status> {
    if args.probe {
        worker::probe(&args.kvm, out)?;
        return Ok(Status::Success);
    }
    let mode = if args.long_mode { live_kvm::GuestMode::Long } else { live_kvm::GuestMode::Protected32 };
    if let Some(pages) = args.bench {
        super::bench::worker(&args.kvm, mode, pages, out)?;
        return Ok(Status::Success);
    }
    worker::serve_stdio(&Options { device: &args.kvm, mode, memory_max: args.memory, cpu_seconds: args.cpu_seconds })?;
    Ok(Status::Success)
}

pub(super) fn record(
    args: &args::Record,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Status> {
    // Everything is read before anything is run: a mistake in the last file must not cost the recordings of the others.
    let mut programs: Vec<(PathBuf, Program)> = Vec::new();
    let mut status = Status::Success;
    for path in &args.programs {
        match Program::read(path) {
            Ok(program) if is_same_file(path, &target(args, &program)) => {
                let message = format!("{}: its recording would take its place; give another folder", path.display());
                complain(&error(&message));
                status = Status::BadInput;
            }
            Ok(program) => match programs.iter().find(|(_, other)| other.name == program.name) {
                Some((other, _)) => {
                    let (path, other) = (path.display(), other.display());
                    complain(&error(&format!("{path}: its recording would be named as that of {other}")));
                    status = Status::BadInput;
                }
                None => programs.push((path.clone(), program)),
            },
            Err(mistake) => {
                complain(&match mistake {
                    ProgramError::Scenario(diagnostic) => diagnostic.render(true),
                    ProgramError::Trace(message) => error(&message),
                });
                status = Status::BadInput;
            }
        }
    }
    if status != Status::Success {
        return Ok(status);
    }
    let starter = Starter::new(&args.kvm)?;
    let machine = starter.probe()?;
    fs::create_dir_all(&args.output).with_context(|| format!("cannot make {}", args.output.display()))?;
    let limits = Limits { memory_max: args.memory, patience: Duration::from_secs(args.timeout), ..Limits::default() };
    for (path, program) in &programs {
        let recording = record_program(program, &starter, &machine, limits)?;
        let target = target(args, program);
        whole_file(&target, |file| Ok(file.write_all(recording.text.as_bytes())?))?;
        let Recording { answered, unanswered, ended, .. } = recording;
        write!(out, "{}: {answered} operations answered", target.display())?;
        if unanswered > 0 {
            write!(out, ", {unanswered} without an answer (see their notes)")?;
        }
        writeln!(out)?;
        if let Some(ended) = ended {
            complain(&error(&format!("{}: {ended}", path.display())));
            status = Status::Found;
        }
    }
    Ok(status)
}

/// Where a program's recording goes.
fn target(args: &args::Record, program: &Program) -> PathBuf {
    args.output.join(format!("{}.jsonl", program.name))
}

/// Whether both paths lead to one file, which is there.
fn is_same_file(one: &Path, other: &Path) -> bool {
    matches!((fs::canonicalize(one), fs::canonicalize(other)), (Ok(one), Ok(other)) if one == other)
}

pub(super) fn fuzz_compare(
    args: &args::FuzzCompare,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Status> {
    // Minutes later would be too late to find out.
    if let Some(path) = &args.output {
        can_be_written(path)?;
    }
    let starter = Starter::new(&args.kvm)?;
    let machine = match starter.probe() {
        Ok(machine) => machine,
        Err(reason) => {
            complain(&error(&format!("there is nothing to compare with: {reason}")));
            return Ok(Status::BadInput);
        }
    };
    let header = machine.header("fuzz-compare", "fuzz");
    let mut config = MachineConfig::from_header(&header).map_err(anyhow::Error::msg)?;
    if let Some(kernel) = args.kernel {
        config.kernel = kernel;
    }
    // Workers give their descriptors back when they end; simulations need no more than they.
    let limits = Limits { patience: Duration::from_secs(args.timeout), ..Limits::default() };
    let abilities = Abilities {
        private_memory: config.has_memory_attributes(),
        shadow_paging: !config.tdp_enabled,
        hypercalls: !machine.long_mode,
        // Without hardware virtualisation such a guest's supervisor is not run, but emulated, as far as that goes.
        guest_paging: !machine.long_mode,
        maxphyaddr: config.maxphyaddr,
    };
    let pair = Pair { starter: &starter, machine: &machine, limits, config };
    #[allow(
        clippy::disallowed_methods,
        reason = "how long to go on is said in seconds; what is done in them is not of them"
    )]
    let begun = Instant::now();
    let mut tally = Tally::default();
    let mut number = args.first;
    let found = loop {
        let enough = match args.programs {
            Some(programs) => tally.programs >= programs,
            None => begun.elapsed() >= Duration::from_secs(args.seconds),
        };
        if enough {
            break None;
        }
        let ops = generate::program(args.seed, number, abilities);
        match pair.run(&ops, &mut tally)? {
            Verdict::Same | Verdict::Refused { .. } => {}
            Verdict::Differs(difference) if repeats(&pair, &ops)? => break Some((ops, *difference)),
            Verdict::Differs(difference) => tally.keep_unrepeated(number, &ops, &difference),
        }
        number = number.wrapping_add(1);
    };
    if args.json {
        let report = serde_json::json!({
            "seed": args.seed,
            "first": args.first,
            "seconds": begun.elapsed().as_secs(),
            "kernel": machine.kernel,
            "model": pair.config.kernel.to_string(),
            "difference": found.is_some(),
            "tally": &tally,
        });
        writeln!(out, "{report}")?;
    } else {
        print_tally(&tally, args, &machine, &pair.config, begun.elapsed(), out)?;
    }
    let Some((mut ops, first)) = found else { return Ok(Status::Success) };
    ops.truncate(first.index + 1);
    complain(&error(&format!("seed {} program {number} differs at operation {}", args.seed, first.index + 1)));
    let mut ignored = Tally::default();
    let small = shrink(ops.clone(), SHRINK_ATTEMPTS, |ops| {
        pair.run(ops, &mut ignored).map(|verdict| match verdict {
            Verdict::Differs(difference) => Some(difference.index + 1),
            Verdict::Same | Verdict::Refused { .. } => None,
        })
    })?;
    // A kernel may answer once so and once otherwise; then the program stays as it was found.
    let (ops, difference) = match pair.run(&small, &mut ignored)? {
        Verdict::Differs(difference) => (small, *difference),
        Verdict::Same | Verdict::Refused { .. } => {
            complain("it did not differ again when it was run once more: the kernel's answer changes from run to run");
            (ops, first)
        }
    };
    let name = format!("fuzz-{}-{number}", args.seed);
    let text = as_trace(&machine, &name, &ops, &difference);
    match &args.output {
        Some(path) => {
            if let Err(failure) = whole_file(path, |file| Ok(file.write_all(text.as_bytes())?)) {
                complain(&text);
                return Err(failure);
            }
            writeln!(out, "the smallest program found, with the kernel's answers: {}", path.display())?;
        }
        None if args.json => complain(&text),
        None => write!(out, "\nthe smallest program found, with the kernel's answers:\n\n{text}")?,
    }
    complain(&error(&format!("line {}: the simulator {}", difference.index + 2, difference.of_simulator())));
    if let Some(error) = &difference.live_error {
        complain(&super::output::error(&format!("the real kernel: {error}")));
    }
    Ok(Status::Found)
}

/// Whether the program differs once more. It gets two chances.
fn repeats(pair: &Pair<'_>, ops: &[Op]) -> anyhow::Result<bool> {
    let mut ignored = Tally::default();
    for _ in 0..2 {
        if matches!(pair.run(ops, &mut ignored)?, Verdict::Differs(_)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The program as a trace, up to the difference.
fn as_trace(machine: &LiveMachine, name: &str, ops: &[Op], difference: &Difference) -> String {
    let mut text = emit::new_header(&machine.header(name, "fuzz"));
    text.push('\n');
    for (op, answer) in ops.iter().zip(&difference.kernel) {
        text.push_str(&emit::with_outcome(&recorded_style(op), answer.as_ref(), &[], None));
        text.push('\n');
    }
    text
}

fn print_tally(
    tally: &Tally,
    args: &args::FuzzCompare,
    machine: &LiveMachine,
    config: &MachineConfig,
    elapsed: Duration,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    writeln!(
        out,
        "seed {}: {} programs, {} operations in {} s, Linux {} ({}) against the model of {}",
        args.seed,
        tally.programs,
        tally.operations,
        elapsed.as_secs(),
        machine.kernel,
        machine.stage2,
        config.kernel,
    )?;
    if !tally.refused.is_empty() {
        let programs: u64 = tally.refused.values().sum();
        writeln!(
            out,
            "{programs} programs ended early at an operation that is not for a real machine: {}",
            by_count(&tally.refused)
        )?;
    }
    if !tally.unrepeated.is_empty() {
        let programs = tally.unrepeated.len();
        writeln!(out, "{programs} programs differed once and not again: something that runs in the background")?;
    }
    for Unrepeated { program, index, operation, kernel, simulator } in &tally.unrepeated {
        writeln!(out, "  program {program}, operation {}: {operation}", index + 1)?;
        writeln!(out, "    the kernel {kernel}, the simulator {simulator}")?;
    }
    for (op, answers) in &tally.answers {
        writeln!(out, "  {op:24} {}", by_count(answers))?;
    }
    Ok(())
}

/// What there is most of first.
fn by_count<T: Display + Ord>(counts: &BTreeMap<T, u64>) -> String {
    let mut kinds: Vec<_> = counts.iter().collect();
    kinds.sort_by_key(|(kind, count)| (Reverse(**count), *kind));
    kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
}
