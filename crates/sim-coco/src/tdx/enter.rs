//! TDH.VP.ENTER and TD exits: a vCPU goes into its TD, and comes back.
//!
//! A vCPU in its TD holds its TDVPR and its TDR shared, and is counted in the epoch in which it entered. Also here: what is done against a host that lets a
//! guest fault at one instruction again and again (zero-stepping).

use super::exit::{self, TdExit, VmCall};
use super::leaf::Leaf;
use super::lock::{Held, LockId, Mode};
use super::machine::{Seam, State, Tdx};
use super::mutants;
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::types::{Hpa, Lp};
use super::vp::{EPF_LIST_MAX, LastCall, VcpuState, VeInfo, ZERO_STEP_THRESHOLD};
use sim_kernel::sched::Access;
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gpa, Level};

/// What VP.ENTER came to.
#[derive(Debug)]
#[must_use = "a vCPU that is inside stays there until it exits"]
pub enum Entry<'a> {
    /// The vCPU is in its TD.
    Inside(InTd<'a>),
    /// It was not entered: an address at which it faulted again and again is still not mapped.
    Exit(TdExit),
}

/// Why a guest does not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestStop {
    /// The vCPU has left its TD.
    Exit(TdExit),
    /// `#VE`: the vCPU is inside, and its handler is next.
    Ve(VeInfo),
    /// `#DF`: a `#VE` while VE_INFO is valid.
    DoubleFault,
    /// `#PF` with RSVD: the guest's tables name an address beyond its width.
    PageFault,
}

/// A vCPU in its TD, on a processor.
#[derive(Debug)]
#[must_use = "the vCPU stays inside until it exits"]
pub struct InTd<'a> {
    pub(super) tdx: &'a Tdx,
    pub(super) lp: Lp,
    pub(super) tdvpr: Pfn,
    pub(super) tdr: Pfn,
    held: Held<'a>,
    inside: bool,
}

impl Drop for InTd<'_> {
    fn drop(&mut self) {
        assert!(!self.inside || std::thread::panicking(), "TDX-INV-009: a vCPU that never left its TD was forgotten");
    }
}

impl<'a> Seam<'a> {
    /// TDH.VP.ENTER.
    ///
    /// # Errors
    /// The vCPU's (|RCX); BUSY|TDR; the TD's; TDCX_NUM_INCORRECT; VCPU_STATE_INCORRECT; VCPU_ASSOCIATED with another processor; BUSY|TD_EPOCH; BUSY|SEPT_TREE while
    /// zero-stepping is being stopped. The vCPU may be associated with this processor afterwards.
    pub fn vp_enter(self, cx: &Cx<'_>, tdvpr: Hpa) -> Seamcall<Entry<'a>> {
        self.vp_enter_with(cx, tdvpr, &[0; 16])
    }

    /// As [`Seam::vp_enter`], with registers: those that the guest's last TDG.VP.VMCALL showed are the answer to it.
    ///
    /// # Errors
    /// As [`Seam::vp_enter`].
    pub fn vp_enter_with(self, cx: &Cx<'_>, tdvpr: Hpa, registers: &[u64; 16]) -> Seamcall<Entry<'a>> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let (tdvpr, tdr) = state.open_vp(&mut held, tdvpr, OperandId::RCX, Leaf::VpEnter.locks())?;
        state.check_state(&mut held, Leaf::VpEnter, tdr)?;
        state.check_tdvps(tdvpr)?;
        if state.vp(tdvpr).state != VcpuState::Ready {
            return Err(StatusName::VcpuStateIncorrect.into());
        }
        let is_new_here = state.associate(tdvpr, tdr, self.lp)?;
        // Two tasks that claim to be one processor.
        if state.vp(tdvpr).counted {
            return Err(StatusName::VcpuStateIncorrect.into());
        }
        let busy = SeamFail::new(StatusName::OperandBusy, OperandId::TD_EPOCH);
        state.take(&mut held, LockId::Epoch(tdr), Mode::Shared).map_err(|_| busy)?;
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        state.enter_epoch(tdvpr, tdr, self.lp, is_new_here);
        state.release_early(&mut held, LockId::Epoch(tdr));
        let is_stepped = !state.vp(tdvpr).epf_list.is_empty();
        if is_stepped {
            if state.take(&mut held, LockId::Tree(tdr), Mode::Exclusive).is_err() {
                state.leave_epoch(tdvpr, tdr);
                return Err(SeamFail::new(StatusName::OperandBusy, OperandId::SEPT_TREE));
            }
            // Others meet the lock here, whatever the walks give.
            drop(state);
            self.tdx.window(cx);
            state = self.tdx.state.lock();
        }
        match state.stop_zero_step(tdvpr, tdr) {
            Ok(None) => {}
            Ok(Some(exit)) => {
                state.leave_epoch(tdvpr, tdr);
                return Ok(Entry::Exit(exit));
            }
            Err(fail) => {
                state.leave_epoch(tdvpr, tdr);
                return Err(fail);
            }
        }
        state.release_early(&mut held, LockId::Tree(tdr));
        state.release_early(&mut held, LockId::OpState(tdr));
        state.go_inside(tdvpr, tdr, self.lp, is_stepped);
        let vp = state.vp_mut(tdvpr);
        if let Some(LastCall::Asked(call)) = vp.vmcall {
            vp.vmcall = Some(LastCall::Answered(VmCall::shown(call.mask, registers)));
        }
        drop(state);
        Ok(Entry::Inside(InTd { tdx: self.tdx, lp: self.lp, tdvpr, tdr, held, inside: true }))
    }
}

impl State {
    /// The vCPU belongs to this processor now; whether it did not before.
    fn associate(&mut self, tdvpr: Pfn, tdr: Pfn, lp: Lp) -> Seamcall<bool> {
        let ignores = self.is_off(mutants::ASSOCIATED);
        let vp = self.vp_mut(tdvpr);
        match vp.assoc {
            Some(at) if at == lp => Ok(false),
            Some(_) if ignores => {
                vp.assoc = Some(lp);
                Ok(false)
            }
            Some(_) => Err(StatusName::VcpuAssociated.into()),
            None => {
                vp.assoc = Some(lp);
                self.td_mut(tdr).num_assoc += 1;
                Ok(true)
            }
        }
    }

    fn enter_epoch(&mut self, tdvpr: Pfn, tdr: Pfn, lp: Lp, is_new_here: bool) {
        let epoch = self.td_mut(tdr).epoch.enter();
        let hkid = self.hkid(tdr);
        let flushes = !self.is_off(mutants::EPOCH_FLUSH);
        let vp = self.vp_mut(tdvpr);
        vp.counted = true;
        if vp.vcpu_epoch != epoch {
            vp.vcpu_epoch = epoch;
            // A vCPU that is new here is flushed for below, because another ran here last.
            if !is_new_here && flushes {
                self.lp_mut(lp).tlb.flush(hkid);
            }
        }
    }

    pub(super) fn leave_epoch(&mut self, tdvpr: Pfn, tdr: Pfn) {
        let vp = self.vp_mut(tdvpr);
        vp.counted = false;
        let entered = vp.vcpu_epoch;
        self.td_mut(tdr).epoch.leave(entered);
    }

    /// The remembered addresses must be mapped before the vCPU runs again: the tree is locked until it does.
    fn stop_zero_step(&mut self, tdvpr: Pfn, tdr: Pfn) -> Seamcall<Option<TdExit>> {
        for gpa in self.vp(tdvpr).epf_list.clone() {
            let walk = self.walk_for(tdr, gpa.gfn(), Level::L4K)?;
            if !(walk.entry.is_leaf() && walk.entry.is_walkable() && walk.entry.is_writable()) {
                return Ok(Some(TdExit::violation(exit::qualification(crate::AccessKind::Write), 0, gpa)));
            }
        }
        Ok(None)
    }

    fn go_inside(&mut self, tdvpr: Pfn, tdr: Pfn, lp: Lp, was_stepped: bool) {
        let (hkid, flushes) = (self.hkid(tdr), !self.is_off(mutants::LP_FLUSH));
        let processor = self.lp_mut(lp);
        if processor.last != Some(tdvpr) {
            if flushes {
                processor.tlb.flush(hkid);
            }
            processor.last = Some(tdvpr);
        }
        let notifies = was_stepped && self.td(tdr).notify_zero_step;
        let vp = self.vp_mut(tdvpr);
        vp.state = VcpuState::Active;
        vp.rip_at_entry = vp.rip;
        if notifies && vp.last_exit_was_epf && vp.ve_info.is_none() {
            let gpa = vp.epf_list[vp.epf_list.len() - 1];
            vp.ve_info = Some(VeInfo::ept_violation(0, gpa));
            vp.ve_pending = true;
        }
    }

    /// What every TD exit does; `violation`: the address of a violation by an access, which counts as a step.
    fn leave_td(&mut self, tdvpr: Pfn, tdr: Pfn, exit: &TdExit, violation: Option<Gpa>) {
        let counts = !self.is_off(mutants::ZERO_STEP);
        let vp = self.vp_mut(tdvpr);
        vp.state =
            if exit.status.name == StatusName::NonRecoverableVcpu { VcpuState::Disabled } else { VcpuState::Ready };
        if vp.rip != vp.rip_at_entry {
            vp.epf_count = 0;
            vp.epf_list.clear();
        }
        vp.last_exit_was_epf = violation.is_some();
        if let Some(gpa) = violation.filter(|_| counts) {
            if vp.epf_count < ZERO_STEP_THRESHOLD {
                vp.epf_count += 1;
            } else if !vp.epf_list.contains(&gpa) && vp.epf_list.len() < EPF_LIST_MAX {
                vp.epf_list.push(gpa);
            }
        }
        if exit.status.name == StatusName::NonRecoverableTdNonAccessible {
            // It stays counted; nobody asks any more.
            vp.counted = false;
        } else {
            self.leave_epoch(tdvpr, tdr);
        }
    }
}

impl InTd<'_> {
    /// Whether the vCPU is still in its TD.
    pub const fn is_inside(&self) -> bool {
        self.inside
    }

    /// The TDR of its TD.
    pub const fn tdr(&self) -> Pfn {
        self.tdr
    }

    /// Its TDVPR.
    pub const fn tdvpr(&self) -> Pfn {
        self.tdvpr
    }

    /// The processor.
    pub const fn lp(&self) -> Lp {
        self.lp
    }

    /// Where the guest is.
    pub fn rip(&self) -> u64 {
        self.tdx.state.lock().vp(self.tdvpr).rip
    }

    /// The guest goes on at another instruction. What repeats an instruction without progress is zero-stepped.
    pub fn set_rip(&mut self, rip: u64) {
        self.tdx.state.lock().vp_mut(self.tdvpr).rip = rip;
    }

    fn assert_inside(&self) {
        assert!(self.inside, "a vCPU that has left its TD executes nothing");
    }

    /// The scheduling point of an instruction of the guest. Before the first one it takes the `#VE` that VP.ENTER has put there.
    ///
    /// # Panics
    /// If the vCPU has left its TD.
    #[track_caller]
    pub(super) fn instruction(&mut self, cx: &Cx<'_>, access: Access) -> Result<(), GuestStop> {
        self.assert_inside();
        if access == Access::Load {
            self.tdx.point_read(cx)
        } else {
            self.tdx.point(cx)
        }
        let mut state = self.tdx.state.lock();
        let vp = state.vp_mut(self.tdvpr);
        let info = vp.ve_info.filter(|_| std::mem::take(&mut vp.ve_pending));
        info.map_or(Ok(()), |info| Err(GuestStop::Ve(info)))
    }

    /// Leaves, as a part of a step that was announced.
    pub(super) fn leave(&mut self, state: &mut State, exit: TdExit, violation: Option<Gpa>) -> TdExit {
        state.leave_td(self.tdvpr, self.tdr, &exit, violation);
        for (id, mode) in std::mem::take(&mut self.held.locks).into_iter().rev() {
            state.release(id, mode);
        }
        self.inside = false;
        exit
    }

    /// The guest consumed poison: a machine check, after which the TD is fatal.
    pub(super) fn machine_check(&mut self, cx: &Cx<'_>, state: &mut State) -> TdExit {
        self.tdx.changes(cx);
        state.consume(self.tdr);
        self.leave(state, TdExit::of(StatusName::NonRecoverableTdNonAccessible, exit::EXCEPTION_NMI), None)
    }

    /// The processor leaves the TD for a reason that has nothing to do with what the guest does: an interrupt, an NMI.
    ///
    /// # Panics
    /// If it has left.
    #[track_caller]
    pub fn exit(&mut self, cx: &Cx<'_>, reason: u32) -> TdExit {
        self.assert_inside();
        self.tdx.point(cx);
        let mut state = self.tdx.state.lock();
        self.leave(&mut state, TdExit::reason(reason), None)
    }

    /// An exit from which the vCPU does not recover (a triple fault).
    ///
    /// # Panics
    /// If it has left.
    #[track_caller]
    pub fn exit_for_good(&mut self, cx: &Cx<'_>, reason: u32) -> TdExit {
        self.assert_inside();
        self.tdx.point(cx);
        let mut state = self.tdx.state.lock();
        self.leave(&mut state, TdExit::of(StatusName::NonRecoverableVcpu, reason), None)
    }
}
