//! Traces: JSON Lines with a header, one operation a line and what a kernel answered.
//!
//! [`Reader`] reads them one line at a time, however long the file is; [`emit`] prints them again, byte for byte where
//! nothing differs. Simplified: fields that are not known are tolerated on operations and in the header, because
//! recorders add some; they are printed again as they came.

pub mod emit;
mod error;
mod header;
mod line;
mod raw;
mod reader;

pub use error::{TraceError, TraceErrorKind};
pub use header::Header;
pub use line::{Line, Recorded};
pub use reader::{MAX_LINE, Reader};
