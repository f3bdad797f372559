//! RMPADJUST (F3 0F 01 FE): a guest's more privileged level gives rights on a page to a less privileged one, or makes a page a VMSA.

use super::fail::{GuestFault, RmpFail};
use super::guest::{GuestCpu, GuestKind, PageOperand};
use super::machine::Snp;
use super::mutants;
use super::pvalidate::{operand_size, operand_span};
use super::types::{Gva, RmpSize, Vmpl, VmplPerms};
use sim_kernel::Cx;
use sim_kernel::sched::Access;

/// RDX of RMPADJUST as it stands there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RmpAdjust(pub u64);

/// The operands of RMPADJUST, or what it ends with before it translates.
type Checked = Result<(RmpSize, Vmpl, VmplPerms, bool), RmpFail>;

impl RmpAdjust {
    const VMSA: u64 = 1 << 16;

    /// Permissions for a level, and whether the page is to be a VMSA.
    pub const fn new(target: Vmpl, perms: VmplPerms, vmsa: bool) -> RmpAdjust {
        let vmsa = if vmsa { RmpAdjust::VMSA } else { 0 };
        RmpAdjust(target.index() as u64 | (perms.bits() as u64) << 8 | vmsa)
    }

    /// The fields, or `None` if a reserved bit is set or there is no such level.
    fn decode(self, allowed: VmplPerms) -> Option<(Vmpl, VmplPerms, bool)> {
        let [target, perms, ..] = self.0.to_le_bytes();
        let perms = VmplPerms::from_bits(perms)?;
        let reserved = self.0 & !(RmpAdjust::VMSA | 0xffff);
        let is_valid = reserved == 0 && allowed.contains(perms);
        let target = Vmpl::new(target)?;
        is_valid.then_some((target, perms, self.0 & RmpAdjust::VMSA != 0))
    }
}

impl Snp {
    /// What RMPADJUST looks at before it translates its operand: who executes it, and its registers. `Err` within: it ends there, with this.
    ///
    /// # Errors
    /// `#UD` outside an SNP guest, `#GP(0)` outside CPL 0.
    pub fn rmpadjust_inputs(
        &self,
        cpu: &GuestCpu,
        gva: Gva,
        size: u64,
        rdx: RmpAdjust,
    ) -> Result<Result<(), RmpFail>, GuestFault> {
        Ok(self.rmpadjust_checked(cpu, gva, size, rdx)?.map(drop))
    }

    fn rmpadjust_checked(&self, cpu: &GuestCpu, gva: Gva, size: u64, rdx: RmpAdjust) -> Result<Checked, GuestFault> {
        if cpu.kind != GuestKind::Snp {
            return Err(GuestFault::Ud);
        }
        if cpu.cpl != 0 {
            return Err(GuestFault::Gp0);
        }
        let Some((target, perms, vmsa)) = rdx.decode(self.all_perms()) else { return Ok(Err(RmpFail::Input)) };
        Ok(operand_size(gva, size).and_then(|size| {
            if target <= cpu.vmpl { Err(RmpFail::Permission) } else { Ok((size, target, perms, vmsa)) }
        }))
    }

    /// RMPADJUST by a guest's processor. Cached translations do not change.
    ///
    /// # Errors
    /// `#UD` outside an SNP guest, `#GP(0)` outside CPL 0; an NPF if the page is not the guest's at this address, is larger than said, is being
    /// worked on, or is the VMSA of a vCPU that runs; `#VC` if it is not validated.
    #[track_caller]
    pub fn rmpadjust(
        &self,
        cx: &Cx<'_>,
        cpu: &GuestCpu,
        operand: &PageOperand,
        rdx: RmpAdjust,
    ) -> Result<Result<(), RmpFail>, GuestFault> {
        let (first, pages) = operand_span(operand);
        self.point(cx, Access::Rmw, first, pages);
        let (size, target, perms, vmsa) = match self.rmpadjust_checked(cpu, operand.gva, operand.size, rdx)? {
            Ok(inputs) => inputs,
            Err(fail) => return Ok(Err(fail)),
        };
        // R10: without it, a vCPU goes on with a VMSA that is none any more.
        let (at, _lock) = match self.lock_operand(cx, cpu, operand, size, self.is_off(mutants::R10))? {
            Ok(locked) => locked,
            Err(fail) => return Ok(Err(fail)),
        };
        let page = self.rmp.entry(at);
        if !page.validated {
            return Err(GuestFault::NotValidated { cr2: operand.gva });
        }
        // SNP-INV-035: nobody gives what it does not have.
        if !page.perms[cpu.vmpl.index()].contains(perms) {
            return Ok(Err(RmpFail::Permission));
        }
        self.contend(cx, first, pages);
        self.rmp.change_page(at, |page| {
            page.perms[target.index()] = perms;
            if cpu.vmpl == Vmpl::ZERO {
                page.vmsa = vmsa;
            }
        });
        Ok(Ok(()))
    }
}
