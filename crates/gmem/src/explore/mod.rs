//! The explorer: a scenario under many interleavings, and what to say of the one that fails.
//!
//! [`program`] is the scenario as a program, which `gmem run` shares. [`portfolio`] says what is tried in which order, [`campaign`] does it on
//! several cores, one [`unit`](mod@unit) after the other, [`progress`] is where that stands and what was found, [`checkpoint`] keeps it. [`order`] judges the
//! order of locks over all executions.
//!
//! Of a failure, [`minimise`] makes the interleaving small, [`witness`] looks at it closely, with [`state`] for what there is to see and
//! [`functions`] for where in the kernel it is; [`collision`] finds the two steps whose order matters, and [`report`] says it all.
//! [`guide`] and [`trial`] execute interleavings that are a little different.
//!
//! [`zoo`] holds the explorer against bugs that were put in on purpose.

pub mod campaign;
pub mod chains;
pub mod checkpoint;
pub mod collision;
mod columns;
pub mod functions;
pub mod guide;
pub mod minimise;
pub mod order;
pub mod portfolio;
pub mod program;
pub mod progress;
pub mod report;
pub mod state;
pub mod trial;
pub mod unit;
pub mod witness;
pub mod zoo;

pub use campaign::{Evidence, Finding, Flow, Progress};
pub use portfolio::Plan;
pub use program::{Failure, ScenarioProgram};
pub use report::Report;

use std::panic::{AssertUnwindSafe, catch_unwind};

use sim_kernel::sched::Schedule;

use crate::scenario::Scenario;
use report::Origin;

/// Explains the execution that `schedule` gives. If it is a finding of the given kind, its interleaving is made small first.
///
/// # Errors
/// If the schedule does not fail in that way, or the set-up fails.
pub fn explain(
    scenario: &Scenario,
    schedule: &Schedule,
    kind: Option<&str>,
    origin: &Origin,
) -> Result<Report, String> {
    let program = ScenarioProgram::new(scenario).with_memory(origin.memory.model());
    as_explorer(|| {
        let small = match kind {
            Some(kind) => minimise::minimise(&program, schedule, kind)?.schedule,
            None => schedule.clone(),
        };
        Ok(Report::new(&program, &small, origin))
    })
}

/// Explains what an exploration found.
///
/// # Errors
/// If it cannot be seen again, which says that the scenario is not the one that was explored.
pub fn explain_finding(scenario: &Scenario, finding: &Finding, origin: &Origin) -> Result<Report, String> {
    let schedule = finding.schedule.parse().map_err(|error| format!("the finding's schedule: {error}"))?;
    match &finding.evidence {
        Evidence::Execution => explain(scenario, &schedule, Some(finding.kind()), origin),
        // Thousands of steps, of which the last ones say everything: there is nothing to make small.
        Evidence::Tail => explain(scenario, &schedule, None, origin),
        Evidence::Order(seen) => {
            let program = ScenarioProgram::new(scenario).with_memory(origin.memory.model());
            as_explorer(|| Ok(Report::of_order(&program, finding, seen, origin)))
        }
    }
}

/// Runs `body` where assertions that fail are what is looked for.
pub(crate) fn as_explorer<R: Send>(body: impl FnOnce() -> Result<R, String> + Send) -> Result<R, String> {
    campaign::pool(1)?.install(|| {
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| Err(program::panic_message(&*payload)))
    })
}
