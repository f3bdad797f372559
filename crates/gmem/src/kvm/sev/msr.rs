//! Requests by the GHCB MSR, before there is a GHCB (`sev_handle_vmgexit_msr_protocol`).

use super::ghcb::{Pending, sev_term};
use super::info::GHCB_VERSION;
use super::protocol::msr::{HV_FEATURES, MsrRequest, MsrResponse, PageOp};
use crate::kvm::run::Next;
use crate::kvm::uapi::KVM_HC_MAP_GPA_RANGE;
use crate::kvm::vcpu::{CpuMode, ExitInfo, Vcpu, VcpuState};
use sim_kernel::Errno;
use sim_mmu::Gpa;

/// Where the C-bit is.
pub(crate) const C_BIT: u8 = 51;
/// What goes into the attributes argument of `KVM_HC_MAP_GPA_RANGE` for private pages (`KVM_MAP_GPA_RANGE_ENCRYPTED`).
const MAP_ENCRYPTED: u64 = 1 << 4;

impl Vcpu {
    /// `sev_handle_vmgexit_msr_protocol`. A request that is not known leaves the MSR as it is.
    pub(super) fn sev_handle_vmgexit_msr_protocol(&self, state: &mut VcpuState, msr: u64) -> Next {
        let Some(request) = MsrRequest::decode(msr) else { return Next::Enter };
        let response = match request {
            MsrRequest::SevInfo => MsrResponse::SevInfo { max: GHCB_VERSION, min: 1, c_bit: C_BIT },
            // User space sets no CPUID of its vCPUs here (`KVM_SET_CPUID2`), and then KVM finds no entry for any function.
            MsrRequest::Cpuid { function: _, low } => MsrResponse::Cpuid { value: 0, low },
            MsrRequest::PreferredGpa => MsrResponse::NoPreferredGpa,
            MsrRequest::Register(gpa) => {
                state.sev.as_deref_mut().expect("a vCPU of an SNP VM").ghcb_registered = Some(gpa);
                MsrResponse::Registered(gpa)
            }
            MsrRequest::HvFeatures => MsrResponse::HvFeatures(HV_FEATURES),
            MsrRequest::Psc { gpa, op } => match PageOp::of(op).filter(|_| self.exits_on_map_gpa_range()) {
                Some(op) => return self.snp_begin_psc_msr(state, gpa, op),
                None => MsrResponse::Psc { failed: true },
            },
            MsrRequest::Terminate { .. } => {
                state.exit = sev_term(msr);
                return Next::Exit;
            }
        };
        respond(state, response)
    }

    /// `snp_begin_psc_msr`: one page.
    fn snp_begin_psc_msr(&self, state: &mut VcpuState, gpa: Gpa, op: PageOp) -> Next {
        state.sev.as_deref_mut().expect("a vCPU of an SNP VM").pending = Pending::PscMsr;
        state.exit = map_gpa_range(gpa, 1, op, false);
        state.pending_exit = Some(state.exit);
        Next::Exit
    }

    /// `snp_complete_psc_msr`.
    ///
    /// # Errors
    /// `EINVAL` for answers that there are not.
    pub(super) fn snp_complete_psc_msr(&self, state: &mut VcpuState, ret: u64) -> Result<Next, Errno> {
        check_map_gpa_range_ret(ret)?;
        Ok(respond(state, MsrResponse::Psc { failed: ret != 0 }))
    }
}

fn respond(state: &mut VcpuState, response: MsrResponse) -> Next {
    state.sev.as_deref_mut().expect("a vCPU of an SNP VM").ghcb_msr = response.encode();
    Next::Enter
}

/// The exit by which user space is asked to convert memory.
pub(super) fn map_gpa_range(gpa: Gpa, npages: u64, op: PageOp, is_2m: bool) -> ExitInfo {
    let attributes = if op == PageOp::Private { MAP_ENCRYPTED } else { 0 } | u64::from(is_2m);
    let args = [gpa.0, npages, attributes, 0];
    ExitInfo::Hypercall { nr: KVM_HC_MAP_GPA_RANGE, args, ret: 0, mode: CpuMode::Long64 }
}

/// `kvm_is_valid_map_gpa_range_ret`.
///
/// # Errors
/// `EINVAL` if it is not.
pub(super) fn check_map_gpa_range_ret(ret: u64) -> Result<(), Errno> {
    let known = [0, Errno::EINVAL.number() as u64, Errno::EAGAIN.number() as u64];
    if known.contains(&ret) { Ok(()) } else { Err(Errno::EINVAL) }
}
