//! The command, with an executor that repeats recordings in place of the simulator.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use expect_test::expect;
use gmem::Status;
use gmem::cli::{self, Backend, NextLine, RecordOptions, RunOptions};
use gmem::conformance::{self, CheckResult, UnknownId};
use gmem::explore::portfolio::Memory;
use gmem::explore::report::Origin;
use gmem::explore::{Finding, Flow, Plan, Progress, Report};
use gmem::record::Recording;
use gmem::replay::Executor;
use gmem::scenario::Scenario;
use gmem::trace::Header;
use sim_kernel::sched::Schedule;

use super::replay::{Mistake, parrot};

/// Repeats recordings, and says what it was asked to run.
struct Repeater {
    mistake: Mistake,
    run: fn(&mut dyn Write) -> anyhow::Result<Status>,
}

impl Backend for Repeater {
    fn executor(&self, header: &Header) -> Result<Box<dyn Executor>, String> {
        Ok(Box::new(parrot(&super::kept_recordings(), &header.name, self.mistake)))
    }

    fn run(
        &self,
        scenario: &Scenario,
        options: &RunOptions,
        out: &mut dyn Write,
        log: Option<&mut dyn Write>,
        _pkvm_trace: Option<&mut dyn Write>,
    ) -> anyhow::Result<Status> {
        writeln!(out, "{} {options:?}", scenario.name)?;
        match log {
            Some(log) => {
                writeln!(log, "an event")?;
                (self.run)(log)
            }
            None => (self.run)(out),
        }
    }

    fn explore(
        &self,
        _: &Scenario,
        plan: &Plan,
        progress: Progress,
        jobs: usize,
        watch: &mut dyn FnMut(&Progress) -> Flow,
    ) -> Result<Progress, String> {
        if jobs > 9 {
            return Err("so many workers".into());
        }
        let by_strategy = [(plan.choice.to_string(), plan.seed)].into();
        let progress = Progress { by_strategy, finished: true, ..progress };
        watch(&progress);
        Ok(progress)
    }

    fn explain(&self, _: &Scenario, _: &Schedule, origin: &Origin) -> Result<Report, String> {
        Err(format!("nothing to explain with {}", origin.command))
    }

    fn explain_finding(&self, _: &Scenario, _: &Finding, origin: &Origin) -> Result<Report, String> {
        Err(format!("nothing was found with {}", origin.command))
    }

    fn record(&self, scenario: &Scenario, options: &RecordOptions) -> Result<Recording, String> {
        Err(format!("nothing to record of {} with {}", scenario.name, options.origin.command))
    }

    fn record_prefix(&self, scenario: &Scenario, _: Memory, _: &Schedule, _: bool) -> Result<Recording, String> {
        Err(format!("nothing to step through in {}", scenario.name))
    }

    fn record_trace(&self, header: &Header, next: &mut NextLine<'_>) -> Result<Recording, String> {
        let first = next()?.map(|(line, _)| line);
        Err(format!("nothing to record of {} from line {first:?}", header.name))
    }

    fn conformance(&self, patterns: &[String]) -> Result<Vec<CheckResult>, UnknownId> {
        conformance::select(patterns)?;
        let result = |id, status, reason: &str| CheckResult {
            id,
            suite: "suite",
            title: "title",
            status,
            reason: reason.into(),
        };
        let mut results =
            vec![result("XX-1", conformance::Status::Pass, "seen"), result("XX-2", conformance::Status::Absent, "no")];
        if patterns == ["GM-001"] {
            results.push(result("XX-3", conformance::Status::Fail, "expected 1, found 2"));
        }
        Ok(results)
    }

    fn demonstrate(&self, out: &mut dyn Write) -> anyhow::Result<Status> {
        writeln!(out, "demonstration")?;
        Ok(Status::Success)
    }
}

const FINE: Repeater = Repeater { mistake: Mistake::None, run: |_| Ok(Status::Success) };

/// Status, stdout and stderr, without colours.
fn gmem(backend: &Repeater, arguments: &[&str]) -> (Status, String, String) {
    let mut out = Vec::new();
    let mut errors = String::new();
    let arguments = ["gmem"].iter().chain(arguments);
    let status = cli::execute(arguments, backend, &mut out, &mut |text| errors.push_str(text));
    (status, String::from_utf8(out).unwrap(), anstream::adapter::strip_str(&errors).to_string())
}

fn recordings() -> String {
    super::kept_recordings().display().to_string()
}

fn scenario(folder: &Path, text: &str) -> String {
    let path = folder.join("race.toml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn replay_exit_codes() {
    let with = |mistake| Repeater { mistake, ..FINE };
    let status = |backend: &Repeater, arguments: &[&str]| gmem(backend, arguments).0.code();
    assert_eq!(status(&FINE, &["replay", &recordings()]), 0);
    assert_eq!(status(&with(Mistake::Answer), &["replay", &recordings()]), 1);
    assert_eq!(status(&with(Mistake::Stage2), &["replay", &recordings()]), 1);
    assert_eq!(status(&FINE, &["replay", "/nonesuch"]), 2);
    assert_eq!(status(&FINE, &["replay", "--family", "nonesuch", &recordings()]), 2);
    assert_eq!(status(&with(Mistake::Panic), &["replay", &recordings()]), 3);
    assert_eq!(status(&with(Mistake::Panic), &["replay", "--emit", &recordings()]), 3);
}

#[test]
fn replay_json_is_one_object_with_all_differences() {
    let backend = Repeater { mistake: Mistake::Answer, ..FINE };
    let (status, out, errors) = gmem(&backend, &["replay", "--json", &recordings()]);
    assert_eq!((status, errors.as_str()), (Status::Found, ""));
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    let count = |name: &str| object[name].as_u64().unwrap();
    assert_eq!(count("files"), 18);
    assert_eq!(count("operations"), 485);
    assert_eq!(count("stage2_compared"), 485);
    let differing = count("stage2_compared") - count("stage2_agree");
    assert_eq!(object["differences"].as_array().unwrap().len() as u64, differing);
    let families = object["families"].as_object().unwrap();
    let sum: u64 = families.values().map(|family| family["answers_agree"].as_u64().unwrap()).sum();
    assert_eq!(sum, count("answers_agree"));
    let (_, out, _) = gmem(&backend, &["replay", "--json", "--differences", "1", &recordings()]);
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(object["differences"].as_array().unwrap().len(), 1);
}

#[test]
fn replay_emits_byte_for_byte() {
    let path = super::kept_recordings().join("life-001.jsonl");
    let (status, out, errors) = gmem(&FINE, &["replay", "--emit", path.to_str().unwrap()]);
    assert_eq!((status, errors.as_str()), (Status::Success, ""));
    assert_eq!(out, fs::read_to_string(path).unwrap());
}

#[test]
fn many_errors_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..15 {
        fs::write(folder.path().join(format!("{i}.jsonl")), "no trace").unwrap();
    }
    for flags in [&["replay"][..], &["replay", "--emit"]] {
        let arguments: Vec<&str> = flags.iter().copied().chain([folder.path().to_str().unwrap()]).collect();
        let (status, out, errors) = gmem(&FINE, &arguments);
        assert_eq!((status, out.as_str()), (Status::BadInput, ""));
        assert_eq!(errors.matches("error: ").count(), 11);
        assert!(errors.ends_with("error: and 5 more like these"), "{errors}");
    }
}

#[test]
fn bad_usage() {
    for arguments in [
        &["replay"][..],
        &["replay", "--json", "--emit", "x"],
        &["run"],
        &["run", "x", "--seed", "minus"],
        &["run", "x", "--strategy", "luck"],
        &["-v", "-q"],
        &["reply"],
        &["explore"],
        &["explore", "x", "--strategy", "luck"],
        &["explore", "x", "--budget", "soon"],
        &["explore", "x", "--jobs", "0"],
        &["explore", "x", "--replay", "gmem1:aeba", "--seed", "1"],
        &["zoo", "nonesuch"],
        &["invariants", "INV-0"],
        &["completions", "cmd.exe"],
        &["man", "nonesuch"],
    ] {
        let (status, out, errors) = gmem(&FINE, arguments);
        assert_eq!((status, out.as_str()), (Status::BadInput, ""), "{arguments:?}");
        assert!(errors.starts_with("error: "), "{arguments:?}: {errors}");
    }
}

#[test]
fn help_has_examples() {
    for arguments in [&["--help"][..], &["help"], &["run", "--help"], &["replay", "-h"], &["completions", "-h"]] {
        let (status, out, errors) = gmem(&FINE, arguments);
        assert_eq!((status, errors.as_str()), (Status::Success, ""), "{arguments:?}");
        assert!(out.contains("Examples:\n  gmem"), "{arguments:?}: {out}");
    }
    assert_eq!(gmem(&FINE, &["--version"]).1, format!("gmem {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_and_manual() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (status, out, _) = gmem(&FINE, &["completions", shell]);
        assert_eq!(status, Status::Success);
        assert!(out.contains("strategy"), "{shell}");
    }
    assert!(gmem(&FINE, &["man"]).1.contains(".TH gmem 1"));
    assert!(gmem(&FINE, &["man", "replay"]).1.contains("\\-\\-differences"));
}

#[test]
fn run_hands_over_what_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = scenario(folder.path(), "[setup]\nrun = 'create_vm vm0'");
    let (status, out, errors) = gmem(&FINE, &["run", &path, "--seed", "7", "--strategy", "round-robin"]);
    assert_eq!((status, errors.as_str()), (Status::Success, ""));
    let expected = format!(
        "race RunOptions {{ file: {path:?}, seed: 7, strategy: RoundRobin, schedule: None, facts: [], kernel: None, mutants: [] }}\n"
    );
    assert_eq!(out, expected);
    let (status, out, _) = gmem(&FINE, &["run", &path, "--mutant", "RC-01", "--mutant", "bug-22"]);
    assert_eq!(status, Status::Success);
    assert!(out.contains("mutants: [\"RC-01\", \"RC-33\"]"), "{out}");
    let (status, _, errors) = gmem(&FINE, &["run", &path, "--mutant", "RC-0l"]);
    assert_eq!(status, Status::BadInput);
    assert!(errors.contains("--mutant: there is no mutant `RC-0l`; did you mean `RC-01`?"), "{errors}");
    let (status, out, _) = gmem(&FINE, &["run", &path, "--schedule", "gmem1:aeba"]);
    assert_eq!(status, Status::Success);
    assert!(out.contains("schedule: Some(Schedule"), "{out}");
    let (status, _, errors) = gmem(&FINE, &["run", &path, "--schedule", "gmem2:aeba"]);
    assert_eq!(status, Status::BadInput);
    assert!(errors.contains("--schedule: a schedule starts with `gmem1:`"), "{errors}");
    assert_eq!(gmem(&FINE, &[]).1, "demonstration\n");
}

#[test]
fn a_scenario_that_is_no_text_is_an_error_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bytes.toml");
    std::fs::write(&path, b"[setup]\nrun = '\xff'\n").unwrap();
    let (status, out, errors) = gmem(&FINE, &["run", &path.display().to_string()]);
    assert_eq!((status, out.as_str()), (Status::BadInput, ""));
    assert!(errors.contains("bytes.toml:2:8: expected UTF-8 text, found the byte 0xff"), "{errors}");
    let (status, _, errors) = gmem(&FINE, &["run", &folder.path().display().to_string()]);
    assert_eq!(status, Status::BadInput);
    assert!(errors.contains("Is a directory"), "{errors}");
}

#[test]
fn a_mistake_of_any_length_has_a_short_message() {
    let folder = tempfile::tempdir().unwrap();
    let path = scenario(folder.path(), &format!("[setup]\nrun = '{}'", "x".repeat(10_000_000)));
    let (status, _, errors) = gmem(&FINE, &["run", &path]);
    assert_eq!(status, Status::BadInput);
    assert!(errors.len() < 2000, "{} bytes", errors.len());
    assert!(errors.starts_with("error: unknown operation `xxx"), "{errors}");
}

#[test]
fn a_scenario_with_a_mistake_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = scenario(folder.path(), "[setup]\nrun = 'create_vn vm0'");
    let (status, out, errors) = gmem(&FINE, &["run", &path]);
    assert_eq!((status, out.as_str()), (Status::BadInput, ""));
    let errors = errors.replace(&folder.path().display().to_string(), "FOLDER");
    expect![[r#"
        error: unknown operation `create_vn`; did you mean `create_vm`?
         --> FOLDER/race.toml:2:8
          |
        2 | run = 'create_vn vm0'
          |        ^^^^^^^^^ expected the name of an operation"#]]
    .assert_eq(&errors);
    let (status, _, errors) = gmem(&FINE, &["run", "/nonesuch.toml"]);
    assert_eq!(status, Status::BadInput);
    expect![[r#"error: cannot read /nonesuch.toml: No such file or directory (os error 2)"#]].assert_eq(&errors);
}

#[test]
fn a_log_appears_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = scenario(folder.path(), "[setup]\nrun = 'create_vm vm0'");
    let log = folder.path().join("events.jsonl");
    let run = |run| gmem(&Repeater { run, ..FINE }, &["run", &path, "--log", log.to_str().unwrap()]).0;
    let files = || fs::read_dir(folder.path()).unwrap().count();

    assert_eq!(run(|_| anyhow::bail!("no")), Status::BadInput);
    assert_eq!(files(), 1, "nothing is left behind");
    assert_eq!(run(|_| panic!("a bug")), Status::Internal);
    assert_eq!(files(), 1, "not by a panic either");
    assert_eq!(run(|_| Ok(Status::Found)), Status::Found);
    assert_eq!(fs::read_to_string(&log).unwrap(), "an event\n");
    fs::write(&log, "before").unwrap();
    assert_eq!(run(|_| anyhow::bail!("no")), Status::BadInput);
    assert_eq!(fs::read_to_string(&log).unwrap(), "before");
    assert_eq!(run(|_| Ok(Status::Success)), Status::Success);
    assert_eq!(fs::read_to_string(&log).unwrap(), "an event\n");

    let nowhere = folder.path().join("no/such/folder.jsonl");
    let (status, _, errors) = gmem(&FINE, &["run", &path, "--log", nowhere.to_str().unwrap()]);
    assert_eq!(status, Status::BadInput);
    assert!(errors.contains("cannot write"), "{errors}");
}

#[cfg(unix)]
#[test]
fn a_log_may_be_a_device_or_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let path = scenario(folder.path(), "[setup]\nrun = 'create_vm vm0'");
    assert_eq!(gmem(&FINE, &["run", &path, "--log", "/dev/null"]).0, Status::Success);
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    fs::write(&file, "before").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert_eq!(gmem(&FINE, &["run", &path, "--log", link.to_str().unwrap()]).0, Status::Success);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&file).unwrap(), "an event\n");
}

/// A reader that went away.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_broken_pipe_ends_quietly() {
    let recordings = recordings();
    for arguments in [
        &["gmem", "replay", &recordings][..],
        &["gmem", "replay", "--json", &recordings],
        &["gmem", "replay", "--emit", &recordings],
        &["gmem", "completions", "bash"],
        &["gmem", "man"],
        &["gmem", "--help"],
        &["gmem"],
    ] {
        let mut errors = String::new();
        let status = cli::execute(arguments, &FINE, &mut Closed, &mut |text| errors.push_str(text));
        assert_eq!((status, errors.as_str()), (Status::Success, ""), "{arguments:?}");
    }
}

/// A disk that is full is said, whatever was to be written.
#[test]
fn what_cannot_be_written_is_said() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for arguments in [&["gmem", "--help"][..], &["gmem", "--version"], &["gmem", "man"], &["gmem", "conformance"]] {
        let mut errors = String::new();
        let status = cli::execute(arguments, &FINE, &mut Full, &mut |text| errors.push_str(text));
        assert_eq!(status, Status::BadInput, "{arguments:?}");
        assert!(errors.contains("error") && errors.contains("no storage space"), "{arguments:?}: {errors}");
    }
}

/// The program itself: exit codes and streams as a script sees them.
#[test]
fn the_program() {
    let gmem = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gmem"));
        command.args(arguments).env("NO_COLOR", "1").env_remove("RUST_LOG").stdin(Stdio::null()).output().unwrap()
    };
    let help = gmem(&["--help"]);
    assert_eq!((help.status.code(), help.stderr.as_slice()), (Some(0), &b""[..]));
    let none = gmem(&["replay", "/nonesuch"]);
    assert_eq!((none.status.code(), none.stdout.as_slice()), (Some(2), &b""[..]));
    let error = String::from_utf8(none.stderr).unwrap();
    assert_eq!(error, "error: /nonesuch: No such file or directory (os error 2)\n");
}

#[test]
fn conformance_exit_codes() {
    let status = |arguments: &[&str]| gmem(&FINE, arguments).0.code();
    assert_eq!(status(&["conformance"]), 0, "an absent row is no failure");
    assert_eq!(status(&["conformance", "GM-001"]), 1);
    assert_eq!(status(&["conformance", "--json", "GM-001"]), 1);
    assert_eq!(status(&["conformance", "nonesuch"]), 2);
}

#[test]
fn a_failed_check_shows_its_reason() {
    let (status, out, errors) = gmem(&FINE, &["conformance", "GM-001"]);
    assert_eq!((status, errors.as_str()), (Status::Found, ""));
    expect![[r#"
        suite
          XX-1    pass    title
                          seen
          XX-2    absent  title
                          no
          XX-3    fail    title
                          expected 1, found 2

        1 passed, 1 failed, 1 absent
    "#]]
    .assert_eq(&out);
}

#[test]
fn conformance_json_is_one_object() {
    let (_, out, _) = gmem(&FINE, &["conformance", "--json", "GM-001"]);
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&object["pass"], &object["fail"], &object["absent"]), (&1.into(), &1.into(), &1.into()));
    let failed = &object["checks"][2];
    assert_eq!(failed["id"], "XX-3");
    assert_eq!(failed["status"], "fail");
    assert_eq!(failed["reason"], "expected 1, found 2");
    assert_eq!(failed["title"], "title");
    assert_eq!(failed["suite"], "suite");
}

#[test]
fn explore_hands_over_what_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = scenario(folder.path(), "[setup]\nrun = 'create_vm vm0'");
    let (status, out, errors) =
        gmem(&FINE, &["explore", &path, "--strategy", "pct:4", "--seed", "9", "--budget", "3k"]);
    assert_eq!((status, errors.as_str()), (Status::Success, ""));
    expect![[r#"
        race: a scenario
        strategy pct:4, seed 9, budget 3k, Linux 7.3, npt, 3072 MiB, memory model sc

        nothing found in 0 executions (pct:4 9): not all interleavings were seen
    "#]]
    .assert_eq(&out);
    let (status, _, errors) = gmem(&FINE, &["explore", &path, "--jobs", "10"]);
    assert_eq!((status, errors.as_str()), (Status::BadInput, "error: so many workers"));
    let (status, _, errors) = gmem(&FINE, &["explore", &path, "--mutant", "RC-99"]);
    assert_eq!(status, Status::BadInput);
    assert!(errors.starts_with("error: --mutant: there is no mutant `RC-99`"), "{errors}");
    let (status, _, errors) = gmem(&FINE, &["explore", &path, "--kernel", "6.8", "--replay", "gmem1:aeba"]);
    assert_eq!(status, Status::BadInput);
    assert_eq!(errors, format!("error: nothing to explain with gmem explore {path} --kernel 6.8"));
    let (_, _, errors) = gmem(&FINE, &["explore", &path, "--replay", "gmem2:aeba"]);
    assert!(errors.contains("--replay: a schedule starts with `gmem1:`"), "{errors}");
}

#[test]
fn a_checkpoint_of_another_exploration_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = scenario(folder.path(), "[setup]\nrun = 'create_vm vm0'");
    let checkpoint = folder.path().join("checkpoint.json").display().to_string();
    let run = |more: &[&str]| {
        let arguments: Vec<&str> =
            ["explore", &path, "--checkpoint", &checkpoint].iter().chain(more).copied().collect();
        gmem(&FINE, &arguments)
    };
    assert_eq!(run(&[]).0, Status::Success);
    assert_eq!(run(&[]).0, Status::Success, "the same again");
    let (status, out, errors) = run(&["--seed", "1"]);
    assert_eq!((status, out.as_str()), (Status::BadInput, ""));
    let expected = "checkpoint.json cannot be used: it is of another exploration: its seed is 0, and 1 was asked for";
    assert!(errors.ends_with(expected), "{errors}");
    fs::write(&checkpoint, "{").unwrap();
    assert!(run(&[]).2.contains("this is no checkpoint of an exploration"), "{}", run(&[]).2);
}

#[test]
fn invariants_are_listed_and_selected() {
    let (status, out, _) = gmem(&FINE, &["invariants", "INV-201", "inv-30*"]);
    assert_eq!(status, Status::Success);
    assert!(out.contains("INV-201  A stage-2 leaf") && out.contains("INV-301") && !out.contains("INV-202"), "{out}");
    let (_, out, _) = gmem(&FINE, &["invariants", "--json"]);
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(object["invariants"].as_array().unwrap().len(), gmem::invariants::all().count());
}
