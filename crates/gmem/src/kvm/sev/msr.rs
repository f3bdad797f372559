//! The MSR protocol: requests that fit into the GHCB MSR, before there is a GHCB (`sev_handle_vmgexit_msr_protocol`).

use super::ghcb::{MSR_INFO_MASK, Pending, sev_term};
use super::info::GHCB_VERSION;
use crate::kvm::run::Next;
use crate::kvm::uapi::KVM_HC_MAP_GPA_RANGE;
use crate::kvm::vcpu::{CpuMode, ExitInfo, Vcpu, VcpuState};
use sim_kernel::{Cx, Errno};
use sim_mmu::Gpa;
use std::sync::atomic::Ordering;

/// `GHCB_HV_FT_SUPPORTED`: SNP, and creation of APs.
pub(super) const HV_FEATURES: u64 = 0b11;
/// Where the C-bit is.
pub(crate) const C_BIT: u8 = 51;

/// Requests and responses, by the lowest 12 bits.
pub(super) mod info {
    pub(crate) const SEV_INFO_RESP: u64 = 0x001;
    pub(crate) const SEV_INFO_REQ: u64 = 0x002;
    pub(crate) const PREF_GPA_REQ: u64 = 0x010;
    pub(crate) const PREF_GPA_RESP: u64 = 0x011;
    pub(crate) const REG_GPA_REQ: u64 = 0x012;
    pub(crate) const REG_GPA_RESP: u64 = 0x013;
    pub(crate) const PSC_REQ: u64 = 0x014;
    /// The answer to a page-state change that succeeded.
    pub const PSC_RESP: u64 = 0x015;
    pub(crate) const HV_FT_REQ: u64 = 0x080;
    pub(crate) const HV_FT_RESP: u64 = 0x081;
    pub(crate) const TERM_REQ: u64 = 0x100;
}

/// `SNP_PAGE_STATE_PRIVATE`, `SNP_PAGE_STATE_SHARED`.
pub(crate) const PAGE_STATE_PRIVATE: u64 = 1;
pub(crate) const PAGE_STATE_SHARED: u64 = 2;

/// The request to change the state of a page, as the guest writes it to the MSR.
pub const fn psc_request(gpa: Gpa, op: u64) -> u64 {
    gpa.0 & 0x000f_ffff_ffff_f000 | op << 52 | info::PSC_REQ
}

/// The request to end: `GHCB_SEV_ES_GEN_REQ` is set 0, Linux's own reasons are set 1.
pub const fn term_request(set: u64, code: u64) -> u64 {
    code << 16 | set << 12 | info::TERM_REQ
}

/// Guest frame in bits 51:12 of the MSR.
const GPA_MASK: u64 = 0x000f_ffff_ffff_f000;
/// An error, in the response to a page-state change.
const PSC_ERROR: u64 = 1 << 63;
/// What goes into the attributes argument of `KVM_HC_MAP_GPA_RANGE` for private pages (`KVM_MAP_GPA_RANGE_ENCRYPTED`).
pub(super) const MAP_ENCRYPTED: u64 = 1 << 4;

impl Vcpu {
    /// `sev_handle_vmgexit_msr_protocol`. A request that is not known leaves the MSR as it is.
    pub(super) fn sev_handle_vmgexit_msr_protocol(&self, cx: &Cx<'_>, state: &mut VcpuState, msr: u64) -> Next {
        let set = |state: &mut VcpuState, value: u64| {
            state.sev.as_deref_mut().expect("a vCPU of an SNP VM").ghcb_msr = value;
            Next::Enter
        };
        match msr & MSR_INFO_MASK {
            info::SEV_INFO_REQ => {
                let version = u64::from(GHCB_VERSION);
                set(state, version << 48 | 1 << 32 | u64::from(C_BIT) << 24 | info::SEV_INFO_RESP)
            }
            // No preference: all ones.
            info::PREF_GPA_REQ => set(state, GPA_MASK | info::PREF_GPA_RESP),
            info::REG_GPA_REQ => {
                let gpa = Gpa(msr & GPA_MASK);
                state.sev.as_deref_mut().expect("as above").ghcb_registered = Some(gpa);
                set(state, gpa.0 | info::REG_GPA_RESP)
            }
            info::HV_FT_REQ => set(state, HV_FEATURES << 12 | info::HV_FT_RESP),
            info::PSC_REQ => self.snp_begin_psc_msr(cx, state, msr),
            info::TERM_REQ => {
                state.exit = sev_term(msr);
                Next::Exit
            }
            _ => Next::Enter,
        }
    }

    /// Whether user space handles `KVM_HC_MAP_GPA_RANGE`.
    pub(super) fn exits_on_map_gpa_range(&self) -> bool {
        self.vm.hypercall_exits.load(Ordering::SeqCst) & (1 << KVM_HC_MAP_GPA_RANGE) != 0
    }

    /// `snp_begin_psc_msr`: one page.
    fn snp_begin_psc_msr(&self, _cx: &Cx<'_>, state: &mut VcpuState, msr: u64) -> Next {
        let gpa = msr & GPA_MASK;
        let op = msr >> 52 & 0xf;
        let es = state.sev.as_deref_mut().expect("a vCPU of an SNP VM");
        if !matches!(op, PAGE_STATE_PRIVATE | PAGE_STATE_SHARED) || !self.exits_on_map_gpa_range() {
            es.ghcb_msr = info::PSC_RESP | PSC_ERROR;
            return Next::Enter;
        }
        es.pending = Pending::PscMsr;
        state.exit = map_gpa_range(gpa, 1, op == PAGE_STATE_PRIVATE, false);
        state.pending_exit = Some(state.exit);
        Next::Exit
    }

    /// `snp_complete_psc_msr`.
    pub(super) fn snp_complete_psc_msr(&self, state: &mut VcpuState, ret: u64) -> Result<Next, Errno> {
        check_map_gpa_range_ret(ret)?;
        let error = if ret == 0 { 0 } else { PSC_ERROR };
        state.sev.as_deref_mut().expect("a vCPU of an SNP VM").ghcb_msr = info::PSC_RESP | error;
        Ok(Next::Enter)
    }
}

/// The exit by which user space is asked to convert memory.
pub(super) fn map_gpa_range(gpa: u64, npages: u64, private: bool, is_2m: bool) -> ExitInfo {
    let attributes = if private { MAP_ENCRYPTED } else { 0 } | u64::from(is_2m);
    ExitInfo::Hypercall { nr: KVM_HC_MAP_GPA_RANGE, args: [gpa, npages, attributes, 0], ret: 0, mode: CpuMode::Long64 }
}

/// `kvm_is_valid_map_gpa_range_ret`.
pub(super) fn check_map_gpa_range_ret(ret: u64) -> Result<(), Errno> {
    let known = [0, Errno::EINVAL.number() as u64, Errno::EAGAIN.number() as u64];
    if known.contains(&ret) { Ok(()) } else { Err(Errno::EINVAL) }
}
