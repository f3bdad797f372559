//! pKVM: who has a page, and what processors remember.
//!
//! Ownership is in three places: the host's state of a page with the annotation in its stage 2, the hypervisor's, and the guests' stage 2. While one of the hypervisor's locks is held
//! they are described as they were when all were free last.

use std::collections::BTreeMap;

use sim_coco::pkvm::{Handle, HypView, Owner, PageState, PageView, Prot, Vmid};

use super::Moment;
use crate::record::names::Kind;
use crate::record::store::{Store, Value};
use crate::record::table::{ROWS_MAX, Table};

/// Keys of translations: above the numbers of vCPUs, which have those of other VMs.
const PROCESSOR: u64 = 1 << 63;

/// Pages that are not the host's alone, and places of guests whose page was taken by force.
pub(super) fn owners(moment: &mut Moment<'_>, store: &mut Store) {
    let Some(ownership) = moment.ownership else { return };
    let numbers = numbers(moment);
    let shown = ownership.pages.iter().filter(|(_, page)| !is_the_hosts_alone(page));
    let mut shown = shown.take(ROWS_MAX).peekable();
    while let Some((pfn, page)) = shown.next() {
        moment.frames.push(*pfn);
        // What the hypervisor keeps for itself lies side by side and is all the same.
        let mut last = *pfn;
        while page.guests.is_empty()
            && let Some((next, _)) = shown.next_if(|(next, other)| {
                **next == last + 1 && host_side(other) == host_side(page) && other.guests.is_empty()
            })
        {
            last = *next;
        }
        let first = page.guests.first();
        let gfn = first.map(|guest| guest.gfn).or(match page.host.pte.owner() {
            Some(Owner::Guest(_, gfn)) => Some(gfn),
            _ => None,
        });
        let guest = match page.guests.as_slice() {
            [] => Value::Empty,
            [one] => named(&numbers, one.handle, format!(" {:#x}", one.gfn.0)),
            many => {
                let each: Vec<String> =
                    many.iter().map(|guest| format!("{:#x} of handle {:#x}", guest.gfn.0, guest.handle.0)).collect();
                Value::Text(each.join(", "))
            }
        };
        let states: Vec<String> = page.guests.iter().map(|guest| format!("{:?}", guest.state())).collect();
        store.row(
            Table::PKVM,
            [pfn.0, 0, 0, 0],
            gfn.map_or((0, 0), |gfn| (gfn.0, gfn.0 + 1)),
            [
                Value::Range(pfn.0, last.0),
                host(&numbers, page),
                hypervisor(page),
                guest,
                Value::Text(states.join(", ")),
            ],
        );
    }
    for (handle, gfn) in ownership.poisoned.iter().take(ROWS_MAX) {
        store.row(
            Table::PKVM,
            [u64::MAX, u64::from(handle.0), gfn.0, 0],
            (gfn.0, gfn.0 + 1),
            [
                Value::Word("none"),
                Value::Empty,
                Value::Empty,
                named(&numbers, *handle, format!(" {:#x}", gfn.0)),
                Value::Word("Poison"),
            ],
        );
    }
}

/// Translations that processors remember, of guests and of the host.
pub(super) fn translations(moment: &mut Moment<'_>, store: &mut Store) {
    let Some(host) = moment.pkvm.clone() else { return };
    let vmids: BTreeMap<Vmid, u64> = moment
        .vms
        .iter()
        .filter_map(|(number, vm)| {
            // Nothing else says so while the table of VMs is held.
            let handle = vm.pkvm()?.handle();
            Some((Vmid(handle.0.checked_sub(Handle::BASE)? + 1), *number))
        })
        .collect();
    for ((cpu, vmid, page), entry) in host.pkvm().tlb_entries().into_iter().take(ROWS_MAX) {
        let who = match vmids.get(&vmid) {
            Some(number) => Value::Of(Kind::Vm, *number, format!(" on processor {}", cpu.0)),
            None if vmid == Vmid::HOST => Value::Text(format!("host on processor {}", cpu.0)),
            None => Value::Text(format!("VMID {} on processor {}", vmid.0, cpu.0)),
        };
        let backing = moment.frame(entry.pfn);
        let is_hosts = vmid == Vmid::HOST;
        store.row(
            Table::TLB,
            [PROCESSOR | u64::from(cpu.0), u64::from(vmid.0), page.0, 0],
            if is_hosts { (0, 0) } else { (page.0, page.0 + 1) },
            [
                who,
                Value::Hex(page.0 << sim_kernel::PAGE_SHIFT),
                if is_hosts { Value::Empty } else { Value::Hex(page.0) },
                Value::Text(backing),
                Value::Text(format!("{}, {:?}", rights(entry.pte.prot()), entry.pte.state())),
            ],
        );
    }
}

fn rights(prot: Prot) -> String {
    let rights = [(Prot::R, "R"), (Prot::W, "W"), (Prot::X, "X")];
    let granted: Vec<&str> = rights.iter().filter(|(right, _)| prot.contains(*right)).map(|(_, name)| *name).collect();
    granted.join(" ")
}

/// What of a page is in the cells that are not the guests'.
fn host_side(page: &PageView) -> (PageState, u32, Option<Owner>, HypView) {
    (page.host.state, page.host.share_guest_count, page.host.pte.owner(), page.hyp)
}

fn is_the_hosts_alone(page: &PageView) -> bool {
    page.host.state == PageState::Owned && page.guests.is_empty() && !page.hyp.mapped && page.hyp.refcount == 0
}

/// What the host has: its state of the page, and the annotation where it has none.
fn host(numbers: &BTreeMap<Handle, u64>, page: &PageView) -> Value {
    let state = page.host.state;
    match page.host.pte.owner() {
        Some(Owner::Hyp) => Value::Text(format!("{state:?}: the hypervisor's")),
        Some(Owner::Guest(handle, gfn)) => match numbers.get(&handle) {
            Some(number) => Value::Of(Kind::Vm, *number, format!("'s at {:#x}: {state:?}", gfn.0)),
            None => Value::Text(format!("{state:?}: of handle {:#x} at {:#x}", handle.0, gfn.0)),
        },
        None if page.host.share_guest_count > 0 => {
            Value::Text(format!("{state:?}, {} guest mappings", page.host.share_guest_count))
        }
        None => Value::Text(format!("{state:?}")),
    }
}

fn hypervisor(page: &PageView) -> Value {
    if !page.hyp.mapped && page.hyp.refcount == 0 {
        return Value::Empty;
    }
    let pins = if page.hyp.refcount > 0 { format!(", {} pins", page.hyp.refcount) } else { String::new() };
    Value::Text(format!("{:?}{pins}", page.hyp.state))
}

fn named(numbers: &BTreeMap<Handle, u64>, handle: Handle, text: String) -> Value {
    match numbers.get(&handle) {
        Some(number) => Value::Of(Kind::Vm, *number, text),
        None => Value::Text(format!("handle {:#x}{text}", handle.0)),
    }
}

/// VMs by the names that the hypervisor has for them.
fn numbers(moment: &Moment<'_>) -> BTreeMap<Handle, u64> {
    moment.vms.iter().filter_map(|(number, vm)| Some((vm.pkvm()?.handle(), *number))).collect()
}
