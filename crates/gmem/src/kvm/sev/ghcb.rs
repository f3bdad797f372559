//! The GHCB: a page that the guest shares with KVM to ask it for things (`sev_handle_vmgexit`, `sev_es_validate_vmgexit`).
//!
//! KVM reads it through the VMM's mapping, whatever attribute the page has, and works on a copy of its fields, because the guest may go on changing
//! them. Simplified: the page is found anew at each access instead of being kept mapped until the next entry.

use super::info::SevInfo;
use crate::kvm::run::Next;
use crate::kvm::vcpu::{ExitInfo, Vcpu, VcpuState};
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE};
use sim_mmu::Gpa;

/// Offsets in the GHCB.
pub(crate) mod offset {
    pub(crate) const RAX: u64 = 0x1f8;
    pub(crate) const RBX: u64 = 0x318;
    pub(crate) const SW_EXITCODE: u64 = 0x390;
    pub(crate) const SW_EXITINFO1: u64 = 0x398;
    pub(crate) const SW_EXITINFO2: u64 = 0x3a0;
    pub(crate) const SW_SCRATCH: u64 = 0x3a8;
    pub(crate) const VALID_BITMAP: u64 = 0x3f0;
    pub(crate) const SHARED_BUFFER: u64 = 0x800;
    /// Protocol version in bits 31:16, usage in bits 63:32 of the word.
    pub(crate) const VERSION_AND_USAGE: u64 = 0xff8;
}

/// Bytes of the shared buffer.
pub(super) const SHARED_BUFFER_BYTES: u64 = 2032;
/// Bits of the GHCB MSR that say what it holds; 0 is an address.
pub(super) const MSR_INFO_MASK: u64 = 0xfff;

/// Exit codes of the protocol (`SVM_VMGEXIT_*`).
pub mod exit {
    /// Another page state for a list of pages.
    pub const PSC: u64 = 0x8000_0010;
    /// A message to the firmware.
    pub const GUEST_REQUEST: u64 = 0x8000_0011;
    /// The same with room for certificates.
    pub const EXT_GUEST_REQUEST: u64 = 0x8000_0012;
    /// Another vCPU gets, or loses, a VMSA.
    pub const AP_CREATION: u64 = 0x8000_0013;
    /// Features of the hypervisor.
    pub const HV_FEATURES: u64 = 0x8000_fffd;
    /// The guest wants to end.
    pub const TERM_REQUEST: u64 = 0x8000_fffe;
}

/// Why a request is refused (`GHCB_ERR_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub(super) enum GhcbError {
    NotRegistered = 1,
    InvalidUsage = 2,
    InvalidScratch = 3,
    MissingInput = 4,
    InvalidInput = 5,
    InvalidEvent = 6,
}

/// What goes on when user space comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Pending {
    #[default]
    None,
    /// A page-state change by the MSR protocol.
    PscMsr,
    /// One by the GHCB.
    PscNae,
    /// Certificates for an extended guest request.
    Certs,
}

/// What was copied of the GHCB when the guest left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Ghcb {
    pub(super) gpa: Gpa,
    valid: [u64; 2],
    pub(super) exit_code: u64,
    pub(super) exit_info_1: u64,
    pub(super) exit_info_2: u64,
    pub(super) scratch: u64,
    pub(super) rax: u64,
    pub(super) rbx: u64,
    usage: u32,
}

impl Ghcb {
    /// Whether the guest has marked a field of the save area as valid.
    pub(super) fn is_valid(&self, offset: u64) -> bool {
        let bit = offset / 8;
        self.valid[(bit / 64) as usize] >> (bit % 64) & 1 != 0
    }
}

impl Vcpu {
    /// The VMM's address of a guest address, if a slot is there.
    fn gpa_to_hva(&self, cx: &Cx<'_>, state: &mut VcpuState, gpa: Gpa) -> Option<Hva> {
        let slot = self.gfn_to_memslot(cx, state, gpa.gfn()).1.filter(|slot| !slot.is_invalid())?;
        Some(slot.hva(gpa.gfn()) + gpa.0 % PAGE_SIZE)
    }

    /// `kvm_read_guest` of eight bytes.
    pub(super) fn read_guest_u64(&self, cx: &Cx<'_>, state: &mut VcpuState, gpa: Gpa) -> Option<u64> {
        let hva = self.gpa_to_hva(cx, state, gpa)?;
        self.vm.mm.read_u64(cx, hva).ok()
    }

    /// `kvm_write_guest` of eight bytes; nothing happens where nothing is mapped.
    pub(super) fn write_guest_u64(&self, cx: &Cx<'_>, state: &mut VcpuState, gpa: Gpa, value: u64) {
        if let Some(hva) = self.gpa_to_hva(cx, state, gpa) {
            let _unmapped = self.vm.mm.write_u64(cx, hva, value);
        }
    }

    /// `sev_handle_vmgexit`.
    ///
    /// # Errors
    /// `EINVAL`, if a request cannot be completed because of user space.
    pub(crate) fn sev_handle_vmgexit(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Result<Next, Errno> {
        let sev = self.vm.sev().expect("a vCPU of an SNP VM");
        let es = state.sev.as_deref().expect("as its VM");
        let (msr, registered) = (es.ghcb_msr, es.ghcb_registered);
        if msr & MSR_INFO_MASK != 0 {
            return Ok(self.sev_handle_vmgexit_msr_protocol(cx, state, msr));
        }
        let gpa = Gpa(msr);
        if msr == 0 || self.gpa_to_hva(cx, state, gpa).is_none() {
            return Ok(Next::Enter);
        }
        if registered != Some(gpa) {
            state.sev.as_deref_mut().expect("as above").ghcb.gpa = gpa;
            return Ok(self.vmgexit_bad_input(cx, state, GhcbError::NotRegistered));
        }
        let Some(ghcb) = self.sev_es_sync_from_ghcb(cx, state, gpa) else { return Ok(Next::Enter) };
        state.sev.as_deref_mut().expect("as above").ghcb = ghcb;
        if let Err(error) = validate(&ghcb) {
            return Ok(self.vmgexit_bad_input(cx, state, error));
        }
        self.vmgexit_return(cx, state, 0, 0);
        self.handle_event(cx, state, sev, &ghcb)
    }

    fn handle_event(&self, cx: &Cx<'_>, state: &mut VcpuState, sev: &SevInfo, ghcb: &Ghcb) -> Result<Next, Errno> {
        match ghcb.exit_code {
            exit::HV_FEATURES => {
                self.vmgexit_return(cx, state, 0, super::msr::HV_FEATURES);
                Ok(Next::Enter)
            }
            exit::TERM_REQUEST => {
                state.exit = sev_term(ghcb.gpa.0);
                Ok(Next::Exit)
            }
            exit::PSC => self.sev_handle_psc(cx, state, ghcb),
            exit::AP_CREATION => Ok(self.sev_snp_ap_creation(cx, state, sev, ghcb)),
            exit::GUEST_REQUEST => self.snp_handle_guest_req(cx, state, sev, ghcb.exit_info_1, ghcb.exit_info_2),
            exit::EXT_GUEST_REQUEST => self.snp_handle_ext_guest_req(cx, state, sev, ghcb),
            _ => unreachable!("validated"),
        }
    }

    /// `sev_es_sync_from_ghcb`: each field is read once. `None` if the VMM's mapping has gone.
    fn sev_es_sync_from_ghcb(&self, cx: &Cx<'_>, state: &mut VcpuState, gpa: Gpa) -> Option<Ghcb> {
        use offset::*;
        let mut read = |offset: u64| self.read_guest_u64(cx, state, gpa + offset);
        let valid = [read(VALID_BITMAP)?, read(VALID_BITMAP + 8)?];
        Some(Ghcb {
            gpa,
            valid,
            exit_code: read(SW_EXITCODE)?,
            exit_info_1: read(SW_EXITINFO1)?,
            exit_info_2: read(SW_EXITINFO2)?,
            scratch: read(SW_SCRATCH)?,
            rax: read(RAX)?,
            rbx: read(RBX)?,
            usage: (read(VERSION_AND_USAGE)? >> 32) as u32,
        })
    }

    /// `svm_vmgexit_set_return_code`, written to the guest's page at once.
    pub(super) fn vmgexit_return(&self, cx: &Cx<'_>, state: &mut VcpuState, response: u64, data: u64) {
        let gpa = state.sev.as_deref().expect("a vCPU of an SNP VM").ghcb.gpa;
        self.write_guest_u64(cx, state, gpa + offset::SW_EXITINFO1, response);
        self.write_guest_u64(cx, state, gpa + offset::SW_EXITINFO2, data);
    }

    /// `svm_vmgexit_bad_input`: the request is malformed, and the guest is told why.
    pub(super) fn vmgexit_bad_input(&self, cx: &Cx<'_>, state: &mut VcpuState, error: GhcbError) -> Next {
        /// `GHCB_HV_RESP_MALFORMED_INPUT`.
        const MALFORMED: u64 = 2;
        self.vmgexit_return(cx, state, MALFORMED, error as u64);
        Next::Enter
    }

    /// User space has answered an exit that a VMGEXIT led to.
    ///
    /// # Errors
    /// `EINVAL` for answers that there are not.
    pub(crate) fn sev_complete(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        answer: ExitInfo,
    ) -> Result<Option<Next>, Errno> {
        let Some(es) = state.sev.as_deref_mut() else { return Ok(None) };
        let ret = match answer {
            ExitInfo::Hypercall { ret, .. } | ExitInfo::SnpReqCerts { ret, .. } => ret,
            _ => 0,
        };
        match std::mem::take(&mut es.pending) {
            Pending::None => Ok(None),
            Pending::PscMsr => self.snp_complete_psc_msr(state, ret).map(Some),
            Pending::PscNae => self.snp_complete_one_psc(cx, state, ret).map(Some),
            Pending::Certs => self.snp_complete_req_certs(cx, state, ret).map(Some),
        }
    }
}

/// `sev_es_validate_vmgexit`: usage, then what the event needs, then the event itself.
fn validate(ghcb: &Ghcb) -> Result<(), GhcbError> {
    use offset::*;
    if ghcb.usage != 0 {
        return Err(GhcbError::InvalidUsage);
    }
    if ![SW_EXITCODE, SW_EXITINFO1, SW_EXITINFO2].into_iter().all(|field| ghcb.is_valid(field)) {
        return Err(GhcbError::MissingInput);
    }
    let needed: &[u64] = match ghcb.exit_code {
        exit::PSC => &[SW_SCRATCH],
        exit::AP_CREATION if ghcb.exit_info_1 as u32 != super::ap::DESTROY => &[RAX],
        exit::AP_CREATION | exit::GUEST_REQUEST | exit::HV_FEATURES | exit::TERM_REQUEST => &[],
        exit::EXT_GUEST_REQUEST => &[],
        _ => return Err(GhcbError::InvalidEvent),
    };
    if needed.iter().all(|field| ghcb.is_valid(*field)) { Ok(()) } else { Err(GhcbError::MissingInput) }
}

/// `KVM_EXIT_SYSTEM_EVENT` of type SEV_TERM.
pub(super) fn sev_term(data: u64) -> ExitInfo {
    ExitInfo::SystemEvent { kind: crate::kvm::uapi::KVM_SYSTEM_EVENT_SEV_TERM, data }
}
