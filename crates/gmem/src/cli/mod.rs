//! The `gmem` command: arguments, output, exit codes. What it does with a simulator is behind [`Backend`].
//!
//! Results go to stdout, everything else to stderr. Exit codes are those of [`Status`]. Simplified: there is no
//! configuration file; arguments and `RUST_LOG` are all there is.

pub mod args;
mod attack;
mod backend;
mod bench;
mod budget;
mod conformance;
mod explore;
mod explore_print;
mod input;
mod interrupt;
mod invariants;
mod kinds;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod live;
mod output;
mod replay;
mod report;
mod run;
mod step;
mod workload;
mod zoo;

pub use backend::{Backend, NextLine, RecordOptions, RunOptions};

use std::ffi::OsString;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::Status;
use args::{Arguments, Command};

/// The whole of the `gmem` program: parses the process's arguments, does what they say, and gives its exit code.
pub fn main(backend: &dyn Backend) -> ExitCode {
    let mut out = io::BufWriter::new(io::stdout());
    execute(std::env::args_os(), backend, &mut out, &mut |text| anstream::eprintln!("{}", text.trim_end())).into()
}

/// Does what `arguments` say, the program's name first. Results are written to `out`; `complain` gets everything that is
/// wrong, with terminal colours in it.
///
/// A reader that goes away ends the command quietly, and a panic becomes [`Status::Internal`].
pub fn execute(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    backend: &dyn Backend,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> Status {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error, out, complain),
    };
    output::start_tracing(arguments.verbosity());
    let result = catch_unwind(AssertUnwindSafe(|| {
        let status = dispatch(&arguments, backend, out, complain)?;
        out.flush()?;
        Ok(status)
    }));
    match result {
        Ok(Ok(status)) => status,
        Ok(Err(error)) if output::is_broken_pipe(&error) => Status::Success,
        Ok(Err(error)) => {
            complain(&output::error(&format!("{error:#}")));
            Status::BadInput
        }
        Err(_) => {
            complain(&output::error("the simulator panicked; this is a bug in gmem, not in what you gave it"));
            Status::Internal
        }
    }
}

fn dispatch(
    arguments: &Arguments,
    backend: &dyn Backend,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Status> {
    match &arguments.command {
        None => backend.demonstrate(out),
        Some(Command::Run(run)) => run::run(run, backend, out, complain),
        Some(Command::Kinds(args)) => kinds::kinds(args, out, complain),
        Some(Command::Replay(replay)) => replay::replay(replay, arguments.quiet == 0, backend, out, complain),
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Some(Command::Record(record)) => live::record(record, out, complain),
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Some(Command::FuzzCompare(compare)) => live::fuzz_compare(compare, out, complain),
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Some(Command::LiveWorker(worker)) => live::worker(worker, out),
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        Some(Command::Record(_) | Command::FuzzCompare(_) | Command::LiveWorker(_)) => {
            anyhow::bail!("this needs a real KVM: Linux on x86-64")
        }
        Some(Command::Explore(args)) => {
            explore::explore(args, arguments.quiet == 0, arguments.verbose > 0, backend, out, complain)
        }
        Some(Command::Report(args)) => report::report(args, backend, out, complain),
        Some(Command::Step(args)) => step::step(args, backend, out, complain),
        Some(Command::Zoo(args)) => zoo::zoo(args, arguments.quiet == 0, out),
        Some(Command::Attack(args)) => attack::attack(args, out, complain),
        Some(Command::Workload(args)) => workload::workload(args, out),
        Some(Command::Invariants(args)) => invariants::invariants(args, out),
        Some(Command::Bench(args)) => bench::bench(args, out, complain),
        Some(Command::Conformance(args)) => conformance::conformance(args, backend, out),
        Some(Command::Completions { shell }) => {
            // Into memory first: the generator panics if it cannot write.
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "gmem", &mut text);
            out.write_all(&text)?;
            Ok(Status::Success)
        }
        Some(Command::Man { command }) => {
            let mut page = Arguments::command();
            page.build();
            if let Some(name) = command {
                let found = page.find_subcommand(name).cloned();
                page = found.ok_or_else(|| anyhow::anyhow!("there is no command `{name}`"))?;
            }
            clap_mangen::Man::new(page).render(out)?;
            Ok(Status::Success)
        }
    }
}

/// Help goes to stdout and is a success; anything else that the parser says is bad usage.
fn usage(error: &clap::Error, out: &mut dyn Write, complain: &mut dyn FnMut(&str)) -> Status {
    if error.use_stderr() {
        complain(&error.render().ansi().to_string());
        return Status::BadInput;
    }
    let written = write!(out, "{}", error.render()).and_then(|()| out.flush());
    match written.map_err(anyhow::Error::from) {
        Err(error) if !output::is_broken_pipe(&error) => {
            complain(&output::error(&format!("{error:#}")));
            Status::BadInput
        }
        _ => Status::Success,
    }
}
