//! The real kernel's part of `gmem bench`: measured by a worker, a process of its own, with the same meter.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::sampler::{Nanoseconds, Patience, Sampler};
use crate::bench::Case;
use crate::bench::pages::{Deed, GOAL, PAGES};
use crate::cli::args;
use crate::live::{self, Starter};

/// A line of the worker's.
#[derive(Serialize, Deserialize)]
struct Line {
    name: String,
    nanoseconds: Nanoseconds,
}

/// Has a worker measure, and tells what it found. What could be measured is told also if something could not.
///
/// # Errors
/// Why there is nothing to measure, or not everything.
pub(super) fn measure(args: &args::Bench, tell: &mut dyn FnMut(Case, Nanoseconds)) -> Result<(), String> {
    let starter = Starter::new(&args.kvm).map_err(|error| error.to_string())?;
    let machine = starter.probe().map_err(|error| error.to_string())?;
    let pages = if args.quick { 64 } else { PAGES };
    let output = starter.bench(&machine, pages).map_err(|error| error.to_string())?;
    let note = format!("Linux {}, {}", machine.kernel, machine.stage2);
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let line: Line = serde_json::from_str(line).map_err(|error| format!("the worker said nonsense: {error}"))?;
        let deed = Deed::ALL.into_iter().find(|deed| deed.name(true) == line.name);
        let deed = deed.ok_or_else(|| format!("the worker measured `{}`", line.name))?;
        tell(Case::new(GOAL, deed.name(true), pages, "page", pages).peer().note(&note), line.nanoseconds);
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
    let mut report = |case: Case, nanoseconds| {
        let line = Line { name: case.name.to_string(), nanoseconds };
        let written = serde_json::to_string(&line).map_err(anyhow::Error::from);
        if let Err(error) = written.and_then(|text| Ok(writeln!(out, "{text}")?)) {
            failure = Some(error);
        }
    };
    let measured = live::bench::measure(&mut Sampler { patience, report: &mut report }, device, mode, pages);
    failure.map_or(measured, Err)
}
