//! What `gmem explore` prints: what is done, first; what came of it; each failure explained; or the same as one JSON object.

use std::io::{self, Write};

use serde_json::{Value, json};
use sim_kernel::Faults;
use sim_kernel::explore::{Reversals, StrategyKind};

use super::budget::Budget;
use crate::explore::campaign::{Evidence, Finding, Progress};
use crate::explore::checkpoint::Identity;
use crate::explore::report::Report;
use crate::explore::witness::STEPS_MAX;
use crate::scenario::Scenario;

/// Outcomes that are shown, at most.
const OUTCOMES_MAX: usize = 12;

/// Pairs of places with most reversals that are shown.
const REVERSALS_MAX: usize = 12;

/// What an exploration is of.
pub(super) struct Header<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) identity: &'a Identity,
    pub(super) budget: Budget,
    /// Executions that a checkpoint brought.
    pub(super) resumed: u64,
}

/// A finding and what there is to say of it.
pub(super) struct Explained<'f> {
    pub(super) finding: &'f Finding,
    pub(super) report: Report,
}

/// Everything that decides what is explored.
pub(super) fn header(header: &Header<'_>, out: &mut dyn Write) -> io::Result<()> {
    let Header { scenario, identity, budget, resumed } = header;
    let machine = &scenario.machine;
    writeln!(out, "{}: {}", scenario.name, scenario.teaches.as_deref().unwrap_or("a scenario"))?;
    let plan = &identity.plan;
    let share = match plan.exhaustive() {
        Some((kind, most)) if most < plan.executions => {
            format!(", of which {kind} has the first {}", Budget::Executions(most))
        }
        _ => String::new(),
    };
    writeln!(
        out,
        "strategy {}, seed {}, budget {budget}{share}, Linux {}, {}, {} MiB, memory model {}",
        plan.choice,
        plan.seed,
        machine.kernel,
        machine.stage2_name(),
        machine.memory >> 20,
        identity.memory_model,
    )?;
    if !identity.mutants.is_empty() {
        writeln!(out, "switched off: {}", identity.mutants.join(", "))?;
    }
    if *resumed > 0 {
        writeln!(out, "from a checkpoint: {resumed} executions were done before")?;
    }
    writeln!(out)
}

/// What came of an exploration, and each failure explained.
///
/// `verbose` also says where the search spent its executions.
pub(super) fn result(
    header: &Header<'_>,
    progress: &Progress,
    explained: &[Explained<'_>],
    verbose: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let (plan, faults) = (&header.identity.plan, &header.scenario.machine.faults);
    for (n, Explained { report, .. }) in explained.iter().enumerate() {
        if n > 0 {
            writeln!(out, "\n{}\n", "=".repeat(80))?;
        }
        write!(out, "{report}")?;
    }
    if !explained.is_empty() {
        writeln!(out)?;
    }
    let totals = progress.totals();
    if totals.outcomes.len() > 1 {
        writeln!(out, "executions  outcome")?;
        for (outcome, count) in totals.outcomes.iter().take(OUTCOMES_MAX) {
            writeln!(out, "{count:>10}  {outcome}")?;
        }
        if totals.outcomes.len() > OUTCOMES_MAX {
            writeln!(out, "{:>10}  and {} more outcomes", "", totals.outcomes.len() - OUTCOMES_MAX)?;
        }
    }
    let by: Vec<String> = progress.by_strategy.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    let cut = match totals.pruned {
        0 => String::new(),
        n => format!(", {n} of them cut short as equivalent to others"),
    };
    if !totals.coverage.is_empty() {
        writeln!(out, "coverage: {} pairs of a store and a load of it in another task", totals.coverage.len())?;
    }
    if verbose {
        reversals(&totals.reversals, out)?;
    }
    if progress.is_verified(plan, faults) {
        let cut = match totals.pruned {
            0 => String::new(),
            n => format!(" ({n} more were cut short as equivalent to others)"),
        };
        return writeln!(out, "verified: {} executions, all interleavings of this scenario{cut}", totals.executions);
    }
    let executions = progress.executions();
    if progress.violations == 0 && !progress.findings.is_empty() {
        return writeln!(
            out,
            "none of {executions} executions failed, but together they show it ({}){cut}",
            by.join(", ")
        );
    }
    if progress.violations > 0 {
        return writeln!(out, "{} of {executions} executions failed ({}){cut}", progress.violations, by.join(", "));
    }
    let seen = match plan.exhaustive() {
        Some((kind, _)) if progress.exhausted && !kind.is_complete() => format!("all that {kind} can see, but "),
        _ => String::new(),
    };
    writeln!(
        out,
        "nothing found in {executions} executions ({}){cut}: {seen}not all interleavings were seen",
        by.join(", ")
    )?;
    if progress.exhausted
        && *faults != Faults::default()
        && plan.exhaustive().is_some_and(|(kind, _)| kind != StrategyKind::Dfs)
    {
        writeln!(
            out,
            "The scenario has faults that come at the n-th of something, whoever that is: no two steps commute, so a reduction may miss orders. \
             Only --strategy dfs sees all of them."
        )?;
    }
    match totals.truncated {
        0 => Ok(()),
        n => writeln!(
            out,
            "{n} of them reached the limit of {STEPS_MAX} steps, where a task tries again and again while the one that it waits for stands still; \
             with a turn for every task, each went on. How often a task may try has no end, so they cannot all be seen, and nothing is verified."
        ),
    }
}

/// The races because of which partial-order reduction went on.
fn reversals(reversals: &Reversals, out: &mut dyn Write) -> io::Result<()> {
    let mut most = reversals.most();
    for ((earlier, later), times) in most.by_ref().take(REVERSALS_MAX) {
        writeln!(out, "reversed {times:>8}: {earlier} and {later}")?;
    }
    match most.count() {
        0 => Ok(()),
        more => writeln!(out, "and {more} more pairs of places"),
    }
}

/// The same as one object.
pub(super) fn object(header: &Header<'_>, progress: &Progress, explained: &[Explained<'_>]) -> Value {
    let Header { scenario, identity, .. } = header;
    let totals = progress.totals();
    let pairs: Vec<[String; 2]> =
        totals.coverage.pairs().map(|(store, load)| [store.to_string(), load.to_string()]).collect();
    let reversed: Vec<Value> = totals
        .reversals
        .most()
        .map(|((earlier, later), times)| json!([earlier.to_string(), later.to_string(), times]))
        .collect();
    let findings: Vec<Value> = explained
        .iter()
        .map(|Explained { finding, report }| {
            json!({
                "invariant": finding.invariant,
                "message": finding.message,
                "strategy": finding.strategy.to_string(),
                "seed": finding.seed,
                "executions": finding.executions,
                "schedule": finding.schedule,
                "evidence": match finding.evidence {
                    Evidence::Execution => "execution",
                    Evidence::Tail => "fair tail",
                    Evidence::Order(_) => "order of locks",
                },
                "report": report,
            })
        })
        .collect();
    json!({
        "scenario": scenario.name,
        "kernel": identity.kernel,
        "mutants": identity.mutants,
        "memory_model": identity.memory_model,
        "strategy": identity.plan.choice.to_string(),
        "seed": identity.plan.seed,
        "executions": totals.executions,
        "pruned": totals.pruned,
        "steps": totals.steps,
        "by_strategy": progress.by_strategy,
        "finished": progress.finished,
        "verified": progress.is_verified(&identity.plan, &scenario.machine.faults),
        "violations": progress.violations,
        "truncated": totals.truncated,
        "unfair": progress.unfair,
        "outcomes": totals.outcomes,
        "coverage": pairs,
        "reversals": reversed,
        "findings": findings,
    })
}
