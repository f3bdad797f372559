//! The machine that a scenario asks for.
//!
//! Simplified: an x86-64 machine with one NUMA node; processors are as many as threads need.

use crate::Stage2Kind;
use crate::kvm::config::{KernelVersion, MachineConfig};

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// The host's kernel.
    pub kernel: KernelVersion,
    /// The second stage of translation.
    pub stage2: Stage2Kind,
    /// The host's memory in bytes.
    pub memory: u64,
}

/// The machine on which the recordings were made.
impl Default for MachineSpec {
    fn default() -> Self {
        let MachineConfig { kernel, stage2, memory, .. } = MachineConfig::default();
        MachineSpec { kernel, stage2, memory }
    }
}

impl MachineSpec {
    /// The configuration of such a machine.
    pub fn config(&self) -> MachineConfig {
        let MachineSpec { kernel, stage2, memory } = *self;
        MachineConfig { kernel, stage2, memory, ..MachineConfig::default() }
    }
}
