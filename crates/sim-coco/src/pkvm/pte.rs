//! Stage-2 descriptors of Arm's VMSAv8-64 with 4 KiB granules, as KVM fills them, and what KVM keeps in invalid ones (`kvm_pgtable.h`,
//! `hyp/pgtable.c`).
//!
//! Simplified: memory attributes are of two kinds, memory and device; there is no contiguous bit and no hardware management of access flag and
//! dirty state, so that a clear access flag always faults.

use super::types::{Handle, Owner, Pa, PageState, Prot};
use sim_kernel::{PAGE_SHIFT, Pfn};
use sim_mmu::Gfn;
use std::fmt;

const VALID: u64 = 1 << 0;
/// At level 3 a page, above it a table; clear above level 3, a block.
const TABLE: u64 = 1 << 1;
const MEMATTR_SHIFT: u32 = 2;
const MEMATTR_NORMAL: u64 = 0xf;
const MEMATTR_DEVICE: u64 = 0x1;
const S2AP_R: u64 = 1 << 6;
const S2AP_W: u64 = 1 << 7;
const SH_INNER: u64 = 3 << 8;
const AF: u64 = 1 << 10;
const ADDRESS: u64 = ((1 << 48) - 1) & !0xfff;
const XN: u64 = 1 << 54;
/// The two software bits in which a guest's descriptor keeps the state of its page.
const STATE_SHIFT: u32 = 55;
/// Bits that no processor looks at (`KVM_PTE_LEAF_ATTR_HI_SW`).
const SOFTWARE: u64 = 0xf << STATE_SHIFT;

/// Type of an invalid descriptor, bits 63:60.
const TYPE_SHIFT: u32 = 60;
const TYPE_LOCKED: u64 = 1;
const TYPE_DONATION: u64 = 2;
const TYPE_POISONED: u64 = 3;
const OWNER_SHIFT: u32 = 1;
const EXTRA_SHIFT: u32 = 4;
const GFN_SHIFT: u32 = 16;
const GFN_BITS: u32 = 40;

/// Level of a translation table as Arm numbers them: 3 has pages, 2 and 1 may have blocks of 2 MiB and 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct S2Level(pub u8);

impl S2Level {
    /// The level with pages.
    pub const LAST: S2Level = S2Level(3);
    /// The level with blocks of 2 MiB.
    pub const BLOCK: S2Level = S2Level(2);

    /// 4 KiB pages that one entry covers (`kvm_granule_size`).
    #[inline]
    pub const fn pages(self) -> u64 {
        1 << (9 * (3 - self.0))
    }

    /// The next level.
    #[inline]
    pub(super) const fn down(self) -> S2Level {
        S2Level(self.0 + 1)
    }

    /// Whether an entry may map memory (`kvm_is_block_size_supported`).
    #[inline]
    pub(super) const fn supports_leaf(self) -> bool {
        self.0 >= 1
    }
}

/// A 64-bit descriptor (`kvm_pte_t`).
///
/// ```
/// use sim_coco::pkvm::{PageState, Prot, Pte, S2Level};
/// use sim_kernel::Pfn;
/// let pte = Pte::leaf(Pfn(5), S2Level::LAST, Prot::RWX, PageState::SharedBorrowed);
/// assert!(pte.is_leaf(S2Level::LAST) && !Pte::LOCKED.is_valid());
/// assert_eq!((pte.pfn(), pte.prot(), pte.state()), (Pfn(5), Prot::RWX, PageState::SharedBorrowed));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pte(pub u64);

impl Pte {
    /// Nothing, and nothing said.
    pub const NONE: Pte = Pte(0);
    /// Break-before-make is going on (`KVM_INVALID_PTE_LOCKED`).
    pub const LOCKED: Pte = Pte(TYPE_LOCKED << TYPE_SHIFT);
    /// A page of a guest that was taken by force.
    pub const POISONED: Pte = Pte(TYPE_POISONED << TYPE_SHIFT);

    /// A page, or a block, of memory.
    pub const fn leaf(pfn: Pfn, level: S2Level, prot: Prot, state: PageState) -> Pte {
        Pte::leaf_of(pfn, level, prot, state, MEMATTR_NORMAL)
    }

    /// A page, or a block, of devices.
    pub const fn device(pfn: Pfn, level: S2Level) -> Pte {
        Pte::leaf_of(pfn, level, Prot::RW, PageState::Owned, MEMATTR_DEVICE)
    }

    const fn leaf_of(pfn: Pfn, level: S2Level, prot: Prot, state: PageState, attributes: u64) -> Pte {
        let kind = if level.0 == S2Level::LAST.0 { VALID | TABLE } else { VALID };
        let address = (pfn.0 << PAGE_SHIFT) & ADDRESS;
        Pte(kind | attributes << MEMATTR_SHIFT | SH_INNER | AF | address | (state as u64) << STATE_SHIFT | XN)
            .with_prot(prot)
    }

    /// A table of the next level.
    pub const fn table(pfn: Pfn) -> Pte {
        Pte((pfn.0 << PAGE_SHIFT) & ADDRESS | VALID | TABLE)
    }

    /// What the host's descriptor says of a page that it does not have.
    pub const fn donation(owner: Owner) -> Pte {
        let extra = match owner {
            Owner::Hyp => 0,
            Owner::Guest(handle, gfn) => handle.0 as u64 | (gfn.0 & ((1 << GFN_BITS) - 1)) << GFN_SHIFT,
        };
        Pte(TYPE_DONATION << TYPE_SHIFT | extra << EXTRA_SHIFT | owner.id() << OWNER_SHIFT)
    }

    /// Whether the processor uses it.
    #[inline]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// Whether it is a table.
    #[inline]
    pub const fn is_table(self, level: S2Level) -> bool {
        self.0 & (VALID | TABLE) == VALID | TABLE && level.0 < S2Level::LAST.0
    }

    /// Whether it maps memory.
    #[inline]
    pub const fn is_leaf(self, level: S2Level) -> bool {
        self.is_valid() && !self.is_table(level)
    }

    /// Whether it counts as a reference to the table that it is in (`stage2_pte_is_counted`).
    #[inline]
    pub const fn is_counted(self) -> bool {
        self.0 != 0
    }

    /// The frame that it names.
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn((self.0 & ADDRESS) >> PAGE_SHIFT)
    }

    /// The address of what it names.
    #[inline]
    pub const fn pa(self) -> Pa {
        Pa(self.0 & ADDRESS)
    }

    /// What it permits.
    #[inline]
    pub const fn prot(self) -> Prot {
        let mut prot = Prot::empty();
        if self.0 & S2AP_R != 0 {
            prot = prot.union(Prot::R);
        }
        if self.0 & S2AP_W != 0 {
            prot = prot.union(Prot::W);
        }
        if self.0 & XN == 0 {
            prot = prot.union(Prot::X);
        }
        prot
    }

    /// The same with more permissions.
    #[must_use]
    pub const fn with_prot(self, prot: Prot) -> Pte {
        let mut bits = self.0;
        if prot.contains(Prot::R) {
            bits |= S2AP_R;
        }
        if prot.contains(Prot::W) {
            bits |= S2AP_W;
        }
        if prot.contains(Prot::X) {
            bits &= !XN;
        }
        Pte(bits)
    }

    /// The same, not writable.
    #[must_use]
    pub const fn write_protected(self) -> Pte {
        Pte(self.0 & !S2AP_W)
    }

    /// Whether the access flag is set.
    #[inline]
    pub const fn is_young(self) -> bool {
        self.0 & AF != 0
    }

    /// The same with this access flag.
    #[must_use]
    pub const fn with_young(self, young: bool) -> Pte {
        Pte(if young { self.0 | AF } else { self.0 & !AF })
    }

    /// State of the page for the guest whose descriptor this is (`guest_get_page_state`).
    #[inline]
    pub const fn state(self) -> PageState {
        if self.is_valid() {
            PageState::from_bits(self.0 >> STATE_SHIFT)
        } else if self.0 >> TYPE_SHIFT == TYPE_POISONED {
            PageState::Poison
        } else {
            PageState::NoPage
        }
    }

    /// The same with this state.
    #[must_use]
    pub const fn with_state(self, state: PageState) -> Pte {
        Pte(self.0 & !(3 << STATE_SHIFT) | (state as u64 & 3) << STATE_SHIFT)
    }

    /// Whether a processor cannot tell this descriptor from that.
    #[inline]
    pub(super) const fn differs_in_software_bits_only(self, that: Pte) -> bool {
        (self.0 ^ that.0) & !SOFTWARE == 0
    }

    /// Who has the page, if this is the annotation of a donation.
    pub const fn owner(self) -> Option<Owner> {
        if self.is_valid() || self.0 >> TYPE_SHIFT != TYPE_DONATION {
            return None;
        }
        let extra = (self.0 & ((1 << TYPE_SHIFT) - 1)) >> EXTRA_SHIFT;
        match self.0 >> OWNER_SHIFT & 7 {
            1 => Some(Owner::Hyp),
            2 => Some(Owner::Guest(Handle(extra as u16), Gfn(extra >> GFN_SHIFT))),
            _ => None,
        }
    }
}

impl fmt::Debug for Pte {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pte({:#x})", self.0)
    }
}
