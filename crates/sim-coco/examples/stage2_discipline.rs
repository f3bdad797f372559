//! Checks recordings of pKVM (`gmem run --pkvm-trace FILE`) for Arm's stage-2 discipline and for who has which page, by the checker that the tests use. Exit code 1 if one is broken.
//!
//! ```text
//! gmem run scenarios/pkvm/convert.toml --pkvm-trace convert.jsonl
//! cargo run -p sim-coco --example stage2_discipline convert.jsonl
//! ```

#[path = "../tests/pkvm/discipline.rs"]
mod discipline;

use discipline::Checker;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if files.is_empty() {
        eprintln!("usage: stage2_discipline FILE...");
        return ExitCode::from(2);
    }
    let mut code = ExitCode::SUCCESS;
    for file in files {
        match Checker::check_file(&file) {
            Ok(lines) => println!("{}: {lines} lines keep the discipline", file.display()),
            Err(what) => {
                eprintln!("{what}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
