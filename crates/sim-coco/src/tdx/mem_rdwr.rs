//! TDH.MEM.RD and TDH.MEM.WR: the host reads and writes memory of a TD that may be debugged.

use super::check::Found;
use super::leaf::Leaf;
use super::lock::Held;
use super::machine::Seam;
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::td::TdAttributes;
use super::transitions::HostOp;
use super::types::{Hpa, level_number};
use sim_kernel::sched::Access;
use sim_kernel::{Cx, Pfn};
use sim_mmu::Gpa;

impl<'a> Seam<'a> {
    fn open_word(self, cx: &Cx<'_>, leaf: Leaf, op: HostOp, gpa: Gpa, tdr: Hpa) -> Seamcall<(Held<'a>, Pfn, Found)> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, leaf, tdr, OperandId::RDX)?;
        if !state.td(tdr).attributes().contains(TdAttributes::DEBUG) {
            return Err(StatusName::TdNonDebug.into());
        }
        if !gpa.0.is_multiple_of(8) {
            return Err(SeamFail::new(StatusName::OperandInvalid, OperandId::RCX));
        }
        let found = state.locate_page(&mut held, leaf, tdr, gpa, op)?;
        drop(state);
        Ok((held, tdr, found))
    }

    /// TDH.MEM.RD: eight bytes.
    ///
    /// # Errors
    /// The TD's (|RDX); TD_NON_DEBUG; OPERAND_INVALID|RCX; BUSY|SEPT_TREE; EPT_ENTRY_NOT_PRESENT|RCX; BUSY|RCX.
    pub fn mem_rd(self, cx: &Cx<'_>, gpa: Gpa, tdr: Hpa) -> Seamcall<u64> {
        let (_held, tdr, found) = self.open_word(cx, Leaf::MemRd, HostOp::MemRd, gpa, tdr)?;
        let pfn = found.frame(gpa);
        self.tdx.commit_bytes(cx, Access::Load, pfn, gpa.offset(), 8);
        let mut state = self.tdx.state.lock();
        let (hkid, mut bytes) = (state.hkid(tdr), [0; 8]);
        match state.memory.read(hkid, pfn, gpa.offset() as usize, &mut bytes) {
            Ok(()) => Ok(u64::from_le_bytes(bytes)),
            Err(_) => Err(state.consume(tdr)),
        }
    }

    /// TDH.MEM.WR: replaces eight bytes, and answers what was there.
    ///
    /// # Errors
    /// As [`Seam::mem_rd`]; EPT_ENTRY_STATE_INCORRECT|RCX for a page that is blocked for writing.
    pub fn mem_wr(self, cx: &Cx<'_>, gpa: Gpa, tdr: Hpa, value: u64) -> Seamcall<u64> {
        let (_held, tdr, found) = self.open_word(cx, Leaf::MemWr, HostOp::MemWr, gpa, tdr)?;
        let pfn = found.frame(gpa);
        self.tdx.commit_bytes(cx, Access::Rmw, pfn, gpa.offset(), 8);
        let mut state = self.tdx.state.lock();
        let (hkid, package, mut bytes) = (state.hkid(tdr), state.package(self.lp), [0; 8]);
        let offset = gpa.offset() as usize;
        let read = state.memory.read(hkid, pfn, offset, &mut bytes);
        let written = read.and_then(|()| state.memory.store(hkid, package, pfn, offset, &value.to_le_bytes()));
        match written {
            Ok(()) => Ok(u64::from_le_bytes(bytes)),
            Err(_) => Err(state.consume(tdr)),
        }
    }
}

impl Found {
    /// The frame that holds an address of the page.
    pub(super) fn frame(&self, gpa: Gpa) -> Pfn {
        let span = 1 << (9 * level_number(self.level));
        self.page().base + (gpa.gfn().0 & (span - 1))
    }
}
