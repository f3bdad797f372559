//! A machine that is busy at the n-th request: what a TDX module answers while somebody else holds a lock inside it, and what firmware that is in the
//! middle of something does (`OPERAND_BUSY`, `-EBUSY`, `-EAGAIN`). Put in on purpose; nothing here is busy by itself.
//!
//! Simplified: one request is refused, whoever asks next is served.

use sim_kernel::{Faults, Nth};

/// The machine is busy; the caller tries again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("busy")]
pub struct Busy;

/// Stands before the machines of a host and counts what KVM asks of them.
///
/// ```
/// use sim_coco::{Busy, BusyOnce};
/// use sim_kernel::Faults;
///
/// let busy = BusyOnce::default();
/// busy.inject(&Faults { busy: 2, ..Faults::default() });
/// assert_eq!([busy.ask(), busy.ask(), busy.ask()], [Ok(()), Err(Busy), Ok(())]);
/// ```
#[derive(Debug, Default)]
pub struct BusyOnce {
    private: Nth,
}

impl BusyOnce {
    /// From now on, requests are refused as the faults say.
    pub fn inject(&self, faults: &Faults) {
        self.private.arm(faults.busy);
    }

    /// KVM is about to ask that a page be made private.
    ///
    /// # Errors
    /// [`Busy`] if the machine is busy; nothing has happened then.
    pub fn ask(&self) -> Result<(), Busy> {
        if self.private.fires() { Err(Busy) } else { Ok(()) }
    }
}
