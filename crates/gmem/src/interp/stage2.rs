//! [`Stage2Reader`]: events of the tracepoint `kvm_tdp_mmu_spte_changed` as recordings have them, from the simulator's tracepoint or a real
//! kernel's.

use sim_mmu::{Level, Spte, SpteMasks};

use crate::kvm::config::MachineConfig;
use crate::ops::{SpteChange, SpteState};

/// The frame of the code page, whose own entries a recording leaves out.
const CODE_GFN: u64 = 0xf_0000;

/// Knows a machine's entry format, to tell what an entry is.
#[derive(Debug)]
pub struct Stage2Reader {
    masks: SpteMasks,
}

impl Stage2Reader {
    /// For machines of this configuration.
    pub fn new(config: &MachineConfig) -> Stage2Reader {
        Stage2Reader { masks: SpteMasks::new(config.stage2, config.stage2_end(), true) }
    }

    /// One event as a recording has it; `None` for the entry of the code page, and for a level that does not exist.
    pub fn change(&self, gfn: u64, level: u8, old: u64, new: u64) -> Option<SpteChange> {
        if level == 1 && gfn == CODE_GFN {
            return None;
        }
        let at = Level::from_number(level)?;
        let state = |spte: u64| match self.masks.classify(Spte(spte), at) {
            sim_mmu::SpteState::None => (SpteState::None, false),
            sim_mmu::SpteState::Leaf { writable } => (SpteState::Leaf, writable),
            sim_mmu::SpteState::Table => (SpteState::Table, false),
            sim_mmu::SpteState::Frozen => (SpteState::Frozen, false),
            sim_mmu::SpteState::Mmio => (SpteState::Mmio, false),
        };
        let ((from, _), (to, writable)) = (state(old), state(new));
        Some(SpteChange { gfn, level, from, to, writable })
    }
}
