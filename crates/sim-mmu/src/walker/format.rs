//! What differs between EPT and NPT, as a trait: entry bits, which access needs what, how tables are accessed, and how a refused access is
//! reported.

use crate::addr::{Gpa, Level};
use crate::guest_paging::{Gva, Stage1Rights};
use crate::spte::Access;
use crate::stage2::Stage2Kind;
use sim_kernel::{Cx, Pfn};
use std::fmt::Debug;

bitflags::bitflags! {
    /// What the stage-2 entries of a walk grant together.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Stage2Rights: u8 {
        /// Data reads.
        const READ = 1 << 0;
        /// Data writes.
        const WRITE = 1 << 1;
        /// Fetches; with MBEC, from supervisor-mode addresses.
        const EXEC = 1 << 2;
        /// EPT with MBEC: fetches from user-mode addresses.
        const USER_EXEC = 1 << 3;
        /// NPT: U/S.
        const USER = 1 << 4;
    }
}

/// What the translated address is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AccessStage {
    /// Reading an entry of a guest's table.
    Table,
    /// Setting A or D in one, where reading it does not count as a write.
    TableUpdate,
    /// The access itself.
    Final {
        /// The linear address is a user-mode address: U/S in every guest entry, or no paging (MBEC).
        user_address: bool,
        /// The access is made in user mode (GMET).
        user_mode: bool,
    },
}

/// An access to guest physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stage2Access {
    /// How.
    pub access: Access,
    /// What for.
    pub stage: AccessStage,
}

/// Why stage 2 refuses an access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Problem {
    /// An entry is not present, or the address is beyond what the tables reach.
    NotPresent,
    /// The entries do not allow it.
    Denied,
    /// A present entry has a reserved bit (NPT) or is misconfigured (EPT).
    Malformed,
    /// The page-modification log is full.
    LogFull,
}

/// A refused access to guest physical memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The address, with a TD's shared bit, without an SEV guest's C-bit.
    pub gpa: Gpa,
    /// The access.
    pub access: Stage2Access,
    /// The reason.
    pub problem: Problem,
    /// What the entries grant; nothing if one is not present.
    pub rights: Stage2Rights,
    /// The entry's bit 63 is clear: with EPT-violation #VE, the guest is told instead of the VMM.
    pub convertible: bool,
}

/// Where a refused access came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The linear address.
    pub gva: Gva,
    /// What the guest's entries grant, if the access is the final one.
    pub rights: Stage1Rights,
    /// An SEV guest's access to private memory.
    pub private: bool,
}

/// The root table of a stage-2 tree.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stage2Root {
    /// Its frame.
    pub table: Pfn,
    /// Its level.
    pub level: Level,
}

/// The stage-2 trees of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stage2 {
    /// The tree; of a TD, the one for private memory.
    pub root: Stage2Root,
    /// A TD's tree for gpas with the shared bit. What is cached of it is tagged with the *private* root.
    pub shared: Option<Stage2Root>,
    /// A TD's shared bit, or 0.
    pub shared_bit: Gpa,
}

impl Stage2 {
    /// One tree for all addresses.
    pub const fn new(root: Stage2Root) -> Stage2 {
        Stage2 { root, shared: None, shared_bit: Gpa(0) }
    }

    /// The tree that translates a gpa.
    #[inline]
    pub const fn root_of(&self, gpa: Gpa) -> Stage2Root {
        match self.shared {
            Some(shared) if gpa.0 & self.shared_bit.0 != 0 => shared,
            _ => self.root,
        }
    }
}

/// Which stage-2 tree a cached translation belongs to, as far as the tag says: EPTRTA on Intel; on AMD nCR3 is no part of the tag.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Stage2Tag(pub Option<Pfn>);

/// A vendor's second stage: the entry format with the controls that change its meaning.
pub trait Stage2Format: Copy + PartialEq + Debug + 'static {
    /// What the VMM sees of a refused access.
    type Exit: Copy + PartialEq + Eq + Debug;
    /// The page-modification log; `()` where there is none. Its default is one that no other task sees.
    type Log: Default + Debug;
    /// The format's name.
    const KIND: Stage2Kind;

    /// Whether the hardware takes the entry for present.
    fn is_present(&self, entry: u64) -> bool;
    /// Whether a present entry of a table of `level` is misconfigured or has reserved bits set.
    fn is_malformed(&self, entry: u64, level: Level) -> bool;
    /// The bits of an entry that points to a table, grants everything, and needs no update. KVM's all are such.
    fn usual_table(&self) -> u64;
    /// What none of those has: the bits that are reserved in a table's entry of this level, and the one of a large page.
    fn never_in_table(&self, level: Level) -> u64;
    /// What one entry grants.
    fn rights(&self, entry: u64) -> Stage2Rights;
    /// Whether rights suffice.
    fn permits(&self, rights: Stage2Rights, access: Stage2Access) -> bool;
    /// How guest tables are read: as writes, if reading one may set A and D in the entries that map it.
    fn table_access(&self) -> Access;
    /// The A bit, or 0 if it is off.
    fn accessed(&self) -> u64;
    /// The D bit, or 0 if it is off.
    fn dirty(&self) -> u64;
    /// What of the root's address is in the tag of cached translations.
    fn tag(&self, stage2: &Stage2) -> Stage2Tag;
    /// Whether gpa-to-hpa mappings are tagged with the guest's identifier too (AMD: everything is).
    const TAGS_PHYSICAL: bool;
    /// A log of a vCPU.
    fn new_log(cx: &Cx<'_>) -> Self::Log;
    /// D of a leaf is about to be set: records the page.
    ///
    /// # Errors
    /// [`Problem::LogFull`].
    fn log_dirty(&self, cx: &Cx<'_>, log: &mut Self::Log, gpa: Gpa) -> Result<(), Problem>;
    /// The entry changed before D could be set: takes the last record back.
    fn unlog(&self, log: &mut Self::Log);
    /// The address whose cached translations an exit invalidates: that of a violation or a nested page fault.
    fn violation(exit: &Self::Exit) -> Option<Gpa>;
    /// An exit was reported: what the processor remembers of it.
    fn reported(&mut self, exit: &Self::Exit);
    /// How the refusal is reported.
    fn exit(&self, refusal: &Refusal, origin: &Origin) -> Self::Exit;
}

impl Stage2Access {
    #[inline]
    pub(crate) const fn is_write(self) -> bool {
        matches!(self.access, Access::Write)
    }
}
