//! `gmem invariants`: the registry of invariants.

use std::io::Write;

use serde_json::{Value, json};

use super::args;
use crate::Status;
use crate::invariants::{self, Invariant};

pub(super) fn invariants(args: &args::Invariants, out: &mut dyn Write) -> anyhow::Result<Status> {
    let rows = select(&args.ids, invariants::all(), |row| row.id, |id| invariants::named(id).map(|_| ()))?;
    if args.json {
        let rows: Vec<Value> = rows.iter().map(|row| object(row)).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&json!({ "invariants": rows }))?)?;
        return Ok(Status::Success);
    }
    let mut section = None;
    for row in rows {
        if section != Some(row.section) {
            let gap = if section.is_none() { "" } else { "\n" };
            writeln!(out, "{gap}{}", row.section)?;
            section = Some(row.section);
        }
        writeln!(out, "  {}  {}", row.id, row.text)?;
        if !row.window.is_empty() {
            writeln!(out, "           except: {}", row.window)?;
        }
        let when: Vec<String> = row.when.iter().map(ToString::to_string).collect();
        let checked =
            if when.is_empty() { "not checked".to_string() } else { format!("checked at: {}", when.join(", ")) };
        let note = if row.note.is_empty() { String::new() } else { format!("; {}", row.note) };
        writeln!(out, "           {checked}{note}")?;
    }
    Ok(Status::Success)
}

fn object(row: &Invariant) -> Value {
    let when: Vec<String> = row.when.iter().map(ToString::to_string).collect();
    json!({
        "id": row.id, "section": row.section.to_string(), "text": row.text, "window": row.window, "checked": when,
        "note": row.note,
    })
}

/// The rows that one of the patterns names, or all; a pattern is an id, or the beginning of some and a star.
///
/// # Errors
/// If a pattern names none: what `unknown` says of it.
pub(super) fn select<'a, T>(
    patterns: &[String],
    all: impl Iterator<Item = &'a T>,
    id: impl Fn(&T) -> &str,
    unknown: impl Fn(&str) -> Result<(), String>,
) -> anyhow::Result<Vec<&'a T>> {
    let all: Vec<&T> = all.collect();
    let names = |pattern: &str, row: &T| match pattern.strip_suffix('*') {
        Some(beginning) => id(row).get(..beginning.len()).is_some_and(|b| b.eq_ignore_ascii_case(beginning)),
        None => id(row).eq_ignore_ascii_case(pattern),
    };
    for pattern in patterns {
        if !all.iter().any(|row| names(pattern, row)) {
            unknown(pattern).map_err(|message| anyhow::anyhow!(message))?;
        }
    }
    Ok(all.into_iter().filter(|row| patterns.is_empty() || patterns.iter().any(|p| names(p, row))).collect())
}
