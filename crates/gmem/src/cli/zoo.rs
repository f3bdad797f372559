//! `gmem zoo`: what finds each seeded bug, and how fast.

use std::io::Write;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rayon::ThreadPool;
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
const SEARCH: u64 = 1_000_000;

/// Steps of a search, at most: twice what the largest scenario needs that ends.
const STEPS: u64 = 100_000_000;

/// Random schedules that one worker takes at a time.
const PART: u64 = 10_000;

/// The sampling strategies, in turns.
const SAMPLING: [StrategyKind; 4] = [
    StrategyKind::Random,
    StrategyKind::Pct { depth: 2 },
    StrategyKind::Pct { depth: 3 },
    StrategyKind::Pct { depth: 4 },
];

/// A search and how long it took.
#[derive(Clone)]
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
    search: Timed,
    samples: Option<Search>,
}

/// Something that one worker does.
enum Job {
    /// The exhaustive search of a scenario with all rules on.
    Baseline(&'static str),
    /// The exhaustive search for a mutant.
    Search(&'static MutantInfo),
    /// Sampling for a mutant.
    Sample(&'static MutantInfo),
    /// Random schedules of a scenario with all rules on.
    Part(&'static str, Range<u64>),
}

impl Job {
    fn run(&self, effort: &Effort) -> Result<Timed, String> {
        let program = match self {
            Job::Baseline(path) | Job::Part(path, _) => ScenarioProgram::new(&zoo::scenario(path)?),
            Job::Search(info) | Job::Sample(info) => zoo::program_of(info)?,
        };
        Ok(timed(|| match self {
            Job::Baseline(_) | Job::Search(_) => zoo::search(&program, effort),
            Job::Sample(_) => zoo::sample(&program, &SAMPLING, effort),
            Job::Part(_, numbers) => zoo::sample_part(&program, effort.seed, numbers.clone()),
        }))
    }

    fn name(&self) -> &'static str {
        match self {
            Job::Baseline(path) | Job::Part(path, _) => path,
            Job::Search(info) | Job::Sample(info) => info.id(),
        }
    }
}

/// The workers, and what they show of their progress.
struct Crew {
    pool: ThreadPool,
    bar: ProgressBar,
    effort: Effort,
}

impl Crew {
    /// Does all jobs, in their order as far as workers are free: the long ones should be the first.
    fn work(&self, jobs: &[Job]) -> anyhow::Result<Vec<Timed>> {
        self.bar.inc_length(jobs.len() as u64);
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::new());
        self.pool.broadcast(|_| {
            while let Some((number, job)) = next_of(jobs, &next) {
                let result = job.run(&self.effort);
                if let Ok(timed) = &result {
                    self.tell(job, timed);
                }
                // Nothing panics while it is held.
                results.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((number, result));
            }
        });
        let mut results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        results.sort_by_key(|(number, _)| *number);
        results.into_iter().map(|(_, result)| result.map_err(|message| anyhow::anyhow!(message))).collect()
    }

    fn tell(&self, job: &Job, timed: &Timed) {
        let Search { strategy, executions, caught, exhausted } = &timed.search;
        let result = match caught {
            Some(id) => id.as_str(),
            None if *exhausted => "verified",
            None => "nothing found",
        };
        let seconds = timed.time.as_secs_f64();
        let line = format!("{}: {result}, {executions} executions of {strategy}, {seconds:.1} s", job.name());
        self.bar.suspend(|| tracing::info!("{line}"));
        self.bar.set_message(line);
        self.bar.inc(1);
    }
}

/// The next job that nobody has taken.
fn next_of<'j>(jobs: &'j [Job], next: &AtomicUsize) -> Option<(usize, &'j Job)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    jobs.get(number).map(|job| (number, job))
}

pub(super) fn zoo(args: &args::Zoo, show_progress: bool, out: &mut dyn Write) -> anyhow::Result<Status> {
    let rows = select(&args.ids, mutants::all(), |info| info.id(), |id| mutants::named(id).map(|_| ()))?;
    if args.list {
        list(&rows, args.json, out)?;
        return Ok(Status::Success);
    }
    silence_explorers();
    let crew = Crew {
        pool: pool(args.jobs.map_or_else(default_jobs, usize::from)).map_err(|message| anyhow::anyhow!(message))?,
        bar: progress_bar(show_progress && !args.json),
        effort: Effort {
            seed: args.seed,
            search: SEARCH,
            steps: STEPS,
            schedules: args.schedules,
            baseline: args.baseline,
        },
    };
    let scenarios = if args.ids.is_empty() { zoo::baseline() } else { zoo::scenarios_of(rows.iter().copied()) };
    let baselines = scenarios.iter().map(|path| Job::Baseline(path));
    let searches = rows.iter().map(|info| Job::Search(info));
    let samples = rows.iter().map(|info| Job::Sample(info));
    let mut done = crew.work(&baselines.chain(searches).chain(samples).collect::<Vec<_>>())?.into_iter();
    let searched: Vec<Timed> = done.by_ref().take(scenarios.len()).collect();
    let (left, right) = done.as_slice().split_at(rows.len());
    let found: Vec<MutantRow> = rows
        .iter()
        .zip(left.iter().zip(right))
        .map(|(info, (search, sampled))| MutantRow { info, searches: [search.clone(), sampled.clone()] })
        .collect();
    let baseline = sample_the_large(&crew, &scenarios, searched)?;
    crew.bar.finish_and_clear();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&object(&found, &baseline))?)?;
    } else {
        text(&found, &baseline, out)?;
    }
    let as_expected = found.iter().all(MutantRow::is_as_expected) && baseline.iter().all(|row| row.violations() == 0);
    Ok(if as_expected { Status::Success } else { Status::Found })
}

/// Takes random schedules of the scenarios whose search neither ended nor found something.
fn sample_the_large(crew: &Crew, scenarios: &[&'static str], searched: Vec<Timed>) -> anyhow::Result<Vec<BaselineRow>> {
    let is_open = |timed: &Timed| !timed.search.exhausted && timed.search.caught.is_none();
    let open = scenarios.iter().zip(&searched).filter(|(_, timed)| is_open(timed)).map(|(path, _)| *path);
    let most = crew.effort.baseline;
    let jobs: Vec<Job> = open
        .flat_map(|path| {
            let parts = (0..most.div_ceil(PART)).map(|n| n * PART..most.min((n + 1) * PART));
            parts.map(move |numbers| Job::Part(path, numbers))
        })
        .collect();
    let sampled = crew.work(&jobs)?;
    let of = |scenario| {
        let parts = jobs.iter().zip(&sampled).filter(|(job, _)| job.name() == scenario);
        zoo::merged(parts.map(|(_, timed)| timed.search.clone()))
    };
    let rows = scenarios.iter().zip(searched);
    Ok(rows.map(|(scenario, search)| BaselineRow { scenario, search, samples: of(*scenario) }).collect())
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
        caught(&self.search.search) + self.samples.as_ref().map_or(0, caught)
    }

    fn executions(&self) -> u64 {
        self.search.search.executions + self.samples.as_ref().map_or(0, |samples| samples.executions)
    }

    fn is_verified(&self) -> bool {
        self.search.search.exhausted && self.search.search.caught.is_none()
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
                "milliseconds": milliseconds(row.search.time),
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
                format!(
                    "nothing found in {} of dpor and {} of random",
                    row.search.search.executions, samples.executions
                )
            }
            _ => format!("! {}", row.search.search.caught.as_deref().unwrap_or("random schedules fail")),
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
fn progress_bar(shown: bool) -> ProgressBar {
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    // The template is a constant; should it ever be wrong, the default style does.
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len}  {elapsed}  {wide_msg}") {
        bar.set_style(style);
    }
    if shown {
        // A search may take half a minute; the clock shows that it goes on.
        bar.enable_steady_tick(Duration::from_millis(250));
    }
    bar
}
