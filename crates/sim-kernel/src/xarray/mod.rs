//! The xarray: a tree of 64-slot nodes from an index to a word (`lib/xarray.c`, `include/linux/xarray.h`).
//!
//! Memory attributes, the page cache and the bindings of a guest_memfd file live in it. Readers take no lock, writers hold
//! `xa_lock`, and a node that a writer unlinks is freed after an RCU grace period, its entries overwritten so that readers who
//! are still in it start again at the head.
//!
//! Every operation announces itself as one scheduling point before it acts, with the indexes that it touches; [`XaFlags`] can
//! ask for more. Simplified: no `xa_state`, no free tracking (`xa_alloc`), no splitting of entries, 3 marks without the special
//! meaning of the first; an operation that lacks memory links nothing instead of continuing with a node allocated outside the lock.

mod check;
mod entry;
mod node;
mod range;
mod read;
mod write;

use crate::{Cx, Errno};
use node::Core;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

pub use check::{NodeShape, XaViolation};
pub use entry::{Handle, Value, XaEntry};
pub use node::NodeCache;
pub use read::Place;

bitflags::bitflags! {
    /// How an array behaves under a scheduler.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct XaFlags: u8 {
        /// Lockless readers pass a scheduling point at each node below the first, so a writer can overtake them. Writers then
        /// announce that they touch everything, because nodes move.
        const FINE_GRAINED = 1;
        /// A bug to find: unlinked nodes are reused at once instead of after a grace period.
        const MUTANT_FREE_AT_ONCE = 2;
        /// A bug to find: unlinked nodes keep their entries, so readers in them see what is gone.
        const MUTANT_NO_RETRY = 4;
    }
}

/// One of the three marks that an entry can carry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mark {
    /// `XA_MARK_0`.
    Mark0,
    /// `XA_MARK_1`.
    Mark1,
    /// `XA_MARK_2`.
    Mark2,
}

/// Why [`XArray::insert`] stored nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InsertError<E> {
    /// The index is taken, by this entry or, if `None`, by a reservation (`EBUSY`).
    Busy(Option<E>),
    /// A node could not be allocated (`ENOMEM`).
    NoMemory,
}

impl<E> From<InsertError<E>> for Errno {
    fn from(error: InsertError<E>) -> Errno {
        match error {
            InsertError::Busy(_) => Errno::EBUSY,
            InsertError::NoMemory => Errno::ENOMEM,
        }
    }
}

/// An array of entries, sparse and indexed by any `u64`.
///
/// ```
/// use sim_kernel::sched::Sim;
/// use sim_kernel::xarray::{Handle, XArray};
///
/// Sim::sequential().solo(|cx| {
///     let bindings: XArray<Handle> = XArray::new(cx, "gmem bindings");
///     bindings.store_range(cx, 5, 200, Some(Handle(1))).unwrap();
///     assert_eq!(bindings.load(cx, 100), Some(Handle(1)));
///     assert_eq!(bindings.find(cx, 70, 1000), Some((70, Handle(1))), "the middle of an entry");
///
///     // One range is several entries: cut where the nodes are cut.
///     let seen: Vec<u64> = bindings.iter(cx, 0, u64::MAX).map(|(index, _)| index).collect();
///     assert_eq!(seen, [5, 64, 192]);
///
///     // Whatever stands at an index is replaced or erased as a whole.
///     assert_eq!(bindings.erase(cx, 70), Some(Handle(1)));
///     assert_eq!(bindings.load(cx, 64), None);
///     assert_eq!(bindings.load(cx, 63), Some(Handle(1)));
///
///     bindings.store_range(cx, 5, 200, None).unwrap();
///     assert!(bindings.is_empty(cx));
///     assert_eq!(bindings.node_count(), 0);
/// });
/// ```
pub struct XArray<E> {
    core: Core,
    _entry: PhantomData<fn(E) -> E>,
}

impl<E> fmt::Debug for XArray<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = &self.core;
        f.debug_struct("XArray")
            .field("object", &core.object)
            .field("nodes", &self.node_count())
            .finish_non_exhaustive()
    }
}

impl<E> XArray<E> {
    /// The object that scheduling points of this array name.
    pub fn object(&self) -> crate::sched::ObjId {
        self.core.object
    }

    /// Nodes linked in the array.
    pub fn node_count(&self) -> u64 {
        self.core.nodes.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Where the nodes of this array come from.
    pub fn cache(&self) -> &Arc<NodeCache> {
        &self.core.cache
    }
}

impl<E: XaEntry> XArray<E> {
    /// An empty array with a node cache of its own, of the given class (its name in the kernel).
    pub fn new(cx: &Cx<'_>, class: &'static str) -> XArray<E> {
        XArray::new_in(cx, class, &Arc::new(NodeCache::new()), XaFlags::empty())
    }

    /// An empty array that shares a node cache with others, as all arrays of a kernel do.
    pub fn new_in(cx: &Cx<'_>, class: &'static str, cache: &Arc<NodeCache>, flags: XaFlags) -> XArray<E> {
        let core = Core {
            object: cx.new_object(class),
            flags,
            head: Default::default(),
            marked: Default::default(),
            lock: Default::default(),
            nodes: Default::default(),
            cache: Arc::clone(cache),
        };
        XArray { core, _entry: PhantomData }
    }

    /// The entry at `index` (`xa_load`).
    #[inline]
    #[track_caller]
    pub fn load(&self, cx: &Cx<'_>, index: u64) -> Option<E> {
        cx.point(crate::sched::Access::Load, self.core.object, index);
        entry::entry_of(self.core.load(cx, index))
    }

    /// The entry at `index` together with its place, to be read again once the caller has a reference to what the entry names
    /// (`xas_load`, later `xas_reload`). An RCU read section until the place is dropped.
    ///
    /// ```
    /// # use sim_kernel::{sched::Sim, xarray::{Handle, XArray}};
    /// # Sim::sequential().solo(|cx| {
    /// let pages: XArray<Handle> = XArray::new(cx, "i_pages");
    /// pages.store(cx, 9, Some(Handle(3))).unwrap();
    /// let place = pages.locate(cx, 9);
    /// assert_eq!(place.entry(), Some(Handle(3)));
    /// assert!(place.is_unchanged());
    /// pages.erase(cx, 9);
    /// assert!(!place.is_unchanged());
    /// # });
    /// ```
    #[track_caller]
    pub fn locate<'a>(&'a self, cx: &'a Cx<'_>, index: u64) -> Place<'a, E> {
        cx.point(crate::sched::Access::Load, self.core.object, index);
        self.core.locate(cx, index)
    }

    /// The entry at `index`, without a scheduling point and under the lock: for checkers.
    pub fn peek(&self, index: u64) -> Option<E> {
        let _lock = self.core.lock.lock();
        entry::entry_of(self.core.load_locked(index))
    }

    /// Whether the slot at `index` holds a reservation: for checkers.
    pub fn is_reserved(&self, index: u64) -> bool {
        let _lock = self.core.lock.lock();
        self.core.load_locked(index) == entry::RESERVED
    }

    /// Whether nothing is stored or reserved anywhere (`xa_empty`).
    #[track_caller]
    pub fn is_empty(&self, cx: &Cx<'_>) -> bool {
        self.core.announce_load(cx, 0, u64::MAX);
        self.core.head() == entry::NULL
    }

    /// Stores an entry, or with `None` erases one, and returns what was there (`xa_store`). If `index` is part of a multi-index
    /// entry, that whole entry is replaced.
    ///
    /// # Errors
    /// `ENOMEM`, with nothing changed; never if the index was reserved, and never for `None`.
    #[track_caller]
    pub fn store(&self, cx: &Cx<'_>, index: u64, entry: Option<E>) -> Result<Option<E>, Errno> {
        self.announce_single(cx, index);
        self.core.store_single(cx, index, entry::word_of(entry)).map(entry::entry_of)
    }

    /// Erases the entry at `index`, the whole of it, and returns it (`xa_erase`).
    #[track_caller]
    pub fn erase(&self, cx: &Cx<'_>, index: u64) -> Option<E> {
        self.announce_single(cx, index);
        let old = self.core.store_single(cx, index, entry::NULL);
        entry::entry_of(old.expect("erasing allocates nothing"))
    }

    /// Stores `new` if the entry is `old`, and returns the entry found (`xa_cmpxchg`). A reservation is found as `None`, but it
    /// is not NULL, so nothing is stored over it.
    ///
    /// # Errors
    /// `ENOMEM`, with nothing changed.
    #[track_caller]
    pub fn cmpxchg(&self, cx: &Cx<'_>, index: u64, old: Option<E>, new: Option<E>) -> Result<Option<E>, Errno> {
        self.announce_single(cx, index);
        self.core.cmpxchg(cx, index, entry::word_of(old), entry::word_of(new)).map(entry::entry_of)
    }

    /// Stores an entry where nothing is (`xa_insert`).
    ///
    /// # Errors
    /// [`InsertError::Busy`] if the index is taken or reserved, [`InsertError::NoMemory`] without a node for it.
    #[track_caller]
    pub fn insert(&self, cx: &Cx<'_>, index: u64, entry: E) -> Result<(), InsertError<E>> {
        self.announce_single(cx, index);
        match self.core.cmpxchg(cx, index, entry::NULL, entry::word_of(Some(entry))) {
            Ok(entry::NULL) => Ok(()),
            Ok(found) => Err(InsertError::Busy(entry::entry_of(found))),
            Err(_) => Err(InsertError::NoMemory),
        }
    }

    /// Makes sure that a later store at `index` cannot fail (`xa_reserve`): if nothing is there, a reserved entry, which reads as
    /// `None`.
    ///
    /// # Errors
    /// `ENOMEM`, with nothing changed.
    #[track_caller]
    pub fn reserve(&self, cx: &Cx<'_>, index: u64) -> Result<(), Errno> {
        self.announce_single(cx, index);
        self.core.cmpxchg(cx, index, entry::NULL, entry::RESERVED).map(|_| ())
    }

    /// Takes a reservation back if nothing was stored there (`xa_release`).
    #[track_caller]
    pub fn release(&self, cx: &Cx<'_>, index: u64) {
        self.announce_single(cx, index);
        let found = self.core.cmpxchg(cx, index, entry::RESERVED, entry::NULL);
        debug_assert!(found.is_ok(), "erasing allocates nothing");
    }

    /// Stores one entry at all indexes from `first` to `last`, or with `None` erases every entry that reaches into the range
    /// (`xa_store_range`). The range becomes as few multi-index entries as the nodes allow; each is a scheduling point, and
    /// readers may see some of them stored and others not.
    ///
    /// # Errors
    /// `EINVAL` if `first > last`. `ENOMEM`: what was stored so far stays stored; nothing is if the way to `last` lacked memory.
    #[track_caller]
    pub fn store_range(&self, cx: &Cx<'_>, first: u64, last: u64, entry: Option<E>) -> Result<(), Errno> {
        self.core.store_range(cx, first, last, entry::word_of(entry))
    }

    /// Stores the entry at each index from `first` to `last`, as single-index entries: a loop over [`XArray::store`].
    ///
    /// # Errors
    /// `ENOMEM`: what was stored so far stays stored.
    #[track_caller]
    pub fn store_each(&self, cx: &Cx<'_>, first: u64, last: u64, entry: Option<E>) -> Result<(), Errno> {
        self.core.store_each(cx, first, last, entry::word_of(entry))
    }

    /// Erases at each index from `first` to `last`: a loop over [`XArray::erase`] that skips where nothing is.
    #[track_caller]
    pub fn erase_each(&self, cx: &Cx<'_>, first: u64, last: u64) {
        self.core.erase_each(cx, first, last);
    }

    /// Stores an entry at each index from `first` to `last` if nothing is at any of them, in one step: the pages of a large folio.
    ///
    /// # Errors
    /// [`InsertError::Busy`] with the first entry that is there; [`InsertError::NoMemory`]. Then nothing was stored.
    #[track_caller]
    pub fn insert_each(
        &self,
        cx: &Cx<'_>,
        first: u64,
        last: u64,
        entry: impl Fn(u64) -> E,
    ) -> Result<(), InsertError<E>> {
        match self.core.insert_each(cx, first, last, |index| entry::word_of(Some(entry(index)))) {
            Ok(entry::NULL) => Ok(()),
            Ok(found) => Err(InsertError::Busy(entry::entry_of(found))),
            Err(_) => Err(InsertError::NoMemory),
        }
    }

    /// Reserves each index from `first` to `last`: a loop over [`XArray::reserve`].
    ///
    /// # Errors
    /// `ENOMEM`. If the cache cannot give that many nodes, the answer comes at once and nothing was reserved.
    #[track_caller]
    pub fn reserve_range(&self, cx: &Cx<'_>, first: u64, last: u64) -> Result<(), Errno> {
        self.core.reserve_range(cx, first, last)
    }

    /// Whether each index from `first` to `last` holds the entry; a reservation is `None`. One scheduling point.
    #[track_caller]
    pub fn all_equal(&self, cx: &Cx<'_>, first: u64, last: u64, entry: Option<E>) -> bool {
        self.core.announce_load(cx, first, last);
        first > last || self.core.all_equal(cx, first, last, entry::word_of(entry))
    }

    /// As [`XArray::all_equal`], as part of a step that was already announced: under the lock that writers hold.
    pub fn peek_all_equal(&self, cx: &Cx<'_>, first: u64, last: u64, entry: Option<E>) -> bool {
        first > last || self.core.all_equal(cx, first, last, entry::word_of(entry))
    }

    /// The first index in `[start, max]` that has an entry, without a scheduling point: for checkers.
    pub fn peek_find(&self, start: u64, max: u64) -> Option<(u64, E)> {
        let index = self.core.next_present(start, max)?;
        self.peek(index).map(|entry| (index, entry))
    }

    /// The first entry that has an index in `[start, max]`, with the first and last index at which it stands: for checkers. A range that was
    /// stored at once may be several entries.
    pub fn peek_entry(&self, start: u64, max: u64) -> Option<(u64, u64, E)> {
        let (index, entry) = self.peek_find(start, max)?;
        let _lock = self.core.lock.lock();
        let (first, last) = self.core.extent(index);
        Some((first, last, entry))
    }

    /// The first entry that has an index in `[start, max]`, and the first such index (`xa_find`): `start` itself if it is in the
    /// middle of an entry.
    #[track_caller]
    pub fn find(&self, cx: &Cx<'_>, start: u64, max: u64) -> Option<(u64, E)> {
        self.search(cx, start, max, read::Wanted { whole: false, mark: None })
    }

    /// The first entry that begins behind `index` and no further than `max` (`xa_find_after`).
    #[track_caller]
    pub fn find_after(&self, cx: &Cx<'_>, index: u64, max: u64) -> Option<(u64, E)> {
        self.search(cx, index.checked_add(1)?, max, read::Wanted { whole: true, mark: None })
    }

    /// Like [`XArray::find`], among the entries that have the mark.
    #[track_caller]
    pub fn find_marked(&self, cx: &Cx<'_>, start: u64, max: u64, mark: Mark) -> Option<(u64, E)> {
        self.search(cx, start, max, read::Wanted { whole: false, mark: Some(mark as usize) })
    }

    #[track_caller]
    fn search(&self, cx: &Cx<'_>, start: u64, max: u64, wanted: read::Wanted) -> Option<(u64, E)> {
        self.core.announce_load(cx, start, max);
        self.core.find(cx, start, max, wanted).map(|(index, word)| (index, E::from_word(word)))
    }

    /// The entries that reach into `[first, last]` in order, each once, at its first index in the range (`xa_for_each_range`).
    /// Each step searches anew, so the array may change between steps.
    pub fn iter<'a>(&'a self, cx: &'a Cx<'_>, first: u64, last: u64) -> Iter<'a, E> {
        Iter { array: self, cx, at: Some((first, false)), last }
    }

    /// Calls `visit` for each entry that [`XArray::iter`] gives.
    #[track_caller]
    pub fn for_each_range(&self, cx: &Cx<'_>, first: u64, last: u64, mut visit: impl FnMut(u64, E)) {
        let mut found = self.find(cx, first, last);
        while let Some((index, entry)) = found {
            visit(index, entry);
            found = self.find_after(cx, index, last);
        }
    }

    /// Sets a mark on the entry at `index`, if there is one (`xa_set_mark`).
    #[track_caller]
    pub fn set_mark(&self, cx: &Cx<'_>, index: u64, mark: Mark) {
        self.change_mark(cx, index, mark, true);
    }

    /// Clears a mark on the entry at `index` (`xa_clear_mark`).
    #[track_caller]
    pub fn clear_mark(&self, cx: &Cx<'_>, index: u64, mark: Mark) {
        self.change_mark(cx, index, mark, false);
    }

    #[track_caller]
    fn change_mark(&self, cx: &Cx<'_>, index: u64, mark: Mark, on: bool) {
        self.announce_single(cx, index);
        let writer = self.core.writer();
        writer.mark(index, mark as usize, on);
        writer.finish(cx);
    }

    /// Whether the entry at `index` has the mark (`xa_get_mark`).
    #[track_caller]
    pub fn get_mark(&self, cx: &Cx<'_>, index: u64, mark: Mark) -> bool {
        self.core.announce_load(cx, index, index);
        self.core.get_mark(cx, index, mark as usize)
    }

    /// Whether any entry has the mark (`xa_marked`); no scheduling point.
    pub fn is_marked(&self, mark: Mark) -> bool {
        self.core.is_marked(mark as usize)
    }

    /// Announces a write at one index: to all indexes of the entry that stands there.
    #[inline]
    #[track_caller]
    fn announce_single(&self, cx: &Cx<'_>, index: u64) {
        if cx.is_native() {
            return;
        }
        // Alone, nobody asks how far the entry reaches.
        let (first, last) = if cx.is_solo() { (index, index) } else { self.core.extent(index) };
        self.core.announce_store(cx, first, last);
    }
}

/// The entries of a range in order; see [`XArray::iter`].
pub struct Iter<'a, E> {
    array: &'a XArray<E>,
    cx: &'a Cx<'a>,
    /// Where to search next, and whether that lies behind an entry that was given.
    at: Option<(u64, bool)>,
    last: u64,
}

impl<E: XaEntry> Iterator for Iter<'_, E> {
    type Item = (u64, E);

    #[track_caller]
    fn next(&mut self) -> Option<(u64, E)> {
        let (index, behind) = self.at?;
        let found = match behind {
            false => self.array.find(self.cx, index, self.last),
            true => self.array.find_after(self.cx, index, self.last),
        };
        self.at = found.map(|(index, _)| (index, true));
        found
    }
}

impl<E> fmt::Debug for Iter<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").field("at", &self.at).field("last", &self.last).finish_non_exhaustive()
    }
}
