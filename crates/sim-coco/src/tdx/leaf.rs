//! The leaves that the host calls, as data: numbers, the states of a TD in which they are allowed, and the locks that they take.

use super::lock::Mode;
use super::td::OpState;

/// A leaf of SEAMCALL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[allow(missing_docs, reason = "each is the leaf that its name says")]
#[repr(u16)]
pub enum Leaf {
    VpEnter = 0,
    MngAddcx = 1,
    MemPageAdd = 2,
    MemSeptAdd = 3,
    VpAddcx = 4,
    MemPageRelocate = 5,
    MemPageAug = 6,
    MemRangeBlock = 7,
    MngKeyConfig = 8,
    MngCreate = 9,
    VpCreate = 10,
    MemRd = 12,
    MemWr = 14,
    MemPageDemote = 15,
    MrExtend = 16,
    MrFinalize = 17,
    VpFlush = 18,
    MngVpflushdone = 19,
    MngKeyFreeid = 20,
    MngInit = 21,
    VpInit = 22,
    MemPagePromote = 23,
    PhymemPageRdmd = 24,
    MemSeptRd = 25,
    PhymemPageReclaim = 28,
    MemPageRemove = 29,
    MemSeptRemove = 30,
    SysKeyConfig = 31,
    SysInit = 33,
    SysTdmrInit = 36,
    MemTrack = 38,
    MemRangeUnblock = 39,
    PhymemCacheWb = 40,
    PhymemPageWbinvd = 41,
    SysConfig = 45,
    SysShutdown = 52,
    PhymemPamtAdd = 58,
    PhymemPamtRemove = 59,
}

/// The locks of a vCPU and its TD that a leaf takes, in this order; `None`: not at all, or implied by the one before.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct LeafLocks {
    /// Of a vCPU that the leaf finds by its TDVPR. VP.CREATE takes that of a new page.
    pub(super) tdvpr: Option<Mode>,
    pub(super) tdr: Option<Mode>,
    pub(super) op_state: Option<Mode>,
    pub(super) tree: Option<Mode>,
    /// Of the entry that the leaf is about.
    pub(super) entry: bool,
}

impl Leaf {
    /// All of them.
    pub const ALL: [Leaf; 38] = [
        Leaf::VpEnter,
        Leaf::MngAddcx,
        Leaf::MemPageAdd,
        Leaf::MemSeptAdd,
        Leaf::VpAddcx,
        Leaf::MemPageRelocate,
        Leaf::MemPageAug,
        Leaf::MemRangeBlock,
        Leaf::MngKeyConfig,
        Leaf::MngCreate,
        Leaf::VpCreate,
        Leaf::MemRd,
        Leaf::MemWr,
        Leaf::MemPageDemote,
        Leaf::MrExtend,
        Leaf::MrFinalize,
        Leaf::VpFlush,
        Leaf::MngVpflushdone,
        Leaf::MngKeyFreeid,
        Leaf::MngInit,
        Leaf::VpInit,
        Leaf::MemPagePromote,
        Leaf::PhymemPageRdmd,
        Leaf::MemSeptRd,
        Leaf::PhymemPageReclaim,
        Leaf::MemPageRemove,
        Leaf::MemSeptRemove,
        Leaf::SysKeyConfig,
        Leaf::SysInit,
        Leaf::SysTdmrInit,
        Leaf::MemTrack,
        Leaf::MemRangeUnblock,
        Leaf::PhymemCacheWb,
        Leaf::PhymemPageWbinvd,
        Leaf::SysConfig,
        Leaf::SysShutdown,
        Leaf::PhymemPamtAdd,
        Leaf::PhymemPamtRemove,
    ];

    /// The number in RAX.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The leaf with this number.
    pub fn from_number(number: u16) -> Option<Leaf> {
        Leaf::ALL.into_iter().find(|leaf| leaf.number() == number)
    }

    /// Intel's name for it.
    ///
    /// ```
    /// assert_eq!(sim_coco::tdx::Leaf::MemRangeBlock.name(), "TDH.MEM.RANGE.BLOCK");
    /// ```
    pub fn name(self) -> String {
        let mut name = "TDH".to_string();
        for letter in format!("{self:?}").chars() {
            if letter.is_ascii_uppercase() {
                name.push('.');
            }
            name.push(letter.to_ascii_uppercase());
        }
        name
    }

    /// Largest version that the leaf has. VP.INIT version 1 and DEMOTE's are of later modules.
    pub const fn version_max(self) -> u8 {
        match self {
            Leaf::MemSeptAdd | Leaf::MemSeptRemove | Leaf::MemPagePromote | Leaf::VpInit => 1,
            _ => 0,
        }
    }

    /// States of a TD in which the leaf is allowed, by number; `None` for leaves that do not look.
    pub const fn op_states(self) -> Option<&'static [u8]> {
        Some(match self {
            Leaf::VpEnter => &[2, 3, 9],
            Leaf::MngAddcx | Leaf::MngInit => &[0],
            Leaf::MemPageAdd | Leaf::MrExtend | Leaf::MrFinalize | Leaf::VpInit => &[1],
            Leaf::MemSeptAdd => &[1, 2, 3, 6, 7, 8, 9],
            Leaf::VpAddcx | Leaf::VpCreate => &[1, 7],
            Leaf::MemPageAug => &[1, 2, 3, 9],
            Leaf::MemPageRelocate
            | Leaf::MemRangeBlock
            | Leaf::MemRangeUnblock
            | Leaf::MemPageDemote
            | Leaf::MemPagePromote => &[1, 2, 3, 4, 5, 8, 9],
            Leaf::MemPageRemove => &[1, 2, 3, 4, 5, 8, 9, 10],
            Leaf::MemSeptRd | Leaf::MemRd | Leaf::MemSeptRemove => &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
            Leaf::MemWr => &[1, 2, 3, 6, 7, 8, 9, 10],
            Leaf::MemTrack => &[1, 2, 3, 4, 5, 6, 7, 8, 9],
            _ => return None,
        })
    }

    /// Whether the leaf is allowed in this state.
    pub fn is_allowed_in(self, state: OpState) -> bool {
        self.op_states().is_none_or(|states| states.contains(&(state as u8)))
    }

    /// Which locks a leaf takes, in its version 0.
    pub(super) const fn locks(self) -> LeafLocks {
        const X: Option<Mode> = Some(Mode::Exclusive);
        const S: Option<Mode> = Some(Mode::Shared);
        let (tdvpr, tdr, op_state, tree, entry) = match self {
            Leaf::VpEnter => (S, S, S, None, false),
            Leaf::VpAddcx | Leaf::VpInit => (X, S, S, None, false),
            Leaf::VpFlush => (X, S, None, None, false),
            Leaf::VpCreate | Leaf::MemTrack => (None, S, S, None, false),
            Leaf::MemSeptAdd
            | Leaf::MemSeptRd
            | Leaf::MemRd
            | Leaf::MemWr
            | Leaf::MemPageAug
            | Leaf::MemPageRemove
            | Leaf::MemPagePromote
            | Leaf::MemPageDemote
            | Leaf::MemPageRelocate => (None, S, S, S, true),
            Leaf::MemSeptRemove | Leaf::MemRangeBlock | Leaf::MemRangeUnblock => (None, S, S, X, true),
            Leaf::MngKeyConfig
            | Leaf::MngAddcx
            | Leaf::MngInit
            | Leaf::MngVpflushdone
            | Leaf::MngKeyFreeid
            | Leaf::MemPageAdd
            | Leaf::MrExtend
            | Leaf::MrFinalize => (None, X, None, None, false),
            // Of no TD, or of a page whose owner is found by it.
            Leaf::MngCreate
            | Leaf::PhymemPageReclaim
            | Leaf::PhymemPageRdmd
            | Leaf::PhymemCacheWb
            | Leaf::PhymemPageWbinvd
            | Leaf::PhymemPamtAdd
            | Leaf::PhymemPamtRemove
            | Leaf::SysKeyConfig
            | Leaf::SysInit
            | Leaf::SysTdmrInit
            | Leaf::SysConfig
            | Leaf::SysShutdown => (None, None, None, None, false),
        };
        LeafLocks { tdvpr, tdr, op_state, tree, entry }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The locks of the published table: TDVPR, TDR, op_state, tree, entry.
    const LOCKS: &str = "
MngCreate         - - - - -
MngKeyConfig      - X - - -
MngAddcx          - X - - -
MngInit           - X - - -
MemPageAdd        - X - - -
MrExtend          - X - - -
MrFinalize        - X - - -
VpCreate          - S S - -
VpAddcx           X S S - -
VpInit            X S S - -
VpFlush           X S - - -
VpEnter           S S S - -
MemSeptAdd        - S S S e
MemSeptRemove     - S S X e
MemSeptRd         - S S S e
MemRd             - S S S e
MemWr             - S S S e
MemPageAug        - S S S e
MemPageRemove     - S S S e
MemPagePromote    - S S S e
MemPageDemote     - S S S e
MemPageRelocate   - S S S e
MemRangeBlock     - S S X e
MemRangeUnblock   - S S X e
MemTrack          - S S - -
MngVpflushdone    - X - - -
MngKeyFreeid      - X - - -
PhymemCacheWb     - - - - -
PhymemPageReclaim - - - - -
PhymemPageWbinvd  - - - - -
PhymemPageRdmd    - - - - -
PhymemPamtAdd     - - - - -
PhymemPamtRemove  - - - - -
SysKeyConfig      - - - - -
SysInit           - - - - -
SysTdmrInit       - - - - -
SysConfig         - - - - -
SysShutdown       - - - - -
";

    #[test]
    fn locks_are_those_of_the_table() {
        let letter = |mode: Option<Mode>| match mode {
            None => "-",
            Some(Mode::Shared) => "S",
            Some(Mode::Exclusive) => "X",
        };
        let mut rows: Vec<Vec<&str>> = LOCKS.trim().lines().map(|line| line.split_whitespace().collect()).collect();
        for leaf in Leaf::ALL {
            let name = format!("{leaf:?}");
            let at = rows.iter().position(|row| row[0] == name).unwrap_or_else(|| panic!("{name} has no row"));
            let LeafLocks { tdvpr, tdr, op_state, tree, entry } = leaf.locks();
            let locks = [letter(tdvpr), letter(tdr), letter(op_state), letter(tree), if entry { "e" } else { "-" }];
            assert_eq!(rows.remove(at)[1..], locks, "{name}");
        }
        assert!(rows.is_empty(), "no leaves: {rows:?}");
    }

    /// What locks an entry, or can only be executed while a TD is built and so needs not to, has its column in the table of transitions.
    #[test]
    fn every_leaf_about_an_entry_is_in_the_table_of_transitions() {
        use super::super::transitions::HostOp;
        let about = Leaf::ALL.into_iter().filter(|leaf| leaf.locks().entry);
        let about = about.chain([Leaf::MemPageAdd, Leaf::MrExtend]).map(|leaf| format!("{leaf:?}"));
        let mut columns: Vec<String> = HostOp::ALL.iter().map(|op| format!("Mem{op:?}").replace("MemM", "M")).collect();
        let mut about: Vec<String> = about.collect();
        columns.sort();
        about.sort();
        assert_eq!(columns, about);
    }
}
