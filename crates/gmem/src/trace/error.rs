//! What can be wrong with a trace, and where.

use std::io;

/// A trace that cannot be read. Displays as `file:line:column: what was found and expected`.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{line}:{column}: {kind}")]
pub struct TraceError {
    /// The file as the user named it.
    pub file: String,
    /// The line, from 1.
    pub line: u64,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub kind: TraceErrorKind,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceErrorKind {
    /// The file could not be read on.
    #[error("cannot read: {0}")]
    Io(#[source] io::Error),
    /// The line is longer than [`MAX_LINE`](super::MAX_LINE).
    #[error("the line is longer than {0} bytes; expected one operation a line")]
    LongLine(usize),
    /// The line is no text.
    #[error("expected UTF-8 text, found the byte {0:#04x}")]
    NotUtf8(u8),
    /// The line is no JSON object.
    #[error("malformed JSON: {0}")]
    Json(String),
    /// A field comes twice.
    #[error("field `{0}` comes twice")]
    Duplicate(String),
    /// A field is missing.
    #[error("field `{field}` is missing; expected {expected}")]
    Missing {
        /// The field's name.
        field: &'static str,
        /// What it should hold.
        expected: String,
    },
    /// A field holds something else than it should.
    #[error("field `{field}`: expected {expected}, found {found}")]
    IllTyped {
        /// The field's name.
        field: &'static str,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The header describes a machine that does not exist.
    #[error("field `{field}`: {message}")]
    Machine {
        /// The field's name.
        field: String,
        /// What was found and expected.
        message: String,
    },
    /// A recorded answer is malformed.
    #[error("field `{field}`: {message}")]
    Answer {
        /// `ret` or `spte`.
        field: &'static str,
        /// What was found and expected.
        message: String,
    },
    /// There is no such operation.
    #[error("{0}")]
    UnknownOperation(String),
    /// The file is empty or starts with something else than a header.
    #[error("no header: expected {{\"trace\": 1, \"name\": ..., \"family\": ..., ...}}, found {0}")]
    NoHeader(&'static str),
    /// The trace is of another version.
    #[error("trace version {found}; this program reads version {expected}")]
    Version {
        /// The version of the file.
        found: String,
        /// The version that can be read.
        expected: u64,
    },
}

impl TraceError {
    /// Whether the trace begins with an operation instead of a header.
    pub fn is_headless(&self) -> bool {
        matches!(self.kind, TraceErrorKind::NoHeader(found) if found == AN_OPERATION)
    }

    /// Whether there is nothing in the file.
    pub fn is_empty(&self) -> bool {
        matches!(self.kind, TraceErrorKind::NoHeader(found) if found == AN_EMPTY_FILE)
    }
}

/// What [`TraceErrorKind::NoHeader`] found where there is nothing at all.
pub(super) const AN_EMPTY_FILE: &str = "an empty file";
/// What [`TraceErrorKind::NoHeader`] found where only the header is missing.
pub(super) const AN_OPERATION: &str = "an operation";
