//! What a guest is told when an access fails (Intel SDM vol. 3, 5.7; AMD64 APM vol. 2, 8.4.2).

use super::permission::AccessMode;
use crate::Gva;
use crate::spte::Access;

bitflags::bitflags! {
    /// The error code of a page fault (PFEC).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct PageFaultCode: u32 {
        /// P: a present entry is the cause.
        const PRESENT = 1 << 0;
        /// W/R: a write; a locked read-modify-write is one from its first step.
        const WRITE = 1 << 1;
        /// U/S: the access was made in user mode.
        const USER = 1 << 2;
        /// A reserved bit is set in a present entry.
        const RESERVED = 1 << 3;
        /// I/D: an instruction fetch; reported with EFER.NXE or CR4.SMEP only.
        const FETCH = 1 << 4;
        /// A protection key forbids it.
        const PROTECTION_KEY = 1 << 5;
        /// A shadow-stack access (never set here).
        const SHADOW_STACK = 1 << 6;
        /// Intel: during HLAT paging (never set here).
        const HLAT = 1 << 7;
        /// Intel: SGX access control (never set here).
        const SGX = 1 << 15;
        /// AMD: the reverse map table forbids it (host side; never set here).
        const RMP = 1 << 31;
    }
}

impl PageFaultCode {
    /// The part of the code that the access decides.
    pub(crate) fn of_access(mode: AccessMode, access: Access, reports_fetch: bool) -> PageFaultCode {
        let kind = match access {
            Access::Read => PageFaultCode::empty(),
            Access::Write => PageFaultCode::WRITE,
            Access::Exec if reports_fetch => PageFaultCode::FETCH,
            Access::Exec => PageFaultCode::empty(),
        };
        if mode == AccessMode::User { kind | PageFaultCode::USER } else { kind }
    }
}

/// #PF, vector 14.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageFault {
    /// What CR2 gets: the first byte of the access on the page that faults.
    pub cr2: Gva,
    /// The error code.
    pub code: PageFaultCode,
}

/// An exception that an access raises in the guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GuestFault {
    /// #GP(0): the address is not canonical.
    GeneralProtection,
    /// #SS(0): the same, through SS.
    StackSegment,
    /// #PF.
    Page(PageFault),
}
