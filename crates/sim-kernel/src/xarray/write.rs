//! Changing the tree: creating, replacing and erasing entries, growth and shrinking (`xas_create`, `xas_store`, `xas_expand`,
//! `xas_shrink`, `xas_delete_node`, `xas_free_nodes`).
//!
//! Simplified: the nodes that an operation needs are counted before the first of them is linked, so a failed operation leaves
//! no half-built path behind, and a failure needs no clean-up.
//!
//! Entries are never split. The kernel leaves a store that covers an entry only in part to its callers, none of whom does it;
//! here such an entry is replaced or erased as a whole, as a single-index store would do.

use super::entry::{NULL, RESERVED, RETRY, as_node, is_value, node_ref, sibling};
use super::node::{CHUNK_SHIFT, Core, MARKS, Node, SHIFT_MAX, SLOTS};
use super::{XaFlags, range::Chunk};
use crate::sync::call_rcu;
use crate::{Cx, Errno};
use parking_lot::MutexGuard;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The shift of the smallest top node that holds `index`.
pub(super) fn top_shift(index: u64) -> u32 {
    let mut shift = 0;
    while index >> shift >= SLOTS as u64 {
        shift += CHUNK_SHIFT;
    }
    shift
}

/// Nodes that were taken from the cache before they were needed: those on the way to the last index of a range.
#[derive(Default)]
pub(super) struct Prepaid {
    last: u64,
    nodes: u32,
}

/// What must be created before something can be stored.
struct Missing {
    /// Levels to put on top.
    growth: u32,
    /// Shift of the uppermost missing node on the way down, if any is missing.
    from: Option<u32>,
}

/// A writer that holds `xa_lock`.
pub(super) struct Writer<'a> {
    core: &'a Core,
    lock: MutexGuard<'a, ()>,
    dead: Vec<u32>,
}

impl Core {
    pub(super) fn writer(&self) -> Writer<'_> {
        Writer { core: self, lock: self.lock.lock(), dead: Vec::new() }
    }
}

impl<'a> Writer<'a> {
    /// Releases the lock and hands the unlinked nodes to RCU.
    pub(super) fn finish(self, cx: &Cx<'_>) {
        let Writer { core, lock, dead } = self;
        drop(lock);
        if dead.is_empty() {
            return;
        }
        let cache = Arc::clone(&core.cache);
        let release = move || dead.into_iter().for_each(|id| cache.release(id));
        if core.flags.contains(XaFlags::MUTANT_FREE_AT_ONCE) {
            release();
        } else {
            call_rcu(cx, release);
        }
    }

    fn set_head(&self, word: u64) {
        self.core.head.store(word, Ordering::Release);
    }

    /// Makes a node; the right to it was taken.
    fn alloc(&self, shift: u32, parent: Option<u32>, offset: usize) -> u32 {
        let id = self.core.cache.alloc(shift);
        self.core.node(id).adopt(parent, offset);
        self.core.nodes.store(self.core.nodes.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        id
    }

    /// The node is unlinked: readers may still be in it.
    fn bury(&mut self, id: u32) {
        let node = self.core.node(id);
        node.account(-(node.count() as i32), -(node.nr_values() as i32));
        self.core.nodes.store(self.core.nodes.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        self.core.cache.untake(1);
        self.dead.push(id);
    }

    /// Leaves RETRY where a reader could still see an entry.
    fn retry_here(&self, node: &Node, slot: usize) {
        if !self.core.flags.contains(XaFlags::MUTANT_NO_RETRY) {
            node.set_slot(slot, RETRY);
        }
    }

    /// Unlinks all nodes at and below `word` (`xas_free_nodes`).
    fn bury_tree(&mut self, word: u64) {
        let Some(id) = as_node(word) else { return };
        let core = self.core;
        let node = core.node(id);
        for slot in 0..SLOTS {
            let word = node.slot(slot);
            if as_node(word).is_some() {
                self.bury_tree(word);
            } else if word != NULL {
                self.retry_here(node, slot);
            }
        }
        self.bury(id);
    }

    /// What is missing to store at `index` in a node of the given shift, below a top of at least `top`.
    fn missing(&self, index: u64, shift: u32, top: u32) -> Missing {
        let head = self.core.head();
        if head == NULL {
            return Missing { growth: 0, from: Some(top) };
        }
        let mut node = as_node(head).map(|id| self.core.node(id));
        let levels = node.map_or(0, |n| n.shift() / CHUNK_SHIFT + 1);
        let growth = (top / CHUNK_SHIFT + 1).saturating_sub(levels);
        let mut at = top.max(node.map_or(0, Node::shift));
        // New top nodes have the old head in slot 0 and nothing else.
        for _ in 0..growth {
            if at == shift {
                return Missing { growth, from: None };
            }
            if index >> at != 0 {
                return Missing { growth, from: Some(at - CHUNK_SHIFT) };
            }
            at = at.saturating_sub(CHUNK_SHIFT);
        }
        while let Some(here) = node {
            if here.shift() == shift {
                break;
            }
            let word = here.slot(here.canonical(here.slot_of(index)));
            if word == NULL {
                return Missing { growth, from: Some(here.shift() - CHUNK_SHIFT) };
            }
            node = as_node(word).map(|id| self.core.node(id));
        }
        Missing { growth, from: None }
    }

    /// Takes the nodes on the way to the last index of a range before anything is stored, as `xa_store_range` creates them.
    pub(super) fn prepay(&self, last: u64, shift: u32, top: u32) -> Result<Prepaid, Errno> {
        let missing = self.missing(last, shift, top);
        let below = missing.from.map_or(0, |from| (from - shift) / CHUNK_SHIFT + 1);
        let nodes = missing.growth + below;
        self.core.cache.take(nodes)?;
        Ok(Prepaid { last, nodes })
    }

    /// Gives back what another writer's nodes made unnecessary.
    pub(super) fn settle(&self, prepaid: Prepaid) {
        self.core.cache.untake(u64::from(prepaid.nodes));
    }

    /// Pays for the missing nodes, first from what was taken in advance for the same path.
    fn pay(&self, missing: &Missing, index: u64, shift: u32, prepaid: &mut Prepaid) -> Result<(), Errno> {
        let mut shared = missing.growth;
        let mut other = 0;
        let mut at = missing.from;
        while let Some(level) = at {
            let above = level + CHUNK_SHIFT;
            let same = above > SHIFT_MAX || index >> above == prepaid.last >> above;
            if same {
                shared += 1;
            } else {
                other += 1;
            }
            at = (level > shift).then(|| level - CHUNK_SHIFT);
        }
        let covered = shared.min(prepaid.nodes);
        self.core.cache.take(shared - covered + other)?;
        prepaid.nodes -= covered;
        Ok(())
    }

    /// Puts nodes on top until the top has shift `top` (`xas_expand`); the head is not NULL.
    fn grow(&self, top: u32) {
        loop {
            let head = self.core.head();
            let below = as_node(head);
            let shift = match below {
                Some(id) if self.core.node(id).shift() >= top => return,
                Some(id) => self.core.node(id).shift() + CHUNK_SHIFT,
                None => 0,
            };
            let id = self.alloc(shift, None, 0);
            let node = self.core.node(id);
            node.account(1, i32::from(is_value(head)));
            for mark in 0..MARKS {
                node.set_mark(mark, u64::from(self.core.is_marked(mark)));
            }
            node.set_slot(0, head);
            if let Some(below) = below {
                self.core.node(below).adopt(Some(id), 0);
            }
            self.set_head(node_ref(id));
        }
    }

    /// The node in which an entry of the given shift at `index` stands, created if need be; a higher one if a large entry
    /// covers the place (`xas_create`).
    pub(super) fn create(&self, index: u64, shift: u32, top: u32, prepaid: &mut Prepaid) -> Result<u32, Errno> {
        let head = self.core.head();
        let tall = as_node(head).is_some_and(|id| self.core.node(id).shift() >= top);
        if !tall {
            self.pay(&self.missing(index, shift, top), index, shift, prepaid)?;
            if head == NULL {
                self.set_head(node_ref(self.alloc(top, None, 0)));
            } else {
                self.grow(top);
            }
        }
        let mut paid = !tall;
        let mut id = as_node(self.core.head()).expect("the head was made a node");
        loop {
            let node = self.core.node(id);
            if node.shift() == shift {
                return Ok(id);
            }
            let slot = node.slot_of(index);
            let word = node.slot(slot);
            id = match as_node(word) {
                Some(below) => below,
                None if word == NULL => {
                    if !paid {
                        let missing = Missing { growth: 0, from: Some(node.shift() - CHUNK_SHIFT) };
                        self.pay(&missing, index, shift, prepaid)?;
                        paid = true;
                    }
                    let below = self.alloc(node.shift() - CHUNK_SHIFT, Some(id), slot);
                    node.set_slot(slot, node_ref(below));
                    node.account(1, 0);
                    below
                }
                None => return Ok(id),
            };
        }
    }

    /// Where an entry at `index` stands at or above `shift`, without creating anything; `None` if there is nothing.
    fn lookup(&self, index: u64, shift: u32) -> Option<u32> {
        let mut id = as_node(self.core.head())?;
        if self.core.node(id).is_beyond(index) {
            return None;
        }
        loop {
            let node = self.core.node(id);
            if node.shift() <= shift {
                return Some(id);
            }
            let word = node.slot(node.slot_of(index));
            match as_node(word) {
                Some(below) => id = below,
                None => return (word != NULL).then_some(id),
            }
        }
    }

    /// Stores in one chunk. `top` is the least shift that the top node must have.
    pub(super) fn store(&mut self, chunk: Chunk, word: u64, top: u32, prepaid: &mut Prepaid) -> Result<(), Errno> {
        let head = self.core.head();
        if word == NULL {
            self.erase(chunk);
            return Ok(());
        }
        if chunk.is_single() && chunk.first == 0 && word != RESERVED && top == 0 && as_node(head).is_none() {
            self.set_head(word);
            return Ok(());
        }
        let id = self.create(chunk.first, chunk.shift, top, prepaid)?;
        self.fill(id, chunk, word);
        Ok(())
    }

    fn erase(&mut self, chunk: Chunk) {
        let head = self.core.head();
        let covers_all = as_node(head).is_none_or(|id| self.core.node(id).shift() < chunk.shift);
        if covers_all {
            if chunk.first == 0 {
                self.set_head(NULL);
                self.core.marked.store(0, Ordering::Relaxed);
                self.bury_tree(head);
            }
            return;
        }
        let Some(id) = self.lookup(chunk.first, chunk.shift) else { return };
        self.fill(id, chunk, NULL);
    }

    /// Writes one entry into its slots, and into those of every entry that it touches (the loop of `xas_store`).
    fn fill(&mut self, id: u32, chunk: Chunk, word: u64) {
        let node = self.core.node(id);
        let first = node.slot_of(chunk.first);
        // Where a large entry covers the whole chunk, it is replaced as if by a single-index store.
        let last = if node.shift() > chunk.shift { first } else { first + chunk.slots - 1 };
        let (first, last) = (node.canonical(first), node.last_of(last));
        if first == last && node.slot(first) == word {
            return;
        }
        let values_before = (first..=last).filter(|&s| node.is_value(s)).count();
        let span = (u64::MAX >> (63 - (last - first))) << first;
        for mark in 0..MARKS {
            let bits = node.mark(mark);
            if bits & span == 0 {
                continue;
            }
            if word == NULL {
                self.clear_marks(id, mark, span);
            } else {
                // The entry that takes over several others has the marks that any of them had.
                node.set_mark(mark, bits & !span | 1 << first);
            }
        }
        let mut count = 0;
        for slot in first..=last {
            let old = node.slot(slot);
            let new = match word {
                NULL => NULL,
                _ if slot == first => word,
                _ => sibling(first),
            };
            node.set_slot(slot, new);
            count += i32::from(old == NULL) - i32::from(new == NULL);
            if as_node(old).is_some() {
                self.bury_tree(old);
            }
        }
        let values = if is_value(word) { last - first + 1 } else { 0 };
        self.core.node(id).account(count, values as i32 - values_before as i32);
        if count < 0 {
            self.delete(id);
        }
    }

    /// Unlinks the node if it is empty, then its parents likewise, and lets the tree shrink (`xas_delete_node`).
    pub(super) fn delete(&mut self, id: u32) {
        let core = self.core;
        let mut id = id;
        loop {
            let node = core.node(id);
            if node.count() > 0 {
                break;
            }
            let (parent, offset) = (node.parent(), node.offset());
            self.bury(id);
            let Some(parent) = parent else {
                self.set_head(NULL);
                return;
            };
            core.node(parent).set_slot(offset, NULL);
            core.node(parent).account(-1, 0);
            id = parent;
        }
        if core.node(id).parent().is_none() {
            self.shrink(id);
        }
    }

    /// Takes away top nodes that only refer to slot 0 (`xas_shrink`).
    fn shrink(&mut self, top: u32) {
        let core = self.core;
        let mut top = top;
        loop {
            let node = core.node(top);
            let word = node.slot(0);
            if node.count() != 1 || word == NULL {
                return;
            }
            let below = as_node(word);
            if below.is_none() && node.shift() > 0 {
                return;
            }
            self.set_head(word);
            if below.is_none() {
                self.retry_here(node, 0);
            }
            self.bury(top);
            let Some(below) = below else { return };
            core.node(below).adopt(None, 0);
            top = below;
        }
    }

    /// Clears a mark in some slots, and above where nothing is left of it (`xas_clear_mark`).
    fn clear_marks(&self, id: u32, mark: usize, span: u64) {
        let (mut id, mut span) = (id, span);
        loop {
            let node = self.core.node(id);
            let bits = node.mark(mark) & !span;
            node.set_mark(mark, bits);
            if bits != 0 {
                return;
            }
            match node.parent() {
                Some(parent) => (id, span) = (parent, 1 << node.offset()),
                None => break,
            }
        }
        self.core.marked.fetch_and(!(1 << mark), Ordering::Relaxed);
    }

    /// Sets or clears a mark on the entry at `index`; NULL takes no mark.
    pub(super) fn mark(&self, index: u64, mark: usize, on: bool) {
        let head = self.core.head();
        if as_node(head).is_none() {
            if index != 0 || head == NULL {
                return;
            }
            match on {
                true => self.core.marked.fetch_or(1 << mark, Ordering::Relaxed),
                false => self.core.marked.fetch_and(!(1 << mark), Ordering::Relaxed),
            };
            return;
        }
        let Some(mut id) = self.lookup(index, 0) else { return };
        let node = self.core.node(id);
        let mut slot = node.canonical(node.slot_of(index));
        if node.slot(slot) == NULL {
            return;
        }
        if !on {
            self.clear_marks(id, mark, 1 << slot);
            return;
        }
        loop {
            let node = self.core.node(id);
            node.set_mark(mark, node.mark(mark) | 1 << slot);
            slot = node.offset();
            match node.parent() {
                Some(parent) => id = parent,
                None => break,
            }
        }
        self.core.marked.fetch_or(1 << mark, Ordering::Relaxed);
    }
}
