//! The real kernel's part of `gmem bench`: measured by a worker, a process of its own, with the same meter.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::sampler::{Measured, Patience, Sampler, Scales};
use crate::bench::Case;
use crate::bench::pages::PAGES;
use crate::cli::args;
use crate::live::{self, Starter};

/// A line of the worker's.
#[derive(Serialize, Deserialize)]
struct Line {
    case: Case,
    measured: Measured,
}

/// Has a worker measure, and tells what it found. What could be measured is told also if something could not.
///
/// # Errors
/// Why there is nothing to measure, or not everything.
pub(super) fn measure(args: &args::Bench, tell: &mut dyn FnMut(Case, Measured)) -> Result<(), String> {
    let starter = Starter::new(&args.kvm).map_err(|error| error.to_string())?;
    let machine = starter.probe().map_err(|error| error.to_string())?;
    let pages = if args.quick { 64 } else { PAGES };
    let output = starter.bench(&machine, pages).map_err(|error| error.to_string())?;
    let note = format!("Linux {}, {}", machine.kernel, machine.stage2);
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let line: Line = serde_json::from_str(line).map_err(|error| format!("the worker said nonsense: {error}"))?;
        tell(line.case.note(&note), line.measured);
    }
    if output.status.success() { Ok(()) } else { Err(live::complaint(&output.stderr)) }
}

/// The worker's side: a line for each case.
pub(in crate::cli) fn worker(
    device: &Path,
    mode: live_kvm::GuestMode,
    pages: u64,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let patience = if pages < PAGES { Patience::QUICK } else { Patience::USUAL };
    let mut failure = None;
    let mut report = |case, measured| {
        let written = serde_json::to_string(&Line { case, measured }).map_err(anyhow::Error::from);
        if let Err(error) = written.and_then(|text| Ok(writeln!(out, "{text}")?)) {
            failure = Some(error);
        }
    };
    let mut sampler = Sampler::new(patience, Scales::Here(String::new()), "", &mut report);
    let measured = live::bench::measure(&mut sampler, device, mode, pages);
    failure.map_or(measured, Err)
}
