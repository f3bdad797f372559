//! Scenarios: what people write to make threads race. TOML outside, one operation a line inside.
//!
//! ```toml
//! [scenario]
//! teaches = "A hole punched while the guest reads"   # shown when it runs; `name` defaults to the file's
//!
//! [machine]                     # all optional; these are the defaults
//! kernel = "7.3"
//! stage2 = "npt"
//! memory = "3G"                 # and the other facts of `facts::FACTS`
//!
//! [setup]                       # one after the other, before the threads
//! run = """
//! create_vm vm0 type=sw_protected
//! create_vcpu vm0 c0
//! """
//!
//! [thread.vcpu0]                # at most 63 threads, which run at the same time
//! run = """
//! r0: guest_read c0 0x200000    => hlt 7 | memory_fault private
//! """
//!
//! [finish]                      # one after the other, after all threads
//! run = """
//! close vm0                     => ok
//! """
//!
//! [expect]                      # which combinations of labelled answers may come out; any other is a failure
//! outcomes = ["r0 => hlt 7", "r0 => memory_fault private"]
//! ```
//!
//! The operations are those of [`ops::table`](crate::ops::table). Arguments are given by position or as `name=value`;
//! what may follow `=>` is said at [`Expectation`]. Simplified: no loops, no variables, no conditions; a scenario says
//! what is done, and the strategy says in which order.

mod diagnostic;
pub mod expectation;
mod file;
mod line;
pub(crate) mod offsets;
pub mod print;
pub mod words;

pub use diagnostic::Diagnostic;
pub use expectation::{Expectation, Outcome, Pattern};
pub use file::{THREADS_MAX, parse};
pub use line::{LineError, ParsedLine, parse_line};
pub use print::{print, print_file};

use crate::kvm::config::MachineConfig;
use crate::ops::Op;

/// A scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// What it is called: `name`, or else its file's name without the ending.
    pub name: String,
    /// What it shows, in a sentence.
    pub teaches: Option<String>,
    /// The machine that it runs on.
    pub machine: MachineConfig,
    /// What is done before the threads start.
    pub setup: Vec<Step>,
    /// What is done at the same time, in the order of the file.
    pub threads: Vec<Thread>,
    /// What is done after all threads have ended.
    pub finish: Vec<Step>,
    /// The combinations of labelled answers that may come out; empty if any may.
    pub outcomes: Vec<Outcome>,
}

/// A thread of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its name, which reports show.
    pub name: String,
    /// What it does, in order.
    pub steps: Vec<Step>,
}

/// One line of a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The name that `[expect]` calls its answer by.
    pub label: Option<String>,
    /// What is done.
    pub op: Op,
    /// What the answer must be, if the line says so.
    pub expect: Option<Expectation>,
    /// The line in the file, from 1.
    pub line: u32,
    /// The line as written, without comment and indentation.
    pub text: String,
}

impl Step {
    /// A line that does this, without label and expectation; it stands in no file yet.
    ///
    /// ```
    /// use gmem::{ops::Op, scenario::Step};
    /// assert_eq!(Step::new(Op::Close { fd: "g0".into() }).text, "close g0");
    /// ```
    pub fn new(op: Op) -> Step {
        let text = print(&op);
        Step { label: None, op, expect: None, line: 0, text }
    }
}

impl Scenario {
    /// Whether the answers of a finished run are among the outcomes that the scenario expects.
    ///
    /// `answer` gives the answer of the step with a label.
    ///
    /// # Errors
    /// What came out, if none of the outcomes did.
    pub fn check_outcome<'a>(&self, answer: impl Fn(&str) -> Option<&'a crate::ops::Answer>) -> Result<(), String> {
        if self.outcomes.is_empty() || self.outcomes.iter().any(|outcome| outcome.holds(&answer)) {
            return Ok(());
        }
        let mut came = String::from("no expected outcome came out; got");
        for label in self.steps().filter_map(|step| step.label.as_deref()) {
            match answer(label) {
                Some(answer) => came.push_str(&format!("\n  {label} => {answer}")),
                None => came.push_str(&format!("\n  {label} did not run")),
            }
        }
        Err(came)
    }

    /// All steps in the order of the file's parts: setup, threads, finish.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        let threads = self.threads.iter().flat_map(|thread| &thread.steps);
        self.setup.iter().chain(threads).chain(&self.finish)
    }
}
