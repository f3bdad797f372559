//! [`Stage2Reader`]: events of the tracepoint `kvm_tdp_mmu_spte_changed` as recordings have them, from the simulator's tracepoint or a real
//! kernel's.

use sim_mmu::{Level, Spte, SpteMasks};

use super::paged;
use crate::kvm::config::MachineConfig;
use crate::ops::{Op, SpteChange, SpteState};

/// The frame of the code page, whose own entry a recording leaves out.
const CODE_GFN: u64 = 0xf_0000;

/// Knows a machine's entry format, to tell what an entry is.
#[derive(Debug)]
pub struct Stage2Reader {
    masks: SpteMasks,
    /// Pages from the code page on whose entries are left out.
    code_pages: u64,
}

impl Stage2Reader {
    /// For machines of this configuration.
    pub fn new(config: &MachineConfig) -> Stage2Reader {
        Stage2Reader { masks: SpteMasks::new(config.stage2, config.stage2_end(), true), code_pages: 1 }
    }

    /// An operation begins: with a vCPU for paging, the slot of the code has more pages.
    pub fn before(&mut self, op: &Op) {
        if matches!(op, Op::CreateVcpu { paging: true, .. }) {
            self.code_pages = paged::PAGES;
        }
    }

    /// One event as a recording has it; `None` for the entries of the code's slot, and for a level that does not exist.
    pub fn change(&self, gfn: u64, level: u8, old: u64, new: u64) -> Option<SpteChange> {
        if level == 1 && (CODE_GFN..CODE_GFN + self.code_pages).contains(&gfn) {
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
