//! What `gmem step` draws: the steps so far, who can go on, and the state.
//!
//! A function of the [`Stepper`]; keys are [`Action`]s by [`action_of`]. The loop around both is the command's.

use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};

use super::stepper::{Action, Stepper};
use crate::record::recording::{Note, Recording, how};
use crate::record::store::Change;
use crate::record::table::{TABLES, Table};

/// Tables that are shown even if nothing in them has changed.
const ALWAYS: [Table; 9] = [
    Table::MAP,
    Table::COUNTERS,
    Table::VCPUS,
    Table::TLB,
    Table::CACHE,
    Table::RMP,
    Table::TD,
    Table::SEPT,
    Table::PKVM,
];
/// Rows of a table, at most.
const ROWS_MAX: usize = 24;

/// What a key asks for; `None` for one that means nothing, and for the end.
pub fn action_of(key: KeyEvent) -> Option<Action> {
    Some(match key.code {
        KeyCode::Right | KeyCode::Char('j' | ' ') | KeyCode::Enter => Action::Forward,
        KeyCode::Left | KeyCode::Char('k') | KeyCode::Backspace => Action::Back,
        KeyCode::Up => Action::Select(-1),
        KeyCode::Down | KeyCode::Tab => Action::Select(1),
        KeyCode::Char(digit @ '1'..='9') => Action::Choose(digit as usize - '1' as usize),
        KeyCode::Char('l') => Action::Line,
        KeyCode::Char('f') => Action::Finish,
        KeyCode::Char('x') => Action::Cut,
        KeyCode::Char('[') => Action::Move(-10),
        KeyCode::Char(']') => Action::Move(10),
        KeyCode::Home => Action::First,
        KeyCode::End => Action::Last,
        KeyCode::PageUp => Action::Scroll(-10),
        KeyCode::PageDown => Action::Scroll(10),
        _ => return None,
    })
}

/// Whether a key ends it.
pub fn is_end(key: KeyEvent) -> bool {
    let interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && matches!(key.code, KeyCode::Char('c' | 'd'));
    interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, stepper: &Stepper<'_>) {
    let [head, middle, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Fill(1), Constraint::Length(2)]).areas(frame.area());
    let [left, right] = Layout::horizontal([Constraint::Percentage(52), Constraint::Percentage(48)]).areas(middle);
    let tasks = stepper.choices().len() + stepper.blocked().len();
    let choices = Constraint::Length((tasks.max(1) + 2) as u16);
    let [steps, choices] = Layout::vertical([Constraint::Fill(1), choices]).areas(left);
    frame.render_widget(title(stepper), head);
    draw_steps(frame, steps, stepper);
    draw_choices(frame, choices, stepper);
    draw_state(frame, right, stepper);
    let keys = "→ step  ← back  1-9 who goes on  ↑↓ select  l line  f finish  x cut  [ ] ten  PgUp PgDn state  q quit";
    let lines = vec![Line::from(stepper.message().to_string()).bold(), Line::from(keys).dim()];
    frame.render_widget(Paragraph::new(lines), foot);
}

fn title(stepper: &Stepper<'_>) -> Paragraph<'static> {
    let recording = stepper.recording();
    let at = match stepper.at() {
        0 => "before the first step".to_string(),
        at => format!("step {} of {}", recording.number(at - 1), recording.number(recording.steps.len().max(1) - 1)),
    };
    let mut first = vec![Span::from(recording.title.clone()).bold(), Span::from(format!("  {at}"))];
    if stepper.is_over() && stepper.at() == recording.steps.len() {
        let style = if recording.is_as_expected { Color::Green } else { Color::Red };
        first.push(Span::styled(format!("  {}", recording.ending), style));
    }
    let schedule = Line::from(format!("schedule {}", stepper.schedule())).dim();
    Paragraph::new(vec![Line::from(first), schedule])
}

fn colour(task: usize) -> Color {
    const COLOURS: [Color; 6] =
        [Color::LightBlue, Color::Yellow, Color::LightGreen, Color::LightMagenta, Color::LightCyan, Color::LightRed];
    if task == 0 { Color::Gray } else { COLOURS[(task - 1) % COLOURS.len()] }
}

/// What is said of one step: its own line, and what happened in it.
fn lines_of(recording: &Recording, at: usize, current: bool) -> Vec<Line<'static>> {
    let step = &recording.steps[at];
    let task = step.task.index();
    let style = Style::new().fg(colour(task));
    let mark = if current { "▶" } else { " " };
    let mut lines = Vec::new();
    let begins = recording.steps[..at].iter().rev().find(|earlier| earlier.task == step.task).map(|step| step.line);
    if let Some(line) = step.line.filter(|line| begins != Some(Some(*line))) {
        let line = &recording.lines[line as usize];
        lines.push(
            Line::from(format!("       {}: line {}: {}", recording.tasks[task], line.number, line.text))
                .style(style)
                .bold(),
        );
    }
    let (site, function) = &recording.sites[step.site as usize];
    let place = function.map_or_else(|| crate::record::assemble::site_words(site), str::to_string);
    let mut line = Line::from(vec![
        Span::from(format!("{mark}{:>5} ", recording.number(at))),
        Span::styled(format!("{} {}", recording.tasks[task], recording.words(at)), style),
        Span::from(format!("  {place}")).dim(),
    ]);
    if current {
        line = line.add_modifier(Modifier::REVERSED);
    }
    lines.push(line);
    for note in &step.notes {
        let text = match note {
            Note::Released(_) | Note::Spawned(_) => continue,
            Note::Trace(text) => Span::from(text.clone()).cyan(),
            Note::Call(callee, text) => Span::from(format!("{} {text}", callee.name())).cyan().bold(),
            Note::Completed(line) => {
                let line = &recording.lines[*line as usize];
                Span::from(format!("⇒ {}", line.answer.as_deref().unwrap_or_default())).green()
            }
            Note::Ended => Span::from("ends").italic(),
            Note::Failed(text) => Span::from(text.clone()).red().bold(),
        };
        lines.push(Line::from(vec![Span::from("         "), text]));
    }
    lines
}

fn draw_steps(frame: &mut Frame<'_>, area: Rect, stepper: &Stepper<'_>) {
    let recording = stepper.recording();
    let block = Block::new().borders(Borders::ALL).title("Steps");
    let height = block.inner(area).height as usize;
    // From the current step upwards until two thirds are full, then what was already decided after it.
    let mut above: Vec<Vec<Line<'_>>> = Vec::new();
    let mut used = 0;
    let room = if stepper.at() < recording.steps.len() { height * 2 / 3 } else { height };
    for at in (0..stepper.at()).rev() {
        let lines = lines_of(recording, at, at + 1 == stepper.at());
        used += lines.len();
        if used > room && !above.is_empty() {
            break;
        }
        above.push(lines);
    }
    let mut lines: Vec<Line<'_>> = above.into_iter().rev().flatten().collect();
    for at in stepper.at()..recording.steps.len() {
        if lines.len() >= height {
            break;
        }
        lines.extend(lines_of(recording, at, false).into_iter().map(|line| line.dim()));
    }
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_choices(frame: &mut Frame<'_>, area: Rect, stepper: &Stepper<'_>) {
    let recording = stepper.recording();
    let choices = stepper.choices();
    let title = if choices.len() > 1 { "Who goes on?" } else { "Next" };
    let name = |task: usize| recording.tasks.get(task).map_or("a store buffer", String::as_str).to_string();
    let mut lines = Vec::new();
    for (n, pending) in choices.iter().enumerate() {
        let style = Style::new().fg(colour(pending.task.index()));
        let text = format!(" {} {} {}  ", n + 1, name(pending.task.index()), pending.op);
        let mut line = Line::from(vec![Span::styled(text, style), Span::from(pending.function.clone()).dim()]);
        if n == stepper.selected() {
            line = line.add_modifier(Modifier::REVERSED);
        }
        lines.push(line);
    }
    for pending in stepper.blocked() {
        let text = format!("   {} is blocked: {}  {}", name(pending.task.index()), pending.op, pending.function);
        lines.push(Line::from(text).dim());
    }
    if lines.is_empty() {
        let text = match recording.steps.get(stepper.at()) {
            Some(step) => format!(" {} {}", name(step.task.index()), recording.words(stepper.at())),
            None => " the run is over".to_string(),
        };
        lines.push(Line::from(text));
    }
    frame.render_widget(Paragraph::new(lines).block(Block::new().borders(Borders::ALL).title(title)), area);
}

fn draw_state(frame: &mut Frame<'_>, area: Rect, stepper: &Stepper<'_>) {
    let lines = state(stepper);
    let block = Block::new().borders(Borders::ALL).title("State");
    let height = block.inner(area).height as usize;
    let scrolled = stepper.scrolled().min(lines.len().saturating_sub(height));
    let shown: Vec<Line<'_>> = lines.into_iter().skip(scrolled).take(height).collect();
    frame.render_widget(Paragraph::new(shown).block(block), area);
}

/// The state at the current step, what changed in it marked.
fn state(stepper: &Stepper<'_>) -> Vec<Line<'static>> {
    let recording = stepper.recording();
    let store = &recording.store;
    let at = stepper.at().min(store.len().saturating_sub(1));
    if store.is_empty() {
        return Vec::new();
    }
    let now = store.state_at(at);
    let before = at.checked_sub(1).map_or_else(|| vec![0; now.len()], |before| store.state_at(before));
    let words = |value: u32| store.values()[value as usize].words(&recording.names);
    let changed: Vec<usize> = store.changes(at).iter().map(|Change { cell, .. }| store.row_of(*cell).0).collect();
    let mut lines = held(recording, stepper.at());
    for (number, spec) in TABLES.iter().enumerate() {
        let table = Table(number as u8);
        let rows: Vec<u32> =
            store.order().into_iter().filter(|row| store.rows()[*row as usize].table == table).collect();
        let changes = rows.iter().any(|row| changed.contains(&(*row as usize)));
        if !changes && !ALWAYS.contains(&table) {
            continue;
        }
        let mut shown = Vec::new();
        for row in rows {
            let first = store.rows()[row as usize].cell as usize;
            let cells = first..first + spec.columns.len();
            let has_changed = changed.contains(&(row as usize)) && cells.clone().any(|cell| now[cell] != before[cell]);
            let text = |state: &[u32]| {
                let cells: Vec<String> = state[cells.clone()].iter().map(|value| words(*value)).collect();
                cells.join("  ").trim_end().to_string()
            };
            match (before[first] != 0, now[first] != 0) {
                (false, false) => {}
                (true, false) if has_changed => shown.push(Line::from(format!("- {}", text(&before))).red()),
                (false, true) if has_changed && at > 0 => shown.push(Line::from(format!("+ {}", text(&now))).yellow()),
                (true, true) if has_changed => {
                    shown.push(Line::from(format!("- {}", text(&before))).dim());
                    shown.push(Line::from(format!("+ {}", text(&now))).yellow());
                }
                _ => shown.push(Line::from(format!("  {}", text(&now)))),
            }
        }
        if shown.is_empty() {
            continue;
        }
        lines.push(Line::from(spec.title).bold());
        let more = shown.len().saturating_sub(ROWS_MAX);
        lines.extend(shown.into_iter().take(ROWS_MAX));
        if more > 0 {
            lines.push(Line::from(format!("  and {more} more")).dim());
        }
    }
    lines
}

fn held(recording: &Recording, at: usize) -> Vec<Line<'static>> {
    let Some(step) = at.checked_sub(1) else { return Vec::new() };
    let held = recording.locks.iter().filter(|lock| lock.from <= step && lock.to > step);
    let held = held.map(|lock| {
        let task = lock.task.index();
        Line::from(format!("  {}  {} {}", lock.name, recording.tasks[task], how(lock.access)))
            .style(Style::new().fg(colour(task)))
    });
    let held: Vec<Line<'static>> = held.collect();
    if held.is_empty() { held } else { std::iter::once(Line::from("Locks held").bold()).chain(held).collect() }
}
