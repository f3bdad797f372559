//! The order in which locks are taken (`kernel/locking/lockdep.c`): a graph over classes of locks, built while executions run.
//!
//! An edge says that somebody wanted a lock of one class while holding one of another. A circle of edges is a deadlock that some schedule has,
//! even if none was hit. SRCU and RCU read sections count as held locks that are wanted by who synchronises; what is waited for without being a
//! lock, such as the end of all notifier pairs, is a [`LockMap`](crate::sync::LockMap).
//!
//! An edge costs one comparison of bit sets after it was first seen. As in the kernel, shared and exclusive acquisitions are not told apart (a
//! queued writer makes readers wait), `trylock` wants nothing, and a class that follows itself makes no edge.
//!
//! Simplified: 63 classes; locks of any further class are not ordered.

use super::op::{Access, MAX_TASKS, ObjId, TaskId};
use super::site::Site;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::Location;

/// Classes that are told apart; the last bit of a set stands for all others.
const CLASSES: usize = 63;
/// A class beyond [`CLASSES`].
const OTHER: u8 = CLASSES as u8;
/// No class was looked up yet.
const UNKNOWN: u8 = u8::MAX;

/// A lock was wanted while another was held. Plain data, so that what one execution saw can be kept and held against what others see.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LockEdge {
    /// The task that did so.
    pub task: TaskId,
    /// Class of the lock that was held.
    pub from: Cow<'static, str>,
    /// How it was held: a lock, or a read section.
    pub from_access: Access,
    /// Where it was taken.
    pub from_site: Site,
    /// Class of the lock that was wanted.
    pub to: Cow<'static, str>,
    /// How it was wanted: a lock, a grace period, a wait.
    pub to_access: Access,
    /// Where it was wanted.
    pub to_site: Site,
}

impl fmt::Display for LockEdge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} at {}) is held while {} is wanted ({} at {})",
            self.from,
            self.from_access.name(),
            self.from_site,
            self.to,
            self.to_access.name(),
            self.to_site
        )
    }
}

/// Every pair of classes that was seen, in the order of first sight.
///
/// ```
/// use sim_kernel::{sched::Sim, sync::Mutex};
/// let mut sim = Sim::sequential();
/// sim.solo(|cx| {
///     let (a, b) = (Mutex::new(cx, "a", ()), Mutex::new(cx, "b", ()));
///     drop((a.lock(cx), b.lock(cx)));
///     drop((b.lock(cx), a.lock(cx)));
/// });
/// let circle = sim.lock_order().circle(|_| true).unwrap();
/// assert_eq!(circle.iter().map(|edge| (&*edge.from, &*edge.to)).collect::<Vec<_>>(), [("a", "b"), ("b", "a")]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LockOrder {
    edges: Vec<LockEdge>,
}

impl LockOrder {
    /// The order that these edges make.
    pub fn of(edges: impl IntoIterator<Item = LockEdge>) -> LockOrder {
        let mut order = LockOrder::default();
        for edge in edges {
            order.add(edge);
        }
        order
    }

    /// The edges.
    pub fn edges(&self) -> &[LockEdge] {
        &self.edges
    }

    /// Adds an edge unless the pair of classes is known; whether it was not.
    pub fn add(&mut self, edge: LockEdge) -> bool {
        let known = self.edges.iter().any(|old| (&old.from, &old.to) == (&edge.from, &edge.to));
        if !known {
            self.edges.push(edge);
        }
        !known
    }

    /// Adds what other executions saw.
    pub fn merge(&mut self, other: &LockOrder) {
        for edge in &other.edges {
            self.add(edge.clone());
        }
    }

    /// The shortest circle of edges that `counts` accepts, beginning with the edge of the circle that was seen first.
    pub fn circle(&self, counts: impl Fn(&LockEdge) -> bool) -> Option<Vec<LockEdge>> {
        let edges: Vec<&LockEdge> = self.edges.iter().filter(|edge| counts(edge)).collect();
        edges.iter().filter_map(|first| Self::back_to(&edges, first)).min_by_key(Vec::len)
    }

    /// The shortest way from the end of an edge to its beginning, the edge itself included.
    fn back_to(edges: &[&LockEdge], first: &LockEdge) -> Option<Vec<LockEdge>> {
        let mut ways: Vec<Vec<&LockEdge>> = vec![vec![first]];
        let mut at = 0;
        while at < ways.len() {
            let way = ways[at].clone();
            let end = &way.last().expect("a way has edges").to;
            if *end == first.from {
                return Some(way.into_iter().cloned().collect());
            }
            for edge in edges.iter().filter(|edge| edge.from == *end) {
                let reached = ways.iter().any(|way| way.last().is_some_and(|last| last.to == edge.to));
                if !reached {
                    ways.push(way.iter().copied().chain([*edge]).collect());
                }
            }
            at += 1;
        }
        None
    }
}

/// The graph of one engine, over all its executions.
pub(crate) struct LockGraph {
    names: RefCell<Vec<&'static str>>,
    /// Class of each object of the execution, once it was looked up.
    of_object: RefCell<Vec<u8>>,
    /// For each class, those that were held when it was wanted.
    before: Box<[Cell<u64>; CLASSES]>,
    /// Classes that each task holds.
    held: Box<[Cell<u64>; MAX_TASKS]>,
    order: RefCell<LockOrder>,
}

impl LockGraph {
    pub(crate) fn new() -> LockGraph {
        LockGraph {
            names: RefCell::default(),
            of_object: RefCell::default(),
            before: Box::new([const { Cell::new(0) }; CLASSES]),
            held: Box::new([const { Cell::new(0) }; MAX_TASKS]),
            order: RefCell::default(),
        }
    }

    /// Another execution begins: what was seen stays.
    pub(crate) fn reset(&self) {
        self.of_object.borrow_mut().clear();
        for held in self.held.iter() {
            held.set(0);
        }
    }

    pub(crate) fn order(&self) -> LockOrder {
        self.order.borrow().clone()
    }

    /// How many edges there are: grows when there is something new to judge.
    pub(crate) fn len(&self) -> usize {
        self.order.borrow().edges.len()
    }

    /// The number of an object's class.
    #[inline]
    pub(crate) fn class(&self, object: ObjId, objects: &RefCell<Vec<&'static str>>) -> u8 {
        let known = self.of_object.borrow().get(object.0 as usize).copied();
        match known {
            Some(class) if class != UNKNOWN => class,
            _ => self.look_up(object, objects.borrow()[object.0 as usize]),
        }
    }

    /// Name of a class.
    pub(crate) fn name(&self, class: u8) -> &'static str {
        self.names.borrow().get(class as usize).copied().unwrap_or("a lock")
    }

    /// The number of a class.
    pub(crate) fn class_named(&self, name: &'static str) -> u8 {
        let mut names = self.names.borrow_mut();
        match names.iter().position(|known| *known == name) {
            Some(class) => class as u8,
            None if names.len() < CLASSES => {
                names.push(name);
                names.len() as u8 - 1
            }
            None => OTHER,
        }
    }

    #[cold]
    fn look_up(&self, object: ObjId, name: &'static str) -> u8 {
        let class = self.class_named(name);
        let mut of_object = self.of_object.borrow_mut();
        if of_object.len() <= object.0 as usize {
            of_object.resize(object.0 as usize + 1, UNKNOWN);
        }
        of_object[object.0 as usize] = class;
        class
    }

    #[inline]
    pub(crate) fn holds_something(&self, task: TaskId) -> bool {
        self.held[task.index()].get() != 0
    }

    #[inline]
    pub(crate) fn set_held(&self, task: TaskId, classes: u64) {
        self.held[task.index()].set(classes);
    }

    #[inline]
    pub(crate) fn hold(&self, task: TaskId, class: u8) {
        let held = &self.held[task.index()];
        held.set(held.get() | 1 << class);
    }

    /// Whether a task that wants `class` shows an order that was not seen before.
    #[inline]
    pub(crate) fn is_news(&self, task: TaskId, class: u8) -> bool {
        class != OTHER
            && self.held[task.index()].get() & !(self.before[class as usize].get() | 1 << class | 1 << OTHER) != 0
    }

    #[cold]
    pub(crate) fn add(
        &self,
        (class, access, site): (u8, Access, &'static Location<'static>),
        held: impl Iterator<Item = super::engine::Held>,
    ) {
        let names = self.names.borrow();
        let before = &self.before[class as usize];
        for held in held {
            if held.class == OTHER || held.class == class || before.get() & 1 << held.class != 0 {
                continue;
            }
            before.set(before.get() | 1 << held.class);
            self.order.borrow_mut().add(LockEdge {
                task: held.task,
                from: names[held.class as usize].into(),
                from_access: held.access,
                from_site: held.site.into(),
                to: names[class as usize].into(),
                to_access: access,
                to_site: site.into(),
            });
        }
    }
}
