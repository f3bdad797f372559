//! What a machine with SEV-SNP is made of, and the points on which public documents leave a choice.

use super::firmware::CpuidMasks;
use super::layout::RmpLayout;

/// What RMPUPDATE does with the size of an assigned page (OP-18).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ResizeRule {
    /// FAIL_OVERLAP: the size changes by PSMASH, by the firmware, or through the hypervisor's ownership.
    #[default]
    Overlap,
    /// It changes, and the page is no longer validated.
    ClearsValidated,
}

/// Where the permissions of VMPL 1 to 3 stand in PAGE_INFO (OP-1). It matters only when they are not zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PermsOrder {
    /// Reserved, VMPL1, VMPL2, VMPL3: as in the buffer of LAUNCH_UPDATE.
    #[default]
    Ascending,
    /// VMPL3, VMPL2, VMPL1, reserved.
    Descending,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct SnpConfig {
    /// Where the RMP lies and what it covers.
    pub layout: RmpLayout,
    /// Processors: all of them must write back their caches before an ASID is used again.
    pub cpus: u32,
    /// Largest ASID (CPUID 8000_001F ECX).
    pub asid_max: u16,
    /// Largest ASID of SNP guests where ciphertext is hidden; those above are for SEV-ES.
    pub asid_max_snp: Option<u16>,
    /// Bits of a guest physical address that an RMP entry keeps: 48 on Zen 3, 51 on Zen 4.
    pub gpa_bits: u32,
    /// Guests may have supervisor shadow stacks: VMPL0 gets that permission too.
    pub supervisor_shadow_stack: bool,
    /// Simultaneous multithreading is on, which a policy may forbid.
    pub smt: bool,
    /// Sockets, of which a policy may demand that there be one.
    pub sockets: u32,
    /// Major and minor version of the firmware's interface, which a policy may demand.
    pub abi_version: (u8, u8),
    /// What the platform offers of CPUID.
    pub cpuid: CpuidMasks,
    /// What the keys of guests are derived from.
    pub seed: u64,
    /// Another task may run between the moment when an operation marks its entries and the moment when it changes them; two 4 KiB
    /// RMPUPDATEs in one 2 MiB region then exclude each other (OP-3).
    pub contention: bool,
    /// A host write to an entry that somebody operates on faults, too.
    pub host_write_faults_on_busy: bool,
    /// Zen 3 and 4: a host write through a mapping of 2 MiB or more faults if the region's first page is in use by a vCPU.
    pub erratum_2m_vmsa: bool,
    /// The host reads ones instead of ciphertext (OP-12).
    pub ciphertext_hiding: bool,
    /// Translations of guests are cached with what the RMP said; PVALIDATE and RMPADJUST leave them (OP-20).
    pub guest_tlb: bool,
    /// RMPUPDATE of an assigned page in another size (OP-18).
    pub resize: ResizeRule,
    /// Order of permissions in PAGE_INFO (OP-1).
    pub perms_order: PermsOrder,
    /// PAGE_UNSMASH leaves the page immutable (OP-10).
    pub unsmash_keeps_immutable: bool,
    /// Writes by devices are checked (OP-17).
    pub checks_dma: bool,
}

impl SnpConfig {
    /// A machine with one processor for each task that the engine can have, no CPUID checks, and every choice as the specification's default.
    pub fn new(layout: RmpLayout) -> SnpConfig {
        SnpConfig {
            layout,
            cpus: 64,
            asid_max: 1006,
            asid_max_snp: None,
            gpa_bits: 48,
            supervisor_shadow_stack: false,
            smt: true,
            sockets: 1,
            abi_version: (1, 55),
            cpuid: CpuidMasks::new(),
            seed: 0,
            contention: false,
            host_write_faults_on_busy: false,
            erratum_2m_vmsa: false,
            ciphertext_hiding: false,
            guest_tlb: false,
            resize: ResizeRule::default(),
            perms_order: PermsOrder::default(),
            unsmash_keeps_immutable: true,
            checks_dma: true,
        }
    }
}
