//! The hypervisor at work on a processor, with its locks.

use super::host::HostMmu;
use super::hyp::HypMmu;
use super::machine::Pkvm;
use super::trace::TraceEvent;
use super::types::{CpuId, PageState, Vmid};
use super::vm::{GuestMmu, HypVm, VmTable};
use sim_kernel::sync::MutexGuard;
use sim_kernel::{Cx, Pfn};
use std::fmt;
use std::ops::{Deref, DerefMut};

/// EL2 on one processor: what its functions get as "this CPU". Has the transitions of `mem_protect.c` as methods; hypercalls
/// ([`Pkvm::host_call`]) check their operands and come here.
///
/// Locks are taken in this order: the table of VMs, the host's, then the hypervisor's or a VM's.
#[derive(Clone, Copy)]
pub struct El2<'a> {
    pub(super) hv: &'a Pkvm,
    pub(super) cx: &'a Cx<'a>,
    pub(super) cpu: CpuId,
}

/// A lock that is held, and recorded.
pub(super) struct Locked<'a, T> {
    guard: MutexGuard<'a, T>,
    el2: El2<'a>,
    class: &'static str,
    vmid: Option<Vmid>,
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T> Drop for Locked<'_, T> {
    fn drop(&mut self) {
        self.el2.record(TraceEvent::Unlock { class: self.class, vmid: self.vmid });
    }
}

impl<'a> El2<'a> {
    pub(super) fn record(&self, event: TraceEvent) {
        self.hv.recorder.record(self.cpu, event);
    }

    fn locked<T>(&self, guard: MutexGuard<'a, T>, class: &'static str, vmid: Option<Vmid>) -> Locked<'a, T> {
        self.record(TraceEvent::Lock { class, vmid });
        Locked { guard, el2: *self, class, vmid }
    }

    /// `vm_table_lock`.
    #[track_caller]
    pub(super) fn lock_vms(&self) -> Locked<'a, VmTable> {
        self.locked(self.hv.vms.lock(self.cx), "vm_table", None)
    }

    /// `host_mmu.lock`.
    #[track_caller]
    pub(super) fn lock_host(&self) -> Locked<'a, HostMmu> {
        self.locked(self.hv.host.lock(self.cx), "host", None)
    }

    /// `pkvm_pgd_lock`.
    #[track_caller]
    pub(super) fn lock_hyp(&self) -> Locked<'a, HypMmu> {
        self.locked(self.hv.hyp.lock(self.cx), "hyp", None)
    }

    /// The lock of a VM.
    #[track_caller]
    pub(super) fn lock_vm<'v>(&self, vm: &'v HypVm) -> Locked<'v, GuestMmu>
    where
        'a: 'v,
    {
        let el2: El2<'v> = *self;
        el2.locked(vm.mmu.lock(el2.cx), "vm", Some(vm.vmid()))
    }

    /// Clears a page, down to the point of coherency: an alias that is not cached sees it, too.
    #[track_caller]
    pub(super) fn zero(&self, pfn: Pfn) {
        self.hv.phys.zero_beneath(self.cx, pfn);
        self.record(TraceEvent::Zero { pfn });
    }

    pub(super) fn record_state(&self, component: &'static str, pfn: Pfn, from: PageState, to: PageState) {
        if from != to {
            self.record(TraceEvent::State { component, pfn, from, to });
        }
    }

    /// `WARN_ON` at EL2, which has nobody to tell: the whole machine panics.
    pub(super) fn warn(&self, what: &'static str) {
        self.hv.panicked.lock().get_or_insert(what);
    }

    /// The processor.
    pub fn cpu(&self) -> CpuId {
        self.cpu
    }
}

impl fmt::Debug for El2<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("El2").field("cpu", &self.cpu).finish_non_exhaustive()
    }
}
