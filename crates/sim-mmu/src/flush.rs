//! The obligation to flush: whoever clears a translation owes a remote TLB flush until somebody has made it
//! (`kvm_flush_remote_tlbs` and the `bool flush` that is passed around in `arch/x86/kvm/mmu`).

use sim_kernel::Cx;

/// Flushes the stale translations of all vCPUs of a VM.
pub trait RemoteFlush {
    /// `kvm_flush_remote_tlbs`: when it returns, no vCPU uses a translation that was cleared before.
    fn flush_remote_tlbs(&self, cx: &Cx<'_>);
}

/// Whether a flush is owed. Dropping one that is fails an assertion (INV-202).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "translations were cleared: the TLBs must be flushed"]
pub struct FlushNeeded {
    needed: bool,
}

impl FlushNeeded {
    /// Owed if `needed`.
    pub const fn new(needed: bool) -> FlushNeeded {
        FlushNeeded { needed }
    }

    /// Nothing is owed.
    pub const NONE: FlushNeeded = FlushNeeded { needed: false };

    /// Whether a flush is owed.
    pub const fn needed(&self) -> bool {
        self.needed
    }

    /// This obligation and another one as one.
    pub fn merge(mut self, mut other: FlushNeeded) -> FlushNeeded {
        let needed = std::mem::take(&mut self.needed) | std::mem::take(&mut other.needed);
        FlushNeeded { needed }
    }

    /// Flushes if owed; returns whether it was.
    pub fn discharge(mut self, cx: &Cx<'_>, flush: &impl RemoteFlush) -> bool {
        let needed = std::mem::take(&mut self.needed);
        if needed {
            flush.flush_remote_tlbs(cx);
        }
        needed
    }

    /// Takes the obligation over in another form: the caller flushes by other means, or no vCPU can run any more.
    pub fn into_inner(mut self) -> bool {
        std::mem::take(&mut self.needed)
    }
}

impl Drop for FlushNeeded {
    fn drop(&mut self) {
        assert!(!self.needed || std::thread::panicking(), "INV-202: a TLB flush is owed and nobody made it");
    }
}
