//! A vCPU of a TD goes in, and what it comes back with (`vcpu_enter_guest`, `tdx_vcpu_run`).

use super::guest::Left;
use super::vcpu::tdx_state_mut;
use crate::kvm::mutants::{TDX_ENTERS_WHILE_ZAPPING, TDX_SPINS_IN_GUEST_MODE};
use crate::kvm::run::Next;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use sim_coco::tdx::{Entry, Leaf, Status, TdExit};
use sim_kernel::sync::SrcuReadGuard;
use sim_kernel::{Cx, Errno};

/// What a visit came to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TdVisit {
    /// There is nothing to handle: the vCPU was not entered because a zap wants all vCPUs out. Its exit reason says nothing.
    KeptOut,
    /// As before, because VP.ENTER has met a lock.
    Busy,
    /// VP.ENTER failed for another reason, which user space is told.
    Failed(Status),
    /// The vCPU has left its TD.
    Exit(TdExit),
    /// The same, because the program is at its end.
    Halted,
    /// The same, because its kernel spins; how many releases there were when it looked.
    Spins(u64),
}

impl Vcpu {
    /// `vcpu_enter_guest` of a TD, after requests were served.
    ///
    /// # Errors
    /// What `KVM_RUN` answers.
    pub(crate) fn tdx_enter_guest(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        srcu: &mut SrcuReadGuard<'_>,
    ) -> Result<Next, Errno> {
        self.tdx_load_mmu(cx, state)?;
        self.show_guest_mode(cx);
        let visit = srcu.outside(|| {
            let may_run = self.enter_guest_mode(cx);
            let mut visit = may_run.then(|| self.tdx_vcpu_run(cx, state));
            while cx.has_mutant(TDX_SPINS_IN_GUEST_MODE) && matches!(visit, Some(TdVisit::KeptOut | TdVisit::Busy)) {
                visit = Some(self.tdx_vcpu_run(cx, state));
            }
            self.leave_guest_mode(cx, may_run);
            visit
        });
        match visit {
            None => Ok(Next::Enter),
            Some(TdVisit::Spins(seen)) => {
                srcu.outside(|| self.guest_spins(cx, seen));
                Ok(Next::Enter)
            }
            Some(visit) => self.tdx_handle_exit(cx, state, srcu, visit),
        }
    }

    /// `tdx_vcpu_run`.
    fn tdx_vcpu_run(&self, cx: &Cx<'_>, state: &mut VcpuState) -> TdVisit {
        let tdx = self.vm.tdx().expect("a vCPU of a TD");
        if tdx.wait_for_sept_zap.load(cx) != 0 && !cx.has_mutant(TDX_ENTERS_WHILE_ZAPPING) {
            return TdVisit::KeptOut;
        }
        assert!(!self.vm.is_dead_for_all(), "TDX-INV-022: vCPU {} of a dead VM enters its TD", self.id());
        let tdvpr = self.tdx().expect("as its VM").tdvpr_hpa();
        let args = tdx_state_mut(state).args;
        let entered = tdx.host.call(cx, Leaf::VpEnter, |seam| seam.vp_enter_with(cx, tdvpr, &args));
        match entered {
            Err(fail) if fail.is_operand_busy() => TdVisit::Busy,
            Err(fail) => TdVisit::Failed(fail.status),
            Ok(Entry::Exit(exit)) => TdVisit::Exit(exit),
            Ok(Entry::Inside(mut guest)) => match self.tdx_guest(cx, state, &mut guest) {
                Left::Exit(exit) => TdVisit::Exit(exit),
                Left::Halted => TdVisit::Halted,
                Left::Spins { seen } => TdVisit::Spins(seen),
            },
        }
    }
}
