//! The `gmem` command. All of it is in the library, except the simulator that is plugged in here.

use std::io::Write;
use std::process::ExitCode;

use gmem::Status;
use gmem::cli::{self, Backend, RunOptions};
use gmem::replay::Executor;
use gmem::scenario::Scenario;
use gmem::trace::Header;

/// A build without a simulator: everything up to it works, and it says so itself.
struct NoSimulator;

const MISSING: &str = "this build of gmem has no simulator";

impl Backend for NoSimulator {
    fn executor(&self, _: &Header) -> Result<Box<dyn Executor>, String> {
        Err(MISSING.into())
    }

    fn run(
        &self,
        _: &Scenario,
        _: &RunOptions,
        _: &mut dyn Write,
        _: Option<&mut dyn Write>,
    ) -> anyhow::Result<Status> {
        anyhow::bail!(MISSING)
    }

    fn demonstrate(&self, _: &mut dyn Write) -> anyhow::Result<Status> {
        anyhow::bail!(MISSING)
    }
}

fn main() -> ExitCode {
    cli::main(&NoSimulator)
}
