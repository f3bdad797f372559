//! The VMSA: a page with the state of a virtual processor, which VMRUN loads and `#VMEXIT` stores (APM volume 2, appendix B).
//!
//! Only what somebody here reads or writes has a name. Simplified: registers of a guest are not loaded from it; its features and its VMPL are.

/// Where fields are in the page, in bytes.
pub mod offset {
    /// The privilege level, a byte.
    pub const VMPL: usize = 0x0ca;
    /// EFER.
    pub const EFER: usize = 0x0d0;
    /// CR4.
    pub const CR4: usize = 0x148;
    /// CR3.
    pub const CR3: usize = 0x150;
    /// CR0.
    pub const CR0: usize = 0x158;
    /// DR7.
    pub const DR7: usize = 0x160;
    /// DR6.
    pub const DR6: usize = 0x168;
    /// RFLAGS.
    pub const RFLAGS: usize = 0x170;
    /// RIP.
    pub const RIP: usize = 0x178;
    /// The page attribute table.
    pub const G_PAT: usize = 0x268;
    /// RDX.
    pub const RDX: usize = 0x310;
    /// What of SEV the guest has ([`SevFeatures`](super::SevFeatures)).
    pub const SEV_FEATURES: usize = 0x3b0;
    /// XCR0.
    pub const XCR0: usize = 0x3e8;
    /// MXCSR.
    pub const MXCSR: usize = 0x408;
    /// The control word of x87.
    pub const X87_FCW: usize = 0x410;
}

bitflags::bitflags! {
    /// SEV_FEATURES: what of SEV a virtual processor has. Unknown bits are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct SevFeatures: u64 {
        /// The guest has SNP.
        const SNP_ACTIVE = 1 << 0;
        /// Addresses below a limit are private, whatever the C-bit says.
        const V_TOM = 1 << 1;
        /// `#VC` exits instead of going to the guest.
        const REFLECT_VC = 1 << 2;
        /// The hypervisor may inject `#HV` only.
        const RESTRICTED_INJECTION = 1 << 3;
        /// The hypervisor injects through the VMSA.
        const ALTERNATE_INJECTION = 1 << 4;
        /// Debug registers are swapped at world switches.
        const DEBUG_SWAP = 1 << 5;
        /// The host's instruction-based sampling stops.
        const PREVENT_HOST_IBS = 1 << 6;
        /// Branch target buffers are isolated.
        const BTB_ISOLATION = 1 << 7;
        /// VMPLs have supervisor shadow stacks.
        const VMPL_SSS = 1 << 8;
        /// The time-stamp counter is the firmware's.
        const SECURE_TSC = 1 << 9;
        const _ = !0;
    }
}
