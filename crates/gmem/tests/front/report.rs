//! `gmem report`: what is in the files that it writes, and what it says to input that makes no sense. What a browser makes of the page is in `browser.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use gmem::explore::{Report, ScenarioProgram};
use gmem::record::recording::{ArrowKind, Callee, Note};
use gmem::record::store::Value as Cell;
use gmem::record::table::{TABLES, Table};
use gmem::record::{self, Limits, Plan, Recording};
use gmem::scenario::parse;
use gmem::{Simulator, Status, cli, runner};
use serde_json::Value;
use sim_kernel::sched::{Access, Chooser, LogLevel, MemoryModel, Random, Replay};

/// Status, stdout and stderr, without colours.
pub(super) fn gmem(arguments: &[&str]) -> (Status, String, String) {
    let (mut out, mut errors) = (Vec::new(), String::new());
    let arguments = ["gmem", "-q"].iter().chain(arguments).copied();
    let status = cli::execute(arguments, &Simulator, &mut out, &mut |text| errors.push_str(text));
    (status, String::from_utf8(out).unwrap(), anstream::adapter::strip_str(&errors).to_string())
}

pub(super) fn scenario(name: &str) -> String {
    super::workspace().join("scenarios").join(name).display().to_string()
}

/// The schedule of the failure that a mutant makes in a scenario.
pub(super) fn failing_schedule(name: &str, mutant: &str) -> String {
    let (_, out, _) = gmem(&["explore", &scenario(name), "--mutant", mutant, "--json", "--jobs", "1"]);
    let object: Value = serde_json::from_str(&out).unwrap();
    object["findings"][0]["report"]["schedule"].as_str().unwrap().to_string()
}

/// What is embedded in a page.
pub(super) fn data(page: &Path) -> Value {
    let text = fs::read_to_string(page).unwrap();
    let mark = "<script type=\"application/json\" id=\"data\">";
    let from = text.find(mark).unwrap() + mark.len();
    let to = from + text[from..].find("</script>").unwrap();
    serde_json::from_str(&text[from..to]).unwrap()
}

/// A scenario, recorded.
fn record(name: &str, seed: u64) -> Recording {
    let text = fs::read_to_string(scenario(name)).unwrap();
    let plan = Plan {
        strategy: Box::new(Random::new()),
        seed,
        memory: MemoryModel::Sc,
        limits: Limits::default(),
        explain: None,
    };
    record::scenario(&ScenarioProgram::new(&parse(name, &text).unwrap()), plan)
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for (input, format) in [
        ("fault-against-punch.toml", "--steps=100000"),
        ("punch-hole.toml", "--perfetto"),
        ("tdx/fault-punch.toml", "--steps=100000"),
        ("tdx/fault-punch.toml", "--perfetto"),
        ("pkvm/reclaim-against-share.toml", "--steps=100000"),
        ("pkvm/reclaim-against-share.toml", "--perfetto"),
    ] {
        let write = |name: &str| {
            let path = folder.path().join(name);
            let args = ["report", &scenario(input), "--seed", "7", format, "-o", path.to_str().unwrap()];
            assert_eq!(gmem(&args).0, Status::Success);
            fs::read(path).unwrap()
        };
        assert!(write("a") == write("b"), "{input}");
    }
    let other = record("fault-against-punch.toml", 8);
    assert_ne!(record("fault-against-punch.toml", 7).digest, other.digest);
}

#[test]
fn a_recorded_run_is_the_run_itself() {
    for name in [
        "fault-against-conversion.toml",
        "guest-paging.toml",
        "races/fault-release.toml",
        "tdx/fault-punch.toml",
        "pkvm/reclaim-against-share.toml",
    ] {
        for seed in 0..5 {
            let text = fs::read_to_string(scenario(name)).unwrap();
            let parsed = parse(name, &text).unwrap();
            let run = runner::run(&parsed, Chooser::Random(Random::new()), seed, LogLevel::Hash);
            let recording = record(name, seed);
            assert_eq!(recording.digest, run.log_digest, "{name}, seed {seed}");
            assert_eq!(recording.schedule, run.schedule.to_string());
            assert_eq!(recording.is_as_expected, run.is_as_expected());
            let threads = recording.steps.iter().filter(|step| step.task.0 != 0).count();
            assert_eq!(threads as u64, run.scheduling_points);
            assert_eq!(
                recording.store.len(),
                recording.steps.len() + 1,
                "a state before the first step and after each"
            );
        }
    }
}

/// The value of a cell, by the words of its row's first cell, at a look.
fn value(recording: &Recording, look: usize, table: Table, first: &str, column: usize) -> Option<String> {
    let state = recording.store.state_at(look);
    let words = |cell: u32| recording.store.values()[state[cell as usize] as usize].words(&recording.names);
    let mut rows = recording.store.rows().iter().filter(|row| row.table == table);
    let is_it = |cell: u32| words(cell) == first || words(cell).starts_with(&format!("{first}.."));
    let row = rows.find(|row| state[row.cell as usize] != 0 && is_it(row.cell))?;
    Some(words(row.cell + column as u32))
}

#[test]
fn states_say_what_the_operations_did() {
    let recording = record("races/access-punch.toml", 6);
    let last = recording.store.len() - 1;
    let begin = recording.setup_steps;
    // The page that the hole takes.
    assert_eq!(value(&recording, begin, Table::MAP, "0x200", 1).as_deref(), Some("private"));
    let before = value(&recording, begin, Table::MAP, "0x200", 3).unwrap();
    assert!(before.starts_with("g0[0x0"), "{before}");
    let mapped = value(&recording, begin, Table::MAP, "0x200", 4).unwrap();
    assert!(mapped.starts_with("4 KiB, read-write"), "{mapped}");
    let seq = |look| value(&recording, look, Table::COUNTERS, "mmu_invalidate_seq", 1).unwrap();
    assert_ne!(seq(begin), seq(last), "a hole moves the sequence");
    // Some state lies inside the invalidation.
    let inside = (begin..last)
        .find(|look| value(&recording, *look, Table::COUNTERS, "mmu_invalidate_range", 1).as_deref() == Some("0x200"));
    let inside = inside.expect("the hole is announced");
    let in_progress = value(&recording, inside, Table::COUNTERS, "mmu_invalidate_in_progress", 1);
    assert_eq!(in_progress.as_deref(), Some("1"));
    // The TLB had the page and loses it.
    let tlb = |look: usize| {
        let state = recording.store.state_at(look);
        let rows = recording.store.rows().iter().filter(|row| row.table == Table::TLB);
        rows.filter(|row| recording.store.values()[state[row.cell as usize + 2] as usize] == Cell::Hex(0x200)).count()
    };
    assert!((begin..last).any(|look| tlb(look) > 0), "the guest read the page");
    // And the flush that was asked for was served.
    let kinds: Vec<ArrowKind> = recording.arrows.iter().map(|arrow| arrow.kind).collect();
    assert_eq!(kinds, [ArrowKind::Flush, ArrowKind::Acknowledge]);
    let [flush, acknowledge] = recording.arrows[..] else { unreachable!() };
    let zap = |note: &Note| matches!(note, Note::Trace(text) if text.ends_with("→ not present"));
    assert!(recording.steps[flush.from].notes.iter().any(zap));
    assert_eq!(flush.to, acknowledge.from);
    assert_eq!(recording.tasks[recording.steps[acknowledge.to].task.index()], "vcpu");
    // Every lock is released where its task says so, and after it was taken.
    for lock in &recording.locks {
        let step = &recording.steps[lock.to];
        let released = step.notes.contains(&Note::Released(lock.name.clone())) || step.access == Access::SrcuExit;
        assert!(lock.from <= lock.to && released && step.task == lock.task, "{lock:?}");
    }
    assert!(recording.locks.iter().any(|lock| lock.name == "mmu_lock" && lock.from < lock.to));
}

#[test]
fn every_table_is_filled_by_some_scenario() {
    let mut filled = BTreeSet::new();
    for name in [
        "fault-against-punch.toml",
        "dirty-logging.toml",
        "mmap-init-shared.toml",
        "snp/convert-both-ways.toml",
        "tdx/drop-and-refault.toml",
        "pkvm/convert.toml",
    ] {
        filled.extend(record(name, 0).store.rows().iter().map(|row| row.table));
    }
    let all: BTreeSet<Table> = (0..TABLES.len()).map(|at| Table(at as u8)).collect();
    assert_eq!(filled, all);
}

#[test]
fn a_page_of_a_td_goes_and_comes_back_in_the_tables() {
    for seed in 0..4 {
        let recording = record("tdx/drop-and-refault.toml", seed);
        let store = &recording.store;
        let cell = |table: Table, column: u32| {
            let rows: Vec<_> =
                store.rows().iter().filter(|row| row.table == table && row.gfns == (0x200, 0x201)).collect();
            assert_eq!(rows.len(), 1, "seed {seed}: {rows:?}");
            (rows[0].cell + column) as usize
        };
        let state = cell(Table::SEPT, 3);
        let mut states: Vec<String> = (0..store.len())
            .map(|at| store.values()[store.state_at(at)[state] as usize].words(&recording.names))
            .filter_map(|words| words.split_once(", 4 KiB leaf").map(|(state, _)| state.to_string()))
            .collect();
        states.dedup();
        assert_eq!(states, ["Pending", "Mapped", "Blocked", "Pending", "Mapped"], "seed {seed}");
        let notes = recording.steps.iter().flat_map(|step| &step.notes);
        let calls: Vec<&str> = notes
            .filter_map(|note| match note {
                Note::Call(Callee::TdxModule, text) if text.starts_with("TDH.MEM.") && !text.contains("SEPT.ADD") => {
                    Some(text.as_str())
                }
                _ => None,
            })
            .collect();
        let wanted = ["PAGE.AUG", "RANGE.BLOCK", "TRACK", "PAGE.REMOVE", "PAGE.AUG"];
        assert_eq!(calls, wanted.map(|leaf| format!("TDH.MEM.{leaf}: SUCCESS")), "seed {seed}");
    }
}

#[test]
fn pages_of_a_protected_guest_change_hands_in_the_table() {
    let recording = record("pkvm/convert.toml", 0);
    let store = &recording.store;
    let row = store.rows().iter().find(|row| row.table == Table::PKVM && row.gfns == (0x200, 0x201));
    let cell = row.expect("the guest's first page").cell as usize;
    let words =
        |at: usize, column: usize| store.values()[store.state_at(at)[cell + column] as usize].words(&recording.names);
    let mut states: Vec<(String, String)> = (0..store.len()).map(|at| (words(at, 1), words(at, 4))).collect();
    states.retain(|(host, _)| !host.is_empty());
    states.dedup();
    for (host, guest) in [("vm0's at 0x200: NoPage", "Owned"), ("SharedBorrowed", "SharedOwned")] {
        assert!(states.contains(&(host.to_string(), guest.to_string())), "{host}, {guest}: {states:?}");
    }
    // In the guest-physical map, too.
    let looks = 0..store.len();
    let mut mapped: Vec<String> = looks.filter_map(|at| value(&recording, at, Table::MAP, "0x200", 4)).collect();
    mapped.iter_mut().for_each(|words| *words = words.split(", frame").next().unwrap().to_string());
    mapped.dedup();
    let (owned, shared) = ("4 KiB, guest Owned, host NoPage", "4 KiB, guest SharedOwned, host SharedBorrowed");
    assert_eq!(mapped, ["not mapped", owned, shared, owned]);
    let calls = recording.steps.iter().flat_map(|step| &step.notes).filter_map(|note| match note {
        Note::Call(Callee::Hvc, text) => Some(text.as_str()),
        _ => None,
    });
    let wanted = ["MEM_SHARE 0x200000", "MEM_SHARE 0x201000", "MEM_UNSHARE 0x200000", "MEM_UNSHARE 0x201000"];
    assert_eq!(calls.collect::<Vec<_>>(), wanted.map(|call| format!("{call}: SUCCESS")));
}

/// Steps that the prose of docs/report.md goes through, beside its pictures: whoever changes them makes the pictures again, and reads the page.
#[test]
fn steps_of_the_pictures_are_those_of_the_page() {
    let page = fs::read_to_string(super::workspace().join("docs/report.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("page.html");
    let told = |name: &str, more: &[&str], wanted: &[(&str, &str)]| {
        let input = scenario(name);
        let args = [&["report", &input, "-o", file.to_str().unwrap()], more].concat();
        assert_eq!(gmem(&args).0, Status::Success);
        let data = data(&file);
        let setup = data["setup"].as_i64().unwrap();
        let mut step = 0;
        let notes = &data["notes"];
        let text = |number: &Value| data["strings"][number.as_u64().unwrap() as usize].as_str().unwrap().to_string();
        let mut found: Vec<(i64, String)> = Vec::new();
        for (at, distance) in notes["step"].as_array().unwrap().iter().enumerate() {
            step += distance.as_i64().unwrap();
            if [1, 5, 6].contains(&notes["kind"][at].as_u64().unwrap()) {
                found.push((step + 1 - setup, text(&notes["text"][at])));
            }
        }
        if let Some(pair) = data["pair"].as_array() {
            found.extend(pair.iter().map(|step| (step.as_i64().unwrap() + 1 - setup, "collides".to_string())));
        }
        for (words, what) in wanted {
            let numbers: Vec<i64> =
                found.iter().filter(|(_, said)| said.contains(what)).map(|(step, _)| *step).collect();
            let is_said = |number: &i64| page.contains(&words.replace('#', &number.to_string()));
            assert!(
                numbers.iter().any(is_said),
                "docs/report.md does not say {words:?} of a step in {numbers:?}: {name}"
            );
        }
    };
    told(
        "races/fault-punch.toml",
        &["--mutant", "RC-01", "--replay", "gmem1:aesaefi"],
        &[("(step #, the first", "collides"), ("(#, the second)", "collides"), ("at step # the simulator", "INV-201")],
    );
    told("races/access-punch.toml", &["--seed", "6"], &[("the leaf goes (step #)", "→ not present")]);
    let in_turn = ["--strategy", "run-to-completion"];
    told(
        "snp/convert-both-ways.toml",
        &in_turn,
        &[("its leaf is zapped (#)", "→ not present"), ("the page is mapped (#)", "level 1: not present → present")],
    );
    told(
        "tdx/drop-and-refault.toml",
        &in_turn,
        &[
            ("out of the mirror (#)", "→ not present"),
            ("blocks the entry (#)", "TDH.MEM.RANGE.BLOCK"),
            ("counts the epoch on (#)", "TDH.MEM.TRACK"),
            ("gives the page back (#)", "TDH.MEM.PAGE.REMOVE"),
            ("adds another page (#)", "TDH.MEM.PAGE.AUG"),
        ],
    );
}

#[test]
fn a_failure_is_explained_in_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("failure.html");
    let schedule = failing_schedule("races/fault-punch.toml", "RC-01");
    let name = scenario("races/fault-punch.toml");
    // As the explorer prints it, with another command in front and a file behind.
    let args = ["report", &name, "--mutant", "RC-01", "--replay", &schedule, "-o", page.to_str().unwrap()];
    let (status, out, errors) = gmem(&args);
    assert_eq!((status, errors.as_str()), (Status::Success, ""));
    assert!(out.contains("INV-201"), "{out}");
    let data = data(&page);
    assert_eq!(data["expected"], false);
    assert_eq!(data["failure"]["invariant"], "INV-201");
    let setup = data["setup"].as_u64().unwrap();
    let pair: Vec<u64> = data["pair"].as_array().unwrap().iter().map(|at| at.as_u64().unwrap() + 1 - setup).collect();
    let side = |side: &str| data["failure"]["collision"][side]["step"].as_u64().unwrap();
    assert_eq!(pair, [side("first"), side("second")], "step numbers are the explorer's");
    // The text report of the same schedule names the same steps.
    let parsed = parse("fault-punch.toml", &fs::read_to_string(&name).unwrap()).unwrap();
    let mut scenario = parsed;
    scenario.machine.mutants = scenario.machine.mutants.with(gmem::mutants::named("RC-01").unwrap().mutant);
    let schedule = schedule.parse().unwrap();
    let plan = Plan {
        strategy: Box::new(Replay::new(schedule)),
        seed: 0,
        memory: MemoryModel::Sc,
        limits: Limits::default(),
        explain: Some(Default::default()),
    };
    let recording = record::scenario(&ScenarioProgram::new(&scenario), plan);
    let report: &Report = recording.report.as_ref().unwrap();
    let collision = report.collision.as_ref().unwrap();
    assert_eq!([collision.first.step as u64, collision.second.step as u64], [side("first"), side("second")]);
    let failed = |note: &Note| matches!(note, Note::Failed(_));
    assert!(recording.steps.last().unwrap().notes.iter().any(failed), "the last step is where it was noticed");
}

#[test]
fn a_trace_is_a_run_of_one_task() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("trace.html");
    let trace = super::kept_recordings().join("conv-011.jsonl").display().to_string();
    let (status, out, errors) = gmem(&["report", &trace, "-o", page.to_str().unwrap()]);
    assert_eq!((status, errors.as_str()), (Status::Success, ""));
    assert!(out.starts_with("conv-011: "), "{out}");
    let data = data(&page);
    assert_eq!(data["tasks"].as_array().unwrap().len(), 1);
    let lines = data["lines"].as_array().unwrap();
    let operations = fs::read_to_string(&trace).unwrap().lines().count() - 1;
    assert_eq!(lines.len(), operations);
    assert!(lines.iter().all(|line| line["answer"].is_string()));
}

#[test]
fn perfetto_gets_slices_flows_and_counters() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.json");
    let name = scenario("races/access-punch.toml");
    let args = ["report", &name, "--seed", "6", "--perfetto", "-o", file.to_str().unwrap()];
    assert_eq!(gmem(&args).0, Status::Success);
    let object: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let events = object["traceEvents"].as_array().unwrap();
    let of = |phase: &str| events.iter().filter(|event| event["ph"] == phase).collect::<Vec<_>>();
    assert_eq!(of("s").len(), 2, "two flows begin");
    assert_eq!(of("f").len(), 2, "and end");
    for (start, finish) in of("s").iter().zip(of("f")) {
        assert_eq!(start["id"], finish["id"]);
        assert!(start["ts"].as_u64() < finish["ts"].as_u64());
    }
    assert_eq!(of("b").len(), of("e").len(), "locks that are taken end");
    let counters: BTreeSet<&str> = of("C").iter().map(|event| event["name"].as_str().unwrap()).collect();
    assert!(counters.contains("mmu_invalidate_seq"), "{counters:?}");
    let threads: Vec<&str> = of("M").iter().filter_map(|event| event["args"]["name"].as_str()).collect();
    assert!(threads.contains(&"vcpu") && threads.contains(&"vmm"), "{threads:?}");
}

#[test]
fn perfetto_has_tracks_of_calls_below_the_kernel() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.json");
    for (name, tracks, calls) in [
        (
            "tdx/drop-and-refault.toml",
            &["setup: SEAMCALL", "vmm: SEAMCALL", "guest: SEAMCALL"][..],
            &["TDH.MEM.RANGE.BLOCK", "TDH.MEM.TRACK", "TDH.MEM.PAGE.REMOVE", "TDH.MEM.PAGE.AUG", "TDH.VP.ENTER"][..],
        ),
        ("pkvm/convert.toml", &["guest: EL2", "guest: HVC"], &["host_donate_guest", "vcpu_load", "MEM_SHARE 0x200000"]),
    ] {
        let args = ["report", &scenario(name), "--perfetto", "-o", file.to_str().unwrap()];
        assert_eq!(gmem(&args).0, Status::Success);
        let object: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        let events = object["traceEvents"].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_string();
        let named: Vec<(u64, String)> = events
            .iter()
            .filter(|event| event["name"] == "thread_name")
            .map(|event| (event["tid"].as_u64().unwrap(), text(&event["args"]["name"])))
            .collect();
        let mut seen = BTreeSet::new();
        for track in tracks {
            let tid = named.iter().find(|(_, name)| name == track).unwrap_or_else(|| panic!("{name}: {named:?}")).0;
            let of_track: Vec<&Value> =
                events.iter().filter(|event| event["ph"] == "X" && event["tid"] == tid).collect();
            assert!(!of_track.is_empty(), "{name}: {track}");
            let mut end = 0.0;
            for event in of_track {
                let ts = event["ts"].as_f64().unwrap();
                assert!(ts >= end && event["args"]["answer"] != "", "{name}: one after the other, answered: {event}");
                end = ts + event["dur"].as_f64().unwrap() - 1e-9;
                seen.insert(text(&event["name"]));
            }
        }
        for call in calls {
            assert!(seen.contains(*call), "{name}: {call} is not among {seen:?}");
        }
    }
}

#[test]
fn what_makes_no_sense_is_said_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.html");
    let name = scenario("punch-hole.toml");
    let trace = super::kept_recordings().join("conv-011.jsonl").display().to_string();
    let empty = folder.path().join("empty.jsonl");
    fs::write(&empty, "").unwrap();
    let torn = folder.path().join("torn.jsonl");
    let whole = fs::read_to_string(&trace).unwrap();
    fs::write(&torn, &whole[..whole.len() - 9]).unwrap();
    for (input, more, wanted) in [
        ("nowhere.toml", &[][..], "cannot read"),
        ("nowhere.jsonl", &[], "cannot read"),
        (&name, &["--schedule", "gmem2:aa"], "--schedule: a schedule starts with `gmem1:`"),
        (&name, &["--mutant", "RC-9999"], "--mutant: "),
        (&name, &["--seed", "1", "--schedule", "gmem1:ae"], "cannot be used with"),
        (&trace, &["--mutant", "RC-01"], "--mutant is for scenarios"),
        (empty.to_str().unwrap(), &[], "empty.jsonl:1"),
        (torn.to_str().unwrap(), &[], "torn.jsonl:"),
    ] {
        let args = [&["report", input, "-o", output.to_str().unwrap()], more].concat();
        let (status, _, errors) = gmem(&args);
        assert_eq!(status, Status::BadInput, "{args:?}");
        assert!(errors.contains(wanted), "{args:?}: {errors}");
        assert!(!output.exists(), "{args:?}");
    }
    let (status, _, errors) = gmem(&["report", &name, "-o", "/nowhere/at/all.html"]);
    assert_eq!(status, Status::BadInput);
    assert!(errors.contains("cannot write /nowhere/at/all.html"), "{errors}");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "no temporary files: {left:?}");
}

#[test]
fn a_run_without_an_end_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("cut.html");
    let name = scenario("guest-paging.toml");
    let (status, out, _) = gmem(&["report", &name, "--steps", "100", "-o", page.to_str().unwrap()]);
    assert_eq!(status, Status::Success);
    assert!(out.contains("no end after 100 steps"), "{out}");
    let data = data(&page);
    assert_eq!(data["expected"], false);
}

#[test]
fn text_of_a_scenario_cannot_end_the_script() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("evil.toml");
    fs::write(
        &input,
        "[scenario]\nname = \"</script><b>\"\nteaches = \"<!-- <script>\"\n[thread.a]\nrun = \"create_vm vm0\"\n",
    )
    .unwrap();
    let page = folder.path().join("evil.html");
    let args = ["report", input.to_str().unwrap(), "-o", page.to_str().unwrap()];
    assert_eq!(gmem(&args).0, Status::Success);
    let text = fs::read_to_string(&page).unwrap();
    assert_eq!(text.matches("</script>").count(), 2, "the data's and the script's own");
    assert!(text.contains("<title>&lt;/script&gt;&lt;b&gt; - gmem report</title>"));
    assert_eq!(data(&page)["title"], "</script><b>");
}
