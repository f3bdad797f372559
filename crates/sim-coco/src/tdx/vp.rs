//! A vCPU of a TD as the module keeps it (TDVPS), and what a processor remembers between vCPUs.

use super::exit::VmCall;
use super::shared::SharedEpt;
use super::tlb::Tlb;
use super::types::Lp;
use sim_kernel::Pfn;
use sim_mmu::Gpa;
use std::fmt;
use std::sync::Arc;

/// Faults without progress that are forgiven.
pub(super) const ZERO_STEP_THRESHOLD: u32 = 6;
/// Addresses that are remembered.
pub(super) const EPF_LIST_MAX: usize = 32;

/// State of a vCPU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum VcpuState {
    /// VCPU_UNINITIALIZED.
    Uninit = 0,
    /// VCPU_READY.
    Ready = 2,
    /// VCPU_ACTIVE: in the TD.
    Active = 4,
    /// VCPU_DISABLED: after an exit that it does not recover from.
    Disabled = 8,
}

/// What a `#VE` says (VE_INFO).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VeInfo {
    /// Exit reason.
    pub exit_reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Guest linear address: nothing is known of it here.
    pub gla: u64,
    /// Guest physical address.
    pub gpa: Gpa,
    /// Length of the instruction.
    pub instruction_length: u32,
    /// Information about the instruction.
    pub instruction_info: u32,
}

impl VeInfo {
    /// Of an access that stage 2 refuses.
    pub(super) const fn ept_violation(qualification: u64, gpa: Gpa) -> VeInfo {
        VeInfo {
            exit_reason: super::exit::EPT_VIOLATION,
            qualification,
            gla: 0,
            gpa,
            instruction_length: 0,
            instruction_info: 0,
        }
    }
}

/// The last TDG.VP.VMCALL, as long as the guest has not seen its answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum LastCall {
    /// The vCPU has left by it: the guest's registers.
    Asked(VmCall),
    /// It was entered again: the host's.
    Answered(VmCall),
}

/// A vCPU.
pub(super) struct Vp {
    pub(super) tdr: Pfn,
    pub(super) tdcx: Vec<Pfn>,
    pub(super) state: VcpuState,
    pub(super) index: u32,
    pub(super) x2apic_id: Option<u32>,
    /// What the guest finds in RCX when it starts.
    pub(super) initial_rcx: u64,
    pub(super) assoc: Option<Lp>,
    pub(super) vcpu_epoch: u64,
    /// It is counted in the epoch: from its entry to its exit, or to the failure of the entry.
    pub(super) counted: bool,
    pub(super) rip: u64,
    pub(super) rip_at_entry: u64,
    pub(super) epf_count: u32,
    pub(super) epf_list: Vec<Gpa>,
    pub(super) last_exit_was_epf: bool,
    pub(super) ve_info: Option<VeInfo>,
    /// The guest has yet to take the `#VE` that VP.ENTER has put there.
    pub(super) ve_pending: bool,
    /// TD_CTLS bit 0.
    pub(super) pending_ve_disable: bool,
    /// TDCALLs in a row that found a lock that the host wants.
    pub(super) host_priority_busy: u32,
    pub(super) shared_ept: Option<Arc<dyn SharedEpt>>,
    pub(super) vmcall: Option<LastCall>,
}

impl Vp {
    pub(super) fn new(tdr: Pfn) -> Vp {
        Vp {
            tdr,
            tdcx: Vec::new(),
            state: VcpuState::Uninit,
            index: 0,
            x2apic_id: None,
            initial_rcx: 0,
            assoc: None,
            vcpu_epoch: 0,
            counted: false,
            rip: 0,
            rip_at_entry: 0,
            epf_count: 0,
            epf_list: Vec::new(),
            last_exit_was_epf: false,
            ve_info: None,
            ve_pending: false,
            pending_ve_disable: false,
            host_priority_busy: 0,
            shared_ept: None,
            vmcall: None,
        }
    }
}

impl fmt::Debug for Vp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vp")
            .field("tdr", &self.tdr)
            .field("tdcx", &self.tdcx)
            .field("state", &self.state)
            .field("index", &self.index)
            .field("x2apic_id", &self.x2apic_id)
            .field("initial_rcx", &self.initial_rcx)
            .field("assoc", &self.assoc)
            .field("vcpu_epoch", &self.vcpu_epoch)
            .field("counted", &self.counted)
            .field("rip", &(self.rip, self.rip_at_entry))
            .field("epf", &(self.epf_count, &self.epf_list, self.last_exit_was_epf))
            .field("ve_info", &(self.ve_info, self.ve_pending))
            .field("pending_ve_disable", &self.pending_ve_disable)
            .field("host_priority_busy", &self.host_priority_busy)
            .field("has_shared_ept", &self.shared_ept.is_some())
            .field("vmcall", &self.vmcall)
            .finish_non_exhaustive()
    }
}

/// A processor.
#[derive(Debug, Default)]
pub(super) struct LpState {
    /// The TDVPR that ran here last.
    pub(super) last: Option<Pfn>,
    pub(super) tlb: Tlb,
    /// An interrupt of the host is waiting.
    pub(super) interrupt: bool,
}

/// What the module knows of a vCPU: for checkers, and for what a VMM can read of it anyhow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VpInfo {
    /// The TD.
    pub tdr: Pfn,
    /// State.
    pub state: VcpuState,
    /// Where it is associated.
    pub assoc: Option<Lp>,
    /// Epoch of its last entry.
    pub vcpu_epoch: u64,
    /// Faults without progress.
    pub epf_count: u32,
    /// Addresses of those that were too many.
    pub epf_list: Vec<Gpa>,
    /// What VEINFO.GET would give.
    pub ve_info: Option<VeInfo>,
    /// Number within the TD.
    pub index: u32,
    /// What the guest finds in RCX when it starts.
    pub initial_rcx: u64,
}

impl Vp {
    pub(super) fn info(&self) -> VpInfo {
        VpInfo {
            tdr: self.tdr,
            state: self.state,
            assoc: self.assoc,
            vcpu_epoch: self.vcpu_epoch,
            epf_count: self.epf_count,
            epf_list: self.epf_list.clone(),
            ve_info: self.ve_info,
            index: self.index,
            initial_rcx: self.initial_rcx,
        }
    }
}
