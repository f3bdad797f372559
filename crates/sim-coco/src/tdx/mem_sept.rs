//! TDH.MEM.SEPT leaves: tables of a Secure EPT are added, removed and read.

use super::leaf::Leaf;
use super::lock::{Mode, Slot};
use super::machine::Seam;
use super::mutants;
use super::pamt::{PageType, PamtEntry};
use super::sept::{EntryDetails, SeptEntry, SeptState};
use super::status::{OperandId, Seamcall, StatusName};
use super::transitions::HostOp;
use super::types::{Hpa, PageSize, SeptInfo};
use sim_kernel::Cx;
use sim_mmu::{Level, PT_ENTRIES};

/// Bit 0 of RDX of SEPT.ADD: a table that is there already is success.
pub const ALLOW_EXISTING: u64 = 1;

/// What SEPT.ADD did with the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SeptAdded {
    /// It is a table now.
    Added,
    /// There was a table; the page was not used.
    Existing,
}

impl Seam<'_> {
    /// TDH.MEM.SEPT.ADD: a page becomes the table that an entry of this level points to. `tdr` may have [`ALLOW_EXISTING`].
    ///
    /// # Errors
    /// OPERAND_INVALID|RDX; the TD's (|RDX); those of the entry (|RCX); the page's (|R8), of which [`Hpa::NULL`] is none.
    pub fn mem_sept_add(self, cx: &Cx<'_>, info: SeptInfo, tdr: Hpa, page: Hpa) -> Seamcall<SeptAdded> {
        let leaf = Leaf::MemSeptAdd;
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let allows_existing = tdr.0 & ALLOW_EXISTING != 0;
        let tdr = state.open_td(&mut held, leaf, Hpa(tdr.0 & !ALLOW_EXISTING), OperandId::RDX)?;
        let found = state.locate(&mut held, leaf, tdr, info, Level::L2M, None)?;
        if allows_existing && found.state == SeptState::NlMapped {
            return Ok(SeptAdded::Existing);
        }
        state.transition(HostOp::SeptAdd, &found)?;
        let page = state.new_page(&mut held, page, PageSize::Size4K, OperandId::R8)?;
        drop(state);
        self.tdx.commit_pages(cx, page.base, 1);
        let mut state = self.tdx.state.lock();
        let hkid = state.hkid(tdr);
        state.memory.fill_page(hkid, page.base, SeptEntry::FREE.0);
        state.set_entry(found.slot, SeptEntry::table(page.base));
        state.assign(page, PamtEntry::owned(PageType::Ept, tdr));
        state.td_mut(tdr).chldcnt += 1;
        Ok(SeptAdded::Added)
    }

    /// TDH.MEM.SEPT.REMOVE: takes the table that an entry of this level points to. The answer is its page.
    ///
    /// # Errors
    /// The TD's (|RDX); those of the entry (|RCX); BUSY|RCX for the table's page; GPA_RANGE_NOT_BLOCKED, TLB_TRACKING_NOT_DONE; EPT_PAGE_NOT_FREE if it is in use.
    pub fn mem_sept_remove(self, cx: &Cx<'_>, info: SeptInfo, tdr: Hpa) -> Seamcall<Hpa> {
        let leaf = Leaf::MemSeptRemove;
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, leaf, tdr, OperandId::RDX)?;
        let found = state.locate(&mut held, leaf, tdr, info, Level::L2M, None)?;
        let (to, tracking) = state.transition(HostOp::SeptRemove, &found)?;
        let page = found.metadata();
        state.lock_known_page(&mut held, page, Mode::Exclusive, OperandId::RCX)?;
        state.check_tracking(tdr, tracking, &found, OperandId::RCX)?;
        if !state.is_off(mutants::SEPT_EMPTY) {
            for index in 0..PT_ENTRIES {
                let child = state.child(tdr, Slot { table: page.base, index })?;
                if child.state() != Some(SeptState::Free) {
                    return Err(found.fail(StatusName::EptPageNotFree));
                }
            }
        }
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        let to = state.removed_state(tdr, to);
        state.set_entry(found.slot, SeptEntry::FREE.with_state(to));
        state.pamt.free(page);
        state.td_mut(tdr).chldcnt -= 1;
        Ok(Hpa::of(page.base))
    }

    /// TDH.MEM.SEPT.RD: what software is shown of an entry.
    ///
    /// # Errors
    /// The TD's (|RDX); those of the entry (|RCX).
    pub fn mem_sept_rd(self, cx: &Cx<'_>, info: SeptInfo, tdr: Hpa) -> Seamcall<EntryDetails> {
        let leaf = Leaf::MemSeptRd;
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, leaf, tdr, OperandId::RDX)?;
        let found = state.locate(&mut held, leaf, tdr, info, Level::L4K, None)?;
        state.transition(HostOp::SeptRd, &found)?;
        drop(state);
        self.tdx.window(cx);
        Ok(found.entry.details(found.level))
    }
}
