//! RMPQUERY (F3 0F 01 FD): a guest asks what a level may do with a page.

use super::fail::{GuestFault, RmpFail};
use super::guest::{GuestCpu, GuestKind, PageOperand};
use super::machine::Snp;
use super::types::{RmpSize, Vmpl, VmplPerms};
use sim_kernel::Cx;
use sim_kernel::sched::Access;

use super::fail::NpfError;
use super::pvalidate::operand_npf;

/// What RMPQUERY leaves in RDX and RCX.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RmpQueried {
    /// RDX 15:8.
    pub perms: VmplPerms,
    /// RDX 16.
    pub vmsa: bool,
    /// RCX.
    pub page_size: RmpSize,
}

impl Snp {
    /// RMPQUERY by a guest's processor about the level with this number. Nothing changes; the operand's size is an output, not looked at.
    ///
    /// # Errors
    /// As [`Snp::rmpadjust`], without those of size and use.
    #[track_caller]
    pub fn rmpquery(
        &self,
        cx: &Cx<'_>,
        cpu: &GuestCpu,
        operand: &PageOperand,
        vmpl: u8,
    ) -> Result<Result<RmpQueried, RmpFail>, GuestFault> {
        self.point(cx, Access::Load, operand.pfn, 1);
        if cpu.kind != GuestKind::Snp {
            return Err(GuestFault::Ud);
        }
        if cpu.cpl != 0 {
            return Err(GuestFault::Gp0);
        }
        let Some(target) = Vmpl::new(vmpl) else { return Ok(Err(RmpFail::Input)) };
        let page = self.rmp.page(operand.pfn);
        let is_usable = self.is_usable_by(cpu.asid, operand.pfn, operand.gpa, &page);
        if !is_usable || self.rmp.is_busy(operand.pfn) {
            return Err(operand_npf(operand, NpfError::RMP));
        }
        if target < cpu.vmpl {
            return Ok(Err(RmpFail::Permission));
        }
        if !page.validated {
            return Err(GuestFault::NotValidated { cr2: operand.gva });
        }
        Ok(Ok(RmpQueried { perms: page.perms[target.index()], vmsa: page.vmsa, page_size: page.page_size }))
    }
}
