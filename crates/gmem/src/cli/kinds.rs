//! `gmem kinds`: one scenario on every kind of machine, with what each did for it side by side.

use std::io::Write;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::args;
use super::input::{ScenarioFile, read_scenario};
use crate::Status;
use crate::explore::program::Part;
use crate::kinds::{self, Group, Run, Step};
use crate::ops::Answer;
use crate::runner::RunReport;
use crate::scenario::{self, Pattern, Scenario};

pub(super) fn kinds(args: &args::Kinds, out: &mut dyn Write, complain: &mut dyn FnMut(&str)) -> anyhow::Result<Status> {
    let Some(ScenarioFile { name, scenario, .. }) = read_scenario(&args.scenario, complain)? else {
        return Ok(Status::BadInput);
    };
    let steps = steps_of(&scenario);
    if let Some(line) = args.line.iter().find(|line| !steps.iter().any(|(_, shown)| shown.line == **line)) {
        anyhow::bail!("--line {line}: {name} has no step there");
    }
    let runs = kinds::run(&scenario, args.strategy, args.seed).map_err(anyhow::Error::msg).context(name.clone())?;
    let shown: Vec<_> =
        steps.into_iter().filter(|(_, step)| args.line.is_empty() || args.line.contains(&step.line)).collect();
    let ends = args.line.is_empty();
    if args.json {
        writeln!(out, "{}", as_json(&scenario, &runs, &shown, ends))?;
    } else {
        print(out, &scenario, args, &runs, &shown, ends)?;
        problems(out, &name, args, &runs)?;
    }
    Ok(if runs.iter().all(|run| run.report.is_as_expected()) { Status::Success } else { Status::Found })
}

/// The steps of a scenario in the order of its parts.
fn steps_of(scenario: &Scenario) -> Vec<(Step, &scenario::Step)> {
    let threads = (0..scenario.threads.len()).map(Part::Thread);
    let parts = std::iter::once(Part::Setup).chain(threads).chain([Part::Finish]);
    parts
        .flat_map(|part| {
            part.steps(scenario).iter().enumerate().map(move |(index, step)| (Step::Of(part, index), step))
        })
        .collect()
}

/// What a run answered to the step in this line.
fn answer(report: &RunReport, line: u32) -> Option<&Answer> {
    report.steps.iter().find(|step| step.line == line).map(|step| &step.answer)
}

/// The same as a scenario would expect it; `-` if the step was not performed.
fn in_words(answer: Option<&Answer>) -> String {
    let Some(answer) = answer else { return "-".to_string() };
    Pattern::of(answer).map_or_else(|| answer.to_string(), |pattern| pattern.to_string())
}

/// What any of the kinds did in a step, group by group.
fn rows(runs: &[Run], step: Step) -> Vec<(Group, String, Vec<u64>)> {
    let mut rows: Vec<(Group, String, Vec<u64>)> = Vec::new();
    for (column, run) in runs.iter().enumerate() {
        for count in run.tally.get(&step).into_iter().flatten() {
            let known = rows.iter().position(|(group, what, _)| *group == count.group && *what == count.what);
            let row = known.unwrap_or_else(|| {
                rows.push((count.group, count.what.clone(), vec![0; runs.len()]));
                rows.len() - 1
            });
            rows[row].2[column] = count.times;
        }
    }
    // Stable: within a group, what was done first comes first.
    rows.sort_by_key(|(group, ..)| *group);
    rows
}

fn print(
    out: &mut dyn Write,
    scenario: &Scenario,
    args: &args::Kinds,
    runs: &[Run],
    shown: &[(Step, &scenario::Step)],
    ends: bool,
) -> anyhow::Result<()> {
    writeln!(out, "{}: {}", scenario.name, scenario.teaches.as_deref().unwrap_or("a scenario"))?;
    writeln!(out, "seed {}, Linux {}\n", args.seed, scenario.machine.kernel)?;
    let width = runs.iter().map(|run| run.kind.name.len()).max().unwrap_or(0);
    for run in runs {
        writeln!(out, "  {:width$}  {}", run.kind.name, run.kind.title)?;
    }
    for (step, text) in shown {
        writeln!(out, "\n{}", scenario::print(&text.op))?;
        let answers = runs.iter().map(|run| in_words(answer(&run.report, text.line))).collect();
        table(out, runs, Some(answers), rows(runs, *step))?;
    }
    if ends {
        writeln!(out, "\n(the process ends)")?;
        table(out, runs, None, rows(runs, Step::End))?;
    }
    Ok(())
}

/// A line for each thing that was done, a column for each kind.
fn table(
    out: &mut dyn Write,
    runs: &[Run],
    answers: Option<Vec<String>>,
    rows: Vec<(Group, String, Vec<u64>)>,
) -> anyhow::Result<()> {
    let dot = |times: u64| if times == 0 { ".".to_string() } else { times.to_string() };
    let mut lines = vec![("", String::new(), runs.iter().map(|run| run.kind.name.to_string()).collect())];
    lines.extend(answers.map(|answers| ("answer", String::new(), answers)));
    let mut last = None;
    for (group, what, times) in rows {
        let name = if last.replace(group) == Some(group) { "" } else { group.name() };
        lines.push((name, what, times.into_iter().map(dot).collect::<Vec<String>>()));
    }
    let group_width = Group::ALL.iter().map(|group| group.name().len()).max().unwrap_or(0);
    let what_width = lines.iter().map(|(_, what, _)| what.len()).max().unwrap_or(0);
    let widths: Vec<usize> =
        (0..runs.len()).map(|column| lines.iter().map(|(.., cells)| cells[column].len()).max().unwrap_or(0)).collect();
    for (group, what, cells) in lines {
        write!(out, "  {group:group_width$}  {what:what_width$}")?;
        for (cell, width) in cells.iter().zip(&widths) {
            write!(out, "  {cell:>width$}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// What did not come out as the scenario says, and the command that shows it again.
fn problems(out: &mut dyn Write, name: &str, args: &args::Kinds, runs: &[Run]) -> anyhow::Result<()> {
    let mut found = false;
    for run in runs.iter().filter(|run| !run.report.is_as_expected()) {
        found = true;
        let report = &run.report;
        writeln!(out, "\nnot what the scenario says on {}:", run.kind.name)?;
        for step in &report.steps {
            if let Some(problem) = &step.problem {
                writeln!(out, "  {name}:{}: {problem}", step.line)?;
            }
        }
        if !report.verdict.is_completed() {
            writeln!(out, "  {}", report.verdict)?;
        }
        for message in report.outcome.as_ref().err().into_iter().chain(&report.invariant) {
            writeln!(out, "  {message}")?;
        }
        let facts: String = run.kind.facts.iter().map(|fact| format!(" --machine {fact}")).collect();
        writeln!(out, "  gmem run {}{facts} --schedule {}", super::explore::for_a_shell(name), report.schedule)?;
    }
    if !found {
        let steps = if args.line.is_empty() { "everything" } else { "everything, the other steps too," };
        writeln!(out, "\n{steps} came out as the scenario says, on each")?;
    }
    Ok(())
}

fn as_json(scenario: &Scenario, runs: &[Run], shown: &[(Step, &scenario::Step)], ends: bool) -> Value {
    let by_kind = |values: Vec<Value>| -> Value {
        runs.iter().map(|run| run.kind.name.to_string()).zip(values).collect::<Map<String, Value>>().into()
    };
    let counts = |step: Step| -> Vec<Value> {
        let row = |(group, what, times): (Group, String, Vec<u64>)| {
            let times = by_kind(times.into_iter().map(Value::from).collect());
            json!({"group": group.name(), "what": what, "times": times})
        };
        rows(runs, step).into_iter().map(row).collect()
    };
    let step = |(step, text): &(Step, &scenario::Step)| {
        let answers = runs.iter().map(|run| answer(&run.report, text.line).map_or(Value::Null, Answer::to_json));
        json!({"line": text.line, "text": text.text, "answers": by_kind(answers.collect()), "counts": counts(*step)})
    };
    let steps: Vec<Value> = shown.iter().map(step).collect();
    let kinds: Vec<Value> = runs
        .iter()
        .map(|run| {
            let Run { kind, report, .. } = run;
            json!({
                "name": kind.name,
                "title": kind.title,
                "facts": kind.facts,
                "as_expected": report.is_as_expected(),
                "events": format!("{:016x}", report.log_digest),
            })
        })
        .collect();
    let end = ends.then(|| counts(Step::End));
    json!({"scenario": scenario.name, "kinds": kinds, "steps": steps, "end": end})
}
