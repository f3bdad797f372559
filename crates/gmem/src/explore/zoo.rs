//! The zoo: every rule switched off in turn, on the scenario that needs it, and every scenario with all rules on.
//!
//! What comes of a mutant says how strong the explorer is, and what comes of a scenario without one says that it does not cry wolf.
//! A *search* is one strategy until its first finding or the end of its budget. Budgets are executions and steps, never time, so that the zoo says the same
//! on every machine. Steps are what an execution costs: where tasks keep each other from getting on, one of them has twenty thousand.

use std::collections::BTreeMap;
use std::ops::Range;

use sim_kernel::explore::{Exploration, Options, StrategyKind};

use super::portfolio::SAMPLE;
use super::program::ScenarioProgram;
use super::unit::{self, Judged};
use super::witness::STEPS_MAX;
use crate::mutants::MutantInfo;
use crate::scenario::{Scenario, parse};

/// Path below `scenarios/` and text of every scenario of the repository.
static SCENARIOS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/scenarios.rs"));

/// How much the zoo does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// From which samples are drawn.
    pub seed: u64,
    /// Executions of an exhaustive search, at most.
    pub search: u64,
    /// Steps of a search for a mutant or of an exhaustive one, in all its executions: when there were so many, it ends.
    pub steps: u64,
    /// Schedules of sampling strategies for each mutant, at most.
    pub schedules: u64,
    /// Random schedules without a mutant, where the search did not end.
    pub baseline: u64,
}

/// What came of one search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// The strategy that found something, or the only one.
    pub strategy: String,
    /// Executions up to the finding, or all.
    pub executions: u64,
    /// Id of the invariant that caught it; `expectation` if an answer was wrong; `None` if nothing was found.
    pub caught: Option<String>,
    /// Whether every interleaving was seen.
    pub exhausted: bool,
}

/// A scenario of the repository.
///
/// # Errors
/// That there is none of this name, or what is wrong with it.
pub fn scenario(path: &str) -> Result<Scenario, String> {
    let (_, text) =
        SCENARIOS.iter().find(|(name, _)| *name == path).ok_or_else(|| format!("there is no scenario `{path}`"))?;
    parse(path, text).map_err(|error| error.render(false))
}

/// The scenario of a mutant, with the rule off.
///
/// # Errors
/// As [`scenario`].
pub fn program_of(info: &MutantInfo) -> Result<ScenarioProgram, String> {
    let mut scenario = scenario(info.scenario)?;
    scenario.machine.mutants = scenario.machine.mutants.with(info.mutant);
    Ok(ScenarioProgram::new(&scenario).with_memory(info.memory.model()))
}

/// The scenarios of the mutants, each once, in the order of their names.
pub fn scenarios_of<'a>(mutants: impl Iterator<Item = &'a MutantInfo>) -> Vec<&'static str> {
    let all: BTreeMap<&'static str, ()> = mutants.map(|info| (info.scenario, ())).collect();
    all.into_keys().collect()
}

/// Scenarios with races that need no mutant to be worth exploring: what goes on in them has no rule of its own.
static WITHOUT_MUTANT: &[&str] = &[
    "snp/launch-running.toml",
    "snp/vain-fault-delete.toml",
    "snp/vmsa-slot.toml",
    "tdx/busy.toml",
    "tdx/create-init.toml",
];

/// The scenarios in which nothing may be found while no mutant is on: all that a mutant has, and those that none needs.
pub fn baseline() -> Vec<&'static str> {
    let all = scenarios_of(crate::mutants::all()).into_iter().chain(WITHOUT_MUTANT.iter().copied());
    all.map(|path| (path, ())).collect::<BTreeMap<_, _>>().into_keys().collect()
}

/// Looks for a failure by partial-order reduction.
pub fn search(program: &ScenarioProgram, effort: &Effort) -> Search {
    let mut exploration = Exploration::new(program, StrategyKind::Dpor, effort.seed, options(program, 0));
    let (executions, caught) = until_caught(program, &mut exploration, effort.search, |exploration| {
        exploration.statistics().steps >= effort.steps
    });
    let exhausted = exploration.is_exhausted() && exploration.statistics().truncated == 0;
    Search { strategy: StrategyKind::Dpor.to_string(), executions, caught, exhausted }
}

/// Looks for a failure by samples of these strategies in turn.
pub fn sample(program: &ScenarioProgram, kinds: &[StrategyKind], effort: &Effort) -> Search {
    let &Effort { seed, steps, schedules, .. } = effort;
    // Each goes on where its last turn ended: what it has learnt of the program is kept.
    let mut explorations: Vec<_> =
        kinds.iter().map(|kind| Exploration::new(program, *kind, seed, options(program, 0))).collect();
    let mut executions = 0;
    let mut turn = 0;
    // Short turns first: most bugs are found by the first strategies that have any chance.
    let mut length = 8;
    let mut strategy = kinds[0];
    let is_over = |explorations: &[Exploration<'_, _>], executions| {
        executions >= schedules || explorations.iter().map(|e| e.statistics().steps).sum::<u64>() >= steps
    };
    while !is_over(&explorations, executions) {
        let exploration = &mut explorations[turn % kinds.len()];
        strategy = kinds[turn % kinds.len()];
        let (done, caught) = until_caught(program, exploration, length.min(schedules - executions), |_| false);
        executions += done;
        if caught.is_some() {
            return Search { strategy: strategy.to_string(), executions, caught, exhausted: false };
        }
        turn += 1;
        if turn.is_multiple_of(kinds.len()) {
            length = (length * 2).min(SAMPLE);
        }
    }
    if kinds.len() > 1 {
        let names: Vec<String> = kinds.iter().map(ToString::to_string).collect();
        return Search { strategy: names.join(", "), executions, caught: None, exhausted: false };
    }
    Search { strategy: strategy.to_string(), executions, caught: None, exhausted: false }
}

/// Looks for a failure among random schedules with these numbers. Whoever looks through a range in parts gets the same schedules.
pub fn sample_part(program: &ScenarioProgram, seed: u64, numbers: Range<u64>) -> Search {
    let kind = StrategyKind::Random;
    let mut exploration = Exploration::new(program, kind, seed, options(program, numbers.start));
    let (executions, caught) = until_caught(program, &mut exploration, numbers.end - numbers.start, |_| false);
    Search { strategy: kind.to_string(), executions, caught, exhausted: false }
}

/// The search that the parts of one are together, in their order: up to the first finding.
pub fn merged(parts: impl IntoIterator<Item = Search>) -> Option<Search> {
    parts.into_iter().reduce(|whole, part| {
        if whole.caught.is_some() {
            return whole;
        }
        Search { executions: whole.executions + part.executions, ..part }
    })
}

/// Executes at most so many, until one fails, none is left, or `is_over`: how many it were, and what caught the failure. One without an end is judged as an
/// explorer does.
fn until_caught<'p>(
    program: &ScenarioProgram,
    exploration: &mut Exploration<'p, ScenarioProgram>,
    most: u64,
    is_over: impl Fn(&Exploration<'p, ScenarioProgram>) -> bool,
) -> (u64, Option<String>) {
    let mut executions = 0;
    let mut caught = None;
    while executions < most && caught.is_none() && !is_over(exploration) {
        let Some(execution) = exploration.step() else { break };
        executions += 1;
        if let Judged::Wrong(failure, _) = unit::judge(program, &execution) {
            caught = Some(failure.invariant.unwrap_or_else(|| "expectation".to_string()));
        }
    }
    (executions, caught)
}

fn options(program: &ScenarioProgram, first: u64) -> Options {
    Options { first, steps_max: STEPS_MAX, memory: program.memory(), ..Options::default() }
}
