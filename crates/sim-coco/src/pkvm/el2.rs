//! The hypervisor at work on a processor, with its locks.

use super::host::HostMmu;
use super::hyp::HypMmu;
use super::machine::Pkvm;
use super::trace::TraceEvent;
use super::types::{CpuId, PageState, Vmid};
use super::vm::{GuestMmu, HypVm, VmTable};
use sim_kernel::sched::Access;
use sim_kernel::sync::{Mutex, MutexGuard};
use sim_kernel::{Cx, Errno, Pfn};
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

/// What EL2 panicked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Dead(pub(super) &'static str);

impl Pkvm {
    /// A processor is at EL2 for a call, or an abort: nothing that a machine does which panicked, before or meanwhile.
    ///
    /// # Panics
    /// PKVM-INV-014 if a lock is held at the end; if there is no such processor.
    #[track_caller]
    pub(super) fn enter(
        &self,
        cx: &Cx<'_>,
        cpu: CpuId,
        call: &'static str,
        work: impl FnOnce(&El2<'_>) -> Result<u64, Errno>,
    ) -> Result<Result<u64, Errno>, Dead> {
        let el2 = self.el2(cx, cpu);
        self.alive()?;
        el2.record(TraceEvent::Enter { call });
        let held = cx.held_locks().len();
        let answer = work(&el2);
        assert_eq!(cx.held_locks().len(), held, "PKVM-INV-014: {call} returned with a lock");
        let ret = answer.map_or_else(|error| -i64::from(error.number()), |value| value as i64);
        el2.record(TraceEvent::Exit { call, ret });
        self.alive().map(|()| answer)
    }

    /// Whether EL2 has not panicked.
    pub(super) fn alive(&self) -> Result<(), Dead> {
        self.panicked().map_or(Ok(()), |what| Err(Dead(what)))
    }
}

impl<'a> El2<'a> {
    pub(super) fn record(&self, event: TraceEvent) {
        match event {
            TraceEvent::Enter { call } => self.cx.note("EL2", call),
            TraceEvent::Tlbi { .. } => self.cx.note("EL2", "TLBI"),
            TraceEvent::Pte { .. } => self.cx.note("EL2", "descriptor written"),
            TraceEvent::Zero { .. } => self.cx.note("EL2", "page cleared"),
            _ => {}
        }
        self.hv.recorder.record(self.cpu, event);
    }

    #[track_caller]
    fn locked<T>(&self, lock: &'a Mutex<T>, class: &'static str, vmid: Option<Vmid>) -> Locked<'a, T> {
        /// What is under a lock, as a place of the lock's object.
        const DATA: u64 = 1;
        let guard = lock.lock(self.cx);
        // It is said nowhere else what of that is used: two sections of the same lock are not independent.
        self.cx.also(Access::Rmw, lock.object(), DATA, 1);
        self.record(TraceEvent::Lock { class, vmid });
        Locked { guard, el2: *self, class, vmid }
    }

    /// `vm_table_lock`.
    #[track_caller]
    pub(super) fn lock_vms(&self) -> Locked<'a, VmTable> {
        self.locked(&self.hv.vms, "vm_table", None)
    }

    /// `host_mmu.lock`.
    #[track_caller]
    pub(super) fn lock_host(&self) -> Locked<'a, HostMmu> {
        self.locked(&self.hv.host, "host", None)
    }

    /// `pkvm_pgd_lock`.
    #[track_caller]
    pub(super) fn lock_hyp(&self) -> Locked<'a, HypMmu> {
        self.locked(&self.hv.hyp, "hyp", None)
    }

    /// The lock of a VM.
    #[track_caller]
    pub(super) fn lock_vm<'v>(&self, vm: &'v HypVm) -> Locked<'v, GuestMmu>
    where
        'a: 'v,
    {
        let el2: El2<'v> = *self;
        el2.locked(&vm.mmu, "vm", Some(vm.vmid()))
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

    /// `WARN_ON` at EL2, which has nobody to tell: the whole machine panics. What is being done goes on to its end here, and is the last thing that is.
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
