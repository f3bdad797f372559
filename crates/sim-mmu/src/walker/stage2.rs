//! The walk of stage 2, gpa to hpa.

use super::format::{Problem, Refusal, Stage2Access, Stage2Format, Stage2Rights};
use super::{Stage2Start, WalkCaches, WalkMemory, WalkObserver, Walker};
use crate::addr::{Gpa, LEVEL_BITS, Level};
use crate::stage2::{PT_PAGE_SIZE_MASK, SPTE_BASE_ADDR_MASK};
use sim_kernel::{PAGE_SHIFT, Pfn};

/// A translated gpa.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stage2Leaf {
    /// The 4 KiB frame.
    pub pfn: Pfn,
    /// Size of the mapping.
    pub level: Level,
    /// What the entries grant.
    pub rights: Stage2Rights,
    /// D is set in the leaf, or there are no D bits: it may be written without a walk.
    pub dirty: bool,
}

impl<F: Stage2Format, M: WalkMemory, C: WalkCaches, O: WalkObserver> Walker<'_, '_, F, M, C, O> {
    /// Translates a gpa by a cached mapping, or by a walk.
    ///
    /// A cached mapping that does not allow the access refuses it, although memory may allow it by now; the caller drops what
    /// covers a refused access, so that the next try walks. A write through a mapping whose D bit is not known to be set walks.
    ///
    /// # Errors
    /// Why stage 2 refuses.
    #[inline(always)]
    pub(super) fn translate_stage2(&mut self, gpa: Gpa, access: Stage2Access) -> Result<Stage2Leaf, Refusal> {
        if let Some(leaf) = self.caches.guest_physical(gpa) {
            if !self.format.permits(leaf.rights, access) {
                let (problem, rights) = (Problem::Denied, leaf.rights);
                return Err(Refusal { gpa, access, problem, rights, convertible: false });
            }
            if !access.is_write() || leaf.dirty {
                return Ok(leaf);
            }
        }
        let leaf = self.walk_stage2(gpa, access)?;
        self.caches.fill_guest_physical(gpa, &leaf);
        Ok(leaf)
    }

    /// Walks stage 2 for a gpa, from the lowest table that is cached.
    ///
    /// # Errors
    /// Why stage 2 refuses.
    #[inline(never)]
    pub fn walk_stage2(&mut self, gpa: Gpa, access: Stage2Access) -> Result<Stage2Leaf, Refusal> {
        let refuse = |problem, rights, entry| {
            Err(Refusal { gpa, access, problem, rights, convertible: super::ept::is_convertible(entry) })
        };
        let root = self.stage2.root_of(gpa);
        let root = Stage2Start { table: root.table, level: root.level, rights: Stage2Rights::all() };
        let mut start = match self.caches.stage2_start(gpa) {
            Some(start) => start,
            None if gpa.gfn().0 >> (u32::from(root.level.number()) * LEVEL_BITS) != 0 => {
                return refuse(Problem::NotPresent, Stage2Rights::empty(), u64::MAX);
            }
            None => root,
        };
        let (accessed, dirty) = (self.format.accessed(), self.format.dirty());
        let usual = self.format.usual_table();
        'walk: loop {
            let Stage2Start { mut table, mut level, mut rights } = start;
            loop {
                let index = gpa.gfn().index(level);
                self.observer.stage2_reference(level);
                let entry = self.memory.stage2_entry(self.cx, table, level, index);
                // Most entries by far: one test instead of all that follows, which they would pass without effect.
                if level != Level::L4K && entry & (usual | self.format.never_in_table(level)) == usual {
                    table = Pfn((entry & SPTE_BASE_ADDR_MASK) >> PAGE_SHIFT);
                    level = level.down().expect("not the lowest");
                    self.caches.fill_stage2_start(gpa, &Stage2Start { table, level, rights });
                    continue;
                }
                if !self.format.is_present(entry) {
                    return refuse(Problem::NotPresent, Stage2Rights::empty(), entry);
                }
                if self.format.is_malformed(entry, level) {
                    return refuse(Problem::Malformed, Stage2Rights::empty(), entry);
                }
                rights &= self.format.rights(entry);
                let is_leaf = level == Level::L4K || entry & PT_PAGE_SIZE_MASK != 0;
                if is_leaf && !self.format.permits(rights, access) {
                    return refuse(Problem::Denied, rights, entry);
                }
                let sets_dirty = is_leaf && access.is_write() && entry & dirty != dirty;
                let updated = entry | accessed | if sets_dirty { dirty } else { 0 };
                if updated != entry {
                    if sets_dirty && let Err(problem) = self.format.log_dirty(self.cx, self.log, gpa) {
                        return refuse(problem, rights, u64::MAX);
                    }
                    self.observer.update();
                    // A locked update: if the entry changed meanwhile, the walk starts over.
                    if self.memory.update_stage2_entry(self.cx, table, index, entry, updated).is_err() {
                        if sets_dirty {
                            self.format.unlog(self.log);
                        }
                        self.observer.restart();
                        start = root;
                        continue 'walk;
                    }
                }
                let pfn = Pfn((entry & SPTE_BASE_ADDR_MASK) >> PAGE_SHIFT);
                if is_leaf {
                    let span = level.span() - 1;
                    // Bits below a large page's address are PAT or reserved.
                    let pfn = Pfn(pfn.0 & !span | gpa.gfn().0 & span);
                    return Ok(Stage2Leaf { pfn, level, rights, dirty: updated & dirty == dirty });
                }
                table = pfn;
                level = level.down().expect("an entry of the lowest level is a leaf");
                self.caches.fill_stage2_start(gpa, &Stage2Start { table, level, rights });
            }
        }
    }
}
