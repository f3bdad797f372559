//! One trace: executes it, and compares or prints it.

use std::fs::File;
use std::io::BufReader;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::{Executor, Factory, Outcome};
use crate::ops::Op;
use crate::trace::emit::with_answer;
use crate::trace::{Header, Line, Reader, Recorded};

/// How much was executed and how much of it agrees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Traces.
    pub files: u64,
    /// Operations in them.
    pub operations: u64,
    /// Operations that have a recorded answer.
    pub answers_compared: u64,
    /// Operations whose answer equals the recorded one, field by field.
    pub answers_agree: u64,
    /// Operations that have a recorded answer, on a machine with two-dimensional paging. Without recorded changes, "nothing changed" is
    /// what is compared; a header may say that changes were not recorded.
    pub stage2_compared: u64,
    /// Operations whose answer and changes in stage 2 both equal the recorded ones.
    pub stage2_agree: u64,
    /// Operations that differ in what of them was compared.
    pub differ: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.files += other.files;
        self.operations += other.operations;
        self.answers_compared += other.answers_compared;
        self.answers_agree += other.answers_agree;
        self.stage2_compared += other.stage2_compared;
        self.stage2_agree += other.stage2_agree;
        self.differ += other.differ;
    }
}

/// An operation on which the simulator and the recording differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The file as the user named it.
    pub file: String,
    /// The line in it.
    pub line: u64,
    /// What was executed.
    pub op: Op,
    /// What the kernel did.
    pub expected: Recorded,
    /// What the simulator did.
    pub got: Outcome,
}

/// A panic of the simulator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InternalError {
    /// The file as the user named it.
    pub file: String,
    /// The line on which it happened.
    pub line: u64,
    /// What the panic said.
    pub message: String,
}

impl std::fmt::Display for InternalError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: internal error: {}", self.file, self.line, self.message)
    }
}

/// What came of comparing one trace.
#[derive(Clone, Debug)]
pub struct FileReport {
    /// The family that the trace belongs to.
    pub family: String,
    /// Counts; after a panic, the rest of the file counts as not agreeing.
    pub tally: Tally,
    /// Where they differ, as many as were asked for.
    pub differences: Vec<Difference>,
    /// The panic that ended execution, if one did.
    pub internal_error: Option<InternalError>,
}

/// A trace that is open, with the machine on which it runs.
struct Run {
    file: String,
    reader: Reader<BufReader<File>>,
    /// Gone after a panic: its state cannot be trusted any more.
    executor: Option<Box<dyn Executor>>,
    internal_error: Option<InternalError>,
}

/// Compares one trace, or says `None` if it belongs to another family.
///
/// # Errors
/// A message with the place, if the trace cannot be read or there is no machine for it.
pub fn compare(
    path: &Path,
    family: Option<&str>,
    differences_max: usize,
    factory: &Factory<'_>,
) -> Result<Option<FileReport>, String> {
    let Some(mut run) = Run::start(path, family, factory)? else { return Ok(None) };
    let has_stage2 = run.reader.header().spte;
    let mut tally = Tally { files: 1, ..Tally::default() };
    let mut differences = Vec::new();
    while let Some(line) = run.next_line()? {
        let recorded = line.recorded().map_err(|mistake| run.reader.error_in(&line, mistake).to_string())?;
        let outcome = run.execute(&line);
        tally.operations += 1;
        let Some(recorded) = recorded else { continue };
        tally.answers_compared += 1;
        tally.stage2_compared += u64::from(has_stage2);
        let Some(mut outcome) = outcome else {
            tally.differ += 1;
            continue;
        };
        let answer_agrees = outcome.answer == recorded.answer;
        if !has_stage2 {
            outcome.spte.clone_from(&recorded.spte);
        }
        let agrees = answer_agrees && outcome.spte == recorded.spte;
        tally.answers_agree += u64::from(answer_agrees);
        tally.stage2_agree += u64::from(agrees && has_stage2);
        tally.differ += u64::from(!agrees);
        if !agrees && differences.len() < differences_max {
            let Line { number, op, .. } = line;
            let file = run.file.clone();
            differences.push(Difference { file, line: number, op, expected: recorded, got: outcome });
        }
    }
    let family = run.reader.header().family.clone();
    Ok(Some(FileReport { family, tally, differences, internal_error: run.finish() }))
}

/// The text of one trace with the simulator's answers, up to a panic; `None` if it belongs to another family.
///
/// # Errors
/// As for [`compare`]; recorded answers are not looked at, so nothing is wrong with them.
pub fn emit(
    path: &Path,
    family: Option<&str>,
    factory: &Factory<'_>,
) -> Result<Option<(String, Option<InternalError>)>, String> {
    let Some(mut run) = Run::start(path, family, factory)? else { return Ok(None) };
    let mut text = format!("{}\n", run.reader.header_text());
    while let Some(line) = run.next_line()? {
        if let Some(outcome) = run.execute(&line) {
            text.push_str(&with_answer(&line, &outcome.answer, &outcome.spte));
            text.push('\n');
        }
    }
    Ok(Some((text, run.finish())))
}

impl Run {
    fn start(path: &Path, family: Option<&str>, factory: &Factory<'_>) -> Result<Option<Run>, String> {
        let file = path.display().to_string();
        let input = File::open(path).map_err(|error| format!("{file}: {error}"))?;
        let reader = Reader::new(file.clone(), BufReader::new(input)).map_err(|error| error.to_string())?;
        let header: &Header = reader.header();
        if family.is_some_and(|family| family != header.family) {
            return Ok(None);
        }
        let made = caught(|| factory(header));
        let mut run = Run { file, reader, executor: None, internal_error: None };
        match made {
            Ok(Ok(executor)) => run.executor = Some(executor),
            Ok(Err(reason)) => return Err(format!("{}:1:1: no such machine: {reason}", run.file)),
            Err(message) => run.fail(1, message),
        }
        Ok(Some(run))
    }

    fn next_line(&mut self) -> Result<Option<Line>, String> {
        self.reader.next().transpose().map_err(|error| error.to_string())
    }

    /// Executes `line`; `None` if it or a line before it panicked.
    fn execute(&mut self, line: &Line) -> Option<Outcome> {
        let executor = self.executor.as_mut()?;
        caught(|| executor.execute(&line.op)).map_err(|message| self.fail(line.number, message)).ok()
    }

    /// Notes the first panic, and drops what panicked.
    fn fail(&mut self, line: u64, message: String) {
        let file = self.file.clone();
        self.internal_error.get_or_insert(InternalError { file, line, message });
        let broken = self.executor.take();
        // A second panic, while the broken machine is taken down, says nothing new.
        let _ = caught(|| drop(broken));
    }

    /// Takes the machine down, which may find a fault too, and says what went wrong, if anything did.
    fn finish(mut self) -> Option<InternalError> {
        let executor = self.executor.take();
        if let Err(message) = caught(|| drop(executor)) {
            self.fail(0, format!("after the last operation: {message}"));
        }
        self.internal_error
    }
}

/// Runs `step`; a panic in it becomes its message. What it touched must not be used afterwards.
fn caught<T>(step: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(step)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_string());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        text.unwrap_or_else(|| "the simulator panicked".into())
    })
}
