//! The processor in a VM's stage 2: where the walker finds the tables of the TDP MMU and of the guest, and a walk without guest paging and
//! TLB for who has only a gpa.

use super::root::Root;
use super::{TdpConfig, TdpMmu};
use crate::addr::{Gpa, Level};
use crate::spte::Access;
use crate::stage2::Stage2Kind;
use crate::walker::{
    AccessStage, Ept, NoCaches, NoObserver, Npt, Problem, Refusal, Stage2, Stage2Access, Stage2Format, Stage2Leaf,
    Stage2Rights, Stage2Root, WalkMemory, Walker,
};
use sim_kernel::{Cx, PAGE_SHIFT, Pfn};

/// What the hardware found for an access that it permits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Translation {
    /// The 4 KiB frame.
    pub pfn: Pfn,
    /// The byte within the frame.
    pub offset: u64,
    /// Size of the mapping.
    pub level: Level,
    /// Writes are permitted too (by W; a TLB may use it for writes only if `dirty`).
    pub writable: bool,
    /// Fetches are permitted too.
    pub executable: bool,
    /// D is set in the leaf now.
    pub dirty: bool,
}

/// What the hardware reports for an access that it refuses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stage2Fault {
    /// The address.
    pub gpa: Gpa,
    /// The access.
    pub access: Access,
    /// A present entry forbade it.
    pub present: bool,
    /// A reserved bit (NPT, then `present` too) or a misconfiguration (EPT): an MMIO entry.
    pub reserved: bool,
}

/// The processor's side of a VM's stage-2 format.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Hardware {
    Npt(Npt),
    Ept(Ept),
}

impl Hardware {
    /// The processor of the machine.
    pub(super) fn new(config: &TdpConfig) -> Hardware {
        let maxphyaddr = (config.max_gfn.0.trailing_zeros() + PAGE_SHIFT) as u8;
        let has_1g_pages = config.max_level == Level::L1G;
        match config.kind {
            Stage2Kind::Npt => Hardware::Npt(Npt::new(maxphyaddr, has_1g_pages)),
            Stage2Kind::Ept => {
                let mut ept = Ept::new(maxphyaddr, has_1g_pages);
                ept.accessed_dirty = config.accessed_dirty;
                Hardware::Ept(ept)
            }
        }
    }
}

/// Tables of stage 2, and the guest's in the host memory that stage 2 maps. A walk of a table that was freed fails an assertion
/// (MMU-INV-005).
impl WalkMemory for TdpMmu {
    #[inline]
    fn stage2_entry(&self, cx: &Cx<'_>, table: Pfn, level: Level, index: usize) -> u64 {
        let entries = self.tables.live_entries(table, level);
        self.tables.word_of(cx, table, index, entries).load()
    }

    #[inline]
    fn update_stage2_entry(&self, cx: &Cx<'_>, table: Pfn, index: usize, old: u64, new: u64) -> Result<(), u64> {
        self.tables.word(cx, table, index).cmpxchg(old, new)
    }

    #[inline]
    fn guest_entry(&self, cx: &Cx<'_>, table: Pfn, entry: Gpa) -> u64 {
        self.tables.phys.read_u64(cx, table, entry.offset())
    }

    #[inline]
    fn update_guest_entry(&self, cx: &Cx<'_>, table: Pfn, entry: Gpa, old: u64, new: u64) -> Result<(), u64> {
        self.tables.phys.cmpxchg_u64(cx, table, entry.offset(), old, new)
    }
}

impl Root {
    /// The tree as a processor is told of it, in nCR3 or EPTP.
    pub fn stage2(&self) -> Stage2 {
        Stage2::new(Stage2Root { table: self.table(), level: self.level() })
    }
}

impl TdpMmu {
    /// The hardware's walk for a gpa, with nothing cached. The caller is in guest mode, so that flushes wait for it, or in an RCU read
    /// section: else a table may be freed under the walk, which fails an assertion (MMU-INV-005).
    ///
    /// # Errors
    /// The fault that the hardware reports.
    pub fn translate(&self, cx: &Cx<'_>, root: &Root, gpa: Gpa, access: Access) -> Result<Translation, Stage2Fault> {
        match &self.hardware {
            Hardware::Npt(format) => self.translate_as(cx, format, root, gpa, access),
            Hardware::Ept(format) => self.translate_as(cx, format, root, gpa, access),
        }
    }

    fn translate_as<F: Stage2Format>(
        &self,
        cx: &Cx<'_>,
        format: &F,
        root: &Root,
        gpa: Gpa,
        access: Access,
    ) -> Result<Translation, Stage2Fault> {
        let stage2 = root.stage2();
        let (caches, observer, log) = (&mut NoCaches, &mut NoObserver, &mut F::Log::default());
        let mut walker = Walker { cx, memory: self, format, stage2: &stage2, caches, observer, log };
        // Without guest paging every linear address is a user-mode address.
        let stage = AccessStage::Final { user_address: true, user_mode: false };
        match walker.walk_stage2(gpa, Stage2Access { access, stage }) {
            Ok(Stage2Leaf { pfn, level, rights, dirty }) => Ok(Translation {
                pfn,
                offset: gpa.offset(),
                level,
                writable: rights.contains(Stage2Rights::WRITE),
                executable: rights.contains(Stage2Rights::EXEC),
                dirty,
            }),
            Err(Refusal { problem, .. }) => {
                let (present, reserved) = match problem {
                    Problem::NotPresent => (false, false),
                    Problem::Denied => (true, false),
                    Problem::Malformed => (F::KIND == Stage2Kind::Npt, true),
                    Problem::LogFull => unreachable!("nothing is logged in a walk without a log"),
                };
                Err(Stage2Fault { gpa, access, present, reserved })
            }
        }
    }
}
