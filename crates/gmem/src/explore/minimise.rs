//! A failing interleaving made small: the fewest preemptions, then the fewest operations, the same invariant broken every time.
//!
//! An interleaving is a list of blocks, each so many operations of one task. A block that is merged into the task's next one, or into its
//! last, is a preemption less; then blocks are shortened, so that the failure comes sooner. Every candidate is executed, and kept only
//! if it fails in the same way and is smaller. What is left is small, not necessarily the smallest: two preemptions may only go together.

use sim_kernel::sched::{Schedule, TaskId};

use super::program::ScenarioProgram;
use super::trial::{Trials, Tried};

/// Executions that making one failure small may take.
pub const TRIALS_MAX: u64 = 4_000;

/// A failing interleaving, as small as it could be made.
#[derive(Clone, Debug)]
pub struct Minimal {
    /// The decisions.
    pub schedule: Schedule,
    /// How often a task is stopped that could go on.
    pub preemptions: usize,
    /// Operations up to the failure.
    pub steps: usize,
    /// Executions that it took to get there.
    pub trials: u64,
}

/// Makes the failure of `schedule` small.
///
/// # Errors
/// What happened instead, if `schedule` does not fail with `kind`.
pub fn minimise(program: &ScenarioProgram, schedule: &Schedule, kind: &str) -> Result<Minimal, String> {
    let mut trials = Trials::new(program);
    let first = trials.replay(schedule);
    match &first.failure {
        Some(failure) if failure.kind() == kind => {}
        Some(other) => return Err(format!("the schedule fails otherwise: {}", other.message)),
        None => return Err("the schedule does not fail".to_string()),
    }
    let mut best = first;
    // Tasks one after the other: the failure may need no preemption at all.
    let mut tasks: Vec<TaskId> = best.order.clone();
    tasks.sort();
    tasks.dedup();
    for first in tasks {
        let mut order = vec![first; best.order.len()];
        order.extend(&best.order);
        keep_if_smaller(&mut trials, &mut best, order, kind);
    }
    while trials.count() < TRIALS_MAX && (merge(&mut trials, &mut best, kind) || shorten(&mut trials, &mut best, kind))
    {
    }
    Ok(Minimal {
        schedule: best.schedule,
        preemptions: best.preemptions,
        steps: best.order.len(),
        trials: trials.count(),
    })
}

/// Tries an order and keeps it if it fails in the same way and is smaller.
fn keep_if_smaller(trials: &mut Trials<'_>, best: &mut Tried, order: Vec<TaskId>, kind: &str) -> bool {
    let tried = trials.follow(order);
    let same = tried.failure.as_ref().is_some_and(|failure| failure.kind() == kind);
    let smaller = (tried.preemptions, tried.order.len()) < (best.preemptions, best.order.len());
    if same && smaller {
        *best = tried;
    }
    same && smaller
}

type Block = (TaskId, usize);

fn blocks(order: &[TaskId]) -> Vec<Block> {
    order.chunk_by(|a, b| a == b).map(|block| (block[0], block.len())).collect()
}

fn flat(blocks: &[Block]) -> Vec<TaskId> {
    blocks.iter().flat_map(|(task, count)| std::iter::repeat_n(*task, *count)).collect()
}

/// Merges a block into its task's next or last one.
fn merge(trials: &mut Trials<'_>, best: &mut Tried, kind: &str) -> bool {
    let all = blocks(&best.order);
    for at in 0..all.len() {
        let (task, count) = all[at];
        let next = (at + 1..all.len()).find(|i| all[*i].0 == task);
        let last = (0..at).rev().find(|i| all[*i].0 == task);
        for other in [next, last].into_iter().flatten() {
            if trials.count() >= TRIALS_MAX {
                return false;
            }
            let mut changed = all.clone();
            changed[other].1 += count;
            changed.remove(at);
            if keep_if_smaller(trials, best, flat(&changed), kind) {
                return true;
            }
        }
    }
    false
}

/// Takes operations out of a block: they happen after everything else, or not at all because the failure comes first.
fn shorten(trials: &mut Trials<'_>, best: &mut Tried, kind: &str) -> bool {
    let all = blocks(&best.order);
    for at in 0..all.len() {
        let mut cut = all[at].1;
        while cut > 0 {
            if trials.count() >= TRIALS_MAX {
                return false;
            }
            let mut changed = all.clone();
            changed[at].1 -= cut;
            if keep_if_smaller(trials, best, flat(&changed), kind) {
                return true;
            }
            cut /= 2;
        }
    }
    false
}
