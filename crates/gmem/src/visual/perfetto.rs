//! A recording as Chrome trace events, which the Perfetto UI opens: a track for each task with its lines, operations and locks, one for what it calls below the
//! kernel (SEAMCALLs, hypercalls at EL2), flow arrows from zaps to flushes to acknowledgements, and counters.
//!
//! There is no time in a simulation: a step is shown as a microsecond.

use std::collections::BTreeSet;
use std::io::{self, Write};

use serde_json::{Value, json};

use crate::record::recording::{Callee, Note, Recording, how};
use crate::record::store::Value as Cell;
use crate::record::table::Table;

/// The one process.
const PID: u32 = 1;
/// Tracks of locks are numbered from here.
const LOCKS: u32 = 100;
/// Tracks of calls are numbered from here, with as many for each callee.
const CALLS: u32 = 200;

/// Writes the recording as one JSON object with `traceEvents`.
///
/// # Errors
/// If `out` cannot be written.
pub fn write(recording: &Recording, out: &mut dyn Write) -> io::Result<()> {
    let mut first = true;
    let mut emit = |event: Value| -> io::Result<()> {
        out.write_all(if first { b"{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n" } else { b",\n" })?;
        first = false;
        serde_json::to_writer(&mut *out, &event).map_err(io::Error::from)
    };
    emit(json!({"ph": "M", "pid": PID, "name": "process_name", "args": {"name": recording.title}}))?;
    for (task, name) in recording.tasks.iter().enumerate() {
        emit(json!({"ph": "M", "pid": PID, "tid": task, "name": "thread_name", "args": {"name": name}}))?;
        let locks = format!("{name}: locks");
        emit(
            json!({"ph": "M", "pid": PID, "tid": LOCKS + task as u32, "name": "thread_name", "args": {"name": locks}}),
        )?;
    }
    lines(recording, &mut emit)?;
    for (at, step) in recording.steps.iter().enumerate() {
        let (site, function) = &recording.sites[step.site as usize];
        let mut args = json!({"step": recording.number(at), "place": format!("{}:{}", site.file, site.line)});
        if let Some(function) = function {
            args["function"] = json!(function);
        }
        let words = recording.words(at);
        emit(json!({"ph": "X", "pid": PID, "tid": step.task.0, "ts": at, "dur": 1, "name": words, "args": args}))?;
        for note in &step.notes {
            if let Note::Trace(text) = note {
                let name = text.split(':').next().unwrap_or(text);
                emit(
                    json!({"ph": "i", "s": "t", "pid": PID, "tid": step.task.0, "ts": at, "name": name, "args": {"event": text}}),
                )?;
            }
        }
    }
    for lock in &recording.locks {
        let (from, to) = (lock.from, lock.to.max(lock.from) + 1);
        let tid = LOCKS + u32::from(lock.task.0);
        let id = format!("{from}-{}", lock.name);
        let name = format!("{} {}", lock.name, how(lock.access));
        // Locks need not nest.
        emit(json!({"ph": "b", "cat": "lock", "id": id, "pid": PID, "tid": tid, "ts": from, "name": name}))?;
        emit(json!({"ph": "e", "cat": "lock", "id": id, "pid": PID, "tid": tid, "ts": to, "name": name}))?;
    }
    for (id, arrow) in recording.arrows.iter().enumerate() {
        let tid = |step: usize| recording.steps[step].task.0;
        let name = arrow.kind.name();
        emit(
            json!({"ph": "s", "cat": "flow", "id": id, "pid": PID, "tid": tid(arrow.from), "ts": arrow.from, "name": name}),
        )?;
        emit(
            json!({"ph": "f", "bp": "e", "cat": "flow", "id": id, "pid": PID, "tid": tid(arrow.to), "ts": arrow.to, "name": name}),
        )?;
    }
    calls(recording, &mut emit)?;
    counters(recording, &mut emit)?;
    out.write_all(b"\n]}\n")
}

/// The lines of the program as slices around the operations that they consist of.
fn lines(recording: &Recording, emit: &mut impl FnMut(Value) -> io::Result<()>) -> io::Result<()> {
    let mut spans: Vec<Option<(usize, usize)>> = vec![None; recording.lines.len()];
    for (at, step) in recording.steps.iter().enumerate() {
        if let Some(line) = step.line {
            let span = &mut spans[line as usize];
            *span = Some((span.map_or(at, |(from, _)| from), at));
        }
    }
    for (line, span) in recording.lines.iter().zip(spans) {
        let Some((from, to)) = span else { continue };
        let args = json!({"line": line.number, "answer": line.answer});
        let dur = to + 1 - from;
        emit(
            json!({"ph": "X", "pid": PID, "tid": line.task, "ts": from, "dur": dur, "name": line.text, "args": args}),
        )?;
    }
    Ok(())
}

/// What tasks call below the kernel: a track for each task and callee, if there is such a call.
fn calls(recording: &Recording, emit: &mut impl FnMut(Value) -> io::Result<()>) -> io::Result<()> {
    let mut named: BTreeSet<u32> = BTreeSet::new();
    for (at, step) in recording.steps.iter().enumerate() {
        let of_note = |note| match note {
            &Note::Call(callee, ref text) => Some((callee, text)),
            _ => None,
        };
        let calls: Vec<(Callee, &String)> = step.notes.iter().filter_map(of_note).collect();
        for (place, (callee, text)) in calls.iter().enumerate() {
            let tid = CALLS * (1 + *callee as u32) + u32::from(step.task.0);
            if named.insert(tid) {
                let name = format!("{}: {}", recording.tasks[step.task.index()], callee.name());
                emit(json!({"ph": "M", "pid": PID, "tid": tid, "name": "thread_name", "args": {"name": name}}))?;
            }
            // Those of one step share its microsecond.
            let dur = 1.0 / calls.len() as f64;
            let ts = at as f64 + dur * place as f64;
            let (name, answer) = text.split_once(": ").unwrap_or((text, ""));
            let args = json!({"step": recording.number(at), "answer": answer});
            emit(
                json!({"ph": "X", "cat": callee.name(), "pid": PID, "tid": tid, "ts": ts, "dur": dur, "name": name, "args": args}),
            )?;
        }
    }
    Ok(())
}

/// Cells that are numbers, of the table of counters.
fn counters(recording: &Recording, emit: &mut impl FnMut(Value) -> io::Result<()>) -> io::Result<()> {
    let store = &recording.store;
    let mut names: Vec<Option<String>> = vec![None; store.rows().len()];
    for look in 0..store.len() {
        for change in store.changes(look) {
            let (row, column) = store.row_of(change.cell);
            if store.rows()[row].table != Table::COUNTERS {
                continue;
            }
            let value = &store.values()[change.value as usize];
            match (column, value) {
                (0, Cell::Absent) => {}
                (0, name) => names[row] = Some(name.words(&recording.names)),
                (_, Cell::Number(number)) => {
                    if let Some(name) = &names[row] {
                        emit(json!({"ph": "C", "pid": PID, "ts": look, "name": name, "args": {"value": number}}))?;
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}
