//! Fidelity: recordings of real kernels, replayed: of Linux 7.3, those kept in the repository and all that lie beside it; and of a live
//! 6.18.44, what the simulator once answered otherwise (`docs/live.md`).

use std::path::{Path, PathBuf};

use gmem::Simulator;
use gmem::cli::Backend;
use gmem::replay::{Options, compare};

fn check(folder: &Path) {
    let paths = [folder.to_path_buf()];
    let executor = |header: &gmem::trace::Header| Simulator.executor(header);
    let report = compare(&paths, &Options::default(), &executor, &|_| {});
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
    check(&root().join("tests/data/traces-mmu"));
}

#[test]
fn the_recordings_of_a_live_kernel_agree() {
    check(&root().join("tests/data/live"));
}

#[test]
fn all_recordings_beside_the_repository_agree_wholly() {
    for folder in ["../shared/traces", "../shared/traces-mmu"].map(|folder| root().join(folder)) {
        if folder.is_dir() {
            check(&folder);
        } else {
            println!("skipped: no recordings at {}", folder.display());
        }
    }
}
