//! States that only migration makes, or a race. Leaves of migration are not modelled; what they would leave can be put in place, because the others have rules for it.

use super::machine::Tdx;
use super::sept::SeptState;
use super::td::OpState;
use sim_kernel::Pfn;
use sim_mmu::{Gfn, Level};

impl Tdx {
    /// Puts a TD in an op state, as migration would.
    ///
    /// # Panics
    /// If there is no such TD.
    pub fn force_op_state(&self, tdr: Pfn, op_state: OpState) {
        self.state.lock().td_mut(tdr).op_state = op_state;
    }

    /// Puts an entry of a TD's Secure EPT in a state, as migration would; a leaf stays a leaf of the same page. `false` if there is no entry at that level.
    ///
    /// # Panics
    /// If there is no such TD.
    pub fn force_sept_state(&self, tdr: Pfn, gfn: Gfn, level: Level, to: SeptState) -> bool {
        let mut state = self.state.lock();
        let Ok(walk) = state.walk(tdr, gfn, level) else { return false };
        if walk.level != level {
            return false;
        }
        state.set_entry(walk.slot, walk.entry.with_state(to));
        true
    }

    /// Leaves the mark at an entry that a leaf of the host leaves which met a guest's ACCEPT there (TDHP). `false` if there is no entry at that level.
    ///
    /// # Panics
    /// If there is no such TD.
    pub fn force_host_priority(&self, tdr: Pfn, gfn: Gfn, level: Level) -> bool {
        let mut state = self.state.lock();
        let Ok(walk) = state.walk(tdr, gfn, level) else { return false };
        let marks = walk.level == level;
        if marks {
            state.set_entry_priority(walk.slot);
        }
        marks
    }
}
