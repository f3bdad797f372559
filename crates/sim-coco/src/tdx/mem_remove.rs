//! TDH.MEM.PAGE.REMOVE and TDH.MEM.PAGE.RELOCATE: a page leaves a TD, or another takes its place.

use super::leaf::Leaf;
use super::lock::Mode;
use super::machine::Seam;
use super::pamt::{PageType, PamtEntry};
use super::sept::SeptEntry;
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::transitions::HostOp;
use super::types::{Hpa, PageSize, SeptInfo};
use sim_kernel::{Cx, PAGE_SIZE};
use sim_mmu::Level;

impl Seam<'_> {
    /// TDH.MEM.PAGE.REMOVE: takes a page from a TD. The answer is the page, whose contents stay as they are, in memory and in caches.
    ///
    /// # Errors
    /// The TD's (|RDX); those of the entry (|RCX); BUSY|RCX for the page; GPA_RANGE_NOT_BLOCKED; TLB_TRACKING_NOT_DONE.
    pub fn mem_page_remove(self, cx: &Cx<'_>, info: SeptInfo, tdr: Hpa) -> Seamcall<Hpa> {
        let leaf = Leaf::MemPageRemove;
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, leaf, tdr, OperandId::RDX)?;
        let found = state.locate(&mut held, leaf, tdr, info, Level::L4K, Some(Level::L1G))?;
        let (to, tracking) = state.transition(HostOp::PageRemove, &found)?;
        let page = found.page();
        state.lock_known_page(&mut held, page, Mode::Exclusive, OperandId::RCX)?;
        state.check_tracking(tdr, tracking, &found, OperandId::RCX)?;
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        let to = state.removed_state(tdr, to);
        state.set_entry(found.slot, SeptEntry::FREE.with_state(to));
        state.pamt.free(page);
        for i in 0..page.size.pages() {
            state.memory.set_undefined(page.base + i);
        }
        state.td_mut(tdr).chldcnt -= page.size.pages();
        Ok(Hpa::of(page.base))
    }

    /// TDH.MEM.PAGE.RELOCATE: another page takes the place of one of 4 KiB, with its contents if the guest has accepted it. The answer is the old page.
    ///
    /// # Errors
    /// The TD's (|RDX); those of the entry (|RCX); OPERAND_INVALID|R8 for the same page; BUSY|RCX for the old page; GPA_RANGE_NOT_BLOCKED; TLB_TRACKING_NOT_DONE;
    /// the new page's (|R8).
    pub fn mem_page_relocate(self, cx: &Cx<'_>, info: SeptInfo, tdr: Hpa, page: Hpa) -> Seamcall<Hpa> {
        let leaf = Leaf::MemPageRelocate;
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, leaf, tdr, OperandId::RDX)?;
        let found = state.locate(&mut held, leaf, tdr, info, Level::L4K, Some(Level::L4K))?;
        let (to, tracking) = state.transition(HostOp::PageRelocate, &found)?;
        let old = found.page();
        if page == Hpa::of(old.base) {
            return Err(SeamFail::new(StatusName::OperandInvalid, OperandId::R8));
        }
        state.lock_known_page(&mut held, old, Mode::Exclusive, OperandId::RCX)?;
        state.check_tracking(tdr, tracking, &found, OperandId::RCX)?;
        let new = state.new_page(&mut held, page, PageSize::Size4K, OperandId::R8)?;
        drop(state);
        self.tdx.point_bytes(cx, sim_kernel::sched::Access::Load, old.base, 0, PAGE_SIZE as usize);
        let mut bytes = [0; PAGE_SIZE as usize];
        let state = self.tdx.state.lock();
        let read = state.memory.read(state.hkid(tdr), old.base, 0, &mut bytes);
        drop(state);
        self.tdx.commit_pages(cx, new.base, 1);
        let mut state = self.tdx.state.lock();
        if !found.state.is_pending() {
            if read.is_err() {
                return Err(state.consume(tdr));
            }
            let hkid = state.hkid(tdr);
            state.memory.write_page(hkid, new.base, &bytes);
        } else {
            state.memory.set_undefined(new.base);
        }
        state.memory.set_undefined(old.base);
        state.set_entry(found.slot, SeptEntry::leaf(to, new.base));
        state.pamt.free(old);
        state.assign(new, PamtEntry::owned(PageType::Reg, tdr));
        Ok(Hpa::of(old.base))
    }
}
