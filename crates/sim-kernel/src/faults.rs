//! Faults that are put in on purpose: the n-th allocation of a kind fails, the n-th request to the machine finds it busy, a signal arrives at the
//! n-th step. As in the kernel's
//! `fail_page_alloc` and `failslab`, with numbers in the place of probabilities, so that an execution can be had again.
//!
//! Simplified: at a fault that depends on how many steps or allocations *all* tasks have made, no two steps commute any more; a search that
//! relies on it (sleep sets, partial-order reduction) may miss orders.

use std::sync::atomic::{AtomicU64, Ordering};

/// What fails, and when. Numbers count from 1; 0 is never.
///
/// ```
/// use sim_kernel::Faults;
/// assert!(Faults { frame: 3, ..Faults::default() } != Faults::default());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Number of the frame or huge page whose allocation fails.
    pub frame: u64,
    /// Number of the page table, of a process or of stage 2, whose allocation fails.
    pub table: u64,
    /// Number of the request for xarray nodes that fails.
    pub node: u64,
    /// Number of the request to make a page private at which the machine beneath KVM is busy.
    pub busy: u64,
    /// Number of the command to the secure processor's firmware that is never answered.
    pub firmware: u64,
    /// The step at which the signal arrives.
    pub signal_step: u64,
    /// The task that gets it, by its number; threads of a scenario are numbered from 1.
    pub signal_task: u64,
}

/// Counts down to the call that fails.
///
/// ```
/// let nth = sim_kernel::Nth::default();
/// nth.arm(2);
/// assert_eq!([nth.fires(), nth.fires(), nth.fires()], [false, true, false]);
/// ```
#[derive(Debug, Default)]
pub struct Nth(AtomicU64);

impl Nth {
    /// The `n`-th call from now fails; 0 for none.
    pub fn arm(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Counts a call. True if it is the one.
    #[inline]
    pub fn fires(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0 && self.0.fetch_sub(1, Ordering::Relaxed) == 1
    }
}
