//! The trail of an execution: its steps in order, with who else could have run and what each step did.
//!
//! Kept only if asked for ([`Config::trail`](super::Config::trail)) or if the strategy lives off it; the event log is for people and
//! hashes, this is for algorithms.

use super::effect::{Effect, EffectKind};
use super::op::{Op, TaskId, TaskSet};

/// One step of an execution.
#[derive(Clone, Copy, Debug)]
pub struct TrailStep {
    /// Who made it.
    pub task: TaskId,
    /// The announced operation that it began with.
    pub op: Op,
    /// The tasks that could have made a step instead, this one included.
    pub enabled: TaskSet,
    effects: u32,
}

/// The steps of an execution and their effects.
#[derive(Clone, Debug, Default)]
pub struct Trail {
    steps: Vec<TrailStep>,
    effects: Vec<Effect>,
}

impl Trail {
    /// The steps in order.
    pub fn steps(&self) -> &[TrailStep] {
        &self.steps
    }

    /// What step number `step` did.
    ///
    /// # Panics
    /// If there is no such step.
    #[inline]
    pub fn effects(&self, step: usize) -> &[Effect] {
        let from = self.steps[step].effects as usize;
        let to = self.steps.get(step + 1).map_or(self.effects.len(), |next| next.effects as usize);
        &self.effects[from..to]
    }

    pub(crate) fn clear(&mut self) {
        self.steps.clear();
        self.effects.clear();
    }

    pub(crate) fn begin_step(&mut self, task: TaskId, op: &Op, enabled: TaskSet) {
        let effects = u32::try_from(self.effects.len()).expect("fewer than 2^32 effects");
        self.steps.push(TrailStep { task, op: *op, enabled, effects });
        self.effects.extend(Effect::of(op));
    }

    /// Adds to what the running step does; what the boot task does is nobody's.
    pub(crate) fn push(&mut self, effect: Effect) {
        if !self.steps.is_empty() {
            self.effects.push(effect);
        }
    }

    /// Puts `effect` in the place of what the announcement said the running step would do.
    pub(crate) fn replace(&mut self, announced: EffectKind, effect: Effect) {
        if let Some(wrong) = self.running().iter_mut().find(|e| e.kind == announced) {
            *wrong = effect;
        }
    }

    /// The effects of the running step.
    pub(crate) fn running(&mut self) -> &mut [Effect] {
        match self.steps.last() {
            Some(step) => &mut self.effects[step.effects as usize..],
            None => &mut [],
        }
    }
}
