//! TDH.MEM.PAGE.DEMOTE and TDH.MEM.PAGE.PROMOTE: a page becomes 512 smaller ones behind a table, and the reverse.

use super::leaf::Leaf;
use super::lock::{LockId, Mode, Slot};
use super::machine::{Seam, State};
use super::mutants;
use super::pamt::{PageType, PamtAt, PamtEntry, PamtNode};
use super::sept::{SeptEntry, SeptState};
use super::status::{OperandId, Seamcall, StatusName};
use super::transitions::HostOp;
use super::types::{Hpa, PageSize, SeptInfo};
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Level, PT_ENTRIES};

/// Pages that PROMOTE gives back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Promoted {
    /// The table.
    pub sept: Hpa,
    /// The metadata of what is 2 MiB now, with dynamic PAMT.
    pub pamt: Option<[Hpa; 2]>,
}

fn part_size(size: PageSize) -> PageSize {
    if size == PageSize::Size1G { PageSize::Size2M } else { PageSize::Size4K }
}

impl Seam<'_> {
    /// TDH.MEM.PAGE.DEMOTE: splits a page of 2 MiB or 1 GiB; `sept` becomes the table. The parts are as the page was before it was blocked. With dynamic PAMT,
    /// `pamt` are the pages for the metadata of a page of 2 MiB.
    ///
    /// # Errors
    /// The TD's (|RDX); those of the entry (|RCX); GPA_RANGE_NOT_BLOCKED; TLB_TRACKING_NOT_DONE; the page's (|R8); those of the metadata pages (|R9, |R10), as of [`Seam::phymem_pamt_add`];
    /// INTERRUPTED_RESTARTABLE while an interrupt of the host waits; BUSY|RCX for the page that is split.
    pub fn mem_page_demote(
        self,
        cx: &Cx<'_>,
        info: SeptInfo,
        tdr: Hpa,
        sept: Hpa,
        pamt: Option<[Hpa; 2]>,
    ) -> Seamcall<()> {
        let leaf = Leaf::MemPageDemote;
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, leaf, tdr, OperandId::RDX)?;
        let found = state.locate(&mut held, leaf, tdr, info, Level::L2M, Some(Level::L1G))?;
        let (to, tracking) = state.transition(HostOp::PageDemote, &found)?;
        state.check_tracking(tdr, tracking, &found, OperandId::RCX)?;
        let table = state.new_page(&mut held, sept, PageSize::Size4K, OperandId::R8)?;
        let page = found.page();
        let mut node_pages = None;
        if state.pamt.is_dynamic && page.size == PageSize::Size2M {
            let given = pamt.unwrap_or([Hpa::NULL; 2]);
            node_pages = Some(state.node_pages(&mut held, given, [OperandId::R9, OperandId::R10], None)?);
        }
        if state.lp_mut(self.lp).interrupt {
            return Err(StatusName::InterruptedRestartable.into());
        }
        state.lock_known_page(&mut held, page, Mode::Exclusive, OperandId::RCX)?;
        drop(state);
        for pfn in node_pages.into_iter().flatten() {
            self.zero_node_page(cx, pfn);
        }
        self.tdx.commit_pages(cx, table.base, 1);
        let mut state = self.tdx.state.lock();
        state.demote_metadata(page, node_pages);
        let hkid = state.hkid(tdr);
        state.memory.fill_page(hkid, table.base, SeptEntry::FREE.0);
        state.assign(table, PamtEntry::owned(PageType::Ept, tdr));
        let part = part_size(page.size);
        for index in 0..PT_ENTRIES {
            let child = SeptEntry::leaf(to, page.base + index as u64 * part.pages());
            state.set_entry(Slot { table: table.base, index }, child);
        }
        state.set_entry(found.slot, SeptEntry::table(table.base));
        state.td_mut(tdr).chldcnt += 1;
        Ok(())
    }

    /// TDH.MEM.PAGE.PROMOTE: 512 equal pages that lie one after the other become one. The answer is the table, which is free.
    ///
    /// # Errors
    /// The TD's (|RDX); those of the entry (|RCX); BUSY|RCX for the table, an entry in it that a guest has, or the page that is made; GPA_RANGE_NOT_BLOCKED;
    /// TLB_TRACKING_NOT_DONE; EPT_INVALID_PROMOTE_CONDITIONS; INTERRUPTED_RESTARTABLE while an interrupt of the host waits.
    pub fn mem_page_promote(self, cx: &Cx<'_>, info: SeptInfo, tdr: Hpa) -> Seamcall<Promoted> {
        let leaf = Leaf::MemPagePromote;
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, leaf, tdr, OperandId::RDX)?;
        let found = state.locate(&mut held, leaf, tdr, info, Level::L2M, Some(Level::L1G))?;
        let (_, tracking) = state.transition(HostOp::PagePromote, &found)?;
        let table = found.metadata();
        state.lock_known_page(&mut held, table, Mode::Exclusive, OperandId::RCX)?;
        state.check_tracking(tdr, tracking, &found, OperandId::RCX)?;
        let size = PageSize::of_level(found.level).expect("2 MiB or 1 GiB");
        for index in 0..PT_ENTRIES {
            let slot = Slot { table: table.base, index };
            state.child(tdr, slot)?;
            let taken = state.take(&mut held, LockId::Entry(slot), Mode::Exclusive);
            taken.map_err(|_| found.fail(StatusName::OperandBusy))?;
        }
        let invalid = found.fail(StatusName::EptInvalidPromoteConditions);
        let (first, child_state) = state.promotable(tdr, table.base, size)?.ok_or(invalid)?;
        if state.lp_mut(self.lp).interrupt {
            return Err(StatusName::InterruptedRestartable.into());
        }
        let page = PamtAt { size, base: first };
        state.lock_known_page(&mut held, page, Mode::Exclusive, OperandId::RCX)?;
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        let pamt = state.promote_metadata(tdr, page);
        // The locks of the entries go with the table.
        held.locks.retain(|(id, _)| !matches!(id, LockId::Entry(slot) if slot.table == table.base));
        state.set_entry(found.slot, SeptEntry::leaf(child_state, first));
        state.pamt.free(table);
        state.td_mut(tdr).chldcnt -= 1;
        Ok(Promoted { sept: Hpa::of(table.base), pamt: pamt.map(|pages| pages.map(Hpa::of)) })
    }
}

impl State {
    /// The parts take over type and owner, and were never blocked.
    fn demote_metadata(&mut self, page: PamtAt, node: Option<[Pfn; 2]>) {
        let entry = PamtEntry { bepoch: 0, ..self.pamt.get(page) };
        let node_type = if node.is_some() { PageType::Pamt } else { PageType::Nda };
        self.pamt.set(page, PamtEntry { page_type: node_type, ..entry });
        if let Some(pages) = node {
            self.pamt.nodes.insert(page.base, PamtNode { pages, used: 0 });
        }
        let part = part_size(page.size);
        for i in 0..PT_ENTRIES as u64 {
            self.pamt.set(PamtAt { size: part, base: page.base + i * part.pages() }, entry);
        }
    }

    /// The page takes over type and owner of its parts, which are free. Answers the pages of the node that is not needed any more.
    fn promote_metadata(&mut self, tdr: Pfn, page: PamtAt) -> Option<[Pfn; 2]> {
        let part = part_size(page.size);
        for i in 0..PT_ENTRIES as u64 {
            self.pamt.free(PamtAt { size: part, base: page.base + i * part.pages() });
        }
        self.pamt.set(page, PamtEntry::owned(PageType::Reg, tdr));
        self.pamt.nodes.remove(&page.base).filter(|_| page.size == PageSize::Size2M).map(|node| node.pages)
    }

    /// The first frame and the state of 512 children that can become one page: equal but for their addresses, which go up, from an aligned first on.
    fn promotable(&mut self, tdr: Pfn, table: Pfn, size: PageSize) -> Seamcall<Option<(Pfn, SeptState)>> {
        let part = part_size(size);
        let first = self.child(tdr, Slot { table, index: 0 })?.unlocked();
        let level = if part == PageSize::Size2M { Level::L2M } else { Level::L4K };
        let base = first.pfn_at(level);
        let legal = [SeptState::Mapped, SeptState::Pending];
        let Some(state) = first.state().filter(|state| legal.contains(state)) else { return Ok(None) };
        if size.base(base) != base {
            return Ok(None);
        }
        if self.is_off(mutants::PROMOTE_CONDITIONS) {
            return Ok(Some((base, state)));
        }
        for index in 1..PT_ENTRIES {
            let child = self.child(tdr, Slot { table, index })?.unlocked();
            let expected = SeptEntry::leaf(state, base + index as u64 * part.pages());
            let child = if part == PageSize::Size2M { child.with_counter(0) } else { child };
            if child != expected {
                return Ok(None);
            }
        }
        Ok(Some((base, state)))
    }
}
