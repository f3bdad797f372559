//! Entry formats of the second translation stage as data: which bit means what (`shadow_*_mask` of
//! `arch/x86/kvm/mmu/spte.c`).
//!
//! As in KVM one code serves both vendors: the masks are filled in once per VM ([`SpteMasks::new`]) and read everywhere, so
//! nothing is dispatched in a walk. Simplified: no MBEC, no GMET, no host C-bit; the L1TF displacement of MMIO addresses is off.

mod ept;
mod npt;

use crate::addr::Gfn;
use sim_kernel::PAGE_SHIFT;

/// Which vendor's format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage2Kind {
    /// AMD nested page tables.
    Npt,
    /// Intel extended page tables.
    Ept,
}

/// Address bits of an entry, 51:12.
pub(crate) const SPTE_BASE_ADDR_MASK: u64 = ((1 << 52) - 1) & !((1 << PAGE_SHIFT) - 1);
/// `PT_WRITABLE_MASK`: bit 1 in both formats.
pub(crate) const PT_WRITABLE_MASK: u64 = 1 << 1;
/// `PT_PAGE_SIZE_MASK`: bit 7 in both formats.
pub(crate) const PT_PAGE_SIZE_MASK: u64 = 1 << 7;
/// `SPTE_MMU_PRESENT_MASK`: ignored by hardware.
pub(crate) const SPTE_MMU_PRESENT_MASK: u64 = 1 << 11;
/// `SHADOW_NONPRESENT_VALUE`: not zero, so that an EPT entry suppresses #VE.
pub(crate) const SHADOW_NONPRESENT_VALUE: u64 = 1 << 63;
/// `SHADOW_ACC_TRACK_SAVED_BITS_SHIFT`.
pub(crate) const ACC_SAVED_SHIFT: u32 = 52;
/// `FROZEN_SPTE`.
pub(crate) const FROZEN_SPTE: u64 = SHADOW_NONPRESENT_VALUE | 0x1a0;

/// The bits of one VM's entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpteMasks {
    /// The format.
    pub kind: Stage2Kind,
    /// Set in every leaf: present, readable, executable, memory type.
    pub leaf: u64,
    /// A whole non-leaf entry without its address.
    pub nonleaf: u64,
    /// The hardware takes an entry for present when one of these is set.
    pub hw_present: u64,
    /// Accessed.
    pub accessed: u64,
    /// Dirty.
    pub dirty: u64,
    /// `shadow_host_writable_mask` (H): the host's mapping is writable.
    pub host_writable: u64,
    /// `shadow_mmu_writable_mask` (M): W may be set without asking anybody.
    pub mmu_writable: u64,
    /// Reading needs these set.
    pub read: u64,
    /// Execution needs these set.
    pub exec: u64,
    /// The right of user-mode addresses to execute, which mirrors `exec`.
    pub user_exec: u64,
    /// Execution needs these clear.
    pub nx: u64,
    /// Says that the hardware sets no A and D bits in the entry (`SPTE_TDP_AD_DISABLED`); 0 where it does.
    pub ad_disabled: u64,
    /// `shadow_acc_track_mask`: what an entry loses that waits for its next access; 0 where the hardware sets A bits.
    pub acc_track: u64,
    /// Of these, the ones that are kept 52 bits above, to be given back.
    pub acc_saved: u64,
    /// Bits that make a present entry a reserved-bit fault (NPT) or a misconfiguration (EPT).
    pub reserved: u64,
    /// What an MMIO entry has in the bits of `mmio_mask`.
    pub mmio_value: u64,
    /// The bits that tell an MMIO entry; 0 while MMIO caching is off.
    pub mmio_mask: u64,
    /// Access bits that an MMIO entry carries.
    pub mmio_access: u64,
}

impl SpteMasks {
    /// The bits for a host whose first impossible frame number is `max_gfn` (2^(MAXPHYADDR-12)).
    ///
    /// # Panics
    /// If `max_gfn` is no power of two up to 2^40.
    pub fn new(kind: Stage2Kind, max_gfn: Gfn, mmio_caching: bool) -> SpteMasks {
        assert!(max_gfn.0.is_power_of_two() && max_gfn.0 <= 1 << 40, "MAXPHYADDR of {max_gfn:?}");
        let reserved = SPTE_BASE_ADDR_MASK & !((max_gfn.0 << PAGE_SHIFT) - 1);
        let mut masks = match kind {
            Stage2Kind::Npt => npt::masks(reserved),
            Stage2Kind::Ept => ept::masks(reserved),
        };
        // Without a reserved address bit no NPT value can be told from a mapping.
        if !mmio_caching || (kind == Stage2Kind::Npt && reserved == 0) {
            masks.mmio_mask = 0;
        }
        masks
    }

    /// The same where the hardware sets no A and D bits.
    ///
    /// # Panics
    /// On nested page tables, which always have them.
    #[must_use]
    pub fn without_accessed_dirty(self) -> SpteMasks {
        assert_eq!(self.kind, Stage2Kind::Ept, "nested page tables have A and D bits");
        ept::without_accessed_dirty(self)
    }

    /// Whether MMIO entries exist.
    #[inline]
    pub const fn mmio_caching(&self) -> bool {
        self.mmio_mask != 0
    }

    /// Whether the hardware refuses a present entry as malformed.
    #[inline]
    pub const fn is_malformed(&self, entry: u64) -> bool {
        entry & self.hw_present != 0
            && match self.kind {
                Stage2Kind::Npt => entry & self.reserved != 0,
                // Writable but not readable is the misconfiguration that KVM uses on purpose.
                Stage2Kind::Ept => entry & self.reserved != 0 || entry & 0b011 == 0b010,
            }
    }
}
