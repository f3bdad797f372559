//! TDH.MR leaves: contents are measured, and the measurement is finished.

use super::leaf::Leaf;
use super::machine::Seam;
use super::measurement::EXTEND_BYTES;
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::td::OpState;
use super::transitions::HostOp;
use super::types::Hpa;
use sim_kernel::Cx;
use sim_kernel::sched::Access;
use sim_mmu::Gpa;

impl Seam<'_> {
    /// TDH.MR.EXTEND: measures 256 bytes of a page that was added.
    ///
    /// # Errors
    /// The TD's (|RDX); OPERAND_INVALID|RCX for an address that is not 256-byte aligned, or not private; EPT_ENTRY_NOT_PRESENT|RCX.
    pub fn mr_extend(self, cx: &Cx<'_>, gpa: Gpa, tdr: Hpa) -> Seamcall<()> {
        let leaf = Leaf::MrExtend;
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, leaf, tdr, OperandId::RDX)?;
        if !gpa.0.is_multiple_of(EXTEND_BYTES as u64) {
            return Err(SeamFail::new(StatusName::OperandInvalid, OperandId::RCX));
        }
        let found = state.locate_page(&mut held, leaf, tdr, gpa, HostOp::MrExtend)?;
        let pfn = found.frame(gpa);
        drop(state);
        self.tdx.commit_bytes(cx, Access::Load, pfn, gpa.offset(), EXTEND_BYTES);
        let mut state = self.tdx.state.lock();
        let mut bytes = [0; EXTEND_BYTES];
        let hkid = state.hkid(tdr);
        if state.memory.read(hkid, pfn, gpa.offset() as usize, &mut bytes).is_err() {
            return Err(state.consume(tdr));
        }
        let td = state.td_mut(tdr);
        td.carried_out.extend(gpa, &bytes);
        td.measurement.extend(gpa, &bytes);
        Ok(())
    }

    /// TDH.MR.FINALIZE: MRTD is what it is, and vCPUs may run.
    ///
    /// # Errors
    /// The TD's (|RCX); NO_VCPUS.
    pub fn mr_finalize(self, cx: &Cx<'_>, tdr: Hpa) -> Seamcall<()> {
        let mut held = self.begin(cx)?;
        let mut state = self.tdx.state.lock();
        let tdr = state.open_td(&mut held, Leaf::MrFinalize, tdr, OperandId::RCX)?;
        if state.td(tdr).num_vcpus == 0 {
            return Err(StatusName::NoVcpus.into());
        }
        drop(state);
        self.tdx.window(cx);
        let mut state = self.tdx.state.lock();
        let td = state.td_mut(tdr);
        td.carried_out.finish();
        td.measurement.finish();
        td.op_state = OpState::Runnable;
        Ok(())
    }
}
