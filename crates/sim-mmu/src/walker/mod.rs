//! The processor's table walks: guest paging over EPT or NPT, with every reference, check and update of A and D bits (Intel SDM vol. 3,
//! chapters 5 and 30; AMD64 APM vol. 2, 5.4 and 15.25).
//!
//! One walker, configured by types: the guest's mode ([`GuestMode`](crate::GuestMode)), stage 2's format ([`Stage2Format`]), where
//! tables lie ([`WalkMemory`]), what is cached ([`WalkCaches`]) and who counts ([`WalkObserver`]). The walk of stage 2 alone is
//! the same code (`stage2.rs`). Every reference is a scheduling point, if the memory makes it one.
//!
//! A walk of `g` guest entries over `n` stage-2 entries makes `(g+1)(n+1) - 1` references: 24 for four levels over four, 35 for five
//! over five. A hit in a paging-structure cache leaves out what the cached entry stands for.
//!
//! Simplified: one size of entry (8 bytes), no memory types, no sub-page permissions, and the reverse map of SNP is not asked
//! here.

mod ept;
mod format;
mod guest;
mod npt;
mod observe;
mod pml;
mod stage2;

pub use ept::{Ept, EptExit, EptViolation, Eptp, ExitQualification};
pub use format::{
    AccessStage, Origin, Problem, Refusal, Stage2, Stage2Access, Stage2Format, Stage2Rights, Stage2Root, Stage2Tag,
};
pub use guest::{GuestAdBeforeFinal, GuestContext, GuestLeaf, MmuFault};
pub use npt::{ExitInfo1, NestedPageFault, Npt};
pub use observe::{CountReferences, NoObserver, WalkObserver};
pub use pml::{PML_ENTRIES, Pml};
pub use stage2::Stage2Leaf;

use crate::addr::{Gfn, Gpa, Level};
use crate::guest_paging::{Gva, Stage1Rights};
use sim_kernel::{Cx, Pfn};

/// Where tables lie: what the walker asks of memory. KVM's side implements it; the walker knows no slot and no frame allocator.
///
/// Updates are locked compare-exchanges of eight bytes. If other tasks can see a table, each call is a scheduling point.
pub trait WalkMemory {
    /// Reads an entry of a stage-2 table of `level`.
    fn stage2_entry(&self, cx: &Cx<'_>, table: Pfn, level: Level, index: usize) -> u64;

    /// Sets A and D bits in an entry of a stage-2 table.
    ///
    /// # Errors
    /// The value found, if it is not `old`.
    fn update_stage2_entry(&self, cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64>;

    /// Reads the entry at this guest-physical address of a guest's table, which lies in this frame of guest memory.
    fn guest_entry(&self, cx: &Cx<'_>, table: Pfn, entry: Gpa) -> u64;

    /// Sets A and D bits in an entry of a guest's table: a write of the guest to the page `gfn`, which is `table`.
    ///
    /// # Errors
    /// The value found, if it is not `old`.
    fn update_guest_entry(&self, cx: &Cx<'_>, table: Pfn, entry: Gpa, old: u64, new: u64) -> Result<(), u64>;
}

/// A table of stage 2 on the way to a gpa.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2Start {
    /// The table.
    pub table: Pfn,
    /// Its level.
    pub level: Level,
    /// What the entries above it grant.
    pub rights: Stage2Rights,
}

/// A guest's table on the way to a gva.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestStart {
    /// The table's frame of host memory.
    pub table: Pfn,
    /// Its guest frame.
    pub gfn: Gfn,
    /// Its level.
    pub level: Level,
    /// What the entries above it grant.
    pub rights: Stage1Rights,
}

/// What a walk remembers of earlier ones.
pub trait WalkCaches {
    /// The guest-physical mapping of a gpa.
    fn guest_physical(&self, gpa: Gpa) -> Option<Stage2Leaf>;
    /// The lowest stage-2 table known to lead to a gpa.
    fn stage2_start(&self, gpa: Gpa) -> Option<Stage2Start>;
    /// The lowest guest table known to lead to a gva.
    fn guest_start(&self, gva: Gva) -> Option<GuestStart>;
    /// A gpa was translated.
    fn fill_guest_physical(&mut self, gpa: Gpa, leaf: &Stage2Leaf);
    /// A stage-2 table was found.
    fn fill_stage2_start(&mut self, gpa: Gpa, start: &Stage2Start);
    /// A guest's table was found.
    fn fill_guest_start(&mut self, gva: Gva, start: &GuestStart);
}

/// Nothing is cached.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCaches;

impl WalkCaches for NoCaches {
    #[inline]
    fn guest_physical(&self, _gpa: Gpa) -> Option<Stage2Leaf> {
        None
    }
    #[inline]
    fn stage2_start(&self, _gpa: Gpa) -> Option<Stage2Start> {
        None
    }
    #[inline]
    fn guest_start(&self, _gva: Gva) -> Option<GuestStart> {
        None
    }
    #[inline]
    fn fill_guest_physical(&mut self, _gpa: Gpa, _leaf: &Stage2Leaf) {}
    #[inline]
    fn fill_stage2_start(&mut self, _gpa: Gpa, _start: &Stage2Start) {}
    #[inline]
    fn fill_guest_start(&mut self, _gva: Gva, _start: &GuestStart) {}
}

/// A walk in progress: the machine's parts that it uses.
#[derive(Debug)]
pub struct Walker<'a, 't, F: Stage2Format, M, C, O> {
    /// Who walks.
    pub cx: &'a Cx<'t>,
    /// Where the tables lie.
    pub memory: &'a M,
    /// Stage 2's format and the controls that go with it.
    pub format: &'a F,
    /// Stage 2's roots.
    pub stage2: &'a Stage2,
    /// What earlier walks left.
    pub caches: &'a mut C,
    /// Who counts.
    pub observer: &'a mut O,
    /// The page-modification log, if the format has one.
    pub log: &'a mut F::Log,
}
