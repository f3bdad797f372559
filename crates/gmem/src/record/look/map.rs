//! The guest-physical map: what a guest frame is to KVM, for ranges in which it is the same.
//!
//! Attribute (`kvm->mem_attr_array`), slot, the memory behind it, and what valid roots of stage 2 map there; with pKVM, what the hypervisor maps, and whose the page is.

use std::borrow::Cow;
use std::sync::Arc;

use sim_coco::pkvm::{Handle, PageState};
use sim_kernel::Pfn;
use sim_mmu::{Gfn, Level};

use super::Moment;
use crate::kvm::guest_memfd::GmemFile;
use crate::kvm::memslots::Memslot;
use crate::kvm::uapi::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use crate::kvm::vm::Vm;
use crate::record::names::Kind;
use crate::record::store::{Store, Value};
use crate::record::table::{ROWS_MAX, Table};

/// Frames of a range: first, end, and what they have in common.
type Run<T> = (u64, u64, T);

/// A leaf of stage 2, whosever it is.
struct Leaf {
    as_id: u32,
    first: u64,
    level: Level,
    /// The frame behind its first page; `None` where only a mark is left.
    pfn: Option<Pfn>,
    grants: Grants,
}

/// What a leaf says of its page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grants {
    ReadOnly,
    ReadWrite,
    /// The page's states, as the hypervisor keeps them for the guest and for the host.
    States(PageState, PageState),
    /// The page was taken by force.
    Poison,
}

impl Grants {
    fn words(self) -> Cow<'static, str> {
        match self {
            Grants::ReadOnly => "read-only".into(),
            Grants::ReadWrite => "read-write".into(),
            Grants::States(guest, host) => format!("guest {guest:?}, host {host:?}").into(),
            Grants::Poison => "taken by force: Poison".into(),
        }
    }
}

impl Leaf {
    fn end(&self) -> u64 {
        self.first + self.level.span()
    }
}

/// What a leaf grants, and how large it is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mapping {
    level: Level,
    grants: Grants,
    free: bool,
}

pub(super) fn guest_physical_map(moment: &mut Moment<'_>, store: &mut Store) {
    for at in 0..moment.vms.len() {
        let (number, vm) = moment.vms[at].clone();
        let mut leafs = match vm.pkvm() {
            Some(pkvm) => hypervisors_leafs(moment, pkvm.handle()),
            None => kvms_leafs(&vm),
        };
        leafs.sort_by_key(|leaf| leaf.first);
        for as_id in 0..vm.address_spaces() {
            let leafs: Vec<&Leaf> = leafs.iter().filter(|leaf| leaf.as_id == as_id).collect();
            let slots: Vec<Arc<Memslot>> = vm.memslots().peek_active(as_id, |set| set.iter().cloned().collect());
            for slot in slots {
                describe(moment, store, (number, at), &vm, &slot, &leafs);
            }
        }
    }
}

/// What valid roots of KVM's own tables map.
fn kvms_leafs(vm: &Vm) -> Vec<Leaf> {
    let mut leafs = Vec::new();
    vm.mmu().for_each_leaf(|leaf| {
        if !leaf.invalid_root {
            leafs.push(Leaf {
                as_id: u32::from(leaf.as_id),
                first: leaf.gfn.0,
                level: leaf.level,
                pfn: Some(leaf.spte.pfn()),
                grants: if leaf.spte.is_writable() { Grants::ReadWrite } else { Grants::ReadOnly },
            });
        }
    });
    leafs
}

/// What the hypervisor's stage 2 of a VM maps, page by page, with whose each page is; KVM has no tables of its own there.
fn hypervisors_leafs(moment: &Moment<'_>, handle: Handle) -> Vec<Leaf> {
    let Some(ownership) = moment.ownership else { return Vec::new() };
    let leaf = |gfn: Gfn, pfn, grants| Leaf { as_id: 0, first: gfn.0, level: Level::L4K, pfn, grants };
    let pages = ownership.pages.iter().flat_map(|(pfn, page)| page.guests.iter().map(move |guest| (*pfn, page, guest)));
    let mapped = pages
        .filter(|(_, _, guest)| guest.handle == handle)
        .map(|(pfn, page, guest)| leaf(guest.gfn, Some(pfn), Grants::States(guest.state(), page.host.state)));
    let poisoned = ownership.poisoned.iter().filter(|(whose, _)| *whose == handle);
    mapped.chain(poisoned.map(|(_, gfn)| leaf(*gfn, None, Grants::Poison))).collect()
}

fn describe(
    moment: &mut Moment<'_>,
    store: &mut Store,
    (number, at): (u64, usize),
    vm: &Vm,
    slot: &Memslot,
    leafs: &[&Leaf],
) {
    let (first, end) = (slot.gfns().start.0, slot.gfns().end.0);
    let attributes = attributes(vm, first, end);
    let file = slot.gmem.peek_file().and_then(|file| file.upgrade());
    let view = file.as_ref().and_then(|file| file.downcast::<GmemFile>());
    let inside = leafs.iter().filter(|leaf| leaf.first < end && first < leaf.end());
    let mappings = runs(
        (first, end),
        inside.map(|leaf| {
            let free = leaf.pfn.is_some_and(|pfn| !moment.phys.is_allocated(pfn));
            let mapping = Mapping { level: leaf.level, grants: leaf.grants, free };
            (leaf.first.max(first), leaf.end().min(end), mapping)
        }),
    );
    let mut rows = 0;
    for (from, to, attribute) in &attributes {
        let private = attribute.is_some_and(|value| value & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0);
        let in_file = slot.has_gmem() && (private || slot.is_gmem_only());
        let backing = match (in_file, view) {
            (true, Some(view)) => {
                let index = slot.gmem_index(Gfn(*from)).0;
                let pages = view.inode().mapping().peek_range(index..index + (to - from), ROWS_MAX);
                runs(
                    (*from, *to),
                    pages.into_iter().map(|(page, _)| (from + page.0 - index, from + page.0 - index + 1, ())),
                )
            }
            (true, None) => vec![(*from, *to, None)],
            (false, _) => {
                let hva = slot.hva(Gfn(*from));
                let pages = moment.process[at].map(|process| &moment.mapped[process]);
                let last = hva + ((to - from) << sim_kernel::PAGE_SHIFT);
                let pages = pages.into_iter().flat_map(|pages| pages.range(hva..last)).take(ROWS_MAX);
                let gfn = |page: u64| from + ((page - hva.0) >> sim_kernel::PAGE_SHIFT);
                runs((*from, *to), pages.map(|(page, _)| (gfn(page.0), gfn(page.0) + 1, ())))
            }
        };
        for (from, to, present, mapping) in overlay(&backing, &mappings, *from, *to) {
            rows += 1;
            if rows > ROWS_MAX {
                return;
            }
            let one = to - from == 1;
            let backing = match (in_file, view) {
                (true, None) => Value::Word("no file"),
                (true, Some(view)) => {
                    let index = slot.gmem_index(Gfn(from));
                    let number = u64::from(view.inode().mapping().id());
                    let page = view.inode().mapping().peek(index).filter(|_| one);
                    let what = match (present, page) {
                        (true, Some(pfn)) => moment.frame(pfn),
                        (true, None) => "pages present".to_string(),
                        (false, _) => "no page".to_string(),
                    };
                    Value::Of(Kind::File, number, format!("[{}]: {what}", span(index.0, to - from)))
                }
                (false, _) => {
                    let pages = moment.process[at].map(|process| &moment.mapped[process]);
                    let page = pages.and_then(|pages| pages.get(&slot.hva(Gfn(from)))).filter(|_| one).copied();
                    match (present, page) {
                        (true, Some(page)) => Value::Text(format!("host memory: {}", moment.frame(page.pfn))),
                        (true, None) => Value::Word("host memory: pages present"),
                        (false, _) => Value::Word("host memory: no page"),
                    }
                }
            };
            let mapped = match mapping {
                None => Value::Word("not mapped"),
                Some(mapping) => {
                    // Sorted by where they begin: one that covers it is mostly the last that does not begin behind it.
                    let before = &leafs[..leafs.partition_point(|leaf| leaf.first <= from)];
                    let leaf = before.iter().rev().find(|leaf| from < leaf.end());
                    let leaf = leaf.filter(|_| one || mapping.level != Level::L4K);
                    let frame = match leaf.map(|leaf| (leaf.pfn, from - leaf.first)) {
                        Some((Some(pfn), offset)) => format!(", {}", moment.frame(pfn + offset)),
                        Some((None, _)) => String::new(),
                        None => if mapping.free { ", frames that are free" } else { "" }.to_string(),
                    };
                    Value::Text(format!("{}, {}{frame}", size(mapping.level), mapping.grants.words()))
                }
            };
            let attribute = match (vm.has_private_mem(), private) {
                (_, true) => "private",
                (true, false) => "shared",
                (false, false) => "none",
            };
            let invalid = if slot.is_invalid() { ", INVALID" } else { "" };
            let name = Value::Of(Kind::Vm, number, format!(" slot {}{invalid}", slot.id.0));
            store.row(
                Table::MAP,
                [number, u64::from(slot.as_id), from, 0],
                (from, to),
                [Value::Range(from, to - 1), Value::Word(attribute), name, backing, mapped],
            );
        }
    }
}

/// The attributes of a slot's frames.
fn attributes(vm: &Vm, first: u64, end: u64) -> Vec<Run<Option<u64>>> {
    let mut found = Vec::new();
    let mut from = first;
    while from < end
        && found.len() < ROWS_MAX
        && let Some((start, last, value)) = vm.attributes().peek_entry(Gfn(from), Gfn(end - 1))
    {
        found.push((start.0.max(first), (last.0 + 1).min(end), value));
        from = last.0 + 1;
    }
    runs((first, end), found)
}

/// Runs that cover a range without a gap, neighbours that are the same as one. What is in none of `parts` is `None`.
fn runs<T: PartialEq>((first, end): (u64, u64), parts: impl IntoIterator<Item = Run<T>>) -> Vec<Run<Option<T>>> {
    let mut runs: Vec<Run<Option<T>>> = Vec::new();
    let mut push = |from: u64, to: u64, value: Option<T>| match runs.last_mut() {
        _ if from >= to => {}
        Some(last) if last.2 == value => last.1 = to,
        _ => runs.push((from, to, value)),
    };
    let mut at = first;
    for (from, to, value) in parts {
        push(at, from, None);
        push(from.max(at), to, Some(value));
        at = at.max(to);
    }
    push(at, end, None);
    runs
}

/// Where both a backing and a mapping are the same.
fn overlay(
    backing: &[Run<Option<()>>],
    mappings: &[Run<Option<Mapping>>],
    from: u64,
    to: u64,
) -> Vec<(u64, u64, bool, Option<Mapping>)> {
    let mut found = Vec::new();
    let mut at = from;
    while at < to {
        let run = |end: u64| end > at;
        let (Some(backing), Some(mapping)) =
            (backing.iter().find(|run_| run(run_.1)), mappings.iter().find(|run_| run(run_.1)))
        else {
            break;
        };
        let end = backing.1.min(mapping.1).min(to);
        found.push((at, end, backing.2.is_some(), mapping.2));
        at = end;
    }
    found
}

/// A level as a size.
pub(super) fn size(level: Level) -> String {
    match level {
        Level::L4K => "4 KiB".to_string(),
        Level::L2M => "2 MiB".to_string(),
        Level::L1G => "1 GiB".to_string(),
        other => format!("level {}", other.number()),
    }
}

/// A range of pages.
pub(super) fn span(first: u64, pages: u64) -> String {
    if pages == 1 { format!("{first:#x}") } else { format!("{first:#x}..{:#x}", first + pages - 1) }
}
