//! How instructions fail: by a code in EAX, or by a fault.

use sim_mmu::Gpa;

use super::types::Gva;

/// The codes that RMP instructions leave in EAX, except 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RmpFail {
    /// FAIL_INPUT: reserved bits, alignment, an address without an entry.
    #[error("FAIL_INPUT")]
    Input,
    /// FAIL_PERMISSION: the page is immutable, or the caller's level may not.
    #[error("FAIL_PERMISSION")]
    Permission,
    /// FAIL_INUSE: a vCPU, the firmware or another processor uses the page.
    #[error("FAIL_INUSE")]
    Inuse,
    /// FAIL_OVERLAP of RMPUPDATE: the page would overlap one of another size, or another processor works in the region.
    #[error("FAIL_OVERLAP")]
    Overlap,
    /// FAIL_BADADDR of PSMASH: not the head of a page of 2 MiB.
    #[error("FAIL_BADADDR")]
    BadAddr,
    /// FAIL_SIZEMISMATCH of PVALIDATE, RMPADJUST and RMPQUERY: the page is smaller than said.
    #[error("FAIL_SIZEMISMATCH")]
    SizeMismatch,
    /// No code: `#UD`, because SNP is not enabled.
    #[error("#UD")]
    Ud,
}

impl RmpFail {
    /// The number in EAX; `None` for `#UD`.
    pub const fn code(self) -> Option<u32> {
        match self {
            RmpFail::Input => Some(1),
            RmpFail::Permission => Some(2),
            RmpFail::Inuse => Some(3),
            RmpFail::Overlap | RmpFail::BadAddr => Some(4),
            RmpFail::SizeMismatch => Some(6),
            RmpFail::Ud => None,
        }
    }
}

bitflags::bitflags! {
    /// EXITINFO1 of `#VMEXIT(NPF)`, as far as the RMP decides it.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct NpfError: u64 {
        /// The nested translation is present.
        const P = 1 << 0;
        /// A write.
        const W = 1 << 1;
        /// A user access, which every access through nested tables is.
        const U = 1 << 2;
        /// An instruction fetch.
        const ID = 1 << 4;
        /// A shadow-stack access.
        const SS = 1 << 6;
        /// An RMP check failed.
        const RMP = 1 << 31;
        /// At the final translation.
        const FINAL = 1 << 32;
        /// While walking the guest's tables.
        const WALK = 1 << 33;
        /// The access was private (effective C-bit 1).
        const ENC = 1 << 34;
        /// PVALIDATE or RMPADJUST named a smaller page than the RMP has.
        const SIZEM = 1 << 35;
        /// The page's permissions for the VMPL failed.
        const VMPL = 1 << 36;
        /// Copy of the supervisor shadow-stack permission.
        const SSS = 1 << 37;
    }
}

bitflags::bitflags! {
    /// Error code of a host `#PF`, as far as the RMP decides it.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PfError: u64 {
        /// The translation is present.
        const P = 1 << 0;
        /// A write.
        const W = 1 << 1;
        /// At CPL 3.
        const U = 1 << 2;
        /// An RMP check failed.
        const RMP = 1 << 31;
    }
}

/// Error code of `#VC` for a page that was not validated (PAGE_NOT_VALIDATED).
pub const VC_PAGE_NOT_VALIDATED: u64 = 0x404;

/// What a guest's access or instruction ends in when it does not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GuestFault {
    /// An exit to the hypervisor.
    #[error("#VMEXIT(NPF) {error:?} at {gpa:?}")]
    Npf {
        /// EXITINFO1.
        error: NpfError,
        /// EXITINFO2.
        gpa: Gpa,
    },
    /// An exception in the guest, of which the hypervisor hears nothing: error code [`VC_PAGE_NOT_VALIDATED`].
    #[error("#VC(PAGE_NOT_VALIDATED) at {cr2:?}")]
    NotValidated {
        /// CR2.
        cr2: Gva,
    },
    /// `#GP(0)` in the guest.
    #[error("#GP(0)")]
    Gp0,
    /// `#UD` in the guest.
    #[error("#UD")]
    Ud,
}

/// A host access that faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("#PF {error:?}")]
pub struct HostFault {
    /// The error code.
    pub error: PfError,
}
