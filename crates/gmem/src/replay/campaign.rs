//! Many traces: in parallel, with results in the order of the files whatever the number of threads.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use rayon::prelude::*;

use super::file::{self, Difference, InternalError, Tally};
use super::{Factory, paths};
use crate::Status;

/// Files that run at a time: enough to keep every core busy, few enough that their results fit in memory.
const BATCH: usize = 256;

/// What to replay and how much to say about it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only traces whose header names this family.
    pub family: Option<String>,
    /// How many differences to keep.
    pub differences_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { family: None, differences_max: 10 }
    }
}

/// What came of comparing many traces.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Everything.
    pub total: Tally,
    /// The same per family.
    pub families: BTreeMap<String, Tally>,
    /// The first differences, in the order of files and lines.
    pub differences: Vec<Difference>,
    /// What is wrong with paths and traces, each with its place. Such traces are in no count.
    pub bad_input: Vec<String>,
    /// Panics of the simulator.
    pub internal_errors: Vec<InternalError>,
}

impl Report {
    /// How the command ends.
    pub fn status(&self) -> Status {
        if !self.internal_errors.is_empty() {
            Status::Internal
        } else if !self.bad_input.is_empty() {
            Status::BadInput
        } else if self.total.differ > 0 {
            Status::Found
        } else {
            Status::Success
        }
    }
}

/// Replays the traces that `paths` mean and compares what the simulator does with what was recorded.
///
/// `finished` is called once for every file, with the number of files, in no particular order.
pub fn compare(
    paths: &[PathBuf],
    options: &Options,
    factory: &Factory<'_>,
    finished: &(dyn Fn(usize) + Sync),
) -> Report {
    let mut report = Report::default();
    let files = match paths::traces(paths) {
        Ok(files) => files,
        Err(message) => {
            report.bad_input.push(message);
            return report;
        }
    };
    let family = options.family.as_deref();
    for batch in files.chunks(BATCH) {
        let run = |path: &PathBuf| {
            let result = file::compare(path, family, options.differences_max, factory);
            finished(files.len());
            result
        };
        let results: Vec<_> = batch.par_iter().map(run).collect();
        for result in results {
            match result {
                Ok(None) => {}
                Ok(Some(file)) => {
                    report.total += file.tally;
                    *report.families.entry(file.family).or_default() += file.tally;
                    let room = options.differences_max - report.differences.len();
                    report.differences.extend(file.differences.into_iter().take(room));
                    report.internal_errors.extend(file.internal_error);
                }
                Err(message) => report.bad_input.push(message),
            }
        }
    }
    if report.total.files == 0 && report.bad_input.is_empty() {
        report.bad_input.push(no_family(family));
    }
    report
}

/// Prints the traces that `paths` mean with the simulator's answers. What goes wrong goes to `complain`.
///
/// # Errors
/// Only those of writing to `out`.
pub fn emit(
    paths: &[PathBuf],
    family: Option<&str>,
    factory: &Factory<'_>,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> io::Result<Status> {
    let mut status = Status::Success;
    let mut fail = |worse: Status, message: &str| {
        status = status.max(worse);
        complain(message);
    };
    let files = paths::traces(paths).unwrap_or_else(|message| {
        fail(Status::BadInput, &message);
        Vec::new()
    });
    let mut any = files.is_empty();
    for batch in files.chunks(BATCH) {
        let texts: Vec<_> = batch.par_iter().map(|path| file::emit(path, family, factory)).collect();
        for text in texts {
            any |= !matches!(text, Ok(None));
            match text {
                Ok(None) => {}
                Ok(Some((text, internal_error))) => {
                    out.write_all(text.as_bytes())?;
                    if let Some(error) = internal_error {
                        fail(Status::Internal, &error.to_string());
                    }
                }
                Err(message) => fail(Status::BadInput, &message),
            }
        }
    }
    if !any {
        fail(Status::BadInput, &no_family(family));
    }
    Ok(status)
}

fn no_family(family: Option<&str>) -> String {
    format!("no trace found of the family `{}`", family.unwrap_or_default())
}
