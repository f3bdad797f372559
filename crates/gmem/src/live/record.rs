//! Makes a recording: a program, and what the machine's kernel answered to it.

use super::session::{Limits, LiveError, Starter};
use super::tracefs::Events;
use super::{LiveMachine, LiveOutcome, Program};
use crate::interp::Stage2Reader;
use crate::kvm::config::MachineConfig;
use crate::ops::{SpteRun, fold};
use crate::trace::emit;

/// A recording that was made.
#[derive(Clone, Debug)]
pub struct Recording {
    /// The trace's text.
    pub text: String,
    /// Operations that have an answer.
    pub answered: u64,
    /// Operations that have none, but a note.
    pub unanswered: u64,
    /// What ended it early. The rest of the operations is in the text, without answers.
    pub ended: Option<LiveError>,
}

/// Runs `program` on the real kernel, in a process of its own.
///
/// # Errors
/// If there is no worker, or the machine has no name in a trace's header.
pub fn record(
    program: &Program,
    starter: &Starter,
    machine: &LiveMachine,
    limits: Limits,
) -> Result<Recording, LiveError> {
    let mut session = starter.start(machine, limits)?;
    let mut header = machine.header(&program.name, &program.family);
    let config = MachineConfig::from_header(&header).map_err(LiveError::Unavailable)?;
    header.notes.extend(program.notes.iter().cloned());
    let mut events = None;
    if header.spte {
        match Events::of(session.pid()) {
            Ok(opened) => events = Some((opened, Stage2Reader::new(&config))),
            Err(reason) => header.notes.push(format!("changes of stage 2 were not recorded: {reason}")),
        }
        header.spte = events.is_some();
    }
    let mut recording = Recording { text: String::new(), answered: 0, unanswered: 0, ended: None };
    for (number, step) in (1..).zip(&program.steps) {
        if let Some((_, reader)) = &mut events {
            reader.before(&step.op);
        }
        let outcome = match recording.ended {
            None => session.execute(&step.op),
            Some(_) => Ok(LiveOutcome { answer: None, note: Some("not reached".into()) }),
        };
        let (answer, note) = match outcome {
            Ok(LiveOutcome { answer, note }) => (answer, note),
            Err(error) => {
                let note = error.to_string();
                recording.ended = Some(error);
                (None, Some(note))
            }
        };
        let mut spte: Vec<SpteRun> = Vec::new();
        match events.as_mut().map(|(events, reader)| (events.take(), reader)) {
            Some((Ok(taken), reader)) => {
                spte = fold(taken.iter().filter_map(|e| reader.change(e.gfn, e.level, e.old_spte, e.new_spte)));
            }
            // A part of the changes is worth nothing: nobody could tell what is missing from what did not happen.
            Some((Err(reason), _)) => {
                header.spte = false;
                header.notes.push(format!("changes of stage 2 were not recorded from operation {number} on: {reason}"));
                events = None;
            }
            None => {}
        }
        match &answer {
            Some(_) => recording.answered += 1,
            None => recording.unanswered += 1,
        }
        recording.text.push_str(&emit::with_outcome(&step.text, answer.as_ref(), &spte, note.as_deref()));
        recording.text.push('\n');
    }
    recording.text.insert_str(0, &format!("{}\n", emit::new_header(&header)));
    Ok(recording)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_an_answer_says_why() {
        let line = emit::with_outcome(r#"{"op": "close", "fd": "g0", "ret": {"ok": 0}}"#, None, &[], Some("why"));
        assert_eq!(line, r#"{"op": "close", "fd": "g0", "note": "why"}"#);
    }
}
