//! Addresses, numbers and operands as the module's interface has them.

use sim_kernel::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use sim_mmu::{Gpa, Level};

sim_kernel::address_type! {
    /// Host physical address as an operand: the KeyID may stand in its upper bits.
    pub struct Hpa;
}

impl Hpa {
    /// The operand of a leaf that needs no page: all ones (`NULL_PA`).
    pub const NULL: Hpa = Hpa(u64::MAX);

    /// The address of a frame, with KeyID 0.
    pub const fn of(pfn: Pfn) -> Hpa {
        Hpa(pfn.0 << PAGE_SHIFT)
    }

    /// The address with a KeyID, on a machine where KeyIDs begin at bit `shift`.
    pub const fn with_keyid(self, hkid: Hkid, shift: u32) -> Hpa {
        Hpa(self.0 | (hkid.0 as u64) << shift)
    }

    /// Whether a page of 4 KiB starts here.
    pub const fn is_page_aligned(self) -> bool {
        self.0 & (PAGE_SIZE - 1) == 0
    }
}

/// A KeyID. Those of the private range are HKIDs; 0 and the MKTME ones are shared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Hkid(pub u16);

impl Hkid {
    /// The KeyID of ordinary host accesses.
    pub const HOST: Hkid = Hkid(0);
}

/// A logical processor, by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Lp(pub u32);

/// Which key memory was written with: no two keys that were ever configured are the same one, also under one HKID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyNumber(pub u32);

/// Size of a physical page, by the numbers that PAMT operands have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum PageSize {
    /// `PT_4KB`.
    Size4K = 0,
    /// `PT_2MB`.
    Size2M = 1,
    /// `PT_1GB`.
    Size1G = 2,
}

impl PageSize {
    /// All sizes, ascending.
    pub const ALL: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];

    /// Frames of a page.
    pub const fn pages(self) -> u64 {
        1 << (9 * self as u32)
    }

    /// Of a leaf of this level; `None` where there are no leaves.
    pub const fn of_level(level: Level) -> Option<PageSize> {
        match level {
            Level::L4K => Some(PageSize::Size4K),
            Level::L2M => Some(PageSize::Size2M),
            Level::L1G => Some(PageSize::Size1G),
            Level::L512G | Level::L256T => None,
        }
    }

    /// The page of this size that contains the frame.
    pub const fn base(self, pfn: Pfn) -> Pfn {
        Pfn(pfn.0 & !(self.pages() - 1))
    }
}

/// The module's number of a level: 0 for 4 KiB, one less than KVM's.
pub const fn level_number(level: Level) -> u8 {
    level.number() - 1
}

/// Page info, the operand in RCX of memory leaves: an address in the TD, and a level in bits 2:0.
///
/// ```
/// use sim_coco::tdx::SeptInfo;
/// use sim_mmu::{Gpa, Level};
/// let info = SeptInfo::new(Gpa(0x20_0000), Level::L2M);
/// assert_eq!(info.0, 0x20_0001);
/// assert_eq!((info.gpa(), info.level()), (Gpa(0x20_0000), Some(Level::L2M)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SeptInfo(pub u64);

impl SeptInfo {
    /// Bits that must be 0.
    const RESERVED: u64 = 0xfff0_0000_0000_0ff8;

    /// An address and the level of its entry.
    pub const fn new(gpa: Gpa, level: Level) -> SeptInfo {
        SeptInfo(gpa.0 & !(PAGE_SIZE - 1) | level_number(level) as u64)
    }

    /// Of a page of 4 KiB.
    pub const fn page(gpa: Gpa) -> SeptInfo {
        SeptInfo::new(gpa, Level::L4K)
    }

    /// Bits 51:12.
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 & 0x000f_ffff_ffff_f000)
    }

    /// The level, if it is one.
    pub const fn level(self) -> Option<Level> {
        Level::from_number((self.0 & 7) as u8 + 1)
    }

    /// Whether all reserved bits are 0.
    pub const fn is_clean(self) -> bool {
        self.0 & Self::RESERVED == 0
    }
}

/// Address width of a TD (GPAW): where the shared bit is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gpaw {
    /// 48 bits, shared bit 47.
    Bits48,
    /// 52 bits, shared bit 51; needs Secure EPT of five levels.
    Bits52,
}

impl Gpaw {
    /// Number of the shared bit.
    pub const fn shared_bit(self) -> u32 {
        match self {
            Gpaw::Bits48 => 47,
            Gpaw::Bits52 => 51,
        }
    }

    /// Whether the address has the shared bit.
    pub const fn is_shared(self, gpa: Gpa) -> bool {
        gpa.0 >> self.shared_bit() & 1 != 0
    }

    /// Whether the address is private and inside the TD's address space.
    pub const fn is_private(self, gpa: Gpa) -> bool {
        gpa.0 >> self.shared_bit() == 0
    }

    /// The address with the shared bit.
    pub const fn shared(self, gpa: Gpa) -> Gpa {
        Gpa(gpa.0 | 1 << self.shared_bit())
    }
}
