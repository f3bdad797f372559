//! The acceleration TLB: a direct-mapped table in front of the architectural one, whose hit is one compare.
//!
//! It exists for speed alone and must not change anything: each entry repeats, for one 4 KiB page, what an entry of the architectural TLB
//! allows in the current context, and goes when that one goes. A missing flush is therefore seen with it exactly as without it.
//!
//! An entry has a tag for reads, writes and fetches (as QEMU's software TLB), each the page's address with a generation in the twelve bits
//! that are free; so one compare checks page, access, privilege and age. There is a generation for each privilege that
//! SMAP distinguishes; changing the privilege selects another. A write has a tag only if D is set at both stages.

use crate::Gva;
use crate::spte::Access;
use sim_kernel::Pfn;

/// Generations fit into the bits below a page's address.
const GENERATIONS: u64 = 1 << 12;
/// One for each [`Privilege`].
const PRIVILEGES: u64 = 3;

/// Which permission rules a generation stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Privilege {
    User = 0,
    Supervisor = 1,
    /// Supervisor with EFLAGS.AC.
    SupervisorAc = 2,
}

#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Slot {
    /// By access: page and generation; 0 never matches.
    tags: [u64; 3],
    /// The frame's address; bit 0 is set for private memory.
    frame: u64,
}

pub(super) struct Acceleration {
    /// Empty until the first fill.
    slots: Vec<Slot>,
    slots_max: usize,
    /// The current privilege's generation.
    generation: u64,
    /// The first of the three current ones.
    first: u64,
    privilege: Privilege,
}

const PRIVATE: u64 = 1;

impl Acceleration {
    /// A table of so many slots, a power of two, or none at all.
    pub(super) fn new(slots: usize) -> Acceleration {
        let privilege = Privilege::Supervisor;
        let mut table = Acceleration { slots: Vec::new(), slots_max: slots, generation: 0, first: 1, privilege };
        table.set_privilege(privilege);
        table
    }

    #[inline]
    fn index(&self, gva: Gva) -> usize {
        (gva.0 >> sim_kernel::PAGE_SHIFT) as usize & self.slots.len().wrapping_sub(1)
    }

    /// The frame for an access, and whether it is private memory.
    #[inline(always)]
    pub(super) fn lookup(&self, gva: Gva, access: Access) -> Option<(Pfn, bool)> {
        let slot = self.slots.get(self.index(gva))?;
        if slot.tags[access as usize] == gva.page().0 | self.generation {
            return Some((Pfn(slot.frame >> sim_kernel::PAGE_SHIFT), slot.frame & PRIVATE != 0));
        }
        None
    }

    /// Repeats what the architectural TLB allows for a page: `allowed` by access.
    #[inline]
    pub(super) fn fill(&mut self, gva: Gva, pfn: Pfn, private: bool, allowed: [bool; 3]) {
        if self.slots.is_empty() {
            if self.slots_max == 0 {
                return;
            }
            self.slots = vec![Slot::default(); self.slots_max];
        }
        let tag = gva.page().0 | self.generation;
        let index = self.index(gva);
        self.slots[index] = Slot {
            tags: allowed.map(|allowed| if allowed { tag } else { 0 }),
            frame: pfn.0 << sim_kernel::PAGE_SHIFT | if private { PRIVATE } else { 0 },
        };
    }

    /// Whether there is a table.
    pub(super) fn is_on(&self) -> bool {
        self.slots_max != 0
    }

    /// The entry for a page goes.
    #[inline]
    pub(super) fn remove(&mut self, gva: Gva) {
        let index = self.index(gva);
        if let Some(slot) = self.slots.get_mut(index)
            && slot.tags.iter().any(|tag| tag & !(GENERATIONS - 1) == gva.page().0)
        {
            *slot = Slot::default();
        }
    }

    /// All entries go, of all privileges.
    #[inline]
    pub(super) fn flush(&mut self) {
        self.first += PRIVILEGES;
        if self.first + PRIVILEGES > GENERATIONS {
            self.slots.fill(Slot::default());
            self.first = 1;
        }
        self.set_privilege(self.privilege);
    }

    /// Selects the generation of a privilege; its entries are as they were.
    #[inline]
    pub(super) fn set_privilege(&mut self, privilege: Privilege) {
        self.privilege = privilege;
        self.generation = self.first + privilege as u64;
    }

    /// The entries that match now, by access.
    pub(super) fn current(&self) -> impl Iterator<Item = (Gva, Access, Pfn, bool)> + '_ {
        let accesses = [Access::Read, Access::Write, Access::Exec];
        self.slots.iter().flat_map(move |slot| {
            let tags = slot.tags.into_iter().zip(accesses);
            let valid = tags.filter(|(tag, _)| tag & (GENERATIONS - 1) == self.generation && *tag != 0);
            let frame = slot.frame;
            valid.map(move |(tag, access)| {
                let page = Gva(tag & !(GENERATIONS - 1));
                (page, access, Pfn(frame >> sim_kernel::PAGE_SHIFT), frame & PRIVATE != 0)
            })
        })
    }
}
