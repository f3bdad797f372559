//! The checks that leaves have in common, in their order, and the walk of a Secure EPT.

use super::leaf::Leaf;
use super::lock::{Denied, Held, LockId, Mode, Side, Slot};
use super::machine::{Injected, State};
use super::mutants;
use super::pamt::{PageType, PamtAt};
use super::sept::{SeptEntry, SeptState};
use super::status::{OperandId, SeamFail, Seamcall, StatusName};
use super::td::{Lifecycle, SEPT_ROOT};
use super::transitions::{Cell, HostOp, Tracking};
use super::types::{Hkid, Hpa, PageSize, SeptInfo};
use sim_kernel::Pfn;
use sim_mmu::{Gfn, Gpa, Level};

/// Where a walk ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    pub(super) slot: Slot,
    pub(super) level: Level,
    pub(super) entry: SeptEntry,
}

/// An entry that a leaf is about, locked where the leaf locks it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) slot: Slot,
    pub(super) level: Level,
    pub(super) entry: SeptEntry,
    pub(super) state: SeptState,
    pub(super) gpa: Gpa,
}

impl Found {
    /// A failure with what stands in the entry.
    pub(super) fn fail(&self, name: StatusName) -> SeamFail {
        SeamFail::entry(name, self.entry.details(self.level))
    }

    /// The page of a leaf.
    pub(super) fn page(&self) -> PamtAt {
        let size = PageSize::of_level(self.level).expect("there are no leaves above 1 GiB");
        PamtAt { size, base: self.entry.pfn_at(self.level) }
    }

    /// The page whose metadata has the epoch of the entry's last BLOCK: of a table, the table's.
    pub(super) fn metadata(&self) -> PamtAt {
        if self.entry.is_leaf() { self.page() } else { PamtAt { size: PageSize::Size4K, base: self.entry.pfn() } }
    }
}

impl State {
    /// A TD consumed poison: it is fatal (TDX-INV-023).
    pub(super) fn consume(&mut self, tdr: Pfn) -> SeamFail {
        self.td_mut(tdr).fatal = true;
        StatusName::TdFatal.into()
    }

    /// The TD of an operand: its page is a TDR, and locked.
    pub(super) fn open_tdr(&mut self, held: &mut Held<'_>, leaf: Leaf, tdr: Hpa, operand: OperandId) -> Seamcall<Pfn> {
        let mode = leaf.locks().tdr.expect("the leaf has a TD");
        Ok(self.lock_page(held, tdr, PageType::Tdr, mode, operand)?.base)
    }

    /// Whether a TD can be used at all.
    pub(super) fn check_usable(&self, tdr: Pfn) -> Seamcall<()> {
        let td = self.td(tdr);
        if td.fatal {
            return Err(StatusName::TdFatal.into());
        }
        if td.lifecycle != Lifecycle::KeysConfigured {
            return Err(StatusName::TdKeysNotConfigured.into());
        }
        if td.tdcx.len() < self.config.tdcs_pages.0 as usize {
            return Err(StatusName::TdcsNotAllocated.into());
        }
        Ok(())
    }

    /// The state of a TD that is locked already: usable, and the leaf is allowed.
    pub(super) fn check_state(&mut self, held: &mut Held<'_>, leaf: Leaf, tdr: Pfn) -> Seamcall<()> {
        self.check_usable(tdr)?;
        let busy = SeamFail::new(StatusName::OperandBusy, OperandId::OP_STATE);
        if self.happens(Injected::Busy(leaf)) {
            return Err(busy);
        }
        if let Some(mode) = leaf.locks().op_state {
            self.take(held, LockId::OpState(tdr), mode).map_err(|_| busy)?;
        }
        if !leaf.is_allowed_in(self.td(tdr).op_state) {
            return Err(StatusName::OpStateIncorrect.into());
        }
        Ok(())
    }

    /// Steps 2 to 10: the TD of a leaf, usable, in a state in which the leaf is allowed.
    pub(super) fn open_td(&mut self, held: &mut Held<'_>, leaf: Leaf, tdr: Hpa, operand: OperandId) -> Seamcall<Pfn> {
        let tdr = self.open_tdr(held, leaf, tdr, operand)?;
        self.check_state(held, leaf, tdr)?;
        Ok(tdr)
    }

    fn take_tree(&mut self, held: &mut Held<'_>, leaf: Leaf, tdr: Pfn) -> Seamcall<()> {
        let Some(mode) = leaf.locks().tree else { return Ok(()) };
        let is_range = matches!(leaf, Leaf::MemRangeBlock | Leaf::MemRangeUnblock);
        let mode = if is_range && self.is_off(mutants::TREE_LOCK) { Mode::Shared } else { mode };
        let busy = SeamFail::new(StatusName::OperandBusy, OperandId::SEPT_TREE);
        self.take(held, LockId::Tree(tdr), mode).map_err(|_| busy)
    }

    fn lock_entry(&mut self, held: &mut Held<'_>, leaf: Leaf, found: &Found) -> Seamcall<()> {
        if !leaf.locks().entry {
            return Ok(());
        }
        let taken = self.take(held, LockId::Entry(found.slot), Mode::Exclusive);
        taken.map_err(|_| found.fail(StatusName::OperandBusy))
    }

    fn found(&mut self, tdr: Pfn, walk: Walk, gpa: Gpa) -> Seamcall<Found> {
        // An entry in no state is one that the host wrote over, in a machine without integrity.
        let Some(state) = walk.entry.state() else { return Err(self.consume(tdr)) };
        Ok(Found { slot: walk.slot, level: walk.level, entry: walk.entry, state, gpa })
    }

    /// Steps 11 to 16: the entry at exactly the level of the operand. `highest`: `None` for all levels that the TD has.
    pub(super) fn locate(
        &mut self,
        held: &mut Held<'_>,
        leaf: Leaf,
        tdr: Pfn,
        info: SeptInfo,
        lowest: Level,
        highest: Option<Level>,
    ) -> Seamcall<Found> {
        let invalid = SeamFail::new(StatusName::OperandInvalid, OperandId::RCX);
        let (root, gpaw) = (self.td(tdr).root_level(), self.td(tdr).gpaw());
        let in_range = |level: &Level| (lowest..=highest.unwrap_or(root)).contains(level);
        let level = info.level().filter(in_range).filter(|_| info.is_clean()).ok_or(invalid)?;
        let gpa = info.gpa();
        if !gpa.gfn().is_aligned(level) || !gpaw.is_private(gpa) {
            return Err(invalid);
        }
        self.take_tree(held, leaf, tdr)?;
        let walk = self.walk_for(tdr, gpa.gfn(), level)?;
        let found = self.found(tdr, walk, gpa)?;
        if walk.level != level {
            return Err(found.fail(StatusName::EptWalkFailed));
        }
        self.lock_entry(held, leaf, &found)?;
        Ok(found)
    }

    /// As [`State::locate`], for leaves that want the page that contains an address, of whatever size: EPT_ENTRY_NOT_PRESENT where there is none.
    pub(super) fn locate_page(
        &mut self,
        held: &mut Held<'_>,
        leaf: Leaf,
        tdr: Pfn,
        gpa: Gpa,
        op: HostOp,
    ) -> Seamcall<Found> {
        self.take_tree(held, leaf, tdr)?;
        if !self.td(tdr).gpaw().is_private(gpa) {
            return Err(SeamFail::new(StatusName::OperandInvalid, OperandId::RCX));
        }
        let walk = self.walk_for(tdr, gpa.gfn(), Level::L4K)?;
        let found = self.found(tdr, walk, gpa)?;
        if !found.entry.is_leaf() || !found.entry.is_walkable() {
            return Err(found.fail(StatusName::EptEntryNotPresent));
        }
        self.lock_entry(held, leaf, &found)?;
        match op.cell(found.state) {
            // An accessible page that is not MAPPED is refused without an operand.
            Cell::Refused(name @ StatusName::EptEntryNotPresent) => Err(name.into()),
            Cell::Refused(name) => Err(found.fail(name)),
            Cell::To(..) => Ok(found),
        }
    }

    /// Step 17: the cell of the table of transitions.
    pub(super) fn transition(&self, op: HostOp, found: &Found) -> Seamcall<(SeptState, Tracking)> {
        match op.cell(found.state) {
            Cell::Refused(name) => Err(found.fail(name)),
            Cell::To(to, tracking) => Ok((to, tracking)),
        }
    }

    /// Step 19: what the cell asks of TLBs, while the TD tracks them. `operand` is what TLB_TRACKING_NOT_DONE names.
    pub(super) fn check_tracking(
        &self,
        tdr: Pfn,
        tracking: Tracking,
        found: &Found,
        operand: OperandId,
    ) -> Seamcall<()> {
        let td = self.td(tdr);
        if !td.op_state.tracks() {
            return Ok(());
        }
        match tracking {
            Tracking::Blocked if !self.is_off(mutants::BLOCKED) => Err(found.fail(StatusName::GpaRangeNotBlocked)),
            Tracking::Tracked if !self.is_off(mutants::TRACKED) => {
                let bepoch = self.pamt.get(found.metadata()).bepoch;
                if td.epoch.is_tracked(bepoch) {
                    return Ok(());
                }
                Err(SeamFail::new(StatusName::TlbTrackingNotDone, operand))
            }
            _ => Ok(()),
        }
    }

    /// What is left where something was removed: in a TD that is being imported, a mark that there was something.
    pub(super) fn removed_state(&self, tdr: Pfn, to: SeptState) -> SeptState {
        if to == SeptState::Free && self.td(tdr).op_state.is_import() { SeptState::Removed } else { to }
    }

    /// The KeyID of a TD's memory.
    pub(super) fn hkid(&self, tdr: Pfn) -> Hkid {
        self.td(tdr).hkid
    }

    fn entry_at(&self, tdr: Pfn, slot: Slot) -> Result<SeptEntry, ()> {
        self.memory.word(self.hkid(tdr), slot.table, slot.index).map(SeptEntry).map_err(|_| ())
    }

    /// Walks the Secure EPT down to a level, or to where it ends. Fails if it reads poison.
    pub(super) fn walk(&self, tdr: Pfn, gfn: Gfn, to: Level) -> Result<Walk, ()> {
        let td = self.td(tdr);
        let mut level = td.root_level();
        let mut table = td.tdcx.get(SEPT_ROOT).copied().ok_or(())?;
        loop {
            let slot = Slot { table, index: gfn.index(level) };
            let entry = self.entry_at(tdr, slot)?;
            if level == to || !entry.is_open_table() || !self.memory.has_frame(entry.pfn()) {
                return Ok(Walk { slot, level, entry });
            }
            table = entry.pfn();
            level = level.down().expect("the walk ends at the level or above");
        }
    }

    /// As [`State::walk`], for a leaf: poison makes the TD fatal.
    pub(super) fn walk_for(&mut self, tdr: Pfn, gfn: Gfn, to: Level) -> Seamcall<Walk> {
        self.walk(tdr, gfn, to).map_err(|()| self.consume(tdr))
    }

    /// An entry of a table that is in use.
    pub(super) fn child(&mut self, tdr: Pfn, slot: Slot) -> Seamcall<SeptEntry> {
        self.entry_at(tdr, slot).map_err(|()| self.consume(tdr))
    }

    fn raw_entry(&self, slot: Slot) -> SeptEntry {
        SeptEntry(self.memory.phys().peek_u64(slot.table, slot.index))
    }

    /// Writes an entry. If the host wrote over its line, that is consumed poison: the TD is fatal, and the line stays.
    fn write_entry(&mut self, slot: Slot, entry: SeptEntry) {
        let table = self.pamt.get(PamtAt { size: PageSize::Size4K, base: slot.table });
        // A table that was removed has no entries any more.
        let owner = table.owner.filter(|_| matches!(table.page_type, PageType::Ept | PageType::Tdcx));
        let Some(tdr) = owner.filter(|tdr| self.tds.contains_key(tdr)) else { return };
        match self.entry_at(tdr, slot) {
            Ok(_) => self.memory.set_word(slot.table, slot.index, entry.0),
            Err(()) => self.td_mut(tdr).fatal = true,
        }
    }

    /// Replaces an entry, whose lock stays as it is.
    pub(super) fn set_entry(&mut self, slot: Slot, entry: SeptEntry) {
        let old = self.raw_entry(slot);
        self.write_entry(slot, entry.unlocked().locked(old.is_locked()).prioritised(old.has_host_priority()));
    }

    /// As [`State::set_entry`], but the host's priority is forgotten: what ACCEPT of module 1.5.01 does when it is done.
    pub(super) fn set_entry_without_priority(&mut self, slot: Slot, entry: SeptEntry) {
        self.write_entry(slot, entry.unlocked().locked(self.raw_entry(slot).is_locked()));
    }

    /// The mark that the host wants the entry, without its lock: for [`super::migration`].
    pub(super) fn set_entry_priority(&mut self, slot: Slot) {
        self.write_entry(slot, self.raw_entry(slot).prioritised(true));
    }

    pub(super) fn take_entry(&mut self, slot: Slot, side: Side) -> Result<(), Denied> {
        let entry = self.raw_entry(slot);
        let (denied, new) = match side {
            Side::Host if entry.is_locked() => (Some(Denied::Busy), entry.prioritised(true)),
            Side::Host => (None, entry.locked(true).prioritised(false)),
            Side::Guest if entry.is_locked() => (Some(Denied::Busy), entry),
            Side::Guest if entry.has_host_priority() => (Some(Denied::HostPriority), entry),
            Side::Guest => (None, entry.locked(true)),
        };
        self.write_entry(slot, new);
        denied.map_or(Ok(()), Err)
    }

    pub(super) fn release_entry(&mut self, slot: Slot) {
        self.write_entry(slot, self.raw_entry(slot).locked(false));
    }
}
