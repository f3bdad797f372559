//! What to say of a failure so that one understands it: the invariant in words, the two steps that collided, the interleaving, the
//! state before and after.
//!
//! [`Report::new`] looks at the failing execution once more and finds the collision; `Display` is the text for people, `Serialize` the
//! same for programs. The text is laid out in `columns.rs`.

use std::fmt;

use serde::Serialize;
use sim_kernel::sched::{Access, Replay, Schedule};

use super::chains::{self, Chain};
use super::collision::{self, Pair};
use super::columns;
use super::functions;
use super::order::SeenEdge;
use super::portfolio::Memory;
use super::program::{Failure, Part, ScenarioProgram};
use super::progress::Finding;
use super::trial::Trials;
use super::unit::{self, Tail};
use super::witness::{Step, Witness};
use crate::{invariants, mutants};

/// What is known of a failure beside the execution itself.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Which reorderings of loads and stores there are.
    pub memory: Memory,
    /// How it was found: `dpor, execution 17`.
    pub found_by: String,
    /// The command that shows it again, up to the schedule.
    pub command: String,
    /// Ids of the rules that are switched off.
    pub mutants: Vec<String>,
}

/// One of the two steps that collided.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// The task.
    pub task: String,
    /// How it touches the object.
    pub access: &'static str,
    /// The object with its index.
    pub object: String,
    /// The function, by the kernel's name where it has one.
    pub function: Option<&'static str>,
    /// The file of the model.
    pub file: &'static str,
    /// The line of the file.
    pub line: u32,
    /// The line of the scenario that the task is performing.
    pub performing: String,
    /// What it holds: lock, how, and where it was taken.
    pub holds: Vec<String>,
    /// The step's number in the interleaving, from 1.
    pub step: usize,
}

/// Two steps whose order decides whether the failure appears.
#[derive(Clone, Debug, Serialize)]
pub struct Collision {
    /// The one that came first.
    pub first: Side,
    /// The one that came second.
    pub second: Side,
    /// Locks that both hold.
    pub common: Vec<String>,
}

/// A value of the state at four moments.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What: `gfn 0x200 SPTE`.
    pub what: String,
    /// Before the first of the two steps.
    pub before: String,
    /// After the first.
    pub between: String,
    /// After the second.
    pub after: String,
    /// When the failure was noticed.
    pub end: String,
}

/// A failure, explained.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether anything failed.
    pub failed: bool,
    /// The id of the invariant, if one broke.
    pub invariant: Option<String>,
    /// What the invariant says, in words.
    pub text: Option<String>,
    /// What was seen.
    pub message: String,
    /// The task that noticed; `None` if it was seen when none could run any more.
    pub noticed_by: Option<String>,
    /// How it was found.
    pub found_by: String,
    /// Rules that are off, with what they are there for.
    pub mutants: Vec<String>,
    /// The two steps that collided.
    pub collision: Option<Collision>,
    /// Other pairs of steps whose order matters.
    pub also: Vec<Collision>,
    /// Who takes locks in opposite orders, if that is what is wrong.
    pub chains: Vec<Chain>,
    /// The state around the collision: what changed between its beginning and the end.
    pub state: Vec<Row>,
    /// How often a task is stopped that could go on.
    pub preemptions: usize,
    /// Operations up to the failure.
    pub steps: usize,
    /// The decisions.
    pub schedule: String,
    /// The command that shows it again.
    pub command: String,
    /// The interleaving, laid out in columns.
    #[serde(rename = "interleaving")]
    pub columns: Vec<String>,
}

/// Other pairs that are shown, at most.
const ALSO_MAX: usize = 3;

impl Report {
    /// A report that has nothing but what was seen.
    fn plain(failure: Failure, schedule: &Schedule, origin: &Origin) -> Report {
        let explain = |id: &String| match mutants::find(id) {
            Some(info) => format!("{id}: {}; without it, {}", info.removes, info.consequence),
            None => id.clone(),
        };
        Report {
            failed: true,
            text: failure.invariant.as_deref().and_then(words_of),
            invariant: failure.invariant,
            message: failure.message,
            noticed_by: None,
            found_by: origin.found_by.clone(),
            mutants: origin.mutants.iter().map(explain).collect(),
            collision: None,
            also: Vec::new(),
            chains: Vec::new(),
            state: Vec::new(),
            preemptions: 0,
            steps: 0,
            schedule: schedule.to_string(),
            command: format!("{} --replay {schedule}", origin.command),
            columns: Vec::new(),
        }
    }

    /// Explains an order of locks in which tasks could be stuck.
    pub(super) fn of_order(program: &ScenarioProgram, finding: &Finding, seen: &[SeenEdge], origin: &Origin) -> Report {
        // Where and who is told better by the chains.
        let message = finding.message.lines().next().unwrap_or_default().trim_end_matches(':').to_string();
        let failure = Failure { invariant: finding.invariant.clone(), message };
        let schedule = finding.schedule.parse().unwrap_or_default();
        let chains = seen.iter().map(|seen| Chain::of(program, seen, origin)).collect();
        Report { chains, ..Report::plain(failure, &schedule, origin) }
    }

    /// Looks at the execution that `schedule` gives and explains its failure, if it fails.
    pub fn new(program: &ScenarioProgram, schedule: &Schedule, origin: &Origin) -> Report {
        let tried = Trials::new(program).replay(schedule);
        if tried.is_endless {
            // Thousands of steps: what the tasks do in the end is all that matters.
            let (failed, failure) = match unit::tail_of(program, &tried.schedule) {
                Tail::Fails(failure) => (true, failure),
                Tail::Moves => {
                    let message = "it is long, but it moves on when every task gets its turn".to_string();
                    (false, Failure { invariant: None, message })
                }
            };
            return Report { failed, steps: tried.order.len(), ..Report::plain(failure, schedule, origin) };
        }
        let witness = Witness::of(program, Box::new(Replay::new(schedule.clone())));
        let pairs = collision::collisions(program, &witness);
        Report::of_witness(program, &witness, &pairs, origin)
    }

    /// Explains an execution that was looked at, with the pairs of its steps whose order matters.
    pub(crate) fn of_witness(program: &ScenarioProgram, witness: &Witness, pairs: &[Pair], origin: &Origin) -> Report {
        let failed = witness.failure.is_some();
        let failure = witness.failure.clone().unwrap_or_else(|| Failure {
            invariant: None,
            message: "everything came out as the scenario says".to_string(),
        });
        let side = |at: usize| Side::of(program, witness, at);
        let collision = |pair: &Pair| {
            let (first, second) = (side(pair.first), side(pair.second));
            Collision { common: common(&witness.steps[pair.first], &witness.steps[pair.second]), first, second }
        };
        let noticed_by = match &witness.verdict {
            sim_kernel::sched::Verdict::Panicked { task, .. } => Some(task.clone()),
            _ => None,
        };
        Report {
            failed,
            noticed_by,
            collision: pairs.first().map(collision),
            also: pairs.iter().skip(1).take(ALSO_MAX).map(collision).collect(),
            state: state(witness, pairs.first()),
            preemptions: witness.preemptions(),
            steps: witness.steps.len(),
            columns: columns::lay_out(program, witness, pairs.first().copied()),
            ..Report::plain(failure, &witness.schedule, origin)
        }
    }
}

impl Side {
    fn of(program: &ScenarioProgram, witness: &Witness, at: usize) -> Side {
        let step = &witness.steps[at];
        Side {
            task: witness.task(step.task),
            access: verb(step.op.access),
            object: step.object.clone(),
            function: functions::around(&step.site),
            file: step.site.file,
            line: step.site.line,
            performing: performing(program, step.line),
            holds: step
                .held
                .iter()
                .map(|h| format!("{}{}, taken at {}:{}", h.name, mode(h.access), file_name(h.site.file), h.site.line))
                .collect(),
            step: at + 1,
        }
    }
}

/// A line of the scenario, with its number.
pub(super) fn performing(program: &ScenarioProgram, line: (Part, usize)) -> String {
    let scenario = program.scenario();
    match line.0.steps(scenario).get(line.1) {
        Some(step) => format!("line {}: {}", step.line, operation(&step.text)),
        None => "after its last line".to_string(),
    }
}

/// The operation of a line, without what is expected of it.
pub(crate) fn operation(text: &str) -> &str {
    text.split("=>").next().unwrap_or(text).trim()
}

/// The file's name without its folders.
pub(super) fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// An access in words.
pub(crate) const fn verb(access: Access) -> &'static str {
    match access {
        Access::Start => "begins",
        Access::Load => "reads",
        Access::Store => "writes",
        Access::Rmw => "changes",
        Access::LockShared => "takes (read)",
        Access::LockExclusive => "takes",
        Access::TryLock => "tries",
        Access::Unlock => "releases",
        Access::SrcuEnter => "enters",
        Access::SrcuExit => "leaves",
        Access::Synchronize => "synchronizes",
        Access::Wait => "waits for",
        Access::Wake => "wakes",
        Access::Yield => "cond_resched",
        _ => access.name(),
    }
}

fn mode(access: Access) -> &'static str {
    match access {
        Access::LockShared => " for reading",
        Access::SrcuEnter => " as a reader",
        _ => "",
    }
}

fn common(first: &Step, second: &Step) -> Vec<String> {
    let both = first.held.iter().filter(|mine| second.held.iter().any(|theirs| theirs.name == mine.name));
    both.map(|holding| format!("{}{}", holding.name, mode(holding.access))).collect()
}

/// What an invariant says.
fn words_of(id: &str) -> Option<String> {
    let invariant = invariants::find(id)?;
    let window = match invariant.window {
        "" => String::new(),
        window => format!(" Except: {window}."),
    };
    Some(format!("{}{window}", invariant.text))
}

/// The values that changed since before the first of two steps.
fn state(witness: &Witness, pair: Option<&Pair>) -> Vec<Row> {
    let Some(pair) = pair else { return Vec::new() };
    let at = |moment: usize| {
        let mut values = witness.initial.clone();
        for change in witness.steps[..moment].iter().flat_map(|step| &step.changes) {
            if let Some(value) = values.iter_mut().find(|(what, _)| *what == change.what) {
                value.1.clone_from(&change.to);
            }
        }
        values
    };
    let moments = [pair.first, pair.first + 1, pair.second + 1, witness.steps.len()].map(at);
    let [before, between, after, end] = moments;
    let rows = before.into_iter().zip(between).zip(after).zip(end);
    let rows = rows.map(|(((before, between), after), end)| Row {
        what: before.0,
        before: before.1,
        between: between.1,
        after: after.1,
        end: end.1,
    });
    // What never changes is only shown of frames and pages, whose attribute, slot and binding one wants to know.
    let same = |row: &Row| row.before == row.between && row.between == row.after && row.after == row.end;
    rows.filter(|row| !same(row) || row.what.contains("gfn") || row.what.contains("index")).collect()
}

impl Report {
    /// The parts of the text, by name, in their order; those that say something.
    pub fn sections(&self) -> Vec<(&'static str, String)> {
        let mut sections = vec![("failure", self.failure())];
        if !self.chains.is_empty() {
            sections.push(("order", chains::print(&self.chains)));
            return sections;
        }
        // Of an endless execution nobody wants to see every step.
        if self.columns.is_empty() {
            sections.push(("command", format!("To see it again:\n  {}\n", self.command)));
            return sections;
        }
        if self.failed {
            sections.push(("collision", self.collided()));
        }
        if !self.also.is_empty() {
            let line = |also: &Collision| format!("  {}, then {}\n", short(&also.first), short(&also.second));
            let lines: String = self.also.iter().map(line).collect();
            sections.push(("others", format!("The order of these matters as well:\n{lines}")));
        }
        let plural = if self.preemptions == 1 { "" } else { "s" };
        let lines: String = self.columns.iter().map(|line| format!("{line}\n")).collect();
        sections.push((
            "interleaving",
            format!(
                "The interleaving, with {} preemption{plural}, {} steps from the start of the threads:\n{lines}",
                self.preemptions, self.steps
            ),
        ));
        if !self.state.is_empty() {
            sections.push(("state", format!("The state around the two steps:\n{}", columns::state(&self.state))));
        }
        sections.push(("command", format!("To see it again:\n  {}\n", self.command)));
        sections
    }

    fn failure(&self) -> String {
        let by = &self.found_by;
        let mut text = match &self.invariant {
            Some(id) => format!("{id} does not hold ({by})\n"),
            None if !self.failed => format!("nothing fails ({by})\n"),
            None => format!("not what the scenario expects ({by})\n"),
        };
        if let Some(rule) = &self.text {
            text.push_str(&columns::paragraph("  rule: ", rule));
        }
        let by = self.noticed_by.as_ref().map_or(String::new(), |task| format!(" (in {task})"));
        text.push_str(&columns::paragraph("  seen: ", &format!("{}{by}", self.message)));
        for mutant in &self.mutants {
            text.push_str(&columns::paragraph("  switched off: ", mutant));
        }
        text
    }

    fn collided(&self) -> String {
        let Some(Collision { first, second, common }) = &self.collision else {
            return "No order of two steps was found that alone makes the failure go away.\n".to_string();
        };
        let locks = match common.as_slice() {
            [] => "No lock is held by both.".to_string(),
            common => format!("Both hold {}.", common.join(" and ")),
        };
        format!(
            "Two steps collided on {}:\n{}{}  {locks} In the other order the failure does not appear.\n",
            first.object,
            side("first ", first),
            side("second", second)
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (_, text)) in self.sections().iter().enumerate() {
            let gap = if n > 0 { "\n" } else { "" };
            write!(f, "{gap}{text}")?;
        }
        Ok(())
    }
}

fn side(which: &str, side: &Side) -> String {
    let function = side.function.map_or(String::new(), |name| format!("in {name}, "));
    let heading = format!("  {which} step {:<4} ", side.step);
    let hang = " ".repeat(heading.len());
    let what = format!("{} {} {}, {function}{}:{}", side.task, side.access, side.object, side.file, side.line);
    let holds = match side.holds.as_slice() {
        [] => "holding nothing".to_string(),
        holds => format!("holding {}", holds.join("; ")),
    };
    let lines = [(heading.as_str(), what), (&hang, format!("performing {}", side.performing)), (&hang, holds)];
    lines.iter().map(|(heading, text)| columns::paragraph(heading, text)).collect()
}

fn short(side: &Side) -> String {
    let place = format!("{}:{}", file_name(side.file), side.line);
    format!("step {} {} {} {} ({place})", side.step, side.task, side.access, side.object)
}
