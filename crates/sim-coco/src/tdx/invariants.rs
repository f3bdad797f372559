//! What must hold of the module whenever no leaf is in the middle of a step, by the number of the specification. For checkers: nothing here announces a
//! scheduling point.
//!
//! Held elsewhere, at the step that could break them: TDX-INV-010 (every change of a mapping asks [`HostOp::cell`](super::HostOp::cell)), -012 as far as states go (`Td::set_lifecycle`),
//! -023 (`State::consume`). TDX-INV-014 is of two states: the tests compare [`Tdx::snapshot`] before and after what fails. -015 to -022 are KVM's.

use super::keys::HkidState;
use super::lock::LockId;
use super::machine::{State, Tdx};
use super::pamt::{PageType, PamtAt};
use super::sept::{SeptEntry, SeptState};
use super::td::{Lifecycle, SEPT_ROOT, Td};
use super::tlb::TlbEntry;
use super::types::{Lp, PageSize};
use super::vp::VcpuState;
pub use crate::violation::Violation;
use sim_kernel::Pfn;
use sim_mmu::{Gfn, Level, PT_ENTRIES};
use std::collections::{BTreeMap, BTreeSet};

/// The check fails.
fn broken(id: &'static str, what: impl Into<String>) -> Result<(), Violation> {
    Err(crate::violation::broken(id, what))
}

/// An entry of a TD's tables that is not free, and what it maps.
struct Mapped {
    tdr: Pfn,
    gfn: Gfn,
    level: Level,
    entry: SeptEntry,
}

/// What the Secure EPTs say.
struct View {
    /// Entries that are not free.
    entries: Vec<Mapped>,
    /// TDs whose tables can be read: they have them, and their key, and nobody wrote over them.
    readable: BTreeSet<Pfn>,
}

fn entries_of(state: &State, tdr: Pfn, td: &Td) -> Option<Vec<Mapped>> {
    let has_key = (Lifecycle::KeysConfigured..=Lifecycle::Blocked).contains(&td.lifecycle);
    let root = td.tdcx.get(SEPT_ROOT).filter(|_| has_key && !td.fatal)?;
    let mut found = Vec::new();
    let mut tables = vec![(*root, td.root_level(), Gfn(0))];
    while let Some((table, level, base)) = tables.pop() {
        for index in 0..PT_ENTRIES {
            let entry = SeptEntry(state.memory.word(td.hkid, table, index).ok()?).unlocked();
            if matches!(entry.state()?, SeptState::Free | SeptState::Removed) {
                continue;
            }
            let gfn = Gfn(base.0 + index as u64 * level.span());
            found.push(Mapped { tdr, gfn, level, entry });
            if let Some(below) = level.down().filter(|_| !entry.is_leaf() && state.memory.has_frame(entry.pfn())) {
                tables.push((entry.pfn(), below, gfn));
            }
        }
    }
    Some(found)
}

impl Tdx {
    /// The entries of a TD's Secure EPT that are not FREE, without their locks; none while it has no tables that can be read: before its key is configured, after
    /// that is gone, and once the TD is fatal. In no order.
    pub fn peek_sept_entries(&self, tdr: Pfn) -> Vec<(Gfn, Level, SeptEntry)> {
        let state = self.state.lock();
        let found = state.tds.get(&tdr).and_then(|td| entries_of(&state, tdr, td)).unwrap_or_default();
        found.into_iter().map(|mapped| (mapped.gfn, mapped.level, mapped.entry)).collect()
    }
}

fn view(state: &State) -> View {
    let mut view = View { entries: Vec::new(), readable: BTreeSet::new() };
    for (tdr, td) in &state.tds {
        if let Some(found) = entries_of(state, *tdr, td) {
            view.entries.extend(found);
            view.readable.insert(*tdr);
        }
    }
    view
}

fn leaves(all: &[Mapped]) -> impl Iterator<Item = &Mapped> {
    all.iter().filter(|mapped| mapped.entry.is_leaf())
}

/// TDX-INV-001: no frame is in two pages, whatever their types.
///
/// # Errors
/// The first that is.
fn tdx_inv_001(state: &State) -> Result<(), Violation> {
    let mut used = BTreeMap::new();
    let pages = state.pamt.entries().filter(|(_, entry)| !matches!(entry.page_type, PageType::Nda | PageType::Pamt));
    let given = state.pamt.nodes.values().flat_map(|node| node.pages);
    let given = given.map(|pfn| (PamtAt { size: PageSize::Size4K, base: pfn }, PageType::Pamt));
    for (at, what) in pages.map(|(at, entry)| (at, entry.page_type)).chain(given) {
        if let Some(hole) = state.pamt.reserved_in(at).filter(|_| what != PageType::Rsvd) {
            return broken("TDX-INV-001", format!("{hole:?} is {what:?} and reserved"));
        }
        for i in 0..at.size.pages() {
            if let Some(other) = used.insert(at.base + i, what) {
                return broken("TDX-INV-001", format!("{:?} is {what:?} and {other:?}", at.base + i));
            }
        }
    }
    let all = view(state).entries;
    let mut mapped = BTreeMap::new();
    for leaf in leaves(&all) {
        let first = leaf.entry.pfn_at(leaf.level);
        for i in 0..leaf.level.span() {
            if let Some(other) = mapped.insert(first + i, leaf.gfn) {
                return broken("TDX-INV-001", format!("{:?} is at {:?} and at {other:?}", first + i, leaf.gfn));
            }
        }
    }
    Ok(())
}

/// TDX-INV-002: a page is a TD's memory if and only if one leaf of the TD maps it, in the same size.
///
/// # Errors
/// The first for which it is otherwise.
fn tdx_inv_002(state: &State) -> Result<(), Violation> {
    let View { entries: all, readable } = view(state);
    let mut mapped = BTreeMap::new();
    for leaf in leaves(&all) {
        let size = PageSize::of_level(leaf.level).map_or(u8::MAX, |size| size as u8);
        mapped.insert((leaf.entry.pfn_at(leaf.level), size), leaf.tdr);
    }
    let regular = state.pamt.entries().filter(|(_, entry)| entry.page_type == PageType::Reg);
    let regular = regular.filter_map(|(at, entry)| Some(((at.base, at.size as u8), entry.owner?)));
    let regular: BTreeMap<_, _> = regular.filter(|(_, tdr)| readable.contains(tdr)).collect();
    if mapped == regular {
        return Ok(());
    }
    let odd = mapped
        .iter()
        .find(|(page, tdr)| regular.get(page) != Some(tdr))
        .or_else(|| regular.iter().find(|(page, tdr)| mapped.get(page) != Some(tdr)));
    broken("TDX-INV-002", format!("{odd:?} is mapped and no memory of the TD, or the reverse"))
}

/// TDX-INV-003: a page is a table if and only if one entry of the TD points to it.
///
/// # Errors
/// The first for which it is otherwise.
fn tdx_inv_003(state: &State) -> Result<(), Violation> {
    let View { entries: all, readable } = view(state);
    let mut tables = BTreeMap::new();
    for mapped in all.iter().filter(|mapped| !mapped.entry.is_leaf()) {
        if tables.insert(mapped.entry.pfn(), mapped.tdr).is_some() {
            return broken("TDX-INV-003", format!("two entries point to {:?}", mapped.entry.pfn()));
        }
    }
    let pages = state.pamt.entries().filter(|(_, entry)| entry.page_type == PageType::Ept);
    let pages = pages.filter_map(|(at, entry)| Some((at.base, entry.owner?)));
    let pages: BTreeMap<_, _> = pages.filter(|(_, tdr)| readable.contains(tdr)).collect();
    if tables == pages {
        Ok(())
    } else {
        broken("TDX-INV-003", format!("entries point to {tables:?}, tables are {pages:?}"))
    }
}

/// TDX-INV-004: a TD's count of pages is the number of frames that it owns.
///
/// # Errors
/// The first that is not.
fn tdx_inv_004(state: &State) -> Result<(), Violation> {
    let mut owned: BTreeMap<Pfn, u64> = BTreeMap::new();
    for (at, entry) in state.pamt.entries() {
        if let Some(tdr) =
            entry.owner.filter(|_| !matches!(entry.page_type, PageType::Nda | PageType::Rsvd | PageType::Pamt))
        {
            *owned.entry(tdr).or_default() += at.size.pages();
        }
    }
    for (tdr, td) in &state.tds {
        let owns = owned.remove(tdr).unwrap_or(0);
        if owns != td.chldcnt {
            return broken("TDX-INV-004", format!("{tdr:?} counts {} pages and owns {owns}", td.chldcnt));
        }
    }
    if owned.is_empty() { Ok(()) } else { broken("TDX-INV-004", format!("pages of no TD: {owned:?}")) }
}

/// TDX-INV-005: nothing is in use inside a large page that is in use.
///
/// # Errors
/// The first that is.
fn tdx_inv_005(state: &State) -> Result<(), Violation> {
    let used = |entry: &super::PamtEntry| !matches!(entry.page_type, PageType::Nda | PageType::Pamt);
    for (at, entry) in state.pamt.entries().filter(|(at, entry)| at.size > PageSize::Size4K && used(entry)) {
        let inner = state
            .pamt
            .entries()
            .find(|(other, entry)| other.size < at.size && used(entry) && at.size.base(other.base) == at.base);
        let inner = inner.map(|(inner, _)| inner.base).or_else(|| state.pamt.reserved_in(at));
        if let Some(inner) = inner {
            return broken("TDX-INV-005", format!("{inner:?} is in use inside {at:?}, which is {:?}", entry.page_type));
        }
    }
    Ok(())
}

/// A translation of private memory that a vCPU can still use.
struct Usable {
    lp: Lp,
    tdr: Pfn,
    gfn: Gfn,
    entry: TlbEntry,
}

impl Usable {
    fn has(&self, frame: Pfn) -> bool {
        (self.entry.pfn.0..self.entry.pfn.0 + self.entry.level.span()).contains(&frame.0)
    }
}

/// What vCPUs can still use: those that are in their TDs, and those that would be entered without a flush. What else a processor remembers is flushed before
/// anybody looks at it.
fn usable(state: &State) -> Vec<Usable> {
    let mut found = Vec::new();
    for (tdvpr, vp) in &state.vps {
        let Some(td) = state.tds.get(&vp.tdr).filter(|td| td.lifecycle == Lifecycle::KeysConfigured && !td.fatal)
        else {
            continue;
        };
        let Some((lp, processor)) = vp.assoc.and_then(|lp| Some((lp, state.lps.get(&lp)?))) else { continue };
        let keeps = vp.vcpu_epoch == td.epoch.epoch && processor.last == Some(*tdvpr);
        if vp.state != VcpuState::Active && !keeps {
            continue;
        }
        let of_td = processor.tlb.entries().filter(|(hkid, _, entry)| *hkid == td.hkid && !entry.shared);
        found.extend(of_td.map(|(_, gfn, entry)| Usable { lp, tdr: vp.tdr, gfn, entry }));
    }
    found
}

/// TDX-INV-006: a translation that a vCPU can use leads, with each of its frames, to memory of its TD, which the TD has there. (A page that is blocked is there
/// still: no page goes before its translations have gone.)
///
/// # Errors
/// The first that does not.
fn tdx_inv_006(state: &State) -> Result<(), Violation> {
    let View { entries: all, readable } = view(state);
    let placed: BTreeMap<_, _> = leaves(&all).map(|leaf| ((leaf.tdr, leaf.gfn), leaf)).collect();
    for Usable { lp, tdr, gfn, entry } in usable(state) {
        let mut i = 0;
        while i < entry.level.span() {
            let frame = entry.pfn + i;
            let (page, metadata) = state.pamt.of_frame(frame);
            if metadata.page_type != PageType::Reg || metadata.owner != Some(tdr) {
                let (what, owner) = (metadata.page_type, metadata.owner);
                return broken("TDX-INV-006", format!("{lp:?} translates {gfn:?} to {frame:?}, {what:?} of {owner:?}"));
            }
            let at = Gfn(gfn.0 + i);
            let leaf = placed.range(..=(tdr, at)).next_back().map(|(_, leaf)| *leaf);
            let leaf = leaf.filter(|leaf| leaf.tdr == tdr && leaf.gfn == at.round_down(leaf.level));
            let is_there = leaf.is_some_and(|leaf| leaf.entry.pfn_at(leaf.level) + (at.0 - leaf.gfn.0) == frame);
            if readable.contains(&tdr) && !is_there {
                return broken("TDX-INV-006", format!("{lp:?} translates {at:?} to {frame:?}, which is not there"));
            }
            // To the next page, or the next leaf.
            let rest = page.base.0 + page.size.pages() - frame.0;
            i += leaf.map_or(rest, |leaf| rest.min(leaf.gfn.0 + leaf.level.span() - at.0));
        }
    }
    Ok(())
}

/// TDX-INV-007: what a guest may read was written by the module or by the guest.
///
/// # Errors
/// The first page that was not.
fn tdx_inv_007(state: &State) -> Result<(), Violation> {
    let all = view(state).entries;
    for leaf in leaves(&all).filter(|leaf| leaf.entry.is_walkable()) {
        let first = leaf.entry.pfn_at(leaf.level);
        if let Some(i) = (0..leaf.level.span()).find(|i| !state.memory.is_defined(first + *i)) {
            return broken("TDX-INV-007", format!("{:?} at {:?} was never written for the TD", first + i, leaf.gfn));
        }
    }
    Ok(())
}

/// TDX-INV-008: no permission, and no translation that a vCPU can use, for what is pending.
///
/// # Errors
/// The first that there is.
fn tdx_inv_008(state: &State) -> Result<(), Violation> {
    let all = view(state).entries;
    let usable = usable(state);
    let pending = leaves(&all).filter(|leaf| leaf.entry.state().is_some_and(SeptState::is_pending));
    for leaf in pending {
        let first = leaf.entry.pfn_at(leaf.level);
        let overlaps = |to: &Usable| to.has(first) || (first.0..first.0 + leaf.level.span()).contains(&to.entry.pfn.0);
        if leaf.entry.is_walkable() || usable.iter().any(overlaps) {
            return broken("TDX-INV-008", format!("{:?} is pending and can be read", leaf.gfn));
        }
    }
    Ok(())
}

/// TDX-INV-009: epochs. No page was blocked in one to come; vCPUs are counted where they entered, which is this epoch or the one before.
///
/// # Errors
/// The first that is otherwise.
fn tdx_inv_009(state: &State) -> Result<(), Violation> {
    for (tdr, td) in state.tds.iter().filter(|(_, td)| !td.fatal) {
        let mut counted = [0; 2];
        for vp in state.vps.values().filter(|vp| vp.tdr == *tdr && vp.counted) {
            counted[(vp.vcpu_epoch & 1) as usize] += 1;
            if vp.vcpu_epoch + 1 < td.epoch.epoch || vp.vcpu_epoch > td.epoch.epoch {
                return broken(
                    "TDX-INV-009",
                    format!("a vCPU of epoch {} is inside in epoch {}", vp.vcpu_epoch, td.epoch.epoch),
                );
            }
        }
        if counted != td.epoch.refcount {
            return broken("TDX-INV-009", format!("{tdr:?} counts {:?}, inside are {counted:?}", td.epoch.refcount));
        }
        let blocked = state
            .pamt
            .entries()
            .filter(|(_, entry)| matches!(entry.page_type, PageType::Reg | PageType::Ept) && entry.owner == Some(*tdr));
        if let Some((at, entry)) = blocked.into_iter().find(|(_, entry)| entry.bepoch > td.epoch.epoch) {
            return broken(
                "TDX-INV-009",
                format!("{at:?} was blocked in epoch {} of {}", entry.bepoch, td.epoch.epoch),
            );
        }
    }
    Ok(())
}

/// TDX-INV-011, while no leaf runs: the locks that are held are those of vCPUs in their TDs, each as often as there are such vCPUs; and no entry is locked.
///
/// # Errors
/// The first lock for which it is otherwise.
fn tdx_inv_011(state: &State) -> Result<(), Violation> {
    let mut readers: BTreeMap<LockId, u16> = BTreeMap::new();
    for (tdvpr, vp) in state.vps.iter().filter(|(_, vp)| vp.state == VcpuState::Active) {
        let of_vcpu = PageSize::ALL.map(|size| LockId::Pamt(size, size.base(*tdvpr)));
        for id in of_vcpu.into_iter().chain([LockId::Pamt(PageSize::Size4K, vp.tdr)]) {
            *readers.entry(id).or_default() += 1;
        }
    }
    for (id, lock) in state.held_locks() {
        if lock.exclusive || readers.remove(&id) != Some(lock.readers) {
            return broken("TDX-INV-011", format!("{id:?} is held: {lock:?}"));
        }
    }
    if let Some((id, _)) = readers.first_key_value() {
        return broken("TDX-INV-011", format!("{id:?} is not held, and a vCPU is inside"));
    }
    for (table, entries) in state.tables() {
        if let Some((index, _)) = entries.iter().find(|(_, word)| SeptEntry(*word).is_locked()) {
            return broken("TDX-INV-011", format!("entry {index} of the table {table:?} is locked"));
        }
    }
    Ok(())
}

/// TDX-INV-012: an HKID has a TD only if every package has written back since the last one was flushed.
///
/// # Errors
/// The first that has one all the same.
fn tdx_inv_012(state: &State) -> Result<(), Violation> {
    for (hkid, _) in state.kot.entries.iter().filter(|(_, of)| **of == HkidState::Assigned) {
        if let Some(packages) = state.kot.unwritten.get(hkid).filter(|packages| **packages != 0) {
            return broken("TDX-INV-012", format!("{hkid:?} has a TD; packages {packages:#b} have not written back"));
        }
    }
    Ok(())
}

/// TDX-INV-013: MRTD is that of the PAGE.ADD and MR.EXTEND that were carried out, and final when those are.
///
/// # Errors
/// The first TD that is measured to be something else.
fn tdx_inv_013(state: &State) -> Result<(), Violation> {
    for (tdr, td) in &state.tds {
        let (is, should_be) = (&td.measurement, &td.carried_out);
        if is.so_far() != should_be.so_far() || is.mrtd().is_some() != should_be.mrtd().is_some() {
            return broken("TDX-INV-013", format!("MRTD of {tdr:?} is not that of what was added to it and measured"));
        }
    }
    Ok(())
}

/// TDX-INV-024: nothing was handed over while the host's caches had lines of it.
///
/// # Errors
/// The first page that was.
fn tdx_inv_024(state: &State) -> Result<(), Violation> {
    match state.memory.handed_over_dirty().next() {
        None => Ok(()),
        Some(pfn) => broken("TDX-INV-024", format!("{pfn:?} was handed over with lines of the host in a cache")),
    }
}

/// An invariant as a function.
type Check = fn(&State) -> Result<(), Violation>;

/// All of them, by number.
const ALL: [(&str, Check); 13] = [
    ("TDX-INV-001", tdx_inv_001),
    ("TDX-INV-002", tdx_inv_002),
    ("TDX-INV-003", tdx_inv_003),
    ("TDX-INV-004", tdx_inv_004),
    ("TDX-INV-005", tdx_inv_005),
    ("TDX-INV-006", tdx_inv_006),
    ("TDX-INV-007", tdx_inv_007),
    ("TDX-INV-008", tdx_inv_008),
    ("TDX-INV-009", tdx_inv_009),
    ("TDX-INV-011", tdx_inv_011),
    ("TDX-INV-012", tdx_inv_012),
    ("TDX-INV-013", tdx_inv_013),
    ("TDX-INV-024", tdx_inv_024),
];

/// Numbers of the invariants that [`Tdx::check_invariants`] looks at.
pub const CHECKED: [&str; ALL.len()] = {
    let mut ids = [""; ALL.len()];
    let mut i = 0;
    while i < ALL.len() {
        ids[i] = ALL[i].0;
        i += 1;
    }
    ids
};

impl Tdx {
    /// Checks all of [`CHECKED`], while no leaf runs.
    ///
    /// # Errors
    /// The first that is broken.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        let state = self.state.lock();
        ALL.iter().try_for_each(|(_, check)| check(&state))
    }

    /// Checks those that hold also while leaves are between their locks and their changes: all but TDX-INV-011.
    ///
    /// # Errors
    /// The first that is broken.
    pub fn check_invariants_midway(&self) -> Result<(), Violation> {
        let state = self.state.lock();
        ALL.iter().filter(|(id, _)| *id != "TDX-INV-011").try_for_each(|(_, check)| check(&state))
    }

    /// Checks one, by its number; `None` if it is none of [`CHECKED`].
    pub fn check_invariant(&self, id: &str) -> Option<Result<(), Violation>> {
        let state = self.state.lock();
        ALL.iter().find(|(of, _)| *of == id).map(|(_, check)| check(&state))
    }
}

#[cfg(test)]
mod tests {
    use super::super::lock::{Held, Mode, Slot};
    use super::super::{Hkid, Hpa, Lp, Tdmr, TdxConfig};
    use super::*;
    use sim_kernel::mm::PhysMem;
    use sim_kernel::sched::Sim;
    use std::sync::Arc;

    /// TDX-INV-011 sees what a leaf does not give back: a lock that knows readers, one that does not, and that of an entry which is free.
    #[test]
    fn locks_that_nobody_gives_back() {
        Sim::sequential().solo(|cx| {
            let memory = Arc::new(PhysMem::new(cx, 1 << 20));
            let tdx = Tdx::new(cx, Arc::clone(&memory), TdxConfig::new(Tdmr::below(256)));
            tdx.bring_up(cx);
            let page = || Hpa::of(memory.alloc_zeroed().unwrap());
            let (seam, tdr) = (tdx.on(Lp(0)), page());
            seam.mng_create(cx, tdr, Hkid(33)).unwrap();
            seam.mng_key_config(cx, tdr).unwrap();
            for _ in 0..6 {
                seam.mng_addcx(cx, page(), tdr).unwrap();
            }
            let tdr = Pfn(tdr.0 >> 12);
            let root = tdx.state.lock().td(tdr).tdcx[SEPT_ROOT];
            let entry = LockId::Entry(Slot { table: root, index: 3 });
            let reader = LockId::Pamt(PageSize::Size4K, tdr);
            for (id, mode) in [(LockId::Kot, Mode::Exclusive), (reader, Mode::Shared), (entry, Mode::Exclusive)] {
                assert_eq!(tdx.check_invariants(), Ok(()));
                let mut held = Held::new(&tdx);
                tdx.state.lock().take(&mut held, id, mode).unwrap();
                assert_eq!(tdx.check_invariants().unwrap_err().id, "TDX-INV-011", "{id:?}");
                drop(held);
            }
            assert_eq!(tdx.check_invariants(), Ok(()));
        });
    }
}
