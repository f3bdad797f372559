//! The machine and its kernel: what a simulation is configured with.

use sim_mmu::Stage2Kind;
use std::fmt;

/// Which Linux release's rules apply. This version of the simulator models 7.3.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[non_exhaustive]
pub enum KernelVersion {
    /// Linux 7.3, the release of the recordings.
    #[default]
    V7_3,
}

impl KernelVersion {
    /// Every release that is modelled, with its name in scenarios.
    pub const ALL: [(&'static str, KernelVersion); 1] = [("7.3", KernelVersion::V7_3)];
}

/// Both formats of stage 2 with their names in scenarios and trace headers.
pub const STAGE2_FORMATS: [(&str, Stage2Kind); 2] = [("npt", Stage2Kind::Npt), ("ept", Stage2Kind::Ept)];

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KernelVersion::V7_3 => "7.3",
        })
    }
}

/// Everything that is fixed before the first system call.
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
    /// Bytes of host memory.
    pub memory: u64,
    /// Width of physical addresses in bits, of host and guest.
    pub maxphyaddr: u32,
    /// `RLIMIT_NOFILE` of the processes.
    pub files_max: usize,
    /// `eager_page_split`: enabling dirty logging splits huge pages at once.
    pub eager_page_split: bool,
}

impl Default for MachineConfig {
    /// The machine of the recordings: 3 GiB, AMD nested paging, 40 address bits.
    fn default() -> MachineConfig {
        MachineConfig {
            kernel: KernelVersion::default(),
            stage2: Stage2Kind::Npt,
            memory: 3 << 30,
            maxphyaddr: 40,
            files_max: 1 << 20,
            eager_page_split: true,
        }
    }
}
