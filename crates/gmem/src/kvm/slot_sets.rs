//! The two sets of slots of every address space, and which of them is active (`kvm->memslots[]`).

use super::memslots::{Memslot, MemslotSet};
use super::uapi::KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS;
use sim_kernel::Cx;
use sim_kernel::sync::{Atomic64, Until};
use sim_mmu::Gfn;
use std::sync::Arc;

/// Address spaces that exist at most: normal and SMM.
pub const KVM_MAX_ADDRESS_SPACES: usize = 2;

/// Which set is active when so many were published.
#[inline]
const fn set_of(published: u64) -> usize {
    published as usize & 1
}

#[derive(Debug)]
struct AddressSpace {
    /// How often another set was published; readers use the one with the number of its lowest bit. Written under `slots_lock` and `mn_invalidate_lock`, read inside SRCU.
    active: Atomic64,
    /// Hardly ever contended: the inactive set is written, which nobody reads, and the generation of the active one.
    sets: [parking_lot::RwLock<MemslotSet>; 2],
}

/// All slots of a VM.
#[derive(Debug)]
pub struct SlotSets {
    spaces: [AddressSpace; KVM_MAX_ADDRESS_SPACES],
}

impl SlotSets {
    /// No slots; the generation of an address space starts at its number.
    pub fn new(cx: &Cx<'_>) -> SlotSets {
        let space = |as_id: u64| AddressSpace {
            active: Atomic64::new(cx, "kvm->memslots", 0),
            sets: [0, 1].map(|_| parking_lot::RwLock::new(MemslotSet::new(as_id))),
        };
        SlotSets { spaces: [space(0), space(1)] }
    }

    /// Looks at the active set as a reader inside SRCU does.
    #[track_caller]
    pub fn read<R>(&self, cx: &Cx<'_>, as_id: u32, look: impl FnOnce(&MemslotSet) -> R) -> R {
        let space = &self.spaces[as_id as usize];
        look(&space.sets[set_of(space.active.load(cx))].read())
    }

    /// `gfn_to_memslot`, inside SRCU.
    #[track_caller]
    pub fn gfn_to_memslot(&self, cx: &Cx<'_>, as_id: u32, gfn: Gfn) -> Option<Arc<Memslot>> {
        self.read(cx, as_id, |set| set.by_gfn(gfn).cloned())
    }

    /// Looks at the active set without a scheduling point: under `slots_lock`, and for checkers.
    pub fn peek_active<R>(&self, as_id: u32, look: impl FnOnce(&MemslotSet) -> R) -> R {
        let space = &self.spaces[as_id as usize];
        look(&space.sets[set_of(space.active.peek())].read())
    }

    /// Looks at the inactive set without a scheduling point, for checkers.
    pub fn peek_inactive<R>(&self, as_id: u32, look: impl FnOnce(&MemslotSet) -> R) -> R {
        let space = &self.spaces[as_id as usize];
        look(&space.sets[1 - set_of(space.active.peek())].read())
    }

    /// Changes the inactive set; the caller holds `slots_lock`.
    pub fn inactive<R>(&self, as_id: u16, change: impl FnOnce(&mut MemslotSet) -> R) -> R {
        let space = &self.spaces[as_id as usize];
        let mut set = space.sets[1 - set_of(space.active.peek())].try_write().expect("nobody uses the inactive set");
        change(&mut set)
    }

    /// `rcu_assign_pointer(kvm->memslots[as_id], …)`: the inactive set becomes the active one.
    #[track_caller]
    pub fn publish(&self, cx: &Cx<'_>, as_id: u16) {
        self.spaces[as_id as usize].active.rmw(cx, |published| published + 1);
    }

    /// Whether the frame's slot is on its way out or somewhere else, so that a fault can only try again until other slots are published.
    pub fn is_invalid(&self, as_id: u32, gfn: Gfn) -> bool {
        self.peek_active(as_id, |set| set.by_gfn(gfn).is_some_and(|slot| slot.is_invalid()))
    }

    /// What a fault's retries come to while [`is_invalid`](Self::is_invalid) holds: the task is not runnable until other slots are published.
    /// The caller is outside SRCU, as whoever publishes waits for its readers.
    pub fn wait_while_invalid(&self, cx: &Cx<'_>, as_id: u32, gfn: Gfn) {
        let active = &self.spaces[as_id as usize].active;
        let published = active.peek();
        if self.is_invalid(as_id, gfn) {
            active.at(cx).wait_until(Until::NotEqual(published));
        }
    }

    /// Frees all slots, when nobody can look any more.
    pub(crate) fn clear(&self) {
        for set in self.spaces.iter().flat_map(|space| &space.sets) {
            let mut set = set.write();
            *set = MemslotSet::new(set.generation);
        }
    }

    /// Stores the final generation of the set that was just published.
    #[track_caller]
    pub fn set_generation(&self, cx: &Cx<'_>, as_id: u16, generation: u64) {
        assert_eq!(generation & KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS, 0, "INV-309: generation overflow");
        let space = &self.spaces[as_id as usize];
        space.active.at(cx).rmw(|active| active);
        space.sets[set_of(space.active.peek())].write().generation = generation;
    }
}
