//! The words in an xarray's slots and what they mean (the entry encodings of `include/linux/xarray.h`).
//!
//! | word | meaning |
//! |---|---|
//! | 0 | NULL: nothing there |
//! | low bits 00 | a pointer; here a handle |
//! | low bit 1 | a value, shifted left by one |
//! | low bits 10 | internal: a sibling, RETRY, the reserved entry or a node |
//!
//! Simplified: nodes are named by their number in the [`NodeCache`](super::NodeCache) instead of their address, and internal
//! entries that stand for errors do not exist, because errors are `Result`s.

/// Nothing is stored.
pub(super) const NULL: u64 = 0;
/// Left in a node that was unlinked: a reader that meets it starts again at the head.
pub(super) const RETRY: u64 = internal(256);
/// The reserved (zero) entry: a slot that exists and reads as NULL.
pub(super) const RESERVED: u64 = internal(257);
/// Internal numbers from here on are nodes; the kernel tells node addresses from small numbers by the same limit.
const NODE_FIRST: u64 = 4097;

const fn internal(n: u64) -> u64 {
    n << 2 | 2
}

const fn is_internal(word: u64) -> bool {
    word & 3 == 2
}

/// The entry that says "what is stored here stands in slot `n` of this node".
pub(super) const fn sibling(n: usize) -> u64 {
    internal(n as u64)
}

/// The slot that a sibling entry points to.
pub(super) const fn as_sibling(word: u64) -> Option<usize> {
    // Slot 63 can have no siblings behind it, so 62 is the largest.
    if is_internal(word) && word < internal(63) { Some((word >> 2) as usize) } else { None }
}

/// The entry that refers to a node.
pub(super) const fn node_ref(id: u32) -> u64 {
    internal(id as u64 + NODE_FIRST)
}

/// The node that an entry refers to.
pub(super) const fn as_node(word: u64) -> Option<u32> {
    if is_internal(word) && word >= internal(NODE_FIRST) { Some(((word >> 2) - NODE_FIRST) as u32) } else { None }
}

/// Whether the word is a value entry; nodes count these.
pub(super) const fn is_value(word: u64) -> bool {
    word & 1 == 1
}

/// The reserved entry reads as NULL.
pub(super) const fn visible(word: u64) -> u64 {
    if word == RESERVED { NULL } else { word }
}

/// What an [`XArray`](super::XArray) can hold: anything that fits in a word as a pointer (low bits 00, not zero) or a value
/// (low bit 1).
pub trait XaEntry: Copy {
    /// The word that is stored.
    fn to_word(self) -> u64;
    /// The entry that a stored word stands for.
    fn from_word(word: u64) -> Self;
}

/// The word of an entry that the caller wants to store; `None` is NULL.
///
/// # Panics
/// If the entry is neither a pointer nor a value.
pub(super) fn word_of<E: XaEntry>(entry: Option<E>) -> u64 {
    let Some(entry) = entry else { return NULL };
    let word = entry.to_word();
    assert!(word != NULL && !is_internal(word), "{word:#x} is neither a pointer nor a value entry");
    word
}

/// The entry that a word stands for; NULL and reserved are `None`.
pub(super) fn entry_of<E: XaEntry>(word: u64) -> Option<E> {
    let word = visible(word);
    if word == NULL { None } else { Some(E::from_word(word)) }
}

/// An integer of up to 63 bits (`xa_mk_value`).
///
/// ```
/// use sim_kernel::xarray::{Value, XaEntry};
/// assert_eq!(Value(8).to_word(), 0x11);
/// assert_eq!(Value::from_word(0x11), Value(8));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Value(pub u64);

impl XaEntry for Value {
    #[inline]
    fn to_word(self) -> u64 {
        assert!(self.0 < 1 << 63, "a value entry has 63 bits");
        self.0 << 1 | 1
    }
    #[inline]
    fn from_word(word: u64) -> Value {
        Value(word >> 1)
    }
}

/// The number of an object in some table: what the kernel stores as a pointer.
///
/// ```
/// use sim_kernel::xarray::{Handle, XaEntry};
/// assert_eq!(Handle(0).to_word(), 4, "number 0 is a handle like any other, and not NULL");
/// assert_eq!(Handle::from_word(Handle(7).to_word()), Handle(7));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Handle(pub u32);

impl XaEntry for Handle {
    #[inline]
    fn to_word(self) -> u64 {
        (u64::from(self.0) + 1) << 2
    }
    #[inline]
    fn from_word(word: u64) -> Handle {
        Handle(((word >> 2) - 1) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_kernels() {
        assert_eq!((RETRY, RESERVED), (0x402, 0x406));
        assert_eq!((sibling(0), sibling(62)), (2, 62 << 2 | 2));
        assert!(node_ref(0) > 4096);
        assert_eq!(Value(8).to_word(), 0x11);
    }

    #[test]
    fn every_word_has_one_meaning() {
        let samples = [NULL, RETRY, RESERVED, sibling(0), sibling(62), node_ref(0), node_ref(u32::MAX)];
        for word in samples.into_iter().chain([Value(0).to_word(), Handle(0).to_word(), Handle(u32::MAX).to_word()]) {
            let meanings = [
                word == NULL,
                word == RETRY,
                word == RESERVED,
                as_sibling(word).is_some(),
                as_node(word).is_some(),
                is_value(word),
                word != NULL && word & 3 == 0,
            ];
            assert_eq!(meanings.iter().filter(|&&m| m).count(), 1, "{word:#x}: {meanings:?}");
        }
        assert_eq!(as_node(node_ref(u32::MAX)), Some(u32::MAX));
        assert_eq!(as_sibling(sibling(62)), Some(62));
    }

    #[test]
    #[should_panic(expected = "neither a pointer nor a value")]
    fn internal_words_cannot_be_stored() {
        #[derive(Clone, Copy)]
        struct Bad;
        impl XaEntry for Bad {
            fn to_word(self) -> u64 {
                RETRY
            }
            fn from_word(_: u64) -> Bad {
                Bad
            }
        }
        word_of(Some(Bad));
    }
}
