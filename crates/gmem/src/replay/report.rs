//! Prints what came of a comparison: a table and the first differences for people, one object for programs.

use std::io::{self, Write};

use serde_json::{Map, Value, json};

use super::{Difference, Report, Tally};
use crate::ops::json::recorded_style;
use crate::ops::{Answer, SpteRun};

/// The table per family and the differences.
///
/// # Errors
/// Only those of writing to `out`.
pub fn text(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let names = report.families.keys().map(|name| name.chars().count());
    let width = names.chain(["family".len()]).max().unwrap_or_default();
    writeln!(
        out,
        "{:width$}  {:>6}  {:>10}  {:>18}  {:>18}",
        "family", "files", "operations", "answers agree", "stage 2 agrees"
    )?;
    for (name, tally) in &report.families {
        row(out, width, name, tally)?;
    }
    row(out, width, "total", &report.total)?;
    for difference in &report.differences {
        writeln!(out)?;
        difference_text(difference, out)?;
    }
    if report.total.stage2_compared < report.total.answers_compared {
        let without = report.total.answers_compared - report.total.stage2_compared;
        writeln!(out, "\nof {without} operations only the answers were recorded and are compared")?;
    }
    let differing = report.total.differ;
    let shown = report.differences.len() as u64;
    if differing > shown {
        writeln!(out, "\n{} more operations disagree (--differences N shows more)", differing - shown)?;
    }
    Ok(())
}

fn row(out: &mut dyn Write, width: usize, name: &str, tally: &Tally) -> io::Result<()> {
    let Tally { files, operations, answers_compared, answers_agree, stage2_compared, stage2_agree, .. } = *tally;
    let answers = percent(answers_agree, answers_compared);
    let stage2 = percent(stage2_agree, stage2_compared);
    writeln!(
        out,
        "{name:width$}  {files:>6}  {operations:>10}  {answers_agree:>9} {answers:>8}  {stage2_agree:>9} {stage2:>8}"
    )
}

/// Rounded down, so that 100 % means all.
fn percent(part: u64, whole: u64) -> String {
    match (u128::from(part) * 10_000).checked_div(u128::from(whole)) {
        None => "-".into(),
        Some(hundredths) => format!("{}.{:02}%", hundredths / 100, hundredths % 100),
    }
}

fn difference_text(difference: &Difference, out: &mut dyn Write) -> io::Result<()> {
    let Difference { file, line, op, expected, got } = difference;
    writeln!(out, "{file}:{line}: {}", recorded_style(op))?;
    let mut sides = |expected: &dyn std::fmt::Display, got: &dyn std::fmt::Display| {
        writeln!(out, "  expected {expected}\n  got      {got}")
    };
    if expected.answer != got.answer {
        sides(&expected.answer, &got.answer)?;
    }
    if expected.spte != got.spte {
        sides(&stage2(&expected.spte), &stage2(&got.spte))?;
    }
    Ok(())
}

fn stage2(runs: &[SpteRun]) -> String {
    if runs.is_empty() { "no change in stage 2".into() } else { format!("stage 2 {}", recorded_style(runs)) }
}

/// One object: counts in total, per family, and the differences.
pub fn json(report: &Report) -> Value {
    let mut out = counts(&report.total);
    let families = report.families.iter().map(|(name, tally)| (name.clone(), Value::Object(counts(tally))));
    out.insert("families".into(), Value::Object(families.collect()));
    out.insert("differences".into(), report.differences.iter().map(difference_json).collect());
    out.insert("bad_input".into(), json!(report.bad_input));
    let internal = report.internal_errors.iter();
    let internal = internal.map(|error| json!({"file": error.file, "line": error.line, "message": error.message}));
    out.insert("internal_errors".into(), internal.collect());
    Value::Object(out)
}

fn counts(tally: &Tally) -> Map<String, Value> {
    let Tally { files, operations, answers_compared, answers_agree, stage2_compared, stage2_agree, .. } = *tally;
    [
        ("files", files),
        ("operations", operations),
        ("answers_compared", answers_compared),
        ("answers_agree", answers_agree),
        ("stage2_compared", stage2_compared),
        ("stage2_agree", stage2_agree),
    ]
    .into_iter()
    .map(|(name, count)| (name.to_string(), count.into()))
    .collect()
}

fn difference_json(difference: &Difference) -> Value {
    let side = |answer: &Answer, spte: &[SpteRun]| json!({"ret": answer.to_json(), "spte": spte});
    let Difference { file, line, op, expected, got } = difference;
    json!({
        "file": file,
        "line": line,
        "op": op,
        "expected": side(&expected.answer, &expected.spte),
        "got": side(&got.answer, &got.spte),
    })
}
