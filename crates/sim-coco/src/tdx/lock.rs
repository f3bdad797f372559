//! The module's locks. Nobody waits for one: who does not get it answers BUSY, and software tries again.
//!
//! A lock is shared or exclusive (`sharex_lock_t`); some know that the host failed to get them (`sharex_hp_lock_t`), and then keep guests out until the
//! host has had them. The real shared acquisition counts itself before it looks and does not take that back when it fails; the exclusive
//! release zeroes the word, so that nobody sees the difference. An entry of the Secure EPT has its lock in the entry.
//!
//! A leaf holds what it took until it returns; a vCPU in its TD holds two locks until it exits. [`Held`] is that, and gives all back when it is dropped.

use super::machine::Tdx;
use super::types::PageSize;
use sim_kernel::Pfn;
use std::fmt;

/// How a lock is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    Shared,
    Exclusive,
}

/// Who takes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    Host,
    Guest,
}

/// Why a lock is not to be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Denied {
    Busy,
    HostPriority,
}

/// Where an entry of a Secure EPT stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Slot {
    pub(super) table: Pfn,
    pub(super) index: usize,
}

/// Which lock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum LockId {
    /// Of the metadata of the page of this size that starts at the frame.
    Pamt(PageSize, Pfn),
    /// Of a TD, by its TDR.
    OpState(Pfn),
    Tree(Pfn),
    Epoch(Pfn),
    Rtmr(Pfn),
    Entry(Slot),
    /// The table of KeyIDs.
    Kot,
    /// The keys of a package.
    Ket(u32),
    /// The write-back of a package's caches.
    Wbcache(u32),
    /// SYS leaves.
    Sys,
}

/// The state of a lock.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Lock {
    pub(super) exclusive: bool,
    pub(super) readers: u16,
    pub(super) host_priority: bool,
}

impl Lock {
    pub(super) const fn is_free(&self) -> bool {
        !self.exclusive && self.readers == 0
    }

    /// Takes it; `knows_priority` if the lock remembers that the host failed.
    pub(super) fn take(&mut self, mode: Mode, side: Side, knows_priority: bool) -> Result<(), Denied> {
        if side == Side::Guest && self.host_priority {
            return Err(Denied::HostPriority);
        }
        let free = match mode {
            Mode::Shared => !self.exclusive && self.readers < u16::MAX,
            Mode::Exclusive => self.is_free(),
        };
        if side == Side::Host && knows_priority {
            self.host_priority = !free;
        }
        if !free {
            return Err(Denied::Busy);
        }
        match mode {
            Mode::Shared => self.readers += 1,
            Mode::Exclusive => self.exclusive = true,
        }
        Ok(())
    }

    pub(super) fn release(&mut self, mode: Mode) {
        match mode {
            Mode::Shared => {
                self.readers =
                    self.readers.checked_sub(1).expect("TDX-INV-011: a reader released a lock that nobody reads");
            }
            Mode::Exclusive => {
                assert!(self.exclusive, "TDX-INV-011: a lock was released that nobody had");
                self.exclusive = false;
            }
        }
    }
}

impl fmt::Debug for Lock {
    /// Not the host's priority: a failed leaf may leave it (TDX-INV-014).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.exclusive {
            true => f.write_str("exclusive"),
            false => write!(f, "{} readers", self.readers),
        }
    }
}

/// What a leaf holds.
#[derive(Debug)]
pub(super) struct Held<'a> {
    pub(super) tdx: &'a Tdx,
    pub(super) locks: Vec<(LockId, Mode)>,
}

impl<'a> Held<'a> {
    pub(super) const fn new(tdx: &'a Tdx) -> Held<'a> {
        Held { tdx, locks: Vec::new() }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // An execution that failed is over, and its locks with it.
        if self.locks.is_empty() || std::thread::panicking() {
            return;
        }
        let mut state = self.tdx.state.lock();
        for (id, mode) in std::mem::take(&mut self.locks).into_iter().rev() {
            state.release(id, mode);
        }
    }
}
