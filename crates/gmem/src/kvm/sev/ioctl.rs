//! `KVM_MEMORY_ENCRYPT_OP` (`sev_mem_enc_ioctl`): which command, for which VM, and under which lock.

use super::host::SevDevice;
use super::info::SevInfo;
use crate::kvm::process::Process;
use crate::kvm::vm::Vm;
use sim_coco::snp::SevFeatures;
use sim_coco::snp::firmware::{IdBlock, PageType, PspFail};
use sim_kernel::fs::{FdTable, RawFd};
use sim_kernel::{Cx, Errno, Hva};
use sim_mmu::Gfn;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Type of a page of `KVM_SEV_SNP_LAUNCH_UPDATE`, with its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnpPageType(pub u8);

impl SnpPageType {
    /// `KVM_SEV_SNP_PAGE_TYPE_NORMAL`.
    pub const NORMAL: SnpPageType = SnpPageType(1);
    /// `KVM_SEV_SNP_PAGE_TYPE_ZERO`.
    pub const ZERO: SnpPageType = SnpPageType(3);
    /// `KVM_SEV_SNP_PAGE_TYPE_UNMEASURED`.
    pub const UNMEASURED: SnpPageType = SnpPageType(4);
    /// `KVM_SEV_SNP_PAGE_TYPE_SECRETS`.
    pub const SECRETS: SnpPageType = SnpPageType(5);
    /// `KVM_SEV_SNP_PAGE_TYPE_CPUID`.
    pub const CPUID: SnpPageType = SnpPageType(6);

    /// What the firmware calls it, if user space may launch such pages: VMSAs it may not.
    pub(super) fn to_firmware(self) -> Option<PageType> {
        PageType::from_number(self.0).filter(|page_type| *page_type != PageType::Vmsa)
    }
}

/// `struct kvm_sev_snp_launch_start`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SnpLaunchStart {
    /// What the owner of the guest demands.
    pub policy: u64,
    /// Workarounds that the guest sees.
    pub gosvw: [u8; 16],
    /// Must be 0.
    pub flags: u16,
}

/// `struct kvm_sev_snp_launch_update`; changed to what is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnpLaunchUpdate {
    /// The first guest frame.
    pub gfn_start: Gfn,
    /// Where the contents are; nothing is there for pages of type ZERO.
    pub uaddr: Hva,
    /// Bytes.
    pub len: u64,
    /// What the pages are.
    pub page_type: SnpPageType,
    /// Must be 0.
    pub flags: u16,
}

/// `struct kvm_sev_snp_launch_finish`, with what its pointers point to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SnpLaunchFinish {
    /// What the owner expects, if that is to be checked.
    pub id_block: Option<IdBlock>,
    /// For the attestation report.
    pub host_data: [u8; 32],
    /// Must be 0.
    pub flags: u16,
}

/// A command of `KVM_MEMORY_ENCRYPT_OP`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SevOp {
    /// `KVM_SEV_INIT2` (22).
    Init2 {
        /// Features that guests see in their VMSA.
        vmsa_features: u64,
        /// Must be 0.
        flags: u32,
        /// Version of the GHCB protocol; 0 for the newest.
        ghcb_version: u16,
    },
    /// `KVM_SEV_SNP_LAUNCH_START` (100).
    SnpLaunchStart(SnpLaunchStart),
    /// `KVM_SEV_SNP_LAUNCH_UPDATE` (101).
    SnpLaunchUpdate(SnpLaunchUpdate),
    /// `KVM_SEV_SNP_LAUNCH_FINISH` (102).
    SnpLaunchFinish(SnpLaunchFinish),
    /// `KVM_SEV_SNP_ENABLE_REQ_CERTS` (103).
    SnpEnableReqCerts,
    /// A command of another number: those of SEV and SEV-ES, which are not modelled, and those that do not exist.
    Other(u32),
}

impl SevOp {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            SevOp::Init2 { .. } => "KVM_SEV_INIT2",
            SevOp::SnpLaunchStart(_) => "KVM_SEV_SNP_LAUNCH_START",
            SevOp::SnpLaunchUpdate(_) => "KVM_SEV_SNP_LAUNCH_UPDATE",
            SevOp::SnpLaunchFinish(_) => "KVM_SEV_SNP_LAUNCH_FINISH",
            SevOp::SnpEnableReqCerts => "KVM_SEV_SNP_ENABLE_REQ_CERTS",
            SevOp::Other(_) => "KVM_MEMORY_ENCRYPT_OP",
        }
    }

    /// The number.
    pub fn id(&self) -> u32 {
        match self {
            SevOp::Init2 { .. } => 22,
            SevOp::SnpLaunchStart(_) => 100,
            SevOp::SnpLaunchUpdate(_) => 101,
            SevOp::SnpLaunchFinish(_) => 102,
            SevOp::SnpEnableReqCerts => 103,
            SevOp::Other(id) => *id,
        }
    }
}

/// `struct kvm_sev_cmd`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SevCmd {
    /// The command with its data, which it may change.
    pub op: SevOp,
    /// The firmware's error, if it was the firmware that refused.
    pub error: u32,
    /// A descriptor of `/dev/sev`.
    pub sev_fd: RawFd,
}

impl SevCmd {
    /// A command through this descriptor.
    pub fn new(op: SevOp, sev_fd: RawFd) -> SevCmd {
        SevCmd { op, error: 0, sev_fd }
    }
}

/// `__sev_issue_cmd`: whether the descriptor is one of `/dev/sev`.
///
/// # Errors
/// `EBADF`.
pub(super) fn check_fd(cx: &Cx<'_>, files: &FdTable, fd: RawFd) -> Result<(), Errno> {
    files.with(cx, fd, |file| file.downcast::<SevDevice>().map(drop).ok_or(Errno::EBADF))
}

/// Who asks, and what the firmware answered.
pub(super) struct Issuer<'a> {
    pub(super) process: &'a Process,
    pub(super) error: u32,
}

impl Issuer<'_> {
    /// [`check_fd`] of who asks.
    ///
    /// # Errors
    /// `EBADF`.
    pub(super) fn check_fd(&self, cx: &Cx<'_>, fd: RawFd) -> Result<(), Errno> {
        check_fd(cx, self.process.fds(), fd)
    }

    /// What a command's issuer is told (`sev_do_cmd`): the errno, and in the structure the firmware's number, which is 0 also of a command that it did not
    /// answer. Once it is dead, that is left alone.
    ///
    /// # Errors
    /// [`psp_errno`].
    pub(super) fn issued<R>(&mut self, result: Result<R, PspFail>) -> Result<R, Errno> {
        match &result {
            Ok(_) | Err(PspFail::NoAnswer) => self.error = 0,
            Err(PspFail::Status(status)) => self.error = status.code(),
            Err(PspFail::Dead) => {}
        }
        result.map_err(psp_errno)
    }
}

/// The errno of a command that failed (`__sev_do_cmd_locked`).
pub(super) fn psp_errno(fail: PspFail) -> Errno {
    match fail {
        PspFail::Status(_) => Errno::EIO,
        PspFail::NoAnswer => Errno::ETIMEDOUT,
        PspFail::Dead => Errno::EBUSY,
    }
}

impl Vm {
    /// `sev_mem_enc_ioctl`.
    ///
    /// # Errors
    /// `ENOTTY` without SEV; `EPERM` for a command of SEV on an SNP VM; otherwise the command's.
    pub(crate) fn sev_mem_enc_ioctl(
        self: &Arc<Vm>,
        cx: &Cx<'_>,
        process: &Process,
        cmd: &mut SevCmd,
    ) -> Result<(), Errno> {
        /// The first number of SNP's own.
        const FIRST_SNP: u32 = 100;
        if self.host.sev().is_none() {
            return Err(Errno::ENOTTY);
        }
        let Some(sev) = self.sev() else {
            return Err(of_no_sev_guest(cmd.op.id()));
        };
        let mut launch = sev.lock.lock(cx);
        if sev.is_snp_guest() && cmd.op.id() < FIRST_SNP {
            return Err(Errno::EPERM);
        }
        let mut issuer = Issuer { process, error: cmd.error };
        let result = match &mut cmd.op {
            SevOp::Init2 { vmsa_features, flags, ghcb_version } => {
                let features = SevFeatures::from_bits_retain(*vmsa_features);
                self.sev_guest_init2(cx, sev, &mut launch, features, *flags, *ghcb_version)
            }
            SevOp::SnpLaunchStart(start) => self.snp_launch_start(cx, sev, &mut issuer, start, cmd.sev_fd),
            SevOp::SnpLaunchUpdate(update) => self.snp_launch_update(cx, sev, &mut issuer, update, cmd.sev_fd),
            SevOp::SnpLaunchFinish(finish) => self.snp_launch_finish(cx, sev, &mut issuer, finish, cmd.sev_fd),
            SevOp::SnpEnableReqCerts => enable_certs(sev),
            SevOp::Other(id) => Err(of_no_sev_guest(*id)),
        };
        cmd.error = issuer.error;
        result
    }
}

/// What the command of this number answers for a VM that is no SEV guest (yet): most look for that first and say `ENOTTY`; what does not exist, would make it one of
/// another kind, or is slow to look is `EINVAL`.
fn of_no_sev_guest(id: u32) -> Errno {
    match id {
        // Of SEV and SEV-ES: the launch, migration (without VMSAs and RECEIVE_UPDATE_DATA), status, debugging, attestation.
        2..=9 | 11 | 12 | 15..=18 | 20 | 21 => Errno::ENOTTY,
        // Start and end of an SNP guest's launch.
        100 | 102 => Errno::ENOTTY,
        _ => Errno::EINVAL,
    }
}

/// `snp_enable_certs`.
fn enable_certs(sev: &SevInfo) -> Result<(), Errno> {
    if sev.created_vcpus() > 0 || !sev.is_snp_guest() {
        return Err(Errno::EINVAL);
    }
    sev.certs_enabled.store(true, Ordering::SeqCst);
    Ok(())
}
