//! The registers that decide how a guest's linear addresses are translated.

use super::fault::GuestFault;
use crate::Gva;
use crate::addr::{Gfn, Level};
use std::fmt;

bitflags::bitflags! {
    /// CR0, the bits that paging looks at.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Cr0: u64 {
        /// Supervisor writes obey R/W.
        const WP = 1 << 16;
        /// Paging.
        const PG = 1 << 31;
    }
}

bitflags::bitflags! {
    /// CR4, the bits that paging looks at.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Cr4: u64 {
        /// Physical-address extension: entries of 8 bytes.
        const PAE = 1 << 5;
        /// Global pages.
        const PGE = 1 << 7;
        /// 5-level paging.
        const LA57 = 1 << 12;
        /// Process-context identifiers.
        const PCIDE = 1 << 17;
        /// The supervisor does not execute user pages.
        const SMEP = 1 << 20;
        /// The supervisor does not touch user pages, unless EFLAGS.AC says so.
        const SMAP = 1 << 21;
        /// Protection keys of user pages.
        const PKE = 1 << 22;
    }
}

bitflags::bitflags! {
    /// EFER, the bits that paging looks at.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Efer: u64 {
        /// Long mode is active.
        const LMA = 1 << 10;
        /// Bit 63 of an entry forbids execution.
        const NXE = 1 << 11;
    }
}

/// Process-context identifier, 12 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Pcid(pub u16);

/// CR3 as it is stored: the root table's address and, with CR4.PCIDE, a PCID in the low bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Cr3(pub u64);

impl Cr3 {
    /// Bit 63 of the source of a MOV to CR3 with PCIDE: keep what is cached for the new PCID. It is not stored.
    pub const NO_FLUSH: u64 = 1 << 63;

    /// The root table. A C-bit among the address bits is the caller's to remove.
    #[inline]
    pub const fn table(self) -> Gfn {
        Gfn((self.0 & ((1 << 52) - 1)) >> sim_kernel::PAGE_SHIFT)
    }

    /// The PCID, if PCIDE gives the low bits that meaning.
    #[inline]
    pub const fn pcid(self, cr4: Cr4) -> Pcid {
        if cr4.contains(Cr4::PCIDE) { Pcid(self.0 as u16 & 0xfff) } else { Pcid(0) }
    }
}

/// PKRU: two bits for each of sixteen keys, access-disable and write-disable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Pkru(pub u32);

/// What a vCPU's registers say about translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PagingRegisters {
    /// CR0.
    pub cr0: Cr0,
    /// CR3.
    pub cr3: Cr3,
    /// CR4.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// PKRU.
    pub pkru: Pkru,
    /// Current privilege level, 0 to 3; only 3 is user mode.
    pub cpl: u8,
    /// EFLAGS.AC: the supervisor may touch user pages in spite of SMAP.
    pub ac: bool,
}

/// Paging that is not modelled: PG without long mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnsupportedPaging;

impl fmt::Display for UnsupportedPaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("paging outside long mode is not modelled: CR0.PG needs EFER.LMA and CR4.PAE")
    }
}

impl std::error::Error for UnsupportedPaging {}

/// How many levels a walk has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PagingMode {
    /// CR0.PG = 0: the linear address is the guest physical address.
    Off,
    /// 48-bit addresses.
    FourLevel,
    /// 57-bit addresses.
    FiveLevel,
}

impl PagingRegisters {
    /// The mode that the registers select.
    ///
    /// # Errors
    /// [`UnsupportedPaging`] for 32-bit and PAE paging.
    pub fn mode(&self) -> Result<PagingMode, UnsupportedPaging> {
        if !self.cr0.contains(Cr0::PG) {
            Ok(PagingMode::Off)
        } else if !self.efer.contains(Efer::LMA) || !self.cr4.contains(Cr4::PAE) {
            Err(UnsupportedPaging)
        } else if self.cr4.contains(Cr4::LA57) {
            Ok(PagingMode::FiveLevel)
        } else {
            Ok(PagingMode::FourLevel)
        }
    }
}

impl PagingMode {
    /// Whether an address may be used at all: its upper bits repeat its highest one. Without paging, every address.
    #[inline]
    pub const fn is_canonical(self, gva: Gva) -> bool {
        let unused = match self {
            PagingMode::Off => return true,
            PagingMode::FourLevel => 16,
            PagingMode::FiveLevel => 7,
        };
        ((gva.0 << unused) as i64 >> unused) as u64 == gva.0
    }

    /// The fault of an access to an address that is not canonical. It is no page fault: CR2 stays.
    pub const fn not_canonical(self, through_ss: bool) -> GuestFault {
        if through_ss { GuestFault::StackSegment } else { GuestFault::GeneralProtection }
    }
}

/// A [`PagingMode`] as a type, so that the walk of each is compiled for it.
pub trait GuestMode {
    /// Level of the root table; none if there are no tables.
    const ROOT: Option<Level>;
}

/// [`PagingMode::Off`].
#[derive(Clone, Copy, Debug)]
pub struct PagingOff;
/// [`PagingMode::FourLevel`].
#[derive(Clone, Copy, Debug)]
pub struct FourLevel;
/// [`PagingMode::FiveLevel`].
#[derive(Clone, Copy, Debug)]
pub struct FiveLevel;

impl GuestMode for PagingOff {
    const ROOT: Option<Level> = None;
}
impl GuestMode for FourLevel {
    const ROOT: Option<Level> = Some(Level::L512G);
}
impl GuestMode for FiveLevel {
    const ROOT: Option<Level> = Some(Level::L256T);
}
