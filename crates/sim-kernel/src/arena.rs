//! A growing array whose elements never move: what the simulator allocates its frames, nodes and tables from.
//!
//! Elements live in buckets, each twice as large as the one before, allocated zeroed when first needed; so an index is turned into a
//! reference by one `leading_zeros`, two loads, and no lock, and a machine with little in it is cheap to make and to drop.
//! Freed indexes are reused last in, first out, which keeps simulated executions deterministic. The storage of an arena that is dropped
//! can serve the next execution of the same simulation ([`Arena::recycled`]).

use crate::Cx;
use crate::pool::Pool;
use crate::sync::Rmw;
use bytemuck::Zeroable;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// Buckets double from `1 << FIRST`, so 32 of them cover every `u32` index.
const BUCKETS: usize = 32;
/// An arena in which more elements than this were in use is given back to the host and not kept for the next execution.
const KEPT_MAX: u32 = 1 << 12;

/// Everything but where it comes from and goes to.
struct Parts<T, const FIRST: u32> {
    /// The first bucket, which an arena in use keeps at hand.
    first: Box<[T]>,
    /// The others; number 0 is not used.
    buckets: [OnceLock<Box<[T]>>; BUCKETS],
    next: AtomicU32,
    /// One more than the largest index that was made sure of.
    ensured: AtomicU32,
    freed: parking_lot::Mutex<Vec<u32>>,
    /// Whether an element was ever freed: before, nobody need look.
    freed_any: AtomicBool,
}

/// A growing array of `T`, indexed by `u32`; the first bucket has `1 << FIRST` elements.
///
/// ```
/// use sim_kernel::Arena;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// let arena: Arena<AtomicU64, 2> = Arena::new();
/// let a = arena.alloc();
/// arena.get(a).store(7, Ordering::Relaxed);
/// assert_eq!(arena.get(a).load(Ordering::Relaxed), 7);
/// arena.free(a);
/// assert_eq!(arena.alloc(), a, "freed elements are reused, with their old contents");
/// ```
pub struct Arena<T: Send + 'static, const FIRST: u32> {
    /// Small worlds live in the first bucket, so one comparison finds most elements.
    first: Box<[T]>,
    /// `None` only while it is dropped.
    parts: Option<Box<Parts<T, FIRST>>>,
    pool: Option<Arc<Pool>>,
    rmw: Rmw,
}

impl<T: Zeroable + Send + 'static, const FIRST: u32> Arena<T, FIRST> {
    /// An empty arena; nothing is allocated but its first bucket.
    pub fn new() -> Arena<T, FIRST> {
        Arena::of(Box::new(Parts::new()), None, Rmw::NATIVE)
    }

    fn of(mut parts: Box<Parts<T, FIRST>>, pool: Option<Arc<Pool>>, rmw: Rmw) -> Arena<T, FIRST> {
        Arena { first: std::mem::take(&mut parts.first), parts: Some(parts), pool, rmw }
    }

    /// As [`Arena::new`], with the storage of an arena of the same type that an earlier execution of this simulation dropped, if there is
    /// one. Nobody can tell the difference.
    pub fn recycled(cx: &Cx<'_>) -> Arena<T, FIRST> {
        Self::from_pool(cx, Parts::zero)
    }

    /// As [`Arena::recycled`], for owners that initialise every element they get: one that was never used before is not zeroed but holds
    /// anything.
    pub fn recycled_dirty(cx: &Cx<'_>) -> Arena<T, FIRST> {
        Self::from_pool(cx, |_| ())
    }

    fn from_pool(cx: &Cx<'_>, clean: impl FnOnce(&mut Parts<T, FIRST>)) -> Arena<T, FIRST> {
        let Some(engine) = cx.engine() else { return Arena::new() };
        let parts = match engine.pool.take::<Parts<T, FIRST>>() {
            Some(mut parts) => {
                clean(&mut parts);
                parts.forget();
                parts
            }
            None => Box::new(Parts::new()),
        };
        Arena::of(parts, Some(Arc::clone(&engine.pool)), Rmw::new(cx))
    }

    #[inline]
    fn parts(&self) -> &Parts<T, FIRST> {
        self.parts.as_ref().expect("an arena has its parts until it is dropped")
    }

    /// A new element: zeroed if it was never used before, else as it was when freed.
    ///
    /// # Panics
    /// If 2^32 elements are in use.
    pub fn alloc(&self) -> u32 {
        let parts = self.parts();
        if parts.freed_any.load(Ordering::Relaxed)
            && let Some(index) = parts.freed.lock().pop()
        {
            return index;
        }
        let index = self.rmw.add(&parts.next, 1);
        assert!(index < u32::MAX - (1 << FIRST), "arena is full");
        self.ensure(index);
        index
    }

    /// Makes sure that the bucket of `index` exists, for owners that hand out indexes themselves.
    pub fn ensure(&self, index: u32) {
        let parts = self.parts();
        if index >= parts.ensured.load(Ordering::Relaxed) {
            self.rmw.update(&parts.ensured, |ensured| ensured.max(index + 1));
        }
        if index < 1 << FIRST {
            return;
        }
        let (bucket, _) = Parts::<T, FIRST>::locate(index);
        parts.buckets[bucket].get_or_init(|| bytemuck::allocation::zeroed_slice_box(1 << (FIRST as usize + bucket)));
    }

    /// Gives an element back. The caller sees to it that nobody uses it any more.
    pub fn free(&self, index: u32) {
        let parts = self.parts();
        debug_assert!(index < parts.next.load(Ordering::Relaxed), "free of an element that was never allocated");
        parts.freed.lock().push(index);
        parts.freed_any.store(true, Ordering::Relaxed);
    }

    /// The element.
    ///
    /// # Panics
    /// If the index was never allocated.
    #[inline]
    pub fn get(&self, index: u32) -> &T {
        match self.first.get(index as usize) {
            Some(element) => element,
            None => self.parts().get_far(index),
        }
    }

    /// The element, if its bucket exists: for owners that hand out indexes themselves and treat what was never written as zero.
    #[inline]
    pub fn get_if_present(&self, index: u32) -> Option<&T> {
        if let Some(element) = self.first.get(index as usize) {
            return Some(element);
        }
        let (bucket, offset) = Parts::<T, FIRST>::locate(index);
        self.parts().buckets.get(bucket)?.get().map(|bucket| &bucket[offset])
    }

    /// Elements in use.
    pub fn in_use(&self) -> usize {
        let parts = self.parts();
        parts.next.load(Ordering::Relaxed) as usize - parts.freed.lock().len()
    }

    /// One more than the largest index ever allocated.
    pub fn high_water(&self) -> u32 {
        self.parts().next.load(Ordering::Relaxed)
    }
}

impl<T, const FIRST: u32> Parts<T, FIRST> {
    #[inline]
    fn locate(index: u32) -> (usize, usize) {
        let position = u64::from(index) + (1 << FIRST);
        let bucket = 63 - position.leading_zeros() - FIRST;
        (bucket as usize, (position - (1u64 << (bucket + FIRST))) as usize)
    }

    #[inline]
    fn get_far(&self, index: u32) -> &T {
        let (bucket, offset) = Self::locate(index);
        &self.buckets[bucket].get().expect("index was allocated")[offset]
    }
}

impl<T: Zeroable, const FIRST: u32> Parts<T, FIRST> {
    fn new() -> Parts<T, FIRST> {
        Parts {
            first: bytemuck::allocation::zeroed_slice_box(1 << FIRST),
            buckets: [const { OnceLock::new() }; BUCKETS],
            next: AtomicU32::new(0),
            ensured: AtomicU32::new(0),
            freed: Default::default(),
            freed_any: AtomicBool::new(false),
        }
    }

    /// Zeroes every element that may have been used.
    fn zero(&mut self) {
        let mut left = *self.ensured.get_mut() as usize;
        let others = self.buckets.iter_mut().filter_map(OnceLock::get_mut);
        for bucket in std::iter::once(&mut self.first).chain(others) {
            let used = left.min(bucket.len());
            bucket[..used].fill_with(T::zeroed);
            left -= used;
        }
    }

    /// No element is in use or was ever.
    fn forget(&mut self) {
        *self.next.get_mut() = 0;
        *self.ensured.get_mut() = 0;
        self.freed.get_mut().clear();
        *self.freed_any.get_mut() = false;
    }
}

impl<T: Send + 'static, const FIRST: u32> Drop for Arena<T, FIRST> {
    fn drop(&mut self) {
        if let (Some(pool), Some(mut parts)) = (self.pool.take(), self.parts.take())
            && *parts.ensured.get_mut() <= KEPT_MAX
        {
            parts.first = std::mem::take(&mut self.first);
            pool.put(parts);
        }
    }
}

impl<T: Zeroable + Send + 'static, const FIRST: u32> Default for Arena<T, FIRST> {
    fn default() -> Self {
        Arena::new()
    }
}

impl<T: Send + 'static, const FIRST: u32> fmt::Debug for Arena<T, FIRST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let next = self.parts.as_ref().map(|parts| parts.next.load(Ordering::Relaxed));
        f.debug_struct("Arena").field("high_water", &next).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::Sim;
    use std::sync::atomic::AtomicU64;

    /// What an execution sees of an arena that it fills: numbers, and the contents that new elements have.
    fn fill(arena: &Arena<AtomicU64, 1>, n: u32) -> Vec<(u32, u64)> {
        let seen: Vec<_> =
            (0..n).map(|_| arena.alloc()).map(|at| (at, arena.get(at).swap(7, Ordering::Relaxed))).collect();
        arena.free(n / 2);
        arena.ensure(n + 3);
        arena.get(n + 3).store(9, Ordering::Relaxed);
        seen
    }

    #[test]
    fn a_recycled_arena_is_as_new() {
        let mut sim = Sim::sequential();
        let fresh = fill(&Arena::new(), 20);
        for n in [20, 5, 20] {
            let seen = sim.solo(|cx| fill(&Arena::recycled(cx), n));
            assert_eq!(seen, fresh[..n as usize]);
        }
    }

    #[test]
    fn two_arenas_that_live_at_once_share_nothing() {
        Sim::sequential().solo(|cx| {
            drop(Arena::<AtomicU64, 1>::recycled(cx));
            let (a, b) = (Arena::<AtomicU64, 1>::recycled(cx), Arena::<AtomicU64, 1>::recycled(cx));
            fill(&a, 4);
            assert_eq!(fill(&b, 4).iter().map(|(_, word)| word).sum::<u64>(), 0);
        });
    }
}
