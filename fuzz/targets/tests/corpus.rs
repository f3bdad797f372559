//! Every file of the committed corpus passes: what fuzzing found once stays fixed, and the seeds are good ones.

use std::fs;
use std::path::{Path, PathBuf};

use gmem::ops::{Op, table};
use gmem::testing::values;
use gmem::trace::Reader;
use gmem_fuzz_targets::operations::{NAMES, OPS_MAX, decode, encode};
use gmem_fuzz_targets::{TARGETS, trace};
use proptest::prelude::*;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the targets are in `fuzz`").to_path_buf()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_file_of_the_corpus_passes() {
    for (name, check) in TARGETS {
        let files = files(&fuzz().join("corpus").join(name));
        assert!(files.len() >= 10, "the corpus of {name} has {} files", files.len());
        for file in files {
            println!("{}", file.display());
            check(&fs::read(&file).unwrap());
        }
    }
}

#[test]
fn the_corpus_is_small() {
    let all = TARGETS.iter().flat_map(|(name, _)| files(&fuzz().join("corpus").join(name)));
    let bytes: u64 = all.map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(bytes < 500_000, "the corpus has {bytes} bytes");
}

#[test]
fn every_operation_can_be_in_a_program() {
    let mut known: Vec<&str> = table::OPS.iter().map(|spec| spec.name).collect();
    let mut named = NAMES.to_vec();
    known.sort_unstable();
    named.sort_unstable();
    assert_eq!(named, known, "NAMES has every operation of the table");
}

/// Operations of a kept recording.
fn recorded(name: &str) -> Vec<Op> {
    let file = fuzz().join("../tests/data/traces").join(name);
    let text = fs::read(&file).unwrap();
    Reader::new(name, &text[..]).unwrap().map(|line| line.unwrap().op).collect()
}

#[test]
fn a_recording_is_a_program() {
    for name in ["slots-000.jsonl", "conv-011.jsonl", "mmap-001.jsonl", "thp-002.jsonl", "prefault-008.jsonl"] {
        let ops = recorded(name);
        let program = decode(&encode(&ops));
        let [decoded] = &program.tasks[..] else { panic!("a recording has one task") };
        assert_eq!(decoded.len(), ops.len().min(OPS_MAX));
        let kinds = |ops: &[Op]| ops.iter().take(OPS_MAX).map(Op::name).collect::<Vec<_>>();
        assert_eq!(kinds(decoded), kinds(&ops), "{name}");
        // What was decoded uses only known names, and stands for itself.
        assert_eq!(decode(&encode(decoded)), program, "{name}");
    }
}

#[test]
fn the_corpus_reaches_deep() {
    // Of the programs that are kept, some have tasks, some have none of the set-up, and every operation comes.
    let programs: Vec<_> =
        files(&fuzz().join("corpus/operations")).iter().map(|file| decode(&fs::read(file).unwrap())).collect();
    assert!(programs.iter().any(|program| program.tasks.len() > 1), "no program has tasks");
    assert!(programs.iter().any(|program| program.set_up.is_empty()), "all programs start with the set-up");
    let ops = programs.iter().flat_map(|program| program.tasks.iter().flatten());
    let mut seen: Vec<_> = ops.map(Op::name).collect();
    seen.sort_unstable();
    seen.dedup();
    let missing: Vec<_> = NAMES.iter().filter(|name| !seen.contains(name)).collect();
    assert!(missing.is_empty(), "no program has {missing:?}");
}

#[test]
#[should_panic(expected = "frames are left")]
fn a_leak_is_noticed() {
    let mut machine = gmem::interp::Sequential::new(gmem::MachineConfig::default());
    machine.with(|cx, world| {
        world.process().host().phys().alloc().unwrap();
        values::check_and_end(cx, world);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn any_bytes_are_a_program_that_stands_for_itself(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let program = decode(&bytes);
        let ops: Vec<Op> = program.tasks.concat();
        prop_assert_eq!(&decode(&encode(&ops)).tasks[..], &[ops][..]);
    }

    #[test]
    fn any_bytes_after_a_header_are_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut text = br#"{"trace": 1, "name": "", "family": "", "kernel": "", "arch": "", "stage2": "npt"}"#.to_vec();
        text.push(b'\n');
        text.extend(bytes);
        trace::check(&text);
    }
}
