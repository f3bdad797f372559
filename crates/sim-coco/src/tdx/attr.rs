//! TDG.MEM.PAGE.ATTR.RD and ATTR.WR: what a guest can learn of a page, and the attributes that L2 VMs would have.
//!
//! There are no L2 VMs: attributes of L1 are what can be written, and they are 0. Where a walk ends above the level of ATTR.WR the specification is silent; a
//! leaf is answered with PAGE_SIZE_MISMATCH here, anything else with a TD exit.

use super::accept::Tdcall;
use super::enter::{GuestStop, InTd};
use super::exit::{EeqType, TdExit, qualification};
use super::sept::SeptState;
use super::status::{OperandId, Status, StatusName};
use super::types::{SeptInfo, level_number};
use crate::AccessKind;
use sim_kernel::Cx;
use sim_kernel::sched::Access;
use sim_mmu::{Gpa, Level};

/// What ATTR.RD answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageAttributes {
    /// First address of the page.
    pub gpa: Gpa,
    /// Its size.
    pub level: Level,
    /// Whether the guest has yet to accept it.
    pub pending: bool,
    /// RDX: 0 without L2 VMs.
    pub attributes: u64,
}

impl InTd<'_> {
    /// TDG.MEM.PAGE.ATTR.RD of the page that contains the address.
    ///
    /// # Errors
    /// OPERAND_INVALID|RCX; a TD exit if there is no such page, or it is blocked.
    ///
    /// # Panics
    /// If the vCPU has left its TD.
    #[track_caller]
    pub fn mem_page_attr_rd(&mut self, cx: &Cx<'_>, gpa: Gpa) -> Tdcall<PageAttributes> {
        self.instruction(cx, Access::Load)?;
        let mut state = self.tdx.state.lock();
        if gpa.offset() != 0 || !state.td(self.tdr).gpaw().is_private(gpa) {
            return self.complete(&mut state, Err(Status::of(StatusName::OperandInvalid, OperandId::RCX)));
        }
        let Ok(walk) = state.walk(self.tdr, gpa.gfn(), Level::L4K) else {
            return Err(GuestStop::Exit(self.machine_check(cx, &mut state)));
        };
        let found = walk.entry.state().unwrap_or(SeptState::Free);
        let is_blocked = matches!(found, SeptState::Blocked | SeptState::PendingBlocked);
        if !walk.entry.is_leaf() || is_blocked {
            let exit = TdExit::violation(qualification(AccessKind::Read), EeqType::None as u64, gpa);
            return Err(GuestStop::Exit(self.leave(&mut state, exit, None)));
        }
        let (gpa, level) = (gpa.gfn().round_down(walk.level).gpa(), walk.level);
        let pending = found.is_pending();
        self.complete(&mut state, Ok(PageAttributes { gpa, level, pending, attributes: 0 }))
    }

    /// TDG.MEM.PAGE.ATTR.WR of a page of exactly this size.
    ///
    /// # Errors
    /// OPERAND_INVALID|RCX; OPERAND_INVALID|RDX for attributes other than 0; PAGE_SIZE_MISMATCH with the level; a TD exit if there is no such page, or it cannot be
    /// written.
    ///
    /// # Panics
    /// If the vCPU has left its TD.
    #[track_caller]
    pub fn mem_page_attr_wr(&mut self, cx: &Cx<'_>, info: SeptInfo, attributes: u64) -> Tdcall<()> {
        self.instruction(cx, Access::Load)?;
        let mut state = self.tdx.state.lock();
        let invalid = |operand| Err(Status::of(StatusName::OperandInvalid, operand));
        let gpa = info.gpa();
        let level = info.level().filter(|level| *level <= Level::L1G && info.is_clean());
        let level = level.filter(|level| gpa.gfn().is_aligned(*level) && state.td(self.tdr).gpaw().is_private(gpa));
        let Some(level) = level else { return self.complete(&mut state, invalid(OperandId::RCX)) };
        if attributes != 0 {
            return self.complete(&mut state, invalid(OperandId::RDX));
        }
        let Ok(walk) = state.walk(self.tdr, gpa.gfn(), level) else {
            return Err(GuestStop::Exit(self.machine_check(cx, &mut state)));
        };
        let found = walk.entry.state().unwrap_or(SeptState::Free);
        let mismatch = Status { name: StatusName::PageSizeMismatch, details: u32::from(level_number(walk.level)) };
        let answer = match found {
            _ if walk.level > level && walk.entry.is_leaf() => Err(mismatch),
            SeptState::Mapped | SeptState::ExpDirty | SeptState::Pending | SeptState::PendExpDirty
                if walk.level == level =>
            {
                Ok(())
            }
            SeptState::Removed | SeptState::NlMapped | SeptState::NlBlocked if walk.level == level => Err(mismatch),
            _ => {
                return Err(self.exit_for_entry(&mut state, EeqType::AttrWr, level, walk.level, walk.entry, gpa));
            }
        };
        self.complete(&mut state, answer)
    }
}
