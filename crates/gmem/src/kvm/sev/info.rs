//! What a VM has of SEV-SNP (`struct kvm_sev_info`), from `KVM_SEV_INIT2` to the end of the VM (`sev_guest_init`, `sev_vm_destroy`).

use super::host::SevHost;
use super::ioctl::{check_fd, psp_errno};
use crate::kvm::mutants::SEV_ASID_FREED_FIRST;
use crate::kvm::vm::Vm;
use sim_coco::snp::{Asid, RmpSize, SevFeatures, Spa};
use sim_kernel::fs::{FdTable, RawFd};
use sim_kernel::sync::Mutex;
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::Gpa;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// What user space may ask for (`sev_supported_vmsa_features`).
const SUPPORTED_VMSA_FEATURES: SevFeatures = SevFeatures::DEBUG_SWAP;
/// `GHCB_VERSION_MAX`.
pub(super) const GHCB_VERSION: u16 = 2;

/// What `kvm->lock` protects of it.
#[derive(Debug)]
pub(super) struct Launch {
    /// `KVM_SEV_INIT2` has not been called.
    pub(super) need_init: bool,
}

/// The descriptor of `/dev/sev` that START was given, and the table that it is in: commands of later use it.
#[derive(Clone, Debug)]
struct StoredFd {
    files: Weak<FdTable>,
    fd: RawFd,
}

/// The pages that guest requests go through.
#[derive(Debug, Default)]
pub(super) struct GuestRequestPages {
    /// `guest_req_buf`, an ordinary page.
    pub(super) request: Option<Pfn>,
    /// `guest_resp_buf`, the firmware's as long as the VM lives.
    pub(super) response: Option<Pfn>,
}

/// SEV-SNP of one VM.
#[derive(Debug)]
pub struct SevInfo {
    pub(super) host: Arc<SevHost>,
    /// `kvm->lock`.
    pub(super) lock: Mutex<Launch>,
    /// `guest_req_mutex`.
    pub(super) guest_req_mutex: Mutex<GuestRequestPages>,
    asid: OnceLock<Asid>,
    /// `fd`.
    fd: parking_lot::Mutex<StoredFd>,
    /// `snp_context`.
    context: parking_lot::Mutex<Option<Pfn>>,
    vmsa_features: AtomicU64,
    /// `kvm->created_vcpus`.
    created_vcpus: AtomicU64,
    /// `snp_certs_enabled`.
    pub(super) certs_enabled: AtomicBool,
    /// The launch digest that follows from what was launched: for SNP-INV-018.
    pub(super) launched: parking_lot::Mutex<sim_coco::snp::firmware::LaunchDigest>,
    /// Not KVM's: vCPUs whose guest spins.
    pub(crate) spinners: crate::kvm::kernel::Spinners,
}

impl SevInfo {
    pub(crate) fn new(cx: &Cx<'_>, host: &Arc<SevHost>) -> SevInfo {
        SevInfo {
            host: Arc::clone(host),
            lock: Mutex::new(cx, "kvm->lock", Launch { need_init: true }),
            guest_req_mutex: Mutex::new(cx, "guest_req_mutex", GuestRequestPages::default()),
            asid: OnceLock::new(),
            fd: parking_lot::Mutex::new(StoredFd { files: Weak::new(), fd: -1 }),
            context: Default::default(),
            vmsa_features: AtomicU64::new(0),
            created_vcpus: AtomicU64::new(0),
            certs_enabled: AtomicBool::new(false),
            launched: parking_lot::Mutex::new(sim_coco::snp::firmware::LaunchDigest::ZERO),
            spinners: crate::kvm::kernel::Spinners::new(cx),
        }
    }

    /// SEV-SNP of the host.
    pub fn host(&self) -> &Arc<SevHost> {
        &self.host
    }

    /// START stores the descriptor that it was given.
    pub(super) fn store_fd(&self, files: &Arc<FdTable>, fd: RawFd) {
        *self.fd.lock() = StoredFd { files: Arc::downgrade(files), fd };
    }

    /// `sev_issue_cmd`: whether the stored descriptor is still one of `/dev/sev`.
    ///
    /// # Errors
    /// `EBADF`.
    pub(super) fn check_stored_fd(&self, cx: &Cx<'_>) -> Result<(), Errno> {
        let StoredFd { files, fd } = self.fd.lock().clone();
        check_fd(cx, &*files.upgrade().ok_or(Errno::EBADF)?, fd)
    }

    /// The VM's ASID, after `KVM_SEV_INIT2`.
    pub fn asid(&self) -> Option<Asid> {
        self.asid.get().copied()
    }

    /// `snp_context`: the page with the guest's context, after `KVM_SEV_SNP_LAUNCH_START`.
    pub fn context(&self) -> Option<Pfn> {
        *self.context.lock()
    }

    pub(super) fn set_context(&self, context: Option<Pfn>) {
        *self.context.lock() = context;
    }

    /// The context as the firmware's commands name it.
    pub(super) fn gctx(&self) -> Option<Spa> {
        self.context().map(Spa::of)
    }

    /// `sev_snp_guest`: `KVM_SEV_INIT2` was called.
    pub(super) fn is_snp_guest(&self) -> bool {
        self.asid.get().is_some()
    }

    /// `vmsa_features`.
    pub fn vmsa_features(&self) -> SevFeatures {
        SevFeatures::from_bits_retain(self.vmsa_features.load(Ordering::Relaxed))
    }

    /// `kvm->created_vcpus`.
    pub(super) fn created_vcpus(&self) -> u64 {
        self.created_vcpus.load(Ordering::SeqCst)
    }

    /// `kvm_vm_ioctl_create_vcpu`, before anything is made: the vCPU counts.
    pub(crate) fn begin_vcpu(&self, cx: &Cx<'_>) {
        let _lock = self.lock.lock(cx);
        self.created_vcpus.fetch_add(1, Ordering::SeqCst);
    }

    /// A vCPU is not made after all.
    pub(crate) fn abandon_vcpu(&self) {
        self.created_vcpus.fetch_sub(1, Ordering::SeqCst);
    }

    /// `sev_vm_destroy`: the pages of guest requests, then the context, then the ASID. Pages of guest_memfds may go before or after.
    pub(crate) fn vm_destroy(&self, cx: &Cx<'_>) {
        let Some(asid) = self.asid() else { return };
        let pages = std::mem::take(&mut *self.guest_req_mutex.lock(cx));
        if let Some(response) = pages.response {
            self.host.free_firmware_page(cx, response);
        }
        if let Some(request) = pages.request {
            self.host.free_page(cx, request);
        }
        if cx.has_mutant(SEV_ASID_FREED_FIRST) {
            self.host.asid_free(cx, asid);
        }
        if snp_decommission_context(cx, self).is_err() {
            // Nobody knows the context any more; the ASID is lost with it.
            self.host.leak_allocated(self.context().expect("it was not decommissioned"));
        } else if !cx.has_mutant(SEV_ASID_FREED_FIRST) {
            self.host.asid_free(cx, asid);
        }
    }
}

impl Vm {
    /// `snp_page_reclaim`: back to the hypervisor, or leaked, and then the VM is of no use any more.
    ///
    /// # Errors
    /// `EIO`.
    pub(super) fn snp_page_reclaim(&self, cx: &Cx<'_>, sev: &SevInfo, pfn: Pfn) -> Result<(), Errno> {
        sev.host.reclaim_page(cx, pfn).map_err(|_| {
            self.bug(cx);
            sev.host.leak_page(pfn);
            Errno::EIO
        })
    }

    /// `sev_guest_init2`.
    ///
    /// # Errors
    /// `EINVAL` if the VM is of no SEV type, has vCPUs, or is asked for what there is not; `ENOTTY`, `EBUSY` without an ASID; `ENOMEM`.
    pub(super) fn sev_guest_init2(
        &self,
        cx: &Cx<'_>,
        sev: &SevInfo,
        launch: &mut Launch,
        vmsa_features: SevFeatures,
        flags: u32,
        ghcb_version: u16,
    ) -> Result<(), Errno> {
        if !launch.need_init
            || sev.created_vcpus() > 0
            || flags != 0
            || !SUPPORTED_VMSA_FEATURES.contains(vmsa_features)
        {
            return Err(Errno::EINVAL);
        }
        if !matches!(ghcb_version, 0 | GHCB_VERSION) {
            return Err(Errno::EINVAL);
        }
        let asid = sev.host.asid_new(cx)?;
        if let Err(errno) = snp_guest_req_init(cx, sev) {
            sev.host.asid_free(cx, asid);
            return Err(errno);
        }
        sev.vmsa_features.store((vmsa_features | SevFeatures::SNP_ACTIVE).bits(), Ordering::Relaxed);
        sev.asid.set(asid).expect("need_init is cleared with the first ASID");
        launch.need_init = false;
        Ok(())
    }
}

/// `snp_guest_req_init`.
fn snp_guest_req_init(cx: &Cx<'_>, sev: &SevInfo) -> Result<(), Errno> {
    let request = sev.host.alloc_page(cx)?;
    let response = match sev.host.alloc_firmware_page(cx) {
        Ok(response) => response,
        Err(errno) => {
            sev.host.free_page(cx, request);
            return Err(errno);
        }
    };
    *sev.guest_req_mutex.lock(cx) = GuestRequestPages { request: Some(request), response: Some(response) };
    Ok(())
}

/// `snp_decommission_context`: forgets the guest and frees its context; nothing to do without one.
///
/// # Errors
/// If the firmware refuses; then the VM keeps its context.
pub(super) fn snp_decommission_context(cx: &Cx<'_>, sev: &SevInfo) -> Result<(), Errno> {
    let Some(context) = sev.context() else { return Ok(()) };
    let decommissioned = {
        let _deactivate = sev.host.deactivate_lock.write(cx);
        sev.host.snp().snp_decommission(cx, Spa::of(context))
    };
    decommissioned.map_err(psp_errno)?;
    sev.host.free_firmware_page(cx, context);
    sev.set_context(None);
    Ok(())
}

/// A page of the VM goes back to the hypervisor from the open state: a vCPU's VMSA.
///
/// # Errors
/// `EFAULT`.
pub(super) fn make_vmsa_shared(cx: &Cx<'_>, host: &SevHost, vmsa: Pfn) -> Result<(), Errno> {
    host.rmp_make_shared(cx, vmsa, RmpSize::Size4K)
}

/// The address that a VMSA which KVM provides is measured at.
pub(super) const VMSA_GPA: Gpa = Gpa(0xffff_ffff_f000);
