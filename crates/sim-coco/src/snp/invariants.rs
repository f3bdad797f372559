//! What must hold of the machine whenever nothing is in the middle of a step, by the number of the specification. For checkers: nothing here announces a
//! scheduling point.
//!
//! Held elsewhere, at the step that could break them: SNP-INV-002 (the one write path of the host checks first), -012 and -013 (the firmware's
//! state tests), -015, -019, -022, -035, -039; -021 by the obligation [`InGuest`](super::InGuest). SNP-INV-026 holds because the count is computed. SNP-INV-027 and -028 are of the
//! cipher.

use super::entry::RmpEntry;
use super::firmware::AsidUse;
use super::machine::Snp;
use super::state::PageState;
use super::types::{Asid, RmpSize, head_of};
pub use crate::violation::Violation;
use crate::violation::broken;
use sim_kernel::{PAGES_PER_PMD, Pfn};
use sim_mmu::Level;
use std::collections::{BTreeMap, BTreeSet};

/// Every frame in a region where an entry was ever written.
fn frames(snp: &Snp) -> impl Iterator<Item = Pfn> {
    snp.rmp().written_regions().into_iter().flat_map(|head| (0..PAGES_PER_PMD).map(move |i| head + i))
}

/// SNP-INV-001: every entry is in a state that there is.
///
/// # Errors
/// The first that is not.
pub fn snp_inv_001(snp: &Snp) -> Result<(), Violation> {
    let wrong = frames(snp).find(|pfn| snp.rmp().state(*pfn).is_none());
    wrong.map_or(Ok(()), |pfn| Err(broken("SNP-INV-001", format!("{pfn:?} is in no state: {:?}", snp.rmp().page(pfn)))))
}

/// SNP-INV-011: no two guests have the same ASID, and one that waits for a flush has none.
///
/// # Errors
/// The first that is shared.
pub fn snp_inv_011(snp: &Snp) -> Result<(), Violation> {
    let bound = snp.psp.peek(|psp| {
        let active = psp.guests.iter().filter_map(|(gctx, guest)| guest.asid.map(|asid| (asid, *gctx)));
        let active: Vec<(Asid, Pfn)> = active.collect();
        let uses: BTreeMap<Asid, AsidUse> = psp.asids.clone();
        (active, uses)
    });
    let (active, uses) = bound;
    let mut seen = BTreeSet::new();
    for (asid, gctx) in active {
        if !seen.insert(asid) || uses.get(&asid) != Some(&AsidUse::Bound { gctx }) {
            return Err(broken("SNP-INV-011", format!("{asid:?} is not only the guest's with context {gctx:?}")));
        }
    }
    Ok(())
}

/// SNP-INV-014: the tails of a page of 2 MiB say nothing but that they are assigned, as the head is.
///
/// # Errors
/// The first that says more.
pub fn snp_inv_014(snp: &Snp) -> Result<(), Violation> {
    for head in snp.rmp().written_regions() {
        let page = snp.rmp().entry(head);
        if page.page_size != RmpSize::Size2M {
            continue;
        }
        let tail = RmpEntry { assigned: page.assigned, ..RmpEntry::HYPERVISOR };
        if let Some(i) = (1..PAGES_PER_PMD).find(|i| snp.rmp().entry(head + *i) != tail) {
            return Err(broken("SNP-INV-014", format!("tail {:?} is {:?}", head + i, snp.rmp().entry(head + i))));
        }
    }
    Ok(())
}

/// SNP-INV-026: a head's count in memory is that of the other assigned entries of its region.
///
/// # Errors
/// The first that is not.
pub fn snp_inv_026(snp: &Snp) -> Result<(), Violation> {
    for head in snp.rmp().written_regions() {
        let Some(raw) = snp.rmp().raw(head) else { continue };
        let (_, count) = RmpEntry::from_raw(raw);
        let assigned = (1..PAGES_PER_PMD).filter(|i| snp.rmp().is_assigned(head + *i)).count();
        if usize::from(count) != assigned {
            return Err(broken("SNP-INV-026", format!("{head:?} counts {count} of {assigned}")));
        }
    }
    Ok(())
}

/// SNP-INV-032: only a head makes a page of 2 MiB, and looking a frame up says so of every frame of it.
///
/// # Errors
/// The first for which it does not.
pub fn snp_inv_032(snp: &Snp) -> Result<(), Violation> {
    for pfn in frames(snp) {
        let head_is_2m = snp.rmp().entry(head_of(pfn)).page_size == RmpSize::Size2M;
        let is_2m = matches!(snp.rmp().lookup(pfn), Some((_, Level::L2M)));
        let tail_is_2m = pfn != head_of(pfn) && snp.rmp().entry(pfn).page_size == RmpSize::Size2M;
        if is_2m != head_is_2m || tail_is_2m {
            return Err(broken("SNP-INV-032", format!("{pfn:?} and its head differ in size")));
        }
    }
    Ok(())
}

/// SNP-INV-035, the part that can be seen in an entry: no level of a guest may do what VMPL0 may not, in a page that is open and accepted.
///
/// # Errors
/// The first page where one may.
pub fn snp_inv_035(snp: &Snp) -> Result<(), Violation> {
    let exceeds = |pfn: &Pfn| {
        let page = snp.rmp().page(*pfn);
        snp.rmp().state(*pfn) == Some(PageState::GuestValid)
            && page.perms[1..].iter().any(|perms| !page.perms[0].contains(*perms))
    };
    let wrong = frames(snp).find(exceeds);
    wrong.map_or(Ok(()), |pfn| Err(broken("SNP-INV-035", format!("{pfn:?}: {:?}", snp.rmp().page(pfn).perms))))
}

/// SNP-INV-040: contexts and context pages are the same frames, and only active guests have keys.
///
/// # Errors
/// The first frame, or ASID, for which it is otherwise.
pub fn snp_inv_040(snp: &Snp) -> Result<(), Violation> {
    let guests: Vec<(Pfn, Option<Asid>)> =
        snp.psp.peek(|psp| psp.guests.iter().map(|(gctx, guest)| (*gctx, guest.asid)).collect());
    let contexts: BTreeSet<Pfn> = guests.iter().map(|(gctx, _)| *gctx).collect();
    for pfn in frames(snp) {
        if (snp.rmp().state(pfn) == Some(PageState::Context)) != contexts.contains(&pfn) {
            return Err(broken("SNP-INV-040", format!("{pfn:?} is a context page and no context, or the reverse")));
        }
    }
    let active: BTreeSet<Asid> = guests.iter().filter_map(|(_, asid)| *asid).collect();
    let keys = snp.memory().loaded_keys();
    if keys == active {
        Ok(())
    } else {
        Err(broken("SNP-INV-040", format!("keys of {keys:?}, active guests {active:?}")))
    }
}

/// An invariant as a function.
pub type Invariant = fn(&Snp) -> Result<(), Violation>;

/// All of them, by number.
pub const ALL: [(&str, Invariant); 7] = [
    ("SNP-INV-001", snp_inv_001),
    ("SNP-INV-011", snp_inv_011),
    ("SNP-INV-014", snp_inv_014),
    ("SNP-INV-026", snp_inv_026),
    ("SNP-INV-032", snp_inv_032),
    ("SNP-INV-035", snp_inv_035),
    ("SNP-INV-040", snp_inv_040),
];

impl Snp {
    /// Checks all of [`ALL`], while nothing else runs.
    ///
    /// # Errors
    /// The first that is broken.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        ALL.iter().try_for_each(|(_, check)| check(self))
    }
}
