//! Page-state changes of many pages: the walk of [`protocol::psc`](super::protocol::psc) through a list in the guest's memory, and the exits to user space
//! that come of it. KVM itself touches neither attributes nor the RMP.

use super::ghcb::Pending;
use super::msr::{check_map_gpa_range_ret, map_gpa_range};
use super::protocol::ghcb::Snapshot;
use super::protocol::psc::{Psc, PscBuffer, PscError, PscExit, PscRules, PscStep, WORD, exit_info_2};
use crate::kvm::mutants::{SEV_PSC_DOUBLE_FETCH, SEV_PSC_UNBOUNDED};
use crate::kvm::run::Next;
use crate::kvm::vcpu::{Vcpu, VcpuState};
use sim_kernel::{Cx, Errno};
use sim_mmu::Gpa;

/// The list where it lies. Words that are not mapped any more read as 0.
struct GuestList<'a, 'c> {
    vcpu: &'a Vcpu,
    cx: &'a Cx<'c>,
    state: &'a mut VcpuState,
    gpa: Gpa,
}

impl GuestList<'_, '_> {
    fn at(&self, word: u16) -> Gpa {
        Gpa(self.gpa.0.wrapping_add(WORD * u64::from(word)))
    }
}

impl PscBuffer for GuestList<'_, '_> {
    fn read(&mut self, word: u16) -> u64 {
        let at = self.at(word);
        self.vcpu.read_guest_u64(self.cx, self.state, at).unwrap_or(0)
    }

    fn write(&mut self, word: u16, value: u64) {
        let at = self.at(word);
        let _unmapped = self.vcpu.write_guest_u64(self.cx, self.state, at, value);
    }
}

fn rules(cx: &Cx<'_>) -> PscRules {
    PscRules { checks_room: !cx.has_mutant(SEV_PSC_UNBOUNDED), keeps_end: !cx.has_mutant(SEV_PSC_DOUBLE_FETCH) }
}

impl Vcpu {
    /// The event: where the list is (`setup_vmgexit_scratch`), then the list.
    ///
    /// # Errors
    /// None; as of the other events.
    pub(super) fn snp_begin_psc(&self, cx: &Cx<'_>, state: &mut VcpuState, ghcb: &Snapshot) -> Result<Next, Errno> {
        let area = match ghcb.scratch_area(WORD) {
            Ok(area) => area,
            Err(why) => return Ok(self.vmgexit_bad_input(cx, state, why)),
        };
        if !self.exits_on_map_gpa_range() {
            return Ok(self.snp_complete_psc(cx, state, Err(PscError::Generic)));
        }
        let left = state.sev.as_deref().expect("a vCPU of an SNP VM").psc;
        let mut list = GuestList { vcpu: self, cx, state, gpa: area.start };
        let (psc, step) = left.begin_again(&mut list, area.end.0 - area.start.0, rules(cx));
        Ok(self.snp_go_on(cx, state, psc, step))
    }

    /// `snp_complete_one_psc`: user space has converted the batch, or not.
    ///
    /// # Errors
    /// `EINVAL` for answers that there are not.
    pub(super) fn snp_complete_one_psc(&self, cx: &Cx<'_>, state: &mut VcpuState, ret: u64) -> Result<Next, Errno> {
        check_map_gpa_range_ret(ret)?;
        let es = state.sev.as_deref().expect("a vCPU of an SNP VM");
        let (mut psc, gpa) = (es.psc, Gpa(es.ghcb.scratch));
        let mut list = GuestList { vcpu: self, cx, state, gpa };
        let step = psc.complete(&mut list, ret == 0, rules(cx));
        Ok(self.snp_go_on(cx, state, psc, step))
    }

    fn snp_go_on(&self, cx: &Cx<'_>, state: &mut VcpuState, psc: Psc, step: PscStep) -> Next {
        match step {
            PscStep::Done(result) => self.snp_complete_psc(cx, state, result),
            PscStep::Exit(PscExit { gfn, npages, op, says_2m }) => {
                let es = state.sev.as_deref_mut().expect("a vCPU of an SNP VM");
                (es.psc, es.pending) = (psc, Pending::PscNae);
                state.exit = map_gpa_range(gfn.gpa(), npages, op, says_2m);
                state.pending_exit = Some(state.exit);
                Next::Exit
            }
        }
    }

    /// `snp_complete_psc`: the list is done, or the guest is told why not.
    fn snp_complete_psc(&self, cx: &Cx<'_>, state: &mut VcpuState, result: Result<(), PscError>) -> Next {
        state.sev.as_deref_mut().expect("a vCPU of an SNP VM").psc = Psc::default();
        self.vmgexit_return(cx, state, exit_info_2(result));
        Next::Enter
    }
}
