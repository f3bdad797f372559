//! A growing array whose elements never move: what the simulator allocates its frames, nodes and tables from.
//!
//! Elements live in buckets, each twice as large as the one before, allocated zeroed when first needed; so an index is turned into a
//! reference by one `leading_zeros`, two loads, and no lock, and a machine with little in it is cheap to make and to drop.
//! Freed indexes are reused last in, first out, which keeps simulated executions deterministic.

use bytemuck::Zeroable;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Buckets double from `1 << FIRST`, so 32 of them cover every `u32` index.
const BUCKETS: usize = 32;

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
pub struct Arena<T, const FIRST: u32> {
    buckets: [OnceLock<Box<[T]>>; BUCKETS],
    next: AtomicU32,
    freed: parking_lot::Mutex<Vec<u32>>,
}

impl<T: Zeroable, const FIRST: u32> Arena<T, FIRST> {
    /// An empty arena; nothing is allocated.
    pub fn new() -> Arena<T, FIRST> {
        Arena { buckets: [const { OnceLock::new() }; BUCKETS], next: AtomicU32::new(0), freed: Default::default() }
    }

    #[inline]
    fn locate(index: u32) -> (usize, usize) {
        let position = u64::from(index) + (1 << FIRST);
        let bucket = 63 - position.leading_zeros() - FIRST;
        (bucket as usize, (position - (1u64 << (bucket + FIRST))) as usize)
    }

    /// A new element: zeroed if it was never used before, else as it was when freed.
    ///
    /// # Panics
    /// If 2^32 elements are in use.
    pub fn alloc(&self) -> u32 {
        if let Some(index) = self.freed.lock().pop() {
            return index;
        }
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        assert!(index < u32::MAX - (1 << FIRST), "arena is full");
        self.ensure(index);
        index
    }

    /// Makes sure that the bucket of `index` exists, for owners that hand out indexes themselves.
    pub fn ensure(&self, index: u32) {
        let (bucket, _) = Self::locate(index);
        self.buckets[bucket].get_or_init(|| bytemuck::allocation::zeroed_slice_box(1 << (FIRST as usize + bucket)));
    }

    /// Gives an element back. The caller sees to it that nobody uses it any more.
    pub fn free(&self, index: u32) {
        debug_assert!(index < self.next.load(Ordering::Relaxed), "free of an element that was never allocated");
        self.freed.lock().push(index);
    }

    /// The element.
    ///
    /// # Panics
    /// If the index was never allocated.
    #[inline]
    pub fn get(&self, index: u32) -> &T {
        let (bucket, offset) = Self::locate(index);
        &self.buckets[bucket].get().expect("index was allocated")[offset]
    }

    /// The element, if its bucket exists: for owners that hand out indexes themselves and treat what was never written as zero.
    #[inline]
    pub fn get_if_present(&self, index: u32) -> Option<&T> {
        let (bucket, offset) = Self::locate(index);
        self.buckets.get(bucket)?.get().map(|bucket| &bucket[offset])
    }

    /// Elements in use.
    pub fn in_use(&self) -> usize {
        self.next.load(Ordering::Relaxed) as usize - self.freed.lock().len()
    }

    /// One more than the largest index ever allocated.
    pub fn high_water(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }
}

impl<T: Zeroable, const FIRST: u32> Default for Arena<T, FIRST> {
    fn default() -> Self {
        Arena::new()
    }
}

impl<T, const FIRST: u32> fmt::Debug for Arena<T, FIRST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("high_water", &self.next).finish_non_exhaustive()
    }
}
