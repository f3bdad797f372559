//! guest_memfds: their page caches and bindings, and the nodes of the xarrays that these are.

use sim_kernel::mm::FrameFlags;
use sim_kernel::xarray::NodeShape;

use super::Moment;
use crate::record::names::Kind;
use crate::record::store::{Store, Value};
use crate::record::table::{ROWS_MAX, Table};

pub(super) fn page_caches(moment: &mut Moment<'_>, store: &mut Store) {
    for inode in moment.inodes.clone() {
        let id = u64::from(inode.mapping().id());
        for (index, pfn) in inode.mapping().peek_range(0..u64::MAX, ROWS_MAX) {
            moment.frames.push(pfn);
            let free = !moment.phys.is_allocated(pfn);
            let flags = moment.phys.flags(pfn);
            let words = [
                (free, "free"),
                (moment.phys.is_locked(pfn), "locked"),
                (flags.contains(FrameFlags::LARGE), "2 MiB"),
                (!flags.contains(FrameFlags::UPTODATE), "not uptodate"),
                (flags.contains(FrameFlags::HWPOISON), "broken"),
            ];
            let bits = (0..).zip(&words).fold(0, |bits, (at, (is_so, _))| bits | u64::from(*is_so) << at);
            let references = if free { 0 } else { moment.phys.refcount(pfn) };
            let stamp = [pfn.0, bits, u64::from(references), 0];
            store.row_by(Table::CACHE, [id, index.0, 0, 0], (0, 0), stamp, || {
                let words: Vec<&str> = words.iter().filter(|(is_so, _)| *is_so).map(|(_, word)| *word).collect();
                [
                    Value::Named(Kind::File, id),
                    Value::Hex(index.0),
                    Value::Hex(pfn.0),
                    if free { Value::Empty } else { Value::Number(u64::from(references)) },
                    Value::Text(words.join(", ")),
                ]
            });
        }
    }
}

pub(super) fn bindings(moment: &mut Moment<'_>, store: &mut Store) {
    for inode in &moment.inodes {
        let id = u64::from(inode.mapping().id());
        for view in inode.views() {
            let vm = moment.vms.iter().find(|(_, vm)| std::sync::Arc::ptr_eq(vm, view.vm())).map(|(number, _)| *number);
            let slots = view.peek_slots();
            for (first, last, handle) in view.peek_bindings().into_iter().take(ROWS_MAX) {
                let slot = slots.iter().find(|slot| slot.handle == handle);
                let gfns = slot.map_or((0, 0), |slot| (slot.gfns().start.0, slot.gfns().end.0));
                let slot = match slot {
                    Some(slot) if slot.is_freed() => Value::Text(format!("slot {}, which was freed", slot.id.0)),
                    Some(slot) => Value::Text(format!("slot {}", slot.id.0)),
                    None => Value::Text(format!("handle {handle}, which names no slot")),
                };
                store.row(
                    Table::BINDINGS,
                    [id, vm.unwrap_or(u64::MAX), first.0, 0],
                    gfns,
                    [
                        Value::Named(Kind::File, id),
                        Value::Range(first.0, last.0),
                        vm.map_or(Value::Word("gone"), |vm| Value::Named(Kind::Vm, vm)),
                        slot,
                    ],
                );
            }
        }
    }
}

pub(super) fn nodes(moment: &mut Moment<'_>, store: &mut Store) {
    for inode in &moment.inodes {
        let id = u64::from(inode.mapping().id());
        let name = Value::Of(Kind::File, id, " i_pages".to_string());
        describe(store, [0, id], &name, false, inode.mapping().shape());
        for (at, view) in inode.views().iter().enumerate() {
            let name = Value::Of(Kind::File, id, " bindings".to_string());
            describe(store, [1, id << 16 | at as u64], &name, false, view.bindings_shape());
        }
    }
    for (number, vm) in &moment.vms {
        let name = Value::Of(Kind::Vm, *number, " mem_attr_array".to_string());
        describe(store, [2, *number], &name, true, vm.attributes().shape());
    }
}

/// The nodes of one array; `of_gfns` if its indexes are guest frames.
fn describe(
    store: &mut Store,
    [a, b]: [u64; 2],
    name: &Value,
    of_gfns: bool,
    nodes: impl IntoIterator<Item = NodeShape>,
) {
    for node in nodes.into_iter().take(ROWS_MAX / 8) {
        let last = (64_u64 << node.shift).saturating_sub(1).saturating_add(node.base);
        let used = match (node.count, node.nr_values) {
            (count, 0) => format!("{count} of 64"),
            (count, values) => format!("{count} of 64, {values} of values"),
        };
        store.row(
            Table::NODES,
            [a, b, node.base, 64 - u64::from(node.shift)],
            if of_gfns { (node.base, last.saturating_add(1)) } else { (0, 0) },
            [name.clone(), Value::Range(node.base, last), Value::Number(u64::from(node.shift)), Value::Text(used)],
        );
    }
}
