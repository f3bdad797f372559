//! Contexts: what tags a cached translation, and how a whole context is flushed in no time.
//!
//! Each combination of tags that was used has a *stamp*, a number that was never given before. Entries carry the stamp of their
//! context; flushing a context gives it a new one, and no entry has it. When the numbers are used up, everything is swept once.

use crate::guest_paging::Pcid;
use crate::walker::Stage2Tag;

/// VPID on Intel, ASID on AMD. 0 is the host's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct TlbTag(pub u16);

/// What a cached translation is tagged with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ContextKey {
    /// Combined mappings and guest paging structures of one PCID.
    Linear(TlbTag, Pcid, Stage2Tag),
    /// Combined mappings of global pages.
    Global(TlbTag, Stage2Tag),
    /// Guest-physical mappings and stage-2 structures. Intel does not tag them with the VPID.
    Physical(Option<TlbTag>, Stage2Tag),
}

impl ContextKey {
    /// The guest's identifier, if it is part of the tag.
    pub const fn tag(&self) -> Option<TlbTag> {
        match *self {
            ContextKey::Linear(tag, ..) | ContextKey::Global(tag, _) => Some(tag),
            ContextKey::Physical(tag, _) => tag,
        }
    }

    /// Stage 2's part of the tag.
    pub const fn stage2(&self) -> Stage2Tag {
        match *self {
            ContextKey::Linear(_, _, stage2) | ContextKey::Global(_, stage2) | ContextKey::Physical(_, stage2) => {
                stage2
            }
        }
    }
}

/// Contexts kept apart at one time; with more, everything is flushed. Real processors have fewer PCIDs than that.
const CONTEXTS_MAX: usize = 256;

#[derive(Clone, Copy)]
pub(super) struct Context {
    pub(super) key: ContextKey,
    /// Of translations.
    pub(super) translations: u32,
    /// Of paging-structure caches.
    pub(super) structures: u32,
    /// There may be fragments of larger guest pages.
    pub(super) is_fractured: bool,
}

/// What a flush takes of a context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Take {
    All,
    Structures,
}

#[derive(Default)]
pub(super) struct Contexts {
    list: Vec<Context>,
    /// The last stamp that was given.
    last: u32,
}

/// There are no more stamps, or too many contexts: everything must be swept.
pub(super) struct Exhausted;

impl Contexts {
    fn stamp(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    fn check_room(&self, stamps: usize) -> Result<(), Exhausted> {
        if u32::MAX - self.last <= stamps as u32 { Err(Exhausted) } else { Ok(()) }
    }

    /// Position of a context, which is made if it is new.
    pub(super) fn intern(&mut self, key: ContextKey) -> Result<usize, Exhausted> {
        if let Some(position) = self.list.iter().position(|context| context.key == key) {
            return Ok(position);
        }
        self.check_room(2)?;
        if self.list.len() == CONTEXTS_MAX {
            return Err(Exhausted);
        }
        let (translations, structures) = (self.stamp(), self.stamp());
        self.list.push(Context { key, translations, structures, is_fractured: false });
        Ok(self.list.len() - 1)
    }

    #[inline]
    pub(super) fn get(&self, position: usize) -> &Context {
        &self.list[position]
    }

    pub(super) fn get_mut(&mut self, position: usize) -> &mut Context {
        &mut self.list[position]
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Flushes the contexts that `choice` names.
    pub(super) fn flush(&mut self, choice: impl Fn(&ContextKey) -> Option<Take>) -> Result<(), Exhausted> {
        self.check_room(2 * self.list.len())?;
        for position in 0..self.list.len() {
            let Some(take) = choice(&self.list[position].key) else { continue };
            let structures = self.stamp();
            self.list[position].structures = structures;
            if take == Take::All {
                let translations = self.stamp();
                let context = &mut self.list[position];
                context.translations = translations;
                context.is_fractured = false;
            }
        }
        Ok(())
    }

    /// Forgets all contexts; stamps start anew. The caller has emptied every cache.
    pub(super) fn restart(&mut self) {
        self.list.clear();
        self.last = 0;
    }

    /// As if nearly all stamps had been given.
    #[cfg(test)]
    pub(super) fn exhaust(&mut self) {
        self.last = u32::MAX - 8;
    }
}
