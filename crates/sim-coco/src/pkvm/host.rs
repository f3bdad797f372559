//! The host's side (`host_mmu`): state of every page for the host, its stage 2, and the faults that fill it.
//!
//! The stage 2 is an identity. It is empty at first and filled where the host faults, with blocks where all of a block is memory, or none; a page that the host does not
//! have is annotated with its owner, at the last level.

use super::el2::El2;
use super::mutants;
use super::pgtable::{PageTable, Tables};
use super::pte::{Pte, S2Level};
use super::types::{Owner, PageState, Prot, each, frames};
use sim_kernel::{Errno, Pfn};
use std::collections::BTreeMap;
use std::ops::Range;

/// A page in the host's view (`struct hyp_page`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct HostPage {
    pub(super) state: PageState,
    /// Mappings of the page in VMs that are not protected (`host_share_guest_count`).
    pub(super) share_guest_count: u32,
}

/// What the host's lock guards.
#[derive(Debug)]
pub(super) struct HostMmu {
    pub(super) table: PageTable,
    /// Free tables (`host_s2_pool`).
    pub(super) pool: Vec<Pfn>,
    /// Pages that are, or were once, not simply the host's.
    pub(super) pages: BTreeMap<Pfn, HostPage>,
}

impl HostMmu {
    pub(super) fn page(&self, pfn: Pfn) -> HostPage {
        self.pages.get(&pfn).copied().unwrap_or_default()
    }
}

impl El2<'_> {
    /// The frames from `pfn` on, if there are so many that the host's stage 2 can translate (`pfn_range_is_valid`).
    ///
    /// # Errors
    /// `EINVAL` if there are not.
    pub(super) fn valid_frames(&self, pfn: Pfn, pages: u64) -> Result<Range<Pfn>, Errno> {
        let range = frames(pfn, pages)?;
        if range.end.0 <= 1 << (self.hv.config.host_bits - 12) { Ok(range) } else { Err(Errno::EINVAL) }
    }

    /// Whether all of a range is memory, and may change hands (`check_range_allowed_memory`).
    ///
    /// # Errors
    /// `EINVAL` if it leaves the region, or the gap between regions, that it begins in; `EPERM` for what is no memory, or is not mapped by the host (`NOMAP`).
    pub(super) fn check_memory(&self, range: &Range<Pfn>) -> Result<(), Errno> {
        if range.end > self.hv.config.span(range.start).end {
            return Err(Errno::EINVAL);
        }
        if self.hv.config.region(range.start).is_none_or(|region| region.nomap) {
            return Err(Errno::EPERM);
        }
        // Memory that the simulated host never had has no bytes.
        let missing = each(range.clone()).any(|pfn| !self.hv.phys.has_frame(pfn));
        if missing { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Whether all of a range is memory in this state (`__host_check_page_state_range`).
    pub(super) fn check_host(&self, host: &HostMmu, range: &Range<Pfn>, wanted: PageState) -> Result<(), Errno> {
        self.check_memory(range)?;
        let all = each(range.clone()).all(|pfn| host.page(pfn).state == wanted);
        if all { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Does something that may need tables; without one, gives up all mappings of devices and tries again (`host_stage2_try`).
    fn host_try(
        &self,
        host: &mut HostMmu,
        mut attempt: impl FnMut(&mut PageTable, &mut Tables<'_>) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let first = attempt(&mut host.table, &mut Tables { pool: &mut host.pool, memcache: None });
        if first != Err(Errno::ENOMEM) {
            return first;
        }
        self.unmap_devices(host);
        attempt(&mut host.table, &mut Tables { pool: &mut host.pool, memcache: None })
    }

    /// Takes everything out of the host's stage 2 that is not memory: the host faults it in again (`host_stage2_unmap_dev_all`).
    fn unmap_devices(&self, host: &mut HostMmu) {
        let mut start = Pfn(0);
        let regions = self.hv.config.regions.iter().map(|region| (region.start, region.end));
        for (end, next) in regions.chain([(Pfn(1 << (self.hv.config.host_bits - 12)), Pfn(0))]) {
            let mut tables = Tables { pool: &mut host.pool, memcache: None };
            self.unmap(&mut host.table, &mut tables, start..end);
            start = next;
        }
    }

    /// The host's descriptor of a page, or block, that it has.
    fn identity(&self, first: Pfn, level: S2Level) -> Pte {
        match self.hv.config.region(first) {
            Some(_) => Pte::leaf(first, level, Prot::RWX, PageState::Owned),
            None => Pte::device(first, level),
        }
    }

    /// Sets the state of pages (`__host_set_page_state_range`). If the host did not have them they are mapped again first, in blocks where those fit.
    pub(super) fn set_host_state(&self, host: &mut HostMmu, range: Range<Pfn>, state: PageState) {
        let mut next = if host.page(range.start).state == PageState::NoPage { range.start } else { range.end };
        while next < range.end {
            let fits = |level: &S2Level| {
                level.supports_leaf() && next.0 % level.pages() == 0 && next + level.pages() <= range.end
            };
            let level = (self.hv.host_root.start.0..S2Level::LAST.0).map(S2Level).find(fits).unwrap_or(S2Level::LAST);
            let pte = self.identity(next, level);
            let mapped = self.host_try(host, |table, tables| self.map(table, tables, next, level, pte));
            assert_eq!(mapped, Ok(()), "the pool has tables for all memory");
            next = next + level.pages();
        }
        each(range).for_each(|pfn| self.mark_host(host, pfn, state));
    }

    /// Sets the state of a page, and nothing else.
    pub(super) fn mark_host(&self, host: &mut HostMmu, pfn: Pfn, state: PageState) {
        let page = host.pages.entry(pfn).or_default();
        let old = std::mem::replace(&mut page.state, state);
        self.record_state("host", pfn, old, state);
    }

    /// Takes pages away from the host and notes who has them (`host_stage2_set_owner_locked`).
    pub(super) fn set_host_owner(&self, host: &mut HostMmu, range: Range<Pfn>, owner: Owner) {
        let pte = Pte::donation(owner);
        for pfn in each(range.clone()) {
            let noted = self.host_try(host, |table, tables| self.map(table, tables, pfn, S2Level::LAST, pte));
            assert_eq!(noted, Ok(()), "the pool has tables for all memory");
        }
        each(range).for_each(|pfn| self.mark_host(host, pfn, PageState::NoPage));
    }

    /// The host faulted at a frame: maps it, and as much around it as can be (`host_stage2_idmap`).
    ///
    /// # Errors
    /// `EEXIST` if it is mapped by now, `EPERM` if the host does not have it, `ERANGE` beyond all addresses.
    pub(super) fn host_idmap(&self, pfn: Pfn) -> Result<(), Errno> {
        let mut host = self.lock_host();
        let (slot, pte) = host.table.root.leaf(&self.hv.phys, pfn)?;
        if pte.is_valid() {
            return Err(Errno::EEXIST);
        }
        if pte.is_counted() {
            return Err(Errno::EPERM);
        }
        let span = self.hv.config.span(pfn);
        let fits = |level: &S2Level| {
            let first = Pfn(pfn.0 & !(level.pages() - 1));
            level.supports_leaf() && span.start <= first && first + level.pages() <= span.end
        };
        // K16: a table is there because something in it is not as the rest of the block.
        let from = if self.hv.is_off(mutants::K16) { S2Level::BLOCK.min(slot.level) } else { slot.level };
        let level = (from.0..S2Level::LAST.0).map(S2Level).find(fits).unwrap_or(S2Level::LAST);
        let first = Pfn(pfn.0 & !(level.pages() - 1));
        let pte = self.identity(first, level);
        self.host_try(&mut host, |table, tables| self.map(table, tables, pfn, level, pte))
    }
}
