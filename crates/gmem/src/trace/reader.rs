//! [`Reader`]: the header, then the lines, one at a time.

use std::io::{BufRead, Read};

use super::error::AN_EMPTY_FILE;
use super::line::Source;
use super::raw::column_at;
use super::{Header, Line, TraceError, TraceErrorKind};

/// The longest line that is read, in bytes. The longest recorded one has under 5 KiB.
pub const MAX_LINE: usize = 1 << 20;

/// Reads a trace line by line, in memory for one line.
///
/// ```
/// use gmem::trace::Reader;
/// let text = r#"{"trace": 1, "name": "t", "family": "f", "kernel": "7.3.4", "arch": "x86_64", "stage2": "npt"}
/// {"op": "create_vm", "vm": "vm0", "type": 1, "ret": {"ok": 0}}
/// "#;
/// let mut reader = Reader::new("t.jsonl", text.as_bytes()).unwrap();
/// let line = reader.next().unwrap().unwrap();
/// assert_eq!((line.number, line.op.name()), (2, "create_vm"));
/// assert!(reader.next().is_none());
/// ```
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    file: String,
    header: Header,
    header_text: String,
    buffer: Vec<u8>,
    number: u64,
    failed: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads the header. `file` is the name that errors show.
    ///
    /// # Errors
    /// If the first line that is not empty cannot be read or is no header of a trace of this version.
    pub fn new(file: impl Into<String>, input: R) -> Result<Self, TraceError> {
        let mut reader = Reader::headless(file, Header::default(), input);
        let Some(text) = reader.next_text()? else {
            let number = reader.number.max(1);
            return Err(reader.error(number, 1, TraceErrorKind::NoHeader(AN_EMPTY_FILE)));
        };
        match Header::parse(&Source { text: &text }) {
            Ok(header) => reader.header = header,
            Err((column, kind)) => return Err(reader.error(reader.number, column, kind)),
        }
        reader.header_text = text;
        Ok(reader)
    }

    /// Reads operations that have no header before them; `header` is what it would say.
    pub fn headless(file: impl Into<String>, header: Header, input: R) -> Self {
        let file = file.into();
        Reader { input, file, header, header_text: String::new(), buffer: Vec::new(), number: 0, failed: false }
    }

    /// Where the trace comes from.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The header as it stands in the file, without its line's end.
    pub fn header_text(&self) -> &str {
        &self.header_text
    }

    /// The error that this mistake in `line` is.
    pub fn error_in(&self, line: &Line, (column, kind): (usize, TraceErrorKind)) -> TraceError {
        self.error(line.number, column, kind)
    }

    fn error(&self, line: u64, column: usize, kind: TraceErrorKind) -> TraceError {
        TraceError { file: self.file.clone(), line, column, kind }
    }

    /// The next line that is not empty, without its end.
    fn next_text(&mut self) -> Result<Option<String>, TraceError> {
        loop {
            self.buffer.clear();
            self.number += 1;
            // Room for the line's end, so that a line of exactly the limit passes.
            let mut limited = (&mut self.input).take(MAX_LINE as u64 + 2);
            match limited.read_until(b'\n', &mut self.buffer) {
                Err(error) => return Err(self.error(self.number, 1, TraceErrorKind::Io(error))),
                Ok(0) => return Ok(None),
                Ok(_) => {}
            }
            let line = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.len() > MAX_LINE {
                return Err(self.error(self.number, MAX_LINE + 1, TraceErrorKind::LongLine(MAX_LINE)));
            }
            match std::str::from_utf8(line) {
                Ok(text) if text.trim().is_empty() => {}
                Ok(text) => return Ok(Some(text.to_string())),
                Err(error) => {
                    let valid = String::from_utf8_lossy(&line[..error.valid_up_to()]);
                    let kind = TraceErrorKind::NotUtf8(line[error.valid_up_to()]);
                    return Err(self.error(self.number, column_at(&valid, valid.len()), kind));
                }
            }
        }
    }
}

/// Ends after the first error: what follows a malformed line means nothing without it.
impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Line, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let line = match self.next_text() {
            Ok(None) => return None,
            Ok(Some(text)) => Line::parse(self.number, &Source { text: &text })
                .map_err(|(column, kind)| self.error(self.number, column, kind)),
            Err(error) => Err(error),
        };
        self.failed = line.is_err();
        Some(line)
    }
}
