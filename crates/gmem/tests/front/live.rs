//! `gmem record` and `gmem fuzz-compare` on this machine's own `/dev/kvm`. Where there is none, or it cannot be used, the tests say so and
//! end: nothing else can be tried there.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use gmem::compare::generate::{Abilities, program};
use gmem::ops::json::recorded_style;
use serde_json::Value;

fn gmem(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gmem")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether a KVM can be used; says so if not.
fn has_kvm() -> bool {
    let probe = gmem(&["live-worker", "--kvm", "/dev/kvm", "--probe"]);
    if !probe.status.success() {
        println!("skipped, because there is no KVM to compare with: {}", text(&probe.stderr).trim());
    }
    probe.status.success()
}

fn arguments(folder: &Path) -> String {
    folder.to_str().unwrap().to_string()
}

const PROGRAM: &str = r#"{"op": "create_vm", "vm": "vm0", "type": 0}
{"op": "create_vcpu", "vm": "vm0", "vcpu": "c0", "index": 0}
{"op": "mmap", "map": "m1", "fd": null, "len": 8192, "prot": "rw", "shared": false, "offset": 0, "align": 4096}
{"op": "set_user_memory_region", "vm": "vm0", "slot": 0, "flags": 1, "gpa": 2097152, "size": 8192, "hva": {"map": "m1", "offset": 0}}
{"op": "host_write", "map": "m1", "offset": 0, "value": 4919}
{"op": "guest_read", "vcpu": "c0", "gpa": 2097152}
{"op": "guest_write", "vcpu": "c0", "gpa": 2101248, "value": 81}
{"op": "host_read", "map": "m1", "offset": 4096}
{"op": "get_dirty_log", "vm": "vm0", "slot": 0, "npages": 2}
{"op": "guest_read", "vcpu": "c0", "gpa": 2105344}
{"op": "host_read", "map": "m1", "offset": 8192}
{"op": "munmap", "map": "never", "offset": 0, "len": 140737488351232}
{"op": "madvise", "map": "m1", "offset": 0, "len": 4096, "advice": "hwpoison"}
{"op": "close", "fd": "vm0"}
{"op": "close", "fd": "vm0"}
"#;

const HEADER: &str =
    r#"{"trace": 1, "name": "t", "family": "f", "kernel": "7.3.4", "arch": "x86_64", "stage2": "npt"}"#;

/// A recording's lines, the header first.
fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_program_without_answers_gets_the_kernels() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.jsonl");
    fs::write(&path, PROGRAM).unwrap();
    let out = folder.path().join("recordings");
    let recorded = gmem(&["record", path.to_str().unwrap(), "-o", &arguments(&out)]);
    assert!(recorded.status.success(), "{}", text(&recorded.stderr));
    assert!(
        text(&recorded.stdout).contains("13 operations answered, 2 without an answer"),
        "{}",
        text(&recorded.stdout)
    );
    let recording = lines(&out.join("small.jsonl"));
    assert_eq!((&recording[0]["name"], &recording[0]["family"]), (&"small".into(), &"live".into()));
    let ret = |operation: usize| recording[operation]["ret"].to_string();
    assert_eq!(ret(6), r#"{"exit":"hlt","value":4919}"#, "the vCPU reads what the host wrote");
    assert_eq!(ret(8), r#"{"ok":0,"value":81}"#, "the host reads what the vCPU wrote");
    assert_eq!(ret(10), r#"{"exit":"mmio","gpa":2105344,"len":4,"write":false}"#, "behind the slot");
    assert_eq!(ret(11), r#"{"signal":"SIGSEGV"}"#, "behind the mapping");
    let note = |operation: usize| recording[operation]["note"].as_str().unwrap().to_string();
    assert!(note(12).contains("memory of the recorder itself"), "{}", note(12));
    assert!(note(13).contains("the real machine"), "{}", note(13));
    assert_eq!((ret(14), ret(15)), (r#"{"ok":0}"#.into(), r#"{"errno":"EBADF"}"#.into()));

    // What was recorded replays, whole; and it can be recorded again.
    let replayed = gmem(&["replay", "--json", &arguments(&out)]);
    assert_eq!(replayed.status.code(), Some(0), "{}", text(&replayed.stdout));
    let again = folder.path().join("again");
    let path = out.join("small.jsonl");
    assert!(gmem(&["record", path.to_str().unwrap(), "-o", &arguments(&again)]).status.success());
    assert_eq!(fs::read_to_string(path).unwrap(), fs::read_to_string(again.join("small.jsonl")).unwrap());
}

#[test]
fn recordings_of_other_machines_are_recorded_here() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let traces = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/traces");
    let paths: Vec<String> = fs::read_dir(traces).unwrap().map(|entry| arguments(&entry.unwrap().path())).collect();
    let mut args = vec!["record"];
    args.extend(paths.iter().map(String::as_str));
    let out = arguments(folder.path());
    args.extend(["-o", &out]);
    let recorded = gmem(&args);
    assert!(recorded.status.success(), "{}", text(&recorded.stderr));
    let replayed = gmem(&["replay", &out]);
    assert_eq!(replayed.status.code(), Some(0), "{}", text(&replayed.stdout));
}

#[test]
fn of_a_scenario_what_does_not_race_is_recorded() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = arguments(folder.path());
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let scenario = arguments(&scenarios.join("fault-against-punch.toml"));
    let recorded = gmem(&["record", &scenario, "-o", &out]);
    assert!(recorded.status.success(), "{}", text(&recorded.stderr));
    let recording = lines(&folder.path().join("fault-against-punch.jsonl"));
    let notes = recording[0]["notes"].to_string();
    assert!(notes.contains("race and were left out"), "{notes}");
    assert_eq!(recording[1]["op"], "create_vm");
}

#[test]
fn the_simulator_and_the_kernel_answer_alike() {
    if !has_kvm() {
        return;
    }
    // The numbers of programs wrap.
    let first = (u64::MAX - 20).to_string();
    let compared = gmem(&["fuzz-compare", "--programs", "60", "--seed", "99", "--first", &first, "--json"]);
    assert_eq!(compared.status.code(), Some(0), "{}{}", text(&compared.stdout), text(&compared.stderr));
    let report: Value = serde_json::from_slice(&compared.stdout).unwrap();
    assert_eq!((&report["difference"], &report["tally"]["programs"]), (&false.into(), &60.into()));
    assert!(report["tally"]["operations"].as_u64().unwrap() > 600, "{report}");
    let halted = report["tally"]["answers"]["guest_read"]["hlt"].as_u64().unwrap_or(0);
    assert!(halted > 0, "no vCPU ever read anything: {report}");
}

/// Against the rules of another release there is something to find: what is printed is small, differs, and is the kernel's word.
#[test]
fn a_difference_is_found_and_made_small() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("difference.jsonl");
    let file = arguments(&path);
    let args = ["fuzz-compare", "--seconds", "60", "--seed", "1", "--kernel", "6.8", "-o", &file];
    let compared = gmem(&args);
    let said = text(&compared.stderr);
    if compared.status.code() == Some(0) {
        println!("skipped: this machine's kernel is 6.8 itself, or answers like it");
        return;
    }
    assert_eq!(compared.status.code(), Some(1), "{said}");
    assert!(said.contains("seed 1 program ") && said.contains("the simulator answers "), "{said}");
    let trace = lines(&path);
    assert!((2..9).contains(&trace.len()), "{} lines", trace.len());
    // The last line is the difference: the model of that release says something else, and that of the machine's own the same.
    let differs = gmem(&["replay", "--kernel", "6.8", &file]);
    assert_eq!(differs.status.code(), Some(1), "{}", text(&differs.stdout));
    let agrees = gmem(&["replay", &file]);
    assert_eq!(agrees.status.code(), Some(0), "{}", text(&agrees.stdout));
}

#[test]
fn programs_are_a_function_of_seed_and_number() {
    let abilities =
        Abilities { private_memory: true, shadow_paging: false, hypercalls: true, guest_paging: true, maxphyaddr: 40 };
    let print =
        |seed, number| program(seed, number, abilities).iter().map(recorded_style).collect::<Vec<_>>().join("\n");
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..20 {
        for number in 0..20 {
            let program = print(seed, number);
            assert_eq!(program, print(seed, number));
            assert!(seen.insert(program), "seed {seed} number {number} is that of another");
        }
    }
}

#[test]
fn what_cannot_be_done_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        arguments(&path)
    };
    let good = file("good.jsonl", PROGRAM);
    let twin = file("other/good.jsonl", PROGRAM);
    let bad = file("bad.jsonl", "{\"op\": \"create_vm\", \"vm\": \"vm0\", \"type\": 0}\n{\"op\": \"creat_vm\"}\n");
    let empty = file("empty.jsonl", "");
    let out = arguments(&folder.path().join("out"));
    let fails = |args: &[&str], expected: &str| {
        let output = gmem(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
    };
    fails(&["record", &good, &bad, "-o", &out], "bad.jsonl:2:8: unknown operation `creat_vm`");
    fails(&["record", &good, &twin, "-o", &out], "its recording would be named as that of ");
    let header = file("header.jsonl", &format!("{HEADER}\n"));
    let scenario = file("bad.toml", "x = [");
    let no_text = folder.path().join("no_text.jsonl");
    fs::write(&no_text, b"{\"op\": \"\xff\"}").unwrap();
    fails(&["record", &empty, "-o", &out], "empty.jsonl: there is no operation in it");
    fails(&["record", &header, "-o", &out], "header.jsonl: there is no operation in it");
    fails(
        &["record", no_text.to_str().unwrap(), "-o", &out],
        "no_text.jsonl:1:9: expected UTF-8 text, found the byte 0xff",
    );
    fails(&["record", &scenario, "-o", &out], "error: this is not TOML\n --> ");
    fails(&["record", "nowhere.jsonl", "-o", &out], "cannot read nowhere.jsonl: No such file");
    fails(&["record", folder.path().to_str().unwrap(), "-o", &out], "Is a directory");
    fails(&["record", "/dev/zero", "-o", &out], "cannot read /dev/zero: it is longer than 67108864 bytes");
    fails(&["record", &good, "-o", folder.path().to_str().unwrap()], "its recording would take its place");
    fails(&["record", &good, "-o", &out, "--timeout", "0"], "invalid value '0'");
    fails(&["fuzz-compare", "--seconds", "0"], "invalid value '0'");
    fails(&["fuzz-compare", "--programs", "0"], "invalid value '0'");
    fails(
        &["fuzz-compare", "--programs", "1", "-o", "/nowhere/difference.jsonl"],
        "cannot write /nowhere/difference.jsonl",
    );
    fails(&["fuzz-compare", "--programs", "1", "-o", folder.path().to_str().unwrap()], "cannot write ");
    fails(&["record", &good, "-o", &out, "--kvm", "/dev/nothing"], "cannot use /dev/nothing as KVM");
    fails(&["record", &good, "-o", &out, "--kvm", "/dev/null"], "/dev/null: no KVM");
    fails(&["fuzz-compare", "--kvm", "/dev/nothing"], "there is nothing to compare with");
    fails(&["fuzz-compare", "--seconds", "1", "--programs", "1"], "cannot be used with");
    assert!(!Path::new(&out).exists(), "nothing was made on the way");
    if has_kvm() {
        let place = file("place", "a file");
        fails(&["record", &good, "-o", &place], "cannot make ");
    }
}
