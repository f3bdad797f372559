//! An entry of the Secure EPT: 64 bits, of which seven say in which state it is.
//!
//! Bits as in the module's `ia32e_sept_t`. L2 aliases (bits 60:58) are always 0 here: there are no nested VMs.

use super::types::level_number;
use sim_kernel::{PAGE_SHIFT, Pfn};
use sim_mmu::Level;
use std::fmt;

const R: u64 = 1 << 0;
const W: u64 = 1 << 1;
const X: u64 = 1 << 2;
const RWX: u64 = R | W | X;
/// Memory type write-back, bits 5:3.
const MT_WB: u64 = 6 << 3;
const MT_MASK: u64 = 7 << 3;
const IPAT: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const D: u64 = 1 << 9;
const TDEL: u64 = 1 << 11;
const HPA_MASK: u64 = 0x000f_ffff_ffff_f000;
/// Progress of ACCEPT in a pending leaf of 2 MiB.
const COUNTER_SHIFT: u32 = 12;
const COUNTER_MASK: u64 = 0x1ff << COUNTER_SHIFT;
const TDHP: u64 = 1 << 52;
const TDEX: u64 = 1 << 53;
const TDBW: u64 = 1 << 54;
const TDB: u64 = 1 << 55;
const TDP: u64 = 1 << 56;
const SUPPRESS_VE: u64 = 1 << 63;

/// The bits of the state, from bit 0 of its code up.
const CODE_BITS: [u64; 7] = [D, TDEX, TDBW, TDB, TDP, IPAT, PS];

/// State of an entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum SeptState {
    /// Nothing is mapped.
    Free = 0,
    /// Nothing is mapped any more, in a TD that is being imported.
    Removed = 1,
    /// A table.
    NlMapped = 2,
    /// A table that no new walk passes.
    NlBlocked = 3,
    /// A page that the guest may use.
    Mapped = 4,
    /// A page that no new walk reaches.
    Blocked = 5,
    /// Blocked for writing (migration).
    BlockedW = 6,
    /// Exported (migration).
    ExpBlockedW = 7,
    /// Exported and written again (migration).
    ExpDirty = 8,
    /// As that, and blocked for writing (migration).
    ExpDirtyBlockedW = 9,
    /// A page that the guest has to accept.
    Pending = 10,
    /// As that, and blocked.
    PendingBlocked = 11,
    /// Blocked for writing (migration).
    PendingBlockedW = 12,
    /// Exported (migration).
    PendExpBlockedW = 13,
    /// Exported, to be accepted (migration).
    PendExpDirty = 14,
    /// As that, and blocked for writing (migration).
    PendExpDirtyBlockedW = 15,
}

/// What the module knows of a state.
#[derive(Clone, Copy, Debug)]
pub struct StateRow {
    /// The state.
    pub state: SeptState,
    /// The seven bits that stand for it.
    pub code: u8,
    /// How software sees it, in RDX bits 15:8.
    pub public: u8,
    /// Whether the entry is a leaf.
    pub leaf: bool,
    /// Whether changing it needs TLB tracking while the TD runs.
    pub tracking: bool,
    /// What the hardware lets a guest do: reads and fetches, and writes.
    pub guest: (bool, bool),
}

const fn row(state: SeptState, code: u8, public: u8, leaf: bool, tracking: bool, read: bool, write: bool) -> StateRow {
    StateRow { state, code, public, leaf, tracking, guest: (read, write) }
}

/// The states, in the order of their numbers.
pub const STATES: [StateRow; 16] = [
    row(SeptState::Free, 0x0e, 0, false, false, false, false),
    row(SeptState::Removed, 0x0c, 5, false, false, false, false),
    row(SeptState::NlMapped, 0x00, 132, false, true, false, false),
    row(SeptState::NlBlocked, 0x08, 129, false, true, false, false),
    row(SeptState::Mapped, 0x60, 4, true, true, true, true),
    row(SeptState::Blocked, 0x68, 1, true, true, false, false),
    row(SeptState::BlockedW, 0x64, 8, true, true, true, false),
    row(SeptState::ExpBlockedW, 0x66, 9, true, false, true, false),
    row(SeptState::ExpDirty, 0x63, 11, true, true, true, true),
    row(SeptState::ExpDirtyBlockedW, 0x67, 12, true, true, true, false),
    row(SeptState::Pending, 0x70, 2, true, true, false, false),
    row(SeptState::PendingBlocked, 0x78, 3, true, true, false, false),
    row(SeptState::PendingBlockedW, 0x74, 16, true, true, false, false),
    row(SeptState::PendExpBlockedW, 0x76, 17, true, false, false, false),
    row(SeptState::PendExpDirty, 0x73, 19, true, true, false, false),
    row(SeptState::PendExpDirtyBlockedW, 0x77, 20, true, true, false, false),
];

impl SeptState {
    /// Its row.
    pub const fn row(self) -> &'static StateRow {
        &STATES[self as usize]
    }

    /// The state with this number in RDX bits 15:8.
    pub fn from_public(public: u8) -> Option<SeptState> {
        STATES.iter().find(|row| row.public == public).map(|row| row.state)
    }

    /// Whether the guest has to accept the page: PENDING and PEND_EXP_DIRTY.
    pub const fn is_acceptable(self) -> bool {
        matches!(self, SeptState::Pending | SeptState::PendExpDirty)
    }

    /// Whether the page is not the guest's yet, blocked or not.
    pub const fn is_pending(self) -> bool {
        self as u8 >= SeptState::Pending as u8
    }
}

/// What software is shown of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryDetails {
    /// RCX: the entry without what is the module's business.
    pub rcx: u64,
    /// RDX: level in bits 2:0, state in bits 15:8.
    pub rdx: u64,
}

/// An entry.
///
/// ```
/// use sim_coco::tdx::{SeptEntry, SeptState};
/// use sim_kernel::Pfn;
/// let entry = SeptEntry::leaf(SeptState::Pending, Pfn(7));
/// assert_eq!((entry.state(), entry.pfn(), entry.is_walkable()), (Some(SeptState::Pending), Pfn(7), false));
/// assert_eq!(entry.with_state(SeptState::Mapped), SeptEntry::leaf(SeptState::Mapped, Pfn(7)));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SeptEntry(pub u64);

impl SeptEntry {
    /// Nothing: what fills a new table.
    pub const FREE: SeptEntry = SeptEntry(SUPPRESS_VE | TDEX | TDBW | TDB);

    const fn code_bits(code: u8) -> u64 {
        let mut bits = 0;
        let mut i = 0;
        while i < 7 {
            if code >> i & 1 != 0 {
                bits |= CODE_BITS[i];
            }
            i += 1;
        }
        bits
    }

    /// A leaf. The frame of a large page is its first.
    pub const fn leaf(state: SeptState, pfn: Pfn) -> SeptEntry {
        SeptEntry(SUPPRESS_VE | MT_WB | pfn.0 << PAGE_SHIFT & HPA_MASK).with_state(state)
    }

    /// A table.
    pub const fn table(pfn: Pfn) -> SeptEntry {
        SeptEntry(SUPPRESS_VE | pfn.0 << PAGE_SHIFT & HPA_MASK).with_state(SeptState::NlMapped)
    }

    /// The same page or table in another state, with the permissions that go with it.
    #[must_use]
    pub const fn with_state(self, state: SeptState) -> SeptEntry {
        let row = state.row();
        let permissions = match state {
            SeptState::NlMapped => RWX,
            _ => (if row.guest.0 { R | X } else { 0 }) | if row.guest.1 { W } else { 0 },
        };
        let kept = self.0 & !(RWX | Self::code_bits(0x7f));
        SeptEntry(kept | permissions | Self::code_bits(row.code))
    }

    /// The state; `None` if no state has these bits.
    pub fn state(self) -> Option<SeptState> {
        let code = CODE_BITS.iter().enumerate().fold(0, |code, (i, bit)| code | u8::from(self.0 & bit != 0) << i);
        STATES.iter().find(|row| row.code == code).map(|row| row.state)
    }

    /// Whether it is a leaf.
    pub const fn is_leaf(self) -> bool {
        self.0 & PS != 0
    }

    /// Whether any permission is set: a walk goes on, or ends well.
    pub const fn is_walkable(self) -> bool {
        self.0 & RWX != 0
    }

    /// Whether it is a table that a walk passes.
    pub const fn is_open_table(self) -> bool {
        self.is_walkable() && !self.is_leaf()
    }

    /// Whether the guest may write.
    pub const fn is_writable(self) -> bool {
        self.0 & W != 0
    }

    /// The first frame of the page, or of the table. Of a large page that is being accepted, without its counter.
    pub const fn pfn(self) -> Pfn {
        Pfn((self.0 & HPA_MASK) >> PAGE_SHIFT)
    }

    /// The first frame of a page at a level, whatever the counter says.
    pub const fn pfn_at(self, level: Level) -> Pfn {
        Pfn(self.pfn().0 & !(level.span() - 1))
    }

    /// Progress of ACCEPT.
    pub const fn counter(self) -> u64 {
        (self.0 & COUNTER_MASK) >> COUNTER_SHIFT
    }

    /// With this progress.
    #[must_use]
    pub const fn with_counter(self, counter: u64) -> SeptEntry {
        SeptEntry(self.0 & !COUNTER_MASK | counter << COUNTER_SHIFT & COUNTER_MASK)
    }

    /// Whether somebody has the entry's lock.
    pub const fn is_locked(self) -> bool {
        self.0 & TDEL != 0
    }

    /// Whether the host failed to get the lock, and comes before guests.
    pub const fn has_host_priority(self) -> bool {
        self.0 & TDHP != 0
    }

    #[must_use]
    pub(super) const fn locked(self, on: bool) -> SeptEntry {
        SeptEntry(if on { self.0 | TDEL } else { self.0 & !TDEL })
    }

    #[must_use]
    pub(super) const fn prioritised(self, on: bool) -> SeptEntry {
        SeptEntry(if on { self.0 | TDHP } else { self.0 & !TDHP })
    }

    /// The entry without its lock.
    #[must_use]
    pub const fn unlocked(self) -> SeptEntry {
        SeptEntry(self.0 & !(TDEL | TDHP))
    }

    /// What software is shown of it.
    pub fn details(self, level: Level) -> EntryDetails {
        let state = self.state();
        let public = state.map_or(0xff, |state| state.row().public);
        let rcx = match state {
            Some(SeptState::Free) => SUPPRESS_VE,
            _ if self.is_leaf() => self.0 & (RWX | MT_MASK | IPAT | PS | HPA_MASK | SUPPRESS_VE),
            _ => self.0 & RWX,
        };
        EntryDetails { rcx, rdx: u64::from(level_number(level)) | u64::from(public) << 8 }
    }
}

impl fmt::Debug for SeptEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state() {
            Some(SeptState::Free) => f.write_str("Free"),
            Some(state) => write!(f, "{state:?} {:?}", self.pfn()),
            None => write!(f, "SeptEntry({:#x})", self.0),
        }
    }
}
