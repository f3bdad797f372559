//! An exploration that is killed at any moment and begun again with the same command loses nothing.
//!
//! `GMEM_KILLS=50 cargo test -p gmem --test front killed` kills it more often than every day. Half of the kills come at moments that are drawn, half
//! while a checkpoint is being written, which is when its file stands beside the old one.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::{RngExt, SeedableRng};

fn gmem(checkpoint: Option<&Path>) -> Child {
    let scenario = super::workspace().join("scenarios/fault-against-punch.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_gmem"));
    command
        .args(["explore", "--mutant", "RC-01", "--keep-going", "--json", "--budget", "30k", "--jobs", "2"])
        .arg(scenario);
    if let Some(path) = checkpoint {
        command.arg("--checkpoint").arg(path);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command.spawn().unwrap()
}

/// Names in the folder, but for the checkpoint.
fn others(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "checkpoint.json").collect()
}

/// Waits until a checkpoint is being written; what killed writers left does not count. False if the program ends before.
fn wait_for_writer(child: &mut Child, folder: &Path, left: &[String]) -> bool {
    // The first one only tries whether the folder can be written to.
    let mut first: Option<String> = None;
    loop {
        for name in others(folder).into_iter().filter(|name| !left.contains(name)) {
            if *first.get_or_insert_with(|| name.clone()) != name {
                return true;
            }
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
    }
}

#[test]
fn what_is_killed_goes_on() {
    let wanted: u32 = std::env::var("GMEM_KILLS").map_or(12, |kills| kills.parse().expect("a number"));
    let whole = gmem(None).wait_with_output().unwrap();
    assert_eq!(whole.status.code(), Some(1), "without this rule it fails");
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("checkpoint.json");
    let is_whole = |child: Child| {
        let ended = child.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&whole.stdout));
    };
    // Which moments is drawn from a seed; where the exploration is by then, nobody knows.
    let mut rng = rand_pcg::Pcg64Mcg::seed_from_u64(6);
    let (mut kills, mut writing, mut explorations) = (0, 0, 1);
    while kills < wanted {
        let left = others(folder.path());
        let mut child = gmem(Some(&checkpoint));
        if kills % 2 == 0 {
            std::thread::sleep(Duration::from_millis(rng.random_range(5..120)));
        } else if wait_for_writer(&mut child, folder.path(), &left) {
            writing += 1;
        }
        if child.try_wait().unwrap().is_some() {
            // It came to its end: another one begins.
            is_whole(child);
            std::fs::remove_file(&checkpoint).unwrap();
            explorations += 1;
            continue;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        let strange: Vec<_> = others(folder.path()).into_iter().filter(|name| !name.starts_with(".gmem-")).collect();
        assert!(strange.is_empty(), "{strange:?}");
    }
    println!("killed {kills} times in {explorations} explorations, {writing} of them while a checkpoint was written");
    is_whole(gmem(Some(&checkpoint)));
    // The result is kept, too.
    is_whole(gmem(Some(&checkpoint)));
}
