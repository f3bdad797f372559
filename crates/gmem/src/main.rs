//! The `gmem` command. All of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    gmem::cli::main(&gmem::Simulator)
}
