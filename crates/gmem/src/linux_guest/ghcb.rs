//! A processor of the guest's kernel and its GHCB: requests by the MSR and by the page, from the guest's side.

use super::accept::Unaccepted;
use super::cpu::{Cpu, Ends, Insn, Place};
use crate::kvm::sev::protocol::ghcb::offset;
use crate::kvm::sev::protocol::ghcb::{ValidBitmap, exit};
use crate::kvm::sev::protocol::msr::{HV_FEATURES, MsrRequest, MsrResponse, PageOp, TermReason};
use sim_kernel::PAGE_SIZE;
use sim_mmu::Gpa;

/// The version of the protocol that is spoken.
const VERSION: u16 = 2;

/// `enum cc_vendor`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CcVendor {
    /// `CC_VENDOR_AMD`: SEV-SNP.
    Amd,
    /// `CC_VENDOR_INTEL`: TDX.
    Intel,
}

/// The kernel on one processor.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The processor.
    pub cpu: Cpu,
    /// Its GHCB; until there is one, and after it was given back, requests go through the MSR.
    pub ghcb: Option<Gpa>,
    /// Memory that was not accepted at boot, if there is any.
    pub unaccepted: Option<Unaccepted>,
    /// Whose protection the guest has.
    pub cc_vendor: CcVendor,
    /// Of a TD: the bit that makes an address shared.
    pub shared_bit: u64,
    /// The processor needs memory touched after it was validated (no COHERENCY_SFW_NO).
    pub evicts_caches: bool,
}

/// A request by the page. What is `None` is not marked as valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Request {
    /// SW_EXITCODE.
    pub(crate) code: u64,
    /// SW_EXITINFO1.
    pub(crate) info_1: u64,
    /// SW_EXITINFO2.
    pub(crate) info_2: u64,
    /// SW_SCRATCH.
    pub(crate) scratch: Option<Gpa>,
    /// RAX.
    pub(crate) rax: Option<u64>,
    /// RBX.
    pub(crate) rbx: Option<u64>,
}

/// The hypervisor did not take the request; it may have said why in SW_EXITINFO2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused(pub(crate) u64);

/// A field of a GHCB. Where that is, is the caller's word: at the end of the addresses, it wraps.
pub(super) fn field(ghcb: Gpa, offset: u64) -> Gpa {
    Gpa(ghcb.0.wrapping_add(offset))
}

impl Kernel {
    /// The kernel of an SNP guest at its first instruction.
    pub fn new(cpu: Cpu) -> Kernel {
        Kernel { cpu, ghcb: None, unaccepted: None, cc_vendor: CcVendor::Amd, shared_bit: 0, evicts_caches: false }
    }

    /// The kernel of a TD at its first instruction.
    pub fn td(cpu: Cpu) -> Kernel {
        Kernel { cc_vendor: CcVendor::Intel, ..Kernel::new(cpu) }
    }

    /// A request by the MSR; `None` if what comes back is no response.
    pub(super) async fn msr_call(&self, request: MsrRequest) -> Ends<Option<MsrResponse>> {
        self.cpu.run(Insn::WriteGhcbMsr(request.encode())).await?;
        self.cpu.run(Insn::Vmgexit).await?;
        self.cpu.run(Insn::ReadGhcbMsr).await.map(MsrResponse::decode)
    }

    /// `sev_es_negotiate_protocol`, `get_hv_features`: versions must meet, and the hypervisor must know of SNP.
    ///
    /// # Errors
    /// The guest ends if they do not.
    pub async fn negotiate(&self) -> Ends<u64> {
        let Some(MsrResponse::SevInfo { max, min, .. }) = self.msr_call(MsrRequest::SevInfo).await? else {
            return Err(self.cpu.terminate(TermReason::Unspecified).await);
        };
        if max < VERSION || min > VERSION {
            return Err(self.cpu.terminate(TermReason::Protocol).await);
        }
        match self.msr_call(MsrRequest::HvFeatures).await? {
            Some(MsrResponse::HvFeatures(features)) if features & 1 != 0 => Ok(features & HV_FEATURES),
            _ => Err(self.cpu.terminate(TermReason::SnpUnsupported).await),
        }
    }

    /// `setup_ghcb`, `snp_register_ghcb`: the page is shared, cleared, and registered; requests go through it from then on.
    ///
    /// # Errors
    /// The guest ends if another page is registered, or if the page cannot be shared.
    pub async fn set_up_ghcb(&mut self, page: Gpa) -> Ends<()> {
        self.early_set_pages_state(page..page + PAGE_SIZE, PageOp::Shared).await?;
        self.cpu.run(Insn::SetEncrypted(page..page + PAGE_SIZE, false)).await?;
        self.cpu.run(Insn::Copy(Place::shared(page), vec![0; (PAGE_SIZE / 8) as usize])).await?;
        if self.msr_call(MsrRequest::Register(page)).await? != Some(MsrResponse::Registered(page)) {
            return Err(self.cpu.terminate(TermReason::Register).await);
        }
        self.ghcb = Some(page);
        Ok(())
    }

    /// `sev_es_ghcb_hv_call`: fills in the page, leaves, and looks whether it was understood. Result: SW_EXITINFO2.
    pub(crate) async fn hv_call(&self, ghcb: Gpa, request: Request) -> Ends<Result<u64, Refused>> {
        let mut valid = ValidBitmap::of(&[offset::SW_EXITCODE, offset::SW_EXITINFO1, offset::SW_EXITINFO2]);
        for (at, register) in [(offset::RAX, request.rax), (offset::RBX, request.rbx)] {
            if let Some(value) = register {
                valid.set(at);
                self.cpu.write(Place::shared(field(ghcb, at)), value).await?;
            }
        }
        if request.scratch.is_some() {
            valid.set(offset::SW_SCRATCH);
        }
        let scratch = request.scratch.map_or(0, |gpa| gpa.0);
        let fields = vec![request.code, request.info_1, request.info_2, scratch];
        self.cpu.run(Insn::Copy(Place::shared(field(ghcb, offset::SW_EXITCODE)), fields)).await?;
        self.cpu.run(Insn::Copy(Place::shared(field(ghcb, offset::VALID_BITMAP)), valid.0.to_vec())).await?;
        // Version in bits 31:16 of the last quadword, usage 0 above.
        self.cpu.write(Place::shared(field(ghcb, PAGE_SIZE - 8)), u64::from(VERSION) << 16).await?;
        self.cpu.run(Insn::WriteGhcbMsr(ghcb.0)).await?;
        self.cpu.run(Insn::Vmgexit).await?;
        let response = self.cpu.read(Place::shared(field(ghcb, offset::SW_EXITINFO1))).await?;
        let answer = self.cpu.read(Place::shared(field(ghcb, offset::SW_EXITINFO2))).await?;
        Ok(if response as u32 == 0 { Ok(answer) } else { Err(Refused(answer)) })
    }

    /// The hypervisor's features again, by the page.
    ///
    /// # Errors
    /// The guest ends if the page is not usable for requests.
    pub async fn hv_features(&self, ghcb: Gpa) -> Ends<u64> {
        let request = Request { code: exit::HV_FEATURES, ..Request::default() };
        match self.hv_call(ghcb, request).await? {
            Ok(features) => Ok(features),
            Err(Refused(_)) => Err(self.cpu.terminate(TermReason::Unspecified).await),
        }
    }
}
