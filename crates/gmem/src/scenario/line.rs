//! One line of a `run` block: an optional label, an operation, and an optional expectation.
//!
//! Simplified: a line is an operation; nothing continues on the next one.

use std::ops::Range;

use serde_json::{Map, Value};

use super::words;
use super::{Expectation, Pattern};
use crate::ops::Op;
use crate::ops::suggest::did_you_mean;
use crate::ops::table::{self, OpSpec};

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedLine {
    /// The name that `[expect]` calls the answer by.
    pub label: Option<String>,
    /// The operation.
    pub op: Op,
    /// What follows `=>`.
    pub expect: Option<Expectation>,
}

/// A mistake in a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{title}: {label}")]
pub struct LineError {
    /// Where, in bytes of the line.
    pub span: Range<usize>,
    /// What is wrong.
    pub title: String,
    /// What was expected.
    pub label: String,
    /// How the operation is written, where that helps.
    pub help: Option<String>,
}

impl LineError {
    fn new(span: Range<usize>, title: impl Into<String>, label: impl Into<String>) -> Self {
        LineError { span, title: title.into(), label: label.into(), help: None }
    }

    fn with_usage(mut self, spec: &OpSpec) -> Self {
        self.help = Some(format!("usage: {}", spec.usage()));
        self
    }
}

/// A word and its place in the line.
#[derive(Clone, Debug)]
struct Word<'a> {
    text: &'a str,
    span: Range<usize>,
}

/// Parses one line; the line holds an operation, not only a comment.
///
/// # Errors
/// The first mistake, with its place.
///
/// ```
/// use gmem::ops::Op;
/// use gmem::scenario::parse_line;
/// let line = parse_line("r0: guest_write c0 gpa=2M 7   => hlt   # by name and by position").unwrap_err();
/// assert_eq!(line.to_string(), "a positional argument after a named one: expected `name=value`");
/// let line = parse_line("r0: guest_write c0 2M 7").unwrap();
/// assert_eq!(line.op, Op::GuestWrite { vcpu: "c0".into(), gpa: 0x20_0000, value: 7 });
/// ```
pub fn parse_line(line: &str) -> Result<ParsedLine, LineError> {
    let words = split(line)?;
    let arrow = words.iter().position(|word| word.text == "=>");
    let (mut operation, after) = match arrow {
        Some(arrow) => (&words[..arrow], Some(&words[arrow..])),
        None => (&words[..], None),
    };
    let mut label = None;
    if let Some((first, rest)) = operation.split_first()
        && let Some(text) = first.text.strip_suffix(':')
    {
        if !words::is_plain_name(text) {
            let expected = "expected a label of letters, digits, `_`, `.` and `-`";
            return Err(LineError::new(first.span.clone(), format!("`{text}` is no label"), expected));
        }
        label = Some(text.to_string());
        operation = rest;
    }
    let Some((name, args)) = operation.split_first() else {
        let end = words.first().map_or(0..line.len(), |word| word.span.clone());
        return Err(LineError::new(end, "no operation", "expected an operation such as `guest_read c0 0x200000`"));
    };
    let Some(spec) = table::find(name.text) else {
        let title = table::unknown_operation(name.text);
        return Err(LineError::new(name.span.clone(), title, "expected the name of an operation"));
    };
    let op = arguments(spec, name, args)?;
    let expect = after.map(|words| expectation(&words[1..], &words[0].span)).transpose()?;
    Ok(ParsedLine { label, op, expect })
}

fn arguments(spec: &OpSpec, name: &Word<'_>, args: &[Word<'_>]) -> Result<Op, LineError> {
    let fail =
        |span: &Range<usize>, title: String, label: String| LineError::new(span.clone(), title, label).with_usage(spec);
    let mut values: Vec<Option<Value>> = vec![None; spec.args.len()];
    let mut positional = Some(0);
    for word in args {
        let (index, text) = match (named(word.text), positional) {
            (Some((arg, text)), _) => {
                positional = None;
                let Some((index, _)) = spec.arg(arg) else {
                    let known = spec.args.iter().map(|arg| arg.name);
                    let title = format!("`{}` has no argument `{arg}`{}", spec.name, did_you_mean(arg, known.clone()));
                    let label = format!("expected one of {}", known.collect::<Vec<_>>().join(", "));
                    return Err(fail(&(word.span.start..word.span.start + arg.len()), title, label));
                };
                (index, text)
            }
            (None, Some(next)) if next < spec.args.len() => {
                positional = Some(next + 1);
                (next, word.text)
            }
            (None, Some(_)) => {
                let title = format!("too many arguments for `{}`", spec.name);
                return Err(fail(&word.span, title, "expected `=>`, a comment or the end of the line".into()));
            }
            (None, None) => {
                let title = "a positional argument after a named one".into();
                return Err(fail(&word.span, title, "expected `name=value`".into()));
            }
        };
        let arg = &spec.args[index];
        let at = word.span.end - text.len()..word.span.end;
        if values[index].is_some() {
            return Err(fail(&word.span, format!("argument `{}` is given twice", arg.name), "given before".into()));
        }
        let value = words::value(arg.kind, text).ok_or_else(|| {
            fail(&at, format!("`{text}` is no value for `{}`", arg.name), format!("expected {}", arg.kind.expected()))
        })?;
        values[index] = Some(value);
    }

    let mut fields = Map::from_iter([("op".to_string(), Value::from(spec.name))]);
    for (arg, value) in spec.args.iter().zip(values) {
        let value = value.or_else(|| arg.default.and_then(|default| words::value(arg.kind, default)));
        let Some(value) = value else {
            let end = args.last().map_or(name.span.end, |word| word.span.end);
            let title = format!("`{}` lacks the argument `{}`", spec.name, arg.name);
            return Err(fail(&(name.span.start..end), title, format!("expected {}", arg.kind.expected())));
        };
        fields.insert(arg.name.into(), value);
    }
    serde_json::from_value(Value::Object(fields))
        .map_err(|error| fail(&name.span, error.to_string(), "not an operation".into()))
}

/// `name=value`, where the name looks like one.
fn named(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then_some((name, value))
}

/// What follows `=>`, whose place is `arrow`.
fn expectation(words: &[Word<'_>], arrow: &Range<usize>) -> Result<Expectation, LineError> {
    let mut patterns = Vec::new();
    let mut last = arrow.clone();
    for alternative in words.split(|word| word.text == "|") {
        let texts: Vec<&str> = alternative.iter().map(|word| word.text).collect();
        let pattern = Pattern::parse(&texts).map_err(|(i, expected)| {
            let span = alternative.get(i).map_or(last.clone(), |word| word.span.clone());
            let title = match alternative.get(i) {
                Some(word) => format!("`{}` is no answer that can be expected", word.text),
                None => "an expected answer is missing".into(),
            };
            LineError::new(span, title, expected)
        })?;
        patterns.push(pattern);
        // The `|` that follows, if another alternative is missing after it.
        if let Some(word) = alternative.last() {
            last = words
                .iter()
                .find(|next| next.span.start >= word.span.end && next.text == "|")
                .map_or(word.span.clone(), |bar| bar.span.clone());
        }
    }
    Ok(Expectation(patterns))
}

/// `label => expectation & label => expectation`: an outcome.
pub(super) fn conditions(text: &str) -> Result<Vec<(String, Range<usize>, Expectation)>, LineError> {
    let words = split(text)?;
    let mut conditions = Vec::new();
    for condition in words.split(|word| word.text == "&") {
        match condition {
            [label, arrow, rest @ ..] if arrow.text == "=>" => {
                conditions.push((label.text.to_string(), label.span.clone(), expectation(rest, &arrow.span)?));
            }
            other => {
                let span = other.first().map_or(0..text.len(), |first| first.span.start..text.len());
                let expected = "expected `label => answer`, joined by `&`";
                return Err(LineError::new(span, "this is no outcome", expected));
            }
        }
    }
    Ok(conditions)
}

/// Whether the line holds nothing but a comment.
pub(super) fn is_blank(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#')
}

/// The line without its comment.
pub(super) fn without_comment(line: &str) -> &str {
    let words = split(line).unwrap_or_default();
    words.last().map_or("", |last| &line[..last.span.end])
}

/// The words of a line up to a comment: separated by blanks that are in no quotes and no brackets. `=>` is a word of its
/// own, and after it so are `|` and `&`; before it, `|` joins flags.
fn split(line: &str) -> Result<Vec<Word<'_>>, LineError> {
    let bytes = line.as_bytes();
    let mut words = Vec::new();
    let mut at = 0;
    let mut after_arrow = false;
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            byte if byte.is_ascii_whitespace() => {
                at += 1;
                continue;
            }
            b'#' => break,
            b'|' | b'&' if after_arrow => at += 1,
            _ if line[at..].starts_with("=>") => {
                after_arrow = true;
                at += 2;
            }
            _ => at = word_end(line, at, after_arrow)?,
        }
        words.push(Word { text: &line[start..at], span: start..at });
    }
    Ok(words)
}

fn word_end(line: &str, start: usize, after_arrow: bool) -> Result<usize, LineError> {
    let bytes = line.as_bytes();
    let mut at = start;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = closing_quote(line, at)? + 1,
            b'[' => match line[at..].find(']') {
                Some(length) => at += length + 1,
                None => return Err(LineError::new(at..line.trim_end().len(), "the list has no end", "expected `]`")),
            },
            b'#' => break,
            b'|' | b'&' if after_arrow => break,
            byte if byte.is_ascii_whitespace() => break,
            _ if line[at..].starts_with("=>") => break,
            // A byte of a longer character never equals one of the above.
            _ => {
                at += 1;
                while !line.is_char_boundary(at) {
                    at += 1;
                }
            }
        }
    }
    Ok(at)
}

fn closing_quote(line: &str, open: usize) -> Result<usize, LineError> {
    let bytes = line.as_bytes();
    let mut at = open + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return Ok(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    Err(LineError::new(open..line.trim_end().len(), "the quoted name has no end", "expected `\"`"))
}
