//! `gmem explore`: many interleavings of a scenario, and what to say of the one that fails.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sim_kernel::sched::Schedule;

use super::explore_print::{self as print, Explained, Header};
use super::input::{ScenarioFile, machine_arguments, read_scenario, state_facts, switch_off};
use super::interrupt::{catch_interrupts, silence_explorers, was_interrupted};
use super::output::{can_be_written, whole_file};
use super::{Backend, args};
use crate::explore::campaign::{Finding, Flow, Progress};
use crate::explore::checkpoint::{Checkpoint, Identity};
use crate::explore::portfolio::{Memory, Plan};
use crate::explore::report::Origin;
use crate::scenario::Scenario;
use crate::{Status, mutants, source};

/// How often a checkpoint is written while units are finished.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(250);

pub(super) fn explore(
    args: &args::Explore,
    show_progress: bool,
    verbose: bool,
    backend: &dyn Backend,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Status> {
    let Some(file) = read_scenario(&args.scenario, complain)? else { return Ok(Status::BadInput) };
    let ScenarioFile { name, source, mut scenario } = file;
    state_facts(&mut scenario, &args.machine)?;
    if let Some(kernel) = args.kernel {
        scenario.machine.kernel = kernel;
    }
    let switched_off = switch_off(&mut scenario, &args.mutants)?;
    silence_explorers();
    let command = command(&name, args, &switched_off);
    if let Some(schedule) = &args.replay {
        let schedule = schedule.parse().map_err(|error| anyhow::anyhow!("--replay: {error}"))?;
        let (memory, mutants) = (args.memory_model, mutants_of(&scenario));
        let origin = Origin { memory, found_by: "replay".into(), command, mutants };
        return replay(&scenario, &schedule, &origin, args.json, backend, out);
    }
    let (executions, search) = args.budget.executions();
    let plan = Plan {
        choice: args.strategy,
        seed: args.seed,
        executions,
        search,
        keep_going: args.keep_going,
        memory: args.memory_model,
    };
    let identity = Identity {
        version: env!("CARGO_PKG_VERSION").to_string(),
        scenario: Identity::hash(&(source + &machine_arguments(&args.machine))),
        kernel: scenario.machine.kernel.to_string(),
        mutants: mutants_of(&scenario),
        memory_model: args.memory_model.to_string(),
        plan,
    };
    let progress = resume(args.checkpoint.as_deref(), &identity)?;
    if let Some(path) = &args.checkpoint {
        // Before there is anything to lose.
        can_be_written(path)?;
    }
    let header =
        Header { scenario: &scenario, identity: &identity, budget: args.budget, resumed: progress.executions() };
    if !args.json {
        print::header(&header, out)?;
        out.flush()?;
    }
    let jobs = args.jobs.unwrap_or_else(default_jobs);
    catch_interrupts();
    let mut watcher = Watcher::new(args, &identity, show_progress && !args.json);
    let result = backend.explore(&scenario, &plan, progress, jobs, &mut |progress| watcher.watch(progress));
    watcher.bar.finish_and_clear();
    let progress = result.map_err(|message| anyhow::anyhow!(message))?;
    watcher.keep(&progress);
    if let Some(error) = watcher.failed {
        return Err(error);
    }
    let explained: Vec<Explained<'_>> = progress
        .findings
        .iter()
        .map(|finding| explain(&scenario, finding, &command, args.memory_model, backend))
        .collect::<Result<_, _>>()?;
    let interrupted = was_interrupted() && !progress.finished;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&print::object(&header, &progress, &explained))?)?;
    } else {
        print::result(&header, &progress, &explained, verbose, out)?;
        if interrupted {
            let kept = match &args.checkpoint {
                Some(_) => "the same command goes on from here",
                None => "with --checkpoint FILE, the same command would go on from here",
            };
            writeln!(out, "interrupted; {kept}")?;
        }
    }
    Ok(if progress.findings.is_empty() { Status::Success } else { Status::Found })
}

/// Worker threads, unless it is said: one for each core.
pub(super) fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Ids of the rules that are off.
pub(super) fn mutants_of(scenario: &Scenario) -> Vec<String> {
    let off = mutants::all().filter(|info| scenario.machine.mutants.contains(info.mutant));
    off.map(|info| info.id().to_string()).collect()
}

/// A word as a shell reads it as one.
pub(super) fn for_a_shell(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// The command with everything that a schedule depends on.
fn command(name: &str, args: &args::Explore, mutants: &[&str]) -> String {
    let mut command = format!("gmem explore {}", for_a_shell(name));
    command.push_str(&machine_arguments(&args.machine));
    if let Some(kernel) = args.kernel {
        command.push_str(&format!(" --kernel {kernel}"));
    }
    if args.memory_model != Memory::Sc {
        command.push_str(&format!(" --memory-model {}", args.memory_model));
    }
    for id in mutants {
        command.push_str(&format!(" --mutant {id}"));
    }
    command
}

fn replay(
    scenario: &Scenario,
    schedule: &Schedule,
    origin: &Origin,
    json: bool,
    backend: &dyn Backend,
    out: &mut dyn Write,
) -> anyhow::Result<Status> {
    let report = backend.explain(scenario, schedule, origin).map_err(|message| anyhow::anyhow!(message))?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        writeln!(out, "{}: {}\n", scenario.name, scenario.teaches.as_deref().unwrap_or("a scenario"))?;
        write!(out, "{report}")?;
    }
    Ok(if report.failed { Status::Found } else { Status::Success })
}

fn explain<'f>(
    scenario: &Scenario,
    finding: &'f Finding,
    command: &str,
    memory: Memory,
    backend: &dyn Backend,
) -> anyhow::Result<Explained<'f>> {
    let found_by = format!("{}, execution {}", finding.strategy, finding.executions);
    let origin = Origin { memory, found_by, command: command.to_string(), mutants: mutants_of(scenario) };
    let report = backend.explain_finding(scenario, finding, &origin);
    Ok(Explained { finding, report: report.map_err(|message| anyhow::anyhow!(message))? })
}

/// Where the exploration stands according to its checkpoint; at the beginning if there is none.
fn resume(path: Option<&Path>, identity: &Identity) -> anyhow::Result<Progress> {
    let Some(path) = path else { return Ok(Progress::default()) };
    if !path.try_exists().with_context(|| format!("cannot read {}", path.display()))? {
        return Ok(Progress::default());
    }
    let text = source::text(path).map_err(anyhow::Error::msg)?;
    Checkpoint::read(&text, identity).with_context(|| format!("{} cannot be used", path.display()))
}

/// Looks at an exploration as it goes on: shows it, keeps it, and ends it when the time is up.
struct Watcher<'a> {
    args: &'a args::Explore,
    identity: &'a Identity,
    bar: ProgressBar,
    begun: Instant,
    before: Option<u64>,
    kept: Instant,
    failed: Option<anyhow::Error>,
}

impl<'a> Watcher<'a> {
    // The simulator reads no clock; how long a person waits is measured here.
    #[expect(clippy::disallowed_methods)]
    fn new(args: &'a args::Explore, identity: &'a Identity, shown: bool) -> Watcher<'a> {
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        // The template is a constant; should it ever be wrong, the default style does.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed}  {msg}") {
            bar.set_style(style);
        }
        let now = Instant::now();
        Watcher { args, identity, bar, begun: now, before: None, kept: now - CHECKPOINT_EVERY, failed: None }
    }

    fn watch(&mut self, progress: &Progress) -> Flow {
        let elapsed = self.begun.elapsed();
        let done = progress.executions();
        let before = *self.before.get_or_insert(done);
        let rate = (done - before) as f64 / elapsed.as_secs_f64().max(1e-3);
        let phase = if progress.search.is_over { "sampling" } else { "searching" };
        self.bar.set_message(format!("{phase}: {done} executions, {rate:.0}/s, {} failed", progress.violations));
        self.bar.tick();
        if self.kept.elapsed() >= CHECKPOINT_EVERY {
            self.keep(progress);
        }
        let is_late = self.args.budget.time().is_some_and(|time| elapsed >= time);
        if is_late || was_interrupted() || self.failed.is_some() { Flow::Stop } else { Flow::Continue }
    }

    /// Writes the checkpoint.
    #[expect(clippy::disallowed_methods)]
    fn keep(&mut self, progress: &Progress) {
        let Some(path) = &self.args.checkpoint else { return };
        if self.failed.is_some() {
            return;
        }
        let checkpoint = Checkpoint { identity: self.identity.clone(), progress: progress.clone() };
        let text = checkpoint.print();
        let written = whole_file(path, |file| Ok(file.write_all(text.as_bytes())?));
        self.failed = written.err();
        self.kept = Instant::now();
    }
}
