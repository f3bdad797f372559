//! The machine that a scenario asks for.
//!
//! Simplified: an x86-64 machine with one NUMA node; processors are as many as threads need.

/// The kernel release whose rules the simulator follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KernelVersion {
    /// Linux 6.8: the first with guest_memfd.
    V6_8,
    /// Linux 6.12.
    V6_12,
    /// Linux 6.18.
    V6_18,
    /// Linux 7.3.
    V7_3,
}

impl KernelVersion {
    /// Every release with its name in scenarios.
    pub const ALL: [(&'static str, KernelVersion); 4] = [
        ("6.8", KernelVersion::V6_8),
        ("6.12", KernelVersion::V6_12),
        ("6.18", KernelVersion::V6_18),
        ("7.3", KernelVersion::V7_3),
    ];
}

/// The format of the second stage of translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage2 {
    /// AMD's nested page tables.
    Npt,
    /// Intel's extended page tables.
    Ept,
}

impl Stage2 {
    /// Both formats with their names in scenarios and trace headers.
    pub const ALL: [(&'static str, Stage2); 2] = [("npt", Stage2::Npt), ("ept", Stage2::Ept)];
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// The host's kernel.
    pub kernel: KernelVersion,
    /// The second stage of translation.
    pub stage2: Stage2,
    /// The host's memory in bytes.
    pub memory: u64,
}

/// The machine on which the recordings were made.
impl Default for MachineSpec {
    fn default() -> Self {
        MachineSpec { kernel: KernelVersion::V7_3, stage2: Stage2::Npt, memory: 3 << 30 }
    }
}
