//! Reading without a lock: load, search, comparison (`xa_load`, `xa_find`, `xa_find_after`, `xa_get_mark`).
//!
//! A reader walks from the head under RCU. Whatever it reached stays a node until it leaves; if a writer unlinked that node
//! meanwhile, its entries read as RETRY and the reader starts again. Simplified: the search keeps its path on the stack instead
//! of going up by parent pointers.

use super::entry::{NULL, RESERVED, RETRY, XaEntry, as_node, as_sibling, entry_of, visible};
use super::node::{CHUNK_MASK, CHUNK_SHIFT, Core, Node, SLOTS};
use crate::Cx;
use crate::sched::Access;
use crate::sync::{RcuReadGuard, rcu_read_lock};
use arrayvec::ArrayVec;
use std::fmt;
use std::marker::PhantomData;

/// Most levels that a tree can have: shifts 0, 6, ..., 60.
const LEVELS: usize = 11;

/// Which entry a search reports.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// Skip an entry that begins before the first index (`xa_find_after`).
    pub(super) whole: bool,
    /// Only entries with this mark.
    pub(super) mark: Option<usize>,
}

/// Where an entry stands, unless in the head or nowhere, and its word.
type Found<'a> = (Option<(&'a Node, usize)>, u64);

/// A reader was sent back to the head.
struct Restart;

/// How a read walks: with scheduling points at every node, or in one step.
struct Walk<'a> {
    core: &'a Core,
    cx: Option<&'a Cx<'a>>,
    _rcu: Option<RcuReadGuard<'a>>,
}

impl<'a> Walk<'a> {
    fn new(core: &'a Core, cx: &'a Cx<'_>) -> Walk<'a> {
        // A walk without scheduling points is one step of a simulated execution: nobody can notice its read section.
        let rcu = (cx.is_native() || core.is_fine_grained()).then(|| rcu_read_lock(cx));
        Walk { core, cx: core.is_fine_grained().then_some(cx), _rcu: rcu }
    }

    /// Follows a reference downwards, which is where a reader can be overtaken.
    #[inline]
    fn descend(&self, id: u32, index: u64) -> &'a Node {
        if let Some(cx) = self.cx {
            cx.point(Access::Load, self.core.object, index);
        }
        self.core.node(id)
    }

    #[inline]
    fn load(&self, index: u64) -> Result<u64, Restart> {
        self.locate(index).map(|(_, word)| word)
    }

    /// The word at `index`, and the node and slot in which it stands, unless that is the head or nowhere.
    #[inline]
    fn locate(&self, index: u64) -> Result<Found<'a>, Restart> {
        let head = self.core.head();
        let Some(id) = as_node(head) else { return Ok((None, if index == 0 { head } else { NULL })) };
        let mut node = self.core.node(id);
        if node.is_beyond(index) {
            return Ok((None, NULL));
        }
        loop {
            let (slot, word) = node.read(node.slot_of(index));
            match as_node(word) {
                Some(id) => node = self.descend(id, index),
                None if word == RETRY => return Err(Restart),
                None => return Ok((Some((node, slot)), word)),
            }
        }
    }

    /// Searches from `*index`, which moves along so that a restart continues where the walk was.
    fn find(&self, index: &mut u64, max: u64, wanted: Wanted) -> Result<Option<u64>, Restart> {
        if *index > max {
            return Ok(None);
        }
        let head = self.core.head();
        let Some(id) = as_node(head) else {
            let marked = wanted.mark.is_none_or(|m| self.core.is_marked(m));
            return Ok((*index == 0 && visible(head) != NULL && marked).then_some(head));
        };
        let node = self.core.node(id);
        if node.is_beyond(*index) {
            return Ok(None);
        }
        let mut path: ArrayVec<(&Node, usize), LEVELS> = ArrayVec::new();
        let mut node = node;
        let mut slot = node.slot_of(*index);
        // Until the walk moves on, it may stand in the middle of an entry.
        let mut landing = true;
        loop {
            if slot == SLOTS {
                let Some((parent, parent_slot)) = path.pop() else { return Ok(None) };
                (node, slot) = (parent, parent_slot + 1);
                continue;
            }
            if *index > max {
                return Ok(None);
            }
            let shift = node.shift();
            // Following a sibling is only right where the walk began; further on, the entry was already seen.
            let raw = node.slot(slot);
            let (at, word) = match as_sibling(raw) {
                Some(_) if landing => node.read(slot),
                Some(_) => (slot, NULL),
                None => (slot, raw),
            };
            if let Some(id) = as_node(word) {
                path.push((node, slot));
                node = self.descend(id, *index);
                slot = node.slot_of(*index);
                continue;
            }
            match word {
                RETRY => return Err(Restart),
                NULL | RESERVED => {}
                _ => {
                    let inside = at != slot || *index & ((1 << shift) - 1) != 0;
                    let marked = wanted.mark.is_none_or(|m| node.mark(m) & 1 << at != 0);
                    if marked && !(inside && wanted.whole) {
                        return Ok(Some(word));
                    }
                }
            }
            let Some(next) = (*index | ((1 << shift) - 1)).checked_add(1) else { return Ok(None) };
            *index = next;
            slot += 1;
            landing = false;
        }
    }

    fn all_equal(&self, first: u64, last: u64, want: u64) -> Result<bool, Restart> {
        let head = self.core.head();
        let Some(id) = as_node(head) else {
            let at_0 = if first == 0 { visible(head) == want } else { true };
            let beyond = want == NULL || last == 0;
            return Ok(at_0 && beyond);
        };
        let top = self.core.node(id);
        // At shift 60 the product is cut to 0, whose predecessor is the last index there is.
        let top_last = ((SLOTS as u64) << top.shift()).wrapping_sub(1);
        if last > top_last && want != NULL {
            return Ok(false);
        }
        if first > top_last {
            return Ok(true);
        }
        self.node_equal(top, first, last.min(top_last), want)
    }

    fn node_equal(&self, node: &Node, first: u64, last: u64, want: u64) -> Result<bool, Restart> {
        let shift = node.shift();
        let (first_slot, last_slot) = (node.slot_of(first), node.slot_of(last));
        let low = (1u64 << shift) - 1;
        for slot in first_slot..=last_slot {
            let (_, word) = node.read(slot);
            let equal = match as_node(word) {
                Some(id) => {
                    let base = (first & !(CHUNK_MASK << shift | low)) + ((slot as u64) << shift);
                    let from = if slot == first_slot { first } else { base };
                    let to = if slot == last_slot { last } else { base + low };
                    self.node_equal(self.descend(id, from), from, to, want)?
                }
                None if word == RETRY => return Err(Restart),
                None => visible(word) == want,
            };
            if !equal {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn mark(&self, index: u64, mark: usize) -> Result<bool, Restart> {
        let head = self.core.head();
        let Some(id) = as_node(head) else { return Ok(index == 0 && head != NULL && self.core.is_marked(mark)) };
        let mut node = self.core.node(id);
        if node.is_beyond(index) {
            return Ok(false);
        }
        loop {
            let (slot, word) = node.read(node.slot_of(index));
            if node.mark(mark) & 1 << slot == 0 {
                return Ok(false);
            }
            match as_node(word) {
                Some(id) => node = self.descend(id, index),
                None if word == RETRY => return Err(Restart),
                None => return Ok(word != NULL),
            }
        }
    }
}

/// An entry and where it stands, inside an RCU read section: what `filemap_get_entry` holds between `xas_load` and `xas_reload`.
pub struct Place<'a, E> {
    core: &'a Core,
    cx: &'a Cx<'a>,
    index: u64,
    slot: Option<(&'a Node, usize)>,
    word: u64,
    _rcu: RcuReadGuard<'a>,
    _entry: PhantomData<fn() -> E>,
}

impl<E: XaEntry> Place<'_, E> {
    /// The entry as it was found.
    pub fn entry(&self) -> Option<E> {
        entry_of(self.word)
    }

    /// Reads the same slot again, without a walk, and says whether it still holds the entry (`xas_reload`). In a node that was
    /// unlinked it does not.
    #[track_caller]
    pub fn is_unchanged(&self) -> bool {
        self.cx.point(Access::Load, self.core.object, self.index);
        let now = match self.slot {
            Some((node, slot)) => node.slot(slot),
            None if self.index == 0 => self.core.head(),
            None => NULL,
        };
        now == self.word
    }
}

impl<E> fmt::Debug for Place<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("index", &self.index).field("word", &self.word).finish_non_exhaustive()
    }
}

/// Repeats a walk until no writer sends it back.
#[inline]
fn retry<T>(mut walk: impl FnMut() -> Result<T, Restart>) -> T {
    loop {
        if let Ok(value) = walk() {
            return value;
        }
        std::hint::spin_loop();
    }
}

impl Core {
    #[inline]
    fn is_fine_grained(&self) -> bool {
        self.flags.contains(super::XaFlags::FINE_GRAINED)
    }

    pub(super) fn is_marked(&self, mark: usize) -> bool {
        self.marked.load(std::sync::atomic::Ordering::Relaxed) & 1 << mark != 0
    }

    /// The word at `index`; the reserved entry is not hidden.
    ///
    /// A walk that nothing interrupts needs no read section: it checks that no node was reused meanwhile, which is cheaper
    /// natively, where entering a section is a full memory barrier, and trivially so in a simulated execution.
    #[inline]
    pub(super) fn load(&self, cx: &Cx<'_>, index: u64) -> u64 {
        if self.is_fine_grained() {
            let walk = Walk::new(self, cx);
            return retry(|| walk.load(index));
        }
        loop {
            let released = self.cache.released();
            let found = self.load_unprotected(index);
            if self.cache.released() == released {
                match found {
                    Ok(word) => return word,
                    // Sent back by a writer, which natively may still be busy.
                    Err(Restart) => assert!(cx.is_native(), "an xarray reader walks an unlinked node"),
                }
            }
            std::hint::spin_loop();
        }
    }

    /// Walks by the shifts that nodes must have, so that it ends whatever it reads.
    #[inline]
    fn load_unprotected(&self, index: u64) -> Result<u64, Restart> {
        let head = self.head();
        let Some(id) = as_node(head) else { return Ok(if index == 0 { head } else { NULL }) };
        let mut node = self.node(id);
        let Some(mut shift) = node.shift_if_used() else { return Err(Restart) };
        if index >> shift > CHUNK_MASK {
            return Ok(NULL);
        }
        loop {
            let (_, word) = node.read((index >> shift & CHUNK_MASK) as usize);
            match as_node(word) {
                Some(_) if shift == 0 => return Err(Restart),
                Some(id) => node = self.node(id),
                None if word == RETRY => return Err(Restart),
                None => return Ok(word),
            }
            shift -= CHUNK_SHIFT;
        }
    }

    /// The entry at `index` and where it stands.
    pub(super) fn locate<'a, E>(&'a self, cx: &'a Cx<'_>, index: u64) -> Place<'a, E> {
        let rcu = rcu_read_lock(cx);
        let walk = Walk::new(self, cx);
        let (slot, word) = retry(|| walk.locate(index));
        Place { core: self, cx, index, slot, word, _rcu: rcu, _entry: PhantomData }
    }

    /// The first wanted entry in `[first, max]`: the first of its indexes that lies there, and its word.
    pub(super) fn find(&self, cx: &Cx<'_>, first: u64, max: u64, wanted: Wanted) -> Option<(u64, u64)> {
        let walk = Walk::new(self, cx);
        let mut index = first;
        retry(|| walk.find(&mut index, max, wanted)).map(|word| (index, word))
    }

    /// Whether each index of the range holds `want`; the reserved entry is NULL.
    pub(super) fn all_equal(&self, cx: &Cx<'_>, first: u64, last: u64, want: u64) -> bool {
        let walk = Walk::new(self, cx);
        retry(|| walk.all_equal(first, last, want))
    }

    /// Whether the entry at `index` has the mark.
    pub(super) fn get_mark(&self, cx: &Cx<'_>, index: u64, mark: usize) -> bool {
        let walk = Walk::new(self, cx);
        retry(|| walk.mark(index, mark))
    }

    /// The word at `index`, for the holder of the lock and for checkers.
    pub(super) fn load_locked(&self, index: u64) -> u64 {
        let walk = Walk { core: self, cx: None, _rcu: None };
        walk.load(index).unwrap_or_else(|Restart| panic!("a writer met a RETRY entry at {index:#x}"))
    }

    /// The first index at or after `first`, and its word, that is not NULL: for the holder of the lock. Unlike in a search,
    /// reserved entries count.
    pub(super) fn next_present(&self, first: u64, max: u64) -> Option<u64> {
        let mut index = first;
        'again: while index <= max {
            let id = match as_node(self.head()) {
                Some(id) => id,
                None => return (index == 0 && self.head() != NULL).then_some(0),
            };
            let mut node = self.node(id);
            if node.is_beyond(index) {
                return None;
            }
            loop {
                let shift = node.shift();
                let from = node.slot_of(index);
                let Some(slot) = (from..SLOTS).find(|&s| node.slot(s) != NULL) else {
                    // Nothing more in this node: on with the first index behind it.
                    index = (index >> shift | CHUNK_MASK).checked_add(1)?.checked_mul(1 << shift)?;
                    continue 'again;
                };
                if slot != from {
                    index = (index >> shift & !CHUNK_MASK | slot as u64) << shift;
                }
                match as_node(node.slot(slot)) {
                    Some(id) => node = self.node(id),
                    None => return (index <= max).then_some(index),
                }
            }
        }
        None
    }
}
