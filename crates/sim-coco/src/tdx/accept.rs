//! TDG.MEM.PAGE.ACCEPT: a guest takes a page that the host added; it is zero from then on.
//!
//! It holds no lock of the tree: that the vCPU is in its TD keeps tables and pages alive. It looks whether the entry is a leaf before it locks it, and at the state
//! afterwards; a page that arrives in between is answered with PAGE_SIZE_MISMATCH.

use super::enter::{GuestStop, InTd};
use super::exit::{self, EeqType, TdExit, extended, qualification};
use super::lock::{Denied, Held, LockId, Mode, Side, Slot};
use super::machine::{Injected, State};
use super::mutants;
use super::sept::{SeptEntry, SeptState};
use super::status::{OperandId, Status, StatusName};
use super::types::{SeptInfo, level_number};
use crate::AccessKind;
use sim_kernel::Cx;
use sim_kernel::sched::Access;
use sim_mmu::{Gpa, Level};

/// Bytes of the instruction.
pub(super) const TDCALL_BYTES: u64 = 4;

/// What a TDCALL answers: whether it was done, unless the guest does not go on.
pub type Tdcall<T> = Result<Result<T, Status>, GuestStop>;

fn at_level(name: StatusName, level: Level) -> Status {
    Status { name, details: u32::from(level_number(level)) }
}

/// The place of an accept.
#[derive(Clone, Copy)]
struct At {
    slot: Slot,
    level: Level,
}

impl InTd<'_> {
    /// A TDCALL is complete: the guest goes on behind it. `answer` is not about a lock that the host wants.
    pub(super) fn complete<T>(&self, state: &mut State, answer: Result<T, Status>) -> Tdcall<T> {
        let vp = state.vp_mut(self.tdvpr);
        vp.host_priority_busy = 0;
        vp.rip = vp.rip.wrapping_add(TDCALL_BYTES);
        Ok(answer)
    }

    /// A TDCALL did not get a lock. The guest is told the same whatever the reason; but if the host is kept waiting for too long, it is told so.
    pub(super) fn busy<T>(&mut self, state: &mut State, denied: Denied, operand: OperandId) -> Tdcall<T> {
        let busy = Err(Status::of(StatusName::OperandBusy, operand));
        if denied == Denied::Busy {
            return self.complete(state, busy);
        }
        let limit = state.config.hp_lock_timeout;
        let vp = state.vp_mut(self.tdvpr);
        vp.rip = vp.rip.wrapping_add(TDCALL_BYTES);
        vp.host_priority_busy += 1;
        if vp.host_priority_busy < limit {
            return Ok(busy);
        }
        vp.host_priority_busy = 0;
        let exit = TdExit::of(StatusName::HostPriorityBusyTimeout, exit::TDCALL);
        Err(GuestStop::Exit(self.leave(state, exit, None)))
    }

    /// A TD exit for what stands in an entry. The guest executes the TDCALL again.
    pub(super) fn exit_for_entry(
        &mut self,
        state: &mut State,
        eeq: EeqType,
        required: Level,
        level: Level,
        entry: SeptEntry,
        gpa: Gpa,
    ) -> GuestStop {
        let extended = extended(eeq, required, level, entry);
        let exit = TdExit::violation(qualification(AccessKind::Write), extended, gpa);
        GuestStop::Exit(self.leave(state, exit, None))
    }

    /// TDG.MEM.PAGE.ACCEPT of 4 KiB or 2 MiB.
    ///
    /// # Errors
    /// The inner ones: OPERAND_INVALID|RCX; PAGE_ALREADY_ACCEPTED with the level (no error by its bit); PAGE_SIZE_MISMATCH with the level; BUSY|RCX. The outer ones: a TD
    /// exit if there is no such page, or an interrupt of the host during 2 MiB; the guest executes the instruction again.
    ///
    /// # Panics
    /// If the vCPU has left its TD.
    #[track_caller]
    pub fn mem_page_accept(&mut self, cx: &Cx<'_>, info: SeptInfo) -> Tdcall<()> {
        self.instruction(cx, Access::Rmw)?;
        let tdx = self.tdx;
        let mut state = tdx.state.lock();
        let gpa = info.gpa();
        let level = info.level().filter(|level| *level <= Level::L2M && info.is_clean());
        let level = level.filter(|level| gpa.gfn().is_aligned(*level) && state.td(self.tdr).gpaw().is_private(gpa));
        let Some(level) = level else {
            return self.complete(&mut state, Err(Status::of(StatusName::OperandInvalid, OperandId::RCX)));
        };
        let Ok(walk) = state.walk(self.tdr, gpa.gfn(), level) else {
            return Err(GuestStop::Exit(self.machine_check(cx, &mut state)));
        };
        if walk.level > level {
            if walk.entry.is_leaf() && walk.entry.is_walkable() {
                return self.complete(&mut state, Err(at_level(StatusName::PageAlreadyAccepted, walk.level)));
            }
            if walk.entry.state() == Some(SeptState::Pending) && state.is_off(mutants::ACCEPT_SIZE) {
                let page = SeptEntry::leaf(SeptState::Mapped, walk.entry.pfn_at(walk.level));
                let hkid = state.hkid(self.tdr);
                state.memory.zero_page(hkid, page.pfn_at(walk.level) + (gpa.gfn().0 & (walk.level.span() - 1)));
                state.set_entry(walk.slot, page);
                return self.complete(&mut state, Ok(()));
            }
            return Err(self.exit_for_entry(&mut state, EeqType::Accept, level, walk.level, walk.entry, gpa));
        }
        let was_leaf = walk.entry.is_leaf();
        drop(state);
        tdx.window(cx);
        let mut held = Held::new(tdx);
        let mut state = tdx.state.lock();
        let at = At { slot: walk.slot, level };
        if !state.is_off(mutants::ENTRY_LOCK)
            && let Err(denied) = state.take_as(&mut held, LockId::Entry(at.slot), Mode::Exclusive, Side::Guest)
        {
            return self.busy(&mut state, denied, OperandId::RCX);
        }
        let Ok(entry) = state.child(self.tdr, at.slot) else {
            return Err(GuestStop::Exit(self.machine_check(cx, &mut state)));
        };
        let found = entry.state().unwrap_or(SeptState::Free);
        if !was_leaf && found != SeptState::Free {
            return self.complete(&mut state, Err(at_level(StatusName::PageSizeMismatch, level)));
        }
        let again = entry.is_walkable() && state.is_off(mutants::ACCEPTED_ONCE);
        if entry.is_walkable() && !again {
            return self.complete(&mut state, Err(at_level(StatusName::PageAlreadyAccepted, level)));
        }
        if !found.is_acceptable() && !again {
            return Err(self.exit_for_entry(&mut state, EeqType::Accept, level, level, entry, gpa));
        }
        drop(state);
        let answer = self.accept(cx, at, entry, found);
        drop(held);
        answer
    }

    /// The page is pending, and its entry locked: zeroes it, from where the last attempt was interrupted.
    fn accept(&mut self, cx: &Cx<'_>, at: At, entry: SeptEntry, found: SeptState) -> Tdcall<()> {
        let page = entry.pfn_at(at.level);
        let first = if at.level == Level::L2M { entry.counter() } else { 0 };
        let pages = at.level.span();
        self.tdx.commit_pages(cx, page + first, pages - first);
        let mut state = self.tdx.state.lock();
        let hkid = state.hkid(self.tdr);
        for i in first..pages {
            if !state.is_off(mutants::ACCEPT_ZEROES) {
                state.memory.zero_page(hkid, page + i);
            }
            let is_last = i + 1 == pages;
            let arrives = state.happens(Injected::InterruptAcceptAfter(i + 1 - first));
            if arrives {
                state.lp_mut(self.lp).interrupt = true;
            }
            if !is_last && state.lp_mut(self.lp).interrupt {
                // The guest is left as it was; its progress is in the entry, for whoever goes on.
                state.set_entry(at.slot, entry.with_counter(i + 1));
                let exit = TdExit::reason(exit::EXTERNAL_INTERRUPT);
                return Err(GuestStop::Exit(self.leave(&mut state, exit, None)));
            }
        }
        let to = if found == SeptState::PendExpDirty { SeptState::ExpDirty } else { SeptState::Mapped };
        let entry = SeptEntry::leaf(to, page);
        if state.config.tree_host_priority {
            state.set_entry(at.slot, entry);
        } else {
            state.set_entry_without_priority(at.slot, entry);
        }
        self.complete(&mut state, Ok(()))
    }
}
