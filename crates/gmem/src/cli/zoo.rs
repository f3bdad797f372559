//! `gmem zoo`: what finds each seeded bug, and how fast.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rayon::prelude::*;
use serde_json::{Value, json};
use sim_kernel::explore::StrategyKind;

use super::args;
use super::explore::default_jobs;
use super::interrupt::silence_explorers;
use super::invariants::select;
use crate::Status;
use crate::explore::campaign::pool;
use crate::explore::program::ScenarioProgram;
use crate::explore::zoo::{self, Effort, Search};
use crate::mutants::{self, MutantInfo};

/// Executions of an exhaustive search, at most.
const SEARCH: u64 = 100_000;

/// The sampling strategies, in turns.
const SAMPLING: [StrategyKind; 4] = [
    StrategyKind::Random,
    StrategyKind::Pct { depth: 2 },
    StrategyKind::Pct { depth: 3 },
    StrategyKind::Pct { depth: 4 },
];

/// A search and how long it took.
struct Timed {
    search: Search,
    time: Duration,
}

/// What came of a mutant: by exhaustive search, and by sampling.
struct MutantRow {
    info: &'static MutantInfo,
    searches: [Timed; 2],
}

/// What came of a scenario with all rules on.
struct BaselineRow {
    scenario: &'static str,
    search: Search,
    samples: Option<Search>,
}

pub(super) fn zoo(args: &args::Zoo, show_progress: bool, out: &mut dyn Write) -> anyhow::Result<Status> {
    let rows = select(&args.ids, mutants::all(), |info| info.id(), |id| mutants::named(id).map(|_| ()))?;
    if args.list {
        list(&rows, args.json, out)?;
        return Ok(Status::Success);
    }
    silence_explorers();
    let effort = Effort { seed: args.seed, search: SEARCH, schedules: args.schedules, baseline: args.baseline };
    let scenarios = zoo::scenarios_of(rows.iter().copied());
    let bar = progress_bar(show_progress && !args.json, (rows.len() + scenarios.len()) as u64);
    let pool = pool(args.jobs.map_or_else(default_jobs, usize::from)).map_err(|message| anyhow::anyhow!(message))?;
    let counted = |row| {
        bar.inc(1);
        row
    };
    let (found, baseline) = pool.install(|| {
        let found: Result<Vec<MutantRow>, String> =
            rows.par_iter().map(|info| mutant(info, &effort)).map(counted).collect();
        let baseline: Result<Vec<BaselineRow>, String> = scenarios
            .par_iter()
            .map(|path| baseline(path, &effort))
            .map(|row| {
                bar.inc(1);
                row
            })
            .collect();
        (found, baseline)
    });
    bar.finish_and_clear();
    let found = found.map_err(|message| anyhow::anyhow!(message))?;
    let baseline = baseline.map_err(|message| anyhow::anyhow!(message))?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&object(&found, &baseline))?)?;
    } else {
        text(&found, &baseline, out)?;
    }
    let as_expected = found.iter().all(MutantRow::is_as_expected) && baseline.iter().all(|row| row.violations() == 0);
    Ok(if as_expected { Status::Success } else { Status::Found })
}

fn mutant(info: &'static MutantInfo, effort: &Effort) -> Result<MutantRow, String> {
    let program = zoo::program_of(info)?;
    let search = timed(|| zoo::search(&program, effort));
    let sampled = timed(|| zoo::sample(&program, &SAMPLING, effort.seed, effort.schedules));
    Ok(MutantRow { info, searches: [search, sampled] })
}

fn baseline(path: &'static str, effort: &Effort) -> Result<BaselineRow, String> {
    let program = ScenarioProgram::new(&zoo::scenario(path)?);
    let search = zoo::search(&program, effort);
    let is_settled = search.exhausted || search.caught.is_some();
    let samples = (!is_settled).then(|| zoo::sample(&program, &[StrategyKind::Random], effort.seed, effort.baseline));
    Ok(BaselineRow { scenario: path, search, samples })
}

// The simulator reads no clock; how long a search takes is measured here.
#[expect(clippy::disallowed_methods)]
fn timed(search: impl FnOnce() -> Search) -> Timed {
    let begun = Instant::now();
    let search = search();
    Timed { search, time: begun.elapsed() }
}

impl MutantRow {
    /// The search that found it first: the one with the fewest executions.
    fn best(&self) -> &Timed {
        let found = self.searches.iter().filter(|timed| timed.search.caught.is_some());
        found.min_by_key(|timed| timed.search.executions).unwrap_or(&self.searches[0])
    }

    fn is_found(&self) -> bool {
        self.searches.iter().any(|timed| timed.search.caught.is_some())
    }

    fn is_as_expected(&self) -> bool {
        self.is_found() != self.info.is_negative_control()
    }
}

impl BaselineRow {
    fn violations(&self) -> u64 {
        let caught = |search: &Search| u64::from(search.caught.is_some());
        caught(&self.search) + self.samples.as_ref().map_or(0, caught)
    }

    fn executions(&self) -> u64 {
        self.search.executions + self.samples.as_ref().map_or(0, |samples| samples.executions)
    }

    fn is_verified(&self) -> bool {
        self.search.exhausted && self.search.caught.is_none()
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn object(found: &[MutantRow], baseline: &[BaselineRow]) -> Value {
    let search = |timed: &Timed| {
        json!({
            "strategy": timed.search.strategy,
            "found": timed.search.caught.is_some(),
            "executions": timed.search.executions,
            "invariant": timed.search.caught,
            "exhausted": timed.search.exhausted,
            "milliseconds": milliseconds(timed.time),
        })
    };
    let mutants: Vec<Value> = found
        .iter()
        .map(|row| {
            let best = row.best();
            json!({
                "id": row.info.id(),
                "found": row.is_found(),
                "strategy": best.search.strategy,
                "executions": best.search.executions,
                "invariant": best.search.caught,
                "milliseconds": milliseconds(best.time),
                "scenario": row.info.scenario,
                "negative_control": row.info.is_negative_control(),
                "searches": row.searches.iter().map(search).collect::<Vec<_>>(),
            })
        })
        .collect();
    let baseline: Vec<Value> = baseline
        .iter()
        .map(|row| {
            json!({
                "scenario": row.scenario,
                "verified": row.is_verified(),
                "executions": row.executions(),
                "violations": row.violations(),
            })
        })
        .collect();
    json!({ "mutants": mutants, "baseline": baseline })
}

fn text(found: &[MutantRow], baseline: &[BaselineRow], out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(out, "{:<8} {:<28} {:<34} removes", "mutant", "dpor", "sampling")?;
    for row in found {
        let cells = row.searches.each_ref().map(|timed| {
            let Search { strategy, executions, caught, exhausted } = &timed.search;
            let name = if strategy == "dpor" { String::new() } else { format!(" ({strategy})") };
            match caught {
                Some(id) => format!("{id} {executions}{name} {:.1} ms", milliseconds(timed.time)),
                None if *exhausted => format!("nothing in all {executions}"),
                None => format!("nothing in {executions}"),
            }
        });
        let mark = if row.is_as_expected() { ' ' } else { '!' };
        let control = if row.info.is_negative_control() { " (negative control)" } else { "" };
        writeln!(out, "{:<8}{mark}{:<28} {:<34} {}{control}", row.info.id(), cells[0], cells[1], row.info.removes)?;
    }
    writeln!(out, "\nwith every rule on")?;
    for row in baseline {
        let result = match (row.violations(), row.is_verified(), &row.samples) {
            (0, true, _) => format!("verified: {} executions, all interleavings", row.executions()),
            (0, _, Some(samples)) => {
                format!("nothing found in {} of dpor and {} of random", row.search.executions, samples.executions)
            }
            _ => format!("! {}", row.search.caught.as_deref().unwrap_or("random schedules fail")),
        };
        writeln!(out, "  {:<44} {result}", row.scenario)?;
    }
    let missed = found.iter().filter(|row| !row.info.is_negative_control() && !row.is_found()).count();
    let verified = baseline.iter().filter(|row| row.is_verified()).count();
    let false_alarms = baseline.iter().filter(|row| row.violations() > 0).count()
        + found.iter().filter(|row| row.info.is_negative_control() && row.is_found()).count();
    writeln!(
        out,
        "\n{} mutants, {missed} missed; {} scenarios, {verified} verified; {false_alarms} false alarms",
        found.len(),
        baseline.len()
    )?;
    Ok(())
}

fn list(rows: &[&'static MutantInfo], json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    if json {
        let rows: Vec<Value> = rows
            .iter()
            .map(|info| {
                json!({
                    "id": info.id(), "pair": info.pair, "removes": info.removes, "consequence": info.consequence,
                    "caught_by": info.caught_by, "scenario": info.scenario,
                })
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&json!({ "mutants": rows }))?)?;
        return Ok(());
    }
    for info in rows {
        writeln!(out, "{:<8} {:<10} {}", info.id(), info.pair, info.removes)?;
        let caught =
            if info.caught_by.is_empty() { "nothing: a negative control".into() } else { info.caught_by.join(", ") };
        writeln!(out, "         without it: {} (caught by {caught}; scenarios/{})", info.consequence, info.scenario)?;
    }
    Ok(())
}

/// On stderr, and only if that is a terminal.
fn progress_bar(shown: bool, length: u64) -> ProgressBar {
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    // The template is a constant; should it ever be wrong, the default style does.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len}  {elapsed}") {
        bar.set_style(style);
    }
    bar
}
