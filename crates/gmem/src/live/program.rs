//! What is recorded: the operations of a trace, with or without answers, or the sequential part of a scenario.

use std::fs;
use std::path::Path;

use crate::ops::Op;
use crate::ops::json::recorded_style;
use crate::scenario;
use crate::trace::{Header, Reader};

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
    /// What is wrong and where, ready to be shown.
    pub fn read(path: &Path) -> Result<Program, String> {
        let file = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| format!("{file}: {error}"))?;
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        if path.extension().is_some_and(|extension| extension == "toml") {
            let scenario = scenario::parse(&file, &text).map_err(|diagnostic| diagnostic.to_string())?;
            return Ok(Program::of_scenario(name, scenario));
        }
        let mut reader = match Reader::new(file.clone(), text.as_bytes()) {
            Err(error) if error.is_headless() => Reader::headless(
                file,
                Header { name: name.clone(), family: "live".into(), ..Header::default() },
                text.as_bytes(),
            ),
            other => other.map_err(|error| error.to_string())?,
        };
        let mut steps = Vec::new();
        for line in &mut reader {
            let line = line.map_err(|error| error.to_string())?;
            steps.push(Step { op: line.op, text: line.text });
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
