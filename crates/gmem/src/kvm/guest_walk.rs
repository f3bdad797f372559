//! KVM's own walk of a guest's tables, for instructions that it emulates (`paging_tmpl.h`, `walk_addr_generic`).
//!
//! Tables are read where the VMM has mapped them, whatever attributes and guest_memfd say. A and D bits are set when the whole walk has
//! succeeded, by compare-exchange; if an entry changed meanwhile, the walk starts over. A table that cannot be read is a page fault without P.
//!
//! Simplified: no protection of tables against writing, which only shadow paging has.

use super::vcpu::{Vcpu, VcpuState};
use arrayvec::ArrayVec;
use sim_kernel::{Cx, Hva, PAGE_SHIFT};
use sim_mmu::guest_paging::{
    AccessMode, Efer, GpteMasks, GuestFault, PageFault, PageFaultCode, PagingMode, Permissions, Stage1Rights, gpte,
};
use sim_mmu::{Access, Gfn, Gpa, Gva, Level};

/// An entry that a walk has used.
struct Used {
    hva: Hva,
    table: Gfn,
    entry: u64,
    /// The slot may be written.
    writable: bool,
}

impl Vcpu {
    /// `kvm_mmu_gva_to_gpa_read`, `_write`, `_fetch`, at the guest's privilege.
    ///
    /// # Errors
    /// The exception that the guest gets.
    pub(super) fn gva_to_gpa(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        gva: Gva,
        access: Access,
    ) -> Result<Gpa, GuestFault> {
        let registers = state.sregs.paging;
        let mode = registers.mode().expect("the processor runs these registers");
        let root = match mode {
            PagingMode::Off => return Ok(Gpa(gva.0)),
            PagingMode::FourLevel => Level::L512G,
            PagingMode::FiveLevel => Level::L256T,
        };
        if !mode.is_canonical(gva) {
            return Err(mode.not_canonical(false));
        }
        let masks = GpteMasks::new(&self.vm.host.config.guest_format(), registers.efer.contains(Efer::NXE));
        let permissions = Permissions::new(&registers);
        let by = if registers.cpl == 3 { AccessMode::User } else { AccessMode::Supervisor };
        let fault = |code| GuestFault::Page(PageFault { cr2: gva, code: permissions.code(by, access) | code });
        'walk: loop {
            let mut used: ArrayVec<Used, 5> = ArrayVec::new();
            let (mut table, mut level, mut rights) = (masks.frame_of(registers.cr3.0), root, Stage1Rights::ALL);
            let leaf = loop {
                let slot = self.gfn_to_memslot(cx, state, table).1.filter(|slot| !slot.is_invalid());
                let Some(slot) = slot else { return Err(fault(PageFaultCode::empty())) };
                let hva = slot.hva(table) + gva.index(level) as u64 * 8;
                let Ok(entry) = self.vm.mm.read_u64(cx, hva) else { return Err(fault(PageFaultCode::empty())) };
                if entry & gpte::PRESENT == 0 {
                    return Err(fault(PageFaultCode::empty()));
                }
                if masks.is_malformed(entry, level) {
                    return Err(fault(PageFaultCode::PRESENT | PageFaultCode::RESERVED));
                }
                rights = rights.and(Stage1Rights::of(entry));
                used.push(Used { hva, table, entry, writable: !slot.is_readonly() });
                if level == Level::L4K || entry & gpte::PAGE_SIZE != 0 {
                    break entry;
                }
                table = masks.frame_of(entry);
                level = level.down().expect("an entry of the lowest level is a leaf");
            };
            let key = (leaf >> gpte::PKEY_SHIFT) as u8 & 0xf;
            permissions
                .check(by, access, rights, key)
                .map_err(|code| GuestFault::Page(PageFault { cr2: gva, code }))?;
            let last = used.len() - 1;
            for (i, Used { hva, table, entry, writable }) in used.into_iter().enumerate() {
                let dirty = if i == last && access == Access::Write { gpte::DIRTY } else { 0 };
                let new = entry | gpte::ACCESSED | dirty;
                if new == entry || !writable {
                    continue;
                }
                match self.vm.mm.cmpxchg_u64(cx, hva, entry, new) {
                    Ok(true) => {
                        self.vm.record_store(table);
                        self.mark_page_dirty(cx, state, table);
                    }
                    Ok(false) => continue 'walk,
                    Err(_) => return Err(fault(PageFaultCode::empty())),
                }
            }
            let span = level.span() - 1;
            let gfn = masks.frame_of(leaf).0 & !span | (gva.0 >> PAGE_SHIFT) & span;
            return Ok(Gpa(gfn << PAGE_SHIFT | gva.offset()));
        }
    }

    /// `kvm_vcpu_mark_page_dirty`.
    fn mark_page_dirty(&self, cx: &Cx<'_>, state: &mut VcpuState, gfn: Gfn) {
        if let Some(slot) = self.gfn_to_memslot(cx, state, gfn).1
            && let Some(bitmap) = &slot.dirty_bitmap
        {
            bitmap.set(cx, gfn - slot.base_gfn);
        }
    }
}
