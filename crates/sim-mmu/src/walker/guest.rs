//! The two-dimensional walk: a guest's tables, each of whose entries is found through stage 2, and the page at the end.
//!
//! A and D bits are set as recordings of real processors show: going down, every present and well-formed non-leaf entry gets A
//! before the next table is read, whatever happens below; the leaf gets its bits after the permission check.

use super::format::{AccessStage, Origin, Refusal, Stage2Access, Stage2Format};
use super::{GuestStart, Stage2Leaf, WalkCaches, WalkMemory, WalkObserver, Walker};
use crate::addr::{Gfn, Gpa, Level};
use crate::guest_paging::{
    AccessMode, GpteMasks, GuestFault, GuestMode, Gva, PageFault, PageFaultCode, Permissions, Stage1Rights, gpte,
};
use crate::spte::Access;
use sim_kernel::{PAGE_SHIFT, Pfn};

/// Which bits a guest's leaf has when stage 2 refuses the final address. Manuals leave it open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum GuestAdBeforeFinal {
    /// Those that it had.
    Never,
    /// A.
    #[default]
    Accessed,
    /// A, and D for a write.
    Both,
}

/// What a walk must know of the guest, computed when a register changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestContext {
    /// The entry format.
    pub masks: GpteMasks,
    /// The permission rules.
    pub permissions: Permissions,
    /// The root table.
    pub table: Gfn,
    /// G means something (CR4.PGE).
    pub global_pages: bool,
    /// When a leaf gets its bits.
    pub ad_before_final: GuestAdBeforeFinal,
}

/// A translated gva: what a TLB would keep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestLeaf {
    /// The gpa's 4 KiB frame, with a TD's shared bit.
    pub gfn: Gfn,
    /// Size of the guest's page.
    pub level: Level,
    /// What the guest's entries grant.
    pub rights: Stage1Rights,
    /// The leaf's protection key.
    pub key: u8,
    /// The guest's leaf has D.
    pub dirty: bool,
    /// The leaf has G, and G means something.
    pub global: bool,
    /// The C-bit says that the memory is private.
    pub private: bool,
    /// What stage 2 says of the gpa.
    pub stage2: Stage2Leaf,
}

/// How an access fails: in the guest, or by an exit to the VMM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmuFault<X> {
    /// An exception in the guest.
    Guest(GuestFault),
    /// Stage 2 refuses.
    Stage2(X),
}

/// The entry changed between its read and its update.
struct Changed;

impl<F: Stage2Format, M: WalkMemory, C: WalkCaches, O: WalkObserver> Walker<'_, '_, F, M, C, O> {
    /// Translates a canonical gva by walking, from the lowest table that is cached.
    ///
    /// # Errors
    /// What the guest or the VMM is told.
    #[inline(always)]
    pub fn walk<G: GuestMode>(
        &mut self,
        guest: &GuestContext,
        gva: Gva,
        mode: AccessMode,
        access: Access,
    ) -> Result<GuestLeaf, MmuFault<F::Exit>> {
        let Some(root) = G::ROOT else { return self.walk_unpaged(guest, gva, mode, access) };
        let root = Start { gfn: guest.table, table: None, level: root, rights: Stage1Rights::ALL };
        let cached = self.caches.guest_start(gva).map(|GuestStart { table, gfn, level, rights }| Start {
            gfn,
            table: Some(table),
            level,
            rights,
        });
        let mut start = cached.unwrap_or(root);
        loop {
            match self.walk_from(guest, start, gva, mode, access)? {
                Ok(leaf) => return Ok(leaf),
                // No fault is made of the old value.
                Err(Changed) => {
                    self.observer.restart();
                    start = root;
                }
            }
        }
    }

    // Into its caller, as what it calls: a result that is passed through memory is written in parts and read in larger ones, for which a
    // processor waits.
    #[inline(always)]
    fn walk_from(
        &mut self,
        guest: &GuestContext,
        start: Start,
        gva: Gva,
        mode: AccessMode,
        access: Access,
    ) -> Result<Result<GuestLeaf, Changed>, MmuFault<F::Exit>> {
        let Start { gfn: mut table_gfn, table: mut known, mut level, mut rights } = start;
        let top = level;
        loop {
            let index = gva.index(level);
            let entry_gpa = Gpa(table_gfn.0 << PAGE_SHIFT | (index as u64) << 3);
            let table = match known.take() {
                Some(table) => table,
                None => {
                    let access = Stage2Access { access: self.format.table_access(), stage: AccessStage::Table };
                    let found = self.table_stage2(guest, gva, entry_gpa, access)?;
                    if level != top {
                        self.caches.fill_guest_start(gva, &GuestStart { table: found, gfn: table_gfn, level, rights });
                    }
                    found
                }
            };
            self.observer.guest_reference(level);
            let entry = self.memory.guest_entry(self.cx, table, entry_gpa);
            if level != Level::L4K && guest.masks.is_usual_table(entry, level) {
                rights = rights.and(Stage1Rights::of(entry));
                table_gfn = guest.masks.frame_of(entry);
                level = level.down().expect("not the lowest");
                continue;
            }
            if entry & gpte::PRESENT == 0 {
                return Err(page_fault(guest, gva, mode, access, PageFaultCode::empty()));
            }
            if guest.masks.is_malformed(entry, level) {
                let code = PageFaultCode::PRESENT | PageFaultCode::RESERVED;
                return Err(page_fault(guest, gva, mode, access, code));
            }
            rights = rights.and(Stage1Rights::of(entry));
            let place = Place { gva, gpa: entry_gpa, table };
            if level == Level::L4K || entry & gpte::PAGE_SIZE != 0 {
                return self.finish(guest, place, entry, level, rights, mode, access);
            }
            if entry & gpte::ACCESSED == 0
                && let Err(changed) = self.update(guest, &place, entry, entry | gpte::ACCESSED)?
            {
                return Ok(Err(changed));
            }
            table_gfn = guest.masks.frame_of(entry);
            level = level.down().expect("an entry of the lowest level is a leaf");
        }
    }

    /// What follows the leaf: permissions, its bits, and the final address.
    #[expect(clippy::too_many_arguments, reason = "the state of the walk, passed once")]
    #[inline(always)]
    fn finish(
        &mut self,
        guest: &GuestContext,
        place: Place,
        entry: u64,
        level: Level,
        rights: Stage1Rights,
        mode: AccessMode,
        access: Access,
    ) -> Result<Result<GuestLeaf, Changed>, MmuFault<F::Exit>> {
        let gva = place.gva;
        let key = (entry >> gpte::PKEY_SHIFT) as u8 & 0xf;
        if let Err(code) = guest.permissions.check(mode, access, rights, key) {
            return Err(MmuFault::Guest(GuestFault::Page(PageFault { cr2: gva, code })));
        }
        let write = access == Access::Write;
        let before = match guest.ad_before_final {
            GuestAdBeforeFinal::Never => entry,
            GuestAdBeforeFinal::Both if write => entry | gpte::ACCESSED | gpte::DIRTY,
            GuestAdBeforeFinal::Accessed | GuestAdBeforeFinal::Both => entry | gpte::ACCESSED,
        };
        if before != entry
            && let Err(changed) = self.update(guest, &place, entry, before)?
        {
            return Ok(Err(changed));
        }
        let span = level.span() - 1;
        let gfn = Gfn(guest.masks.frame_of(entry).0 & !span | (gva.0 >> PAGE_SHIFT) & span);
        let private = guest.masks.is_private(entry);
        let stage2 = self.final_stage2(guest, gva, gfn, rights, private, mode, access)?;
        let after = entry | gpte::ACCESSED | if write { gpte::DIRTY } else { 0 };
        if after != before
            && let Err(changed) = self.update(guest, &place, before, after)?
        {
            return Ok(Err(changed));
        }
        let global = guest.global_pages && entry & gpte::GLOBAL != 0;
        let dirty = after & gpte::DIRTY != 0;
        Ok(Ok(GuestLeaf { gfn, level, rights, key, dirty, global, private, stage2 }))
    }

    /// Without paging only the final address is translated.
    fn walk_unpaged(
        &mut self,
        guest: &GuestContext,
        gva: Gva,
        mode: AccessMode,
        access: Access,
    ) -> Result<GuestLeaf, MmuFault<F::Exit>> {
        let gfn = Gfn(gva.0 >> PAGE_SHIFT);
        let private = guest.masks.has_c_bit();
        let rights = Stage1Rights::ALL;
        let stage2 = self.final_stage2(guest, gva, gfn, rights, private, mode, access)?;
        Ok(GuestLeaf { gfn, level: stage2.level, rights, key: 0, dirty: true, global: false, private, stage2 })
    }

    #[expect(clippy::too_many_arguments, reason = "the state of the walk, passed once")]
    #[inline(always)]
    fn final_stage2(
        &mut self,
        guest: &GuestContext,
        gva: Gva,
        gfn: Gfn,
        rights: Stage1Rights,
        private: bool,
        mode: AccessMode,
        access: Access,
    ) -> Result<Stage2Leaf, MmuFault<F::Exit>> {
        let user_mode = mode == AccessMode::User;
        let stage = AccessStage::Final { user_address: rights.is_user(), user_mode };
        let gpa = Gpa(gfn.0 << PAGE_SHIFT | gva.offset());
        self.translate_stage2(gpa, Stage2Access { access, stage }).map_err(|refusal| {
            // Fetches are private whatever the C-bit says.
            let private = private || (guest.masks.has_c_bit() && access == Access::Exec);
            self.exit(&refusal, &Origin { gva, rights, private })
        })
    }

    /// The frame of a guest's table. Tables are private memory.
    #[inline(always)]
    fn table_stage2(
        &mut self,
        guest: &GuestContext,
        gva: Gva,
        gpa: Gpa,
        access: Stage2Access,
    ) -> Result<Pfn, MmuFault<F::Exit>> {
        match self.translate_stage2(gpa, access) {
            Ok(leaf) => Ok(leaf.pfn),
            Err(refusal) => {
                let origin = Origin { gva, rights: Stage1Rights::ALL, private: guest.masks.has_c_bit() };
                Err(self.exit(&refusal, &origin))
            }
        }
    }

    /// Sets A and D in a guest's entry. That is a write to the table's page; where reading it was one already, stage 2 was asked.
    fn update(
        &mut self,
        guest: &GuestContext,
        place: &Place,
        old: u64,
        new: u64,
    ) -> Result<Result<(), Changed>, MmuFault<F::Exit>> {
        if self.format.table_access() == Access::Read {
            let access = Stage2Access { access: Access::Write, stage: AccessStage::TableUpdate };
            if self.table_stage2(guest, place.gva, place.gpa, access)? != place.table {
                return Ok(Err(Changed));
            }
        }
        self.observer.update();
        let updated = self.memory.update_guest_entry(self.cx, place.table, place.gpa, old, new);
        Ok(updated.map_err(|_| Changed))
    }

    #[cold]
    fn exit(&self, refusal: &Refusal, origin: &Origin) -> MmuFault<F::Exit> {
        MmuFault::Stage2(self.format.exit(refusal, origin))
    }
}

/// Where a walk of guest tables begins.
#[derive(Clone, Copy)]
struct Start {
    gfn: Gfn,
    table: Option<Pfn>,
    level: Level,
    rights: Stage1Rights,
}

/// A guest's entry, and for which address it was read.
#[derive(Clone, Copy)]
struct Place {
    gva: Gva,
    gpa: Gpa,
    table: Pfn,
}

#[cold]
fn page_fault<X>(guest: &GuestContext, gva: Gva, mode: AccessMode, access: Access, code: PageFaultCode) -> MmuFault<X> {
    let code = code | guest.permissions.code(mode, access);
    MmuFault::Guest(GuestFault::Page(PageFault { cr2: gva, code }))
}
