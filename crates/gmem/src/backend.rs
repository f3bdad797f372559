//! The simulator as the command uses it.

use std::io::{self, Write};

use rayon::prelude::*;
use sim_kernel::sched::{LogLevel, Random, Replay, RoundRobin, RunToCompletion, Schedule, Strategy};

use crate::Status;
use crate::cli::args;
use crate::cli::{Backend, NextLine, RecordOptions, RunOptions};
use crate::conformance::{self, Check, CheckResult, UnknownId};
use crate::demo;
use crate::explore::portfolio::Memory;
use crate::explore::report::Origin;
use crate::explore::{self, Finding, Flow, Plan, Progress, Report, ScenarioProgram};
use crate::interp::Sequential;
use crate::kvm::config::MachineConfig;
use crate::record::{self, Recording};
use crate::replay::Executor;
use crate::runner::{self, RunReport};
use crate::scenario::Scenario;
use crate::trace::Header;

/// Steps of a run that somebody makes by hand, at most.
const PREFIX_STEPS_MAX: u64 = 100_000;

/// The machine of this crate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Simulator;

impl Backend for Simulator {
    fn executor(&self, header: &Header) -> Result<Box<dyn Executor>, String> {
        Ok(Box::new(Sequential::new(MachineConfig::from_header(header)?)))
    }

    fn run(
        &self,
        scenario: &Scenario,
        options: &RunOptions,
        out: &mut dyn Write,
        log: Option<&mut dyn Write>,
        pkvm_trace: Option<&mut dyn Write>,
    ) -> anyhow::Result<Status> {
        let level = if log.is_some() { LogLevel::Full } else { LogLevel::Hash };
        let chooser = runner::chooser(options.strategy, options.schedule.as_ref());
        let machine = &scenario.machine;
        writeln!(out, "{}: {}", scenario.name, scenario.teaches.as_deref().unwrap_or("a scenario"))?;
        match &options.schedule {
            Some(schedule) => write!(out, "schedule {schedule}")?,
            None => write!(out, "seed {}, strategy {}", options.seed, strategy_name(options.strategy))?,
        }
        let stage2 = machine.stage2_name();
        writeln!(out, ", Linux {}, {stage2}, {} MiB\n", machine.kernel, machine.memory >> 20)?;
        let report = runner::run(scenario, chooser, options.seed, level);
        print_report(&report, options, out)?;
        if let (Some(log), Some(text)) = (log, &report.log) {
            log.write_all(text.as_bytes())?;
        }
        if let (Some(trace), Some(text)) = (pkvm_trace, &report.pkvm_trace) {
            trace.write_all(text.as_bytes())?;
        }
        Ok(if report.is_as_expected() { Status::Success } else { Status::Found })
    }

    fn explore(
        &self,
        scenario: &Scenario,
        plan: &Plan,
        progress: Progress,
        jobs: usize,
        watch: &mut dyn FnMut(&Progress) -> Flow,
    ) -> Result<Progress, String> {
        explore::campaign::explore(
            &ScenarioProgram::new(scenario).with_memory(plan.memory.model()),
            plan,
            progress,
            jobs,
            watch,
        )
    }

    fn explain(&self, scenario: &Scenario, schedule: &Schedule, origin: &Origin) -> Result<Report, String> {
        explore::explain(scenario, schedule, None, origin)
    }

    fn explain_finding(&self, scenario: &Scenario, finding: &Finding, origin: &Origin) -> Result<Report, String> {
        explore::explain_finding(scenario, finding, origin)
    }

    fn record(&self, scenario: &Scenario, options: &RecordOptions) -> Result<Recording, String> {
        explore::as_explorer(|| {
            let strategy: Box<dyn Strategy> = match (&options.schedule, options.strategy) {
                (Some(schedule), _) => Box::new(Replay::new(schedule.clone())),
                (None, args::Strategy::Random) => Box::new(Random::new()),
                (None, args::Strategy::RoundRobin) => Box::new(RoundRobin),
                (None, args::Strategy::RunToCompletion) => Box::new(RunToCompletion),
            };
            let origin = &options.origin;
            let memory = origin.memory.model();
            let plan = record::Plan {
                strategy,
                seed: options.seed,
                memory,
                limits: record::Limits { steps_max: options.steps_max },
                explain: Some(origin.clone()),
            };
            let mut recording =
                record::scenario(&ScenarioProgram::new(scenario).with_memory(memory).thoroughly(), plan);
            let machine = &scenario.machine;
            let decided = match &options.schedule {
                Some(_) => format!("schedule {}", recording.schedule),
                None => format!("{}, seed {}", strategy_name(options.strategy), options.seed),
            };
            let stage2 = if machine.pkvm { "pKVM's" } else { machine.stage2_name() };
            let mut facts = vec![("kernel", format!("Linux {}", machine.kernel)), ("stage 2", stage2.into())];
            if !origin.mutants.is_empty() {
                facts.push(("switched off", origin.mutants.join(", ")));
            }
            facts.push(("who ran", decided));
            recording.facts = facts.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
            Ok(recording)
        })
    }

    fn record_prefix(
        &self,
        scenario: &Scenario,
        memory: Memory,
        schedule: &Schedule,
        goes_on: bool,
    ) -> Result<Recording, String> {
        explore::as_explorer(|| {
            let program = ScenarioProgram::new(scenario).with_memory(memory.model()).thoroughly();
            let strategy = Box::new(record::Prefix::new(schedule.clone(), goes_on));
            let limits = record::Limits { steps_max: PREFIX_STEPS_MAX };
            let plan = record::Plan { strategy, seed: 0, memory: memory.model(), limits, explain: None };
            let recording = record::scenario(&program, plan);
            match &recording.misfit {
                Some(misfit) => Err(misfit.clone()),
                None => Ok(recording),
            }
        })
    }

    fn record_trace(&self, header: &Header, next: &mut NextLine<'_>) -> Result<Recording, String> {
        let machine = MachineConfig::from_header(header)?;
        let facts = [("kernel", format!("Linux {}", machine.kernel)), ("stage 2", machine.stage2_name().to_string())];
        let mut recording = record::trace(machine, next)?;
        recording.facts = facts.map(|(name, value)| (name.to_string(), value)).into();
        Ok(recording)
    }

    fn conformance(&self, patterns: &[String]) -> Result<Vec<CheckResult>, UnknownId> {
        // Each check has machines of its own, so they may run beside each other.
        Ok(conformance::select(patterns)?.into_par_iter().map(Check::run).collect())
    }

    fn demonstrate(&self, out: &mut dyn Write) -> anyhow::Result<Status> {
        demo::demonstrate(out)
    }
}

fn strategy_name(strategy: args::Strategy) -> &'static str {
    match strategy {
        args::Strategy::Random => "random",
        args::Strategy::RoundRobin => "round-robin",
        args::Strategy::RunToCompletion => "run-to-completion",
    }
}

/// The steps in the order in which they were completed, then the verdict and how to repeat the run.
fn print_report(report: &RunReport, options: &RunOptions, out: &mut dyn Write) -> io::Result<()> {
    let width = report.steps.iter().map(|s| s.thread.len()).max().unwrap_or(0);
    let text_width = report.steps.iter().map(|s| s.text.len()).max().unwrap_or(0).min(76);
    for step in &report.steps {
        let mark = if step.problem.is_some() { "!" } else { " " };
        writeln!(out, "{mark} {:width$}  {:text_width$}  {}", step.thread, step.text, step.answer)?;
        if let Some(problem) = &step.problem {
            writeln!(out, "    {}:{}: {problem}", options.file, step.line)?;
        }
    }
    writeln!(out, "\n{} scheduling points, events {:016x}", report.scheduling_points, report.log_digest)?;
    if !report.verdict.is_completed() {
        writeln!(out, "{}", report.verdict)?;
    }
    if let Err(outcome) = &report.outcome {
        writeln!(out, "{outcome}")?;
    }
    if let Some(invariant) = &report.invariant {
        writeln!(out, "{invariant}")?;
    }
    if report.is_as_expected() {
        writeln!(out, "everything came out as the scenario says")
    } else {
        writeln!(out, "not what the scenario says; to see it again:")?;
        let kernel = options.kernel.map_or(String::new(), |kernel| format!(" --kernel {kernel}"));
        let mutants: String = options.mutants.iter().map(|id| format!(" --mutant {id}")).collect();
        let facts: String = options.facts.iter().map(|fact| format!(" --machine {fact}")).collect();
        writeln!(out, "  gmem run {}{facts}{kernel}{mutants} --schedule {}", options.file, report.schedule)
    }
}
