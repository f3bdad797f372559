//! Hypercalls of the host (`hyp-main.c`): which there are, when they may be called, and what each checks before it changes anything.
//!
//! Simplified: operands are values, not registers; the numbers of the functions are no ABI. Calls that have nothing to do with memory or VMs' lives are left out.

use super::el2::{Dead, El2};
use super::machine::Pkvm;
use super::trace::Tlbi;
use super::types::{CpuId, Handle, Pa, Prot};
use super::vm::{HostKvm, HostVcpu, HypVm};
use sim_kernel::{Cx, Errno, Pfn};
use sim_mmu::Gfn;
use std::sync::Arc;

/// When a call may be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Band {
    /// Until the host gives up its privileges.
    Setup,
    /// Always.
    Common,
    /// From then on.
    Pkvm,
}

/// A hypercall of the host with its operands, by the kernel's names.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum HostCall {
    /// `__pkvm_init`.
    Init,
    /// `__pkvm_prot_finalize`: puts this processor under the host's stage 2.
    ProtFinalize,
    /// `__pkvm_host_share_hyp`.
    HostShareHyp {
        /// The page.
        pfn: Pfn,
    },
    /// `__pkvm_host_unshare_hyp`.
    HostUnshareHyp {
        /// The page.
        pfn: Pfn,
    },
    /// `__pkvm_host_donate_guest`, by the loaded vCPU.
    HostDonateGuest {
        /// The page.
        pfn: Pfn,
        /// Where in the guest.
        gfn: Gfn,
    },
    /// `__pkvm_host_share_guest`, by the loaded vCPU.
    HostShareGuest {
        /// First page.
        pfn: Pfn,
        /// Where in the guest.
        gfn: Gfn,
        /// 1, or a block's.
        pages: u64,
        /// What the guest may do.
        prot: Prot,
    },
    /// `__pkvm_host_unshare_guest`.
    HostUnshareGuest {
        /// The VM.
        handle: Handle,
        /// First page.
        gfn: Gfn,
        /// 1, or a block's.
        pages: u64,
    },
    /// `__pkvm_host_relax_perms_guest`, by the loaded vCPU.
    HostRelaxPermsGuest {
        /// The page.
        gfn: Gfn,
        /// More permissions.
        prot: Prot,
    },
    /// `__pkvm_host_wrprotect_guest`.
    HostWrprotectGuest {
        /// The VM.
        handle: Handle,
        /// First page.
        gfn: Gfn,
        /// 1, or a block's.
        pages: u64,
    },
    /// `__pkvm_host_test_clear_young_guest`.
    HostTestClearYoungGuest {
        /// The VM.
        handle: Handle,
        /// First page.
        gfn: Gfn,
        /// 1, or a block's.
        pages: u64,
        /// Whether to clear.
        mkold: bool,
    },
    /// `__pkvm_host_mkyoung_guest`, by the loaded vCPU.
    HostMkyoungGuest {
        /// The page.
        gfn: Gfn,
    },
    /// `__pkvm_tlb_flush_vmid`.
    TlbFlushVmid {
        /// The VM.
        handle: Handle,
    },
    /// `__pkvm_reserve_vm`; answers the handle.
    ReserveVm,
    /// `__pkvm_unreserve_vm`.
    UnreserveVm {
        /// What was reserved.
        handle: Handle,
    },
    /// `__pkvm_init_vm`.
    InitVm {
        /// The host's structure.
        kvm: Arc<HostKvm>,
        /// What was reserved.
        handle: Handle,
        /// A page for the VM.
        frame: Pfn,
        /// Pages for the root of its stage 2 ([`Pkvm::pgd_pages`]).
        pgd: Pfn,
    },
    /// `__pkvm_init_vcpu`.
    InitVcpu {
        /// The VM.
        handle: Handle,
        /// The host's structure.
        vcpu: Arc<HostVcpu>,
        /// A page for the vCPU.
        frame: Pfn,
    },
    /// `__pkvm_vcpu_load`.
    VcpuLoad {
        /// The VM.
        handle: Handle,
        /// Which vCPU.
        index: u32,
    },
    /// `__pkvm_vcpu_put`.
    VcpuPut,
    /// `__pkvm_start_teardown_vm`.
    StartTeardownVm {
        /// The VM.
        handle: Handle,
    },
    /// `__pkvm_finalize_teardown_vm`.
    FinalizeTeardownVm {
        /// The VM.
        handle: Handle,
    },
    /// `__pkvm_reclaim_dying_guest_page`.
    ReclaimDyingGuestPage {
        /// The VM.
        handle: Handle,
        /// The page.
        gfn: Gfn,
    },
    /// `__pkvm_force_reclaim_guest_page`.
    ForceReclaimGuestPage {
        /// An address in the page.
        pa: Pa,
    },
    /// `__pkvm_vcpu_in_poison_fault`; answers 1 or 0.
    VcpuInPoisonFault,
    /// A number that no call has.
    Undefined(u64),
}

/// Why a call failed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum CallFail {
    /// There is no such call, or not now (`SMCCC_RET_NOT_SUPPORTED`).
    #[error("not supported")]
    NotSupported,
    /// The call's own answer.
    #[error("{0}")]
    Errno(#[from] Errno),
    /// A broken assumption at EL2. The machine is dead: every call says this from now on.
    #[error("EL2 panic: {0}")]
    Panic(&'static str),
}

impl From<Dead> for CallFail {
    fn from(Dead(what): Dead) -> CallFail {
        CallFail::Panic(what)
    }
}

impl CallFail {
    /// The error number, if it is one.
    pub fn errno(self) -> Option<Errno> {
        match self {
            CallFail::Errno(errno) => Some(errno),
            _ => None,
        }
    }
}

impl HostCall {
    /// When it may be made.
    pub fn band(&self) -> Band {
        match self {
            HostCall::Init => Band::Setup,
            // Made by each processor while the host gives up its privileges, so that it cannot be refused after.
            HostCall::ProtFinalize => Band::Common,
            _ => Band::Pkvm,
        }
    }

    /// Its name in the kernel, without `__pkvm_`.
    pub fn name(&self) -> &'static str {
        NAMES[self.number() as usize]
    }

    /// Its number in recordings of this model, which is no ABI: [`HostCall::name_of`] has the name.
    pub fn number(&self) -> u64 {
        match self {
            HostCall::Init => 0,
            HostCall::ProtFinalize => 1,
            HostCall::HostShareHyp { .. } => 2,
            HostCall::HostUnshareHyp { .. } => 3,
            HostCall::HostDonateGuest { .. } => 4,
            HostCall::HostShareGuest { .. } => 5,
            HostCall::HostUnshareGuest { .. } => 6,
            HostCall::HostRelaxPermsGuest { .. } => 7,
            HostCall::HostWrprotectGuest { .. } => 8,
            HostCall::HostTestClearYoungGuest { .. } => 9,
            HostCall::HostMkyoungGuest { .. } => 10,
            HostCall::TlbFlushVmid { .. } => 11,
            HostCall::ReserveVm => 12,
            HostCall::UnreserveVm { .. } => 13,
            HostCall::InitVm { .. } => 14,
            HostCall::InitVcpu { .. } => 15,
            HostCall::VcpuLoad { .. } => 16,
            HostCall::VcpuPut => 17,
            HostCall::StartTeardownVm { .. } => 18,
            HostCall::FinalizeTeardownVm { .. } => 19,
            HostCall::ReclaimDyingGuestPage { .. } => 20,
            HostCall::ForceReclaimGuestPage { .. } => 21,
            HostCall::VcpuInPoisonFault => 22,
            HostCall::Undefined(_) => 23,
        }
    }

    /// The name of the call with this number.
    ///
    /// ```
    /// use sim_coco::pkvm::HostCall;
    ///
    /// assert_eq!(HostCall::name_of(HostCall::VcpuPut.number()), Some("vcpu_put"));
    /// assert_eq!(HostCall::name_of(1000), None);
    /// ```
    pub fn name_of(number: u64) -> Option<&'static str> {
        NAMES.get(usize::try_from(number).ok()?).copied()
    }
}

/// Names of the calls, by their numbers.
const NAMES: [&str; 24] = [
    "init",
    "prot_finalize",
    "host_share_hyp",
    "host_unshare_hyp",
    "host_donate_guest",
    "host_share_guest",
    "host_unshare_guest",
    "host_relax_perms_guest",
    "host_wrprotect_guest",
    "host_test_clear_young_guest",
    "host_mkyoung_guest",
    "tlb_flush_vmid",
    "reserve_vm",
    "unreserve_vm",
    "init_vm",
    "init_vcpu",
    "vcpu_load",
    "vcpu_put",
    "start_teardown_vm",
    "finalize_teardown_vm",
    "reclaim_dying_guest_page",
    "force_reclaim_guest_page",
    "vcpu_in_poison_fault",
    "undefined",
];

impl Pkvm {
    /// The host calls the hypervisor on a processor. Each lock that the call takes, each descriptor that it writes and each TLBI is a scheduling point; none of its
    /// locks is held when it returns.
    ///
    /// # Errors
    /// [`CallFail::NotSupported`] if the call may not be made now; else as the call is documented in the kernel, in its order of checks (`El2` has most of them).
    ///
    /// # Panics
    /// If there is no such processor.
    #[track_caller]
    pub fn host_call(&self, cx: &Cx<'_>, cpu: CpuId, call: HostCall) -> Result<u64, CallFail> {
        self.alive()?;
        let refused = match call.band() {
            Band::Setup => self.is_initialized(),
            Band::Common => false,
            Band::Pkvm => !self.is_initialized(),
        };
        if refused || matches!(call, HostCall::Undefined(_)) {
            return Err(CallFail::NotSupported);
        }
        Ok(self.enter(cx, cpu, call.name(), |el2| el2.handle(call))??)
    }
}

impl El2<'_> {
    fn handle(&self, call: HostCall) -> Result<u64, Errno> {
        let done = match call {
            HostCall::Init => self.hv.init(self),
            HostCall::ProtFinalize => self.prot_finalize(),
            HostCall::HostShareHyp { pfn } => self.host_share_hyp(pfn),
            HostCall::HostUnshareHyp { pfn } => self.host_unshare_hyp(pfn),
            HostCall::HostDonateGuest { pfn, gfn } => {
                let vcpu = self.loaded_vcpu(true)?;
                self.refill_memcache(&vcpu)?;
                self.host_donate_guest(&vcpu, pfn, gfn)
            }
            HostCall::HostShareGuest { pfn, gfn, pages, prot } => {
                let vcpu = self.loaded_vcpu(false)?;
                self.refill_memcache(&vcpu)?;
                self.host_share_guest(&vcpu, pfn, gfn, pages, prot)
            }
            HostCall::HostUnshareGuest { handle, gfn, pages } => {
                self.with_np_vm(handle, |vm| self.host_unshare_guest(vm, gfn, pages))
            }
            HostCall::HostRelaxPermsGuest { gfn, prot } => {
                self.host_relax_perms_guest(&*self.loaded_vcpu(false)?, gfn, prot)
            }
            HostCall::HostWrprotectGuest { handle, gfn, pages } => {
                self.with_np_vm(handle, |vm| self.host_wrprotect_guest(vm, gfn, pages))
            }
            HostCall::HostTestClearYoungGuest { handle, gfn, pages, mkold } => {
                let young = self.with_np_vm(handle, |vm| self.host_test_clear_young_guest(vm, gfn, pages, mkold))?;
                return Ok(u64::from(young));
            }
            HostCall::HostMkyoungGuest { gfn } => self.host_mkyoung_guest(&*self.loaded_vcpu(false)?, gfn),
            HostCall::TlbFlushVmid { handle } => {
                // No answer, whatever it is given.
                let _ = self.with_np_vm(handle, |vm| {
                    self.flush_vmid(vm);
                    Ok(())
                });
                Ok(())
            }
            HostCall::ReserveVm => return self.reserve_vm().map(|handle| u64::from(handle.0)),
            HostCall::UnreserveVm { handle } => {
                self.unreserve_vm(handle);
                Ok(())
            }
            HostCall::InitVm { kvm, handle, frame, pgd } => self.init_vm(&kvm, handle, frame, pgd),
            HostCall::InitVcpu { handle, vcpu, frame } => self.init_vcpu(handle, &vcpu, frame),
            HostCall::VcpuLoad { handle, index } => {
                self.load_vcpu(handle, index);
                Ok(())
            }
            HostCall::VcpuPut => {
                self.put_vcpu();
                Ok(())
            }
            HostCall::StartTeardownVm { handle } => self.start_teardown(handle),
            HostCall::FinalizeTeardownVm { handle } => self.finalize_teardown(handle),
            HostCall::ReclaimDyingGuestPage { handle, gfn } => {
                self.with_vm(handle, |vm| self.reclaim_dying_guest(vm, gfn))
            }
            HostCall::ForceReclaimGuestPage { pa } => self.force_reclaim(pa),
            HostCall::VcpuInPoisonFault => return self.vcpu_in_poison_fault().map(u64::from),
            HostCall::Undefined(_) => Err(Errno::EINVAL),
        };
        done.map(|()| 0)
    }

    fn prot_finalize(&self) -> Result<(), Errno> {
        let mut cpus = self.hv.cpus.lock();
        if std::mem::replace(&mut cpus[self.cpu.0 as usize].finalized, true) {
            return Err(Errno::EPERM);
        }
        drop(cpus);
        self.tlbi(super::Vmid::HOST, Tlbi::VmidLocal, Pfn(0), u64::MAX);
        Ok(())
    }

    fn with_vm<T>(&self, handle: Handle, operation: impl FnOnce(&HypVm) -> Result<T, Errno>) -> Result<T, Errno> {
        let vm = self.get_vm(handle).ok_or(Errno::EINVAL)?;
        let done = operation(&vm.0);
        self.put_vm(vm);
        done
    }

    fn with_np_vm<T>(&self, handle: Handle, operation: impl FnOnce(&HypVm) -> Result<T, Errno>) -> Result<T, Errno> {
        self.with_vm(handle, |vm| if vm.is_protected() { Err(Errno::EINVAL) } else { operation(vm) })
    }
}
