//! The same scenarios on every kind of machine: what holds on all of them, what each does for it, and the command that compares.

use std::collections::BTreeSet;
use std::fs;

use gmem::cli::args::Strategy;
use gmem::explore::campaign::{self, Flow, Progress};
use gmem::explore::portfolio::{Choice, Memory, Plan};
use gmem::explore::program::{Part, ScenarioProgram};
use gmem::kinds::{self, Group, KINDS, Run, Step};
use gmem::scenario::{Scenario, parse};
use gmem::{Simulator, Status, cli, runner};
use sim_kernel::sched::LogLevel;

use super::workspace;

fn path(name: &str) -> String {
    workspace().join("scenarios/kinds").join(name).display().to_string()
}

fn scenario(name: &str) -> Scenario {
    let path = path(name);
    parse(&path, &fs::read_to_string(&path).unwrap()).unwrap_or_else(|error| panic!("{error}"))
}

fn problems(run: &Run) -> Vec<String> {
    let steps = run.report.steps.iter().filter_map(|step| Some(format!("{}: {}", step.text, step.problem.as_ref()?)));
    steps.chain(run.report.invariant.clone()).chain([format!("{:?}", run.report.verdict)]).collect()
}

/// The command's exit code, output and complaints.
fn gmem(arguments: &[&str]) -> (Status, String, String) {
    let (mut out, mut complaints) = (Vec::new(), String::new());
    let arguments = std::iter::once("gmem").chain(arguments.iter().copied());
    let status = cli::execute(arguments, &Simulator, &mut out, &mut |text| complaints.push_str(text));
    (status, String::from_utf8(out).unwrap(), anstream::adapter::strip_str(&complaints).to_string())
}

#[test]
fn the_same_scenarios_hold_on_every_kind_and_come_out_the_same_again() {
    for name in ["conversion.toml", "race.toml"] {
        let scenario = scenario(name);
        for (strategy, seed) in [(Strategy::Random, 0), (Strategy::Random, 1), (Strategy::RoundRobin, 0)] {
            let runs = kinds::run(&scenario, strategy, seed).unwrap();
            let again = kinds::run(&scenario, strategy, seed).unwrap();
            assert_eq!(runs.len(), KINDS.len());
            for (run, again) in runs.iter().zip(&again) {
                let kind = run.kind.name;
                assert!(run.report.is_as_expected(), "{name} on {kind}, seed {seed}: {:?}", problems(run));
                assert_eq!(run.report.log_digest, again.report.log_digest, "{name} on {kind}");
                assert_eq!(run.report.schedule, again.report.schedule, "{name} on {kind}");
                assert_eq!(run.report.steps, again.report.steps, "{name} on {kind}");
                assert_eq!(run.tally, again.tally, "{name} on {kind}");
            }
            let hashes: BTreeSet<u64> = runs.iter().map(|run| run.report.log_digest).collect();
            assert_eq!(hashes.len(), KINDS.len(), "{name}: two kinds have done the same");
        }
    }
}

/// What each kind did in a step of the guest's thread: the number of times, in the order of [`KINDS`].
fn times(runs: &[Run], operation: &str, nth: usize, group: Group, what: &str) -> Vec<u64> {
    let of_run = |run: &Run| {
        let thread: Vec<_> = run.report.steps.iter().filter(|step| step.thread == "guest").collect();
        let index = thread.iter().enumerate().filter(|(_, step)| step.text.starts_with(operation)).nth(nth).unwrap().0;
        let counts = run.tally.get(&Step::Of(Part::Thread(0), index)).into_iter().flatten();
        counts.filter(|count| count.group == group && count.what == what).map(|count| count.times).sum()
    };
    runs.iter().map(of_run).collect()
}

/// The words of the comparison, against what the specifications say that a conversion takes.
#[test]
fn a_conversion_takes_what_the_kind_says() {
    let runs = kinds::run(&scenario("conversion.toml"), Strategy::Random, 0).unwrap();
    for (nth, group, what, expected) in [
        // To shared: who asks whom.
        (0, Group::Guest, "VMCALL", [1, 0, 0, 0, 0]),
        (0, Group::Guest, "TDG.VP.VMCALL", [0, 0, 1, 0, 0]),
        (0, Group::Guest, "PVALIDATE", [0, 1, 0, 0, 0]),
        (0, Group::Guest, "HVC", [0, 0, 0, 1, 1]),
        (0, Group::Exits, "KVM_EXIT_HYPERCALL", [1, 1, 1, 0, 0]),
        (0, Group::Calls, "KVM_SET_MEMORY_ATTRIBUTES", [1, 1, 1, 0, 0]),
        (0, Group::Calls, "fallocate", [1, 1, 1, 0, 0]),
        (0, Group::El2, "guest_share_host", [0, 0, 0, 1, 1]),
        // The page goes back to the host, or stays where it is.
        (0, Group::Pages, "freed", [1, 1, 1, 0, 0]),
        (0, Group::Rmp, "RMPUPDATE", [0, 1, 0, 0, 0]),
        (0, Group::Seamcalls, "TDH.MEM.RANGE.BLOCK", [0, 0, 1, 0, 0]),
        (0, Group::Seamcalls, "TDH.MEM.TRACK", [0, 0, 1, 0, 0]),
        (0, Group::Seamcalls, "TDH.MEM.PAGE.REMOVE", [0, 0, 1, 0, 0]),
        // And back.
        (1, Group::Guest, "PVALIDATE", [0, 1, 0, 0, 0]),
        (1, Group::Guest, "TDG.MEM.PAGE.ACCEPT", [0, 0, 2, 0, 0]),
        (1, Group::Seamcalls, "TDH.MEM.PAGE.AUG", [0, 0, 1, 0, 0]),
        (1, Group::Calls, "madvise", [1, 1, 1, 0, 0]),
        (1, Group::El2, "guest_unshare_host", [0, 0, 0, 1, 1]),
    ] {
        assert_eq!(times(&runs, "guest_convert", nth, group, what), expected, "conversion {nth}: {what}");
    }
}

/// Notes are for people: with them or without, a run is the same to the byte, and so is its hash.
#[test]
fn notes_are_not_part_of_a_run() {
    for kind in KINDS {
        let race = scenario("race.toml");
        let race = Scenario { machine: kind.machine(&race.machine).unwrap(), ..race };
        let run = |level| runner::run(&race, runner::chooser(Strategy::Random, None), 3, level);
        let [hash, full, notes] = [LogLevel::Hash, LogLevel::Full, LogLevel::Notes].map(run);
        assert_eq!([full.log_digest, notes.log_digest], [hash.log_digest; 2], "{}", kind.name);
        assert_eq!(notes.schedule, hash.schedule);
        let without: Vec<String> =
            notes.log.unwrap().lines().filter(|line| !line.contains("\"note\"")).map(body).collect();
        assert_eq!(without, full.log.unwrap().lines().map(body).collect::<Vec<_>>(), "{}", kind.name);
    }
}

/// An event without its number.
fn body(line: &str) -> String {
    line.split_once(',').unwrap().1.to_string()
}

/// The race holds under other orders too, and different kinds let different things happen.
#[test]
fn the_race_is_explored_on_every_kind() {
    let race = scenario("race.toml");
    for kind in KINDS {
        let program = ScenarioProgram::new(&Scenario { machine: kind.machine(&race.machine).unwrap(), ..race.clone() });
        let (choice, memory) = (Choice::Portfolio, Memory::Sc);
        let plan = Plan { choice, seed: 0, executions: 600, search: 300, keep_going: false, memory };
        let progress = campaign::explore(&program, &plan, Progress::default(), 1, &mut |_| Flow::Continue).unwrap();
        let found: Vec<&str> = progress.findings.iter().map(|finding| finding.kind()).collect();
        assert!(found.is_empty(), "{}: {found:?}", kind.name);
        let totals = progress.totals();
        let reader = |outcome: &String| in_short(outcome.split("r0 => ").nth(1).unwrap());
        let seen: BTreeSet<&str> = totals.outcomes.keys().map(reader).collect();
        let expected: &[&str] = match kind.name {
            "software" => &["the page", "zero", "memory fault"],
            "SNP" => &["the page", "something else", "memory fault", "ends the guest"],
            "TDX" => &["the page", "zero", "memory fault", "ends the VM"],
            _ => &["the page"],
        };
        assert_eq!(seen, expected.iter().copied().collect(), "{}: {:?}", kind.name, totals.outcomes);
    }
}

/// What the reader got, as docs/kinds.md has it.
fn in_short(answer: &str) -> &'static str {
    match answer {
        "hlt 7" => "the page",
        "hlt 0" => "zero",
        _ if answer.starts_with("hlt ") => "something else",
        _ if answer.starts_with("memory_fault") => "memory fault",
        _ if answer.starts_with("system_event") => "ends the guest",
        _ if answer.contains("EIO") => "ends the VM",
        _ => panic!("{answer}"),
    }
}

#[test]
fn the_command_shows_steps_side_by_side() {
    let (status, all, complaints) = gmem(&["kinds", &path("conversion.toml")]);
    assert_eq!((status, complaints.as_str()), (Status::Success, ""), "{all}");
    assert!(all.contains("\nguest_convert c0 0x201000 shared\n"), "{all}");
    assert!(all.contains("\n(the process ends)\n"), "{all}");
    assert_eq!(gmem(&["kinds", &path("conversion.toml")]).1, all, "another time, something else");
    let (_, json, _) = gmem(&["kinds", &path("conversion.toml"), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["kinds"].as_array().unwrap().len(), KINDS.len());
    assert_eq!(json["steps"].as_array().unwrap().len(), scenario("conversion.toml").steps().count());
}

#[test]
fn what_the_command_cannot_do_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let stated = file("stated.toml", "[machine]\nsnp = true\n[setup]\nrun = \"create_protected_vm vm0\"\n");
    let small = file("small.toml", "[machine]\nmemory = \"2M\"\n[setup]\nrun = \"create_protected_vm vm0\"\n");
    let broken = file("broken.toml", "[setup]\nrun = \"create_protected_wm vm0\"\n");
    let kinds = path("conversion.toml");
    for (arguments, expected) in [
        (&["kinds", &stated][..], "the scenario's machine has snp = true; one for every kind says nothing of that"),
        (&["kinds", &small], "no machine of kind pKVM: a machine with pKVM needs 4 MiB of memory for its hypervisor"),
        (&["kinds", &broken], "unknown operation `create_protected_wm`; did you mean `create_protected_vm`?"),
        (&["kinds", &kinds, "--line", "2"], "has no step there"),
        (&["run", &kinds, "--machine", "snp"], "--machine: `snp`: expected a fact and its value such as snp=true"),
        (&["run", &kinds, "--machine", "spn=true"], "--machine: machines have no fact `spn`; did you mean `snp`?"),
        (&["run", &kinds, "--machine", "snp=1"], "--machine: `snp=1`: this is no switch; expected true or false"),
        (&["run", &kinds, "--machine", "stage2=x"], "--machine: `stage2=x`: expected one of npt, ept, shadow"),
        (&["run", &kinds, "--machine", "kernel=5.1"], "--machine: `kernel=5.1`: "),
        (
            &["run", &kinds, "--machine", "pkvm_gmem=true"],
            "--machine: pkvm_gmem is about a machine with pKVM: it needs pkvm",
        ),
    ] {
        let (status, _, complaints) = gmem(arguments);
        assert_eq!(status, Status::BadInput, "{arguments:?}: {complaints}");
        assert!(complaints.contains(expected), "{arguments:?}: {complaints}");
    }
}

#[test]
fn what_fails_on_a_kind_is_shown_with_the_command_that_repeats_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.toml");
    let text = fs::read_to_string(workspace().join("scenarios/kinds/conversion.toml")).unwrap();
    fs::write(&path, text.replace("=> hlt 7 | hlt 0 ", "=> hlt 7")).unwrap();
    let path = path.display().to_string();
    let (status, out, _) = gmem(&["kinds", &path]);
    assert_eq!(status, Status::Found);
    assert!(out.contains("not what the scenario says on software:\n"), "{out}");
    assert_eq!(out.matches("not what the scenario says").count(), 1, "{out}");
    let command = out.lines().find(|line| line.starts_with("  gmem run ")).unwrap();
    let words: Vec<&str> = command.split_whitespace().skip(1).collect();
    assert_eq!(gmem(&words).0, Status::Found, "{command}");

    // The same failure elsewhere: the machine stands in the command that repeats it.
    fs::write(&path, text.replace("=> hlt 2", "=> hlt 3")).unwrap();
    let (status, out, _) = gmem(&["run", &path, "--machine", "tdx=true", "--machine", "stage2=ept"]);
    assert_eq!(status, Status::Found);
    assert!(out.contains(&format!("  gmem run {path} --machine tdx=true --machine stage2=ept --schedule ")), "{out}");
}
