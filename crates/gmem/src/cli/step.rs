//! `gmem step`: a scenario in a terminal, step by step, with a person as the scheduler.

use std::io::{IsTerminal, Write};

use ratatui::crossterm::event::{self, Event, KeyEventKind};

use super::input::{ScenarioFile, read_scenario, state_facts, switch_off};
use super::interrupt::silence_explorers;
use super::{Backend, args};
use crate::Status;
use crate::visual::stepper::Stepper;
use crate::visual::terminal::{action_of, draw, is_end};

pub(super) fn step(
    args: &args::Step,
    backend: &dyn Backend,
    out: &mut dyn Write,
    complain: &mut dyn FnMut(&str),
) -> anyhow::Result<Status> {
    silence_explorers();
    let Some(ScenarioFile { mut scenario, .. }) = read_scenario(&args.scenario, complain)? else {
        return Ok(Status::BadInput);
    };
    let schedule = args.schedule.as_deref().map(str::parse).transpose();
    let schedule = schedule.map_err(|error| anyhow::anyhow!("--schedule: {error}"))?.unwrap_or_default();
    state_facts(&mut scenario, &args.machine)?;
    if let Some(kernel) = args.kernel {
        scenario.machine.kernel = kernel;
    }
    switch_off(&mut scenario, &args.mutant)?;
    anyhow::ensure!(
        std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
        "gmem step needs a terminal; gmem report writes a page that does without"
    );
    let run = |schedule: &_, go_on| backend.record_prefix(&scenario, args.memory_model, schedule, go_on);
    let mut stepper = Stepper::new(Box::new(run), &schedule).map_err(anyhow::Error::msg)?;
    let mut terminal = ratatui::try_init()?;
    let result = (|| -> anyhow::Result<()> {
        loop {
            terminal.draw(|frame| draw(frame, &stepper))?;
            let Event::Key(key) = event::read()? else { continue };
            if key.kind == KeyEventKind::Release {
                continue;
            }
            if is_end(key) {
                return Ok(());
            }
            if let Some(action) = action_of(key) {
                stepper.act(action).map_err(anyhow::Error::msg)?;
            }
        }
    })();
    ratatui::try_restore()?;
    result?;
    writeln!(out, "schedule {}", stepper.schedule())?;
    Ok(Status::Success)
}
