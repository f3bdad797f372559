//! A recording as compact JSON, for the page that shows it.
//!
//! Columns instead of objects, numbers instead of repeated strings, differences instead of states, distances instead of places where they
//! ascend. `assets/report.js` reads it; the two change together.

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::explore::report::{Collision, verb};
use crate::record::recording::{Line, Note, Recording};
use crate::record::store::Store;
use crate::record::table::TABLES;

/// The largest number that JavaScript counts to.
const NUMBER_MAX: u64 = (1 << 53) - 1;

/// Strings by number, each once.
#[derive(Default, Serialize)]
#[serde(transparent)]
struct Strings {
    list: Vec<String>,
    #[serde(skip)]
    index: FxHashMap<String, u32>,
}

impl Strings {
    fn number(&mut self, text: &str) -> u32 {
        if let Some(number) = self.index.get(text) {
            return *number;
        }
        let number = self.list.len() as u32;
        self.list.push(text.to_string());
        self.index.insert(text.to_string(), number);
        number
    }
}

#[derive(Default, Serialize)]
struct Steps {
    task: Vec<u8>,
    verb: Vec<u32>,
    object: Vec<u32>,
    place: Vec<u32>,
    site: Vec<u32>,
    line: Vec<i64>,
    /// 1: notable, 2: by the store buffer; above, one more than the task that was stopped.
    flags: Vec<u32>,
    /// First guest frame, or -1, and how many.
    gfn: Vec<i64>,
    gfns: Vec<u64>,
}

#[derive(Default, Serialize)]
struct Notes {
    /// Distance from the note before.
    step: Vec<u32>,
    kind: Vec<u8>,
    text: Vec<u32>,
}

#[derive(Default, Serialize)]
struct Locks {
    task: Vec<u8>,
    name: Vec<u32>,
    how: Vec<u32>,
    /// Distance from the lock before.
    from: Vec<u32>,
    length: Vec<u32>,
}

#[derive(Default, Serialize)]
struct Rows {
    table: Vec<u8>,
    gfn: Vec<i64>,
    gfns: Vec<u64>,
}

#[derive(Default, Serialize)]
struct Changes {
    /// How many each look has.
    count: Vec<u32>,
    cell: Vec<u32>,
    value: Vec<u32>,
}

#[derive(Serialize)]
struct TableData {
    id: &'static str,
    title: &'static str,
    note: &'static str,
    columns: &'static [&'static str],
}

#[derive(Serialize)]
struct LineData<'a> {
    task: usize,
    number: u64,
    text: &'a str,
    answer: Option<&'a str>,
    problem: Option<&'a str>,
}

#[derive(Serialize)]
struct FailureData<'a> {
    invariant: Option<&'a str>,
    rule: Option<&'a str>,
    mutants: &'a [String],
    collision: Option<&'a Collision>,
    command: &'a str,
}

#[derive(Serialize)]
struct Data<'a> {
    format: u32,
    title: &'a str,
    teaches: Option<&'a str>,
    facts: &'a [(String, String)],
    ending: &'a str,
    expected: bool,
    tasks: &'a [String],
    lines: Vec<LineData<'a>>,
    setup: usize,
    objects: &'a [String],
    sites: Vec<(String, &'a str)>,
    strings: Strings,
    steps: Steps,
    notes: Notes,
    locks: Locks,
    /// 0 zap to flush, 1 flush to acknowledgement; from, to.
    arrows: Vec<(u8, usize, usize)>,
    tables: Vec<TableData>,
    rows: Rows,
    values: Vec<String>,
    changes: Changes,
    pair: Option<(usize, usize)>,
    failure: Option<FailureData<'a>>,
    schedule: &'a str,
    digest: String,
}

/// The recording as JSON that can stand inside a `<script>`.
pub fn json(recording: &Recording) -> String {
    let mut strings = Strings::default();
    strings.number("");
    let steps = steps(recording, &mut strings);
    let notes = notes(recording, &mut strings);
    let locks = locks(recording, &mut strings);
    let (rows, changes) = state(&recording.store);
    let data = Data {
        format: 1,
        title: &recording.title,
        teaches: recording.teaches.as_deref(),
        facts: &recording.facts,
        ending: &recording.ending,
        expected: recording.is_as_expected,
        tasks: &recording.tasks,
        lines: recording.lines.iter().map(line).collect(),
        setup: recording.setup_steps,
        objects: &recording.objects,
        sites: recording
            .sites
            .iter()
            .map(|(site, function)| (crate::record::assemble::site_words(site), function.unwrap_or("")))
            .collect(),
        steps,
        notes,
        locks,
        strings,
        arrows: recording.arrows.iter().map(|arrow| (arrow.kind as u8, arrow.from, arrow.to)).collect(),
        tables: TABLES
            .iter()
            .map(|spec| TableData { id: spec.id, title: spec.title, note: spec.note, columns: spec.columns })
            .collect(),
        rows,
        values: recording.store.values().iter().map(|value| value.words(&recording.names)).collect(),
        changes,
        pair: recording.pair,
        failure: recording.report.as_ref().map(|report| FailureData {
            invariant: report.invariant.as_deref(),
            rule: report.text.as_deref(),
            mutants: &report.mutants,
            collision: report.collision.as_ref(),
            command: &report.command,
        }),
        schedule: &recording.schedule,
        digest: format!("{:016x}", recording.digest),
    };
    let text = serde_json::to_string(&data).expect("plain data has a text");
    // Nothing in it may end the script that it stands in.
    text.replace('<', "\\u003c")
}

fn line(line: &Line) -> LineData<'_> {
    let Line { task, number, text, answer, problem } = line;
    LineData { task: *task, number: *number, text, answer: answer.as_deref(), problem: problem.as_deref() }
}

/// A range of guest frames as JavaScript counts: first, or -1 if there is none, and how many.
fn frames((first, end): (u64, u64)) -> (i64, u64) {
    if first >= end || first > NUMBER_MAX { (-1, 0) } else { (first as i64, (end - first).min(NUMBER_MAX)) }
}

fn steps(recording: &Recording, strings: &mut Strings) -> Steps {
    let mut steps = Steps::default();
    for step in &recording.steps {
        steps.task.push(step.task.0);
        steps.verb.push(strings.number(verb(step.access)));
        steps.object.push(step.object);
        steps.place.push(strings.number(&step.place));
        steps.site.push(step.site);
        steps.line.push(step.line.map_or(-1, i64::from));
        let stopped = step.preempted.map_or(0, |task| u32::from(task.0) + 1);
        steps.flags.push(u32::from(step.notable) | u32::from(step.buffered) << 1 | stopped << 2);
        let (gfn, gfns) = frames(step.gfns);
        steps.gfn.push(gfn);
        steps.gfns.push(gfns);
    }
    steps
}

fn notes(recording: &Recording, strings: &mut Strings) -> Notes {
    let mut notes = Notes::default();
    let mut before = 0;
    for (at, step) in recording.steps.iter().enumerate() {
        for note in &step.notes {
            let (kind, text) = match note {
                Note::Released(lock) => (0, strings.number(lock)),
                Note::Trace(text) => (1, strings.number(text)),
                // The number of the line itself.
                Note::Completed(line) => (2, *line),
                Note::Spawned(task) => (3, *task as u32),
                Note::Ended => (4, 0),
                Note::Failed(text) => (5, strings.number(text)),
                Note::Call(callee, text) => (6, strings.number(&format!("{} {text}", callee.name()))),
            };
            notes.step.push((at - before) as u32);
            before = at;
            notes.kind.push(kind);
            notes.text.push(text);
        }
    }
    notes
}

fn locks(recording: &Recording, strings: &mut Strings) -> Locks {
    let mut locks = Locks::default();
    let mut before = 0;
    for lock in &recording.locks {
        locks.task.push(lock.task.0);
        locks.name.push(strings.number(&lock.name));
        locks.how.push(strings.number(crate::record::recording::how(lock.access)));
        locks.from.push((lock.from - before) as u32);
        before = lock.from;
        locks.length.push((lock.to - lock.from) as u32);
    }
    locks
}

/// Rows in the order in which they are shown, and what changes in them: cells are numbered through in that order.
fn state(store: &Store) -> (Rows, Changes) {
    let mut rows = Rows::default();
    let mut place = vec![0; store.cells()];
    let mut next = 0;
    for row in store.order() {
        let row = &store.rows()[row as usize];
        rows.table.push(row.table.0);
        let (gfn, gfns) = frames(row.gfns);
        rows.gfn.push(gfn);
        rows.gfns.push(gfns);
        for cell in row.cell..row.cell + row.table.spec().columns.len() as u32 {
            place[cell as usize] = next;
            next += 1;
        }
    }
    let mut changes = Changes::default();
    for look in 0..store.len() {
        let mut sorted: Vec<(u32, u32)> =
            store.changes(look).iter().map(|change| (place[change.cell as usize], change.value)).collect();
        sorted.sort_unstable();
        changes.count.push(sorted.len() as u32);
        for (cell, value) in sorted {
            changes.cell.push(cell);
            changes.value.push(value);
        }
    }
    (rows, changes)
}
