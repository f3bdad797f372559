//! Operations on ranges: multi-index entries (`xa_store_range`) and loops over single indexes.
//!
//! The loops give what `for (i = first; i <= last; i++) xa_store(...)` gives. If another task could come in between, they are
//! that loop, a scheduling point at each index; otherwise they fill a node at a time.

use super::entry::{NULL, RESERVED, as_node, as_sibling, is_value};
use super::node::{CHUNK_MASK, CHUNK_SHIFT, Core, Node, SHIFT_MAX, SLOTS};
use super::write::{Prepaid, Writer, top_shift};
use crate::sched::Access;
use crate::{Cx, Errno};
use std::sync::atomic::Ordering;

/// One entry as it stands in one node: `slots` consecutive slots of a node with this shift.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chunk {
    pub(super) first: u64,
    pub(super) shift: u32,
    pub(super) slots: usize,
}

impl Chunk {
    pub(super) fn single(index: u64) -> Chunk {
        Chunk { first: index, shift: 0, slots: 1 }
    }

    /// The first of the entries that make up a range (`xas_set_range`): the largest slots that fit, as many as stand in one node.
    pub(super) fn first_of(first: u64, last: u64) -> Chunk {
        let rest = last - first;
        let mut shift = 0;
        while shift < SHIFT_MAX {
            let low = (SLOTS as u64 * (1 << shift)) - 1;
            if first & low != 0 || rest < low {
                break;
            }
            shift += CHUNK_SHIFT;
        }
        let low = (1u64 << shift) - 1;
        let whole = (rest >> shift) + u64::from(rest & low == low);
        let room = SLOTS as u64 - (first >> shift & CHUNK_MASK);
        Chunk { first, shift, slots: whole.min(room) as usize }
    }

    pub(super) fn is_single(self) -> bool {
        self.shift == 0 && self.slots == 1
    }

    /// Indexes that the chunk covers, minus one: all of them are one more than a word holds.
    fn span(self) -> u64 {
        ((self.slots as u64 - 1) << self.shift) + ((1 << self.shift) - 1)
    }

    pub(super) fn last(self) -> u64 {
        self.first + self.span()
    }
}

/// What `xa_store_range` creates before it stores: the shift of the top node, and down to which shift the path to `last` goes.
fn range_path(last: u64) -> (u32, u32) {
    let Some(end) = last.checked_add(1) else { return (SHIFT_MAX, SHIFT_MAX) };
    let order = end.trailing_zeros();
    // An entry that begins at 0 cannot be the head, so it asks for room for one index more.
    let max = if order > 0 && end.is_power_of_two() { end } else { last };
    (top_shift(max), order / CHUNK_SHIFT * CHUNK_SHIFT)
}

/// Whether another simulated task could run between two steps.
fn is_interleaved(cx: &Cx<'_>) -> bool {
    !cx.is_native() && !cx.is_solo()
}

impl Core {
    /// Announces a write to `[first, last]`.
    #[inline]
    #[track_caller]
    pub(super) fn announce_store(&self, cx: &Cx<'_>, first: u64, last: u64) {
        if self.flags.contains(super::XaFlags::FINE_GRAINED) {
            // Readers stop between nodes, and a write may move the nodes of indexes that it does not touch.
            cx.point_range(Access::Store, self.object, 0, u64::MAX);
        } else {
            cx.point_range(Access::Store, self.object, first, (last - first).saturating_add(1));
        }
    }

    /// Announces a read of `[first, last]`.
    #[inline]
    #[track_caller]
    pub(super) fn announce_load(&self, cx: &Cx<'_>, first: u64, last: u64) {
        cx.point_range(Access::Load, self.object, first, last.saturating_sub(first).saturating_add(1));
    }

    /// Stores at one index and returns the word that was there.
    #[track_caller]
    pub(super) fn store_single(&self, cx: &Cx<'_>, index: u64, word: u64) -> Result<u64, Errno> {
        let mut writer = self.writer();
        let old = self.load_locked(index);
        let result = writer.store(Chunk::single(index), word, top_shift(index), &mut Prepaid::default());
        writer.finish(cx);
        result.map(|()| old)
    }

    /// Stores at one index if it holds `old`; returns the word found.
    pub(super) fn cmpxchg(&self, cx: &Cx<'_>, index: u64, old: u64, new: u64) -> Result<u64, Errno> {
        let mut writer = self.writer();
        let found = self.load_locked(index);
        let mut result = Ok(());
        if found == old {
            result = writer.store(Chunk::single(index), new, top_shift(index), &mut Prepaid::default());
        }
        writer.finish(cx);
        result.map(|()| found)
    }

    #[track_caller]
    pub(super) fn store_range(&self, cx: &Cx<'_>, first: u64, last: u64, word: u64) -> Result<(), Errno> {
        if first > last {
            return Err(Errno::EINVAL);
        }
        let (top, path_shift) = range_path(last);
        let mut prepaid: Option<Prepaid> = None;
        let mut at = first;
        loop {
            let chunk = Chunk::first_of(at, last);
            self.announce_store(cx, chunk.first, chunk.last());
            let mut writer = self.writer();
            if prepaid.is_none() {
                let in_head = last == 0 && as_node(self.head()).is_none();
                let path =
                    if word == NULL || in_head { Ok(Prepaid::default()) } else { writer.prepay(last, path_shift, top) };
                match path {
                    Ok(path) => prepaid = Some(path),
                    Err(errno) => return Err(errno),
                }
            }
            let path = prepaid.as_mut().expect("taken with the first chunk");
            let result = writer.store(chunk, word, top.max(chunk.shift), path);
            let done = result.is_err() || chunk.last() == last;
            if done && let Some(path) = prepaid.take() {
                writer.settle(path);
            }
            writer.finish(cx);
            if done {
                return result;
            }
            at = chunk.last() + 1;
        }
    }

    /// Stores at each index of a range in which nothing is, in one step. The first word that was found there; without one, [`NULL`].
    #[track_caller]
    pub(super) fn insert_each(
        &self,
        cx: &Cx<'_>,
        first: u64,
        last: u64,
        word: impl Fn(u64) -> u64,
    ) -> Result<u64, Errno> {
        self.announce_store(cx, first, last);
        let mut writer = self.writer();
        let mut result = Ok((first..=last).map(|index| self.load_locked(index)).find(|w| *w != NULL).unwrap_or(NULL));
        if result == Ok(NULL) {
            let mut store =
                |index, word| writer.store(Chunk::single(index), word, top_shift(index), &mut Prepaid::default());
            for index in first..=last {
                if let Err(errno) = store(index, word(index)) {
                    (first..index).for_each(|index| store(index, NULL).expect("erasing allocates nothing"));
                    result = Err(errno);
                    break;
                }
            }
        }
        writer.finish(cx);
        result
    }

    /// Reserves each index of the range that holds nothing.
    #[track_caller]
    pub(super) fn reserve_range(&self, cx: &Cx<'_>, first: u64, last: u64) -> Result<(), Errno> {
        if first > last {
            return Ok(());
        }
        // The kernel finds out when memory runs out; what it reserved until then is invisible.
        if self.nodes_needed(first, last) > self.cache.available() {
            self.announce_load(cx, first, last);
            return Err(Errno::ENOMEM);
        }
        if !is_interleaved(cx) {
            self.announce_store(cx, first, last);
            return self.fill_each(cx, first, last, RESERVED);
        }
        for index in first..=last {
            self.announce_store(cx, index, index);
            self.cmpxchg(cx, index, NULL, RESERVED)?;
        }
        Ok(())
    }

    /// Stores the same word at each index of the range.
    #[track_caller]
    pub(super) fn store_each(&self, cx: &Cx<'_>, first: u64, last: u64, word: u64) -> Result<(), Errno> {
        if first > last {
            return Ok(());
        }
        if word == NULL {
            self.erase_each(cx, first, last);
            return Ok(());
        }
        if !is_interleaved(cx) {
            self.announce_store(cx, first, last);
            return self.fill_each(cx, first, last, word);
        }
        for index in first..=last {
            self.announce_store(cx, index, index);
            self.store_single(cx, index, word)?;
        }
        Ok(())
    }

    /// Stores NULL at each index of the range; the work is proportional to what is there.
    #[track_caller]
    pub(super) fn erase_each(&self, cx: &Cx<'_>, first: u64, last: u64) {
        if first > last {
            return;
        }
        if !is_interleaved(cx) {
            self.announce_store(cx, first, last);
            let mut writer = self.writer();
            let mut at = first;
            loop {
                let chunk = Chunk::first_of(at, last);
                let erased = writer.store(chunk, NULL, 0, &mut Prepaid::default());
                debug_assert!(erased.is_ok(), "erasing allocates nothing");
                if chunk.last() == last {
                    break;
                }
                at = chunk.last() + 1;
            }
            writer.finish(cx);
            return;
        }
        // Storing NULL over NULL changes nothing and is left out.
        self.announce_load(cx, first, last);
        let mut at = first;
        loop {
            let lock = self.lock.lock();
            let present = self.next_present(at, last);
            drop(lock);
            let Some(index) = present else { return };
            self.announce_store(cx, index, index);
            let erased = self.store_single(cx, index, NULL);
            debug_assert!(erased.is_ok(), "erasing allocates nothing");
            let Some(next) = index.checked_add(1) else { return };
            at = next;
        }
    }

    /// The loop over single indexes, a node at a time: stores a word everywhere, or RESERVED where nothing is.
    fn fill_each(&self, cx: &Cx<'_>, first: u64, last: u64, word: u64) -> Result<(), Errno> {
        let mut writer = self.writer();
        let mut at = first;
        let result = loop {
            let leaf_last = (at | CHUNK_MASK).min(last);
            let result = self.fill_leaf(&mut writer, at, leaf_last, word);
            if result.is_err() || leaf_last == last {
                break result;
            }
            at = leaf_last + 1;
        };
        writer.finish(cx);
        result
    }

    fn fill_leaf(&self, writer: &mut Writer<'_>, first: u64, last: u64, word: u64) -> Result<(), Errno> {
        let none = &mut Prepaid::default();
        let mut first = first;
        if first == 0 && as_node(self.head()).is_none() {
            // The entry at 0 goes to the head for as long as it is alone.
            if word != RESERVED {
                writer.store(Chunk::single(0), word, 0, none)?;
            }
            if word != RESERVED || self.head() != NULL {
                if last == 0 {
                    return Ok(());
                }
                first = 1;
            }
        }
        let node = self.node(writer.create(first, 0, top_shift(last), none)?);
        let (first_slot, last_slot) = (node.slot_of(first), node.slot_of(last));
        if word == RESERVED {
            // A large entry that covers all of this is there already.
            if node.shift() == 0 {
                reserve_slots(node, first_slot, last_slot);
            }
            return Ok(());
        }
        if node.shift() == 0 && fill_slots(node, first_slot, last_slot, word) {
            return Ok(());
        }
        // An entry of several slots is replaced as a whole.
        for index in first..=last {
            writer.store(Chunk::single(index), word, top_shift(index), none)?;
        }
        Ok(())
    }

    /// How many nodes must be created before every index of the range has a slot.
    fn nodes_needed(&self, first: u64, last: u64) -> u64 {
        let _lock = self.lock.lock();
        let head = self.head();
        let top = top_shift(last);
        if head == NULL {
            return nodes_covering(top, first, last);
        }
        let node = as_node(head).map(|id| self.node(id));
        if node.is_none() && last == 0 {
            return 0;
        }
        self.needed_under_growth(node, top, first, last)
    }

    /// The same for a range below a top node of shift `top`, which may have yet to be put above the head.
    fn needed_under_growth(&self, head: Option<&Node>, top: u32, first: u64, last: u64) -> u64 {
        if let Some(node) = head
            && node.shift() >= top
        {
            return self.needed_below(node, first, last);
        }
        // This node is new. Slot 0 leads on to the head, the others to nothing.
        let slot_last = (1u64 << top) - 1;
        let head_levels = head.map_or(0, |n| n.shift() / CHUNK_SHIFT + 1);
        let in_slot_0 = if top == 0 {
            0
        } else if first <= slot_last {
            self.needed_under_growth(head, top - CHUNK_SHIFT, first, last.min(slot_last))
        } else {
            u64::from(top / CHUNK_SHIFT - head_levels)
        };
        let others = if top > 0 && last > slot_last {
            nodes_covering(top - CHUNK_SHIFT, first.max(slot_last + 1), last)
        } else {
            0
        };
        1 + in_slot_0 + others
    }

    fn needed_below(&self, node: &Node, first: u64, last: u64) -> u64 {
        let shift = node.shift();
        if shift == 0 {
            return 0;
        }
        let low = (1u64 << shift) - 1;
        let mut sum = 0;
        let mut at = first;
        loop {
            let to = (at | low).min(last);
            let word = node.slot(node.slot_of(at));
            sum += match as_node(word) {
                Some(id) => self.needed_below(self.node(id), at, to),
                None if word == NULL => nodes_covering(shift - CHUNK_SHIFT, at, to),
                None => 0,
            };
            if to == last {
                return sum;
            }
            at = to + 1;
        }
    }
}

/// Nodes of shift 0 up to `shift` that a full tree over the range has.
fn nodes_covering(shift: u32, first: u64, last: u64) -> u64 {
    let block = |index: u64, shift: u32| index.checked_shr(shift + CHUNK_SHIFT).unwrap_or(0);
    (0..=shift).step_by(CHUNK_SHIFT as usize).map(|s| block(last, s) - block(first, s) + 1).sum()
}

fn reserve_slots(node: &Node, first: usize, last: usize) {
    let mut count = 0;
    for slot in first..=last {
        if node.slot(slot) == NULL {
            node.set_slot(slot, RESERVED);
            count += 1;
        }
    }
    node.account(count, 0);
}

/// Fills slots, unless one of them belongs to an entry of several slots.
fn fill_slots(node: &Node, first: usize, last: usize, word: u64) -> bool {
    let slots = node.slots(first, last);
    let (mut absent, mut values) = (slots.len(), 0);
    if node.count() > 0 {
        absent = 0;
        let mut siblings = last + 1 < SLOTS && as_sibling(node.slot(last + 1)).is_some();
        for slot in slots {
            let old = slot.load(Ordering::Relaxed);
            absent += usize::from(old == NULL);
            values += usize::from(is_value(old));
            siblings |= as_sibling(old).is_some();
        }
        if siblings {
            return false;
        }
    }
    for slot in slots {
        slot.store(word, Ordering::Release);
    }
    let values_now = if is_value(word) { slots.len() } else { 0 };
    node.account(absent as i32, values_now as i32 - values as i32);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(first: u64, last: u64) -> Vec<(u64, u64, u32, usize)> {
        let mut at = first;
        let mut out = Vec::new();
        loop {
            let chunk = Chunk::first_of(at, last);
            out.push((chunk.first, chunk.last(), chunk.shift, chunk.slots));
            if chunk.last() == last {
                return out;
            }
            at = chunk.last() + 1;
        }
    }

    #[test]
    fn ranges_are_cut_like_the_kernel_cuts_them() {
        assert_eq!(chunks(0, 0), [(0, 0, 0, 1)]);
        assert_eq!(chunks(0, 1), [(0, 1, 0, 2)]);
        assert_eq!(chunks(0, 63), [(0, 63, 6, 1)]);
        assert_eq!(chunks(0, 99), [(0, 63, 6, 1), (64, 99, 0, 36)]);
        assert_eq!(chunks(1, 512), [(1, 63, 0, 63), (64, 511, 6, 7), (512, 512, 0, 1)]);
        assert_eq!(chunks(0, 511), [(0, 511, 6, 8)]);
        assert_eq!(chunks(5, 200), [(5, 63, 0, 59), (64, 191, 6, 2), (192, 200, 0, 9)]);
        assert_eq!(chunks(0, u64::MAX), [(0, u64::MAX, 60, 16)]);
        assert_eq!(chunks(u64::MAX, u64::MAX), [(u64::MAX, u64::MAX, 0, 1)]);
    }

    #[test]
    fn the_path_is_made_for_the_last_index() {
        assert_eq!(range_path(0), (0, 0));
        assert_eq!(range_path(1), (0, 0));
        assert_eq!(range_path(63), (6, 6));
        assert_eq!(range_path(99), (6, 0));
        assert_eq!(range_path(4095), (12, 12));
        assert_eq!(range_path(8191), (12, 12));
        assert_eq!(range_path(u64::MAX), (60, 60));
    }

    #[test]
    fn full_trees_are_counted_by_level() {
        assert_eq!(nodes_covering(0, 3, 9), 1);
        assert_eq!(nodes_covering(6, 0, 4095), 65);
        assert_eq!(nodes_covering(12, 63, 64), 4);
        assert_eq!(nodes_covering(60, 0, u64::MAX) >> 58, 1);
    }
}
