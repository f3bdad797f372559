//! Messages between the guest and the firmware, which KVM carries (`snp_handle_guest_req`, `snp_handle_ext_guest_req`).

use super::ghcb::Pending;
use super::info::SevInfo;
use super::ioctl::psp_errno;
use super::protocol::ghcb::{Malformed, Snapshot, offset};
use crate::kvm::run::Next;
use crate::kvm::vcpu::{ExitInfo, Vcpu, VcpuState};
use sim_coco::AccessKind;
use sim_coco::snp::firmware::{MSG_REPORT_REQ, PspFail};
use sim_coco::snp::{HostSnpAccess, Spa};
use sim_kernel::{Cx, Errno, PAGE_SIZE, Pfn};
use sim_mmu::Gpa;

/// `SNP_GUEST_VMM_ERR_INVALID_LEN`: not enough room for certificates.
const VMM_ERR_INVALID_LEN: u64 = 1;
/// `SNP_GUEST_VMM_ERR_BUSY`.
const VMM_ERR_BUSY: u64 = 2;
/// `SNP_GUEST_VMM_ERR_GENERIC`.
const VMM_ERR_GENERIC: u64 = 0xffff_ffff;

/// `SNP_GUEST_ERR(vmm, fw)`.
const fn guest_err(vmm: u64, fw: u32) -> u64 {
    vmm << 32 | fw as u64
}

impl Vcpu {
    /// `snp_handle_guest_req`. The response is copied out also if the firmware refuses.
    ///
    /// # Errors
    /// `EIO` if the guest's pages cannot be reached; `EBADF` if the descriptor of `/dev/sev` that START was given is closed; `ETIMEDOUT` if the firmware
    /// does not answer, `EBUSY` if it did not before.
    pub(super) fn snp_handle_guest_req(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        sev: &SevInfo,
        ghcb: &Snapshot,
    ) -> Result<Next, Errno> {
        let (request, response) = match ghcb.message_pages() {
            Ok(pages) => pages,
            Err(why) => return Ok(self.vmgexit_bad_input(cx, state, why)),
        };
        let pages = sev.guest_req_mutex.lock(cx);
        let (Some(req), Some(resp), Some(gctx)) = (pages.request, pages.response, sev.gctx()) else {
            return Err(Errno::EINVAL);
        };
        self.copy_from_guest(cx, state, sev, request, req)?;
        sev.check_stored_fd(cx)?;
        let fw = match sev.host.snp().snp_guest_request(cx, gctx, Spa::of(req), Spa::of(resp)) {
            Ok(()) => 0,
            Err(PspFail::Status(status)) => status.code(),
            Err(fail) => return Err(psp_errno(fail)),
        };
        self.copy_to_guest(cx, state, sev, resp, response)?;
        drop(pages);
        self.vmgexit_return(cx, state, guest_err(0, fw));
        Ok(Next::Enter)
    }

    fn copy_from_guest(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        sev: &SevInfo,
        gpa: Gpa,
        to: Pfn,
    ) -> Result<(), Errno> {
        for offset in (0..PAGE_SIZE).step_by(8) {
            let word = self.read_guest_u64(cx, state, gpa + offset).ok_or(Errno::EIO)?;
            let access = HostSnpAccess::kernel(AccessKind::Write, to);
            sev.host.snp().host_write(cx, &access, offset as usize, &word.to_le_bytes()).map_err(|_| Errno::EIO)?;
        }
        Ok(())
    }

    fn copy_to_guest(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        sev: &SevInfo,
        from: Pfn,
        gpa: Gpa,
    ) -> Result<(), Errno> {
        for offset in (0..PAGE_SIZE).step_by(8) {
            let mut word = [0; 8];
            sev.host.snp().host_read(cx, from, offset as usize, &mut word);
            self.write_guest_u64(cx, state, gpa + offset, u64::from_le_bytes(word)).ok_or(Errno::EIO)?;
        }
        Ok(())
    }

    /// `snp_handle_ext_guest_req`.
    ///
    /// # Errors
    /// As [`Vcpu::snp_handle_guest_req`].
    pub(super) fn snp_handle_ext_guest_req(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        sev: &SevInfo,
        ghcb: &Snapshot,
    ) -> Result<Next, Errno> {
        /// Offset of the type in a message's header.
        const MSG_TYPE: u64 = 0x34;
        let (request, _) = match ghcb.message_pages() {
            Ok(pages) => pages,
            Err(why) => return Ok(self.vmgexit_bad_input(cx, state, why)),
        };
        let word = self.read_guest_u64(cx, state, request + (MSG_TYPE & !7)).ok_or(Errno::EIO)?;
        let msg_type = (word >> (8 * (MSG_TYPE % 8))) as u8;
        if msg_type != MSG_REPORT_REQ {
            return self.snp_handle_guest_req(cx, state, sev, ghcb);
        }
        let (data, npages) = (ghcb.rax, ghcb.rbx);
        if !ghcb.valid.contains(offset::RAX) || !ghcb.valid.contains(offset::RBX) || !data.is_multiple_of(PAGE_SIZE) {
            return Ok(self.vmgexit_bad_input(cx, state, Malformed::InvalidInput));
        }
        if sev.certs_enabled.load(std::sync::atomic::Ordering::SeqCst) {
            state.exit = ExitInfo::SnpReqCerts { gpa: Gpa(data), npages, ret: 0 };
            state.pending_exit = Some(state.exit);
            state.sev.as_deref_mut().expect("a vCPU of an SNP VM").pending = Pending::Certs;
            return Ok(Next::Exit);
        }
        // An empty table of certificates.
        if npages != 0 {
            for offset in (0..24).step_by(8) {
                self.write_guest_u64(cx, state, Gpa(data.wrapping_add(offset)), 0).ok_or(Errno::EIO)?;
            }
        }
        self.snp_handle_guest_req(cx, state, sev, ghcb)
    }

    /// `snp_complete_req_certs`.
    ///
    /// # Errors
    /// `EINVAL` for answers that there are not.
    pub(super) fn snp_complete_req_certs(
        &self,
        cx: &Cx<'_>,
        state: &mut VcpuState,
        answer: ExitInfo,
        ret: u64,
    ) -> Result<Next, Errno> {
        const ENOSPC: u64 = 28;
        const EAGAIN: u64 = 11;
        const EIO: u64 = 5;
        let sev = self.vm.sev().expect("a vCPU of an SNP VM");
        let ghcb = state.sev.as_deref().expect("as above").ghcb;
        let vmm = match ret {
            0 => return self.snp_handle_guest_req(cx, state, sev, &ghcb),
            ENOSPC => {
                if let ExitInfo::SnpReqCerts { npages, .. } = answer {
                    self.set_ghcb(cx, state, ghcb.gpa, offset::RBX, npages);
                }
                VMM_ERR_INVALID_LEN
            }
            EAGAIN => VMM_ERR_BUSY,
            EIO => VMM_ERR_GENERIC,
            _ => return Err(Errno::EINVAL),
        };
        self.vmgexit_return(cx, state, guest_err(vmm, 0));
        Ok(Next::Enter)
    }
}
