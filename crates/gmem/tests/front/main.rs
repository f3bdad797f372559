//! Tests of what people and other programs write and read: operations, traces, replay, scenarios and the command.
//!
//! One program rather than one per file, because linking each costs seconds.

mod bench;
mod browser;
mod cli;
mod expectation_errors;
mod explore;
mod explore_cli;
mod explore_killed;
mod kinds;
mod live;
mod machines;
mod operations;
mod paging;
mod recordings;
mod replay;
mod report;
mod scenario_errors;
mod scenarios;
mod step;
mod trace_errors;

use std::path::{Path, PathBuf};

/// The small recordings that are kept in the repository.
fn kept_recordings() -> PathBuf {
    workspace().join("tests/data/traces")
}

/// All recordings, where they lie beside the workspace.
fn all_recordings() -> Option<PathBuf> {
    let folder = workspace().join("../shared/traces");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: no folder of recordings beside the workspace");
    None
}

fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}
