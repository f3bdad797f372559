//! What is recorded: the operations of a trace, with or without answers, or the sequential part of a scenario.

use std::path::Path;

use crate::ops::Op;
use crate::ops::json::recorded_style;
use crate::trace::{Header, Reader, TraceError};
use crate::{scenario, source};

/// Operations in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Its name, for the recording's header and file.
    pub name: String,
    /// The family that its header says, or `live`.
    pub family: String,
    /// What to do.
    pub steps: Vec<Step>,
    /// What was left out, in words.
    pub notes: Vec<String>,
}

/// A file that is no program. Displays as the place and what is wrong there.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot be read, or not as a trace.
    #[error("{0}")]
    Trace(String),
    /// A mistake in a scenario.
    #[error("{0}")]
    Scenario(Box<scenario::Diagnostic>),
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub op: Op,
    /// Its line, as a trace has it.
    pub text: String,
}

impl Step {
    fn new(op: Op) -> Step {
        Step { text: recorded_style(&op), op }
    }
}

impl Program {
    /// A program of these operations.
    pub fn new(name: &str, ops: Vec<Op>) -> Program {
        let steps = ops.into_iter().map(Step::new).collect();
        Program { name: name.into(), family: "live".into(), steps, notes: Vec::new() }
    }

    /// Reads a file: a scenario if it is named `.toml`, otherwise a trace, whose header and answers may be missing.
    ///
    /// # Errors
    /// What is wrong and where. A file without any operation is no program.
    pub fn read(path: &Path) -> Result<Program, ProgramError> {
        let file = path.display().to_string();
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = source::text(path).map_err(ProgramError::Trace)?;
            let scenario = scenario::parse(&file, &text).map_err(ProgramError::Scenario)?;
            return Ok(Program::of_scenario(name, scenario));
        }
        let bytes = source::bytes(path).map_err(ProgramError::Trace)?;
        let wrong = |error: TraceError| ProgramError::Trace(error.to_string());
        let mut reader = match Reader::new(file.clone(), &bytes[..]) {
            Err(error) if error.is_headless() => {
                let header = Header { name: name.clone(), family: "live".into(), ..Header::default() };
                Reader::headless(file.clone(), header, &bytes[..])
            }
            Err(error) if error.is_empty() => {
                return Err(ProgramError::Trace(format!("{file}: there is no operation in it")));
            }
            other => other.map_err(wrong)?,
        };
        let mut steps = Vec::new();
        for line in &mut reader {
            let line = line.map_err(wrong)?;
            steps.push(Step { op: line.op, text: line.text });
        }
        if steps.is_empty() {
            return Err(ProgramError::Trace(format!("{file}: there is no operation in it")));
        }
        Ok(Program { name, family: reader.header().family.clone(), steps, notes: Vec::new() })
    }

    /// Setup, the thread if there is just one, and the end.
    fn of_scenario(name: String, scenario: scenario::Scenario) -> Program {
        let mut steps = scenario.setup;
        let mut notes = Vec::new();
        match scenario.threads.as_slice() {
            [] => {}
            [thread] => steps.extend(thread.steps.iter().cloned()),
            threads => {
                let names: Vec<_> = threads.iter().map(|thread| thread.name.as_str()).collect();
                notes.push(format!("the threads {} race and were left out", names.join(", ")));
            }
        }
        if notes.is_empty() {
            steps.extend(scenario.finish);
        } else if !scenario.finish.is_empty() {
            notes.push("what follows the threads was left out too".into());
        }
        let steps = steps.into_iter().map(|step| Step::new(step.op)).collect();
        Program { name, family: "scenario".into(), steps, notes }
    }
}
