//! Nodes of 64 slots, and the cache that they are allocated from (`struct xa_node` and `radix_tree_node_cachep`).
//!
//! Simplified: no back pointer to the array and no list heads, and nodes are numbers instead of addresses.

use super::entry::{NULL, RETRY, as_node, as_sibling, is_value};
use crate::faults::{Faults, Nth};
use crate::sync::Rmw;
use crate::{Arena, Cx, Errno};
use bytemuck::Zeroable;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Bits of an index that one level decodes.
pub(super) const CHUNK_SHIFT: u32 = 6;
/// Slots in a node.
pub(super) const SLOTS: usize = 1 << CHUNK_SHIFT;
/// Slot numbers are masked with this.
pub(super) const CHUNK_MASK: u64 = SLOTS as u64 - 1;
/// Marks that an entry can carry.
pub(super) const MARKS: usize = 3;
/// The largest shift: such a node uses only its first 16 slots.
pub(super) const SHIFT_MAX: u32 = 60;
/// In `shift`, says that the node is not in use.
const FREED: u8 = u8::MAX;

/// One node. Readers look at it without a lock, so every field is atomic; writers hold the lock of the array.
#[derive(Zeroable)]
#[repr(C)]
pub(super) struct Node {
    shift: AtomicU8,
    offset: AtomicU8,
    count: AtomicU8,
    nr_values: AtomicU8,
    /// Number of the parent plus one; 0 at the top.
    parent: AtomicU32,
    marks: [AtomicU64; MARKS],
    slots: [AtomicU64; SLOTS],
}

impl Node {
    /// The node's shift, for a reader who must not meet a freed node.
    ///
    /// # Panics
    /// If the node was freed: the grace period did not protect the reader.
    #[inline]
    pub(super) fn shift(&self) -> u32 {
        let shift = self.shift.load(Ordering::Relaxed);
        assert!(shift != FREED, "INV-404: an xarray reader walks a freed node");
        u32::from(shift)
    }
    /// The node's shift, for a reader who notices by other means that nodes were freed.
    #[inline]
    pub(super) fn shift_if_used(&self) -> Option<u32> {
        let shift = self.shift.load(Ordering::Relaxed);
        (shift != FREED).then_some(u32::from(shift))
    }
    #[inline]
    pub(super) fn offset(&self) -> usize {
        usize::from(self.offset.load(Ordering::Relaxed))
    }
    #[inline]
    pub(super) fn count(&self) -> u32 {
        u32::from(self.count.load(Ordering::Relaxed))
    }
    #[inline]
    pub(super) fn nr_values(&self) -> u32 {
        u32::from(self.nr_values.load(Ordering::Relaxed))
    }
    #[inline]
    pub(super) fn parent(&self) -> Option<u32> {
        self.parent.load(Ordering::Relaxed).checked_sub(1)
    }
    #[inline]
    pub(super) fn slot(&self, slot: usize) -> u64 {
        self.slots[slot].load(Ordering::Acquire)
    }
    /// The words of some slots.
    pub(super) fn slots(&self, first: usize, last: usize) -> &[AtomicU64] {
        &self.slots[first..=last]
    }
    /// The slot of this node that decodes `index`.
    #[inline]
    pub(super) fn slot_of(&self, index: u64) -> usize {
        ((index >> self.shift()) & CHUNK_MASK) as usize
    }
    #[inline]
    pub(super) fn set_slot(&self, slot: usize, word: u64) {
        self.slots[slot].store(word, Ordering::Release);
    }
    #[inline]
    pub(super) fn mark(&self, mark: usize) -> u64 {
        self.marks[mark].load(Ordering::Relaxed)
    }
    #[inline]
    pub(super) fn set_mark(&self, mark: usize, bits: u64) {
        self.marks[mark].store(bits, Ordering::Relaxed);
    }
    /// Whether `index` lies beyond what a top node like this one can hold.
    #[inline]
    pub(super) fn is_beyond(&self, index: u64) -> bool {
        index >> self.shift() > CHUNK_MASK
    }

    /// Follows siblings to the slot that holds the entry, as a lockless reader must: between the two reads a writer may have
    /// put a node there, and then the reader has to start again.
    #[inline]
    pub(super) fn read(&self, slot: usize) -> (usize, u64) {
        let mut slot = slot;
        let mut word = self.slot(slot);
        while let Some(canonical) = as_sibling(word) {
            slot = canonical;
            word = self.slot(slot);
            if as_node(word).is_some() {
                return (slot, RETRY);
            }
        }
        (slot, word)
    }

    /// The slot that holds the entry of which `slot` is part. For writers, under whom nothing moves.
    pub(super) fn canonical(&self, slot: usize) -> usize {
        as_sibling(self.slot(slot)).unwrap_or(slot)
    }

    /// The last slot of the entry of which `slot` is part.
    pub(super) fn last_of(&self, slot: usize) -> usize {
        let mut last = slot;
        while last + 1 < SLOTS && as_sibling(self.slot(last + 1)).is_some() {
            last += 1;
        }
        last
    }

    /// Adds to the two counters.
    pub(super) fn account(&self, count: i32, values: i32) {
        let count = self.count() as i32 + count;
        let values = self.nr_values() as i32 + values;
        debug_assert!((0..=SLOTS as i32).contains(&count) && (0..=SLOTS as i32).contains(&values));
        self.count.store(count as u8, Ordering::Relaxed);
        self.nr_values.store(values as u8, Ordering::Relaxed);
    }

    /// Becomes the child of `parent` in its slot `offset`.
    pub(super) fn adopt(&self, parent: Option<u32>, offset: usize) {
        self.offset.store(offset as u8, Ordering::Relaxed);
        self.parent.store(parent.map_or(0, |id| id + 1), Ordering::Relaxed);
    }

    /// Whether the entry of which `slot` is part is a value.
    pub(super) fn is_value(&self, slot: usize) -> bool {
        is_value(self.slot(self.canonical(slot)))
    }
}

/// Where nodes come from: a slab cache that arrays may share, with a limit at which allocation fails.
///
/// ```
/// use sim_kernel::sched::Sim;
/// use sim_kernel::xarray::{NodeCache, Value, XaFlags, XArray};
/// use sim_kernel::Errno;
/// use std::sync::Arc;
///
/// let cache = Arc::new(NodeCache::new());
/// cache.set_limit(1);
/// Sim::sequential().solo(|cx| {
///     let a = XArray::new_in(cx, "a", &cache, XaFlags::empty());
///     let b = XArray::new_in(cx, "b", &cache, XaFlags::empty());
///     a.store(cx, 5, Some(Value(1))).unwrap();
///     assert_eq!(b.store(cx, 5, Some(Value(1))), Err(Errno::ENOMEM));
///     a.erase(cx, 5);
///     b.store(cx, 5, Some(Value(1))).unwrap();
/// });
/// ```
pub struct NodeCache {
    arena: Arena<Node, 3>,
    rmw: Rmw,
    used: AtomicU64,
    limit: AtomicU64,
    failing: Nth,
    /// Counts the nodes that were made available again.
    released: AtomicU64,
}

impl NodeCache {
    /// Nodes that a cache gives out unless told otherwise: enough for the attributes and the pages of a 1 TiB guest, and a
    /// bound on what a mistaken range can make the host allocate (9 GiB).
    pub const LIMIT_DEFAULT: u64 = 1 << 24;

    /// An empty cache; nothing is allocated.
    pub fn new() -> NodeCache {
        NodeCache::with(Arena::new(), Rmw::NATIVE)
    }

    /// An empty cache with the storage of one that an earlier execution of this simulation dropped ([`Arena::recycled`]).
    pub fn recycled(cx: &Cx<'_>) -> NodeCache {
        NodeCache::with(Arena::recycled(cx), Rmw::new(cx))
    }

    fn with(arena: Arena<Node, 3>, rmw: Rmw) -> NodeCache {
        NodeCache {
            arena,
            rmw,
            used: AtomicU64::new(0),
            limit: AtomicU64::new(NodeCache::LIMIT_DEFAULT),
            failing: Nth::default(),
            released: AtomicU64::new(0),
        }
    }

    /// Sets how many nodes may be linked in all arrays of this cache together; at the limit, allocation fails with `ENOMEM`.
    pub fn set_limit(&self, nodes: u64) {
        // Node numbers are 32 bits wide, and some of them wait for a grace period.
        self.limit.store(nodes.min(1 << 31), Ordering::Relaxed);
    }

    /// From now on, requests for nodes fail as the faults say.
    pub fn inject(&self, faults: &Faults) {
        self.failing.arm(faults.node);
    }

    /// The limit.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Nodes linked in arrays. A node that only waits for its grace period does not count, so that the moment at which
    /// allocation fails does not depend on when that ends.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Node numbers that are not free: linked ones and those that wait for a grace period.
    pub fn allocated(&self) -> usize {
        self.arena.in_use()
    }

    /// How many nodes may still be taken.
    pub(super) fn available(&self) -> u64 {
        self.limit().saturating_sub(self.used())
    }

    /// Takes the right to allocate `nodes` nodes.
    pub(super) fn take(&self, nodes: u32) -> Result<(), Errno> {
        if nodes == 0 {
            return Ok(());
        }
        if self.failing.fires() {
            return Err(Errno::ENOMEM);
        }
        let nodes = u64::from(nodes);
        let limit = self.limit();
        let fits = |used: u64| used.checked_add(nodes).filter(|&sum| sum <= limit);
        let used = self.rmw.update(&self.used, |used| fits(used).unwrap_or(used));
        fits(used).map(|_| ()).ok_or(Errno::ENOMEM)
    }

    /// Gives the right to allocate back.
    pub(super) fn untake(&self, nodes: u64) {
        self.rmw.add(&self.used, nodes.wrapping_neg());
    }

    /// Changes before a node that was in use can read as anything else: who sees a word of a node's next life, and then
    /// reads this, sees that it changed.
    #[inline]
    pub(super) fn released(&self) -> u64 {
        self.released.load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> &Node {
        self.arena.get(id)
    }

    /// A node without entries. The caller has taken the right to it.
    pub(super) fn alloc(&self, shift: u32) -> u32 {
        let id = self.arena.alloc();
        self.get(id).shift.store(shift as u8, Ordering::Relaxed);
        id
    }

    /// Makes a node available again: the grace period is over, nobody reads it any more.
    pub(super) fn release(&self, id: u32) {
        self.rmw.add(&self.released, 1);
        let node = self.get(id);
        // Readers that come here in spite of it notice by the shift. Zeroed now, the next user finds an empty node.
        node.shift.store(FREED, Ordering::Relaxed);
        node.adopt(None, 0);
        node.count.store(0, Ordering::Relaxed);
        node.nr_values.store(0, Ordering::Relaxed);
        for mark in &node.marks {
            mark.store(0, Ordering::Relaxed);
        }
        for slot in &node.slots {
            slot.store(NULL, Ordering::Release);
        }
        self.arena.free(id);
    }

    /// Gives back all nodes below `word` of an array that is no more.
    pub(super) fn release_tree(&self, word: u64) -> u64 {
        let Some(id) = as_node(word) else { return 0 };
        let node = self.get(id);
        let below: u64 = if node.shift() == 0 { 0 } else { (0..SLOTS).map(|s| self.release_tree(node.slot(s))).sum() };
        self.release(id);
        below + 1
    }
}

impl Default for NodeCache {
    fn default() -> Self {
        NodeCache::new()
    }
}

impl std::fmt::Debug for NodeCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeCache").field("used", &self.used()).field("limit", &self.limit()).finish_non_exhaustive()
    }
}

/// The anchor (`struct xarray`) and everything that does not depend on the type of the entries.
pub(super) struct Core {
    pub(super) object: crate::sched::ObjId,
    pub(super) flags: super::XaFlags,
    pub(super) head: AtomicU64,
    /// Bit `m`: some entry has mark `m` (in the kernel, part of `xa_flags`).
    pub(super) marked: AtomicU8,
    /// `xa_lock`. A leaf lock that is never held at a scheduling point, so no simulated task ever finds it taken.
    pub(super) lock: parking_lot::Mutex<()>,
    /// Linked nodes; written under the lock.
    pub(super) nodes: AtomicU64,
    pub(super) cache: Arc<NodeCache>,
}

impl Core {
    #[inline]
    pub(super) fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }
    #[inline]
    pub(super) fn node(&self, id: u32) -> &Node {
        self.cache.get(id)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // A cache that dies with the array needs no tidying.
        if Arc::strong_count(&self.cache) > 1 {
            let nodes = self.cache.release_tree(self.head());
            self.cache.untake(nodes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_no_larger_than_the_kernels() {
        assert_eq!(size_of::<Node>(), 544);
    }

    #[test]
    fn freed_nodes_come_back_empty() {
        let cache = NodeCache::new();
        let id = cache.alloc(6);
        cache.get(id).set_slot(3, 0x11);
        cache.get(id).account(1, 1);
        cache.get(id).set_mark(1, 8);
        cache.release(id);
        assert_eq!(cache.alloc(0), id);
        let node = cache.get(id);
        assert_eq!((node.shift(), node.slot(3), node.count(), node.nr_values(), node.mark(1)), (0, NULL, 0, 0, 0));
    }
}
