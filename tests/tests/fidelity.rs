//! `docs/fidelity.md` is true in what can be looked up: what it names as shown by exists, each behaviour has something that shows it, and
//! nothing that shows something is forgotten.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A row of a table whose last column says what shows the behaviour.
struct Row {
    line: usize,
    cells: Vec<String>,
}

impl Row {
    fn shown_by(&self) -> &str {
        self.cells.last().expect("a row has cells")
    }

    /// The texts in backquotes of the last column.
    fn names(&self) -> Vec<&str> {
        self.shown_by().split('`').skip(1).step_by(2).collect()
    }

    fn place(&self) -> String {
        format!("docs/fidelity.md:{}: {}", self.line, self.cells[0])
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page() -> String {
    fs::read_to_string(root().join("docs/fidelity.md")).unwrap()
}

/// The rows of all tables whose last column says what shows the behaviour; those of releases have nine columns.
fn rows() -> Vec<Row> {
    let text = page();
    let mut rows = Vec::new();
    // Columns of the table that the line is in: none outside, and in a table of something else.
    let mut columns = None;
    for (number, line) in text.lines().enumerate() {
        let Some(inside) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            columns = None;
            continue;
        };
        let cells: Vec<String> = inside.split('|').map(|cell| cell.trim().to_string()).collect();
        match columns {
            None => columns = Some((cells.len(), cells.last().is_some_and(|last| last == "shown by"))),
            Some((_, false)) => {}
            Some(_) if cells[0].starts_with("---") => {}
            Some((columns, true)) => {
                assert_eq!(cells.len(), columns, "line {}: columns", number + 1);
                rows.push(Row { line: number + 1, cells });
            }
        }
    }
    assert!(rows.len() > 80, "only {} rows", rows.len());
    rows
}

/// Columns of the releases' table: number, behaviour, five releases, question, shown by.
const COLUMNS: usize = 9;

fn is_release(row: &Row) -> bool {
    row.cells.len() == COLUMNS
}

/// Whether what the table calls by this name exists: a scenario, a file of tests or a test in one, a family of recordings, an assertion.
fn exists(name: &str) -> bool {
    let at = |path: &str| [root().join(path), root().join("crates").join(path)].into_iter().find(|path| path.is_file());
    if let Some((file, test)) = name.split_once("::") {
        let Some(path) = at(file) else { return false };
        let source = fs::read_to_string(path).unwrap();
        let Some(place) = source.find(&format!("fn {test}(")) else { return false };
        // Among the lines directly above it.
        let above = source[..place].rsplit("\n\n").next().unwrap_or_default();
        return above.contains("#[test]");
    }
    if name.ends_with(".rs") {
        return at(name).is_some_and(|path| fs::read_to_string(path).unwrap().contains("#[test]"));
    }
    if name.ends_with(".toml") {
        return name.starts_with("scenarios/") && at(name).is_some();
    }
    if name.starts_with("INV-") {
        return sources().iter().any(|source| source.contains(&format!("\"{name}:")));
    }
    families().contains(name)
}

/// The families of the recordings that are kept.
fn families() -> BTreeSet<String> {
    let folders = ["tests/data/traces", "tests/data/traces-mmu"];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.split_once('-').map(|(family, _)| family.to_string())).collect()
}

/// Every Rust file of the crates.
fn sources() -> Vec<String> {
    let mut folders = vec![root().join("crates")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    sources
}

#[test]
fn what_shows_a_behaviour_exists() {
    let missing: Vec<_> = rows()
        .iter()
        .flat_map(|row| {
            row.names()
                .into_iter()
                .filter(|name| !exists(name))
                .map(|name| format!("{}: `{name}`", row.place()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(missing.is_empty(), "there is no\n  {}", missing.join("\n  "));
    // The look-up itself can fail.
    for name in
        ["scenarios/nonesuch.toml", "nonesuch", "gmem/tests/front/cli.rs::nonesuch", "gmem/src/lib.rs", "INV-999"]
    {
        assert!(!exists(name), "{name} exists");
    }
}

#[test]
fn every_behaviour_is_shown_unless_it_is_absent() {
    for row in rows() {
        let shown = !row.names().is_empty();
        if is_release(&row) {
            // Where releases differ in the model, a question in backquotes says so.
            assert!(shown || !row.cells[COLUMNS - 2].contains('`'), "{}: nothing shows it", row.place());
            continue;
        }
        let faithful = ["faithful", "simplified"].iter().any(|word| row.cells[1].starts_with(word));
        assert!(faithful || row.cells[1] == "absent", "{}: {}", row.place(), row.cells[1]);
        assert_eq!(shown, faithful, "{}: {}, shown by {:?}", row.place(), row.cells[1], row.shown_by());
    }
}

#[test]
fn every_scenario_and_every_family_shows_something() {
    let rows = rows();
    let named: BTreeSet<&str> = rows.iter().flat_map(Row::names).collect();
    for folder in ["scenarios", "scenarios/versions"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let name = format!("{folder}/{}", entry.unwrap().file_name().into_string().unwrap());
            assert!(!name.ends_with(".toml") || named.contains(name.as_str()), "{name} shows nothing");
        }
    }
    for family in families() {
        assert!(named.contains(family.as_str()), "the recordings `{family}` show nothing");
    }
}

#[test]
fn the_releases_are_complete() {
    let rows = rows();
    let releases: Vec<_> = rows.iter().filter(|row| is_release(row)).collect();
    // V and a number: about KVM. H: about the host.
    let numbers = releases.iter().map(|row| row.cells[0].trim_end_matches(['a', 'b']).to_string());
    let numbers: BTreeSet<String> = numbers.filter(|number| !number.starts_with('H')).collect();
    assert_eq!(numbers, (1..=30).map(|number| format!("V{number}")).collect());
    // Every question that the code asks has a row, and every row's question is asked.
    let versions = fs::read_to_string(root().join("crates/gmem/src/kvm/versions.rs")).unwrap();
    let questions: BTreeSet<&str> =
        versions.split("pub(crate) fn ").skip(1).filter_map(|rest| rest.split('(').next()).collect();
    let asked: BTreeSet<&str> = releases
        .iter()
        .flat_map(|row| row.cells[COLUMNS - 2].split('`').skip(1).step_by(2))
        .filter(|name| !name.starts_with("INV-"))
        .collect();
    assert_eq!(asked, questions);
    let sources = sources();
    for question in questions {
        assert!(sources.iter().any(|source| source.contains(&format!(".{question}()"))), "nobody asks {question}");
    }
}

/// The MMU's checklist: its numbers, from and to.
const CHECKLIST: [(u32, u32); 9] =
    [(1, 12), (20, 34), (40, 57), (60, 77), (80, 86), (90, 102), (110, 120), (130, 138), (150, 151)];

/// The numbers `mm_NNN` in names of tests, or `MM-NNN` in a row of a table; `MM-AAA to MM-BBB` are all from the one to the other.
fn numbers_after(text: &str, mark: &str) -> Vec<u32> {
    let digits = |rest: &str| rest.get(..3).and_then(|digits| digits.parse().ok());
    text.split(mark).skip(1).filter_map(digits).collect()
}

#[test]
fn every_item_of_the_mmus_checklist_has_a_test_by_its_number_or_a_reason() {
    let mut tested = BTreeSet::new();
    for folder in ["crates/sim-mmu/tests", "crates/gmem/tests", "tests/tests"] {
        for file in rust_files(&root().join(folder)) {
            let text = fs::read_to_string(file).unwrap();
            let names = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn mm_"));
            tested.extend(names.flat_map(|name| numbers_after(&format!("mm_{name}"), "mm_")));
        }
    }
    let page = fs::read_to_string(root().join("docs/mmu.md")).unwrap();
    let mut reasons = BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with("| MM-")) {
        let items = row.trim_start_matches("| ").split('|').next().expect("a row has cells");
        for part in items.split(", ") {
            match numbers_after(part, "MM-")[..] {
                [one] => _ = reasons.insert(one),
                [first, last] => reasons.extend(first..=last),
                _ => panic!("docs/mmu.md: {part}"),
            }
        }
    }
    let items: BTreeSet<u32> = CHECKLIST.into_iter().flat_map(|(first, last)| first..=last).collect();
    let missing: Vec<_> = items.iter().filter(|item| !tested.contains(item) && !reasons.contains(item)).collect();
    assert!(missing.is_empty(), "neither a test nor a reason: {missing:?}");
    let strangers: Vec<_> = tested.union(&reasons).filter(|item| !items.contains(item)).collect();
    assert!(strangers.is_empty(), "not in the checklist: {strangers:?}");
}

/// pKVM's checklist is PK-001 to PK-030. A test may have several numbers in its name.
#[test]
fn every_item_of_pkvms_checklist_has_a_test_by_its_number() {
    let mut tested = BTreeSet::new();
    for folder in ["crates/sim-coco/src/pkvm", "crates/sim-coco/tests/pkvm", "crates/gmem/tests/kvm/pkvm"] {
        for file in rust_files(&root().join(folder)) {
            let text = fs::read_to_string(file).unwrap();
            let tests = text.split("#[test]\n").skip(1).filter_map(|test| test.trim_start().strip_prefix("fn "));
            tested.extend(tests.flat_map(|test| numbers_after(test.split('(').next().unwrap_or_default(), "pk_")));
        }
    }
    assert_eq!(tested, (1..=30).collect());
}

/// The Rust files below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Every id of TDX's checklist has a row in `docs/tdx.md`, and what a row names is there: tests, by their functions, the id in the name of one of them; or a scenario.
#[test]
fn every_id_of_tdx_is_shown_by_something() {
    let text = fs::read_to_string(root().join("docs/tdx.md")).unwrap();
    let mut tests = BTreeSet::new();
    for folder in ["crates/sim-coco/tests/tdx", "crates/gmem/tests/kvm/tdx"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let source = fs::read_to_string(entry.unwrap().path()).unwrap();
            let lines: Vec<&str> = source.lines().collect();
            let is_test = |pair: &&[&str]| pair[0].trim() == "#[test]";
            let names = lines.windows(2).filter(is_test).filter_map(|pair| pair[1].trim().strip_prefix("fn "));
            tests.extend(names.filter_map(|name| name.split('(').next()).map(str::to_string));
        }
    }
    let rows = text.lines().filter_map(|line| line.strip_prefix("| TD-")?.strip_suffix(" |"));
    let rows: Vec<(u32, &str)> =
        rows.map(|row| row.split_once(" | ").expect("two columns")).map(|(id, by)| (id.parse().unwrap(), by)).collect();
    let ids = (1..=37).chain(40..=50).chain(60..=77).chain(80..=84);
    assert_eq!(
        rows.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        ids.collect::<Vec<_>>(),
        "each id has a row, in order"
    );
    for (id, by) in rows {
        let names: Vec<&str> = by.split('`').skip(1).step_by(2).collect();
        let (scenarios, functions): (Vec<&str>, Vec<&str>) =
            names.into_iter().partition(|name| name.ends_with(".toml"));
        for name in &functions {
            assert!(tests.contains(*name), "TD-{id:03}: there is no test `{name}`");
        }
        for path in &scenarios {
            assert!(root().join(path).exists(), "TD-{id:03}: there is no {path}");
        }
        let by_number = functions.iter().any(|name| name.contains(&format!("td_{id:03}")));
        assert!(by_number || !scenarios.is_empty(), "TD-{id:03}: nothing shows it");
    }
    // And the other way round: no test has the number of another checklist.
    let numbered =
        tests.iter().filter(|name| name.starts_with("td_")).filter(|name| !text.contains(&format!("`{name}`")));
    assert_eq!(numbered.collect::<Vec<_>>(), Vec::<&String>::new(), "not in docs/tdx.md");
}
