//! TDH.MEM.PAGE.ADD and TDH.MEM.PAGE.AUG: a page becomes memory of a TD, with contents while the TD is built, without them afterwards.

use super::leaf::Leaf;
use super::machine::Seam;
use super::mutants;
use super::pamt::{PageType, PamtEntry};
use super::sept::SeptEntry;
use super::status::{OperandId, Seamcall};
use super::transitions::HostOp;
use super::types::{Hkid, Hpa, PageSize, SeptInfo};
use sim_kernel::{Cx, PAGE_SHIFT, PAGE_SIZE, Pfn};
use sim_mmu::Level;

impl Seam<'_> {
    /// TDH.MEM.PAGE.ADD: copies 4 KiB of the host to a new page of a TD that is being built. That there is a page is measured, what is in it is not.
    ///
    /// # Errors
    /// The TD's (|RDX); those of the entry (|RCX); OPERAND_INVALID|R9 for the source; the page's (|R8).
    pub fn mem_page_add(self, cx: &Cx<'_>, info: SeptInfo, tdr: Hpa, page: Hpa, source: Hpa) -> Seamcall<()> {
        let leaf = Leaf::MemPageAdd;
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, leaf, tdr, OperandId::RDX)?;
        let found = state.locate(&mut held, leaf, tdr, info, Level::L4K, Some(Level::L4K))?;
        let (to, _) = state.transition(HostOp::PageAdd, &found)?;
        // Through which KeyID the source is read: only one of the host's, unless that rule is off.
        let mut reads_as = Hkid::HOST;
        let source = match state.shared_operand(source, PAGE_SIZE, OperandId::R9) {
            Err(_) if state.is_off(mutants::SOURCE_KEYID) && source.is_page_aligned() => {
                reads_as = Hkid((source.0 >> self.tdx.config.keyid_shift) as u16);
                Hpa(source.0 & ((1 << self.tdx.config.keyid_shift) - 1))
            }
            other => other?,
        };
        let source = Pfn(source.0 >> PAGE_SHIFT);
        let page = state.new_page(&mut held, page, PageSize::Size4K, OperandId::R8)?;
        drop(state);
        self.tdx.point_bytes(cx, sim_kernel::sched::Access::Load, source, 0, PAGE_SIZE as usize);
        let mut bytes = [0; PAGE_SIZE as usize];
        let read = self.tdx.state.lock().memory.read(reads_as, source, 0, &mut bytes);
        self.tdx.commit_pages(cx, page.base, 1);
        let mut state = self.tdx.state.lock();
        if read.is_err() {
            // A machine check in the module.
            return Err(state.consume(tdr));
        }
        let hkid = state.hkid(tdr);
        state.memory.write_page(hkid, page.base, &bytes);
        state.set_entry(found.slot, SeptEntry::leaf(to, page.base));
        state.assign(page, PamtEntry::owned(PageType::Reg, tdr));
        let measures = !state.is_off(mutants::MEASURES_ADD);
        let td = state.td_mut(tdr);
        td.carried_out.add_page(found.gpa);
        if measures {
            td.measurement.add_page(found.gpa);
        }
        td.chldcnt += 1;
        Ok(())
    }

    /// TDH.MEM.PAGE.AUG: a page of 4 KiB or 2 MiB that the guest has yet to accept. Its contents stay what they are until then.
    ///
    /// # Errors
    /// The TD's (|RDX); those of the entry (|RCX); the page's (|R8).
    pub fn mem_page_aug(self, cx: &Cx<'_>, info: SeptInfo, tdr: Hpa, page: Hpa) -> Seamcall<()> {
        let leaf = Leaf::MemPageAug;
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, leaf, tdr, OperandId::RDX)?;
        let found = state.locate(&mut held, leaf, tdr, info, Level::L4K, Some(Level::L2M))?;
        let (to, _) = state.transition(HostOp::PageAug, &found)?;
        let size = PageSize::of_level(found.level).expect("4 KiB or 2 MiB");
        let page = state.new_page(&mut held, page, size, OperandId::R8)?;
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        state.set_entry(found.slot, SeptEntry::leaf(to, page.base));
        state.assign(page, PamtEntry::owned(PageType::Reg, tdr));
        self.tdx.looks_at_caches(cx, page.base, size.pages());
        for i in 0..size.pages() {
            state.memory.set_undefined(page.base + i);
        }
        state.td_mut(tdr).chldcnt += size.pages();
        Ok(())
    }
}
