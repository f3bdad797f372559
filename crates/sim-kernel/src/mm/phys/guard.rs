//! A machine that keeps the host from writing some frames (SEV-SNP's reverse map table), and frames that the kernel never gives back.
//!
//! A machine without such protection has no guard, and then nothing is asked. A write that is refused changes nothing; whoever wrote asks for that in the
//! same step ([`PhysMem::take_refusal`]).

use super::PhysMem;
use crate::Pfn;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Through which mapping the host writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Through {
    /// A process's own mapping of the page.
    Process,
    /// The kernel's direct map, which may have the page in a mapping with its neighbours.
    DirectMap,
}

/// Says of a frame whether the host may write it now.
pub type MayWrite = Box<dyn Fn(Pfn, Through) -> bool + Send + Sync>;

/// The guard of a host's memory, if it has one.
#[derive(Default)]
pub(super) struct WriteGuard {
    may_write: std::sync::OnceLock<MayWrite>,
    /// The last write was refused, and nobody has asked yet.
    refused: AtomicBool,
}

impl fmt::Debug for WriteGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteGuard").field("is_set", &self.may_write.get().is_some()).finish_non_exhaustive()
    }
}

impl PhysMem {
    /// From now on the host's writes are checked: those of processes end in a signal, those of the kernel in an assertion, because it has no way to
    /// go on.
    ///
    /// # Panics
    /// If there is a guard already.
    pub fn set_write_guard(&self, may_write: MayWrite) {
        assert!(self.write_guard.may_write.set(may_write).is_ok(), "memory has one guard");
    }

    /// Whether the host may write the frame now. Part of the step that writes.
    #[inline]
    pub fn may_write(&self, pfn: Pfn, through: Through) -> bool {
        self.write_guard.may_write.get().is_none_or(|may_write| may_write(pfn, through))
    }

    /// Whether a process's write to the frame goes through, as part of the step that writes; if not, that is remembered.
    #[inline]
    pub(super) fn begin_write(&self, pfn: Pfn) -> bool {
        let may = self.may_write(pfn, Through::Process);
        if !may {
            self.write_guard.refused.store(true, Ordering::Relaxed);
        }
        may
    }

    /// Whether the write that this step made was refused: a `#PF` of the host.
    #[inline]
    pub(in crate::mm) fn take_refusal(&self) -> bool {
        self.write_guard.may_write.get().is_some() && self.write_guard.refused.swap(false, Ordering::Relaxed)
    }

    /// The kernel writes the frame through its direct map.
    ///
    /// # Panics
    /// SNP-INV-003: if it may not. In Linux that is an oops.
    #[inline]
    pub(super) fn assert_may_write(&self, pfn: Pfn) {
        assert!(
            self.may_write(pfn, Through::DirectMap),
            "SNP-INV-003: the kernel writes {pfn:?}, which is not its own: #PF with the RMP bit"
        );
    }

    /// The kernel keeps the frame for good: as long as the host runs, it counts as [reserved](PhysMem::reserved_frames).
    pub fn keep(&self, pfn: Pfn) {
        assert!(self.is_allocated(pfn), "{pfn:?} is kept and belongs to nobody");
        self.kept.fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::mm) fn kept_frames(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }
}
