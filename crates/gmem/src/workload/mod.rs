//! Workloads of SNP guests and TDs as generators with sizes: launch, firmware, boot, run time, and the jump to another kernel, as guests in the field do them.
//!
//! | phase | what | who |
//! |---|---|---|
//! | W1 | launch: a firmware block of 4 MiB, zero blocks of 9, 3, 1 and 15 pages, secrets, CPUID, one more page, VMSAs | VMM |
//! | W2 | the same of a TD: 4 MiB of firmware, measured, and 32 pages that are not | VMM |
//! | W3 | the firmware accepts the first [`Sizes::firmware_accept`] bytes | first vCPU |
//! | W4 | bounce buffers of at most 32 KiB: shared, used, private again, [`Sizes::bounces`] times | first vCPU |
//! | W5 | SNP: a GHCB, a doorbell and a clock page to shared for each vCPU; the others are started | first vCPU, then each |
//! | W6 | SWIOTLB: 6 % of memory, at most 1 GiB, to shared at once | first vCPU |
//! | W7 | lazy acceptance in blocks of 4 MiB, [`Sizes::lazy_blocks`] for each vCPU | all |
//! | W8 | coherent DMA: 4 to 64 KiB to shared and back, [`Sizes::conversions`] times for each vCPU | all |
//! | W9 | kexec: everything back to private | first vCPU |
//! | W11 | TDX: the VM is taken apart | VMM |
//!
//! The guest's code is [`linux_guest`](crate::linux_guest), the VMM's is like QEMU's: a page that becomes shared is punched out of guest_memfd, one that becomes
//! private is discarded from ordinary memory. A run is a function of sizes and seed.
//!
//! Simplified: memory is one slot from 0 on and the firmware another; the guest allocates nothing, its buffers are where `layout.rs` says.

mod conversions;
mod guest;
mod launch;
mod layout;
mod seamcalls;
mod vmm;

pub use conversions::Conversions;
pub use seamcalls::Seamcalls;
pub use vmm::{PhaseReport, Report, run};

use crate::kvm::config::MachineConfig;
use crate::linux_guest::{Cpu, Kernel};
use sim_mmu::Stage2Kind;
use std::fmt;

/// A part of a workload, by the numbers that measurements of real guests have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs, reason = "the table above says what each is")]
pub enum Phase {
    W1,
    W2,
    W3,
    W4,
    W5,
    W6,
    W7,
    W8,
    W9,
}

impl Phase {
    /// In their order.
    pub const ALL: [Phase; 9] =
        [Phase::W1, Phase::W2, Phase::W3, Phase::W4, Phase::W5, Phase::W6, Phase::W7, Phase::W8, Phase::W9];

    /// In a word or two.
    pub const fn title(self) -> &'static str {
        match self {
            Phase::W1 | Phase::W2 => "launch",
            Phase::W3 => "firmware accepts",
            Phase::W4 => "firmware DMA",
            Phase::W5 => "early kernel",
            Phase::W6 => "SWIOTLB",
            Phase::W7 => "lazy acceptance",
            Phase::W8 => "run time",
            Phase::W9 => "kexec",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// What the guest runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Platform {
    /// An SNP guest.
    #[default]
    Snp,
    /// A TD.
    Tdx,
}

impl Platform {
    /// The machine that it needs.
    pub fn machine(self) -> MachineConfig {
        match self {
            Platform::Snp => MachineConfig { snp: true, ..MachineConfig::default() },
            Platform::Tdx => MachineConfig { tdx: true, stage2: Stage2Kind::Ept, ..MachineConfig::default() },
        }
    }

    /// The kernel at its first instruction.
    fn kernel(self, cpu: Cpu) -> Kernel {
        match self {
            Platform::Snp => Kernel::new(cpu),
            Platform::Tdx => Kernel::td(cpu),
        }
    }
}

/// How much of everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// On what.
    pub platform: Platform,
    /// vCPUs, at most 8.
    pub vcpus: u32,
    /// Bytes of guest memory, a multiple of 4 MiB.
    pub memory: u64,
    /// Bytes that the firmware accepts, a multiple of 2 MiB.
    pub firmware_accept: u64,
    /// Cycles of firmware DMA.
    pub bounces: u32,
    /// Blocks of 4 MiB that each vCPU accepts, as long as there are any.
    pub lazy_blocks: u32,
    /// Conversions of each vCPU at run time.
    pub conversions: u32,
    /// Whether the guest leaves for another kernel in the end.
    pub kexec: bool,
    /// Whether a TD is terminated before its memory is closed (`KVM_TDX_TERMINATE_VM`, which no kernel has so far).
    pub terminate: bool,
    /// Whether leaves of the TDX module meet each other's locks (`MachineConfig::tdx_contention`).
    pub contention: bool,
    /// Whether memory of a TD is mapped by leaves of 2 MiB where that can be (`MachineConfig::tdx_2m` over `gmem_2m_enabled`, which no kernel has so far).
    pub large_pages: bool,
}

impl Sizes {
    /// A boot as kernel documentation has it: the firmware accepts 512 MiB (or half of memory), no DMA by the firmware, all memory is touched.
    pub fn boot(vcpus: u32, memory: u64) -> Sizes {
        let half = (memory / 2) & !(layout::BLOCK - 1);
        let firmware_accept = half.clamp(layout::MEMORY_MIN.min(memory), 512 << 20);
        let platform = Platform::default();
        Sizes {
            platform,
            vcpus,
            memory,
            firmware_accept,
            bounces: 0,
            lazy_blocks: u32::MAX,
            conversions: 64,
            kexec: false,
            terminate: false,
            contention: false,
            large_pages: false,
        }
    }

    /// Whether there can be such a guest.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=layout::VCPUS_MAX).contains(&self.vcpus) {
            return Err(format!("a workload has 1 to {} vCPUs, not {}", layout::VCPUS_MAX, self.vcpus));
        }
        if self.memory < layout::MEMORY_MIN
            || self.memory > layout::MEMORY_MAX
            || !self.memory.is_multiple_of(layout::BLOCK)
        {
            return Err(format!(
                "a workload's memory is a multiple of 4 MiB from {} to {} MiB, not {} bytes",
                layout::MEMORY_MIN >> 20,
                layout::MEMORY_MAX >> 20,
                self.memory
            ));
        }
        let accepts = layout::LOW_END..=self.memory;
        if !accepts.contains(&self.firmware_accept) || !self.firmware_accept.is_multiple_of(2 << 20) {
            return Err(format!(
                "the firmware accepts a multiple of 2 MiB from {} MiB up to all memory, not {} bytes",
                layout::LOW_END >> 20,
                self.firmware_accept
            ));
        }
        Ok(())
    }

    /// The phases that it has.
    pub fn phases(&self) -> Vec<Phase> {
        let has = |phase: &Phase| match phase {
            Phase::W1 | Phase::W5 => self.platform == Platform::Snp,
            Phase::W2 => self.platform == Platform::Tdx,
            Phase::W4 => self.bounces > 0,
            Phase::W7 => self.lazy_blocks > 0,
            Phase::W8 => self.conversions > 0,
            Phase::W9 => self.kexec,
            _ => true,
        };
        Phase::ALL.into_iter().filter(has).collect()
    }

    /// Bytes of the SWIOTLB: 6 % of memory, at most 1 GiB, in whole pages of 2 MiB.
    pub fn swiotlb(&self) -> u64 {
        let bytes = (self.memory / 100 * 6).min(1 << 30);
        bytes.next_multiple_of(2 << 20)
    }
}
