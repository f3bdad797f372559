//! What the commands read: a scenario, with every mistake shown where it is.

use std::path::Path;

use crate::scenario::{self, Scenario};
use crate::{mutants, source};

/// A scenario's file.
pub(super) struct ScenarioFile {
    /// The path as the user named it.
    pub(super) name: String,
    /// The text.
    pub(super) source: String,
    /// What it says.
    pub(super) scenario: Scenario,
}

/// Reads a scenario. `None` if there is a mistake in it, which `complain` was told.
///
/// # Errors
/// If the file cannot be read or is no text.
pub(super) fn read_scenario(path: &Path, complain: &mut dyn FnMut(&str)) -> anyhow::Result<Option<ScenarioFile>> {
    let name = path.display().to_string();
    let source = source::text(path).map_err(anyhow::Error::msg)?;
    match scenario::parse(&name, &source) {
        Ok(scenario) => Ok(Some(ScenarioFile { name, source, scenario })),
        Err(diagnostic) => {
            complain(&diagnostic.render(true));
            Ok(None)
        }
    }
}

/// Switches rules off, beside those that the scenario has off. Returns their ids as the registry spells them.
///
/// # Errors
/// That there is no such rule.
pub(super) fn switch_off(scenario: &mut Scenario, ids: &[String]) -> anyhow::Result<Vec<&'static str>> {
    let mut off = Vec::new();
    for id in ids {
        let info = mutants::named(id).map_err(|message| anyhow::anyhow!("--mutant: {message}"))?;
        scenario.machine.mutants = scenario.machine.mutants.with(info.mutant);
        off.push(info.id());
    }
    Ok(off)
}

/// States facts of the machine, beside those that the scenario has or in their place.
///
/// # Errors
/// That there is no such fact, value, or machine.
pub(super) fn state_facts(scenario: &mut Scenario, facts: &[String]) -> anyhow::Result<()> {
    for fact in facts {
        scenario.machine.state_text(fact).map_err(|message| anyhow::anyhow!("--machine: {message}"))?;
    }
    scenario.machine.check().map_err(|message| anyhow::anyhow!("--machine: {message}"))
}

/// The same facts as the arguments of a command. None of them needs quotes: they were understood.
pub(super) fn machine_arguments(facts: &[String]) -> String {
    facts.iter().map(|fact| format!(" --machine {fact}")).collect()
}
