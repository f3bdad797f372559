//! `gmem bench`: what the model costs, against its goals, with peers in the same run: a table, a JSON file and a plot.

mod plot;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod real;
mod sampler;

use std::fs;
use std::io::Write;

use anyhow::Context;
use serde_json::{Value, json};

use super::args;
use super::output::whole_file;
use crate::Status;
use crate::bench::{self, Case, GOALS, Goal, Size};
use sampler::{Measured, Patience, Sampler, Scales};

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use real::worker;

/// A case and what came of it.
#[derive(Clone, Debug)]
struct Row {
    case: Case,
    measured: Measured,
}

/// The goal that is weighed, not timed.
const WEIGHED: &str = "P12";

impl Row {
    fn median(&self) -> f64 {
        self.measured.median
    }

    fn unit(&self) -> &'static str {
        if self.case.goal == WEIGHED { "B" } else { "ns" }
    }

    /// Whether it keeps its limit, if it has one.
    fn keeps_limit(&self) -> Option<bool> {
        self.case.limit.map(|limit| self.median() <= limit)
    }
}

pub(super) fn bench(args: &args::Bench, out: &mut dyn Write, complain: &mut dyn FnMut(&str)) -> anyhow::Result<Status> {
    let goals: Vec<(&Goal, &str)> = if args.goals.is_empty() {
        GOALS.iter().map(|goal| (goal, "")).collect()
    } else {
        args.goals.iter().map(|asked| wanted(asked)).collect::<Result<_, _>>().map_err(|m| anyhow::anyhow!(m))?
    };
    if args.list {
        for (goal, _) in goals {
            writeln!(out, "{:<6} {}", goal.id, goal.text)?;
        }
        return Ok(Status::Success);
    }
    if let Some(folder) = &args.output {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let patience = if args.quick { Patience::QUICK } else { Patience::USUAL };
    let size = Size { small: args.quick, guest: args.guest };
    let elsewhere = |case: &Case| weigh_elsewhere(args, case);
    let mut rows: Vec<Row> = Vec::new();
    let mut failure = None;
    for (goal, wanted) in goals {
        if !args.json {
            writeln!(out, "{}: {}", goal.id, goal.text)?;
            out.flush()?;
        }
        let mut tell = |case: Case, measured: Measured| {
            let row = Row { case, measured };
            if !args.json && failure.is_none() {
                failure = line(&row, out).err();
            }
            rows.push(row);
        };
        let scales = match &args.weigh {
            Some(id) => Scales::Here(id.clone()),
            None => Scales::Elsewhere(&elsewhere),
        };
        let mut sampler = Sampler::new(patience, scales, wanted, &mut tell);
        (goal.run)(&mut sampler, &size);
        let found = sampler.finish()?;
        anyhow::ensure!(found, "{} has no case whose name begins with `{wanted}`", goal.id);
        if goal.id == bench::pages::GOAL && wanted.is_empty() {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            if let Err(reason) = real::measure(args, &mut tell) {
                complain(&format!("the real kernel is left out: {reason}"));
            }
        }
        if let Some(error) = failure.take() {
            return Err(error.into());
        }
    }
    let object = object(&rows);
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&object)?)?;
    } else {
        summary(&rows, out)?;
    }
    if let Some(folder) = &args.output {
        let (data, picture) = (folder.join("bench.json"), folder.join("bench.svg"));
        whole_file(&data, |file| Ok(writeln!(file, "{}", serde_json::to_string_pretty(&object)?)?))?;
        let svg = plot::svg("gmem bench", &rows).map_err(|message| anyhow::anyhow!("no plot: {message}"))?;
        whole_file(&picture, |file| Ok(file.write_all(svg.as_bytes())?))?;
        if !args.json {
            writeln!(out, "written: {} and {}", data.display(), picture.display())?;
        }
    }
    Ok(Status::Success)
}

/// The goal that is asked for, and what the ids of its cases must begin with: `P3` for all, `P3/npt` for some.
fn wanted(asked: &str) -> Result<(&'static Goal, &str), String> {
    let (goal, cases) = asked.split_once('/').map_or((asked, ""), |(goal, _)| (goal, asked));
    Ok((bench::goal(goal)?, cases))
}

/// A row of the table.
fn line(row: &Row, out: &mut dyn Write) -> std::io::Result<()> {
    let Row { case, measured: Measured { median, min, max, .. } } = row;
    let unit = row.unit();
    let limit = match (row.keeps_limit(), case.limit) {
        (Some(keeps), Some(limit)) => format!("{} {limit:.1}", if keeps { "<=" } else { "> " }),
        _ => String::new(),
    };
    let set = if case.pages == 0 { String::new() } else { case.pages.to_string() };
    let peer = if case.is_peer { "peer: " } else { "" };
    let name = format!("{peer}{}", case.name);
    let note = if case.note.is_empty() { String::new() } else { format!("  {}", case.note) };
    writeln!(
        out,
        "  {name:<42} {set:>7} {median:>10.1} {unit}/{:<10} {limit:<9} ({min:.1} to {max:.1}){note}",
        case.element
    )?;
    out.flush()
}

fn summary(rows: &[Row], out: &mut dyn Write) -> std::io::Result<()> {
    let limited: Vec<bool> = rows.iter().filter_map(Row::keeps_limit).collect();
    let kept = limited.iter().filter(|keeps| **keeps).count();
    writeln!(
        out,
        "\n{kept} of {} limits kept; medians of processor time, smallest and largest sample in brackets",
        limited.len()
    )
}

fn object(rows: &[Row]) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "id": row.case.id(), "case": row.case, "unit": row.unit(), "measured": row.measured,
                "within": row.keeps_limit(),
            })
        })
        .collect();
    json!({ "cases": rows })
}

/// Has a process of its own weigh a case.
fn weigh_elsewhere(args: &args::Bench, case: &Case) -> anyhow::Result<Option<Measured>> {
    let mut command = std::process::Command::new(std::env::current_exe().context("gmem cannot find itself")?);
    command.args(["bench", WEIGHED, "--json", "--weigh", &case.id()]);
    if args.quick {
        command.arg("--quick");
    }
    if let Some(bytes) = args.guest {
        command.arg(format!("--guest={bytes}"));
    }
    let output = command.output().context("gmem cannot start itself")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{}: {}", case.id(), complaint.trim());
    let told: Value = serde_json::from_slice(&output.stdout).context("what another gmem measured")?;
    let measured = told.pointer("/cases/0/measured").cloned();
    measured.map(serde_json::from_value).transpose().context("what another gmem measured")
}
