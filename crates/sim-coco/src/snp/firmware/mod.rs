//! The firmware of the AMD secure processor (AMD-SP), as far as SEV-SNP asks it: one command a file or a few that belong together.
//!
//! Commands come one at a time through one mailbox, which is a lock here. Whoever has it waits for an answer; if none comes, the firmware is dead and nobody
//! asks it again until the machine is reset. A command is two steps: having the mailbox, and everything else,
//! announced on the pages that it names. The pages that it changes are marked while it runs; a page that another processor is changing at
//! that moment is in no state that a command accepts.
//!
//! Checks come in one order: platform state, reserved fields, addresses, context, guest state, page size, page owner, page state, and what
//! the command adds. A command that fails has no effect, unless it says otherwise. Simplified: no certificates, no signatures, no migration, and the contents of
//! context pages are opaque.

mod asid;
mod context;
mod cpuid;
mod debug;
mod digest;
mod guest_request;
mod launch;
mod page_move;
mod platform;
mod reclaim;
mod secrets;
mod status;
mod unsmash;

pub use asid::AsidUse;
pub use context::{Gctx, GuestPolicy, GuestState};
pub use cpuid::{CPUID_ENTRIES_MAX, CpuidEntry, CpuidMasks, CpuidPage, epyc_cpuid_masks};
pub use digest::{LaunchDigest, PageInfo, PageType, contents_digest};
pub use guest_request::{MSG_REPORT_REQ, MSG_REPORT_RSP, MessageError, MessageHeader, REPORT_BYTES, open, seal};
pub use launch::{IdBlock, LaunchFinish, LaunchStart, LaunchUpdate};
pub use page_move::PageMove;
pub use platform::Shutdown;
pub use secrets::secrets_page;
pub use status::{Command, FwStatus, PspFail};

use super::cipher::MemoryKey;
use super::entry::RmpEntry;
use super::lock::{Holder, RmpLock, Span};
use super::machine::Snp;
use super::state::PageState;
use super::types::{Asid, RmpSize, Spa};
use sha2::{Digest, Sha384};
use sim_kernel::sched::Access;
use sim_kernel::{Cx, Faults, Nth, Pfn};
use std::collections::BTreeMap;

/// What the firmware knows.
#[derive(Debug)]
pub(super) struct Psp {
    pub(super) initialized: bool,
    /// By the frame of the context page.
    pub(super) guests: BTreeMap<Pfn, Gctx>,
    pub(super) asids: BTreeMap<Asid, AsidUse>,
    /// Of its own pages.
    key: MemoryKey,
    seed: u64,
    draws: u64,
    injected: Vec<(Command, Injected)>,
    /// The command that is not answered.
    unanswered: Nth,
    /// A command was not answered.
    is_dead: bool,
}

/// What is to happen to a command instead of what it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Injected {
    /// It fails with this status and has no effect.
    Status(FwStatus),
    /// It is never answered and has no effect, and no command after it is.
    NoAnswer,
}

/// A page that a command names, and its size as the command says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NamedPage {
    pub(super) at: Spa,
    pub(super) size: RmpSize,
}

impl NamedPage {
    pub(super) const fn small(at: Spa) -> NamedPage {
        NamedPage { at, size: RmpSize::Size4K }
    }
}

impl Psp {
    pub(super) fn new(seed: u64) -> Psp {
        let mut psp = Psp {
            initialized: false,
            guests: BTreeMap::new(),
            asids: BTreeMap::new(),
            key: MemoryKey::new(&[0; 32]),
            seed,
            draws: 0,
            injected: Vec::new(),
            unanswered: Nth::default(),
            is_dead: false,
        };
        psp.key = psp.draw_key();
        psp
    }

    /// The next of the firmware's random bytes.
    pub(super) fn draw(&mut self) -> [u8; 48] {
        self.draws += 1;
        let hash = Sha384::new_with_prefix(self.seed.to_le_bytes()).chain_update(self.draws.to_le_bytes());
        hash.finalize().into()
    }

    pub(super) fn draw_key(&mut self) -> MemoryKey {
        let bytes = self.draw();
        MemoryKey::new(bytes.first_chunk().expect("48 bytes"))
    }

    /// How the command fails on purpose, if it does.
    fn fails(&mut self, command: Command) -> Option<PspFail> {
        let is_nth = self.unanswered.fires();
        let injected = self.injected.iter().position(|(of, _)| *of == command).map(|at| self.injected.remove(at).1);
        match injected {
            _ if is_nth => Some(PspFail::NoAnswer),
            Some(Injected::NoAnswer) => Some(PspFail::NoAnswer),
            Some(Injected::Status(status)) => Some(PspFail::Status(status)),
            None => None,
        }
    }

    /// The guest with its context in this page.
    pub(super) fn guest(&mut self, gctx: Spa) -> Result<&mut Gctx, FwStatus> {
        self.guests.get_mut(&gctx.pfn()).ok_or(FwStatus::InvalidGuest)
    }

    /// The guest with its context in this page, if it is in a state that the command accepts.
    pub(super) fn guest_for(&mut self, command: Command, gctx: Spa) -> Result<&mut Gctx, FwStatus> {
        let guest = self.guest(gctx)?;
        if command.accepts(guest.state) { Ok(guest) } else { Err(FwStatus::InvalidGuestState) }
    }
}

impl Snp {
    /// Lets the next command of this kind fail. For tests of what software does then.
    pub fn inject(&self, cx: &Cx<'_>, command: Command, injected: Injected) {
        self.psp.lock(cx).injected.push((command, injected));
    }

    /// From now on, the command that the faults name is not answered.
    pub fn inject_faults(&self, cx: &Cx<'_>, faults: &Faults) {
        self.psp.lock(cx).unanswered.arm(faults.firmware);
    }

    /// What the firmware knows of the guest with its context in this page: for checkers, while nothing else runs.
    pub fn peek_guest<R>(&self, gctx: Spa, look: impl FnOnce(&Gctx) -> R) -> Option<R> {
        self.psp.peek(|psp| psp.guests.get(&gctx.pfn()).map(look))
    }

    /// What the firmware knows of an ASID: for checkers, while nothing else runs. `None` if it is free.
    pub fn peek_asid(&self, asid: Asid) -> Option<AsidUse> {
        self.psp.peek(|psp| psp.asids.get(&asid).copied())
    }

    /// A command: takes the mailbox, marks the pages, and runs `body`.
    #[track_caller]
    pub(super) fn command<R>(
        &self,
        cx: &Cx<'_>,
        command: Command,
        pages: &[NamedPage],
        body: impl FnOnce(&mut Psp) -> Result<R, FwStatus>,
    ) -> Result<R, PspFail> {
        let mut psp = self.psp.lock(cx);
        cx.note("firmware", command.name());
        if psp.is_dead {
            return Err(PspFail::Dead);
        }
        if let Some(fail) = psp.fails(command) {
            psp.is_dead = fail == PspFail::NoAnswer;
            return Err(fail);
        }
        if psp.initialized != command.needs_init() && command != Command::PlatformStatus {
            return Err(FwStatus::InvalidPlatformState.into());
        }
        let hull = hull(pages);
        if let Some((first, count)) = hull {
            self.point(cx, Access::Rmw, first, count);
        }
        // R18, the other side: a page that is marked cannot be given away while the command runs.
        let marks = self.mark(pages)?;
        if let Some((first, count)) = hull {
            self.contend(cx, first, count);
        }
        let result = body(&mut psp);
        drop(marks);
        Ok(result?)
    }

    fn mark(&self, pages: &[NamedPage]) -> Result<Vec<RmpLock<'_>>, FwStatus> {
        let mut marks = Vec::new();
        for page in pages {
            let pfn = page.at.pfn();
            // What is not in the RMP, or not aligned, is refused by the command.
            if !page.size.is_aligned(pfn) || !self.covers(page) {
                continue;
            }
            let span = if page.size == RmpSize::Size2M { Span::Region } else { Span::Entry };
            marks.push(self.rmp.lock(pfn, span, Holder::Firmware).map_err(|_| FwStatus::InvalidPageState)?);
        }
        Ok(marks)
    }

    fn covers(&self, page: &NamedPage) -> bool {
        let pfn = page.at.pfn();
        if page.size == RmpSize::Size2M { self.rmp.covers_region(pfn) } else { self.rmp.covers(pfn) }
    }

    /// Whether there is a page of this size at the address.
    pub(super) fn check_address(&self, page: &NamedPage) -> Result<(), FwStatus> {
        let pfn = page.at.pfn();
        let is_real = |pfn| self.memory.phys().has_frame(pfn);
        let is_page = page.at.is_page_aligned() && page.size.is_aligned(pfn) && self.covers(page);
        if is_page && is_real(pfn) && is_real(pfn + (page.size.pages() - 1)) {
            Ok(())
        } else {
            Err(FwStatus::InvalidAddress)
        }
    }

    /// Whether the address of a context can be one.
    pub(super) fn check_gctx(&self, gctx: Spa) -> Result<(), FwStatus> {
        self.check_address(&NamedPage::small(gctx))
    }

    pub(super) fn check_size(&self, page: &NamedPage) -> Result<RmpEntry, FwStatus> {
        let entry = self.rmp.page(page.at.pfn());
        if entry.page_size == page.size { Ok(entry) } else { Err(FwStatus::InvalidPageSize) }
    }

    /// The entry of a page of a guest, if its size, its owner and its state are these.
    pub(super) fn check_page(&self, page: &NamedPage, asid: Asid, states: &[PageState]) -> Result<RmpEntry, FwStatus> {
        let entry = self.check_size(page)?;
        if entry.assigned && entry.asid != Asid::HOST && entry.asid != asid {
            return Err(FwStatus::InvalidPageOwner);
        }
        self.check_state(page, states)?;
        Ok(entry)
    }

    /// SNP-INV-013: what the firmware writes is in a state that lets it.
    pub(super) fn check_state(&self, page: &NamedPage, states: &[PageState]) -> Result<(), FwStatus> {
        let is_in = self.rmp.state(page.at.pfn()).is_some_and(|state| states.contains(&state));
        if is_in { Ok(()) } else { Err(FwStatus::InvalidPageState) }
    }

    /// The RMP's own pages are the firmware's, but for nobody to name.
    pub(super) fn check_no_rmp_page(&self, page: &NamedPage) -> Result<(), FwStatus> {
        if self.rmp.layout().is_rmp_page(page.at.pfn()) { Err(FwStatus::InvalidAddress) } else { Ok(()) }
    }

    /// A page of 4 KiB that the firmware may write its answer to.
    pub(super) fn check_firmware_page(&self, page: &NamedPage) -> Result<(), FwStatus> {
        self.check_no_rmp_page(page)?;
        self.check_size(page)?;
        self.check_state(page, &[PageState::Firmware])
    }
}

/// From the first to the last frame of the pages. What lies between is announced too: an operation has one range.
fn hull(pages: &[NamedPage]) -> Option<(Pfn, u64)> {
    let first = pages.iter().map(|page| page.at.pfn().0).min()?;
    let end = pages.iter().map(|page| page.at.pfn().0 + page.size.pages()).max()?;
    Some((Pfn(first), end - first))
}
