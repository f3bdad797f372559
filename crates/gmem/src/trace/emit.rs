//! Prints traces: a line that was read, with other answers; or a new line.
//!
//! Members that are not replaced keep their text and their order; between members stands what Python's `json.dumps` puts
//! there. So a recording whose answers are put back comes out byte for byte.

use super::line::Source;
use super::{Header, Line};
use crate::ops::json::recorded_style;
use crate::ops::{Answer, Op, SpteRun};

/// `line` with `answer` for `ret`, and `spte` if anything changed. What was recorded in their place is dropped.
pub fn with_answer(line: &Line, answer: &Answer, spte: &[SpteRun]) -> String {
    with_outcome(&line.text, Some(answer), spte, None)
}

/// The operation in `text`, a line of a trace, with what came of it: the answer and the changes if there is one, and a note. What was recorded in
/// their place is dropped.
pub fn with_outcome(text: &str, answer: Option<&Answer>, spte: &[SpteRun], note: Option<&str>) -> String {
    // A line that was read is an object.
    let read = Source { text }.members().map_or_else(|_| Vec::new(), |members| members.0);
    let is_other = |key: &str| !matches!(key, "ret" | "spte" | "note");
    let others = read.into_iter().filter(|member| is_other(member.key.as_ref()));
    let mut members: Vec<_> =
        others.map(|member| format!("{}: {}", recorded_style(member.key.as_ref()), member.text)).collect();
    if let Some(answer) = answer {
        members.push(format!("\"ret\": {answer}"));
    }
    if !spte.is_empty() {
        members.push(format!("\"spte\": {}", recorded_style(spte)));
    }
    if let Some(note) = note {
        members.push(format!("\"note\": {}", recorded_style(note)));
    }
    format!("{{{}}}", members.join(", "))
}

/// A line of a new trace.
///
/// ```
/// use gmem::ops::{Answer, Op};
/// use gmem::trace::emit::new_line;
/// let op = Op::Dup { fd: "g0".into(), r#as: "d1".into() };
/// assert_eq!(new_line(&op, &Answer::OK, &[]), r#"{"op": "dup", "fd": "g0", "as": "d1", "ret": {"ok": 0}}"#);
/// ```
pub fn new_line(op: &Op, answer: &Answer, spte: &[SpteRun]) -> String {
    with_outcome(&recorded_style(op), Some(answer), spte, None)
}

/// The first line of a new trace.
pub fn new_header(header: &Header) -> String {
    let Header { name, family, kernel, arch, stage2, machine, spte, notes } = header;
    let mut members = serde_json::json!({
        "trace": super::header::VERSION,
        "name": name,
        "family": family,
        "kernel": kernel,
        "arch": arch,
        "stage2": stage2,
    });
    if !machine.is_empty() {
        members["machine"] = machine.clone().into();
    }
    if !spte {
        members["spte"] = false.into();
    }
    if !notes.is_empty() {
        members["notes"] = notes.clone().into();
    }
    recorded_style(&members)
}
