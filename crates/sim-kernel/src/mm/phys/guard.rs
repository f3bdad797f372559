//! Machines that keep the host from frames: from writing them (SEV-SNP's reverse map table), or from any access, by a stage of translation beneath the
//! kernel's (pKVM's stage 2 of the host). And frames that the kernel never gives back.
//!
//! A machine without such protection has no guard, and then nothing is asked. An access that is refused changes nothing; whoever made it learns of that in the
//! same step: a process by [`User`], the kernel from [`HostStage2::kernel_abort`].

use super::PhysMem;
use crate::sched::Access;
use crate::{Cx, Pfn};
use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// A stage of translation beneath the kernel's, which the kernel does not control.
pub trait HostStage2: Send + Sync {
    /// Whether an access of the host to the frame goes through now. Part of the step that accesses; no scheduling point.
    fn allows(&self, cx: &Cx<'_>, pfn: Pfn, write: bool) -> bool;

    /// An access by a process's mapping did not go through. True if it can be tried again; otherwise the frame is somebody else's.
    fn user_abort(&self, cx: &Cx<'_>, pfn: Pfn) -> bool;

    /// An access of the kernel through its direct map did not go through. If this returns, it is tried again.
    ///
    /// # Panics
    /// If the kernel has no way to go on: an oops.
    fn kernel_abort(&self, cx: &Cx<'_>, pfn: Pfn);
}

/// The stage 2 of a host, if it has one.
#[derive(Default)]
pub(super) struct Stage2(std::sync::OnceLock<Box<dyn HostStage2>>);

impl fmt::Debug for Stage2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage2").field("is_set", &self.0.get().is_some()).finish()
    }
}

/// Bytes as a process reaches them by its mapping, or the kernel in its place. Where the kernel itself would oops, the access does nothing, and that is remembered.
#[derive(Debug)]
pub(in crate::mm) struct User<'a> {
    pub(super) phys: &'a PhysMem,
    aborted: Cell<Option<Pfn>>,
}

impl<'a> User<'a> {
    pub(in crate::mm) fn new(phys: &'a PhysMem) -> User<'a> {
        User { phys, aborted: Cell::new(None) }
    }

    /// The frame that stage 2 kept the last access from, if it did.
    pub(in crate::mm) fn aborted(&self) -> Option<Pfn> {
        self.aborted.take()
    }
}

/// Who accesses bytes.
#[derive(Clone, Copy)]
pub(super) enum By<'a> {
    Kernel,
    User(&'a User<'a>),
}

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
    /// From now on the host's accesses go through this stage of translation, too.
    ///
    /// # Panics
    /// If there is one already.
    pub fn set_host_stage2(&self, stage2: Box<dyn HostStage2>) {
        assert!(self.stage2.0.set(stage2).is_ok(), "memory has one stage 2");
    }

    /// Whether the host's accesses go through a stage 2.
    pub fn has_host_stage2(&self) -> bool {
        self.stage2.0.get().is_some()
    }

    /// Announces an access to words of a frame and has stage 2 let it through. False if it does not, for a process.
    #[inline]
    #[track_caller]
    pub(super) fn reach(&self, cx: &Cx<'_>, by: By<'_>, access: Access, pfn: Pfn, word: u64, words: u64) -> bool {
        loop {
            cx.point_range(access, self.bytes, pfn.0 * super::WORDS_PER_PAGE as u64 + word, words);
            let Some(stage2) = self.stage2.0.get() else { return true };
            if stage2.allows(cx, pfn, access != Access::Load) {
                return true;
            }
            match by {
                By::Kernel => stage2.kernel_abort(cx, pfn),
                By::User(user) => {
                    user.aborted.set(Some(pfn));
                    return false;
                }
            }
        }
    }

    /// Whether an access of a process that stage 2 did not let through can be tried again.
    pub(in crate::mm) fn user_abort(&self, cx: &Cx<'_>, pfn: Pfn) -> bool {
        self.stage2.0.get().is_some_and(|stage2| stage2.user_abort(cx, pfn))
    }

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
