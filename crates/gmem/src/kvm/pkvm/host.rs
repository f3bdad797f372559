//! The hypervisor beneath a host: brought up at boot, called by KVM, and what the kernel does when it stops an access of the host
//! (`pkvm_init_host_vm`'s callers, `arch/arm64/mm/fault.c`).

use crate::kvm::config::MachineConfig;
use sim_coco::AccessKind;
use sim_coco::pkvm::{CallFail, CpuId, HostCall, Pa, Pkvm, PkvmConfig};
use sim_kernel::mm::PhysMem;
use sim_kernel::mm::phys::HostStage2;
use sim_kernel::sched::{MAX_TASKS, Tracepoint};
use sim_kernel::{Cx, Errno, PAGE_SIZE, Pfn};
use std::fmt;
use std::sync::{Arc, Weak};

/// The host has called the hypervisor: [`HostCall::number`], and what came back, an error negative. What the kernel's `host_hcall` says, with the answer.
pub(crate) static PKVM_HOST_CALL: Tracepoint = Tracepoint { name: "pkvm_host_call", fields: &["call", "ret"] };
/// A guest has executed HVC, and somebody has answered: the hypervisor, or KVM.
pub(crate) static PKVM_GUEST_HVC: Tracepoint =
    Tracepoint { name: "pkvm_guest_hvc", fields: &["function", "x1", "answer"] };

/// pKVM of a host.
pub struct PkvmHost {
    pkvm: Arc<Pkvm>,
    phys: Arc<PhysMem>,
    /// Pages that may be pinned for a process's VMs (`RLIMIT_MEMLOCK`).
    memlock: u64,
    /// guest_memfds back protected VMs, as it is proposed.
    backs_with_gmem: bool,
}

impl PkvmHost {
    /// Boots the hypervisor, if the machine has one: from here on the host is under its stage 2.
    ///
    /// # Panics
    /// If the host's memory does not even hold the hypervisor's tables.
    pub(crate) fn boot(cx: &Cx<'_>, phys: &Arc<PhysMem>, config: &MachineConfig) -> Option<Arc<PkvmHost>> {
        if !config.pkvm {
            return None;
        }
        let machine = PkvmConfig {
            // A processor for each thread that there can be: none is ever preempted by another.
            cpus: MAX_TASKS as u32,
            guest_bits: config.pkvm_bits(),
            host_bits: config.pkvm_bits(),
            trace: config.pkvm_trace,
            ..PkvmConfig::new(config.memory / PAGE_SIZE)
        };
        let pkvm = Pkvm::new(cx, Arc::clone(phys), machine).expect("the hypervisor finds memory at boot");
        pkvm.bring_up(cx).expect("a machine that was just reset comes up");
        pkvm.carve_out().iter().for_each(|pfn| phys.keep(*pfn));
        let pkvm = Arc::new(pkvm);
        phys.set_host_stage2(Box::new(Stage2 { pkvm: Arc::downgrade(&pkvm) }));
        Some(Arc::new(PkvmHost {
            pkvm,
            phys: Arc::clone(phys),
            memlock: config.memlock / PAGE_SIZE,
            backs_with_gmem: config.pkvm_gmem,
        }))
    }

    /// The hypervisor.
    pub fn pkvm(&self) -> &Arc<Pkvm> {
        &self.pkvm
    }

    pub(super) fn phys(&self) -> &Arc<PhysMem> {
        &self.phys
    }

    /// `RLIMIT_MEMLOCK`, in pages.
    pub(super) fn memlock(&self) -> u64 {
        self.memlock
    }

    /// Whether guest_memfds back protected VMs.
    pub fn backs_with_gmem(&self) -> bool {
        self.backs_with_gmem
    }

    /// The hypervisor's call, on the processor of the running thread (`kvm_call_hyp_nvhe`).
    ///
    /// # Errors
    /// The call's.
    ///
    /// # Panics
    /// If the hypervisor does: that is the end of the machine.
    #[track_caller]
    pub(super) fn call(&self, cx: &Cx<'_>, call: HostCall) -> Result<u64, Errno> {
        traced_call(cx, &self.pkvm, call).map_err(errno_of)
    }

    /// A zeroed page of the kernel's that the hypervisor may read and pin (`kvm_share_hyp` of a structure that fills one).
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn alloc_shared(&self, cx: &Cx<'_>) -> Result<Pfn, Errno> {
        let pfn = self.phys.alloc_zeroed()?;
        self.call(cx, HostCall::HostShareHyp { pfn }).expect("a page that was just allocated is the host's alone");
        Ok(pfn)
    }

    /// `kvm_unshare_hyp`, and the page is free.
    ///
    /// # Panics
    /// If the hypervisor still uses it: the kernel would warn, and free it all the same.
    pub(super) fn free_shared(&self, cx: &Cx<'_>, pfn: Pfn) {
        if let Err(errno) = self.call(cx, HostCall::HostUnshareHyp { pfn }) {
            panic!("PKVM-INV-017: {pfn:?} is freed and the hypervisor still uses it: {errno}");
        }
        self.phys.put(cx, pfn);
    }
}

impl fmt::Debug for PkvmHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PkvmHost").field("pkvm", &self.pkvm).finish_non_exhaustive()
    }
}

/// The processor that a thread runs on: its own.
pub(super) fn cpu_of(cx: &Cx<'_>) -> CpuId {
    CpuId(u32::from(cx.task().0))
}

/// A call of the running thread's processor, on record.
#[track_caller]
fn traced_call(cx: &Cx<'_>, pkvm: &Pkvm, call: HostCall) -> Result<u64, CallFail> {
    let number = call.number();
    let result = pkvm.host_call(cx, cpu_of(cx), call);
    if let Ok(ret) = result.or_else(|fail| fail.errno().map(|errno| (-i64::from(errno.number())) as u64).ok_or(fail)) {
        cx.trace(&PKVM_HOST_CALL, &[number, ret]);
    }
    result
}

fn errno_of(fail: CallFail) -> Errno {
    match fail {
        CallFail::Errno(errno) => errno,
        CallFail::NotSupported => panic!("the hypervisor does not know a call of its own kernel"),
        CallFail::Panic(what) => panic!("HYP panic: {what}"),
    }
}

/// The stage 2 that the host's accesses go through.
struct Stage2 {
    pkvm: Weak<Pkvm>,
}

impl HostStage2 for Stage2 {
    fn allows(&self, cx: &Cx<'_>, pfn: Pfn, write: bool) -> bool {
        let kind = if write { AccessKind::Write } else { AccessKind::Read };
        self.pkvm.upgrade().is_none_or(|pkvm| pkvm.host_probe(cpu_of(cx), Pa::of(pfn), kind).is_ok())
    }

    /// `do_page_fault` for a process: filled if that is all it takes, else SIGSEGV with `SEGV_ACCERR`, or the system call's `-EFAULT`.
    fn user_abort(&self, cx: &Cx<'_>, pfn: Pfn) -> bool {
        self.pkvm.upgrade().is_none_or(|pkvm| pkvm.host_mem_abort(cx, cpu_of(cx), Pa::of(pfn)).is_ok())
    }

    /// `do_page_fault` for the kernel without a fix-up: the page is taken from its guest by force (`pkvm_force_reclaim_guest_page`).
    ///
    /// # Panics
    /// PKVM-INV-025: with the kernel's oops, if it is no guest's; PKVM-INV-018 if it was lost with its VM, and the kernel would fault for ever.
    fn kernel_abort(&self, cx: &Cx<'_>, pfn: Pfn) {
        let Some(pkvm) = self.pkvm.upgrade() else { return };
        let (cpu, pa) = (cpu_of(cx), Pa::of(pfn));
        if pkvm.host_mem_abort(cx, cpu, pa).is_ok() {
            return;
        }
        match traced_call(cx, &pkvm, HostCall::ForceReclaimGuestPage { pa }) {
            Ok(_) => {}
            Err(fail) if fail.errno() == Some(Errno::EAGAIN) => {
                let lost = pkvm.lost_pages().contains_key(&pfn);
                assert!(!lost, "PKVM-INV-018: the kernel faults for ever at {pfn:?}, which was lost with its VM");
            }
            Err(_) => {
                panic!("PKVM-INV-025: Unable to handle kernel access to hypervisor-protected memory at {pfn:?}")
            }
        }
    }
}
