//! What the host keeps for SEV-SNP: the machine, the kernel's wrappers around RMPUPDATE and PSMASH, the direct map, firmware pages, and pages that can
//! never be used again (`arch/x86/virt/svm/sev.c`, `drivers/crypto/ccp/sev-dev.c`).

use super::asid::SevAsids;
use crate::kvm::config::MachineConfig;
use crate::kvm::mutants::{SEV_NO_OVERLAP_RETRY, SEV_NO_SPLIT};
use crate::kvm::process::Process;
use sim_coco::AccessKind;
use sim_coco::snp::{Asid, CpuId, HostSnpAccess, RmpFail, RmpLayout, RmpSize, RmpUpdate, Snp, SnpConfig, Spa};
use sim_kernel::fs::{File, FileOperations, RawFd, Stat};
use sim_kernel::mm::PhysMem;
use sim_kernel::sync::{RwLock, WaitQueue};
use sim_kernel::{Cx, Errno, Faults, PAGE_SHIFT, PAGES_PER_PMD, Pfn};
use sim_mmu::{Gpa, Level};
use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tries of an operation that answers "overlap" after which it is clear that nobody is at work there.
const OVERLAP_MAX: u32 = 1000;

/// SEV-SNP on a host.
pub struct SevHost {
    snp: Arc<Snp>,
    phys: Arc<PhysMem>,
    pub(super) asids: SevAsids,
    /// `sev_deactivate_lock`: DECOMMISSION against the flush before ASIDs are used again.
    pub(super) deactivate_lock: RwLock<()>,
    /// `snp_leaked_pages_list`.
    leaked: parking_lot::Mutex<Vec<Pfn>>,
    /// Regions of 2 MiB that the direct map maps in pages of 4 KiB, by the number of their first frame. Never merged again.
    split: parking_lot::Mutex<BTreeSet<u64>>,
    /// RMP entries that were changed by the kernel, counted: what a vCPU waits for that can do nothing but fault.
    changes: AtomicU64,
    spinners: WaitQueue,
}

impl fmt::Debug for SevHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SevHost").field("snp", &self.snp).field("asids", &self.asids).finish_non_exhaustive()
    }
}

impl SevHost {
    /// The host at the end of its boot: SNP is enabled, the firmware initialised, and each processor has its save area (`svm_enable_virtualization_cpu`).
    /// `None` if the machine has no SNP.
    pub(crate) fn boot(cx: &Cx<'_>, phys: &Arc<PhysMem>, config: &MachineConfig) -> Option<Arc<SevHost>> {
        if !config.has_snp() {
            return None;
        }
        let mut machine = SnpConfig::new(RmpLayout::above(config.memory >> PAGE_SHIFT));
        machine.asid_max = u16::try_from(config.snp_asids).unwrap_or(u16::MAX).max(1);
        machine.contention = config.snp_contention;
        machine.cpuid = config.snp_cpuid.masks();
        machine.ciphertext_hiding = config.ciphertext_hiding;
        let snp = Arc::new(Snp::new(cx, Arc::clone(phys), machine));
        snp.bring_up(cx).expect("a machine that was just reset comes up");
        let guarded = Arc::downgrade(&snp);
        phys.set_write_guard(Box::new(move |pfn| guarded.upgrade().is_none_or(|snp| may_host_write(&snp, pfn))));
        let host = Arc::new(SevHost {
            snp,
            phys: Arc::clone(phys),
            asids: SevAsids::new(cx, config.snp_asids),
            deactivate_lock: RwLock::new(cx, "sev_deactivate_lock", ()),
            leaked: Default::default(),
            split: Default::default(),
            changes: AtomicU64::new(0),
            spinners: WaitQueue::new(cx, "guest that faults again and again"),
        });
        // One page for all processors: nothing is kept in it.
        let hsave = host.alloc_page(cx).ok()?;
        phys.keep(hsave);
        for cpu in 0..host.snp.config().cpus {
            host.snp.wrmsr_vm_hsave_pa(cx, CpuId(cpu), Spa::of(hsave)).expect("the page is the host's");
        }
        Some(host)
    }

    /// From now on, commands to the firmware are answered as the faults say.
    pub(crate) fn inject(&self, cx: &Cx<'_>, faults: &Faults) {
        self.snp.inject_faults(cx, faults);
    }

    /// The machine.
    pub fn snp(&self) -> &Arc<Snp> {
        &self.snp
    }

    pub(super) fn phys(&self) -> &Arc<PhysMem> {
        &self.phys
    }

    /// Pages that the kernel could not take back and never uses again.
    pub fn leaked(&self) -> Vec<Pfn> {
        self.leaked.lock().clone()
    }

    /// Whether the direct map has the frame in a mapping of 4 KiB.
    pub fn is_split(&self, pfn: Pfn) -> bool {
        self.split.lock().contains(&(pfn.0 / PAGES_PER_PMD))
    }

    /// `snp_safe_alloc_page`: a page that is not at the head of a region of 2 MiB, against the erratum of VMSAs.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn alloc_page(&self, cx: &Cx<'_>) -> Result<Pfn, Errno> {
        let first = self.phys.alloc_zeroed()?;
        if !first.0.is_multiple_of(PAGES_PER_PMD) {
            return Ok(first);
        }
        let second = self.phys.alloc_zeroed();
        self.phys.put(cx, first);
        second
    }

    pub(super) fn free_page(&self, cx: &Cx<'_>, pfn: Pfn) {
        self.phys.put(cx, pfn);
    }

    /// `snp_lookup_rmpentry`: whether the page is assigned, and the size of its entry; `None` without an entry. A step of its own: what it says may be old
    /// when it is used.
    pub(super) fn lookup_rmpentry(&self, cx: &Cx<'_>, pfn: Pfn) -> Option<(bool, Level)> {
        self.snp.rmpread(cx, pfn).ok()?;
        self.snp.rmp().lookup(pfn)
    }

    /// `adjust_direct_map`: a page that gets another owner must not share a mapping of the kernel with its neighbours.
    fn adjust_direct_map(&self, cx: &Cx<'_>, pfn: Pfn, size: RmpSize) {
        if size == RmpSize::Size4K && !cx.has_mutant(SEV_NO_SPLIT) {
            self.split.lock().insert(pfn.0 / PAGES_PER_PMD);
        }
    }

    /// `rmpupdate`: tries again while another processor is at work in the region, and gives up at anything else.
    ///
    /// # Errors
    /// `EFAULT`.
    ///
    /// # Panics
    /// SNP-INV-038: if the overlap is with a page of another size, which nobody takes away. Linux tries for ever.
    pub(super) fn rmpupdate(&self, cx: &Cx<'_>, pfn: Pfn, new: RmpUpdate) -> Result<(), Errno> {
        self.adjust_direct_map(cx, pfn, new.page_size);
        let mut tries = 0;
        loop {
            match self.snp.rmpupdate(cx, pfn, new) {
                Ok(()) => break,
                Err(RmpFail::Overlap) if !cx.has_mutant(SEV_NO_OVERLAP_RETRY) => {
                    tries += 1;
                    let ends = tries < OVERLAP_MAX || self.snp.rmp().lookup(pfn).is_none_or(|(_, l)| l == Level::L4K);
                    assert!(ends, "SNP-INV-038: RMPUPDATE of {pfn:?}, which is in a page of 2 MiB, is tried for ever");
                    cx.cond_resched();
                }
                Err(_) => return Err(Errno::EFAULT),
            }
        }
        self.rmp_changed(cx);
        Ok(())
    }

    /// `rmp_make_private`.
    ///
    /// # Errors
    /// `EFAULT`.
    pub(super) fn rmp_make_private(
        &self,
        cx: &Cx<'_>,
        pfn: Pfn,
        gpa: Gpa,
        size: RmpSize,
        asid: Asid,
        immutable: bool,
    ) -> Result<(), Errno> {
        let new = RmpUpdate::guest(asid, gpa).sized(size);
        self.rmpupdate(cx, pfn, if immutable { new.immutable() } else { new })
    }

    /// `rmp_make_shared`.
    ///
    /// # Errors
    /// `EFAULT`.
    pub(super) fn rmp_make_shared(&self, cx: &Cx<'_>, pfn: Pfn, size: RmpSize) -> Result<(), Errno> {
        self.rmpupdate(cx, pfn, RmpUpdate::HYPERVISOR.sized(size))
    }

    /// `psmash`, of the aligned frame.
    ///
    /// # Errors
    /// The instruction's.
    pub(super) fn psmash(&self, cx: &Cx<'_>, pfn: Pfn) -> Result<(), RmpFail> {
        self.snp.psmash(cx, pfn)?;
        self.rmp_changed(cx);
        Ok(())
    }

    /// `snp_leak_pages`: nobody gets these any more. The references stay the caller's, who must not put them. A page may come here twice, as a VMSA that could be
    /// reclaimed neither at once nor with its vCPU; Linux links it into its list twice then.
    pub(super) fn leak_page(&self, pfn: Pfn) {
        let mut leaked = self.leaked.lock();
        if !leaked.contains(&pfn) {
            leaked.push(pfn);
        }
    }

    /// As [`SevHost::leak_page`], with the reference.
    pub(super) fn leak_allocated(&self, pfn: Pfn) {
        self.leak_page(pfn);
        self.phys.keep(pfn);
    }

    /// `rmp_mark_pages_firmware` of one page.
    ///
    /// # Errors
    /// `EFAULT`.
    pub(super) fn mark_page_firmware(&self, cx: &Cx<'_>, pfn: Pfn) -> Result<(), Errno> {
        self.rmpupdate(cx, pfn, RmpUpdate::FIRMWARE)
    }

    /// `snp_alloc_firmware_page`.
    ///
    /// # Errors
    /// `ENOMEM`; `EFAULT`.
    pub(super) fn alloc_firmware_page(&self, cx: &Cx<'_>) -> Result<Pfn, Errno> {
        let pfn = self.alloc_page(cx)?;
        match self.mark_page_firmware(cx, pfn) {
            Ok(()) => Ok(pfn),
            Err(errno) => {
                self.free_page(cx, pfn);
                Err(errno)
            }
        }
    }

    /// `snp_reclaim_pages` of one page: PAGE_RECLAIM, then back to the hypervisor.
    ///
    /// # Errors
    /// `EIO` if the firmware refuses, `EFAULT` if RMPUPDATE does.
    pub(super) fn reclaim_page(&self, cx: &Cx<'_>, pfn: Pfn) -> Result<(), Errno> {
        self.snp.snp_page_reclaim(cx, Spa::of(pfn), RmpSize::Size4K).map_err(|_| Errno::EIO)?;
        self.rmp_make_shared(cx, pfn, RmpSize::Size4K)
    }

    /// `snp_free_firmware_page`: reclaimed and freed, or leaked.
    pub(super) fn free_firmware_page(&self, cx: &Cx<'_>, pfn: Pfn) {
        match self.reclaim_page(cx, pfn) {
            Ok(()) => self.free_page(cx, pfn),
            Err(_) => self.leak_allocated(pfn),
        }
    }

    /// An entry has changed, or a translation: whoever faults in vain tries again.
    pub(crate) fn rmp_changed(&self, cx: &Cx<'_>) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.spinners.wake_unscheduled(cx);
    }

    /// How many changes there were.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Waits where a guest faults again and again because an entry is not what it should be. Linux lets it spin.
    pub(super) fn wait_for_change(&self, cx: &Cx<'_>, seen: u64, other: impl Fn() -> bool) {
        self.spinners.wait_event(cx, || self.changes() != seen || other());
    }

    /// A vCPU was asked to do something.
    pub(crate) fn wake_spinners(&self, cx: &Cx<'_>) {
        self.spinners.wake_unscheduled(cx);
    }
}

/// The check of a write by the host.
///
/// # Panics
/// SNP-INV-002: if the write goes through and the page is not the host's.
fn may_host_write(snp: &Snp, pfn: Pfn) -> bool {
    let may = snp.check_host(&HostSnpAccess::kernel(AccessKind::Write, pfn)).is_ok();
    let is_own = !snp.is_enabled() || !snp.rmp().is_assigned(pfn);
    assert!(!may || is_own, "SNP-INV-002: the host writes {pfn:?}, which is not its own");
    may
}

/// The file behind `/dev/sev`.
#[derive(Debug)]
pub(super) struct SevDevice;

impl FileOperations for SevDevice {
    fn is_regular(&self) -> bool {
        false
    }

    fn release(&self, _cx: &Cx<'_>) {}

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn stat(&self, _cx: &Cx<'_>) -> Stat {
        Stat { ino: 2, mode: 0o020_600, nlink: 1, size: 0, blksize: 4096, blocks: 0 }
    }
}

/// `open("/dev/sev")`.
///
/// # Errors
/// `ENOENT` on a host without SEV; `EMFILE`.
pub fn open_sev(cx: &Cx<'_>, process: &Process) -> Result<RawFd, Errno> {
    if process.host().sev().is_none() {
        return Err(Errno::ENOENT);
    }
    process.install(cx, File::new(cx, Arc::new(SevDevice)))
}
