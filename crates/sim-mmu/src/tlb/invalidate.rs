//! What an invalidation takes: by context, or by address within contexts.

use super::context::{Context, ContextKey, Exhausted, Take};
use super::{PAGE_SHIFT, Tlb};
use crate::addr::Gpa;
use crate::guest_paging::Gva;
use sim_kernel::Cx;
use sim_kernel::sched::Access;

/// What an invalidation by address takes of paging-structure caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Structures {
    /// What the address would use.
    OfAddress,
    /// Everything of the contexts (INVLPG).
    All,
}

/// How much of a guest's page goes with an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// What translates the address (faults).
    Address,
    /// All fragments of its page (instructions).
    GuestPage,
}

/// What a flush takes of a context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Target {
    /// Nothing.
    Keep,
    /// Translations and paging structures.
    Flush,
}

impl Tlb {
    /// Flushes whole contexts. A scheduling point.
    pub(crate) fn flush(&mut self, cx: &Cx<'_>, choice: impl Fn(&ContextKey) -> Target) {
        cx.point(Access::Store, self.object, 0);
        let result = self.contexts.flush(|key| match choice(key) {
            Target::Keep => None,
            Target::Flush => Some(Take::All),
        });
        self.flushed(result);
    }

    fn flushed(&mut self, result: Result<(), Exhausted>) {
        let before = self.loaded.combined;
        match result {
            Ok(()) => self.reload(),
            Err(Exhausted) => self.sweep_all(),
        }
        if self.loaded.combined != before {
            self.acceleration.flush();
        }
    }

    /// Invalidates what translates a gva in the chosen contexts, with all fragments of its guest page. A scheduling point.
    pub(crate) fn flush_address(
        &mut self,
        cx: &Cx<'_>,
        gva: Gva,
        structures: Structures,
        choice: impl Fn(&ContextKey) -> bool,
    ) {
        cx.point(Access::Store, self.object, 0);
        self.remove_gva(gva, structures, choice);
    }

    fn remove_gva(&mut self, gva: Gva, structures: Structures, choice: impl Fn(&ContextKey) -> bool) {
        for position in 0..self.contexts.len() {
            let key = self.contexts.get(position).key;
            if !matches!(key, ContextKey::Physical(..)) && choice(&key) {
                self.remove_gva_of(position, gva, structures, Reach::GuestPage);
            }
        }
        if structures == Structures::All {
            let linear =
                |key: &ContextKey| (matches!(key, ContextKey::Linear(..)) && choice(key)).then_some(Take::Structures);
            let result = self.contexts.flush(linear);
            self.flushed(result);
        }
    }

    /// Removes what translates a gva in one context.
    fn remove_gva_of(&mut self, position: usize, gva: Gva, structures: Structures, reach: Reach) {
        let page = gva.0 >> PAGE_SHIFT;
        let &Context { translations: stamp, structures: of_structures, is_fractured, .. } = self.contexts.get(position);
        let acceleration = &mut self.acceleration;
        if is_fractured && reach == Reach::GuestPage {
            // Fragments may be anywhere; they know their page.
            let is_part = |entry: &super::Entry| entry.stamp == stamp && entry.guest_page_covers(page);
            self.combined.sweep(is_part, |entry| acceleration.remove_entry(entry));
        }
        self.combined.remove_page(page, stamp, |entry| acceleration.remove_entry(entry));
        if structures == Structures::OfAddress {
            self.guest_structures.remove(page, of_structures);
        }
    }

    /// Removes what translates a gva now, before a fill of it.
    pub(crate) fn replace(&mut self, gva: Gva) {
        let acceleration = &mut self.acceleration;
        for stamp in self.loaded.combined {
            self.combined.remove_page(gva.0 >> PAGE_SHIFT, stamp, |entry| acceleration.remove_entry(entry));
        }
    }

    /// What a page fault invalidates: the address in the current context, global entries too, since a stale one would fault for ever. Other
    /// fragments of its page stay: they do not translate it. Part of the fault, no scheduling point.
    pub(crate) fn page_fault(&mut self, gva: Gva) {
        for position in [self.loaded.linear, self.loaded.global] {
            self.remove_gva_of(position, gva, Structures::OfAddress, Reach::Address);
        }
    }

    /// What an EPT violation or a nested page fault invalidates: what translates the gpa, and the gva from which it came.
    pub(crate) fn stage2_fault(&mut self, gpa: Gpa, gva: Gva) {
        let page = gpa.gfn().0;
        self.physical.remove_page(page, self.loaded.physical_mappings, |_| {});
        self.stage2_structures.remove(page, self.loaded.stage2_structures);
        self.page_fault(gva);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{Gfn, Level};
    use crate::guest_paging::Stage1Rights;
    use crate::tlb::TlbConfig;
    use crate::walker::{GuestLeaf, Stage2Leaf, Stage2Rights};
    use sim_kernel::Pfn;
    use sim_kernel::sched::Sim;

    #[test]
    fn stamps_that_are_used_up_are_swept_once() {
        Sim::sequential().solo(|cx| {
            let mut tlb = Tlb::new(cx, TlbConfig::SMALL);
            let rights = Stage2Rights::all();
            let stage2 = Stage2Leaf { pfn: Pfn(7), level: Level::L4K, rights, dirty: true };
            let (level, rights) = (Level::L4K, Stage1Rights::ALL);
            let (gfn, key, dirty, global, private) = (Gfn(3), 0, true, false, false);
            let leaf = GuestLeaf { gfn, level, rights, key, dirty, global, private, stage2 };
            tlb.contexts.exhaust();
            for round in 0..8 {
                tlb.fill(cx, Gva(0x5000), &leaf);
                assert!(tlb.lookup(Gva(0x5000)).is_some(), "round {round}");
                tlb.flush(cx, |_| Target::Flush);
                assert!(tlb.lookup(Gva(0x5000)).is_none(), "round {round}");
            }
        });
    }
}
