//! What holds of the repository as a whole: which crate may depend on which, and the mechanical part of the style.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// The crates of the simulator, and those of them that each may depend on. The order is the direction.
const MAY_DEPEND_ON: [(&str, &[&str]); 5] = [
    ("sim-kernel", &[]),
    ("sim-mmu", &["sim-kernel"]),
    ("sim-coco", &["sim-kernel", "sim-mmu"]),
    ("live-kvm", &[]),
    ("gmem", &["sim-kernel", "sim-mmu", "sim-coco", "live-kvm"]),
];

/// What the three crates below `gmem` may use of others: nothing that does I/O, reads a clock or starts a thread.
const CORE_USES: [&str; 16] = [
    // The cipher that stands for the one of the memory controller, and the messages between an SNP guest and the firmware.
    "aes",
    "aes-gcm",
    "arrayvec",
    "bitflags",
    "bytemuck",
    "corosensei",
    "crossbeam",
    "data-encoding",
    "parking_lot",
    "rand",
    "rand_pcg",
    "rustc-hash",
    "serde",
    // SHA-384: the launch digest of an SNP guest.
    "sha2",
    "thiserror",
    "xxhash-rust",
];

/// What the crate of real system calls may use of others.
const LIVE_USES: [&str; 2] = ["kvm-bindings", "libc"];

/// Lines that a file under `crates/` has at most.
const LINES_MAX: usize = 800;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

#[test]
fn dependencies_point_one_way() {
    let metadata = MetadataCommand::new()
        .manifest_path(repository().join("Cargo.toml"))
        .no_deps()
        .other_options(["--offline".to_string()])
        .exec()
        .unwrap();
    let members: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    for (name, allowed) in MAY_DEPEND_ON {
        let package = metadata.packages.iter().find(|package| package.name == name).expect("the crate exists");
        for dependency in &package.dependencies {
            let uses = dependency.name.as_str();
            if members.contains(uses) {
                assert!(allowed.contains(&uses), "{name} depends on {uses}: see ARCHITECTURE.md");
            } else if name != "gmem" && dependency.kind != DependencyKind::Development {
                let may_use = if name == "live-kvm" { &LIVE_USES[..] } else { &CORE_USES };
                assert!(may_use.contains(&uses), "{name} depends on {uses}, which is not among {may_use:?}");
            }
        }
    }
    for package in &metadata.packages {
        let is_core = MAY_DEPEND_ON.iter().any(|(name, _)| package.name == name);
        let in_crates = package.manifest_path.as_str().contains("/crates/");
        assert!(is_core || !in_crates, "{} is in no row of MAY_DEPEND_ON", package.name);
    }
}

/// Every Rust file of the repository, as a path below it, with its text.
fn sources() -> Vec<(String, String)> {
    let root = repository();
    let mut found = Vec::new();
    let mut folders: Vec<_> = ["crates", "tests", "benches", "fuzz"].map(|folder| root.join(folder)).to_vec();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(found.len() > 100, "where are the sources?");
    found
}

/// The places where `words` stand, in lines of files for which `applies` holds; comments do not count.
fn places(words: &[&str], applies: impl Fn(&str) -> bool) -> Vec<String> {
    let mut places = Vec::new();
    for (name, text) in sources() {
        if name == "tests/tests/workspace.rs" || !applies(&name) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(word) = words.iter().find(|word| code.contains(**word)) {
                places.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    places
}

#[track_caller]
fn assert_none(places: &[String], why: &str) {
    assert!(places.is_empty(), "{why}:\n  {}", places.join("\n  "));
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<_> =
        sources().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(name, _)| name).collect();
    assert_none(&silent, "files that do not open with `//!`");
}

#[test]
fn files_are_short() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(name, lines)| name.starts_with("crates/") && *lines > LINES_MAX)
        .map(|(name, lines)| format!("{name}: {lines} lines"))
        .collect();
    assert_none(&long, "files to split");
}

#[test]
fn nothing_is_left_undone() {
    assert_none(&places(&["todo!(", "unimplemented!(", "dbg!(", "#[ignore"], |_| true), "left undone");
}

#[test]
fn the_simulator_reads_no_clock_and_starts_no_thread() {
    let core = |name: &str| {
        let below_the_command = name.starts_with("crates/")
            && name.contains("/src/")
            && !name.starts_with("crates/gmem/src/cli/")
            // The real kernel, for `gmem record` and `gmem fuzz-compare`.
            && !name.starts_with("crates/gmem/src/live/")
            && !name.starts_with("crates/live-kvm/")
            && name != "crates/gmem/src/main.rs";
        below_the_command && name != "crates/sim-kernel/src/sched/native.rs"
    };
    let words = [
        "Instant::",
        "SystemTime",
        "thread::spawn",
        "thread::Builder",
        "thread::sleep",
        "thread_local!",
        "static mut",
        "std::env",
        "std::net",
        "process::Command",
        "println!",
        "eprintln!",
        "RandomState",
    ];
    assert_none(&places(&words, core), "only the command and the native runner may");
    // Files are read and written by what serves the command. `source.rs` reads what people name on the command line, for the
    // command and for the recorder.
    let serves = ["crates/gmem/src/replay/", "crates/gmem/src/trace/", "crates/gmem/src/source.rs"];
    let no_files = |name: &str| core(name) && !serves.iter().any(|at| name.starts_with(at));
    assert_none(
        &places(&["std::fs", "fs::read", "fs::write", "File::open", "io::stdout", "io::stderr"], no_files),
        "I/O",
    );
}

#[test]
fn nothing_is_unsafe() {
    let manifest = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"forbid\""), "the workspace forbids unsafe code");
    let metadata = |name: &str| fs::read_to_string(repository().join(name)).unwrap();
    for name in ["sim-kernel", "sim-mmu", "sim-coco", "gmem"] {
        let manifest = metadata(&format!("crates/{name}/Cargo.toml"));
        assert!(manifest.contains("[lints]\nworkspace = true"), "{name} takes the workspace's lints");
    }
    // The one crate that does not take them is the one that makes real system calls.
    let elsewhere = places(&["unsafe {", "unsafe fn", "unsafe extern", "unsafe impl"], |name| {
        !name.starts_with("crates/live-kvm/")
    });
    assert_none(&elsewhere, "unsafe code outside live-kvm");
}
