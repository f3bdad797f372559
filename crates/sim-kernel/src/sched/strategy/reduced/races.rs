//! Happens-before and races of an execution, and what their reversal adds to the search.
//!
//! Steps are ordered by vector clocks: program order, the start of a task, and every pair of dependent effects. A race is a pair of dependent steps of
//! different tasks that nothing else orders. For each, the steps in between that do not happen after the first, and then the second, are a way to go on
//! from before the first; if nobody who could begin it is to be tried there, one of them is added (`I(v)`, source sets).
//!
//! **Blocking.** Acquiring a lock is ordered after its last release ([`Relation::Enables`]), which cannot be reversed; the race is with the
//! acquisitions before, also where the releases order them (their order could be the other one). Tasks that are blocked at the end race with their pending operation.
//! With readers, leaving out one holder may leave another in the way, so the reversal is also tried without any step at that lock.
//!
//! **Failed assertions** end an execution for everybody: whoever could have made a step before the last one is tried there.

use super::super::Ended;
use super::{Place, Reduced};
use crate::sched::effect::{Effect, EffectKind, Relation};
use crate::sched::op::{MAX_TASKS, ObjId, TaskId, TaskSet};
use crate::sched::trail::Trail;

/// Objects that exist only in effects have the highest numbers; they come first here.
const PSEUDO_OBJECTS: u32 = 5;

/// An effect in the order of its object.
#[derive(Clone, Copy, Debug)]
struct Entry {
    step: u32,
    effect: Effect,
}

/// A step that another depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Earlier {
    step: u32,
    is_race: bool,
    is_blocking: bool,
}

/// A step that races with an earlier one, or the pending one of a task that was blocked.
struct Later<'e> {
    task: TaskId,
    effects: &'e [Effect],
    /// Its number; if it was not made, the number of all that were.
    step: usize,
    site: Place,
}

/// Clocks and effects of the steps of the current path. The part that the next execution shares with the last one is kept.
#[derive(Clone, Debug)]
pub(super) struct Races {
    /// Numbers in a clock.
    stride: usize,
    /// One clock a step: for each task, how many of its steps happen before or are this step.
    clocks: Vec<u32>,
    tasks: Vec<TaskId>,
    /// The how-manieth step of its task each step is, from 1.
    ordinals: Vec<u32>,
    /// Number of the previous step of the same task plus one.
    previous: Vec<u32>,
    /// By task: number of its last step plus one, and of the step that started it.
    last: [u32; MAX_TASKS],
    starter: [u32; MAX_TASKS],
    chains: Vec<Vec<Entry>>,
    earlier: Vec<Earlier>,
    before: Vec<u32>,
    clock: Vec<u32>,
    found: Vec<(u32, bool)>,
    between: Vec<u32>,
}

impl Default for Races {
    fn default() -> Races {
        Races {
            stride: 4,
            clocks: Vec::new(),
            tasks: Vec::new(),
            ordinals: Vec::new(),
            previous: Vec::new(),
            last: [0; MAX_TASKS],
            starter: [0; MAX_TASKS],
            chains: Vec::new(),
            earlier: Vec::new(),
            before: Vec::new(),
            clock: Vec::new(),
            found: Vec::new(),
            between: Vec::new(),
        }
    }
}

fn chain_of(object: u32) -> usize {
    object.wrapping_add(PSEUDO_OBJECTS) as usize
}

impl Races {
    /// Forgets all steps from number `len` on.
    pub(super) fn truncate(&mut self, len: usize) {
        while self.tasks.len() > len {
            let step = self.tasks.len() - 1;
            let task = self.tasks[step].index();
            self.last[task] = self.previous[step];
            self.tasks.pop();
            self.ordinals.pop();
            self.previous.pop();
        }
        self.clocks.truncate(len * self.stride);
        for starter in &mut self.starter {
            if *starter as usize > len {
                *starter = 0;
            }
        }
        for chain in &mut self.chains {
            while chain.last().is_some_and(|entry| entry.step as usize >= len) {
                chain.pop();
            }
        }
    }

    /// Whether step `a` is or happens before step `b`.
    fn is_before(&self, a: usize, b: usize) -> bool {
        self.clocks[b * self.stride + self.tasks[a].index()] >= self.ordinals[a]
    }

    /// Looks at a step of `task` with these effects that is made after all that are known: fills `clock`, without the step itself, and
    /// `found` with the steps that race with it, latest first.
    fn look(&mut self, task: TaskId, effects: &[Effect], trail: &Trail) {
        self.before.clear();
        let origin = match self.last[task.index()] {
            0 => self.starter[task.index()],
            last => last,
        };
        match origin {
            0 => self.before.resize(self.stride, 0),
            step => {
                let from = (step as usize - 1) * self.stride;
                self.before.extend_from_slice(&self.clocks[from..from + self.stride]);
            }
        }
        self.earlier.clear();
        for effect in effects {
            if effect.kind == EffectKind::ReadAnything {
                self.look_at_everything(task, trail);
                continue;
            }
            if let Some(chain) = self.chains.get(chain_of(effect.object)) {
                for entry in chain.iter().rev() {
                    let is_end = entry.effect.kind.shields(effect.kind) && entry.effect.covers(effect);
                    if self.tasks[entry.step as usize] != task {
                        let relation = entry.effect.relation(effect);
                        if relation != Relation::Independent {
                            let (is_race, is_blocking) = (relation == Relation::Race, effect.kind.is_blocking());
                            self.earlier.push(Earlier { step: entry.step, is_race, is_blocking });
                        }
                    }
                    if is_end {
                        break;
                    }
                }
            }
            if effect.kind.is_change()
                && let Some(chain) = self.chains.get(chain_of(ObjId::ANYTHING.0))
            {
                let others = chain.iter().filter(|entry| self.tasks[entry.step as usize] != task);
                let found = others.map(|entry| Earlier { step: entry.step, is_race: true, is_blocking: false });
                self.earlier.extend(found);
            }
        }
        self.earlier.sort_unstable_by(|a, b| b.cmp(a));
        self.clock.clear();
        self.clock.extend_from_slice(&self.before);
        self.found.clear();
        for at in 0..self.earlier.len() {
            let Earlier { step, is_race, is_blocking } = self.earlier[at];
            let (of, ordinal) = (self.tasks[step as usize].index(), self.ordinals[step as usize]);
            let is_ordered = self.clock[of] >= ordinal;
            let is_candidate = if is_blocking { self.before[of] < ordinal } else { !is_ordered };
            let is_new = self.found.last().is_none_or(|(last, _)| *last != step);
            if is_race && is_candidate && is_new {
                self.found.push((step, is_blocking));
            }
            if !is_ordered {
                let from = step as usize * self.stride;
                for (mine, theirs) in self.clock.iter_mut().zip(&self.clocks[from..from + self.stride]) {
                    *mine = (*mine).max(*theirs);
                }
            }
        }
    }

    fn look_at_everything(&mut self, task: TaskId, trail: &Trail) {
        for step in 0..self.tasks.len() {
            let changes = || trail.effects(step).iter().any(|effect| effect.kind.is_change());
            if self.tasks[step] != task && changes() {
                self.earlier.push(Earlier { step: step as u32, is_race: true, is_blocking: false });
            }
        }
    }

    /// The step that was looked at is made.
    fn push(&mut self, task: TaskId, effects: &[Effect]) {
        let step = self.tasks.len() as u32;
        let ordinal = self.before[task.index()] + 1;
        // A task's own count is kept by its own steps only.
        self.clock[task.index()] = ordinal;
        self.clocks.extend_from_slice(&self.clock);
        self.tasks.push(task);
        self.ordinals.push(ordinal);
        self.previous.push(self.last[task.index()]);
        self.last[task.index()] = step + 1;
        for effect in effects {
            let chain = chain_of(effect.object);
            if self.chains.len() <= chain {
                self.chains.resize_with(chain + 1, Vec::new);
            }
            self.chains[chain].push(Entry { step, effect: *effect });
            if let Some(child) = effect.spawned() {
                self.starter[child.index()] = step + 1;
            }
        }
    }
}

/// Whether a step with the effects `a` is before one with the effects `b` that is made later, and must or may be.
fn is_ordered(a: &[Effect], b: &[Effect]) -> bool {
    a.iter().any(|x| b.iter().any(|y| x.relation(y) != Relation::Independent))
}

impl Reduced {
    /// Finds the races of the part of the execution that is new, and adds their reversals.
    pub(super) fn analyse(&mut self, ended: &Ended<'_>) {
        let trail = ended.trail;
        let steps = self.nodes.len();
        let highest = trail.steps().iter().map(|step| step.task.index()).max().unwrap_or(0);
        let highest = highest.max(63_usize.saturating_sub(ended.live.0.leading_zeros() as usize));
        if highest >= self.races.stride {
            self.races.truncate(0);
            self.races.stride = (highest + 1).next_multiple_of(4);
        }
        for step in self.races.tasks.len()..steps {
            let (made, effects) = (&trail.steps()[step], trail.effects(step));
            let task = made.task;
            self.races.look(task, effects, trail);
            self.reverse_found(trail, &Later { task, effects, step, site: made.op.site });
            self.races.push(task, effects);
        }
        let blocked = std::mem::take(&mut self.blocked);
        for &(task, ref effect, site) in &blocked {
            let effects = effect.as_slice();
            self.races.look(task, effects, trail);
            self.reverse_found(trail, &Later { task, effects, step: steps, site });
        }
        self.blocked = blocked;
        if self.cut {
            return;
        }
        if ended.failed.is_some() && steps > 0 {
            for task in ended.runnable.iter().filter(|task| Some(*task) != ended.failed) {
                let site = ended.pending(task).site;
                self.reverse(trail, steps - 1, &Later { task, effects: &[], step: steps, site }, false);
            }
        }
    }

    fn reverse_found(&mut self, trail: &Trail, later: &Later<'_>) {
        for at in 0..self.races.found.len() {
            let (earlier, is_blocking) = self.races.found[at];
            self.reverse(trail, earlier as usize, later, false);
            if is_blocking {
                self.reverse(trail, earlier as usize, later, true);
            }
        }
    }

    /// Sees to it that the step `later` is tried before step `earlier`. With `alone`, without the steps in between that are at the same
    /// place as one that may block.
    fn reverse(&mut self, trail: &Trail, earlier: usize, later: &Later<'_>, alone: bool) {
        let node = self.nodes[earlier];
        let covered = TaskSet(node.backtrack.0 | node.asleep.0);
        if earlier < self.frozen || node.enabled.0 & !covered.0 == 0 {
            return;
        }
        let mut between = std::mem::take(&mut self.races.between);
        between.clear();
        between.extend((earlier + 1..later.step).filter(|k| !self.races.is_before(earlier, *k)).map(|k| k as u32));
        if !alone || self.leave_alone(trail, &mut between, later) {
            self.try_at(trail, earlier, later, &between);
        }
        self.races.between = between;
    }

    /// Leaves out of `between` what touches a place at which `later` may block, and what happens after it. False if nothing changes, or if its task
    /// itself made such a step.
    fn leave_alone(&self, trail: &Trail, between: &mut Vec<u32>, later: &Later<'_>) -> bool {
        let mut out: Vec<u32> = Vec::new();
        between.retain(|k| {
            let touches = || {
                let theirs = trail.effects(*k as usize);
                later.effects.iter().any(|e| e.kind.is_blocking() && theirs.iter().any(|t| t.overlaps(e)))
            };
            let is_out = out.iter().any(|o| self.races.is_before(*o as usize, *k as usize)) || touches();
            if is_out {
                out.push(*k);
            }
            !is_out
        });
        !out.is_empty() && out.iter().all(|k| self.races.tasks[*k as usize] != later.task)
    }

    /// Adds to the tasks that are tried at step `earlier` one that can begin `between` and then the step `later`, unless there is one.
    fn try_at(&mut self, trail: &Trail, earlier: usize, later: &Later<'_>, between: &[u32]) {
        let &Later { task, effects, site, .. } = later;
        let races = &self.races;
        let mut seen = TaskSet::EMPTY;
        let mut firsts = [0u32; MAX_TASKS];
        let mut initials = TaskSet::EMPTY;
        for &k in between {
            let of = races.tasks[k as usize];
            if seen.contains(of) {
                continue;
            }
            if !seen.iter().any(|other| races.is_before(firsts[other.index()] as usize, k as usize)) {
                initials = initials.with(of);
            }
            firsts[of.index()] = k;
            seen = seen.with(of);
        }
        if !seen.contains(task) && !between.iter().any(|k| is_ordered(trail.effects(*k as usize), effects)) {
            initials = initials.with(task);
        }
        let node = self.nodes[earlier];
        if initials.0 & (node.backtrack.0 | node.asleep.0) != 0 {
            return;
        }
        let possible = TaskSet(initials.0 & node.enabled.0);
        if possible.is_empty() {
            return;
        }
        let choice = if possible.contains(task) { task } else { possible.nth(0) };
        let backtrack = &mut self.nodes[earlier].backtrack;
        *backtrack = backtrack.with(choice);
        self.reversed.push((trail.steps()[earlier].op.site, site));
    }
}
