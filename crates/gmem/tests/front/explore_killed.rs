//! An exploration that is killed at any moment and begun again with the same command loses nothing.
//!
//! `GMEM_KILLS=50 cargo test -p gmem --test front killed` kills it more often than the few times of every day.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::{RngExt, SeedableRng};

fn gmem(checkpoint: Option<&Path>) -> Child {
    let scenario = super::workspace().join("scenarios/versions/close-while-deleting.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gmem"));
    command
        .args(["explore", "--kernel", "6.8", "--keep-going", "--json", "--budget", "6k", "--jobs", "2"])
        .arg(scenario);
    if let Some(path) = checkpoint {
        command.arg("--checkpoint").arg(path);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn().unwrap()
}

#[test]
fn what_is_killed_goes_on() {
    let kills: u32 = std::env::var("GMEM_KILLS").map_or(4, |kills| kills.parse().expect("a number"));
    let whole = gmem(None).wait_with_output().unwrap();
    assert_eq!(whole.status.code(), Some(1), "this kernel has the bug");
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("checkpoint.json");
    // Which moments is drawn from a seed; where the exploration is by then, nobody knows.
    let mut rng = rand_pcg::Pcg64Mcg::seed_from_u64(6);
    for _ in 0..kills {
        let mut child = gmem(Some(&checkpoint));
        std::thread::sleep(Duration::from_millis(rng.random_range(5..400)));
        // It may have ended by itself; then the next one has nothing to do but to say what there is.
        let _ = child.kill();
        child.wait().unwrap();
        let others = std::fs::read_dir(folder.path()).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name != "checkpoint.json" && !name.to_string_lossy().starts_with(".gmem-")
        });
        assert_eq!(others.count(), 0, "nothing else is written");
    }
    let resumed = gmem(Some(&checkpoint)).wait_with_output().unwrap();
    assert_eq!(resumed.status.code(), Some(1));
    assert_eq!(String::from_utf8(resumed.stdout).unwrap(), String::from_utf8(whole.stdout).unwrap());
    // The result is kept, too.
    let again = gmem(Some(&checkpoint)).wait_with_output().unwrap();
    assert!(String::from_utf8(again.stdout).unwrap().contains("INV-401"));
}
