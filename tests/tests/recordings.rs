//! Fidelity: recordings of real kernels, replayed: of Linux 7.3, those kept in the repository and all that lie beside it; and of a live
//! 6.18.44, what the simulator once answered otherwise (`docs/live.md`).

use std::path::{Path, PathBuf};

use gmem::Simulator;
use gmem::cli::Backend;
use gmem::replay::{Options, compare};

fn check(folder: &Path) {
    check_all(&[folder.to_path_buf()]);
}

fn check_all(paths: &[PathBuf]) {
    let executor = |header: &gmem::trace::Header| Simulator.executor(header);
    let report = compare(paths, &Options::default(), &executor, &|_| {});
    let mut text = Vec::new();
    gmem::replay::report::text(&report, &mut text).expect("a vector takes everything");
    assert!(report.status() == gmem::Status::Success, "{}", String::from_utf8_lossy(&text));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a member of the workspace").to_path_buf()
}

#[test]
fn the_kept_recordings_agree_wholly() {
    check(&root().join("tests/data/traces"));
}

#[test]
fn the_kept_recordings_of_the_mmu_agree_wholly() {
    // Guests with page tables of their own are a matter of the processor so far: `sim-mmu/tests/mmu/recordings.rs`.
    let entries = std::fs::read_dir(root().join("tests/data/traces-mmu")).expect("the recordings are kept");
    let paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    let is_of_dirty_logs =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("clear-"));
    let paths: Vec<PathBuf> = paths.into_iter().filter(is_of_dirty_logs).collect();
    assert!(!paths.is_empty(), "no recordings of dirty logs");
    check_all(&paths);
}

#[test]
fn the_recordings_of_a_live_kernel_agree() {
    check(&root().join("tests/data/live"));
}

#[test]
fn all_recordings_beside_the_repository_agree_wholly() {
    let folder = root().join("../shared/traces");
    if !folder.is_dir() {
        println!("skipped: no recordings at {}", folder.display());
        return;
    }
    check(&folder);
}
