//! The documentation says what is true: commands print what `README.md` and `docs/` show, and the tables of operations and
//! kinds are those of the code.
//!
//! Commands run in a folder of their own, with the repository's scenarios and recordings in it, and with the files that a page
//! shows under `<!-- file: NAME -->`. `TRYCMD=overwrite` writes what they print, `UPDATE_EXPECT=1` the tables, into the pages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use gmem::invariants::{self, Section};
use gmem::mutants::{self, MutantInfo};
use gmem::ops::Advice;
use gmem::ops::table::{Arg, Kind, OPS, OpSpec};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// `README.md`, `ARCHITECTURE.md` and every page under `docs/`.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![repository().join("README.md"), repository().join("ARCHITECTURE.md")];
    let mut folders = vec![repository().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &to);
        } else {
            fs::copy(&path, to).unwrap();
        }
    }
}

/// The files that a page shows: the block after each `<!-- file: NAME -->`.
fn files_shown(page: &str) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for part in page.split("<!-- file: ").skip(1) {
        let (name, rest) = part.split_once(" -->").expect("the comment ends");
        let (_, block) = rest.split_once("```").expect("a block follows");
        let (block, _) = block.split_once("\n```").expect("the block ends");
        let (_, text) = block.split_once('\n').expect("the block has lines");
        files.insert(name.to_string(), format!("{text}\n"));
    }
    files
}

#[test]
fn commands_print_what_the_pages_show() {
    let sandbox = tempfile::tempdir().unwrap();
    for folder in ["scenarios", "tests/data/traces"] {
        copy_folder(&repository().join(folder), &sandbox.path().join(folder));
    }
    let cases = trycmd::TestCases::new();
    cases.register_bin("gmem", Path::new(env!("CARGO_BIN_EXE_gmem")));
    for page in pages() {
        for (name, text) in files_shown(&fs::read_to_string(&page).unwrap()) {
            fs::write(sandbox.path().join(name), text).unwrap();
        }
        cases.case(page);
    }
    std::env::set_current_dir(sandbox.path()).unwrap();
    cases.run();
    check_part(&repository().join("README.md"), &sandbox.path().join("events.jsonl"));
}

/// The block after `<!-- part of FILE -->` is a part of what a command wrote to that file, around its first tracepoint of a thread.
fn check_part(page: &Path, file: &Path) {
    let text = fs::read_to_string(page).unwrap();
    let written = fs::read_to_string(file).unwrap();
    let mark = format!("<!-- part of {} -->\n```json\n", file.file_name().unwrap().display());
    let from = text.find(&mark).expect("the page shows a part") + mark.len();
    let to = from + text[from..].find("\n```").expect("the block ends");
    if written.contains(&text[from..to]) {
        return;
    }
    let lines: Vec<&str> = written.lines().collect();
    let is_trace = |line: &&str| line.contains("\"task\":\"vmm\",\"trace\"");
    let first = lines.iter().position(is_trace).expect("the thread changes stage 2");
    let part = lines[first - 1..first + 7].join("\n");
    assert!(
        std::env::var_os("TRYCMD").is_some(),
        "{}: this is not in the log any more; TRYCMD=overwrite writes:\n{part}",
        page.display()
    );
    fs::write(page, format!("{}{part}{}", &text[..from], &text[to..])).unwrap();
}

/// What stands between `<!-- NAME -->` and `<!-- /NAME -->` of a page is `expected`.
fn check_table(page: &str, name: &str, expected: &str) {
    let path = repository().join(page);
    let text = fs::read_to_string(&path).unwrap();
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let from = text.find(&start).expect("the table begins") + start.len();
    let to = text.find(&end).expect("the table ends");
    if text[from..to] == *expected {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_EXPECT").is_some(),
        "{page}: the table `{name}` is not that of the code; UPDATE_EXPECT=1 writes it:\n{expected}"
    );
    fs::write(&path, format!("{}{expected}{}", &text[..from], &text[to..])).unwrap();
}

#[test]
fn attacks_and_their_steps_are_those_of_the_files_and_the_code() {
    use gmem::attack::{Machine, parse};
    for machine in Machine::ALL {
        let facts = machine.facts();
        let folder = repository().join("scenarios/attacks").join(facts.name);
        let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let mut rows = "| attack | what happens | ends | by | switched off |\n|---|---|---|---|---|\n".to_string();
        for path in paths {
            let attack = parse(&path.display().to_string(), &fs::read_to_string(&path).unwrap()).unwrap();
            let switches =
                facts.switches.iter().filter(|(_, on, _)| attack.switches.contains(on)).map(|(key, ..)| *key);
            let off = match attack.mutant {
                Some(mutant) => mutant.id().to_string(),
                None if attack.has_other_machine() => switches.map(|key| format!("`{key}`")).collect(),
                None => String::new(),
            };
            rows.push_str(&format!(
                "| [{name}](../scenarios/attacks/{machine}/{name}.toml) | {teaches} | {label} | {check} | {off} |\n",
                name = attack.name,
                machine = facts.name,
                teaches = attack.teaches,
                label = attack.stopped_by.label,
                check = attack.check.unwrap_or_default(),
            ));
        }
        check_table("docs/attacks.md", &format!("attacks on {}", facts.name), &rows);
        let steps = facts.usage.iter().map(|(form, what)| format!("| `{form}` | {what} |\n"));
        let steps: String = ["| step | what it does |\n|---|---|\n".to_string()].into_iter().chain(steps).collect();
        check_table("docs/attacks.md", &format!("steps on {}", facts.name), &steps);
    }
}

#[test]
fn operations_are_those_of_the_table() {
    let words = |arg: &Arg| match arg.kind {
        Kind::Flags(known) | Kind::Choice(known) if !known.is_empty() => {
            let known: Vec<String> = known.iter().map(|(word, value)| format!("{word} = {value}")).collect();
            Some(format!("`{}`: {}", arg.name, known.join(", ")))
        }
        Kind::Advice => Some(format!("`{}`: {}", arg.name, Advice::ALL.map(|(word, _)| word).join(", "))),
        _ => None,
    };
    let row = |spec: &OpSpec| {
        let words: Vec<String> = spec.args.iter().filter_map(words).collect();
        format!("| `{}` | {} | {} |\n", spec.usage(), spec.help, words.join("; "))
    };
    let rows: String = OPS.iter().map(row).collect();
    let head = "| written | what it is | words |\n|---|---|---|\n";
    check_table("docs/scenarios.md", "operations", &format!("{head}{rows}"));
}

/// The page of the invariants is the registry: one table for each section.
#[test]
fn invariants_are_those_of_the_registry() {
    let mut tables: BTreeMap<Section, String> = BTreeMap::new();
    for inv in invariants::all() {
        let table = tables.entry(inv.section).or_insert_with(|| {
            let head = "| id | what holds | except | looked at | notes |\n|---|---|---|---|---|\n";
            head.to_string()
        });
        let when: Vec<String> = inv.when.iter().map(|when| when.to_string()).collect();
        let row = format!("| {} | {} | {} | {} | {} |\n", inv.id, inv.text, inv.window, when.join(", "), inv.note);
        table.push_str(&row.replace("  ", " "));
    }
    for (section, table) in tables {
        check_table("docs/invariants.md", &section.to_string(), &table);
    }
}

/// The order of locks that is checked (INV-503) is that of the page.
#[test]
fn the_order_of_locks_is_that_of_the_page() {
    let page = fs::read_to_string(repository().join("docs/locks.md")).unwrap();
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let rank: u32 = cells.next()?.parse().ok()?;
        Some((cells.next()?.trim_matches('`').to_string(), rank))
    });
    let checked = invariants::progress::ranks().filter(|(_, rank)| *rank > 0).map(|(name, rank)| (name.into(), rank));
    assert_eq!(rows.collect::<Vec<_>>(), checked.collect::<Vec<_>>());
}

/// The page of the mutants is their registry.
#[test]
fn mutants_are_those_of_the_registry() {
    let order = |id: &str| (id.starts_with("BUG"), id.to_string());
    let mut rows: Vec<_> = mutants::all().collect();
    rows.sort_by_key(|info| order(info.id()));
    let ids = |info: &MutantInfo| [&[info.id()][..], info.also].concat().join(", ");
    let caught = |info: &MutantInfo| match info.is_negative_control() {
        true => "none: negative control".to_string(),
        false => info.caught_by.join(", "),
    };
    let row = |info: &&MutantInfo| {
        let scenario = info.scenario.trim_end_matches(".toml");
        let text = [info.pair, info.removes, info.consequence].join(" | ");
        format!("| {} | {text} | {} | [{scenario}](../scenarios/{}) |\n", ids(info), caught(info), info.scenario)
    };
    let head = "| id | pair | what is switched off | then | caught by | scenario |\n|---|---|---|---|---|---|\n";
    let table: String = rows.iter().map(row).collect();
    check_table("docs/mutants.md", "mutants", &format!("{head}{table}"));
    let mut rows: Vec<_> = mutants::ABSENT.iter().collect();
    rows.sort_by_key(|absent| order(absent.id));
    let table: String = rows.iter().map(|absent| format!("| {} | {} |\n", absent.id, absent.reason)).collect();
    check_table("docs/mutants.md", "absent", &format!("| id | why |\n|---|---|\n{table}"));
}

/// Every number and every id is used once, and every row of the racing pairs is somewhere.
#[test]
fn mutants_are_complete_and_told_apart() {
    let numbers: BTreeSet<_> = mutants::all().map(|info| info.mutant.number()).collect();
    assert_eq!(numbers.len(), mutants::all().count(), "two mutants have one number");
    let ids = mutants::all().flat_map(|info| [&[info.id()][..], info.also].concat());
    let mut ids: Vec<_> = ids.chain(mutants::ABSENT.iter().map(|absent| absent.id)).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "an id stands in two places");
    let missing: Vec<_> = (1..=66).map(|n| format!("RC-{n:02}")).filter(|id| !ids.contains(&id.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?} are nowhere");
    // Real defects: those of guest_memfd, of attributes and pre-faults, of conversion in place, and of the MMU. The others are of machines and guests.
    let bugs = (1..=39).chain(61..=77).map(|n| format!("BUG-{n:02}"));
    let missing: Vec<_> = bugs.filter(|id| !ids.contains(&id.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?} are nowhere");
    for info in mutants::all() {
        let caught = info.caught_by.iter().filter(|id| !id.starts_with("MMU-"));
        caught.for_each(|id| assert!(invariants::find(id).is_some(), "{}: there is no {id}", info.id()));
    }
}

#[test]
fn ids_of_invariants_ascend() {
    let ids: Vec<_> = invariants::all().map(|inv| inv.id).collect();
    assert!(ids.is_sorted() && ids.len() == 161, "{} ids: {ids:?}", ids.len());
    for id in &ids {
        assert_eq!(sim_kernel::sched::invariant_of(&format!("{id}: text")), Some(*id));
    }
    assert_eq!(invariants::named("INV-2O1").unwrap_err(), "there is no invariant `INV-2O1`; did you mean `INV-201`?");
}

/// Links between pages, and from pages to files, lead somewhere.
#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for part in text.split("](").skip(1) {
            let Some((target, _)) = part.split_once(')') else { continue };
            if target.contains("://") || target.starts_with('#') {
                continue;
            }
            let file = target.split('#').next().unwrap();
            let path = page.parent().unwrap().join(file);
            assert!(path.exists(), "{}: the link to {target} leads nowhere", page.display());
        }
    }
}

/// The library's example in `README.md` is the one of the crate's own page, which is compiled and run.
#[test]
fn the_example_is_that_of_the_crate() {
    let source = include_str!("../src/lib.rs");
    let block = source.split("//! ```\n").nth(1).expect("the crate's page has an example");
    let lines = block.lines().map(|line| line.trim_start_matches("//!").strip_prefix(' ').unwrap_or_default());
    let shown: Vec<&str> = lines.filter(|line| !line.starts_with("# ")).collect();
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let in_readme = readme.split("```rust\n").nth(1).and_then(|rest| rest.split("\n```").next());
    assert_eq!(in_readme, Some(shown.join("\n").as_str()), "README.md shows another example");
}

/// The reports in `docs/failures` are those that the explorer makes of the mutants.
#[test]
fn failures_are_those_of_the_explorer() {
    use gmem::explore::campaign::{self, Flow, Progress};
    use gmem::explore::portfolio::{Choice, Memory, Plan};
    use gmem::explore::report::Origin;
    use gmem::explore::{explain, zoo};

    for id in ["RC-01", "RC-20", "RC-51"] {
        let info = gmem::mutants::named(id).unwrap();
        let program = zoo::program_of(info).unwrap();
        let (choice, memory) = (Choice::Portfolio, Memory::Sc);
        let plan = Plan { choice, seed: 0, executions: 100_000, search: 50_000, keep_going: false, memory };
        let progress = campaign::explore(&program, &plan, Progress::default(), 1, &mut |_| Flow::Continue).unwrap();
        let finding = progress.findings.first().unwrap_or_else(|| panic!("{id} is not found"));
        let origin = Origin {
            memory,
            found_by: format!("{}, execution {}", finding.strategy, finding.executions),
            command: format!("gmem explore scenarios/{} --mutant {id}", info.scenario),
            mutants: vec![id.to_string()],
        };
        let schedule = finding.schedule.parse().unwrap();
        let report = explain(program.scenario(), &schedule, Some(finding.kind()), &origin).unwrap();
        let page = format!("docs/failures/{}.md", id.to_lowercase());
        for (name, text) in report.sections() {
            check_table(&page, &format!("report {name}"), &format!("```text\n{text}```\n"));
        }
    }
}
