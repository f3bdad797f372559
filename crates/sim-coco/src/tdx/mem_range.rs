//! TDH.MEM.RANGE.BLOCK, UNBLOCK and TDH.MEM.TRACK: the protocol that takes translations away from vCPUs that run.
//!
//! BLOCK stops new walks and touches no TLB. TRACK begins an epoch: vCPUs that enter from now on flush. When those of the epoch of the BLOCK have left, nobody can
//! use the translation, and it can be removed or changed.

use super::leaf::Leaf;
use super::lock::{LockId, Mode};
use super::machine::Seam;
use super::mutants;
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::transitions::{HostOp, Tracking};
use super::types::{Hpa, SeptInfo};
use sim_kernel::Cx;
use sim_mmu::Level;

impl Seam<'_> {
    /// TDH.MEM.RANGE.BLOCK: no new walk passes the entry.
    ///
    /// # Errors
    /// The TD's (|RDX); those of the entry (|RCX), of which GPA_RANGE_ALREADY_BLOCKED is no error.
    pub fn mem_range_block(self, cx: &Cx<'_>, info: SeptInfo, tdr: Hpa) -> Seamcall<()> {
        let leaf = Leaf::MemRangeBlock;
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, leaf, tdr, OperandId::RDX)?;
        let found = state.locate(&mut held, leaf, tdr, info, Level::L4K, None)?;
        let (to, _) = state.transition(HostOp::RangeBlock, &found)?;
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        let mut entry = found.entry.with_state(to);
        if entry.is_leaf() && found.level == Level::L2M {
            entry = entry.with_counter(0);
        }
        state.set_entry(found.slot, entry);
        let (at, bepoch) = (found.metadata(), state.td(tdr).epoch.epoch);
        let metadata = state.pamt.get(at);
        state.pamt.set(at, super::pamt::PamtEntry { bepoch, ..metadata });
        Ok(())
    }

    /// TDH.MEM.RANGE.UNBLOCK: walks pass the entry again.
    ///
    /// # Errors
    /// The TD's (|RDX); those of the entry (|RCX); TLB_TRACKING_NOT_DONE|SEPT_TREE.
    pub fn mem_range_unblock(self, cx: &Cx<'_>, info: SeptInfo, tdr: Hpa) -> Seamcall<()> {
        let leaf = Leaf::MemRangeUnblock;
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, leaf, tdr, OperandId::RDX)?;
        let found = state.locate(&mut held, leaf, tdr, info, Level::L4K, None)?;
        let (to, mut tracking) = state.transition(HostOp::RangeUnblock, &found)?;
        if state.is_off(mutants::UNBLOCK_TRACKED) {
            tracking = Tracking::None;
        }
        state.check_tracking(tdr, tracking, &found, OperandId::SEPT_TREE)?;
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        state.set_entry(found.slot, found.entry.with_state(to));
        Ok(())
    }

    /// TDH.MEM.TRACK: the next epoch of the TD's TLBs.
    ///
    /// # Errors
    /// The TD's (|RCX); BUSY|TD_EPOCH; PREVIOUS_TLB_EPOCH_BUSY while a vCPU of the epoch before this one is inside.
    pub fn mem_track(self, cx: &Cx<'_>, tdr: Hpa) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, Leaf::MemTrack, tdr, OperandId::RCX)?;
        let busy = SeamFail::new(StatusName::OperandBusy, OperandId::TD_EPOCH);
        state.take(&mut held, LockId::Epoch(tdr), Mode::Exclusive).map_err(|_| busy)?;
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        let waits = !state.is_off(mutants::PREVIOUS_EPOCH);
        state.td_mut(tdr).epoch.advance(waits).map_err(|()| SeamFail::bare(StatusName::PreviousTlbEpochBusy))
    }
}
