//! The machine and its kernel: what a simulation is configured with.

use super::uapi::{KVM_MAX_VCPUS, KVM_X86_DEFAULT_VM, KVM_X86_SNP_VM, KVM_X86_SW_PROTECTED_VM, KVM_X86_TDX_VM};
pub use super::versions::{KernelVersion, KernelVersionError};
use sim_coco::snp::firmware::{CpuidMasks, epyc_cpuid_masks};
use sim_kernel::mm::HugePageRules;
pub use sim_kernel::mm::Thp;
use sim_kernel::{Faults, MutantSet};
use sim_mmu::guest_paging::{Encryption, GuestFormat};
use sim_mmu::tlb::TlbConfig;
use sim_mmu::{Gfn, Stage2Kind, TdpConfig};

/// What the firmware of SNP takes of a guest's CPUID page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SnpCpuid {
    /// What firmware of EPYC processors takes, as far as it is known.
    #[default]
    Epyc,
    /// Everything.
    Any,
}

impl SnpCpuid {
    /// The policies, by the names that files have for them.
    pub const ALL: [(&'static str, SnpCpuid); 2] = [("epyc", SnpCpuid::Epyc), ("any", SnpCpuid::Any)];

    pub(super) fn masks(self) -> CpuidMasks {
        match self {
            SnpCpuid::Epyc => epyc_cpuid_masks(),
            SnpCpuid::Any => CpuidMasks::new(),
        }
    }
}

/// Everything that is fixed before the first system call.
///
/// [`facts`](crate::facts) has the names of these in scenarios and recordings, and the values that are possible there.
///
/// ```
/// use gmem::{MachineConfig, Stage2Kind};
/// let config = MachineConfig { stage2: Stage2Kind::Ept, ..MachineConfig::default() };
/// assert_eq!(config.maxphyaddr, 40);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Kernel whose rules apply.
    pub kernel: KernelVersion,
    /// Format of the stage-2 tables.
    pub stage2: Stage2Kind,
    /// Two-dimensional paging (`tdp_enabled`). Without it KVM uses shadow paging and takes away what needs the TDP MMU:
    /// software-protected VMs and `KVM_PRE_FAULT_MEMORY`. Simplified: the model keeps its one stage 2 for the guest's accesses.
    pub tdp_enabled: bool,
    /// Bytes of host memory.
    pub memory: u64,
    /// NUMA nodes, 1 to 64, each with its part of the memory; every task runs on the first.
    pub nodes: u32,
    /// Width of physical addresses in bits, of host and guest.
    pub maxphyaddr: u32,
    /// What each vCPU's processor caches of its translations.
    pub tlb: TlbConfig,
    /// `transparent_hugepage/enabled`.
    pub transparent_hugepage: Thp,
    /// `CONFIG_KVM_SW_PROTECTED_VM`: VMs whose private memory only software protects.
    pub sw_protected_vm: bool,
    /// `CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES`: the kernel knows `KVM_SET_MEMORY_ATTRIBUTES` at all. Whatever has private memory
    /// selects it, so it is there if [`sw_protected_vm`](Self::sw_protected_vm) is.
    pub memory_attributes: bool,
    /// `CONFIG_KVM_SMM`: VMs without private memory have a second address space, for system management mode.
    pub smm: bool,
    /// `CONFIG_KVM_MAX_NR_VCPUS`: most vCPUs of a VM; their ids go up to four times as many.
    pub max_vcpus: u64,
    /// `RLIMIT_NOFILE` of the processes.
    pub files_max: usize,
    /// `eager_page_split`: enabling dirty logging splits huge pages at once.
    pub eager_page_split: bool,
    /// `ept_ad_bits`: EPT has accessed and dirty bits. Without, KVM takes a page's rights away to see when it is accessed next.
    pub ept_ad_bits: bool,
    /// `enable_pml`: dirty logging by D bits and the processor's page-modification log; only EPT with A and D bits has it. Off by default here.
    pub pml: bool,
    /// `nx_huge_pages`: huge pages are not executable, against a defect of some processors. Off by default, as on those without it.
    pub nx_huge_pages: bool,
    /// `CONFIG_MEMORY_FAILURE`: `MADV_HWPOISON` breaks pages of guest_memfds. Not on the machine of the recordings.
    pub memory_failure: bool,
    /// The failure of a page takes `invalidate_lock` inside the folio lock, as Linux does: against a hole punch, which takes them the other
    /// way round, that is a deadlock. Without, they are taken in the order of everybody else.
    pub hwpoison_abba: bool,
    /// Readers of the arrays of attributes and bindings stop between their nodes, not only before and after: a hundred times as many
    /// interleavings, of code that is rarely the question.
    pub xarray_steps: bool,
    /// The machine has AMD SEV-SNP, and the kernel uses it: there are VMs of type `KVM_X86_SNP_VM`. Only with nested paging of AMD's format.
    pub snp: bool,
    /// ASIDs that SNP guests may have (`min_sev_asid - 1`).
    pub snp_asids: u64,
    /// RMP instructions can be seen half done: then they fail because somebody else is at work, and have to be tried again.
    pub snp_contention: bool,
    /// What the firmware of SNP takes of a guest's CPUID page.
    pub snp_cpuid: SnpCpuid,
    /// The host reads ones instead of ciphertext (`CiphertextHiding`).
    pub ciphertext_hiding: bool,
    /// guest_memfd has folios of 2 MiB where a whole one fits into the file and nothing of it is there yet, as in trees of vendors (their module parameter
    /// of this name); no Linux has it. Not in files that the host may map.
    pub gmem_2m_enabled: bool,
    /// The machine has Intel TDX, and the kernel uses it: there are VMs of type `KVM_X86_TDX_VM`. Only with EPT that has accessed and dirty bits.
    pub tdx: bool,
    /// KeyIDs that TDs may have.
    pub tdx_hkids: u16,
    /// Packages, of 64 processors each.
    pub tdx_packages: u16,
    /// Leaves of the module can be seen half done: then others meet their locks, and are told OPERAND_BUSY.
    pub tdx_contention: bool,
    /// The lock of a Secure EPT knows the host's priority (module 2.0; 1.5 does not).
    pub tdx_host_priority: bool,
    /// A partial write to a private line poisons it (Sapphire and Emerald Rapids), so that KVM resets pages that it gets back.
    pub tdx_erratum: bool,
    /// Caches are not coherent between KeyIDs.
    pub tdx_caches: bool,
    /// KVM maps private memory of TDs by leaves of 2 MiB where guest_memfd, slot, attributes and guest allow ("TDX: Dynamic PAMT + S-EPT Hugepage" of January 2026; 7.3 maps
    /// 4 KiB only). Comes to something only with `gmem_2m_enabled`.
    pub tdx_2m: bool,
    /// The module has dynamic PAMT, and KVM gives it pages for metadata when they are needed ("TDX: Enable Dynamic PAMT", queued for 7.4).
    pub tdx_dynamic_pamt: bool,
    /// KVM has `KVM_TDX_TERMINATE_VM` (4th version of June 2025, in no kernel so far): user space may end a TD before it closes its memory.
    pub tdx_terminate_vm: bool,
    /// The machine is an Arm one with pKVM: its hypervisor keeps the host from memory, and VMs are of arm64's types. What is x86's of the other facts then does not matter, and
    /// there are no memory attributes.
    pub pkvm: bool,
    /// guest_memfds back protected VMs, as it is proposed and 7.3 does not do.
    pub pkvm_gmem: bool,
    /// What the hypervisor does is recorded, for checkers of Arm's stage-2 discipline.
    pub pkvm_trace: bool,
    /// `RLIMIT_MEMLOCK` of the processes, in bytes, for pages that are pinned for their protected VMs.
    pub memlock: u64,
    /// Rules that are switched off, to see what they are there for.
    pub mutants: MutantSet,
    /// What fails on purpose.
    pub faults: Faults,
}

impl Default for MachineConfig {
    /// The machine of the recordings: 3 GiB, AMD nested paging, 40 address bits.
    fn default() -> MachineConfig {
        MachineConfig {
            kernel: KernelVersion::default(),
            stage2: Stage2Kind::Npt,
            tdp_enabled: true,
            memory: 3 << 30,
            nodes: 1,
            maxphyaddr: 40,
            tlb: TlbConfig::SMALL,
            transparent_hugepage: Thp::Always,
            sw_protected_vm: true,
            memory_attributes: true,
            smm: true,
            max_vcpus: KVM_MAX_VCPUS,
            files_max: 1 << 20,
            eager_page_split: true,
            ept_ad_bits: true,
            pml: false,
            nx_huge_pages: false,
            memory_failure: false,
            hwpoison_abba: true,
            xarray_steps: false,
            snp: false,
            snp_asids: 1006,
            snp_contention: false,
            snp_cpuid: SnpCpuid::default(),
            ciphertext_hiding: false,
            gmem_2m_enabled: false,
            tdx: false,
            tdx_hkids: 31,
            tdx_packages: 1,
            tdx_contention: false,
            tdx_host_priority: false,
            tdx_erratum: false,
            tdx_caches: false,
            tdx_2m: false,
            tdx_dynamic_pamt: false,
            tdx_terminate_vm: false,
            pkvm: false,
            pkvm_gmem: false,
            pkvm_trace: false,
            memlock: u64::MAX,
            mutants: MutantSet::EMPTY,
            faults: Faults::default(),
        }
    }
}

impl MachineConfig {
    /// The VM types that `KVM_CREATE_VM` takes and `KVM_CAP_VM_TYPES` reports, as a mask (`kvm_caps.supported_vm_types`).
    pub fn vm_types(&self) -> u64 {
        let sw_protected = self.sw_protected_vm && self.tdp_enabled;
        let snp = u64::from(self.has_snp()) << KVM_X86_SNP_VM;
        let tdx = u64::from(self.has_tdx()) << KVM_X86_TDX_VM;
        if self.pkvm {
            // No capability of arm64.
            return 0;
        }
        1 << KVM_X86_DEFAULT_VM | u64::from(sw_protected) << KVM_X86_SW_PROTECTED_VM | snp | tdx
    }

    /// Width of addresses on a machine with pKVM, of the host and of intermediate ones of guests: what its tables can have.
    pub(crate) fn pkvm_bits(&self) -> u32 {
        self.maxphyaddr.clamp(32, 48)
    }

    /// Whether there are SNP VMs: the machine, its nested paging and the kernel have what it takes.
    pub fn has_snp(&self) -> bool {
        self.snp && !self.pkvm && self.tdp_enabled && self.stage2 == Stage2Kind::Npt && self.kernel.has_snp()
    }

    /// Whether there are TDs: the machine, its EPT and the kernel have what it takes.
    pub fn has_tdx(&self) -> bool {
        self.tdx && self.tdp_enabled && self.stage2 == Stage2Kind::Ept && self.ept_ad_bits && self.kernel.has_tdx()
    }

    /// Whether huge pages are split when dirty logging is enabled: only the TDP MMU does.
    pub(crate) fn splits_eagerly(&self) -> bool {
        self.eager_page_split && self.tdp_enabled
    }

    /// How the stage-2 trees of a VM are built.
    pub(crate) fn tdp_config(&self) -> TdpConfig {
        let accessed_dirty = self.ept_ad_bits || self.stage2 == Stage2Kind::Npt;
        TdpConfig {
            eager_page_split: self.splits_eagerly(),
            splits_on_fault: self.tdp_enabled,
            accessed_dirty,
            pml: self.pml && accessed_dirty && self.stage2 == Stage2Kind::Ept,
            nx_huge_pages: self.nx_huge_pages,
            ..TdpConfig::new(self.stage2, self.stage2_levels(), self.stage2_end())
        }
    }

    /// How the host treats transparent huge pages.
    pub(crate) fn huge_pages(&self) -> HugePageRules {
        let collapse_needs_block = self.kernel.collapse_needs_block();
        HugePageRules { enabled: self.transparent_hugepage, collapse_needs_block }
    }

    /// Whether `KVM_SET_MEMORY_ATTRIBUTES` exists.
    pub fn has_memory_attributes(&self) -> bool {
        !self.pkvm && (self.memory_attributes || self.sw_protected_vm || self.has_snp() || self.has_tdx())
    }

    /// The largest frame that a slot may have (`kvm_mmu_max_gfn`). With shadow paging the host's width does not limit it.
    pub(crate) fn max_gfn(&self) -> Gfn {
        if self.pkvm {
            return Gfn(self.stage2_end().0 - 1);
        }
        let bits = if self.tdp_enabled { self.maxphyaddr } else { 52 };
        Gfn((1 << (bits - 12)) - 1)
    }

    /// The first guest frame that stage 2 cannot map.
    pub(crate) fn stage2_end(&self) -> Gfn {
        Gfn(1 << (if self.pkvm { self.pkvm_bits() } else { self.maxphyaddr } - 12))
    }

    /// The page tables that CPUID announces to guests.
    pub(crate) fn guest_format(&self) -> GuestFormat {
        GuestFormat {
            maxphyaddr: self.maxphyaddr as u8,
            has_1g_pages: true,
            upper_global_reserved: self.stage2 == Stage2Kind::Npt,
            encryption: Encryption::None,
        }
    }

    /// Levels of the stage-2 tables: as many as it takes to reach every frame.
    pub(crate) fn stage2_levels(&self) -> u8 {
        if self.maxphyaddr > 48 { 5 } else { 4 }
    }
}
