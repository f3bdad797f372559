//! One line of a trace: its operation, and what was recorded about it.

use serde_json::{Map, Value};

use super::TraceErrorKind;
use super::raw::{Member, Members, column_at, column_of};
use crate::ops::json::describe;
use crate::ops::table::{self, Arg, Kind};
use crate::ops::{Advice, Answer, Op, Prot, SpteRun};

/// The text of one line, and what its errors need.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    pub(crate) text: &'a str,
}

pub(crate) type Failure = (usize, TraceErrorKind);

/// An operation of a trace. The recorded answer is not looked at until [`Line::recorded`] is asked for it.
#[derive(Clone, Debug)]
pub struct Line {
    /// The line's number in the file, from 1.
    pub number: u64,
    /// What to do.
    pub op: Op,
    /// The line as it stands in the file, without its end.
    pub text: String,
}

/// What a kernel answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// What the operation returned.
    pub answer: Answer,
    /// What changed in stage 2.
    pub spte: Vec<SpteRun>,
}

impl Line {
    pub(crate) fn parse(number: u64, source: &Source<'_>) -> Result<Line, Failure> {
        let members = source.members()?;
        let op = source.op(&members)?;
        Ok(Line { number, op, text: source.text.to_string() })
    }

    /// The recorded answer, or `None` if the line has no `ret`. Without `spte`, nothing changed.
    ///
    /// # Errors
    /// The column and the mistake, if `ret` or `spte` is malformed.
    pub fn recorded(&self) -> Result<Option<Recorded>, (usize, TraceErrorKind)> {
        let source = Source { text: &self.text };
        let members = source.members()?;
        let Some(ret) = members.get("ret") else {
            return Ok(None);
        };
        let failure = |member: &Member<'_>, field, message| {
            (source.column(member.text), TraceErrorKind::Answer { field, message })
        };
        let answer = Answer::from_json(&source.value(ret)?).map_err(|message| failure(ret, "ret", message))?;
        let spte = match members.get("spte") {
            None => Vec::new(),
            Some(spte) => serde_json::from_str(spte.text).map_err(|error| {
                let expected = "expected a list of [gfn, entries, level, from, to, writable]";
                // serde's own "at line 1 column n" counts from the field's start and would mislead.
                let reason = error.to_string();
                let reason = reason.split(" at line ").next().unwrap_or_default();
                failure(spte, "spte", format!("{expected}: {reason}"))
            })?,
        };
        Ok(Some(Recorded { answer, spte }))
    }
}

impl<'a> Source<'a> {
    pub(crate) fn members(&self) -> Result<Members<'a>, Failure> {
        let members: Members<'a> = serde_json::from_str(self.text).map_err(|error| self.json_error(&error))?;
        match members.duplicate() {
            Some(member) => Err((self.column(member.text), TraceErrorKind::Duplicate(member.key.to_string()))),
            None => Ok(members),
        }
    }

    pub(crate) fn column(&self, part: &str) -> usize {
        column_of(self.text, part)
    }

    /// The column after the line's last character: where a missing field could have stood.
    pub(crate) fn end(&self) -> usize {
        column_at(self.text, self.text.trim_end().len())
    }

    pub(crate) fn value(&self, member: &Member<'_>) -> Result<Value, Failure> {
        serde_json::from_str(member.text).map_err(|error| {
            // The text was scanned already; what is left is what scanning does not look at, such as nesting or range.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default().to_string();
            (self.column(member.text), TraceErrorKind::Json(message))
        })
    }

    fn json_error(&self, error: &serde_json::Error) -> Failure {
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default().to_string();
        if error.is_data() {
            return (1, TraceErrorKind::Json(message));
        }
        // serde_json counts bytes from 1 and reports the last one that it read.
        (column_at(self.text, error.column().saturating_sub(1)), TraceErrorKind::Json(message))
    }

    fn op(&self, members: &Members<'_>) -> Result<Op, Failure> {
        let missing = |field, expected: &str| {
            let expected = expected.to_string();
            (self.end(), TraceErrorKind::Missing { field, expected })
        };
        let ill_typed = |member: &Member<'_>, field, expected: &str, found: &Value| {
            // A number keeps its digits: one that is out of range would be shown as a rounded float.
            let found = match found {
                Value::Number(_) => format!("the number {}", member.text.chars().take(40).collect::<String>()),
                other => describe(other),
            };
            let expected = expected.to_string();
            (self.column(member.text), TraceErrorKind::IllTyped { field, expected, found })
        };

        let member = members.get("op").ok_or_else(|| missing("op", "the name of an operation"))?;
        let name = match self.value(member)? {
            Value::String(name) => name,
            other => return Err(ill_typed(member, "op", "the name of an operation", &other)),
        };
        let spec = table::find(&name).ok_or_else(|| {
            let short: String = name.chars().take(60).collect();
            (self.column(member.text), TraceErrorKind::UnknownOperation(table::unknown_operation(&short)))
        })?;

        let mut fields = Map::new();
        fields.insert("op".into(), spec.name.into());
        for Arg { name, kind, may_be_absent, .. } in spec.args {
            let Some(member) = members.get(name) else {
                if *may_be_absent {
                    continue;
                }
                return Err(missing(name, &kind.expected_json()));
            };
            let value = self.value(member)?;
            let value =
                from_json(*kind, &value).ok_or_else(|| ill_typed(member, name, &kind.expected_json(), &value))?;
            fields.insert((*name).into(), value);
        }
        serde_json::from_value(Value::Object(fields)).map_err(|error| (1, TraceErrorKind::Json(error.to_string())))
    }
}

/// `value` as [`Op`] holds it, or `None` if it is not of this kind.
fn from_json(kind: Kind, value: &Value) -> Option<Value> {
    let fits = match kind {
        Kind::Name(_) => value.is_string(),
        Kind::MaybeName(_) => value.is_string() || value.is_null(),
        Kind::Count | Kind::Size | Kind::Address | Kind::Flags(_) | Kind::Choice(_) => value.is_u64(),
        Kind::Only(known) => {
            let number = value.as_u64()?;
            known.iter().any(|(_, known)| *known == number)
        }
        Kind::Signed => return signed(value),
        Kind::Hva => match value {
            // Anything that recorders may add beside the two is dropped: only these two reach the operation.
            Value::Object(object) => {
                let (map, offset) = (object.get("map")?, object.get("offset")?);
                return (map.is_string() && offset.is_u64()).then(|| serde_json::json!({"map": map, "offset": offset}));
            }
            other => other.is_u64(),
        },
        Kind::FdRef if value.is_string() => true,
        Kind::FdRef => return signed(value),
        Kind::Prot => Prot::from_letters(value.as_str()?).is_some(),
        Kind::Advice => {
            let word = value.as_str()?;
            Advice::ALL.iter().any(|(known, _)| *known == word)
        }
        Kind::Word(words) => words.contains(&value.as_str()?),
        Kind::Switch { .. } => value.is_boolean(),
        Kind::List => value.as_array()?.iter().all(Value::is_u64),
    };
    fits.then(|| value.clone())
}

/// A signed number, which recorders may have written as the unsigned one with the same 64 bits.
fn signed(value: &Value) -> Option<Value> {
    value.as_i64().or_else(|| value.as_u64().map(u64::cast_signed)).map(Value::from)
}
