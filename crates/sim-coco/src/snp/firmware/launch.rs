//! SNP_LAUNCH_START, SNP_LAUNCH_UPDATE, SNP_LAUNCH_FINISH: a guest's first memory, measured.

use super::super::machine::Snp;
use super::super::memory::{KeyPath, PageBytes};
use super::super::state::PageState;
use super::super::types::{RmpSize, Spa, Vmpl, VmplPerms};
use super::context::{GuestPolicy, GuestState};
use super::cpuid::CpuidPage;
use super::digest::{LaunchDigest, PageInfo, PageType};
use super::secrets::secrets_page;
use super::status::{Command, FwStatus, PspFail};
use super::{NamedPage, Psp};
use sim_kernel::{Cx, PAGE_SHIFT, PAGE_SIZE};

/// What LAUNCH_START is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaunchStart {
    /// The context.
    pub gctx: Spa,
    /// The owner's demands, with bits that may not exist.
    pub policy: u64,
    /// Workarounds that the guest sees.
    pub gosvw: [u8; 16],
    /// It is an initial migration image.
    pub imi_en: bool,
}

/// What LAUNCH_UPDATE is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaunchUpdate {
    /// The context.
    pub gctx: Spa,
    /// The page, and its size.
    pub page: Spa,
    /// Its size.
    pub page_size: RmpSize,
    /// What it is for.
    pub page_type: PageType,
    /// Part of an initial migration image.
    pub imi_page: bool,
    /// Permissions of VMPL 1 to 3.
    pub perms: [VmplPerms; 3],
}

impl LaunchUpdate {
    /// A page of 4 KiB that only VMPL0 may use.
    pub const fn new(gctx: Spa, page: Spa, page_type: PageType) -> LaunchUpdate {
        let perms = [VmplPerms::empty(); 3];
        LaunchUpdate { gctx, page, page_size: RmpSize::Size4K, page_type, imi_page: false, perms }
    }

    /// The command buffer: context at 0, size, type and IMI flag at 8, page at 0x10, permissions at 0x19.
    ///
    /// # Errors
    /// `InvalidParam` if a reserved bit is set or there is no such type.
    pub fn from_bytes(bytes: &[u8; 0x20]) -> Result<LaunchUpdate, FwStatus> {
        let quad = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("the buffer is longer"));
        let flags = quad(8);
        let [_, perms @ ..]: [u8; 4] = *bytes[0x18..].first_chunk().expect("the buffer is longer");
        let reserved = flags & !0x1f != 0 || bytes[0x18] != 0 || bytes[0x1c..] != [0; 4];
        let page_type = PageType::from_number((flags >> 1) as u8 & 7);
        let perms = perms.map(VmplPerms::from_bits);
        match (page_type, perms) {
            (Some(page_type), [Some(vmpl1), Some(vmpl2), Some(vmpl3)]) if !reserved => Ok(LaunchUpdate {
                gctx: Spa(quad(0)),
                page: Spa(quad(0x10)),
                page_size: if flags & 1 != 0 { RmpSize::Size2M } else { RmpSize::Size4K },
                page_type,
                imi_page: flags & 0x10 != 0,
                perms: [vmpl1, vmpl2, vmpl3],
            }),
            _ => Err(FwStatus::InvalidParam),
        }
    }
}

/// What the owner expects, and has signed. The signature is not checked here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdBlock {
    /// The launch digest that must have come out.
    pub digest: LaunchDigest,
    /// Free for the owner.
    pub family_id: [u8; 16],
    /// Free for the owner.
    pub image_id: [u8; 16],
    /// Version of the structure: 1.
    pub version: u32,
    /// The guest's security version.
    pub guest_svn: u32,
    /// The policy that it must have been launched with.
    pub policy: u64,
}

/// What LAUNCH_FINISH is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaunchFinish {
    /// The context.
    pub gctx: Spa,
    /// What the owner expects, if that is to be checked.
    pub id_block: Option<IdBlock>,
    /// For the attestation report.
    pub host_data: [u8; 32],
}

impl Snp {
    /// SNP_LAUNCH_START: the guest gets a key and its policy, and may be given memory.
    ///
    /// # Errors
    /// `InvalidParam` for reserved bits of the policy, or without `MBO`; `InvalidAddress`; `InvalidGuest`; `InvalidGuestState`;
    /// `Unsupported` with a migration agent; `PolicyFailure` if the platform is not as the policy demands.
    #[track_caller]
    pub fn snp_launch_start(&self, cx: &Cx<'_>, start: &LaunchStart) -> Result<(), PspFail> {
        self.command(cx, Command::LaunchStart, &[], |psp| {
            let policy = GuestPolicy::from_bits(start.policy).ok_or(FwStatus::InvalidParam)?;
            if !policy.contains(GuestPolicy::MBO) {
                return Err(FwStatus::InvalidParam);
            }
            self.check_gctx(start.gctx)?;
            psp.guest_for(Command::LaunchStart, start.gctx)?;
            if policy.contains(GuestPolicy::MIGRATE_MA) {
                return Err(FwStatus::Unsupported);
            }
            self.check_policy(policy)?;
            let vek = psp.draw_key();
            let vmpck = std::array::from_fn::<_, { Vmpl::COUNT }, _>(|_| *psp.draw().first_chunk().expect("48 bytes"));
            let guest = psp.guest(start.gctx)?;
            guest.vek = vek;
            guest.vmpck = vmpck;
            guest.policy = policy;
            guest.gosvw = start.gosvw;
            guest.imi_en = start.imi_en;
            guest.state = GuestState::Launch;
            Ok(())
        })
    }

    /// The bits of a policy that mean something to this platform: AES-256-XTS and the end of power measurement are not offered, and ciphertext hiding is if the
    /// machine has it. Linux's driver has this of FEATURE_INFO (`sev_get_snp_policy_bits`).
    pub fn policy_bits(&self) -> GuestPolicy {
        let absent = if self.config.ciphertext_hiding { GuestPolicy::empty() } else { GuestPolicy::CIPHERTEXT_HIDING };
        GuestPolicy::all() - (GuestPolicy::AES_256_XTS | GuestPolicy::RAPL_DIS | absent)
    }

    /// Whether the platform is as the policy demands.
    fn check_policy(&self, policy: GuestPolicy) -> Result<(), FwStatus> {
        let config = &self.config;
        let fails = (!policy.contains(GuestPolicy::SMT) && config.smt)
            || (policy.contains(GuestPolicy::SINGLE_SOCKET) && config.sockets > 1)
            || !self.policy_bits().contains(policy)
            || policy.abi() > config.abi_version;
        if fails { Err(FwStatus::PolicyFailure) } else { Ok(()) }
    }

    /// SNP_LAUNCH_UPDATE: encrypts a page in place, gives it to the guest as accepted, and extends the launch digest. A page of 2 MiB counts as 512
    /// pages, in order. The address that is measured is the one in the RMP.
    ///
    /// # Errors
    /// In the order of the checks: `InvalidParam`, `InvalidAddress`, `InvalidGuest`, `InvalidGuestState`, `Inactive`, `InvalidPageSize`,
    /// `InvalidPageOwner`, `InvalidPageState`. CPUID values that the platform does not have are `InvalidParam` and replaced by what it has: that page
    /// is changed, stays readable, and is still to be launched.
    #[track_caller]
    pub fn snp_launch_update(&self, cx: &Cx<'_>, update: &LaunchUpdate) -> Result<(), PspFail> {
        let page = NamedPage { at: update.page, size: update.page_size };
        self.command(cx, Command::LaunchUpdate, &[page], |psp| self.launch_update(psp, &page, update))
    }

    fn launch_update(&self, psp: &mut Psp, page: &NamedPage, update: &LaunchUpdate) -> Result<(), FwStatus> {
        let may_be_2m = matches!(update.page_type, PageType::Normal | PageType::Zero | PageType::Unmeasured);
        if update.page_size == RmpSize::Size2M && !may_be_2m {
            return Err(FwStatus::InvalidParam);
        }
        // SNP-INV-035: as RMPADJUST has it.
        if !update.perms.iter().all(|perms| self.all_perms().contains(*perms)) {
            return Err(FwStatus::InvalidParam);
        }
        self.check_gctx(update.gctx)?;
        self.check_address(page)?;
        let guest = psp.guest_for(Command::LaunchUpdate, update.gctx)?;
        let asid = guest.asid.ok_or(FwStatus::Inactive)?;
        // SNP-INV-012: nobody but the firmware ever saw the page as the guest's.
        let entry = self.check_page(page, asid, &[PageState::PreGuest])?;

        let mut digest = guest.digest;
        for i in 0..update.page_size.pages() {
            let pfn = update.page.pfn() + i;
            let gpa = entry.gpa + (i << PAGE_SHIFT);
            let plaintext: Box<PageBytes> = match update.page_type {
                PageType::Zero => Box::new([0; PAGE_SIZE as usize]),
                PageType::Secrets => secrets_page(guest),
                PageType::Cpuid => {
                    let found = self.memory.read_page(KeyPath::Raw, pfn);
                    let accepted = CpuidPage::check(&found, &self.config.cpuid)?;
                    if accepted != found {
                        self.memory.write_page(KeyPath::Raw, pfn, &accepted);
                        return Err(FwStatus::InvalidParam);
                    }
                    found
                }
                _ => self.memory.read_page(KeyPath::Raw, pfn),
            };
            let info = PageInfo {
                imi_page: update.imi_page,
                perms: update.perms,
                perms_order: self.config.perms_order,
                ..PageInfo::new(update.page_type, gpa).with_contents(&plaintext[..])
            };
            digest = digest.extend(&info);
            self.memory.write_page_with(&guest.vek, pfn, &plaintext);
        }
        guest.digest = digest;
        let all = self.all_perms();
        self.rmp.change_page(update.page.pfn(), |entry| {
            entry.validated = true;
            entry.immutable = false;
            entry.vmsa = update.page_type == PageType::Vmsa;
            entry.perms = [all, update.perms[0], update.perms[1], update.perms[2]];
        });
        Ok(())
    }

    /// SNP_LAUNCH_FINISH: the digest is final and the guest may run (SNP-INV-019).
    ///
    /// # Errors
    /// In the order of the checks: `InvalidParam` for the block's version, `InvalidAddress`, `InvalidGuest`, `InvalidGuestState`,
    /// `BadMeasurement` and `PolicyFailure` if the block expects others. The guest then stays where it was.
    #[track_caller]
    pub fn snp_launch_finish(&self, cx: &Cx<'_>, finish: &LaunchFinish) -> Result<(), PspFail> {
        self.command(cx, Command::LaunchFinish, &[], |psp| {
            if finish.id_block.is_some_and(|block| block.version != 1) {
                return Err(FwStatus::InvalidParam);
            }
            self.check_gctx(finish.gctx)?;
            let guest = psp.guest_for(Command::LaunchFinish, finish.gctx)?;
            if let Some(block) = finish.id_block {
                if block.digest != guest.digest {
                    return Err(FwStatus::BadMeasurement);
                }
                if block.policy != guest.policy.bits() {
                    return Err(FwStatus::PolicyFailure);
                }
            }
            guest.host_data = finish.host_data;
            guest.state = GuestState::Running;
            Ok(())
        })
    }
}
