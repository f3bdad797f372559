//! Entry bits, written down once more from the manuals, and a trait for tests that are the same for both vendors.

use sim_mmu::walker::{Ept, Npt, Stage2Format};
use sim_mmu::{Level, guest_paging::gpte};

/// A guest entry that grants everything.
pub(crate) const RWX: u64 = gpte::PRESENT | gpte::WRITABLE | gpte::USER;
pub(crate) const A: u64 = 1 << 5;
pub(crate) const D: u64 = 1 << 6;
pub(crate) const PS: u64 = 1 << 7;
pub(crate) const G: u64 = 1 << 8;
pub(crate) const NX: u64 = 1 << 63;
pub(crate) const C_BIT: u64 = 1 << 51;

/// A vendor as the tests need it.
pub(crate) trait Vendor: Stage2Format {
    /// The vendor's processor with MAXPHYADDR 46.
    fn processor() -> Self;
    /// What grants everything in a leaf, without A and D.
    const LEAF: u64;
    /// In a table entry.
    const TABLE: u64;
    /// What takes away writes when cleared.
    const WRITE: u64;
    const ACCESSED: u64;
    const DIRTY: u64;
    /// The address of a violation or nested page fault, and whether it was the final one.
    fn place(exit: &Self::Exit) -> (u64, bool);
}

impl Vendor for Ept {
    fn processor() -> Ept {
        Ept::new(46, true)
    }
    const LEAF: u64 = 0b111 | 6 << 3 | 1 << 63;
    const TABLE: u64 = 0b111 | 1 << 63;
    const WRITE: u64 = 0b10;
    const ACCESSED: u64 = 1 << 8;
    const DIRTY: u64 = 1 << 9;
    fn place(exit: &Self::Exit) -> (u64, bool) {
        use sim_mmu::walker::{EptExit, ExitQualification};
        match exit {
            EptExit::Violation(v) => (v.gpa.0, v.qualification.contains(ExitQualification::GVA_TRANSLATED)),
            exit => panic!("no violation: {exit:?}"),
        }
    }
}

impl Vendor for Npt {
    fn processor() -> Npt {
        Npt::new(46, true)
    }
    const LEAF: u64 = 0b111;
    const TABLE: u64 = 0b111;
    const WRITE: u64 = 0b10;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;
    fn place(exit: &Self::Exit) -> (u64, bool) {
        use sim_mmu::walker::ExitInfo1;
        assert!(exit.info1.contains(ExitInfo1::FINAL) != exit.info1.contains(ExitInfo1::PAGE), "exactly one of them");
        (exit.gpa.0, exit.info1.contains(ExitInfo1::FINAL))
    }
}

/// PS for a leaf above the lowest level.
pub(crate) fn large(level: Level) -> u64 {
    if level == Level::L4K { 0 } else { PS }
}
