//! The processor's own stage-2 walk: permissions, malformed entries, and its A and D updates (AMD64 APM vol. 2, 15.25; Intel SDM
//! vol. 3, 29.3).
//!
//! Simplified: no paging-structure caches and no page-modification log; the C-bit and the RMP are checked elsewhere.

use super::TdpMmu;
use super::root::Root;
use crate::addr::{Gpa, Level};
use crate::spte::{Access, Spte};
use crate::stage2::Stage2Kind;
use sim_kernel::{Cx, Pfn};

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

impl TdpMmu {
    /// The hardware's walk. The caller is in guest mode, so that flushes wait for it, or in an RCU read section: else a table may
    /// be freed under the walk, which fails an assertion (MMU-INV-005).
    ///
    /// # Errors
    /// The fault that the hardware reports.
    pub fn translate(&self, cx: &Cx<'_>, root: &Root, gpa: Gpa, access: Access) -> Result<Translation, Stage2Fault> {
        let masks = &self.tables.masks;
        let fault = |present, reserved| Stage2Fault { gpa, access, present, reserved };
        if gpa.gfn().0 >> (u32::from(root.level().number()) * crate::LEVEL_BITS) != 0 {
            return Err(fault(false, false));
        }
        'walk: loop {
            let (mut table, mut level) = (root.table(), root.level());
            let (mut writable, mut executable) = (true, true);
            loop {
                self.tables.assert_table(table, level);
                let word = self.tables.word(cx, table, gpa.gfn().index(level));
                let entry = word.load();
                if entry & masks.hw_present == 0 {
                    return Err(fault(false, false));
                }
                if masks.is_malformed(entry) {
                    return Err(fault(masks.kind == Stage2Kind::Npt, true));
                }
                writable &= masks.hw_allows(entry, Access::Write);
                executable &= masks.hw_allows(entry, Access::Exec);
                let spte = Spte(entry);
                let last = spte.is_last(level);
                let allowed = match access {
                    Access::Read => true,
                    Access::Write => writable,
                    Access::Exec => executable,
                };
                if last && !allowed {
                    return Err(fault(true, false));
                }
                let mut updated = spte.with(masks.accessed);
                if last && access == Access::Write {
                    updated = updated.with(masks.dirty);
                }
                // A locked update: if the entry changed meanwhile, the walk starts over.
                if updated != spte && word.cmpxchg(entry, updated.0).is_err() {
                    continue 'walk;
                }
                if last {
                    let inside = gpa.gfn().0 & (level.span() - 1);
                    return Ok(Translation {
                        pfn: spte.pfn() + inside,
                        offset: gpa.offset(),
                        level,
                        writable,
                        executable,
                        dirty: updated.has(masks.dirty),
                    });
                }
                table = spte.pfn();
                level = level.down().expect("an entry of the lowest level is a leaf");
            }
        }
    }
}
