//! The boundary between the command and the simulator.

use std::io::Write;

use sim_kernel::sched::Schedule;

use super::args::Strategy;
use crate::Status;
use crate::conformance::{CheckResult, UnknownId};
use crate::explore::portfolio::Memory;
use crate::explore::report::Origin;
use crate::explore::{Finding, Flow, Plan, Progress, Report};
use crate::kvm::config::KernelVersion;
use crate::ops::Op;
use crate::record::Recording;
use crate::replay::Executor;
use crate::scenario::Scenario;
use crate::trace::Header;

/// What `gmem run` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// The scenario's file as the user named it, for the command that repeats the run.
    pub file: String,
    /// Which schedule.
    pub seed: u64,
    /// Who runs next.
    pub strategy: Strategy,
    /// Follow this schedule instead.
    pub schedule: Option<Schedule>,
    /// Facts of the machine that were asked for instead of the scenario's; the scenario has them already.
    pub facts: Vec<String>,
    /// The kernel that was asked for instead of the scenario's; the scenario has it already.
    pub kernel: Option<KernelVersion>,
    /// The mutants that were asked for beside the scenario's; the scenario has them already.
    pub mutants: Vec<&'static str>,
}

/// What a recording was asked for.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// Which schedule.
    pub seed: u64,
    /// Who runs next.
    pub strategy: Strategy,
    /// Follow this schedule instead.
    pub schedule: Option<Schedule>,
    /// Steps after which the run is given up.
    pub steps_max: u64,
    /// What is known beside the run, for the explanation of a failure.
    pub origin: Origin,
}

/// Gives the lines of a trace one after the other: number and operation.
pub type NextLine<'a> = dyn FnMut() -> Result<Option<(u64, Op)>, String> + 'a;

/// The simulator, as far as the command needs it.
pub trait Backend: Sync {
    /// The machine that a trace's header describes, in which nothing has happened.
    ///
    /// # Errors
    /// Why there is no such machine.
    fn executor(&self, header: &Header) -> Result<Box<dyn Executor>, String>;

    /// Runs a scenario once and reports to `out`. Events go to `log` as JSON Lines, if there is one, and what pKVM's hypervisor does to `pkvm_trace`.
    ///
    /// # Errors
    /// If `out` or `log` cannot be written, or the scenario asks for what there is not. A failed expectation is
    /// [`Status::Found`], not an error.
    fn run(
        &self,
        scenario: &Scenario,
        options: &RunOptions,
        out: &mut dyn Write,
        log: Option<&mut dyn Write>,
        pkvm_trace: Option<&mut dyn Write>,
    ) -> anyhow::Result<Status>;

    /// Explores a scenario from where `progress` stands, with `jobs` workers. `watch` sees every unit of work and says whether to go on.
    ///
    /// # Errors
    /// If the scenario's set-up fails, or the explorer does.
    fn explore(
        &self,
        scenario: &Scenario,
        plan: &Plan,
        progress: Progress,
        jobs: usize,
        watch: &mut dyn FnMut(&Progress) -> Flow,
    ) -> Result<Progress, String>;

    /// Explains one execution of a scenario.
    ///
    /// # Errors
    /// If the scenario's set-up fails.
    fn explain(&self, scenario: &Scenario, schedule: &Schedule, origin: &Origin) -> Result<Report, String>;

    /// Explains what an exploration found, after it was made small.
    ///
    /// # Errors
    /// If it cannot be seen again.
    fn explain_finding(&self, scenario: &Scenario, finding: &Finding, origin: &Origin) -> Result<Report, String>;

    /// Runs a scenario once and records every step and every state.
    ///
    /// # Errors
    /// If the simulator cannot be started.
    fn record(&self, scenario: &Scenario, options: &RecordOptions) -> Result<Recording, String>;

    /// Runs a scenario along a schedule and records it. At the schedule's end the run is left at the next decision or, if it goes on, ends
    /// without a further preemption.
    ///
    /// # Errors
    /// If the simulator cannot be started, or the schedule does not fit.
    fn record_prefix(
        &self,
        scenario: &Scenario,
        memory: Memory,
        schedule: &Schedule,
        goes_on: bool,
    ) -> Result<Recording, String>;

    /// Performs the operations of a trace and records every step and every state.
    ///
    /// # Errors
    /// What `next` fails with, or that there is no such machine.
    fn record_trace(&self, header: &Header, next: &mut NextLine<'_>) -> Result<Recording, String>;

    /// Runs the conformance checks that one of the patterns names, or all, and returns what came of each in their order.
    ///
    /// # Errors
    /// If a pattern names none.
    fn conformance(&self, patterns: &[String]) -> Result<Vec<CheckResult>, UnknownId>;

    /// Shows a newcomer what there is: what `gmem` does without arguments.
    ///
    /// # Errors
    /// If `out` cannot be written.
    fn demonstrate(&self, out: &mut dyn Write) -> anyhow::Result<Status>;
}
