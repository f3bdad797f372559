//! The two steps that collided: operations of different tasks on one object, next to each other as far as causes and effects go, in the
//! order in which the failure appears, and in whose other order it does not.
//!
//! Happens-before is computed from the execution: the order within a task, and between dependent operations. Of every pair that
//! nothing else orders, the other order is executed, everything that neither causes the one nor follows from the other left as it was;
//! if the failure is gone, the order matters. Usually several pairs matter, as the window of a race is opened by one and closed by
//! another. The one shown is on the object that the invariant is about, if one is, and else the last.

use sim_kernel::sched::{Access, TaskId};

use super::program::ScenarioProgram;
use super::trial::Trials;
use super::witness::{Step, Witness};

/// Pairs whose other order is executed, at most.
const PAIRS_MAX: usize = 400;

/// Two steps of an execution, as indexes, whose order matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The one that came first.
    pub first: usize,
    /// The one that came second.
    pub second: usize,
}

/// The pairs of an execution whose order matters, the one to show first.
pub fn collisions(program: &ScenarioProgram, witness: &Witness) -> Vec<Pair> {
    let Some(failure) = &witness.failure else { return Vec::new() };
    let mut trials = Trials::new(program);
    let mut found: Vec<Pair> = races(&witness.steps)
        .into_iter()
        .rev()
        .take(PAIRS_MAX)
        .filter(|pair| {
            let tried = trials.follow(reversed(&witness.steps, *pair));
            let happened = came_first(&tried.order, &witness.steps, *pair);
            happened && tried.failure.as_ref().is_none_or(|other| other.kind() != failure.kind())
        })
        .collect();
    let about = classes_of(failure.kind());
    found.sort_by_key(|pair| {
        let step = &witness.steps[pair.second];
        let class = step.object.split(['#', '[']).next().unwrap_or_default();
        let preference = about.iter().position(|about| *about == class);
        let is_lock = is_lock(step) || is_lock(&witness.steps[pair.first]);
        (is_lock, preference.unwrap_or(about.len()), std::cmp::Reverse((pair.second, pair.first)))
    });
    found
}

/// The classes of objects that an invariant is about, the closest first.
fn classes_of(kind: &str) -> &'static [&'static str] {
    match kind {
        // A translation and the page behind it.
        "INV-101" | "INV-102" | "INV-103" | "INV-104" | "INV-105" | "INV-201" | "INV-203" | "INV-206" => {
            &["i_pages", "folio_ref", "spte", "mmu_invalidate_seq"]
        }
        "INV-106" | "INV-107" => &["memory", "i_pages"],
        "INV-208" | "INV-209" | "INV-305" => &["mem_attr_array", "spte"],
        // Slots and who still uses them.
        "INV-204" | "INV-207" | "INV-308" | "INV-309" | "INV-604" => &["kvm->memslots", "spte"],
        "INV-303" | "INV-304" | "INV-306" => &["gmem->bindings", "slot->gmem.file", "kvm->memslots"],
        "INV-401" => &["kvm->memslots", "gmem->bindings", "slot->gmem.file", "f_ref"],
        "INV-110" | "INV-111" | "INV-402" | "INV-403" | "INV-406" => &["f_ref", "slot->gmem.file", "gmem->bindings"],
        "INV-205" => &["root_invalid", "spte"],
        "INV-301" | "INV-302" | "INV-307" => &[
            "mmu_invalidate_in_progress",
            "mmu_invalidate_range_start",
            "mmu_invalidate_range_end",
            "mmu_invalidate_seq",
        ],
        _ => &[],
    }
}

fn is_lock(step: &Step) -> bool {
    step.op.access.is_acquire()
        || matches!(step.op.access, Access::TryLock | Access::SrcuEnter | Access::SrcuExit | Access::Synchronize)
}

/// Every pair of dependent steps of different tasks that no third step orders, by the second.
fn races(steps: &[Step]) -> Vec<Pair> {
    let tasks = steps.iter().map(|step| step.task.index() + 1).max().unwrap_or(0);
    // For each step, per task, how many steps of that task happen before it or are it.
    let mut clocks: Vec<Vec<u32>> = Vec::with_capacity(steps.len());
    let mut own: Vec<u32> = vec![0; tasks];
    let mut number: Vec<u32> = Vec::with_capacity(steps.len());
    let mut pairs = Vec::new();
    for (j, step) in steps.iter().enumerate() {
        let mine = step.task.index();
        let previous = (0..j).rev().find(|i| steps[*i].task == step.task);
        let mut clock = previous.map_or_else(|| vec![0; tasks], |i| clocks[i].clone());
        for i in (0..j).rev() {
            let earlier = &steps[i];
            if earlier.task == step.task || !earlier.op.depends_on(&step.op) {
                continue;
            }
            if clock[earlier.task.index()] < number[i] {
                pairs.push(Pair { first: i, second: j });
                for (mine, theirs) in clock.iter_mut().zip(&clocks[i]) {
                    *mine = (*mine).max(*theirs);
                }
            }
        }
        own[mine] += 1;
        clock[mine] = own[mine];
        number.push(own[mine]);
        clocks.push(clock);
    }
    pairs
}

/// The order in which the second step of a pair comes before the first: what does not follow from the first stays before it.
fn reversed(steps: &[Step], pair: Pair) -> Vec<TaskId> {
    let mut before: Vec<TaskId> = steps[..pair.first].iter().map(|step| step.task).collect();
    // What follows from the first step, transitively, waits until the second was performed.
    let mut delayed: Vec<usize> = vec![pair.first];
    for at in pair.first + 1..pair.second {
        let follows =
            |earlier: &usize| steps[*earlier].task == steps[at].task || steps[*earlier].op.depends_on(&steps[at].op);
        // The task of the second step must get there, whatever it saw on its way.
        if steps[at].task != steps[pair.second].task && delayed.iter().any(follows) {
            delayed.push(at);
        } else {
            before.push(steps[at].task);
        }
    }
    before.push(steps[pair.second].task);
    before.extend(delayed.into_iter().map(|at| steps[at].task));
    before.extend(steps[pair.second + 1..].iter().map(|step| step.task));
    before
}

/// Whether the second step's task got to its step before the first's got to its own.
fn came_first(order: &[TaskId], steps: &[Step], pair: Pair) -> bool {
    let place = |at: usize| {
        let task = steps[at].task;
        let number = steps[..at].iter().filter(|step| step.task == task).count();
        order.iter().enumerate().filter(|(_, who)| **who == task).nth(number).map(|(place, _)| place)
    };
    match (place(pair.first), place(pair.second)) {
        (Some(first), Some(second)) => second < first,
        (None, Some(_)) => true,
        _ => false,
    }
}
