//! The interleaving in columns, one a task, and the other parts of a report that are laid out.
//!
//! Steps that touch nothing that another task touches, change nothing that is watched and begin nothing are counted, not shown.

use super::collision::Pair;
use super::functions;
use super::program::ScenarioProgram;
use super::report::{Row, file_name, performing, verb};
use super::witness::{Step, Witness, owner};

/// Characters of a line.
const WIDTH: usize = 120;
/// Characters before the first column: the step's number.
const MARGIN: usize = 6;

/// The lines of the interleaving.
pub(super) fn lay_out(program: &ScenarioProgram, witness: &Witness, pair: Option<Pair>) -> Vec<String> {
    let columns = witness.tasks.len().saturating_sub(1).max(1);
    let width = (WIDTH - MARGIN) / columns;
    let mut out = Lines { width, lines: Vec::new() };
    for (at, name) in witness.tasks.iter().skip(1).enumerate() {
        out.put(at, None, name);
        if at > 0 {
            out.join();
        }
    }
    let mut hidden = 0;
    let mut line = vec![None; columns];
    for (at, step) in witness.steps.iter().enumerate() {
        let column = owner(step.task).index() - 1;
        let begins = line[column] != Some(step.line);
        let collides = pair.is_some_and(|pair| pair.first == at || pair.second == at);
        let is_last = at + 1 == witness.steps.len();
        let shown = begins
            || collides
            || is_last
            || step.preempted.is_some()
            || !step.changes.is_empty()
            || touches_others(witness, at);
        if !shown {
            hidden += 1;
            let next = witness.steps.get(at + 1);
            if next.is_none_or(|next| next.task != step.task) {
                out.hidden(column, &mut hidden);
            }
            continue;
        }
        if hidden > 0 {
            let before = owner(witness.steps[at - 1].task).index() - 1;
            out.hidden(before, &mut hidden);
        }
        if let Some(stopped) = step.preempted {
            out.rule(&format!(" {} is stopped, {} goes on ", witness.task(stopped), witness.task(step.task)));
        }
        if begins {
            line[column] = Some(step.line);
            out.put(column, None, &performing(program, step.line));
        }
        let mark = match pair {
            Some(pair) if pair.first == at => "* ",
            Some(pair) if pair.second == at => "* ",
            _ => "  ",
        };
        out.put(column, Some(at + 1), &format!("{mark}{}", describe(step)));
        for change in &step.changes {
            out.put(column, None, &format!("    > {}: {} -> {}", change.what, change.from, change.to));
        }
        if is_last && let Some(failure) = &witness.failure {
            let what = failure.invariant.as_deref().unwrap_or("the expectation");
            if witness.verdict.is_completed() {
                out.rule(&format!(" all tasks have ended; {what} does not hold "));
            } else {
                out.put(column, None, &format!("  ! {what} does not hold"));
            }
        }
    }
    out.lines
}

/// Whether another task touches what this step touches, in a way that their order could matter.
fn touches_others(witness: &Witness, at: usize) -> bool {
    let step = &witness.steps[at];
    witness.steps.iter().any(|other| other.task != step.task && other.op.depends_on(&step.op))
}

fn describe(step: &Step) -> String {
    let place = format!("{}:{}", file_name(step.site.file), step.site.line);
    let what = match step.op.object {
        sim_kernel::sched::ObjId::NONE => verb(step.op.access).to_string(),
        _ => format!("{} {}", verb(step.op.access), step.object),
    };
    match functions::around(&step.site) {
        Some(function) => format!("{what} - {function}, {place}"),
        None => format!("{what} - {place}"),
    }
}

struct Lines {
    width: usize,
    lines: Vec<String>,
}

impl Lines {
    /// Text in a column, on as many lines as it takes.
    fn put(&mut self, column: usize, number: Option<usize>, text: &str) {
        let indent = text.len() - text.trim_start().len();
        let hang = " ".repeat(indent + 4);
        for (n, piece) in wrap(text, self.width - 2, &hang).into_iter().enumerate() {
            let number = number.filter(|_| n == 0).map_or(String::new(), |number| number.to_string());
            let line = format!("{number:>4}  {:1$}{piece}", "", column * self.width);
            self.lines.push(line.trim_end().to_string());
        }
    }

    /// Puts the last line beside the one before it.
    fn join(&mut self) {
        let last = self.lines.pop().expect("two lines");
        let line = self.lines.last_mut().expect("a line before");
        let text = last.trim_start();
        let from = last.chars().count() - text.chars().count();
        let gap = from.saturating_sub(line.chars().count());
        line.push_str(&" ".repeat(gap));
        line.push_str(text);
    }

    fn hidden(&mut self, column: usize, count: &mut usize) {
        let plural = if *count == 1 { "" } else { "s" };
        self.put(column, None, &format!("  ({count} step{plural} apart from the others)"));
        *count = 0;
    }

    fn rule(&mut self, text: &str) {
        let line = format!("{:MARGIN$}--{text}", "");
        let rest = WIDTH.saturating_sub(line.chars().count());
        self.lines.push(format!("{line}{}", "-".repeat(rest)));
    }
}

/// Text on lines of at most `width` characters; all but the first begin with `hang`.
fn wrap(text: &str, width: usize, hang: &str) -> Vec<String> {
    let indent: String = text.chars().take_while(|c| *c == ' ').collect();
    let mut lines = vec![indent];
    let mut is_new = true;
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a line");
        if !is_new && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(format!("{hang}{word}"));
        } else {
            if !is_new {
                line.push(' ');
            }
            line.push_str(word);
        }
        is_new = false;
    }
    lines
}

/// A paragraph behind a heading.
pub(super) fn paragraph(heading: &str, text: &str) -> String {
    let hang = " ".repeat(heading.len());
    let mut paragraph = String::new();
    for line in text.lines().flat_map(|part| wrap(part.trim(), WIDTH - heading.len(), "")) {
        let before = if paragraph.is_empty() { heading } else { &hang };
        paragraph.push_str(&format!("{before}{line}\n"));
    }
    paragraph
}

/// The table of the state at four moments.
pub(super) fn state(rows: &[Row]) -> String {
    let head = ["", "before the first", "after the first", "after the second", "at the failure"];
    let cells = |row: &Row| -> [String; 5] {
        let same = |before: &str, now: &str| if before == now { "\"".to_string() } else { now.to_string() };
        [
            row.what.clone(),
            row.before.clone(),
            same(&row.before, &row.between),
            same(&row.between, &row.after),
            same(&row.after, &row.end),
        ]
    };
    let table: Vec<[String; 5]> = std::iter::once(head.map(str::to_string)).chain(rows.iter().map(cells)).collect();
    let widths = [0, 1, 2, 3, 4].map(|at| table.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in &table {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!(" {cell:width$} "));
        let line: String = std::iter::once(" ".to_string()).chain(cells).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
