//! Accesses of a guest: private addresses through the Secure EPT and the TD's key, shared ones through the host's tables, both through what the processor
//! remembers.
//!
//! An access is two steps: the translation, and the bytes. Between them the vCPU is in its TD, so that nothing that waits for it can happen.

use super::enter::{GuestStop, InTd};
use super::exit::{EeqType, TdExit, qualification};
use super::machine::State;
use super::mutants;
use super::shared::SharedWalk;
use super::tlb::TlbEntry;
use super::types::{Gpaw, Hkid};
use super::vp::VeInfo;
use crate::AccessKind;
use sim_kernel::sched::Access;
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Gpa, Level};

/// What a private address comes to.
enum Private {
    Page(TlbEntry),
    Violation { eeq: EeqType, permitted: u64 },
    Pending,
    Poison,
}

impl State {
    fn translate_private(&self, tdr: Pfn, gpa: Gpa, kind: AccessKind) -> Private {
        let Ok(walk) = self.walk(tdr, gpa.gfn(), Level::L4K) else { return Private::Poison };
        let entry = walk.entry;
        let waits = entry.state().is_some_and(|state| state.is_acceptable());
        let usable = entry.is_leaf() && entry.is_walkable() && (kind != AccessKind::Write || entry.is_writable());
        if usable || waits && self.is_off(mutants::PENDING) {
            let writable = entry.is_writable() || waits;
            let pfn = entry.pfn_at(walk.level);
            return Private::Page(TlbEntry { pfn, level: walk.level, writable, shared: false });
        }
        if waits { Private::Pending } else { Private::Violation { eeq: EeqType::None, permitted: entry.0 & 7 } }
    }
}

impl InTd<'_> {
    /// A `#VE`, or `#DF` if the guest has not asked about the one before.
    pub(super) fn raise_ve(&self, state: &mut State, info: VeInfo) -> GuestStop {
        let vp = state.vp_mut(self.tdvpr);
        if vp.ve_info.is_some() {
            return GuestStop::DoubleFault;
        }
        vp.ve_info = Some(info);
        GuestStop::Ve(info)
    }

    fn private_page(
        &mut self,
        cx: &Cx<'_>,
        state: &mut State,
        gpa: Gpa,
        kind: AccessKind,
    ) -> Result<TlbEntry, GuestStop> {
        let hkid = state.hkid(self.tdr);
        let outcome = state.translate_private(self.tdr, gpa, kind);
        if let Private::Page(entry) = outcome {
            state.lp_mut(self.lp).tlb.fill(hkid, gpa.gfn(), entry);
            return Ok(entry);
        }
        state.lp_mut(self.lp).tlb.drop_address(hkid, gpa.gfn());
        let accessed = qualification(kind);
        Err(match outcome {
            Private::Page(_) => unreachable!("a page was used"),
            Private::Poison => GuestStop::Exit(self.machine_check(cx, state)),
            Private::Pending if !state.vp(self.tdvpr).pending_ve_disable => {
                self.raise_ve(state, VeInfo::ept_violation(accessed, gpa))
            }
            Private::Pending => {
                let exit = TdExit::violation(accessed, EeqType::Pending as u64, gpa);
                GuestStop::Exit(self.leave(state, exit, Some(gpa)))
            }
            Private::Violation { eeq, permitted } => {
                let exit = TdExit::violation(accessed | permitted << 3, eeq as u64, gpa);
                GuestStop::Exit(self.leave(state, exit, Some(gpa)))
            }
        })
    }

    fn shared_page(&mut self, cx: &Cx<'_>, gpa: Gpa, kind: AccessKind) -> Result<TlbEntry, GuestStop> {
        let tables = self.tdx.state.lock().vp(self.tdvpr).shared_ept.clone();
        let walk = tables.map_or(SharedWalk::Violation, |tables| tables.walk(cx, gpa, kind));
        // The walk may have announced steps of its own: this is a part of the last of them.
        if matches!(walk, SharedWalk::Mapped { .. }) {
            self.tdx.looks(cx)
        } else {
            self.tdx.changes(cx)
        }
        let mut state = self.tdx.state.lock();
        let hkid = state.hkid(self.tdr);
        let accessed = qualification(kind);
        match walk {
            SharedWalk::Mapped { pfn, level, writable } if writable || kind != AccessKind::Write => {
                let entry = TlbEntry { pfn, level, writable, shared: true };
                state.lp_mut(self.lp).tlb.fill(hkid, gpa.gfn(), entry);
                Ok(entry)
            }
            SharedWalk::Ve => Err(self.raise_ve(&mut state, VeInfo::ept_violation(accessed, gpa))),
            SharedWalk::Mapped { .. } | SharedWalk::Violation => {
                state.lp_mut(self.lp).tlb.drop_address(hkid, gpa.gfn());
                let permitted = if matches!(walk, SharedWalk::Mapped { .. }) { 5 } else { 0 };
                let exit = TdExit::violation(accessed | permitted << 3, 0, gpa);
                Err(GuestStop::Exit(self.leave(&mut state, exit, None)))
            }
        }
    }

    /// The translation of an address, from what the processor remembers or from the tables.
    ///
    /// # Errors
    /// Where the guest does not go on.
    ///
    /// # Panics
    /// If the vCPU has left its TD.
    #[track_caller]
    pub fn translate(&mut self, cx: &Cx<'_>, gpa: Gpa, kind: AccessKind) -> Result<TlbEntry, GuestStop> {
        self.instruction(cx, Access::Load)?;
        let mut state = self.tdx.state.lock();
        let gpaw = state.td(self.tdr).gpaw();
        let width = if gpaw == Gpaw::Bits48 { 48 } else { 52 };
        if gpa.0 >> width != 0 {
            return Err(GuestStop::PageFault);
        }
        let hkid = state.hkid(self.tdr);
        let known = state.lp_mut(self.lp).tlb.lookup(hkid, gpa.gfn());
        if let Some(entry) = known.filter(|entry| entry.writable || kind != AccessKind::Write) {
            return Ok(entry);
        }
        if gpaw.is_private(gpa) {
            return self.private_page(cx, &mut state, gpa, kind);
        }
        drop(state);
        self.shared_page(cx, gpa, kind)
    }

    /// Whose key an access goes through.
    fn key(&self, state: &State, entry: TlbEntry) -> Hkid {
        if entry.shared { Hkid::HOST } else { state.hkid(self.tdr) }
    }

    /// Reads (or fetches) bytes, which are in one page.
    ///
    /// # Errors
    /// Where the guest does not go on; poison is a machine check, and the TD fatal.
    ///
    /// # Panics
    /// If the bytes are in more than one page, or the vCPU has left its TD.
    #[track_caller]
    pub fn read(&mut self, cx: &Cx<'_>, gpa: Gpa, bytes: &mut [u8]) -> Result<(), GuestStop> {
        let entry = self.translate(cx, gpa, AccessKind::Read)?;
        let pfn = entry.frame(gpa.gfn());
        self.tdx.point_bytes(cx, Access::Load, pfn, gpa.offset(), bytes.len());
        let mut state = self.tdx.state.lock();
        let key = self.key(&state, entry);
        match state.memory.read(key, pfn, gpa.offset() as usize, bytes) {
            Ok(()) => Ok(()),
            Err(_) => Err(GuestStop::Exit(self.machine_check(cx, &mut state))),
        }
    }

    /// Writes bytes, which are in one page.
    ///
    /// # Errors
    /// As [`InTd::read`]; then nothing is written.
    ///
    /// # Panics
    /// As [`InTd::read`].
    #[track_caller]
    pub fn write(&mut self, cx: &Cx<'_>, gpa: Gpa, bytes: &[u8]) -> Result<(), GuestStop> {
        let entry = self.translate(cx, gpa, AccessKind::Write)?;
        let pfn = entry.frame(gpa.gfn());
        self.tdx.point_bytes(cx, Access::Rmw, pfn, gpa.offset(), bytes.len());
        let mut state = self.tdx.state.lock();
        let (key, package) = (self.key(&state, entry), state.package(self.lp));
        let stored = state.memory.store(key, package, pfn, gpa.offset() as usize, bytes);
        if entry.shared {
            // The host's caches are coherent with it, and so are its frames.
            state.memory.write_back_page(pfn, key);
        }
        match stored {
            Ok(()) => {
                self.tdx.wrote(cx, &state, pfn);
                Ok(())
            }
            Err(_) => Err(GuestStop::Exit(self.machine_check(cx, &mut state))),
        }
    }

    /// Replaces bytes, which are in one page, by a function of them, in one step: a store that reads first, as every store to private memory does, or a locked one.
    ///
    /// # Errors
    /// As [`InTd::write`].
    ///
    /// # Panics
    /// As [`InTd::read`].
    #[track_caller]
    pub fn modify(
        &mut self,
        cx: &Cx<'_>,
        gpa: Gpa,
        bytes: &mut [u8],
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), GuestStop> {
        let entry = self.translate(cx, gpa, AccessKind::Write)?;
        let (pfn, offset) = (entry.frame(gpa.gfn()), gpa.offset());
        self.tdx.point_bytes(cx, Access::Rmw, pfn, offset, bytes.len());
        let mut state = self.tdx.state.lock();
        let (key, package) = (self.key(&state, entry), state.package(self.lp));
        let modified = state.memory.read(key, pfn, offset as usize, bytes).and_then(|()| {
            change(bytes);
            state.memory.store(key, package, pfn, offset as usize, bytes)
        });
        if entry.shared {
            state.memory.write_back_page(pfn, key);
        }
        match modified {
            Ok(()) => {
                self.tdx.wrote(cx, &state, pfn);
                Ok(())
            }
            Err(_) => Err(GuestStop::Exit(self.machine_check(cx, &mut state))),
        }
    }

    /// As [`InTd::read`], eight bytes.
    ///
    /// # Errors
    /// As [`InTd::read`].
    #[track_caller]
    pub fn read_u64(&mut self, cx: &Cx<'_>, gpa: Gpa) -> Result<u64, GuestStop> {
        let mut bytes = [0; 8];
        self.read(cx, gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// As [`InTd::write`], eight bytes.
    ///
    /// # Errors
    /// As [`InTd::read`].
    #[track_caller]
    pub fn write_u64(&mut self, cx: &Cx<'_>, gpa: Gpa, value: u64) -> Result<(), GuestStop> {
        self.write(cx, gpa, &value.to_le_bytes())
    }
}
