//! Reads the files that people hand to the command, whole: bounded, and with the place of what is no text.
//!
//! Models nothing. A device or a pipe may go on for ever; what is longer than [`SOURCE_MAX`] is a mistake, not a program.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The longest file that is read whole, in bytes.
pub(crate) const SOURCE_MAX: u64 = 64 << 20;

/// The file's bytes.
///
/// # Errors
/// That it cannot be read, or is too long: `cannot read FILE: why`.
pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    read(path, SOURCE_MAX).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > max {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {max} bytes"))),
        false => Ok(bytes),
    }
}

/// The file's text.
///
/// # Errors
/// As [`bytes`], or the place of what is not UTF-8, by line and column in bytes.
pub(crate) fn text(path: &Path) -> Result<String, String> {
    String::from_utf8(bytes(path)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let (line, column) = place(error.as_bytes(), at);
        let byte = error.as_bytes()[at];
        format!("{}:{line}:{column}: expected UTF-8 text, found the byte {byte:#04x}", path.display())
    })
}

/// Line and column of a byte, in bytes, from 1.
fn place(text: &[u8], at: usize) -> (usize, usize) {
    let before = &text[..at];
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    (before.iter().filter(|byte| **byte == b'\n').count() + 1, at - line_start + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_not_read_to_its_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [b'x'; 10]).unwrap();
        assert_eq!(read(file.path(), 10).unwrap().len(), 10);
        assert_eq!(read(file.path(), 9).unwrap_err().to_string(), "it is longer than 9 bytes");
        if cfg!(target_os = "linux") {
            assert!(read(Path::new("/dev/zero"), 1 << 16).is_err(), "it has no end");
        }
    }

    #[test]
    fn places_count_from_one() {
        assert_eq!(place(b"\xff", 0), (1, 1));
        assert_eq!(place(b"a\nbc\xff", 4), (2, 3));
    }
}
