//! JSON text in the style of the recordings: `", "` between members, `": "` after keys, non-ASCII characters escaped.
//!
//! That is what Python's `json.dumps` prints by default, with which the recorder was written. Simplified: floating-point
//! numbers are printed as Rust prints them (no operation or answer has any).

use std::io::{self, Write};

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

struct Recorded;

impl Formatter for Recorded {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        for character in fragment.chars() {
            if (' '..='~').contains(&character) {
                writer.write_all(&[character as u8])?;
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// `value` as one line of JSON in the style of the recordings.
///
/// ```
/// use gmem::ops::json::recorded_style;
/// assert_eq!(recorded_style(&serde_json::json!({"ok": 0, "dirty": [1, 2]})), r#"{"ok": 0, "dirty": [1, 2]}"#);
/// ```
///
/// # Panics
/// If `value` is no JSON (a map whose keys are no strings); nothing in this crate is.
pub fn recorded_style<T: Serialize + ?Sized>(value: &T) -> String {
    let mut bytes = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut bytes, Recorded))
        .expect("operations and answers are JSON, and a Vec takes any amount");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

/// `value` for an error message: what it is and, if short, its text.
pub fn describe(value: &Value) -> String {
    let kind = match value {
        Value::Null => return "null".into(),
        Value::Bool(truth) => return truth.to_string(),
        Value::Number(_) => "the number",
        Value::String(_) => "the string",
        Value::Array(_) => "the list",
        Value::Object(_) => "the object",
    };
    let mut text = recorded_style(value);
    if text.len() > 40 {
        text.truncate(37);
        text.push_str("...");
    }
    format!("{kind} {text}")
}
