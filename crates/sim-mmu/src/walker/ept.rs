//! EPT: entries, misconfigurations, violations and their exit qualification (Intel SDM vol. 3, 29.3 "The extended page table mechanism"
//! and table 29-7).
//!
//! Left out: sub-page write permissions, guest-paging verification, shadow-stack control, and the effective memory type (only its
//! reserved values are checked).

use super::format::{
    AccessStage, Origin, Problem, Refusal, Stage2, Stage2Access, Stage2Format, Stage2Rights, Stage2Tag,
};
use super::pml::Pml;
use crate::addr::{Gpa, Level};
use crate::guest_paging::Gva;
use crate::spte::Access;
use crate::stage2::{PT_PAGE_SIZE_MASK, Stage2Kind};
use sim_kernel::Cx;

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXEC: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const USER_EXEC: u64 = 1 << 10;
const SUPPRESS_VE: u64 = 1 << 63;
/// Memory types that do not exist, one bit each: 2, 3 and 7.
const BAD_MEMTYPES: u64 = 0b1000_1100;

bitflags::bitflags! {
    /// The exit qualification of an EPT violation.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct ExitQualification: u64 {
        /// A data read.
        const READ = 1 << 0;
        /// A data write.
        const WRITE = 1 << 1;
        /// A fetch.
        const FETCH = 1 << 2;
        /// Every entry allowed reads. None of these bits if an entry is not present.
        const READABLE = 1 << 3;
        /// Every entry allowed writes.
        const WRITABLE = 1 << 4;
        /// Every entry allowed fetches.
        const EXECUTABLE = 1 << 5;
        /// With MBEC: every entry allowed fetches from user-mode addresses.
        const USER_EXECUTABLE = 1 << 6;
        /// The guest linear address is valid.
        const GVA_VALID = 1 << 7;
        /// The access itself, not one to a guest's table.
        const GVA_TRANSLATED = 1 << 8;
        /// Advanced information: the linear address is a user-mode address.
        const USER_ADDRESS = 1 << 9;
        /// Advanced information: the guest's entries allow writes.
        const WRITABLE_PAGE = 1 << 10;
        /// Advanced information: the guest's entries forbid fetches.
        const NX_PAGE = 1 << 11;
    }
}

/// An EPTP, as VMCS and INVEPT have it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Eptp(pub u64);

/// Exit reason 48, or the same told to the guest as #VE.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EptViolation {
    /// The guest physical address.
    pub gpa: Gpa,
    /// The guest linear address.
    pub gva: Gva,
    /// The exit qualification.
    pub qualification: ExitQualification,
}

/// What EPT reports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EptExit {
    /// Exit reason 48.
    Violation(EptViolation),
    /// Exit reason 49; without qualification.
    Misconfiguration {
        /// The guest physical address.
        gpa: Gpa,
    },
    /// Exit reason 62: the log is full, and the access has not happened.
    PmlFull,
    /// Vector 20 in the guest: what would have been a violation.
    VirtualizationException(EptViolation),
}

/// EPT with its controls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ept {
    /// EPTP bit 6: A and D bits.
    pub accessed_dirty: bool,
    /// Mode-based execute control.
    pub mbec: bool,
    /// The processor supports entries that allow nothing but fetches.
    pub exec_only: bool,
    /// The log is on; needs `accessed_dirty`.
    pub pml: bool,
    /// Violations of entries without bit 63 become #VE.
    pub violation_ve: bool,
    /// The #VE information area has not been read yet: no other #VE until it is.
    pub ve_busy: bool,
    /// The processor gives advanced information about violations.
    pub advanced_info: bool,
    reserved: [[u64; 2]; 6],
}

impl Ept {
    /// EPT as KVM sets it up on a processor with this MAXPHYADDR: A and D bits on, everything else off.
    ///
    /// # Panics
    /// If MAXPHYADDR is not 32 to 52.
    pub fn new(maxphyaddr: u8, has_1g_pages: bool) -> Ept {
        use crate::guest_paging::bits;
        assert!((32..=52).contains(&maxphyaddr), "MAXPHYADDR {maxphyaddr}");
        let always = bits(u32::from(maxphyaddr), 52);
        let table = always | bits(3, 7);
        let leaf_1g = if has_1g_pages { always | bits(12, 30) } else { table | PT_PAGE_SIZE_MASK };
        let reserved = [
            [0, 0],
            [always, always],
            [table, always | bits(12, 21)],
            [table, leaf_1g],
            [table, table | PT_PAGE_SIZE_MASK],
            [table, table | PT_PAGE_SIZE_MASK],
        ];
        Ept {
            accessed_dirty: true,
            mbec: false,
            exec_only: false,
            pml: false,
            violation_ve: false,
            ve_busy: false,
            advanced_info: false,
            reserved,
        }
    }

    /// The EPTP for a tree: write-back, its number of levels, A/D.
    pub fn eptp(&self, stage2: &Stage2) -> Eptp {
        let levels = u64::from(stage2.root.level.number() - 1) << 3;
        Eptp(stage2.root.table.0 << sim_kernel::PAGE_SHIFT | 6 | levels | u64::from(self.accessed_dirty) << 6)
    }

    fn qualification(&self, refusal: &Refusal, origin: &Origin) -> ExitQualification {
        use ExitQualification as Q;
        let Stage2Access { access, stage } = refusal.access;
        let kind = match (access, stage) {
            // With A/D bits reading a guest's table counts as a write, and is reported as both.
            (Access::Write, AccessStage::Table) => Q::READ | Q::WRITE,
            (Access::Read, _) => Q::READ,
            (Access::Write, _) => Q::WRITE,
            (Access::Exec, _) => Q::FETCH,
        };
        let mut granted = Q::from_bits_retain(u64::from((refusal.rights & !Stage2Rights::USER).bits()) << 3);
        if !self.mbec {
            granted -= Q::USER_EXECUTABLE;
        }
        let mut q = kind | granted | Q::GVA_VALID;
        if let AccessStage::Final { user_address, .. } = stage {
            q |= Q::GVA_TRANSLATED;
            if self.advanced_info {
                q.set(Q::USER_ADDRESS, user_address);
                q.set(Q::WRITABLE_PAGE, origin.rights.is_writable());
                q.set(Q::NX_PAGE, !origin.rights.is_executable());
            }
        }
        q
    }
}

impl Stage2Format for Ept {
    type Exit = EptExit;
    type Log = Pml;
    const KIND: Stage2Kind = Stage2Kind::Ept;
    const TAGS_PHYSICAL: bool = false;

    #[inline]
    fn is_present(&self, entry: u64) -> bool {
        let present = if self.mbec { READ | WRITE | EXEC | USER_EXEC } else { READ | WRITE | EXEC };
        entry & present != 0
    }

    #[inline]
    fn is_malformed(&self, entry: u64, level: Level) -> bool {
        let is_large = entry & PT_PAGE_SIZE_MASK != 0;
        if entry & self.reserved[level.number() as usize][usize::from(is_large)] != 0 {
            return true;
        }
        // Without R: W makes it a misconfiguration, and X alone does unless the processor supports it.
        if entry & READ == 0 && (entry & WRITE != 0 || !self.exec_only) {
            return true;
        }
        let is_leaf = is_large || level == Level::L4K;
        is_leaf && BAD_MEMTYPES >> (entry >> 3 & 7) & 1 != 0
    }

    #[inline]
    fn usual_table(&self) -> u64 {
        READ | WRITE | EXEC | self.accessed() | if self.mbec { USER_EXEC } else { 0 }
    }

    #[inline]
    fn never_in_table(&self, level: Level) -> u64 {
        self.reserved[level.number() as usize][0] | PT_PAGE_SIZE_MASK
    }

    #[inline]
    fn rights(&self, entry: u64) -> Stage2Rights {
        let user_exec = if self.mbec { entry >> 10 & 1 } else { entry >> 2 & 1 };
        Stage2Rights::from_bits_retain((entry & 0b111 | user_exec << 3) as u8)
    }

    #[inline]
    fn permits(&self, rights: Stage2Rights, access: Stage2Access) -> bool {
        let needed = match (access.access, access.stage) {
            (Access::Write, AccessStage::Table) => Stage2Rights::READ.union(Stage2Rights::WRITE),
            (Access::Read, _) => Stage2Rights::READ,
            (Access::Write, _) => Stage2Rights::WRITE,
            (Access::Exec, AccessStage::Final { user_address: true, .. }) if self.mbec => Stage2Rights::USER_EXEC,
            (Access::Exec, _) => Stage2Rights::EXEC,
        };
        rights.contains(needed)
    }

    #[inline]
    fn table_access(&self) -> Access {
        if self.accessed_dirty { Access::Write } else { Access::Read }
    }

    #[inline]
    fn accessed(&self) -> u64 {
        if self.accessed_dirty { ACCESSED } else { 0 }
    }

    #[inline]
    fn dirty(&self) -> u64 {
        if self.accessed_dirty { DIRTY } else { 0 }
    }

    fn tag(&self, stage2: &Stage2) -> Stage2Tag {
        Stage2Tag(Some(stage2.root.table))
    }

    fn new_log(cx: &Cx<'_>) -> Pml {
        Pml::new(cx)
    }

    #[inline]
    fn log_dirty(&self, cx: &Cx<'_>, log: &mut Pml, gpa: Gpa) -> Result<(), Problem> {
        if self.pml { log.record(cx, gpa) } else { Ok(()) }
    }

    fn unlog(&self, log: &mut Pml) {
        if self.pml {
            log.unrecord();
        }
    }

    fn violation(exit: &EptExit) -> Option<Gpa> {
        match *exit {
            EptExit::Violation(violation) | EptExit::VirtualizationException(violation) => Some(violation.gpa),
            EptExit::Misconfiguration { .. } | EptExit::PmlFull => None,
        }
    }

    fn reported(&mut self, exit: &EptExit) {
        if let EptExit::VirtualizationException(_) = exit {
            self.ve_busy = true;
        }
    }

    #[cold]
    fn exit(&self, refusal: &Refusal, origin: &Origin) -> EptExit {
        match refusal.problem {
            Problem::LogFull => EptExit::PmlFull,
            Problem::Malformed => EptExit::Misconfiguration { gpa: refusal.gpa },
            Problem::NotPresent | Problem::Denied => {
                let qualification = self.qualification(refusal, origin);
                let violation = EptViolation { gpa: refusal.gpa, gva: origin.gva, qualification };
                if self.violation_ve && refusal.convertible && !self.ve_busy {
                    EptExit::VirtualizationException(violation)
                } else {
                    EptExit::Violation(violation)
                }
            }
        }
    }
}

/// Whether bit 63 of the entry that ends a walk lets a violation become #VE.
#[inline]
pub(super) const fn is_convertible(entry: u64) -> bool {
    entry & SUPPRESS_VE == 0
}
