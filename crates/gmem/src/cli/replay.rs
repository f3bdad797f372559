//! `gmem replay`: recorded traces against the simulator.

use std::io::Write;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Backend;
use super::args;
use super::output::error;
use crate::Status;
use crate::replay::{self, Options, report};
use crate::trace::Header;

/// How many differences people see who do not say.
const DIFFERENCES: usize = 10;

pub(super) fn replay(
    args: &args::Replay,
    show_progress: bool,
    backend: &dyn Backend,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Status> {
    let mut complaints = Complaints { shown: 0, complain };
    let factory = |header: &Header| match args.kernel {
        None => backend.executor(header),
        Some(kernel) => backend.executor(&Header { kernel: kernel.to_string(), ..header.clone() }),
    };
    if args.emit {
        let family = args.family.as_deref();
        let status = replay::emit(&args.paths, family, &factory, out, &mut |message| complaints.add(message));
        complaints.end();
        return Ok(status?);
    }
    let options = Options {
        family: args.family.clone(),
        differences_max: args.differences.unwrap_or(if args.json { usize::MAX } else { DIFFERENCES }),
    };
    let bar = progress_bar(show_progress && !args.json);
    let report = replay::compare(&args.paths, &options, &factory, &|files| {
        bar.set_length(files as u64);
        bar.inc(1);
    });
    bar.finish_and_clear();
    for message in &report.bad_input {
        complaints.add(message);
    }
    for internal in &report.internal_errors {
        complaints.add(&internal.to_string());
    }
    complaints.end();
    if args.json {
        writeln!(out, "{}", report::json(&report))?;
    } else if report.total.files > 0 {
        report::text(&report, out)?;
    }
    Ok(report.status())
}

/// What is wrong with the input, as much as people read: a thousand files may all be wrong in the same way.
struct Complaints<'a> {
    shown: u64,
    complain: &'a mut dyn FnMut(&str),
}

impl Complaints<'_> {
    const MAX: u64 = 10;

    fn add(&mut self, message: &str) {
        self.shown += 1;
        if self.shown <= Self::MAX {
            (self.complain)(&error(message));
        }
    }

    fn end(&mut self) {
        if self.shown > Self::MAX {
            (self.complain)(&error(&format!("and {} more like these", self.shown - Self::MAX)));
        }
    }
}

/// On stderr, and only if that is a terminal.
fn progress_bar(shown: bool) -> ProgressBar {
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target);
    // The template is a constant; should it ever be wrong, the default style does.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} traces  {eta}") {
        bar.set_style(style);
    }
    bar
}
