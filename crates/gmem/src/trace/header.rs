//! The first line of a trace.

use serde_json::{Map, Value};

use super::TraceErrorKind;
use super::error::AN_OPERATION;
use super::line::{Failure, Source};
use super::raw::{Member, Members};
use crate::facts::{FACTS, Fact, FactValue, SHADOW, STAGE2_NAMES};
use crate::kvm::config::{KernelVersion, MachineConfig};
use crate::ops::json::describe;
use crate::ops::suggest::did_you_mean;

/// The version of the trace format that this program reads and writes.
pub(super) const VERSION: u64 = 1;

/// Where a trace comes from: the machine on which it was recorded, or for which it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The trace's name, usually its file's.
    pub name: String,
    /// The family of programs that it belongs to.
    pub family: String,
    /// The kernel's release, such as `7.3.4`; see [`KernelVersion`] for what it leads to.
    pub kernel: String,
    /// The architecture, such as `x86_64`.
    pub arch: String,
    /// The second stage of translation, one of [`STAGE2_NAMES`].
    pub stage2: String,
    /// The [`FACTS`] in which the machine is unlike that of the first recordings; often none.
    pub machine: Map<String, Value>,
    /// Whether changes of stage 2 were recorded: a line without any says that there were none. Not so where KVM shadows the guest's
    /// tables, or the tracepoint could not be used.
    pub spte: bool,
    /// What else there is to know, in words.
    pub notes: Vec<String>,
}

impl Default for Header {
    fn default() -> Header {
        let text = String::new;
        let (name, family, kernel, arch, stage2) = (text(), text(), text(), text(), text());
        Header { name, family, kernel, arch, stage2, machine: Map::new(), spte: true, notes: Vec::new() }
    }
}

impl Header {
    /// Reads the header out of the trace's first line.
    pub(crate) fn parse(source: &Source<'_>) -> Result<Header, Failure> {
        let members = source.members()?;
        let Some(version) = members.get("trace") else {
            let found = if members.get("op").is_some() { AN_OPERATION } else { "no field `trace`" };
            return Err((1, TraceErrorKind::NoHeader(found)));
        };
        if version.text != VERSION.to_string() {
            let found = version.text.chars().take(20).collect();
            return Err((source.column(version.text), TraceErrorKind::Version { found, expected: VERSION }));
        }
        let text = |field: &'static str| {
            let expected = || "a string".to_string();
            let Some(member) = members.get(field) else {
                return Err((source.end(), TraceErrorKind::Missing { field, expected: expected() }));
            };
            match source.value(member)? {
                Value::String(text) => Ok(text),
                other => Err((
                    source.column(member.text),
                    TraceErrorKind::IllTyped { field, expected: expected(), found: describe(&other) },
                )),
            }
        };
        let mut header = Header {
            name: text("name")?,
            family: text("family")?,
            kernel: text("kernel")?,
            arch: text("arch")?,
            stage2: text("stage2")?,
            ..Header::default()
        };
        if let Some(member) = members.get("spte") {
            let value = source.value(member)?;
            header.spte = value.as_bool().ok_or_else(|| ill_typed(source, member, "spte", "true or false", &value))?;
        }
        header.spte &= header.stage2 != SHADOW;
        if let Some(member) = members.get("notes") {
            let value = source.value(member)?;
            let texts = value.as_array().map(|notes| notes.iter().map(|note| note.as_str().map(String::from)));
            header.notes = texts
                .and_then(|texts| texts.collect())
                .ok_or_else(|| ill_typed(source, member, "notes", "a list of strings", &value))?;
        }
        let no_machine = |field: &str, message: String| {
            let column = members.get(field).map_or(1, |member| source.column(member.text));
            (column, TraceErrorKind::Machine { field: field.to_string(), message })
        };
        header.kernel.parse::<KernelVersion>().map_err(|error| no_machine("kernel", error.to_string()))?;
        if !STAGE2_NAMES.contains(&header.stage2.as_str()) {
            let found: String = header.stage2.chars().take(40).collect();
            let message = format!("expected one of {}, found `{found}`", STAGE2_NAMES.join(", "));
            return Err(no_machine("stage2", message));
        }
        if let Some(member) = members.get("machine") {
            header.machine = facts(source, member)?;
        }
        MachineConfig::from_header(&header).map_err(|message| {
            let message = message.strip_prefix("machine: ").unwrap_or(&message).to_string();
            no_machine("machine", message)
        })?;
        Ok(header)
    }
}

fn ill_typed(source: &Source<'_>, member: &Member<'_>, field: &'static str, expected: &str, found: &Value) -> Failure {
    let (expected, found) = (expected.to_string(), describe(found));
    (source.column(member.text), TraceErrorKind::IllTyped { field, expected, found })
}

/// The members of `machine`, each a fact with a value that it may have.
fn facts(source: &Source<'_>, member: &Member<'_>) -> Result<Map<String, Value>, Failure> {
    let value = source.value(member)?;
    let ill_typed = |text: &str, expected: String, found: &Value| {
        let found = describe(found);
        (source.column(text), TraceErrorKind::IllTyped { field: "machine", expected, found })
    };
    if !value.is_object() {
        return Err(ill_typed(member.text, "an object such as {\"memory\": 3221225472}".into(), &value));
    }
    // It is an object, so it has members; their texts are slices of the line.
    let members: Members<'_> = serde_json::from_str(member.text).unwrap_or_default();
    if let Some(twice) = members.duplicate() {
        return Err((source.column(twice.text), TraceErrorKind::Duplicate(twice.key.to_string())));
    }
    let mut facts = Map::new();
    for member in &members.0 {
        let value = source.value(member)?;
        let Some(fact) = Fact::find(&member.key) else {
            let names = || FACTS.iter().map(|fact| fact.name);
            let short: String = member.key.chars().take(60).collect();
            let suggestion = did_you_mean(&short, names());
            let names: Vec<_> = names().collect();
            let message = format!("no fact `{short}`{suggestion}; expected one of {}", names.join(", "));
            return Err((source.column(member.text), TraceErrorKind::Machine { field: "machine".into(), message }));
        };
        let stated = FactValue::from_json(&value).ok_or(fact.expected);
        if let Err(expected) = stated.and_then(|value| fact.state(&mut MachineConfig::default(), &value)) {
            let found: String = member.text.chars().take(40).collect();
            let message = format!("expected {expected}, found {found}");
            let kind = TraceErrorKind::Machine { field: format!("machine.{}", fact.name), message };
            return Err((source.column(member.text), kind));
        }
        facts.insert(member.key.to_string(), value);
    }
    Ok(facts)
}
