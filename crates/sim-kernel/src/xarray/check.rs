//! Looking at the tree: the structural invariants that a writer leaves behind, and its shape.
//!
//! The kernel has the same as `xa_dump` and the assertions of `XA_DEBUG`.

use super::XArray;
use super::entry::{NULL, RETRY, as_node, as_sibling, is_value};
use super::node::{CHUNK_SHIFT, Core, MARKS, SHIFT_MAX, SLOTS};
use std::fmt;
use std::sync::atomic::Ordering;

/// A structural invariant that does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct XaViolation {
    /// First index of the node.
    pub base: u64,
    /// Shift of the node.
    pub shift: u32,
    /// What should hold.
    pub rule: &'static str,
    /// What is there.
    pub found: u64,
    /// What should be there.
    pub expected: u64,
}

impl fmt::Display for XaViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let XaViolation { base, shift, rule, found, expected } = self;
        write!(f, "node at {base:#x} with shift {shift}: {rule}: found {found:#x}, expected {expected:#x}")
    }
}

/// One node as it stands in the tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeShape {
    /// Nodes above this one.
    pub depth: u32,
    /// First index that the node covers.
    pub base: u64,
    /// Each slot covers `1 << shift` indexes.
    pub shift: u32,
    /// The parent's slot in which the node stands.
    pub offset: usize,
    /// Slots that are not NULL.
    pub count: u32,
    /// Slots that belong to value entries.
    pub nr_values: u32,
    /// The words of the slots that are not NULL, in order.
    pub slots: Vec<(usize, u64)>,
    /// For each mark, the slots that have it.
    pub marks: [u64; MARKS],
}

impl<E> XArray<E> {
    /// The word in the head: NULL, a single entry at index 0, or a reference to the top node.
    pub fn head_word(&self) -> u64 {
        self.core.head()
    }

    /// Every node, parents before children and in the order of the indexes. No scheduling point.
    pub fn shape(&self) -> impl Iterator<Item = NodeShape> {
        let _lock = self.core.lock.lock();
        let mut nodes = Vec::new();
        self.core.collect(self.core.head(), 0, 0, &mut nodes);
        nodes.into_iter()
    }

    /// As [`XArray::check`], of an array of at most so many nodes; of a larger one nothing.
    pub fn check_small(&self, nodes_max: u64) -> Vec<XaViolation> {
        if self.node_count() > nodes_max { Vec::new() } else { self.check() }
    }

    /// Verifies the structure: counters, links, marks, siblings, nothing empty and no RETRY. No scheduling point.
    pub fn check(&self) -> Vec<XaViolation> {
        let _lock = self.core.lock.lock();
        let mut found = Vec::new();
        let head = self.core.head();
        let mut nodes = 0;
        if let Some(top) = as_node(head) {
            let marked = self.core.check_node(top, None, 0, &mut nodes, &mut found);
            for (mark, bits) in marked.into_iter().enumerate() {
                let array = u64::from(self.core.is_marked(mark));
                expect(
                    &mut found,
                    (0, 0),
                    "the array's mark bit says whether any entry has it",
                    array,
                    u64::from(bits != 0),
                );
            }
        } else {
            let ok = head == NULL || (head != RETRY && as_sibling(head).is_none());
            expect(&mut found, (0, 0), "the head is NULL, an entry or a node", u64::from(ok), 1);
            if head == NULL {
                let marked = self.core.marked.load(Ordering::Relaxed);
                expect(&mut found, (0, 0), "an empty array has no marks", u64::from(marked), 0);
            }
        }
        expect(&mut found, (0, 0), "the number of linked nodes", self.node_count(), nodes);
        found
    }
}

fn expect(out: &mut Vec<XaViolation>, (base, shift): (u64, u32), rule: &'static str, found: u64, expected: u64) {
    if found != expected {
        out.push(XaViolation { base, shift, rule, found, expected });
    }
}

impl Core {
    /// First and last index of what stands at `index`: an entry, or the index alone.
    pub(super) fn extent(&self, index: u64) -> (u64, u64) {
        let Some(mut id) = as_node(self.head()) else { return (index, index) };
        if self.node(id).is_beyond(index) {
            return (index, index);
        }
        loop {
            let node = self.node(id);
            let slot = node.slot_of(index);
            match as_node(node.slot(slot)) {
                Some(below) => id = below,
                None if node.slot(slot) == NULL => return (index, index),
                None => {
                    let (first, last) = (node.canonical(slot) as u64, node.last_of(slot) as u64);
                    let shift = node.shift();
                    let base = (index >> shift) - slot as u64;
                    return ((base + first) << shift, (base + last) << shift | ((1 << shift) - 1));
                }
            }
        }
    }

    fn collect(&self, word: u64, depth: u32, base: u64, out: &mut Vec<NodeShape>) {
        let Some(id) = as_node(word) else { return };
        let node = self.node(id);
        let shift = node.shift();
        let slots: Vec<(usize, u64)> = (0..SLOTS).map(|s| (s, node.slot(s))).filter(|&(_, w)| w != NULL).collect();
        out.push(NodeShape {
            depth,
            base,
            shift,
            offset: node.offset(),
            count: node.count(),
            nr_values: node.nr_values(),
            slots: slots.clone(),
            marks: std::array::from_fn(|m| node.mark(m)),
        });
        for (slot, word) in slots {
            self.collect(word, depth + 1, base + ((slot as u64) << shift), out);
        }
    }

    /// Checks a node and all below it; returns its mark bits.
    fn check_node(
        &self,
        id: u32,
        parent: Option<(u32, usize, u32)>,
        base: u64,
        nodes: &mut u64,
        out: &mut Vec<XaViolation>,
    ) -> [u64; MARKS] {
        *nodes += 1;
        let node = self.node(id);
        let shift = node.shift();
        let at = (base, shift);
        expect(
            out,
            at,
            "the shift is a multiple of 6 up to 60",
            u64::from(shift.is_multiple_of(CHUNK_SHIFT) && shift <= SHIFT_MAX),
            1,
        );
        let link = node.parent().map_or(0, |p| u64::from(p) + 1);
        expect(out, at, "the parent is the node above", link, parent.map_or(0, |(p, _, _)| u64::from(p) + 1));
        if let Some((_, slot, above)) = parent {
            expect(out, at, "the offset is the parent's slot", node.offset() as u64, slot as u64);
            expect(out, at, "the shift is 6 less than the parent's", u64::from(shift + CHUNK_SHIFT), u64::from(above));
        } else {
            expect(out, at, "the offset of the top node", node.offset() as u64, 0);
        }
        let (mut count, mut values) = (0, 0);
        let mut union = [0u64; MARKS];
        let mut canonical = None;
        for slot in 0..SLOTS {
            let word = node.slot(slot);
            count += u64::from(word != NULL);
            if let Some(to) = as_sibling(word) {
                expect(out, at, "a sibling follows its entry", to as u64, canonical.unwrap_or(SLOTS) as u64);
                values += u64::from(is_value(node.slot(to)));
                continue;
            }
            values += u64::from(is_value(word));
            expect(out, at, "no RETRY in the tree", u64::from(word == RETRY), 0);
            let below = as_node(word);
            // Neither NULL nor a node has siblings.
            canonical = (word != NULL && below.is_none()).then_some(slot);
            if let Some(below) = below {
                if shift == 0 {
                    expect(out, at, "a node of shift 0 has no nodes below", word, NULL);
                    continue;
                }
                let marks =
                    self.check_node(below, Some((id, slot, shift)), base + ((slot as u64) << shift), nodes, out);
                for mark in 0..MARKS {
                    union[mark] |= u64::from(marks[mark] != 0) << slot;
                }
            } else if word != NULL {
                for (mark, bits) in union.iter_mut().enumerate() {
                    *bits |= node.mark(mark) & 1 << slot;
                }
            }
        }
        expect(out, at, "count is the number of slots that are not NULL", u64::from(node.count()), count);
        expect(out, at, "nr_values is the number of slots of values", u64::from(node.nr_values()), values);
        expect(out, at, "no empty node is linked", u64::from(count == 0), 0);
        for (mark, expected) in union.into_iter().enumerate() {
            expect(out, at, "marks stand on entries and on the way to them", node.mark(mark), expected);
        }
        std::array::from_fn(|mark| node.mark(mark))
    }
}
