//! What must hold of the machine whenever nobody is in the middle of a transition, by the number of the specification. For checkers: nothing here announces a
//! scheduling point.
//!
//! Held elsewhere: PKVM-INV-010 and -018 by the tests (a failed call leaves [`Ownership`] as it was), -014 by an assertion where a call, a hypercall and an abort return from EL2,
//! -012 by KVM, whose records it is about. -015 is what the host owes, not the hypervisor: [`pkvm_inv_015`] is not among [`ALL`].
//!
//! Of pages that were lost with a VM (-015): nobody has those that it had, and those that it shared with the host are the host's to use and nobody's to own; those that it borrowed stay
//! shared, and the count of that does not come back.

use super::machine::Pkvm;
use super::pte::{Pte, S2Level};
use super::types::{Owner, PageState, Prot, Vmid};
use super::view::{Ownership, PageView};
pub use crate::violation::Violation;
use crate::violation::broken;
use sim_kernel::Pfn;
use std::collections::BTreeSet;

/// What a page lost with VMs that ended too early.
#[derive(Clone, Copy)]
struct Lost {
    /// Its owner.
    owner: bool,
    /// Mappings that are counted still.
    shares: u32,
}

fn all_pages(
    pkvm: &Pkvm,
    id: &'static str,
    holds: impl Fn(Pfn, &PageView, Lost) -> Result<(), String>,
) -> Result<(), Violation> {
    let Ownership { pages, .. } = pkvm.ownership();
    let (lost, shares) = {
        let ghost = pkvm.ghost.lock();
        (ghost.lost.clone(), ghost.lost_shares.clone())
    };
    pages.iter().try_for_each(|(pfn, page)| {
        let shares = shares.get(pfn).copied().unwrap_or(0);
        let lost = Lost { owner: shares == 0 && lost.contains_key(pfn), shares };
        holds(*pfn, page, lost).map_err(|what| broken(id, format!("{pfn:?}: {what}: {page:?}")))
    })
}

fn ensure(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// PKVM-INV-001: a page has exactly one owner.
///
/// # Errors
/// The first that has not.
pub fn pkvm_inv_001(pkvm: &Pkvm) -> Result<(), Violation> {
    let owns = |state| matches!(state, PageState::Owned | PageState::SharedOwned);
    all_pages(pkvm, "PKVM-INV-001", |_, page, lost| {
        let guests = page.guests.iter().filter(|guest| owns(guest.state())).count();
        let owners = usize::from(owns(page.host.state)) + usize::from(page.hyp.state == PageState::Owned) + guests;
        ensure(owners + usize::from(lost.owner) == 1, "owners that are not one")
    })
}

/// PKVM-INV-002: the states of a page fit together.
///
/// # Errors
/// The first whose do not.
pub fn pkvm_inv_002(pkvm: &Pkvm) -> Result<(), Violation> {
    use PageState::{NoPage, Owned, SharedBorrowed, SharedOwned};
    all_pages(pkvm, "PKVM-INV-002", |_, page, lost| {
        let guests: Vec<PageState> = page.guests.iter().map(|guest| guest.state()).collect();
        let count = page.host.share_guest_count.wrapping_sub(lost.shares) as usize;
        let legal = match (page.host.state, page.hyp.state, &guests[..]) {
            (Owned, NoPage, []) | (SharedOwned, SharedBorrowed, []) | (NoPage, Owned, []) => count == 0,
            (SharedOwned, NoPage, borrowed) => {
                borrowed.len() == count && borrowed.iter().all(|state| *state == SharedBorrowed)
            }
            (NoPage, NoPage, [Owned]) | (SharedBorrowed, NoPage, [SharedOwned]) => count == 0,
            (NoPage | SharedBorrowed, NoPage, []) => count == 0 && lost.owner,
            _ => false,
        };
        ensure(legal, "states that do not fit together")
    })
}

/// PKVM-INV-003: the host's descriptor says nothing or everything of what the host has, and names the owner of what it has not: the hypervisor, or a guest and where it has it. What it maps
/// is mapped to itself.
///
/// # Errors
/// The first that does not.
pub fn pkvm_inv_003(pkvm: &Pkvm) -> Result<(), Violation> {
    let id = "PKVM-INV-003";
    all_pages(pkvm, id, |_, page, lost| {
        let pte = page.host.pte;
        let fits = match (page.host.state, &page.guests[..]) {
            (PageState::NoPage, _) if page.hyp.state == PageState::Owned => pte.owner() == Some(Owner::Hyp),
            (PageState::NoPage, [guest]) => pte.owner() == Some(Owner::Guest(guest.handle, guest.gfn)),
            (PageState::NoPage, _) => lost.owner && matches!(pte.owner(), Some(Owner::Guest(..))),
            _ => !pte.is_counted() || pte.is_valid() && pte.prot() == Prot::RWX,
        };
        ensure(fits, "the host's descriptor is of another state")
    })?;
    let mut wrong = None;
    pkvm.host_root.for_each(&pkvm.phys, |slot, pte| {
        if pte.is_leaf(slot.level) && pte.pfn() != slot.first {
            wrong = Some((slot, pte));
        }
    });
    wrong.map_or(Ok(()), |(slot, pte)| Err(broken(id, format!("{pte:?} at {slot:?} maps another page"))))
}

/// PKVM-INV-004: a guest that is said to have a page has it, there, for itself.
///
/// # Errors
/// The first page for which it has not.
pub fn pkvm_inv_004(pkvm: &Pkvm) -> Result<(), Violation> {
    all_pages(pkvm, "PKVM-INV-004", |pfn, page, lost| {
        let Some(Owner::Guest(handle, gfn)) = page.host.pte.owner() else { return Ok(()) };
        if lost.owner {
            return Ok(());
        }
        let vm = pkvm.vm(handle).ok_or("the VM is gone")?;
        let found = pkvm.guest_pte(&vm, gfn);
        let has = found.is_some_and(|(pte, _)| pte.is_valid() && pte.pfn() == pfn && pte.state() == PageState::Owned);
        ensure(has, "the guest has it not")
    })
}

/// PKVM-INV-005: the count of a page is that of its mappings in VMs that are not protected.
///
/// # Errors
/// The first that is not.
pub fn pkvm_inv_005(pkvm: &Pkvm) -> Result<(), Violation> {
    all_pages(pkvm, "PKVM-INV-005", |_, page, lost| {
        let borrowed = page.guests.iter().filter(|guest| guest.state() == PageState::SharedBorrowed).count();
        let count = page.host.share_guest_count as usize;
        let shared = page.host.state == PageState::SharedOwned && page.hyp.state == PageState::NoPage;
        ensure(
            count == borrowed + lost.shares as usize && (count == 0 || shared),
            "a count that is not that of its mappings",
        )
    })
}

/// PKVM-INV-006: of what the host shares, EL2 maps what is pinned, and nothing else.
///
/// # Errors
/// The first page for which it is otherwise.
pub fn pkvm_inv_006(pkvm: &Pkvm) -> Result<(), Violation> {
    all_pages(pkvm, "PKVM-INV-006", |_, page, _| {
        let pinned = page.hyp.refcount > 0;
        ensure(
            match page.hyp.state {
                PageState::SharedBorrowed => page.hyp.mapped == pinned,
                PageState::Owned => page.hyp.mapped,
                _ => !pinned && !page.hyp.mapped,
            },
            "pins and EL2's mapping differ",
        )
    })
}

/// PKVM-INV-007: where a page was taken by force there is nothing else, for as long as the VM lives.
///
/// # Errors
/// The first address where there is.
pub fn pkvm_inv_007(pkvm: &Pkvm) -> Result<(), Violation> {
    for vm in pkvm.vms() {
        let poisoned = vm.mmu.peek(|guest| guest.poisoned.clone());
        let forgotten = |gfn: &&_| pkvm.guest_pte(&vm, **gfn).is_none_or(|(pte, _)| pte != Pte::POISONED);
        if let Some(gfn) = poisoned.iter().find(forgotten) {
            return Err(broken("PKVM-INV-007", format!("{:?} {gfn:?} was taken by force", vm.handle())));
        }
    }
    Ok(())
}

/// PKVM-INV-008: what a guest had for itself is cleared before the host has it.
///
/// # Errors
/// The first page that was not.
pub fn pkvm_inv_008(pkvm: &Pkvm) -> Result<(), Violation> {
    let leaked = pkvm.ghost.lock().leaked.first().copied();
    leaked.map_or(Ok(()), |pfn| Err(broken("PKVM-INV-008", format!("{pfn:?} went back to the host as it was"))))
}

/// PKVM-INV-009: no processor remembers a translation that is none any more.
///
/// # Errors
/// The first that one does.
pub fn pkvm_inv_009(pkvm: &Pkvm) -> Result<(), Violation> {
    let vms = pkvm.vms();
    for ((cpu, vmid, page), entry) in pkvm.tlb_entries() {
        let now = if vmid == Vmid::HOST {
            pkvm.host_pte(page)
        } else {
            vms.iter().find(|vm| vm.vmid() == vmid).and_then(|vm| pkvm.guest_pte(vm, sim_mmu::Gfn(page.0)))
        };
        let holds = now.is_some_and(|(pte, level)| {
            pte.is_leaf(level) && Pfn(pte.pfn().0 + (page.0 & (level.pages() - 1))) == entry.pfn
        });
        if !holds {
            return Err(broken("PKVM-INV-009", format!("{cpu:?} {vmid:?} {page:?} is still {entry:?}, now {now:?}")));
        }
    }
    Ok(())
}

/// PKVM-INV-011: protected VMs borrow nothing, others own nothing.
///
/// # Errors
/// The first mapping for which it is otherwise.
pub fn pkvm_inv_011(pkvm: &Pkvm) -> Result<(), Violation> {
    all_pages(pkvm, "PKVM-INV-011", |_, page, _| {
        let fits = page.guests.iter().all(|guest| {
            let protected = pkvm.vm(guest.handle).is_some_and(|vm| vm.is_protected());
            protected != (guest.state() == PageState::SharedBorrowed)
        });
        ensure(fits, "a mapping of the other kind of VM")
    })
}

/// PKVM-INV-013: a vCPU is loaded where it says, of a VM that knows, and of none that is dying.
///
/// # Errors
/// The first that is otherwise.
pub fn pkvm_inv_013(pkvm: &Pkvm) -> Result<(), Violation> {
    let mut uses = std::collections::BTreeMap::new();
    for (i, cpu) in pkvm.cpus.lock().iter().enumerate() {
        let Some(vcpu) = &cpu.loaded else { continue };
        *uses.entry(vcpu.vm.handle()).or_insert(0) += 1;
        let live = pkvm.vm(vcpu.vm.handle()).is_some_and(|vm| std::sync::Arc::ptr_eq(&vm, &vcpu.vm));
        let here = vcpu.loaded_on.lock().is_some_and(|on| on.0 as usize == i);
        if vcpu.vm.is_dying() || !live || !here {
            return Err(broken("PKVM-INV-013", format!("processor {i}: {vcpu:?}")));
        }
    }
    for vm in pkvm.vms() {
        let refs = vm.refs.load(std::sync::atomic::Ordering::Acquire);
        if refs != uses.get(&vm.handle()).copied().unwrap_or(0) {
            return Err(broken("PKVM-INV-013", format!("{vm:?} has {refs} users")));
        }
    }
    Ok(())
}

/// PKVM-INV-015: the host took every page of a VM before it ended it. An obligation of the host's, which nothing enforces.
///
/// # Errors
/// The first page that was lost.
pub fn pkvm_inv_015(pkvm: &Pkvm) -> Result<(), Violation> {
    let lost = pkvm.lost_pages().into_iter().next();
    lost.map_or(Ok(()), |(pfn, (handle, gfn))| {
        Err(broken("PKVM-INV-015", format!("{pfn:?} was at {gfn:?} of {handle:?}, which is gone")))
    })
}

/// PKVM-INV-016: no valid leaf of the host covers a page that it does not have.
///
/// # Errors
/// The first that does.
pub fn pkvm_inv_016(pkvm: &Pkvm) -> Result<(), Violation> {
    let mut wrong = None;
    pkvm.host.peek(|host| {
        host.table.root.for_each(&pkvm.phys, |slot, pte| {
            if !pte.is_leaf(slot.level) {
                return;
            }
            let covered = pte.pfn()..pte.pfn() + slot.level.pages();
            let mut in_it = host.pages.range(covered).filter(|(_, page)| page.state == PageState::NoPage);
            wrong = wrong.or_else(|| in_it.next().map(|(pfn, _)| *pfn));
        });
    });
    wrong.map_or(Ok(()), |pfn| Err(broken("PKVM-INV-016", format!("{pfn:?} is not the host's, which maps it"))))
}

/// PKVM-INV-017: what the hypervisor keeps its own things in is its own: the carve-out, VMs, vCPUs, tables, and pages that become tables.
///
/// # Errors
/// The first page that is not.
pub fn pkvm_inv_017(pkvm: &Pkvm) -> Result<(), Violation> {
    let mut own = BTreeSet::new();
    if pkvm.set_up.load(std::sync::atomic::Ordering::Acquire) {
        own.extend(pkvm.carve_out.iter().copied());
    }
    for vm in pkvm.vms() {
        own.insert(vm.frame);
        own.extend((0..vm.pgd_pages).map(|i| vm.pgd + i));
        vm.root.for_each(&pkvm.phys, |slot, pte| own.extend(pte.is_table(slot.level).then_some(pte.pfn())));
        vm.mmu.peek(|guest| own.extend(guest.pool.iter()));
        for vcpu in vm.vcpus.lock().values() {
            own.insert(vcpu.frame);
            own.extend(vcpu.memcache.lock().iter());
        }
    }
    let host = |pfn: &Pfn| pkvm.host.peek(|host| host.page(*pfn).state);
    let hyp = |pfn: &Pfn| pkvm.hyp.peek(|hyp| hyp.page(*pfn).state);
    let is_own = |pfn: &Pfn| host(pfn) == PageState::NoPage && hyp(pfn) == PageState::Owned;
    let wrong = own.iter().find(|pfn| !is_own(pfn));
    wrong.map_or(Ok(()), |pfn| Err(broken("PKVM-INV-017", format!("{pfn:?} is used by the hypervisor"))))
}

/// PKVM-INV-014, as far as it shows when nobody is at EL2: no descriptor is left in the middle of break-before-make, the count of a table is that of its descriptors, and every page that was
/// set aside for the host's tables is one or is free.
///
/// # Errors
/// The first for which it is otherwise.
pub fn pkvm_inv_014(pkvm: &Pkvm) -> Result<(), Violation> {
    let id = "PKVM-INV-014";
    let mut wrong = None;
    let mut look = |slot: super::pgtable::Slot, pte: Pte| {
        let annotated_above = pte.is_counted() && !pte.is_valid() && slot.level != S2Level::LAST;
        if pte == Pte::LOCKED || annotated_above {
            wrong = Some((slot, pte));
        }
    };
    pkvm.host_root.for_each(&pkvm.phys, &mut look);
    pkvm.vms().iter().for_each(|vm| vm.root.for_each(&pkvm.phys, &mut look));
    if let Some((slot, pte)) = wrong {
        return Err(broken(id, format!("{pte:?} at {slot:?}")));
    }
    let of_host = pkvm.host.peek(|host| {
        let mut tables: Vec<Pfn> = host.table.tables().chain(host.pool.iter().copied()).collect();
        tables.extend((0..pkvm.host_root.frames()).map(|i| pkvm.host_root.pfn + i));
        tables.sort();
        tables.dedup();
        let mut set_aside = pkvm.carve_out.clone();
        set_aside.sort();
        if tables != set_aside {
            host.pool.first().copied().or(Some(pkvm.host_root.pfn))
        } else {
            host.table.miscounted(&pkvm.phys)
        }
    });
    let of_guests = || pkvm.vms().iter().find_map(|vm| vm.mmu.peek(|guest| guest.table.miscounted(&pkvm.phys)));
    of_host.or_else(of_guests).map_or(Ok(()), |pfn| Err(broken(id, format!("the table {pfn:?} is counted wrongly"))))
}

/// PKVM-INV-023: a valid descriptor was broken before another took its place. Not of the specification's list, which has it as a discipline of Arm's; a processor may use both at once.
///
/// # Errors
/// The first place where one was not.
pub fn pkvm_inv_023(pkvm: &Pkvm) -> Result<(), Violation> {
    let unbroken = pkvm.ghost.lock().unbroken.first().copied();
    unbroken.map_or(Ok(()), |at| {
        Err(broken("PKVM-INV-023", format!("the valid descriptor at {at:?} became another, without being broken")))
    })
}

/// PKVM-INV-024: no page is taken by force that its guest shares (K4).
///
/// # Errors
/// The first that was.
pub fn pkvm_inv_024(pkvm: &Pkvm) -> Result<(), Violation> {
    let taken = pkvm.ghost.lock().taken_shared.first().copied();
    taken.map_or(Ok(()), |pfn| Err(broken("PKVM-INV-024", format!("{pfn:?} was taken from a guest that shared it"))))
}

/// An invariant as a function.
pub type Invariant = fn(&Pkvm) -> Result<(), Violation>;

/// All that the hypervisor sees to, by number.
pub const ALL: [(&str, Invariant); 16] = [
    ("PKVM-INV-001", pkvm_inv_001),
    ("PKVM-INV-002", pkvm_inv_002),
    ("PKVM-INV-003", pkvm_inv_003),
    ("PKVM-INV-004", pkvm_inv_004),
    ("PKVM-INV-005", pkvm_inv_005),
    ("PKVM-INV-006", pkvm_inv_006),
    ("PKVM-INV-007", pkvm_inv_007),
    ("PKVM-INV-008", pkvm_inv_008),
    ("PKVM-INV-009", pkvm_inv_009),
    ("PKVM-INV-011", pkvm_inv_011),
    ("PKVM-INV-013", pkvm_inv_013),
    ("PKVM-INV-014", pkvm_inv_014),
    ("PKVM-INV-016", pkvm_inv_016),
    ("PKVM-INV-017", pkvm_inv_017),
    ("PKVM-INV-023", pkvm_inv_023),
    ("PKVM-INV-024", pkvm_inv_024),
];

impl Pkvm {
    /// Checks all of [`ALL`], while nobody is in the middle of a transition.
    ///
    /// # Errors
    /// The first that is broken.
    pub fn check_invariants(&self) -> Result<(), Violation> {
        ALL.iter().try_for_each(|(_, check)| check(self))
    }
}
