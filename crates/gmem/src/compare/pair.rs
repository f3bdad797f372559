//! One program on the simulator and on the real kernel, side by side.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Tally;
use crate::interp::Sequential;
use crate::kvm::config::MachineConfig;
use crate::live::{Limits, LiveError, LiveMachine, LiveOutcome, Starter};
use crate::ops::{Advice, Answer, Op};
use crate::replay::Executor;

/// The two machines.
#[derive(Debug)]
pub struct Pair<'a> {
    /// How workers are started.
    pub starter: &'a Starter,
    /// What the real machine is.
    pub machine: &'a LiveMachine,
    /// What a worker may take.
    pub limits: Limits,
    /// The simulated machine: one like the real one.
    pub config: MachineConfig,
}

/// What came of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every answer was the same.
    Same,
    /// The real kernel was not asked this operation, and nothing after it: why, in words.
    Refused {
        /// Which operation.
        index: usize,
        /// Why not.
        why: String,
    },
    /// They differ.
    Differs(Box<Difference>),
}

/// The first operation on which they differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which operation of the program.
    pub index: usize,
    /// What the kernel answered to the operations up to this one; the last may have no answer.
    pub kernel: Vec<Option<Answer>>,
    /// What the simulator answered to this one, or how it ended.
    pub simulator: Result<Answer, String>,
    /// Why the kernel has no answer to the last one.
    pub live_error: Option<LiveError>,
}

impl Difference {
    /// What the kernel answered, or why it did not, in words.
    pub fn of_kernel(&self) -> String {
        match (&self.live_error, self.kernel.last()) {
            (None, Some(Some(answer))) => format!("answers {answer}"),
            (Some(error), _) => error.to_string(),
            (None, _) => "did not answer".into(),
        }
    }

    /// What the simulator answered, or how it ended, in words.
    pub fn of_simulator(&self) -> String {
        match &self.simulator {
            Ok(answer) => format!("answers {answer}"),
            Err(how) => how.clone(),
        }
    }
}

impl Pair<'_> {
    /// Runs `ops` on both, from nothing, and counts into `tally`.
    ///
    /// # Errors
    /// If there is no worker.
    pub fn run(&self, ops: &[Op], tally: &mut Tally) -> Result<Verdict, LiveError> {
        let mut session = self.starter.start(self.machine, self.limits)?;
        let mut simulator = Some(Sequential::new(self.config.clone()));
        let mut kernel = Vec::new();
        tally.programs += 1;
        for (index, op) in ops.iter().enumerate() {
            let live = match session.execute(op) {
                Ok(LiveOutcome { answer: Some(answer), .. }) => answer,
                Ok(LiveOutcome { answer: None, note }) => {
                    tally.count_refused(op);
                    return Ok(Verdict::Refused { index, why: note.unwrap_or_default() });
                }
                Err(error @ LiveError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    kernel.push(None);
                    let simulator = Err("was not asked".to_string());
                    let difference = Difference { index, kernel, simulator, live_error: Some(error) };
                    return Ok(Verdict::Differs(Box::new(difference)));
                }
            };
            if let Some(why) = of_the_moment(op, &live) {
                tally.count_refused(op);
                return Ok(Verdict::Refused { index, why: why.into() });
            }
            tally.count(op, &live);
            let answer = execute(&mut simulator, op);
            let same = answer.as_ref() == Ok(&live);
            kernel.push(Some(live));
            if !same {
                let difference = Difference { index, kernel, simulator: answer, live_error: None };
                return Ok(Verdict::Differs(Box::new(difference)));
            }
        }
        Ok(Verdict::Same)
    }
}

/// Why this answer says nothing of the kernel's rules, if it does not.
fn of_the_moment(op: &Op, live: &Answer) -> Option<&'static str> {
    let collapse = matches!(op, Op::Madvise { advice: Advice::Collapse, .. });
    let without_memory = matches!(live, Answer::Failed { errno, .. } if errno.name() == "ENOMEM");
    (collapse && without_memory).then_some("the real machine had no huge page left")
}

/// Executes on the simulator. After a panic it is gone.
fn execute(simulator: &mut Option<Sequential>, op: &Op) -> Result<Answer, String> {
    let Some(machine) = simulator else { return Err("the simulator is gone".into()) };
    catch_unwind(AssertUnwindSafe(|| machine.execute(op).answer)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_string());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        let broken = simulator.take();
        // A second panic, while the broken machine is taken down, says nothing new.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(broken)));
        format!("panicked: {text}")
    })
}
