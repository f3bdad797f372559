//! The guest-physical map: what a guest frame is to KVM, for ranges in which it is the same.
//!
//! Attribute (`kvm->mem_attr_array`), slot, the memory behind it, and what valid roots of stage 2 map there.

use std::sync::Arc;

use sim_kernel::Pfn;
use sim_mmu::{Gfn, LeafInfo, Level};

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

/// What a leaf grants, and how large it is.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mapping {
    level: Level,
    writable: bool,
    free: bool,
}

pub(super) fn guest_physical_map(moment: &mut Moment<'_>, store: &mut Store) {
    for at in 0..moment.vms.len() {
        let (number, vm) = moment.vms[at].clone();
        for as_id in 0..vm.address_spaces() {
            let mut leafs: Vec<LeafInfo> = Vec::new();
            vm.mmu().for_each_leaf(|leaf| {
                if u32::from(leaf.as_id) == as_id && !leaf.invalid_root {
                    leafs.push(leaf);
                }
            });
            leafs.sort_by_key(|leaf| leaf.gfn);
            let slots: Vec<Arc<Memslot>> = vm.memslots().peek_active(as_id, |set| set.iter().cloned().collect());
            for slot in slots {
                describe(moment, store, (number, at), &vm, &slot, &leafs);
            }
        }
    }
}

fn describe(
    moment: &mut Moment<'_>,
    store: &mut Store,
    (number, at): (u64, usize),
    vm: &Vm,
    slot: &Memslot,
    leafs: &[LeafInfo],
) {
    let (first, end) = (slot.gfns().start.0, slot.gfns().end.0);
    let attributes = attributes(vm, first, end);
    let file = slot.gmem.peek_file().and_then(|file| file.upgrade());
    let view = file.as_ref().and_then(|file| file.downcast::<GmemFile>());
    let inside = leafs.iter().filter(|leaf| leaf.gfn.0 < end && first < leaf.gfn.0 + leaf.level.span());
    let mappings = runs(
        (first, end),
        inside.map(|leaf| {
            let pfn = leaf.spte.pfn();
            let free = !moment.phys.is_allocated(pfn);
            let mapping = Mapping { level: leaf.level, writable: leaf.spte.is_writable(), free };
            (leaf.gfn.0.max(first), (leaf.gfn.0 + leaf.level.span()).min(end), mapping)
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
                    let covers = |leaf: &&LeafInfo| leaf.gfn.0 <= from && from < leaf.gfn.0 + leaf.level.span();
                    let leaf = leafs.iter().find(covers).filter(|_| one || mapping.level != Level::L4K);
                    let right = if mapping.writable { "read-write" } else { "read-only" };
                    let frame = leaf.map_or_else(
                        || if mapping.free { ", frames that are free" } else { "" }.to_string(),
                        |leaf| format!(", {}", moment.frame(Pfn(leaf.spte.pfn().0 + (from - leaf.gfn.0)))),
                    );
                    Value::Text(format!("{}, {right}{frame}", size(mapping.level)))
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
