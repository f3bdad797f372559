//! What transitions of any guest's pages have in common: looking at its stage 2, and mapping in it (`get_valid_guest_pte`, `__guest_check_page_state_range`,
//! `__guest_check_pgtable_memcache`).

use super::el2::El2;
use super::mutants;
use super::pgtable::{Slot, Tables};
use super::pte::{Pte, S2Level};
use super::types::PageState;
use super::vm::{GuestMmu, HypVcpu};
use sim_kernel::{Errno, Pfn};
use sim_mmu::Gfn;

impl El2<'_> {
    /// The descriptor of a page of a guest that it can share or lose (`get_valid_guest_pte`).
    ///
    /// # Errors
    /// `EHWPOISON` if the page was taken by force, `ENOENT` if there is none, `E2BIG` if it is part of a block; `ERANGE` beyond all addresses.
    pub(super) fn guest_page(&self, guest: &GuestMmu, gfn: Gfn) -> Result<(Slot, Pte), Errno> {
        let (slot, pte) = guest.table.root.leaf(&self.hv.phys, Pfn(gfn.0))?;
        match pte.state() {
            PageState::Poison => Err(Errno::EHWPOISON),
            _ if !pte.is_valid() => Err(Errno::ENOENT),
            _ if slot.level != S2Level::LAST => Err(Errno::E2BIG),
            _ => Ok((slot, pte)),
        }
    }

    /// Whether nothing is, or was, at these pages of the guest (`__guest_check_page_state_range` for no page).
    pub(super) fn check_guest_free(&self, guest: &GuestMmu, gfn: Gfn, pages: u64) -> Result<(), Errno> {
        for page in (0..pages).map(|i| gfn.0.saturating_add(i)) {
            let (_, pte) = guest.table.root.leaf(&self.hv.phys, Pfn(page))?;
            if pte.state() != PageState::NoPage {
                return Err(Errno::EPERM);
            }
        }
        Ok(())
    }

    /// Whether the memcache has all tables that a mapping can take: then nothing can fail once something was changed.
    pub(super) fn check_memcache(&self, vcpu: &HypVcpu) -> Result<(), Errno> {
        let enough = vcpu.memcache.lock().len() >= vcpu.vm.root.tables_below();
        // K10: without it, the host has lost the page and the guest has not got it.
        if enough || self.hv.is_off(mutants::K10) { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// Maps a page, or a block, for the guest of this vCPU.
    pub(super) fn map_guest(
        &self,
        guest: &mut GuestMmu,
        vcpu: &HypVcpu,
        gfn: Gfn,
        level: S2Level,
        pte: Pte,
    ) -> Result<(), Errno> {
        let mut memcache = vcpu.memcache.lock().clone();
        let mut tables = Tables { pool: &mut guest.pool, memcache: Some(&mut memcache) };
        let mapped = self.map(&mut guest.table, &mut tables, Pfn(gfn.0), level, pte);
        *vcpu.memcache.lock() = memcache;
        mapped
    }
}
