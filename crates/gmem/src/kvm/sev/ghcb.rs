//! VMGEXIT (`sev_handle_vmgexit`): KVM copies the GHCB, looks what is asked for, and answers.
//!
//! KVM reads the page through the VMM's mapping, whatever attribute it has. Simplified: it is found anew at each access instead of being kept
//! mapped until the next entry.

use super::protocol::ghcb::{Event, Malformed, Response, Snapshot, ValidBitmap, offset};
use super::protocol::msr::INFO_MASK;
use crate::kvm::run::Next;
use crate::kvm::vcpu::{ExitInfo, Vcpu, VcpuState};
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE};
use sim_mmu::Gpa;

/// What goes on when user space comes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Pending {
    #[default]
    None,
    /// A page-state change by the MSR protocol.
    PscMsr,
    /// One by the GHCB.
    PscNae,
    /// Certificates for an extended guest request.
    Certs,
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

    /// `kvm_write_guest` of eight bytes; `None` where nothing is mapped that may be written.
    pub(super) fn write_guest_u64(&self, cx: &Cx<'_>, state: &mut VcpuState, gpa: Gpa, value: u64) -> Option<()> {
        let hva = self.gpa_to_hva(cx, state, gpa)?;
        self.vm.mm.write_u64(cx, hva, value).ok()
    }

    /// A field of the GHCB. The kernel has the page mapped since it read the request: what happens to the VMM's mapping since then is not told.
    pub(super) fn set_ghcb(&self, cx: &Cx<'_>, state: &mut VcpuState, ghcb: Gpa, offset: u64, value: u64) {
        let _unmapped = self.write_guest_u64(cx, state, ghcb + offset, value);
    }

    /// `sev_handle_vmgexit`.
    ///
    /// # Errors
    /// If a request cannot be completed because of user space or the firmware.
    pub(crate) fn sev_handle_vmgexit(&self, cx: &Cx<'_>, state: &mut VcpuState) -> Result<Next, Errno> {
        let sev = self.vm.sev().expect("a vCPU of an SNP VM");
        let es = state.sev.as_deref().expect("as its VM");
        let (msr, registered) = (es.ghcb_msr, es.ghcb_registered);
        if msr & INFO_MASK != 0 {
            return Ok(self.sev_handle_vmgexit_msr_protocol(state, msr));
        }
        if msr == 0 {
            return Ok(Next::Enter);
        }
        // Where nothing is mapped, the guest is resumed, and nobody tells it.
        let Some(ghcb) = self.sev_es_sync_from_ghcb(cx, state, Gpa(msr)) else { return Ok(Next::Enter) };
        state.sev.as_deref_mut().expect("as above").ghcb = ghcb;
        let event = match ghcb.check(registered, true) {
            Ok(event) => event,
            Err(why) => return Ok(self.vmgexit_bad_input(cx, state, why)),
        };
        self.vmgexit_return(cx, state, 0);
        match event {
            Event::HvFeatures => {
                self.vmgexit_return(cx, state, super::protocol::msr::HV_FEATURES);
                Ok(Next::Enter)
            }
            Event::TermRequest => {
                state.exit = sev_term(ghcb.gpa.0);
                Ok(Next::Exit)
            }
            // It is the guest that does not know what to do.
            Event::UnsupportedEvent => Err(Errno::EINVAL),
            Event::Psc => self.snp_begin_psc(cx, state, &ghcb),
            Event::ApCreation => Ok(self.sev_snp_ap_creation(cx, state, sev, &ghcb)),
            Event::GuestRequest => self.snp_handle_guest_req(cx, state, sev, &ghcb),
            Event::ExtGuestRequest => self.snp_handle_ext_guest_req(cx, state, sev, &ghcb),
        }
    }

    /// `sev_es_sync_from_ghcb`: each field is read once, and nothing is marked valid any more. `None` if nothing is mapped there, or not to be
    /// written: `kvm_vcpu_map` wants both.
    fn sev_es_sync_from_ghcb(&self, cx: &Cx<'_>, state: &mut VcpuState, gpa: Gpa) -> Option<Snapshot> {
        use offset::*;
        /// Version and usage are in one word.
        const LAST_WORD: u64 = USAGE & !7;
        let mut read = |offset: u64| self.read_guest_u64(cx, state, gpa + offset);
        let valid = ValidBitmap([read(VALID_BITMAP)?, read(VALID_BITMAP + 8)?]);
        let snapshot = Snapshot {
            gpa,
            valid,
            exit_code: read(SW_EXITCODE)?,
            exit_info_1: read(SW_EXITINFO1)?,
            exit_info_2: read(SW_EXITINFO2)?,
            scratch: read(SW_SCRATCH)?,
            rax: read(RAX)?,
            rbx: read(RBX)?,
            usage: (read(LAST_WORD)? >> (8 * (USAGE % 8))) as u32,
        };
        self.set_valid(cx, state, gpa, ValidBitmap::default())?;
        state.sev.as_deref_mut().expect("a vCPU of an SNP VM").ghcb_is_mapped = true;
        Some(snapshot)
    }

    /// `sev_es_unmap_ghcb`, on the way into the guest: what the answer consists of is marked valid, general registers too (`sev_es_sync_to_ghcb`). Their values are
    /// left as the guest wrote them; Linux writes back what it copied, and zeroes for what was not valid.
    pub(crate) fn sev_es_unmap_ghcb(&self, cx: &Cx<'_>, state: &mut VcpuState) {
        use offset::*;
        let Some(es) = state.sev.as_deref_mut() else { return };
        let gpa = es.ghcb.gpa;
        if std::mem::take(&mut es.ghcb_is_mapped) {
            let answer = ValidBitmap::of(&[RAX, RBX, RCX, RDX, SW_EXITINFO1, SW_EXITINFO2]);
            let _unmapped = self.set_valid(cx, state, gpa, answer);
        }
    }

    fn set_valid(&self, cx: &Cx<'_>, state: &mut VcpuState, ghcb: Gpa, valid: ValidBitmap) -> Option<()> {
        let mut words = (0..).zip(valid.0);
        words.try_for_each(|(i, word)| self.write_guest_u64(cx, state, ghcb + (offset::VALID_BITMAP + 8 * i), word))
    }

    fn set_response(&self, cx: &Cx<'_>, state: &mut VcpuState, response: Response, data: u64) {
        let gpa = state.sev.as_deref().expect("a vCPU of an SNP VM").ghcb.gpa;
        let (info_1, info_2) = response.to_fields();
        self.set_ghcb(cx, state, gpa, offset::SW_EXITINFO1, info_1);
        self.set_ghcb(cx, state, gpa, offset::SW_EXITINFO2, info_2.unwrap_or(data));
    }

    /// `svm_vmgexit_no_action`: the event's answer, written to the guest's page at once.
    pub(super) fn vmgexit_return(&self, cx: &Cx<'_>, state: &mut VcpuState, data: u64) {
        self.set_response(cx, state, Response::NoAction, data);
    }

    /// `svm_vmgexit_bad_input`: the request is malformed, and the guest is told why.
    pub(super) fn vmgexit_bad_input(&self, cx: &Cx<'_>, state: &mut VcpuState, why: Malformed) -> Next {
        self.set_response(cx, state, Response::Malformed(why), 0);
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
            Pending::Certs => self.snp_complete_req_certs(cx, state, answer, ret).map(Some),
        }
    }
}

/// `KVM_EXIT_SYSTEM_EVENT` of type SEV_TERM.
pub(super) fn sev_term(data: u64) -> ExitInfo {
    ExitInfo::SystemEvent { kind: crate::kvm::uapi::KVM_SYSTEM_EVENT_SEV_TERM, data }
}
