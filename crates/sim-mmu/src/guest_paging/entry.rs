//! Guest page-table entries as data: which bits are reserved at which level, what an entry grants, where C-bit and shared bit lie.
//!
//! The reserved bits of the long-mode format are computed here once, for guest tables and for nested (NPT) tables, which have
//! the same format with the host's parameters.

use crate::addr::{Gfn, Level};

/// Bits of an entry of long mode.
pub mod gpte {
    /// P.
    pub const PRESENT: u64 = 1 << 0;
    /// R/W.
    pub const WRITABLE: u64 = 1 << 1;
    /// U/S.
    pub const USER: u64 = 1 << 2;
    /// A.
    pub const ACCESSED: u64 = 1 << 5;
    /// D, in a leaf.
    pub const DIRTY: u64 = 1 << 6;
    /// PS, above the lowest level.
    pub const PAGE_SIZE: u64 = 1 << 7;
    /// G, in a leaf.
    pub const GLOBAL: u64 = 1 << 8;
    /// Lowest bit of the protection key of a leaf.
    pub const PKEY_SHIFT: u32 = 59;
    /// XD or NX.
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// Where a guest's entries say whether memory is private.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Encryption {
    /// Nowhere.
    None,
    /// SEV: this bit of a leaf, set for private memory. It is no part of the address.
    CBit(u8),
    /// TDX: the highest bit of the guest physical address, set for *shared* memory. It is part of the address.
    SharedBit(u8),
}

/// The entry format that CPUID announces to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GuestFormat {
    /// MAXPHYADDR, less what encryption takes (AMD); GPAW of a TD.
    pub maxphyaddr: u8,
    /// 1 GiB pages.
    pub has_1g_pages: bool,
    /// Bit 8 of the two highest levels is reserved (AMD) instead of ignored (Intel).
    pub upper_global_reserved: bool,
    /// C-bit or shared bit.
    pub encryption: Encryption,
}

/// What all entries of a walk grant together: R/W and U/S, both ANDed, and "may be executed".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stage1Rights(pub(crate) u8);

impl Stage1Rights {
    /// Before the first entry, and without paging.
    pub const ALL: Stage1Rights = Stage1Rights(0b111);
    pub(crate) const WRITE: u8 = 1;
    pub(crate) const USER: u8 = 2;
    pub(crate) const EXEC: u8 = 4;

    /// What one entry grants.
    #[inline]
    pub const fn of(entry: u64) -> Stage1Rights {
        Stage1Rights(((entry >> 1) & 0b11) as u8 | (((!entry) >> 63) << 2) as u8)
    }

    /// What both grant.
    #[inline]
    #[must_use]
    pub const fn and(self, other: Stage1Rights) -> Stage1Rights {
        Stage1Rights(self.0 & other.0)
    }

    /// Every entry had R/W.
    #[inline]
    pub const fn is_writable(self) -> bool {
        self.0 & Self::WRITE != 0
    }

    /// Every entry had U/S: the address is a user-mode address.
    #[inline]
    pub const fn is_user(self) -> bool {
        self.0 & Self::USER != 0
    }

    /// No entry had NX.
    #[inline]
    pub const fn is_executable(self) -> bool {
        self.0 & Self::EXEC != 0
    }
}

/// Bits `low..high` of a word.
pub(crate) const fn bits(low: u32, high: u32) -> u64 {
    if low >= high { 0 } else { (u64::MAX >> (64 - (high - low))) << low }
}

/// Reserved bits of present entries of the long-mode format, by level and by whether bit 7 is set. Level 0 does not exist.
pub(crate) fn long_mode_reserved(
    maxphyaddr: u8,
    has_1g_pages: bool,
    upper_global_reserved: bool,
    no_execute: bool,
    ignored: u64,
) -> [[u64; 2]; 6] {
    let always = (bits(u32::from(maxphyaddr), 52) | if no_execute { 0 } else { gpte::NO_EXECUTE }) & !ignored;
    let upper = always | if upper_global_reserved { gpte::GLOBAL } else { 0 };
    let leaf_1g = if has_1g_pages { always | bits(13, 30) } else { always | gpte::PAGE_SIZE };
    [
        [0, 0],
        [always, always],
        [always, always | bits(13, 21)],
        [always, leaf_1g],
        [upper, upper | gpte::PAGE_SIZE],
        [upper, upper | gpte::PAGE_SIZE],
    ]
}

/// What a walk needs to know of the format, computed when the format or EFER.NXE changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GpteMasks {
    reserved: [[u64; 2]; 6],
    /// Address bits of an entry.
    address: u64,
    /// The C-bit, or 0.
    c_bit: u64,
}

impl GpteMasks {
    /// The masks of a format; `no_execute` is EFER.NXE.
    ///
    /// # Panics
    /// If MAXPHYADDR is not 32 to 52, or an encryption bit lies outside an entry's address.
    pub fn new(format: &GuestFormat, no_execute: bool) -> GpteMasks {
        let GuestFormat { maxphyaddr, has_1g_pages, upper_global_reserved, encryption } = *format;
        assert!((32..=52).contains(&maxphyaddr), "MAXPHYADDR {maxphyaddr}");
        let (c_bit, shared_bit) = match encryption {
            Encryption::None => (0, 0),
            Encryption::CBit(bit) => (1 << bit, 0),
            Encryption::SharedBit(bit) => (0, 1 << bit),
        };
        assert!((c_bit | shared_bit) & !bits(12, 52) == 0, "{encryption:?} lies outside an address");
        assert!(shared_bit & !bits(12, u32::from(maxphyaddr)) == 0, "{encryption:?} lies above GPAW {maxphyaddr}");
        GpteMasks {
            reserved: long_mode_reserved(maxphyaddr, has_1g_pages, upper_global_reserved, no_execute, c_bit),
            address: bits(12, u32::from(maxphyaddr)) & !c_bit,
            c_bit,
        }
    }

    /// The table or page that an entry, or CR3, names.
    #[inline]
    pub const fn frame_of(&self, entry: u64) -> Gfn {
        Gfn((entry & self.address) >> sim_kernel::PAGE_SHIFT)
    }

    /// Whether an entry has the C-bit.
    #[inline]
    pub const fn is_private(&self, entry: u64) -> bool {
        entry & self.c_bit != 0
    }

    /// Whether there is a C-bit.
    #[inline]
    pub const fn has_c_bit(&self) -> bool {
        self.c_bit != 0
    }

    /// Whether CR3 cannot have this value: an address beyond MAXPHYADDR, or a bit above the address.
    pub const fn is_bad_cr3(&self, value: u64) -> bool {
        value & !(self.address | self.c_bit | 0xfff) != 0
    }

    /// Whether an entry points to a table, has A, and has nothing wrong with it: most of those above the lowest level.
    #[inline]
    pub const fn is_usual_table(&self, entry: u64, level: Level) -> bool {
        const USUAL: u64 = gpte::PRESENT | gpte::ACCESSED;
        entry & (USUAL | gpte::PAGE_SIZE | self.reserved[level.number() as usize][0]) == USUAL
    }

    /// Whether a present entry of `level` has a reserved bit set.
    #[inline]
    pub const fn is_malformed(&self, entry: u64, level: Level) -> bool {
        entry & self.reserved[level.number() as usize][(entry >> 7) as usize & 1] != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_ranges() {
        assert_eq!(bits(12, 12), 0);
        assert_eq!(bits(13, 21), 0x1f_e000);
        assert_eq!(bits(40, 52), 0xf_ff00_0000_0000);
        assert_eq!(bits(0, 64), u64::MAX);
    }
}
