//! What the host does with an abort that EL2 injected (`arch/arm64/mm/fault.c`): kill, fix up, take the page back, or oops.

use super::access::{HostAbort, Touch};
use super::hcall::{CallFail, HostCall};
use super::machine::Pkvm;
use super::types::{CpuId, Pa};
use sim_kernel::{Cx, Errno};

/// What was going on when the host accessed memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostContext {
    /// A process, by its own mapping.
    User,
    /// The kernel, at an instruction with an entry in the exception table: copies from and to users, accesses that may fail.
    KernelFixup,
    /// The kernel, elsewhere. Its stage 1 translates the address.
    Kernel,
    /// As before, but looking at stage 1 afterwards (`AT S1E1R`) finds no translation.
    KernelUnmapped,
}

/// What came of an access by the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostOutcome {
    /// It was performed: the value that is there.
    Done(u64),
    /// SIGSEGV with `SEGV_ACCERR` for the process.
    SigSegv,
    /// The exception table's way out: `-EFAULT` of a system call.
    Efault,
    /// The kernel oopses: "hypervisor-protected memory".
    Oops,
    /// EL2 panicked: nothing runs any more.
    Dead,
    /// The kernel would fault for ever: the hypervisor says that the access need not fault any more, and it does. Of pages of a VM that is gone.
    Livelock,
}

impl Pkvm {
    /// The host accesses memory, and handles what comes of it.
    ///
    /// # Panics
    /// If there is no such processor.
    #[track_caller]
    pub fn host_touch(&self, cx: &Cx<'_>, cpu: CpuId, context: HostContext, pa: Pa, touch: Touch) -> HostOutcome {
        loop {
            let abort = match self.host_access(cx, cpu, pa, touch) {
                Ok(value) => return HostOutcome::Done(value),
                Err(HostAbort::Dead) => return HostOutcome::Dead,
                Err(abort) => abort,
            };
            match context {
                HostContext::User => return HostOutcome::SigSegv,
                HostContext::KernelFixup => return HostOutcome::Efault,
                HostContext::KernelUnmapped => return HostOutcome::Oops,
                HostContext::Kernel if abort != HostAbort::Injected || touch == Touch::Fetch => {
                    return HostOutcome::Oops;
                }
                HostContext::Kernel => {}
            }
            match self.host_call(cx, cpu, HostCall::ForceReclaimGuestPage { pa }) {
                Ok(_) => {}
                Err(fail) if fail.errno() == Some(Errno::EAGAIN) => {
                    // Somebody else has taken or shared it meanwhile; nobody does that with a page of a dead VM.
                    if self.ghost.lock().lost.contains_key(&pa.pfn()) {
                        return HostOutcome::Livelock;
                    }
                }
                Err(CallFail::Panic(_)) => return HostOutcome::Dead,
                Err(_) => return HostOutcome::Oops,
            }
        }
    }
}
