//! What the commands read: a scenario, with every mistake shown where it is.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::scenario::{self, Scenario};

/// A scenario's file.
pub(super) struct ScenarioFile {
    /// The path as the user named it.
    pub(super) name: String,
    /// The text.
    pub(super) source: String,
    /// What it says.
    pub(super) scenario: Scenario,
}

/// Reads a scenario. `None` if there is a mistake in it, which `complain` was told.
///
/// # Errors
/// If the file cannot be read or is no text.
pub(super) fn read_scenario(path: &Path, complain: &mut dyn FnMut(&str)) -> anyhow::Result<Option<ScenarioFile>> {
    let name = path.display().to_string();
    let bytes = fs::read(path).with_context(|| format!("cannot read {name}"))?;
    let source = match String::from_utf8(bytes) {
        Ok(source) => source,
        Err(error) => {
            let (line, column) = place(error.as_bytes(), error.utf8_error().valid_up_to());
            let byte = error.as_bytes()[error.utf8_error().valid_up_to()];
            anyhow::bail!("{name}:{line}:{column}: expected UTF-8 text, found the byte {byte:#04x}");
        }
    };
    match scenario::parse(&name, &source) {
        Ok(scenario) => Ok(Some(ScenarioFile { name, source, scenario })),
        Err(diagnostic) => {
            complain(&diagnostic.render(true));
            Ok(None)
        }
    }
}

/// Line and column of a byte, in bytes, from 1.
fn place(text: &[u8], at: usize) -> (usize, usize) {
    let before = &text[..at];
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    (before.iter().filter(|byte| **byte == b'\n').count() + 1, at - line_start + 1)
}
