//! Stage 2: every entry that is not as in a new table, of every root: of the tree that processors walk, and of mirrors.

use std::sync::Arc;

use sim_mmu::{Gfn, Level, Root, Spte, Stage2Kind};

use super::map::{size, span};
use super::{Moment, frame};
use crate::kvm::vm::Vm;
use crate::record::store::{Store, Value};
use crate::record::table::{ROWS_MAX, Table};

pub(super) fn trees(moment: &mut Moment<'_>, store: &mut Store) {
    for at in 0..moment.vms.len() {
        let (number, vm) = moment.vms[at].clone();
        for root in vm.mmu().peek_roots() {
            let tree = Value::Text(name(&vm, &root));
            let references = root.refs();
            let state = if root.is_invalid() { ", INVALID" } else { "" };
            store.row(
                Table::STAGE2,
                [number, root.table().0, 0, 0],
                (0, 0),
                [
                    tree.clone(),
                    Value::Word("all"),
                    Value::Number(u64::from(root.level().number())),
                    Value::Text(format!("root, {references} references{state}")),
                    Value::Empty,
                ],
            );
            let mut entries: Vec<(Gfn, Level, Spte)> = Vec::new();
            vm.mmu().for_each_entry(&root, |gfn, level, spte| {
                if entries.len() < ROWS_MAX {
                    entries.push((gfn, level, spte));
                }
            });
            for (gfn, level, spte) in entries {
                let free = names(moment, level, spte);
                let key = [number, root.table().0, 1 + gfn.0, u64::from(u8::MAX - level.number())];
                let stamp = [spte.0, u64::from(free), 0, 0];
                store.row_by(Table::STAGE2, key, (gfn.0, gfn.0 + level.span()), stamp, || {
                    [
                        tree.clone(),
                        Value::Text(span(gfn.0, level.span())),
                        Value::Number(u64::from(level.number())),
                        Value::Text(entry(&vm, level, spte, free)),
                        Value::Text(rights(&vm, level, spte)),
                    ]
                });
            }
        }
    }
}

/// A tree by its format and its root table.
fn name(vm: &Arc<Vm>, root: &Root) -> String {
    let format = match vm.host.config.stage2 {
        _ if root.is_mirror() => "mirror",
        Stage2Kind::Npt => "NPT",
        Stage2Kind::Ept => "EPT",
    };
    let space = if root.as_id() == 0 { String::new() } else { format!(", address space {}", root.as_id()) };
    format!("{format} {:#x}{space}", root.table().0)
}

/// Has the frame of a leaf listed. Whether it is free.
pub(super) fn names(moment: &mut Moment<'_>, level: Level, spte: Spte) -> bool {
    !spte.is_frozen() && spte.is_leaf(level) && moment.names(spte.pfn())
}

/// An entry in words. `free` says whether the frame of a leaf is.
pub(super) fn entry(vm: &Vm, level: Level, spte: Spte, free: bool) -> String {
    if spte.is_frozen() {
        "FROZEN".to_string()
    } else if spte.is_table(level) {
        format!("table {:#x}", spte.pfn().0)
    } else if spte.is_leaf(level) {
        format!("{} leaf, {}", size(level), frame(spte.pfn(), free))
    } else if vm.mmu().masks().is_mmio(spte) {
        format!("MMIO, generation {}", vm.mmu().masks().mmio_generation(spte))
    } else {
        "not present".to_string()
    }
}

fn rights(vm: &Vm, level: Level, spte: Spte) -> String {
    if !spte.is_leaf(level) {
        return String::new();
    }
    let masks = vm.mmu().masks();
    let bits = [
        (spte.is_writable(), "W"),
        (masks.is_access_allowed(spte, sim_mmu::Access::Exec), "X"),
        (spte.has(masks.accessed), "A"),
        (spte.has(masks.dirty), "D"),
        (spte.has(masks.mmu_writable), "MMU-W"),
        (spte.has(masks.host_writable), "host-W"),
    ];
    let set: Vec<&str> = bits.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| *name).collect();
    set.join(" ")
}
