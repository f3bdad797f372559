//! Instructions that only a TD's guest has. Not KVM.
//!
//! Programs of TDs run without paging: data addresses are guest physical, and private unless the program has asked for shared ones
//! ([`TdInsn::SetShared`], which stands for tables that map everything one to one, with or without the shared bit).

use sim_mmu::Gpa;

/// An instruction of a TD.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum TdInsn {
    /// The data accesses that follow go to addresses with the shared bit, or without.
    SetShared {
        /// With.
        shared: bool,
    },
    /// TDG.MEM.PAGE.ACCEPT; `rbx` receives RAX.
    Accept {
        /// The page.
        gpa: Gpa,
        /// 0 for 4 KiB, 1 for 2 MiB, and what there is not.
        size: u64,
    },
    /// TDG.VP.VMCALL of the standard interface: R10 is 0. Afterwards `rbx` is R10, the status, and `rax` is R11.
    VmCall {
        /// R11.
        leaf: u64,
        /// R12 to R15.
        operands: [u64; 4],
    },
    /// TDG.VP.VEINFO.GET; `rbx` receives the address that the last `#VE` was about, or RAX if there was none.
    VeInfoGet,
    /// TDG.VP.WR of TD_CTLS bit 0; `rbx` receives RAX.
    SetPendingVeDisable {
        /// An access to a page that was not accepted exits instead of raising `#VE`.
        on: bool,
    },
    /// TDG.VM.WR of NOTIFY_ENABLES bit 0; `rbx` receives RAX.
    NotifyZeroStep {
        /// The guest is told that it was zero-stepped.
        on: bool,
    },
    /// TDG.MR.RTMR.EXTEND; `rbx` receives RAX.
    RtmrExtend {
        /// 48 private bytes.
        buffer: Gpa,
        /// The register.
        index: u64,
    },
    /// TDG.VP.INFO; `rbx` receives the width of addresses, `rax` the TD's attributes.
    VpInfo,
}
