//! `gmem attack`: runs attacks, and shows what stops them.

use std::io::Write;

use super::args;
use crate::attack::{self, Attack, Ran, Report};
use crate::{Status, source};

pub(super) fn attack(
    args: &args::Attack,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Status> {
    let mut status = Status::Success;
    for (i, path) in args.files.iter().enumerate() {
        let text = source::text(path).map_err(anyhow::Error::msg)?;
        match attack::parse(&path.display().to_string(), &text) {
            Err(diagnostic) => {
                complain(&diagnostic.render(true));
                status = status.max(Status::BadInput);
            }
            Ok(attack) => {
                if i > 0 {
                    writeln!(out)?;
                }
                let report = attack::run(&attack);
                print(out, &attack, &report)?;
                if !report.is_as_expected() {
                    status = status.max(Status::Found);
                }
            }
        }
    }
    Ok(status)
}

fn print(out: &mut dyn Write, attack: &Attack, report: &Report) -> anyhow::Result<()> {
    writeln!(out, "{}: {}", attack.name, attack.teaches)?;
    let check = attack.check.as_ref().map(|check| format!(": {check}")).unwrap_or_default();
    let without = match attack.mutant {
        Some(mutant) => format!("; after the bar without {}", mutant.id()),
        None if !attack.has_other_machine() => String::new(),
        None => {
            let switches = attack.machine.facts().switches.iter().filter(|(_, on, _)| attack.switches.contains(on));
            let off: Vec<&str> = switches.map(|(.., off)| *off).collect();
            format!("; after the bar {}", off.join(", "))
        }
    };
    writeln!(out, "{}{check}{without}", attack.stopped_by.label)?;
    let width = report.with.iter().map(|ran| ran.step.text.len()).max().unwrap_or(0);
    for (i, ran) in report.with.iter().enumerate() {
        write!(out, "  {:width$}  {}", ran.step.text, answer(ran))?;
        // Only where it is something else.
        if let Some(other) = report.without.get(i).filter(|other| other.answer != ran.answer || !other.is_as_expected())
        {
            write!(out, " | {}", answer(other))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn answer(ran: &Ran) -> String {
    if ran.is_as_expected() { ran.answer.to_string() } else { format!("{}, not {}", ran.answer, ran.expected) }
}
