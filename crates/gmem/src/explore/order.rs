//! The order of locks over all executions of an exploration: two tasks that take locks in opposite orders can wait for each other, although
//! no execution met them at the same time (INV-501), and what `docs/locks.md` says is broken by whoever breaks it alone.
//!
//! Every execution adds what it shows of the order; the first that shows a pair of classes is remembered with its schedule. As lockdep's, the
//! judgement does not ask whether something else keeps the two apart.

use serde::{Deserialize, Serialize};
use sim_kernel::sched::{LockEdge, LockOrder};

use crate::invariants::{self, Check, progress};

/// One lock was wanted while another was held, and when that was first seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenEdge {
    /// Who wanted what, and where.
    pub edge: LockEdge,
    /// The execution that showed it: its number, counted over everything.
    pub executions: u64,
    /// Its decisions.
    pub schedule: String,
}

/// A rule that the order breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// `INV-501`, `INV-503` or `INV-504`.
    pub id: &'static str,
    /// What is wrong.
    pub message: String,
    /// The edges that it takes: those of a circle, or one.
    pub chain: Vec<SeenEdge>,
}

/// The order as far as it was seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Order {
    seen: Vec<SeenEdge>,
}

impl Order {
    /// The edges, in the order in which they were first seen.
    pub fn seen(&self) -> &[SeenEdge] {
        &self.seen
    }

    /// Adds an edge. Returns the rules that the order breaks now, if the edge is new.
    pub fn add(&mut self, seen: SeenEdge) -> Vec<Broken> {
        let is_known = |old: &SeenEdge| (&old.edge.from, &old.edge.to) == (&seen.edge.from, &seen.edge.to);
        if self.seen.iter().any(is_known) {
            return Vec::new();
        }
        self.seen.push(seen);
        let order = LockOrder::of(self.seen.iter().map(|seen| seen.edge.clone()));
        broken(&order, |edge| self.seen.iter().find(|seen| seen.edge == *edge).cloned())
    }
}

/// Whether an order breaks no rule.
pub fn is_fine(order: &LockOrder) -> bool {
    broken(order, |_| None).is_empty()
}

fn broken(order: &LockOrder, seen: impl Fn(&LockEdge) -> Option<SeenEdge>) -> Vec<Broken> {
    let mut broken = Vec::new();
    for invariant in invariants::all() {
        let Check::Locks(check) = invariant.check else { continue };
        let Err(message) = check(order) else { continue };
        let edges = match progress::circle(order) {
            Some(circle) if invariant.id == "INV-501" => circle,
            // The others are broken by one edge.
            _ => {
                let breaks = |edge: &&LockEdge| check(&LockOrder::of([(*edge).clone()])).is_err();
                order.edges().iter().find(breaks).cloned().into_iter().collect()
            }
        };
        broken.push(Broken { id: invariant.id, message, chain: edges.iter().filter_map(&seen).collect() });
    }
    broken
}
