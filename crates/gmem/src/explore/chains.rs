//! What to say of tasks that take locks in opposite orders: of each, what it holds, what it wants then, where, in which line of the scenario,
//! and the command that shows it doing so.

use serde::Serialize;
use sim_kernel::sched::{Access, Replay, Schedule, Site, TaskId};

use super::columns;
use super::functions;
use super::order::SeenEdge;
use super::program::ScenarioProgram;
use super::report::{Origin, file_name, performing, verb};
use super::witness::Witness;

/// One task that wants a lock while it holds another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Chain {
    /// The task; `boot` before the threads start and after they have ended.
    pub task: String,
    /// What it is doing.
    pub performing: Option<String>,
    /// The class of lock that it holds.
    pub holds: String,
    /// Whether as a reader.
    pub as_reader: bool,
    /// Where it was taken: the file, and the line.
    pub taken_at: String,
    /// In which function, by the kernel's name where it has one.
    pub taken_in: Option<&'static str>,
    /// What it wants then.
    pub wants: String,
    /// How.
    pub access: &'static str,
    /// Where.
    pub wanted_at: String,
    /// In which function.
    pub wanted_in: Option<&'static str>,
    /// The execution that showed it first.
    pub execution: u64,
    /// The command that shows that execution.
    pub command: String,
}

/// The file as seen from the root of the repository; as a dependency of something else, its path begins elsewhere.
fn from_root(site: &Site) -> &str {
    &site.file[site.file.rfind("crates/").unwrap_or(0)..]
}

impl Chain {
    /// Looks at the execution in which an edge was seen.
    pub(super) fn of(program: &ScenarioProgram, seen: &SeenEdge, origin: &Origin) -> Chain {
        let edge = &seen.edge;
        let place = |site: &Site| format!("{}:{}", from_root(site), site.line);
        let function = |site: &Site| functions::at(from_root(site), site.line);
        let boot = TaskId::BOOT;
        let (task, line) = if edge.task == boot { ("boot".to_string(), None) } else { Self::line(program, seen) };
        Chain {
            task,
            performing: line,
            holds: edge.from.to_string(),
            as_reader: matches!(edge.from_access, Access::LockShared | Access::SrcuEnter),
            taken_at: place(&edge.from_site),
            taken_in: function(&edge.from_site),
            wants: edge.to.to_string(),
            access: verb(edge.to_access),
            wanted_at: place(&edge.to_site),
            wanted_in: function(&edge.to_site),
            execution: seen.executions,
            command: format!("{} --replay {}", origin.command, seen.schedule),
        }
    }

    /// The task's name and what it is doing at that moment.
    fn line(program: &ScenarioProgram, seen: &SeenEdge) -> (String, Option<String>) {
        let Ok(schedule) = seen.schedule.parse::<Schedule>() else { return ("?".to_string(), None) };
        let witness = Witness::of(program, Box::new(Replay::new(schedule)));
        let to = &seen.edge.to_site;
        let step = witness.steps.iter().find(|step| {
            let is_there = step.task == seen.edge.task && step.site.file == from_root(to) && step.site.line == to.line;
            is_there && step.held.iter().any(|held| held.name.split(['#', '[']).next() == Some(&*seen.edge.from))
        });
        (witness.task(seen.edge.task), step.map(|step| performing(program, step.line)))
    }
}

/// The text.
pub(super) fn print(chains: &[Chain]) -> String {
    let mut text = match chains {
        [chain] => format!("{} breaks it alone:\n", chain.task),
        _ => "No execution was stuck. One would be in which each has what it holds before any gets what it wants:\n"
            .into(),
    };
    for (n, chain) in chains.iter().enumerate() {
        let function = |name: Option<&str>| name.map_or(String::new(), |name| format!("in {name}, "));
        let short = |place: &str| file_name(place).to_string();
        let reader = if chain.as_reader { " as a reader" } else { "" };
        let heading = format!("  {}. ", n + 1);
        let hang = " ".repeat(heading.len());
        let (taken, wanted) = (function(chain.taken_in), function(chain.wanted_in));
        let holds = format!("{} holds {}{reader}, taken {taken}{}", chain.task, chain.holds, short(&chain.taken_at));
        let wants = format!("and {} {}, {wanted}{}", chain.access, chain.wants, short(&chain.wanted_at));
        text.push_str(&columns::paragraph(&heading, &holds));
        text.push_str(&columns::paragraph(&hang, &wants));
        if let Some(line) = &chain.performing {
            text.push_str(&columns::paragraph(&hang, &format!("performing {line}")));
        }
        text.push_str(&format!("{hang}first in execution {}: {}\n", chain.execution, chain.command));
    }
    text
}
