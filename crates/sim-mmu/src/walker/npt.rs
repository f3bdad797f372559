//! NPT: the host's long-mode format read as nested tables, and the exit information of a nested page fault (AMD64 APM vol. 2,
//! 15.25).
//!
//! Left out: RMP checks, VMPLs and shadow stacks (their bits have names and are never set here).

use super::format::{
    AccessStage, Origin, Problem, Refusal, Stage2, Stage2Access, Stage2Format, Stage2Rights, Stage2Tag,
};
use crate::addr::{Gpa, Level};
use crate::guest_paging::{gpte, long_mode_reserved};
use crate::spte::Access;
use crate::stage2::Stage2Kind;
use sim_kernel::Cx;

bitflags::bitflags! {
    /// EXITINFO1 of a nested page fault.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct ExitInfo1: u64 {
        /// A present nested entry is the cause.
        const PRESENT = 1 << 0;
        /// A write; every access to a guest's table is one, in the default mode.
        const WRITE = 1 << 1;
        /// A user access, which all nested accesses are, except fetches by a supervisor under GMET.
        const USER = 1 << 2;
        /// A reserved bit is set in a nested entry.
        const RESERVED = 1 << 3;
        /// A fetch.
        const FETCH = 1 << 4;
        /// A shadow-stack access.
        const SHADOW_STACK = 1 << 6;
        /// The reverse map table forbids it.
        const RMP = 1 << 31;
        /// While translating the final address.
        const FINAL = 1 << 32;
        /// While translating the address of a guest's table.
        const PAGE = 1 << 33;
        /// The access was to private memory: the effective C-bit.
        const ENC = 1 << 34;
        /// Sizes of PVALIDATE or RMPADJUST and of the reverse map differ.
        const SIZEM = 1 << 35;
        /// A virtual machine privilege level forbids it.
        const VMPL = 1 << 36;
        /// A supervisor shadow-stack page.
        const SSS = 1 << 37;
    }
}

/// Exit code 0x400.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct NestedPageFault {
    /// EXITINFO2: the address, without the C-bit.
    pub gpa: Gpa,
    /// EXITINFO1.
    pub info1: ExitInfo1,
}

/// Nested paging with its controls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Npt {
    /// Guest-mode execute trap.
    pub gmet: bool,
    /// "Read-only guest page tables": guest tables are read as reads, and A and D updates alone are writes.
    pub read_only_tables: bool,
    reserved: [[u64; 2]; 6],
}

impl Npt {
    /// Nested tables on a host with this MAXPHYADDR and EFER.NXE, without GMET and read-only tables.
    ///
    /// # Panics
    /// If MAXPHYADDR is not 32 to 52.
    pub fn new(maxphyaddr: u8, has_1g_pages: bool) -> Npt {
        assert!((32..=52).contains(&maxphyaddr), "MAXPHYADDR {maxphyaddr}");
        let reserved = long_mode_reserved(maxphyaddr, has_1g_pages, true, true, 0);
        Npt { gmet: false, read_only_tables: false, reserved }
    }
}

impl Stage2Format for Npt {
    type Exit = NestedPageFault;
    type Log = ();
    const KIND: Stage2Kind = Stage2Kind::Npt;
    const TAGS_PHYSICAL: bool = true;

    #[inline]
    fn is_present(&self, entry: u64) -> bool {
        entry & gpte::PRESENT != 0
    }

    #[inline]
    fn is_malformed(&self, entry: u64, level: Level) -> bool {
        entry & self.reserved[level.number() as usize][(entry >> 7) as usize & 1] != 0
    }

    #[inline]
    fn usual_table(&self) -> u64 {
        gpte::PRESENT | gpte::WRITABLE | gpte::USER | gpte::ACCESSED
    }

    #[inline]
    fn never_in_table(&self, level: Level) -> u64 {
        self.reserved[level.number() as usize][0] | gpte::PAGE_SIZE | gpte::NO_EXECUTE
    }

    #[inline]
    fn rights(&self, entry: u64) -> Stage2Rights {
        // P, R/W and U/S are bits 0 to 2.
        let user = entry >> 2 & 1;
        let executable = !entry >> 63;
        Stage2Rights::from_bits_retain((entry & 0b11 | executable << 2 | executable << 3 | user << 4) as u8)
    }

    #[inline]
    fn permits(&self, rights: Stage2Rights, access: Stage2Access) -> bool {
        let needed = match access.access {
            Access::Read => Stage2Rights::READ,
            Access::Write => Stage2Rights::WRITE,
            Access::Exec => Stage2Rights::EXEC,
        };
        if !rights.contains(needed) {
            return false;
        }
        let is_user_page = rights.contains(Stage2Rights::USER);
        if !self.gmet {
            return is_user_page;
        }
        let by_supervisor = matches!(access.stage, AccessStage::Final { user_mode: false, .. });
        !(access.access == Access::Exec && by_supervisor && is_user_page)
    }

    #[inline]
    fn table_access(&self) -> Access {
        if self.read_only_tables { Access::Read } else { Access::Write }
    }

    #[inline]
    fn accessed(&self) -> u64 {
        gpte::ACCESSED
    }

    #[inline]
    fn dirty(&self) -> u64 {
        gpte::DIRTY
    }

    fn tag(&self, _stage2: &Stage2) -> Stage2Tag {
        Stage2Tag(None)
    }

    fn new_log(_cx: &Cx<'_>) {}

    #[inline]
    fn log_dirty(&self, _cx: &Cx<'_>, _log: &mut (), _gpa: Gpa) -> Result<(), Problem> {
        Ok(())
    }

    fn unlog(&self, _log: &mut ()) {}

    fn violation(exit: &NestedPageFault) -> Option<Gpa> {
        Some(exit.gpa)
    }

    fn reported(&mut self, _exit: &NestedPageFault) {}

    #[cold]
    fn exit(&self, refusal: &Refusal, origin: &Origin) -> NestedPageFault {
        use ExitInfo1 as E;
        let Stage2Access { access, stage } = refusal.access;
        let mut info1 = match refusal.problem {
            Problem::NotPresent => E::empty(),
            Problem::Malformed => E::PRESENT | E::RESERVED,
            Problem::Denied | Problem::LogFull => E::PRESENT,
        };
        info1 |= match access {
            Access::Read => E::empty(),
            Access::Write => E::WRITE,
            Access::Exec => E::FETCH,
        };
        info1 |= if let AccessStage::Final { .. } = stage { E::FINAL } else { E::PAGE };
        let supervisor_fetch = access == Access::Exec && matches!(stage, AccessStage::Final { user_mode: false, .. });
        info1.set(E::USER, !(self.gmet && supervisor_fetch));
        info1.set(E::ENC, origin.private);
        NestedPageFault { gpa: refusal.gpa, info1 }
    }
}
