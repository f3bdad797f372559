//! The first line of a trace.

use serde_json::Value;

use super::TraceErrorKind;
use super::line::Source;
use crate::ops::json::describe;

/// The version of the trace format that this program reads and writes.
pub(super) const VERSION: u64 = 1;

/// Where a trace comes from: the machine on which it was recorded, or for which it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The trace's name, usually its file's.
    pub name: String,
    /// The family of programs that it belongs to.
    pub family: String,
    /// The kernel's version, such as `7.3.4`.
    pub kernel: String,
    /// The architecture, such as `x86_64`.
    pub arch: String,
    /// The second stage of translation: `npt` or `ept`.
    pub stage2: String,
}

impl Header {
    /// Reads the header out of the trace's first line.
    pub(crate) fn parse(source: &Source<'_>) -> Result<Header, (usize, TraceErrorKind)> {
        let members = source.members()?;
        let Some(version) = members.get("trace") else {
            let found = if members.get("op").is_some() { "an operation" } else { "no field `trace`" };
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
        Ok(Header {
            name: text("name")?,
            family: text("family")?,
            kernel: text("kernel")?,
            arch: text("arch")?,
            stage2: text("stage2")?,
        })
    }
}
