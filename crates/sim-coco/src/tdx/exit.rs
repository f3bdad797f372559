//! TD exits: why a vCPU left its TD, and what the host is told.

use super::sept::SeptEntry;
use super::status::{Status, StatusName};
use super::types::level_number;
use crate::AccessKind;
use sim_kernel::PAGE_SIZE;
use sim_mmu::{Gpa, Level};

/// Exit reason 0: an exception or an NMI.
pub const EXCEPTION_NMI: u32 = 0;
/// Exit reason 1: an interrupt of the host.
pub const EXTERNAL_INTERRUPT: u32 = 1;
/// Exit reason 2.
pub const TRIPLE_FAULT: u32 = 2;
/// Exit reason 48.
pub const EPT_VIOLATION: u32 = 48;
/// Exit reason 49.
pub const EPT_MISCONFIG: u32 = 49;
/// Exit reason 77: TDG.VP.VMCALL.
pub const TDCALL: u32 = 77;

/// Type of an EPT violation of a private address (extended exit qualification, bits 3:0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EeqType {
    /// An access.
    None = 0,
    /// TDG.MEM.PAGE.ACCEPT.
    Accept = 1,
    /// TDG.MEM.PAGE.ATTR.WR.
    AttrWr = 5,
    /// An access to a page that is not accepted, of a TD that wants no `#VE`.
    Pending = 6,
}

/// Exit qualification of an access: read, write or fetch in bits 2:0; nothing permitted in bits 5:3.
pub const fn qualification(kind: AccessKind) -> u64 {
    match kind {
        AccessKind::Read => 1,
        AccessKind::Write => 2,
        AccessKind::Fetch => 4,
    }
}

/// The registers of a TDG.VP.VMCALL that the guest shows the host, by number of the register; those that it does not are 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VmCall {
    /// RCX: which registers and XMMs are shown.
    pub mask: u64,
    /// RAX to R15; RAX, RCX and RSP are never shown.
    pub registers: [u64; 16],
}

impl VmCall {
    /// Only the registers that a mask shows.
    #[must_use]
    pub const fn shown(mask: u64, registers: &[u64; 16]) -> VmCall {
        let mut shown = VmCall { mask, registers: [0; 16] };
        let mut i = 0;
        while i < 16 {
            if mask >> i & 1 != 0 {
                shown.registers[i] = registers[i];
            }
            i += 1;
        }
        shown
    }

    /// A call of the standard interface: R10 is 0, the leaf in R11, operands from R12 on.
    pub fn standard(leaf: u64, operands: [u64; 4]) -> VmCall {
        let mut registers = [0; 16];
        registers[11] = leaf;
        registers[12..].copy_from_slice(&operands);
        VmCall { mask: 0xfc00, registers }
    }
}

/// Why a vCPU left its TD, as VP.ENTER answers it. What a TDG.VP.VMCALL shows is [`Tdx::vmcall`](super::Tdx::vmcall).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TdExit {
    /// RAX: success with the exit reason, or a class that says more.
    pub status: Status,
    /// RCX: exit qualification.
    pub qualification: u64,
    /// RDX: extended exit qualification.
    pub extended: u64,
    /// R8: the address of an EPT violation, without its offset.
    pub gpa: Gpa,
}

impl TdExit {
    /// For this reason and nothing else.
    pub const fn reason(reason: u32) -> TdExit {
        TdExit {
            status: Status { name: StatusName::Success, details: reason },
            qualification: 0,
            extended: 0,
            gpa: Gpa(0),
        }
    }

    /// With a status of its own.
    pub const fn of(name: StatusName, reason: u32) -> TdExit {
        TdExit { status: Status { name, details: reason }, ..TdExit::reason(reason) }
    }

    /// An EPT violation.
    pub const fn violation(qualification: u64, extended: u64, gpa: Gpa) -> TdExit {
        let gpa = Gpa(gpa.0 & !(PAGE_SIZE - 1));
        TdExit { qualification, extended, gpa, ..TdExit::reason(EPT_VIOLATION) }
    }

    /// Type of the EPT violation, in bits 3:0.
    pub const fn eeq_type(&self) -> u8 {
        (self.extended & 0xf) as u8
    }

    /// The level at which the guest wanted to accept a page: bits 2:0 of what the extended qualification says of an EPT violation by TDG.MEM.PAGE.ACCEPT. `None` for
    /// every other exit.
    pub fn accept_level(&self) -> Option<Level> {
        let is_accept = self.exit_reason() == EPT_VIOLATION && self.eeq_type() == EeqType::Accept as u8;
        Level::from_number((self.extended >> 32 & 7) as u8 + 1).filter(|_| is_accept)
    }

    /// The basic exit reason.
    pub const fn exit_reason(&self) -> u32 {
        self.status.details
    }
}

/// The extended qualification of a TDCALL that found this entry instead of what it needs.
pub(super) fn extended(eeq: EeqType, required: Level, level: Level, entry: SeptEntry) -> u64 {
    let public = entry.state().map_or(0xff, |state| state.row().public);
    let info = u64::from(level_number(required))
        | u64::from(level_number(level)) << 3
        | u64::from(public) << 6
        | u64::from(entry.is_leaf()) << 14;
    eeq as u64 | info << 32
}
