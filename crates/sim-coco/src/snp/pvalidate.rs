//! PVALIDATE (F2 0F 01 FF): a guest accepts a page, or takes its acceptance back.

use super::fail::{GuestFault, NpfError, RmpFail};
use super::guest::{GuestCpu, GuestKind, PageOperand, SnpAccess};
use super::lock::{Conflict, RmpLock, Span};
use super::machine::Snp;
use super::types::{Gva, RmpSize, Vmpl, head_of};
use crate::AccessKind;
use sim_kernel::sched::Access;
use sim_kernel::{Cx, PAGES_PER_PMD, PMD_SIZE, Pfn};

/// What PVALIDATE leaves in EAX and CF when it completes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pvalidated {
    /// EAX.
    pub result: Result<(), RmpFail>,
    /// CF: the page was as asked for already. Linux calls this `PVALIDATE_FAIL_NOUPDATE`, and takes it for an attack.
    pub unchanged: bool,
}

impl Pvalidated {
    const fn failed(fail: RmpFail) -> Pvalidated {
        Pvalidated { result: Err(fail), unchanged: false }
    }
}

impl Snp {
    /// PVALIDATE by a guest's processor, `edx` 1 to accept and 0 to take back. Neither contents nor cached translations change.
    ///
    /// # Errors
    /// `#GP(0)` outside CPL 0 and VMPL0; an NPF if the page is not the guest's at this address, is larger than said, or is being worked on.
    #[track_caller]
    pub fn pvalidate(
        &self,
        cx: &Cx<'_>,
        cpu: &GuestCpu,
        operand: &PageOperand,
        edx: u32,
    ) -> Result<Pvalidated, GuestFault> {
        let (first, pages) = operand_span(operand);
        self.point(cx, Access::Rmw, first, pages);
        let size = match pvalidate_inputs(cpu, operand.gva, operand.size, edx)? {
            Ok(size) => size,
            Err(pvalidated) => return Ok(pvalidated),
        };
        let (at, _lock) = match self.lock_operand(cx, cpu, operand, size, false)? {
            Ok(locked) => locked,
            Err(fail) => return Ok(Pvalidated::failed(fail)),
        };
        let validated = edx == 1;
        let unchanged = self.rmp.entry(at).validated == validated;
        self.contend(cx, first, pages);
        if !unchanged {
            self.rmp.change_page(at, |page| page.validated = validated);
        }
        Ok(Pvalidated { result: Ok(()), unchanged: unchanged && !self.is_off(super::mutants::NO_CF) })
    }

    /// Where the entry of the page that contains the frame is, and what an operation on it marks.
    pub(super) fn page_at(&self, pfn: Pfn) -> (Pfn, Span) {
        if self.rmp.is_2m(pfn) { (head_of(pfn), Span::Region) } else { (pfn, Span::Entry) }
    }

    /// Checks the operand and marks its page. It may have changed hands, or its size, before the mark is set (natively, and with contention): then it counts as being worked on. Without a
    /// mark, a page that a vCPU runs with is nobody's business (R10).
    ///
    /// # Errors
    /// An NPF if the page is not the guest's at this address, is larger than said, or is being worked on.
    pub(super) fn lock_operand(
        &self,
        cx: &Cx<'_>,
        cpu: &GuestCpu,
        operand: &PageOperand,
        size: RmpSize,
        may_be_in_use: bool,
    ) -> Result<Result<(Pfn, Option<RmpLock<'_>>), RmpFail>, GuestFault> {
        if let Err(fail) = self.check_operand(cpu, operand, size)? {
            return Ok(Err(fail));
        }
        let (at, span) = self.page_at(operand.pfn);
        self.contend(cx, at, span.pages());
        let lock = match self.rmp.lock(at, span, self.cpu(cx)) {
            Ok(lock) => Some(lock),
            Err(Conflict::InUse) if may_be_in_use => None,
            Err(_) => return Err(operand_npf(operand, NpfError::RMP)),
        };
        let is_same = (at, span) == self.page_at(operand.pfn) && self.check_operand(cpu, operand, size)?.is_ok();
        if is_same { Ok(Ok((at, lock))) } else { Err(operand_npf(operand, NpfError::RMP)) }
    }

    /// Ownership, then size: what PVALIDATE, RMPADJUST and RMPQUERY have in common.
    pub(super) fn check_operand(
        &self,
        cpu: &GuestCpu,
        operand: &PageOperand,
        size: RmpSize,
    ) -> Result<Result<(), RmpFail>, GuestFault> {
        let page = self.rmp.page(operand.pfn);
        if !self.is_usable_by(cpu.asid, operand.pfn, operand.gpa, &page) {
            return Err(operand_npf(operand, NpfError::RMP));
        }
        match (size, page.page_size) {
            (RmpSize::Size4K, RmpSize::Size2M) => Err(operand_npf(operand, NpfError::RMP | NpfError::SIZEM)),
            (RmpSize::Size2M, RmpSize::Size4K) => Ok(Err(RmpFail::SizeMismatch)),
            _ => Ok(Ok(())),
        }
    }
}

/// The frames that the instruction may look at.
pub(super) fn operand_span(operand: &PageOperand) -> (Pfn, u64) {
    // Whether the region is one page decides even for 4 KiB, but only operations on the whole region change that.
    if operand.size == 1 { (head_of(operand.pfn), PAGES_PER_PMD) } else { (operand.pfn, 1) }
}

/// What PVALIDATE looks at before it translates its operand: who executes it, and its registers. `Err` within: it ends there, with this.
///
/// # Errors
/// `#GP(0)` outside CPL 0 and VMPL0.
pub fn pvalidate_inputs(
    cpu: &GuestCpu,
    gva: Gva,
    size: u64,
    edx: u32,
) -> Result<Result<RmpSize, Pvalidated>, GuestFault> {
    if cpu.kind != GuestKind::Snp {
        return Ok(Err(Pvalidated { result: Ok(()), unchanged: true }));
    }
    if cpu.cpl != 0 || cpu.vmpl != Vmpl::ZERO {
        return Err(GuestFault::Gp0);
    }
    if edx > 1 {
        return Ok(Err(Pvalidated::failed(RmpFail::Input)));
    }
    Ok(operand_size(gva, size).map_err(Pvalidated::failed))
}

/// RCX and the alignment of RAX.
pub(super) fn operand_size(gva: Gva, size: u64) -> Result<RmpSize, RmpFail> {
    match size {
        0 => Ok(RmpSize::Size4K),
        1 if gva.0.is_multiple_of(PMD_SIZE) => Ok(RmpSize::Size2M),
        _ => Err(RmpFail::Input),
    }
}

/// The NPF of an operand: that of a private read (OP-9).
pub(super) fn operand_npf(operand: &PageOperand, bits: NpfError) -> GuestFault {
    let mut access = SnpAccess::private(AccessKind::Read, operand.gpa, operand.pfn);
    access.gva = operand.gva;
    super::check::npf(&access, true, bits)
}
