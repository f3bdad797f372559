//! `gmem explore`, `gmem zoo` and `gmem invariants` as people use them: what goes wrong only with store buffers, locks in opposite orders, long
//! executions, and input that makes no sense, of which each piece has a clear answer and exit code 2.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use gmem::{Simulator, Status, cli};
use serde_json::Value;

/// Status, stdout and stderr, without colours.
fn gmem(arguments: &[&str]) -> (Status, String, String) {
    let (mut out, mut errors) = (Vec::new(), String::new());
    let arguments = ["gmem", "-q"].iter().chain(arguments).copied();
    let status = cli::execute(arguments, &Simulator, &mut out, &mut |text| errors.push_str(text));
    (status, String::from_utf8(out).unwrap(), anstream::adapter::strip_str(&errors).to_string())
}

fn scenario(name: &str) -> String {
    super::workspace().join("scenarios").join(name).display().to_string()
}

/// What `gmem explore` answers with `--json`; findings are there exactly if it says so.
fn explore(scenario: &str, arguments: &[&str]) -> Value {
    let (status, out, errors) = gmem(&[&["explore", scenario, "--json"], arguments].concat());
    assert_eq!(errors, "", "{arguments:?}");
    let object: Value = serde_json::from_str(&out).unwrap();
    let found = !object["findings"].as_array().unwrap().is_empty();
    assert_eq!(status, if found { Status::Found } else { Status::Success }, "{arguments:?}");
    object
}

fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_missing_barrier_shows_only_with_store_buffers() {
    let scenario = scenario("races/access-punch.toml");
    let sc = explore(&scenario, &["--mutant", "MODE_NO_FENCE"]);
    assert_eq!((&sc["verified"], &sc["memory_model"]), (&Value::Bool(true), &"sc".into()));
    let tso = explore(&scenario, &["--mutant", "MODE_NO_FENCE", "--memory-model", "tso"]);
    let finding = &tso["findings"][0];
    let id = finding["invariant"].as_str().unwrap();
    assert!(["MMU-INV-026", "INV-203", "INV-201", "INV-202"].contains(&id), "{id}");
    // The command that it prints has all that the failure needs.
    let command = finding["report"]["command"].as_str().unwrap();
    assert!(command.contains(" --memory-model tso --mutant MODE_NO_FENCE --replay gmem1:"), "{command}");
    let replay: Vec<&str> = command.split_whitespace().skip(1).collect();
    let (status, out, _) = gmem(&replay);
    assert_eq!(status, Status::Found);
    assert!(out.contains(id), "{out}");
    // With the barrier, store buffers change nothing.
    let fenced = explore(&scenario, &["--memory-model", "tso", "--budget", "4k"]);
    assert_eq!(fenced["verified"], true);
}

/// A vCPU's first run takes slots_arch_lock inside SRCU; whoever makes a slot waits for SRCU inside slots_arch_lock, if RC-60 is off. Here one does so after the
/// other has ended, whatever the schedule.
const ONE_AFTER_THE_OTHER: &str = r#"
[machine]
stage2 = "shadow"
[setup]
run = """
create_vm vm0
create_vcpu vm0 c0
mmap m0 len=4K
"""
[thread.vmm]
run = """
guest_read c0 0x200000
set_user_memory_region vm0 slot=0 gpa=0x200000 size=4K hva=m0 => ok
"""
"#;

#[test]
fn locks_in_opposite_orders_are_found_though_nobody_is_stuck() {
    let folder = tempfile::tempdir().unwrap();
    let alone = file(folder.path(), "alone.toml", ONE_AFTER_THE_OTHER);
    let checkpoint = folder.path().join("checkpoint.json").display().to_string();
    for arguments in [&["--jobs", "1"][..], &["--jobs", "3"], &["--strategy", "random", "--budget", "300"]] {
        let arguments = [arguments, &["--mutant", "RC-60"]].concat();
        let found = explore(&alone, &arguments);
        let finding = &found["findings"][0];
        assert_eq!((&found["verified"], &found["violations"]), (&false.into(), &0.into()));
        assert_eq!((&finding["invariant"], &finding["evidence"]), (&"INV-501".into(), &"order of locks".into()));
        let chains = finding["report"]["chains"].as_array().unwrap();
        assert_eq!(chains.len(), 2, "{chains:?}");
        for (chain, other) in [(&chains[0], &chains[1]), (&chains[1], &chains[0])] {
            assert_eq!(chain["wants"], other["holds"]);
            let place = chain["taken_at"].as_str().unwrap();
            assert!(place.starts_with("crates/gmem/src/") && place.contains(".rs:"), "{place}");
        }
        // The other one was seen before any thread had started: making a VM makes slots.
        let vcpu = chains.iter().find(|chain| chain["holds"] == "kvm->srcu").unwrap();
        assert_eq!((&vcpu["task"], &vcpu["performing"]), (&"vmm".into(), &"line 12: guest_read c0 0x200000".into()));
        // What was found is kept.
        let kept = [&arguments[..], &["--checkpoint", &checkpoint]].concat();
        assert_eq!(found, explore(&alone, &kept));
        assert_eq!(found, explore(&alone, &kept));
        fs::remove_file(&checkpoint).unwrap();
    }
    let (status, out, _) = gmem(&["explore", &alone, "--mutant", "RC-60"]);
    assert_eq!(status, Status::Found);
    assert!(out.contains("INV-501 does not hold (dpor, execution 1)"), "{out}");
    assert!(out.contains("One would be in which each has what it holds before any gets what it wants:"), "{out}");
    assert!(out.contains("none of 1 executions failed, but together they show it"), "{out}");
    // With the rule there is nothing to see.
    assert_eq!(explore(&alone, &[])["verified"], true);
}

#[test]
fn long_executions_are_told_from_endless_ones() {
    let found = explore(&scenario("host-fault-against-punch.toml"), &["--strategy", "random", "--budget", "2k"]);
    assert_eq!((&found["violations"], &found["unfair"]), (&0.into(), &found["truncated"]));
}

/// RC-49 is silent because another rule does its work: `slots_lock` in the release. The row of the specification comes true with both off.
#[test]
fn a_rule_that_another_one_covers_is_missed_with_both_off() {
    let scenario = scenario("races/create-close.toml");
    for alone in ["RC-49", "RC-50"] {
        assert_eq!(explore(&scenario, &["--mutant", alone])["verified"], true, "{alone}");
    }
    let both = explore(&scenario, &["--mutant", "RC-49", "--mutant", "RC-50"]);
    assert_eq!(both["findings"][0]["invariant"], "INV-402");
}

/// Findings and totals of the exhaustive search are the same however many workers share it, to the last character.
#[test]
fn the_number_of_jobs_changes_nothing() {
    for (name, budget) in
        [("fault-against-punch.toml", "6k"), ("races/fault-convert.toml", "9k"), ("races/delete-close.toml", "5k")]
    {
        for strategy in ["dpor", "portfolio"] {
            let with = |jobs: &str| {
                explore(&scenario(name), &["--strategy", strategy, "--budget", budget, "--jobs", jobs, "--keep-going"])
            };
            let one = with("1");
            for jobs in ["2", "3", "5"] {
                assert_eq!(one, with(jobs), "{name}, {strategy}, {jobs} jobs");
            }
        }
    }
}

#[test]
fn faults_at_the_nth_of_something_are_not_verified_by_a_reduction() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(scenario("races/create-close.toml")).unwrap();
    let (before, after) = text.split_at(text.find("[setup]").unwrap());
    let faulty = file(folder.path(), "faulty.toml", &format!("{before}[machine]\nfail_frame = 1000\n{after}"));
    assert_eq!(explore(&scenario("races/create-close.toml"), &[])["verified"], true);
    assert_eq!(explore(&faulty, &[])["verified"], false);
    let (_, out, _) = gmem(&["explore", &faulty]);
    assert!(out.contains("Only --strategy dfs sees all of them."), "{out}");
}

#[test]
fn input_that_makes_no_sense_is_answered_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let good = scenario("races/create-close.toml");
    let other = scenario("races/fault-punch.toml");
    let huge = file(folder, "huge.toml", &"x = 1\n".repeat(200_000));
    let bytes = folder.join("bytes.toml");
    fs::write(&bytes, b"[setup]\nrun = '\xff'").unwrap();
    let bytes = bytes.display().to_string();
    let dir = folder.display().to_string();
    let nowhere = folder.join("no/such/folder/checkpoint.json").display().to_string();
    let json = file(folder, "other.json", "{\"a\": 1}");
    let nothing = file(folder, "nothing.json", "");
    let checkpoint = folder.join("cut.json");
    let path = checkpoint.display().to_string();
    assert_eq!(gmem(&["explore", &good, "--budget", "50", "--checkpoint", &path]).0, Status::Success);
    let whole = fs::read_to_string(&checkpoint).unwrap();
    let cut = file(folder, "half.json", &whole[..whole.len() / 2]);
    let changed = file(folder, "changed.json", &whole.replacen("\"violations\":0", "\"violations\":7", 1));
    assert_ne!(fs::read_to_string(&changed).unwrap(), whole);
    let cases: &[(&[&str], &str)] = &[
        (&["explore", &good, "--budget", "0"], "a budget of nothing explores nothing"),
        (&["explore", &good, "--budget", "1e9"], "`1e9` is neither a number of executions"),
        (&["explore", &good, "--budget", "99999999999999999999"], "is neither a number of executions"),
        (&["explore", &good, "--budget", "99999999999999999M"], "is too much"),
        (&["explore", &good, "--seed", "-1"], "unexpected argument '-1'"),
        (&["explore", &good, "--seed", "99999999999999999999"], "number too large to fit in target type"),
        (&["explore", &good, "--strategy", "pct:0"], "the depth is a number from 1 to 64"),
        (&["explore", &good, "--strategy", "pct:"], "the depth is a number from 1 to 64"),
        (&["explore", &good, "--strategy", "preempt:999999999"], "the bound is a number from 0 to 64"),
        (&["explore", &good, "--strategy", "dfs:3"], "the strategy takes no number"),
        (&["explore", &good, "--strategy", ""], "no strategy ``"),
        (&["explore", &good, "--jobs", "0"], "expected a number from 1 to 1024"),
        (&["explore", &good, "--jobs", "1000000000"], "expected a number from 1 to 1024"),
        (&["explore", &good, "--memory-model", "arm"], "possible values: sc, tso"),
        (&["explore", &good, "--mutant", "RC-0l"], "there is no mutant `RC-0l`; did you mean `RC-01`?"),
        (&["explore", &good, "--mutant", ""], "there is no mutant ``"),
        (&["explore", &good, "--kernel", "1.0"], "older than 6.8"),
        (&["explore", &good, "--replay", ""], "--replay: a schedule starts with `gmem1:`"),
        (&["explore", &good, "--replay", "gmem1"], "--replay: a schedule starts with `gmem1:`"),
        (&["explore", &good, "--replay", "gmem1:!!"], "--replay: "),
        (&["explore", &good, "--replay", "gmem1:aeba", "--checkpoint", &json], "cannot be used with"),
        (&["explore", &nowhere], "cannot read "),
        (&["explore", &dir], "Is a directory"),
        (&["explore", &huge], "huge.toml:"),
        (&["explore", &bytes], "bytes.toml:2:8: expected UTF-8 text, found the byte 0xff"),
        (&["explore", &good, "--checkpoint", &nowhere], "cannot write "),
        (&["explore", &good, "--checkpoint", &dir], "Is a directory"),
        (
            &["explore", &good, "--checkpoint", &json],
            "other.json cannot be used: this is no checkpoint of an exploration",
        ),
        (
            &["explore", &good, "--checkpoint", &nothing],
            "nothing.json cannot be used: this is no checkpoint of an exploration",
        ),
        (
            &["explore", &good, "--budget", "50", "--checkpoint", &cut],
            "half.json cannot be used: this is no checkpoint",
        ),
        (&["explore", &good, "--budget", "50", "--checkpoint", &changed], "changed.json cannot be used: it is damaged"),
        (&["explore", &other, "--budget", "50", "--checkpoint", &path], "its scenario (hash of the text) is "),
        (&["zoo", "RC-0l"], "there is no mutant `RC-0l`; did you mean `RC-01`?"),
        (&["zoo", "RC-01", "--schedules", "many"], "invalid digit found in string"),
        (&["zoo", "RC-01", "--jobs", "0"], "expected a number from 1 to 1024"),
        (&["invariants", "INV-0"], "INV-0"),
        (&["invariants", ""], ""),
    ];
    for (arguments, expected) in cases {
        let (status, out, errors) = gmem(arguments);
        assert_eq!((status, out.as_str()), (Status::BadInput, ""), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
        assert!(errors.starts_with("error: ") && errors.len() < 2_000, "{arguments:?}: {errors}");
    }
}

/// A reader that goes away ends the command without a word.
#[test]
fn nobody_reads_the_result() {
    for arguments in [&["explore", "--json"][..], &["explore"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gmem"));
        command
            .args(arguments)
            .args(["--budget", "200", "--keep-going", "--mutant", "RC-01"])
            .arg(scenario("races/fault-punch.toml"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        assert_eq!(
            (ended.status.code(), String::from_utf8(ended.stderr).unwrap().as_str()),
            (Some(0), ""),
            "{arguments:?}"
        );
    }
}

/// The command that a report ends with can be given to a shell as it is.
#[test]
fn the_command_of_a_report_is_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(scenario("races/fault-punch.toml")).unwrap();
    let path = file(folder.path(), "it's a race.toml", &text);
    let found = explore(&path, &["--mutant", "RC-01"]);
    let command = found["findings"][0]["report"]["command"].as_str().unwrap();
    assert!(command.contains("/it'\\''s a race.toml' --mutant RC-01 --replay gmem1:"), "{command}");
}

/// Not wrong, only small.
#[test]
fn scenarios_with_nothing_to_explore_are_verified_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let none = file(folder.path(), "none.toml", "[setup]\nrun = 'create_vm vm0'\n");
    let one =
        file(folder.path(), "one.toml", "[setup]\nrun = 'create_vm vm0'\n[thread.a]\nrun = 'create_vcpu vm0 c0'\n");
    for path in [&none, &one] {
        for strategy in ["portfolio", "dpor", "dfs", "sleep"] {
            let found = explore(path, &["--strategy", strategy]);
            assert_eq!((&found["verified"], &found["executions"]), (&true.into(), &1.into()), "{path} {strategy}");
        }
        for strategy in ["random", "urw", "pct:64", "pos", "preempt:0"] {
            let found = explore(path, &["--strategy", strategy, "--budget", "3"]);
            assert_eq!((&found["verified"], &found["violations"]), (&false.into(), &0.into()), "{path} {strategy}");
        }
    }
}

/// A schedule of another scenario, or cut short, or too long, is said not to fit, and is a difference, not a panic.
#[test]
fn schedules_of_something_else_are_answered() {
    let scenario = scenario("races/fault-punch.toml");
    for schedule in
        ["gmem1:", "gmem1:aeba", "gmem1:77777777777777777777777777777777777777", "gmem1:aebaebaebaebaebaebaebaebaeba"]
    {
        let (status, out, errors) = gmem(&["explore", &scenario, "--replay", schedule]);
        let is_told = match status {
            Status::BadInput => errors.contains("--replay: "),
            Status::Found => out.contains("the schedule does not fit"),
            _ => false,
        };
        assert!(is_told, "{schedule}: {status:?} {out} {errors}");
    }
}
