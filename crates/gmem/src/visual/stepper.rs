//! Stepping through a scenario by hand: one is the scheduler.
//!
//! What was done so far is a list of decisions, and everything else follows from it: a decision adds to the list and runs the prefix again, going back
//! moves through what was recorded of it, and deciding otherwise there cuts the list. So there is nothing to undo.

use sim_kernel::sched::{Schedule, TaskId};

use crate::record::recording::{Pending, Recording};

/// Decisions for one task after which it is not waited for any more.
const LINE_DECISIONS_MAX: usize = 10_000;

/// Runs a scenario along a schedule and records it. At the schedule's end the run is left, or, if the flag says so, goes on without preemption.
pub type Rerun<'a> = Box<dyn Fn(&Schedule, bool) -> Result<Recording, String> + 'a>;

/// A scenario, a list of decisions, and a place in what came of them.
pub struct Stepper<'a> {
    run: Rerun<'a>,
    decisions: Vec<TaskId>,
    recording: Recording,
    /// How many steps are behind.
    at: usize,
    /// Which of those that can run is selected.
    selected: usize,
    /// What there is to say about the last key.
    message: String,
    /// Lines of the state that are scrolled away.
    scrolled: usize,
}

impl std::fmt::Debug for Stepper<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stepper").field("decisions", &self.decisions).field("at", &self.at).finish_non_exhaustive()
    }
}

/// What a person wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// One step on; at the end of what was decided, the selected task goes on.
    Forward,
    /// One step back.
    Back,
    /// So many steps on, or back, within what was decided.
    Move(isize),
    /// To the first step of the threads.
    First,
    /// To the end of what was decided.
    Last,
    /// Select the next task that can run, or the one before.
    Select(isize),
    /// The n-th task that can run, from 0, goes on, from here.
    Choose(usize),
    /// The selected task goes on until it completes a line or cannot go on.
    Line,
    /// Let the run end without further preemptions.
    Finish,
    /// Forget what was decided after this place.
    Cut,
    /// Scroll the state by so many lines.
    Scroll(isize),
}

impl<'a> Stepper<'a> {
    /// Steps through what `run` runs, beginning with these decisions, at the first step of the threads.
    ///
    /// # Errors
    /// If the run cannot be made.
    pub fn new(run: Rerun<'a>, schedule: &Schedule) -> Result<Stepper<'a>, String> {
        let recording = run(schedule, false)?;
        let mut stepper = Stepper {
            run,
            decisions: schedule.decisions().to_vec(),
            at: recording.setup_steps,
            recording,
            selected: 0,
            message: String::new(),
            scrolled: 0,
        };
        stepper.select_current();
        Ok(stepper)
    }

    /// What was recorded of the run so far.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// How many steps are behind.
    pub fn at(&self) -> usize {
        self.at
    }

    /// What there is to say about the last action; empty if nothing.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Lines of the state that are scrolled away.
    pub fn scrolled(&self) -> usize {
        self.scrolled
    }

    /// What was decided, to be given to `gmem run --schedule`.
    pub fn schedule(&self) -> Schedule {
        Schedule::new(self.decisions.clone())
    }

    /// The tasks that could go on here, where somebody has to decide; nobody elsewhere.
    pub fn choices(&self) -> Vec<&Pending> {
        if self.at < self.recording.steps.len() {
            return Vec::new();
        }
        self.recording.choice.iter().filter(|pending| pending.runnable).collect()
    }

    /// The tasks that are blocked at the end of what was decided.
    pub fn blocked(&self) -> Vec<&Pending> {
        if self.at < self.recording.steps.len() {
            return Vec::new();
        }
        self.recording.choice.iter().filter(|pending| !pending.runnable).collect()
    }

    /// Which of [`Stepper::choices`] is selected.
    pub fn selected(&self) -> usize {
        self.selected.min(self.choices().len().saturating_sub(1))
    }

    /// Whether the run has come to its end.
    pub fn is_over(&self) -> bool {
        self.recording.choice.iter().all(|pending| !pending.runnable)
    }

    /// Does what a person wants.
    ///
    /// # Errors
    /// If the run cannot be made again.
    pub fn act(&mut self, action: Action) -> Result<(), String> {
        self.message.clear();
        let steps = self.recording.steps.len();
        match action {
            Action::Forward if self.at < steps => self.at += 1,
            Action::Forward if self.is_over() => self.message = "the run is over".to_string(),
            Action::Forward => return self.choose(self.selected()),
            Action::Back => self.go(-1),
            Action::Move(by) => self.go(by),
            Action::First => self.at = self.recording.setup_steps,
            Action::Last => self.at = steps,
            Action::Select(by) => {
                let count = self.choices().len();
                if count > 0 {
                    self.selected = (self.selected() as isize + by).rem_euclid(count as isize) as usize;
                }
            }
            Action::Choose(n) => {
                if self.at < steps {
                    self.cut()?;
                }
                return self.choose(n);
            }
            Action::Line => return self.line(),
            Action::Finish => {
                self.cut()?;
                self.recording = (self.run)(&self.schedule(), true)?;
                let schedule: Schedule = self.recording.schedule.parse().unwrap_or_default();
                self.decisions = schedule.decisions().to_vec();
                self.at = self.recording.steps.len();
            }
            Action::Cut => {
                self.cut()?;
                self.message = if self.at == self.recording.steps.len() {
                    "what came after this step is forgotten".to_string()
                } else {
                    format!(
                        "up to step {} there is nothing to decide",
                        self.recording.number(self.recording.steps.len() - 1)
                    )
                };
            }
            Action::Scroll(by) => self.scrolled = self.scrolled.saturating_add_signed(by),
        }
        Ok(())
    }

    fn go(&mut self, by: isize) {
        let to = self.at.saturating_add_signed(by).min(self.recording.steps.len());
        if to == self.at {
            self.message = if by < 0 { "this is the beginning" } else { "this is the end" }.to_string();
        }
        self.at = to;
    }

    /// Forgets the decisions that were made after this place.
    fn cut(&mut self) -> Result<(), String> {
        if self.at == self.recording.steps.len() {
            return Ok(());
        }
        let kept = self.at.checked_sub(1).map_or(0, |last| self.recording.steps[last].decisions as usize);
        self.decisions.truncate(kept);
        self.recording = (self.run)(&self.schedule(), false)?;
        self.select_current();
        Ok(())
    }

    fn choose(&mut self, n: usize) -> Result<(), String> {
        let Some(task) = self.choices().get(n).map(|pending| pending.task) else {
            self.message = match self.choices().len() {
                0 if self.is_over() => "the run is over".to_string(),
                0 => "only one task can go on here; an arrow does".to_string(),
                count => format!("{count} tasks can go on, and this is none of them"),
            };
            return Ok(());
        };
        self.decisions.push(task);
        self.recording = (self.run)(&self.schedule(), false)?;
        // A task that starts, or that only decides who is next, performs nothing yet.
        self.at = (self.at + 1).min(self.recording.steps.len());
        self.select(task);
        Ok(())
    }

    /// The selected task goes on until it has completed what it is performing.
    fn line(&mut self) -> Result<(), String> {
        self.at = self.recording.steps.len();
        let Some(task) = self.choices().get(self.selected()).map(|pending| pending.task) else {
            self.message = "the run is over".to_string();
            return Ok(());
        };
        let line = |recording: &Recording| {
            recording.steps.iter().rev().find(|step| step.task == task).and_then(|step| step.line)
        };
        let mut begun = None;
        // A task may go in circles for ever.
        for _ in 0..LINE_DECISIONS_MAX {
            self.decisions.push(task);
            self.recording = (self.run)(&self.schedule(), false)?;
            self.at = self.recording.steps.len();
            let now = line(&self.recording);
            let first = *begun.get_or_insert(now);
            let goes_on = self.recording.choice.iter().any(|pending| pending.task == task && pending.runnable);
            if now != first || !goes_on {
                break;
            }
        }
        self.select(task);
        Ok(())
    }

    fn select(&mut self, task: TaskId) {
        let choices: Vec<TaskId> =
            self.recording.choice.iter().filter(|pending| pending.runnable).map(|pending| pending.task).collect();
        self.selected = choices.iter().position(|choice| *choice == task).unwrap_or(0);
    }

    /// Selects the task that ran last.
    fn select_current(&mut self) {
        if let Some(last) = self.recording.steps.last() {
            self.select(last.task);
        }
    }
}
