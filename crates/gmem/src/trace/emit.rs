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
    let mut members = Vec::new();
    // The line was parsed once, so it is an object.
    if let Ok(parsed) = (Source { text: &line.text }).members() {
        for member in parsed.0 {
            if member.key != "ret" && member.key != "spte" {
                members.push(format!("{}: {}", recorded_style(member.key.as_ref()), member.text));
            }
        }
    }
    finish(members, answer, spte)
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
    let text = recorded_style(op);
    let inside = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or_default();
    finish(vec![inside.to_string()], answer, spte)
}

/// The first line of a new trace.
pub fn new_header(header: &Header) -> String {
    let Header { name, family, kernel, arch, stage2, machine } = header;
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
    recorded_style(&members)
}

fn finish(mut members: Vec<String>, answer: &Answer, spte: &[SpteRun]) -> String {
    members.push(format!("\"ret\": {answer}"));
    if !spte.is_empty() {
        members.push(format!("\"spte\": {}", recorded_style(spte)));
    }
    format!("{{{}}}", members.join(", "))
}
