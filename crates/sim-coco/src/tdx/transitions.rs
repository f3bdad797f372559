//! What each operation of the host does with an entry in each state: the module's table of transitions, as data.
//!
//! A cell is the state that the entry gets, or the status that refuses. What a cell asks of TLB tracking holds only in op states that track.

use super::sept::SeptState;
use super::sept::SeptState::*;
use super::status::StatusName::{self, EptEntryNotPresent, EptEntryStateIncorrect, GpaRangeAlreadyBlocked};

/// A leaf that looks at the state of one entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum HostOp {
    /// TDH.MEM.SEPT.ADD.
    SeptAdd,
    /// TDH.MEM.PAGE.ADD.
    PageAdd,
    /// TDH.MEM.PAGE.AUG.
    PageAug,
    /// TDH.MEM.RANGE.BLOCK.
    RangeBlock,
    /// TDH.MEM.RANGE.UNBLOCK.
    RangeUnblock,
    /// TDH.MEM.PAGE.REMOVE.
    PageRemove,
    /// TDH.MEM.SEPT.REMOVE.
    SeptRemove,
    /// TDH.MEM.PAGE.PROMOTE.
    PagePromote,
    /// TDH.MEM.PAGE.DEMOTE.
    PageDemote,
    /// TDH.MEM.PAGE.RELOCATE.
    PageRelocate,
    /// TDH.MR.EXTEND.
    MrExtend,
    /// TDH.MEM.RD.
    MemRd,
    /// TDH.MEM.WR.
    MemWr,
    /// TDH.MEM.SEPT.RD.
    SeptRd,
}

/// What has to be known of TLBs before an entry is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tracking {
    /// Nothing.
    None,
    /// The entry is not blocked: GPA_RANGE_NOT_BLOCKED while the TD tracks.
    Blocked,
    /// The entry is blocked: TLB_TRACKING_NOT_DONE until tracking is done.
    Tracked,
}

/// A cell of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cell {
    /// The state is refused.
    Refused(StatusName),
    /// The entry goes to this state. DEMOTE: the children's; PROMOTE: whatever the children are in.
    To(SeptState, Tracking),
}

const SI: Cell = Cell::Refused(EptEntryStateIncorrect);
const AB: Cell = Cell::Refused(GpaRangeAlreadyBlocked);
const NP: Cell = Cell::Refused(EptEntryNotPresent);

const fn go(to: SeptState) -> Cell {
    Cell::To(to, Tracking::None)
}

const fn nb(to: SeptState) -> Cell {
    Cell::To(to, Tracking::Blocked)
}

const fn nt(to: SeptState) -> Cell {
    Cell::To(to, Tracking::Tracked)
}

impl HostOp {
    /// All of them.
    pub const ALL: [HostOp; 14] = [
        HostOp::SeptAdd,
        HostOp::PageAdd,
        HostOp::PageAug,
        HostOp::RangeBlock,
        HostOp::RangeUnblock,
        HostOp::PageRemove,
        HostOp::SeptRemove,
        HostOp::PagePromote,
        HostOp::PageDemote,
        HostOp::PageRelocate,
        HostOp::MrExtend,
        HostOp::MemRd,
        HostOp::MemWr,
        HostOp::SeptRd,
    ];

    /// The cell for a state.
    pub const fn cell(self, state: SeptState) -> Cell {
        TABLE[state as usize][self as usize]
    }
}

/// The table: a row for each state, a column for each operation, both in the order of their numbers.
#[rustfmt::skip]
const TABLE: [[Cell; 14]; 16] = [
    // SEPT.ADD      PAGE.ADD    AUG          BLOCK               UNBLOCK       REMOVE    SEPT.REM. PROMOTE     DEMOTE       RELOCATE                    EXTEND      MEM.RD                MEM.WR        SEPT.RD
    [go(NlMapped),   go(Mapped), go(Pending), SI,                 SI,           SI,       SI,       SI,         SI,          SI,                         NP,         NP,                   NP,           go(Free)],
    [SI,             SI,         go(Pending), SI,                 SI,           SI,       SI,       SI,         SI,          SI,                         NP,         NP,                   NP,           go(Removed)],
    [SI,             SI,         SI,          go(NlBlocked),      SI,           SI,       nb(Free), nb(Mapped), SI,          SI,                         NP,         NP,                   NP,           go(NlMapped)],
    [SI,             SI,         SI,          AB,                 nt(NlMapped), SI,       nt(Free), nt(Mapped), SI,          SI,                         NP,         NP,                   NP,           go(NlBlocked)],
    [SI,             SI,         SI,          go(Blocked),        SI,           nb(Free), SI,       SI,         nb(Mapped),  nb(Mapped),                 go(Mapped), go(Mapped),           go(Mapped),   go(Mapped)],
    [SI,             SI,         SI,          AB,                 nt(Mapped),   nt(Free), SI,       SI,         nt(Mapped),  nt(Mapped),                 NP,         NP,                   NP,           go(Blocked)],
    [SI,             SI,         SI,          go(Blocked),        SI,           nb(Free), SI,       SI,         SI,          nb(BlockedW),               NP,         go(BlockedW),         SI,           go(BlockedW)],
    [SI,             SI,         SI,          SI,                 SI,           SI,       SI,       SI,         SI,          go(ExpBlockedW),            NP,         go(ExpBlockedW),      SI,           go(ExpBlockedW)],
    [SI,             SI,         SI,          SI,                 SI,           SI,       SI,       SI,         SI,          nb(ExpDirty),               NP,         go(ExpDirty),         go(ExpDirty), go(ExpDirty)],
    [SI,             SI,         SI,          SI,                 SI,           SI,       SI,       SI,         SI,          nb(ExpDirtyBlockedW),       NP,         go(ExpDirtyBlockedW), SI,           go(ExpDirtyBlockedW)],
    [SI,             SI,         SI,          go(PendingBlocked), SI,           nb(Free), SI,       SI,         nb(Pending), nb(Pending),                NP,         NP,                   NP,           go(Pending)],
    [SI,             SI,         SI,          AB,                 nt(Pending),  nt(Free), SI,       SI,         nt(Pending), nt(Pending),                NP,         NP,                   NP,           go(PendingBlocked)],
    [SI,             SI,         SI,          go(PendingBlocked), SI,           nb(Free), SI,       SI,         SI,          nb(PendingBlockedW),        NP,         NP,                   NP,           go(PendingBlockedW)],
    [SI,             SI,         SI,          SI,                 SI,           SI,       SI,       SI,         SI,          go(PendExpBlockedW),        NP,         NP,                   NP,           go(PendExpBlockedW)],
    [SI,             SI,         SI,          SI,                 SI,           SI,       SI,       SI,         SI,          nb(PendExpDirty),           NP,         NP,                   NP,           go(PendExpDirty)],
    [SI,             SI,         SI,          SI,                 SI,           SI,       SI,       SI,         SI,          nb(PendExpDirtyBlockedW),   NP,         NP,                   NP,           go(PendExpDirtyBlockedW)],
];
