//! SNP_GCTX_CREATE, SNP_DECOMMISSION, SNP_GUEST_STATUS: what the firmware knows of a guest.

use super::super::cipher::MemoryKey;
use super::super::entry::RmpEntry;
use super::super::machine::Snp;
use super::super::types::{Asid, Spa, Vmpl};
use super::NamedPage;
use super::asid::AsidUse;
use super::digest::LaunchDigest;
use super::status::{Command, PspFail};
use sim_kernel::{Cx, PAGE_SIZE};

/// How far a guest has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GuestState {
    /// It has a context.
    Init,
    /// Its memory is being measured.
    Launch,
    /// It may run.
    Running,
}

bitflags::bitflags! {
    /// What the owner of a guest demands of the platform (the flags; the two lowest bytes are a version).
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct GuestPolicy: u64 {
        /// Smallest minor version of the firmware's interface.
        const ABI_MINOR = 0xff;
        /// Smallest major version.
        const ABI_MAJOR = 0xff00;
        /// Simultaneous multithreading is allowed.
        const SMT = 1 << 16;
        /// Must be one.
        const MBO = 1 << 17;
        /// A migration agent is allowed.
        const MIGRATE_MA = 1 << 18;
        /// The host may debug the guest.
        const DEBUG = 1 << 19;
        /// One socket only.
        const SINGLE_SOCKET = 1 << 20;
        /// CXL devices are allowed.
        const CXL = 1 << 21;
        /// Memory must be encrypted with AES-256-XTS.
        const AES_256_XTS = 1 << 22;
        /// Power measurement must be off.
        const RAPL_DIS = 1 << 23;
        /// Ciphertext must be hidden.
        const CIPHERTEXT_HIDING = 1 << 24;
        /// Pages may not be swapped or moved by the host.
        const PAGE_SWAP_DISABLE = 1 << 25;
    }
}

impl GuestPolicy {
    /// Multithreading allowed, nothing demanded: 0x30000.
    pub const USUAL: GuestPolicy = GuestPolicy::SMT.union(GuestPolicy::MBO);

    /// Smallest version that the policy accepts, major and minor.
    pub const fn abi(self) -> (u8, u8) {
        ((self.bits() >> 8) as u8, self.bits() as u8)
    }
}

/// A guest context.
#[derive(Debug)]
pub struct Gctx {
    /// How far it has come.
    pub state: GuestState,
    /// Bound ASID, if it is active.
    pub asid: Option<Asid>,
    /// What the owner demands.
    pub policy: GuestPolicy,
    /// Launch digest so far.
    pub digest: LaunchDigest,
    /// From LAUNCH_FINISH; a part of the attestation report.
    pub host_data: [u8; 32],
    /// Workarounds that the guest sees.
    pub gosvw: [u8; 16],
    /// It is an initial migration image.
    pub imi_en: bool,
    /// Number of the guest in reports.
    pub report_id: [u8; 32],
    /// Keys of its messages, by VMPL.
    pub(super) vmpck: [[u8; 32]; Vmpl::COUNT],
    /// Sequence number of the last message, by key.
    pub(super) msg_seqno: [u64; Vmpl::COUNT],
    pub(super) vek: MemoryKey,
}

impl Gctx {
    /// The sequence numbers of the last messages, by VMPL.
    pub fn msg_seqno(&self) -> [u64; Vmpl::COUNT] {
        self.msg_seqno
    }
}

impl Snp {
    /// SNP_GCTX_CREATE: the firmware's page becomes a context.
    ///
    /// # Errors
    /// `InvalidAddress`, `InvalidPageSize`, `InvalidPageState`.
    #[track_caller]
    pub fn snp_gctx_create(&self, cx: &Cx<'_>, gctx: Spa) -> Result<(), PspFail> {
        let page = NamedPage::small(gctx);
        self.command(cx, Command::GctxCreate, &[page], |psp| {
            self.check_address(&page)?;
            self.check_firmware_page(&page)?;
            let guest = Gctx {
                state: GuestState::Init,
                asid: None,
                policy: GuestPolicy::empty(),
                digest: LaunchDigest::ZERO,
                host_data: [0; 32],
                gosvw: [0; 16],
                imi_en: false,
                report_id: *psp.draw().first_chunk().expect("48 bytes"),
                vmpck: [[0; 32]; Vmpl::COUNT],
                msg_seqno: [0; Vmpl::COUNT],
                vek: psp.draw_key(),
            };
            psp.guests.insert(gctx.pfn(), guest);
            self.memory.write_page_with(&psp.key, gctx.pfn(), &[0; PAGE_SIZE as usize]);
            self.rmp.change_page(gctx.pfn(), |entry| entry.vmsa = true);
            Ok(())
        })
    }

    /// SNP_DECOMMISSION: the guest is forgotten, its key destroyed, the page the firmware's again. Its ASID can be used again after WBINVD and
    /// DF_FLUSH. Its pages stay assigned to that ASID until the host takes them back.
    ///
    /// # Errors
    /// `InvalidAddress`, `InvalidGuest`.
    #[track_caller]
    pub fn snp_decommission(&self, cx: &Cx<'_>, gctx: Spa) -> Result<(), PspFail> {
        let page = NamedPage::small(gctx);
        self.command(cx, Command::Decommission, &[page], |psp| {
            self.check_gctx(gctx)?;
            let asid = psp.guest_for(Command::Decommission, gctx)?.asid;
            if let Some(asid) = asid {
                psp.asids.insert(asid, AsidUse::Stale);
                self.memory.destroy_key(asid);
                self.owe_wbinvd();
            }
            psp.guests.remove(&gctx.pfn());
            self.rmp.store(gctx.pfn(), &RmpEntry::FIRMWARE);
            Ok(())
        })
    }

    /// SNP_GUEST_STATUS: the guest's policy, ASID and state.
    ///
    /// # Errors
    /// `InvalidAddress`, `InvalidGuest`.
    #[track_caller]
    pub fn snp_guest_status(&self, cx: &Cx<'_>, gctx: Spa) -> Result<(GuestPolicy, Option<Asid>, GuestState), PspFail> {
        self.command(cx, Command::GuestStatus, &[], |psp| {
            self.check_gctx(gctx)?;
            let guest = psp.guest_for(Command::GuestStatus, gctx)?;
            Ok((guest.policy, guest.asid, guest.state))
        })
    }
}
