//! INV-701: the shape of the kernel's index trees (`lib/xarray.c`).

use super::snapshot::Snapshot;
use super::{Check, Holds, Invariant, Section, When};

pub(super) static ROWS: &[Invariant] = &[Invariant {
    id: "INV-701",
    section: Section::Xarray,
    text: "In every linked node of an xarray the counts are those of its slots, it is not empty, parent, offset and shift fit its place, marks \
           are the union of its children's, siblings follow their entry in the same node, and no retry entry is linked.",
    window: "inside the xa_lock, which is within one step",
    when: &[When::Point, When::Quiescence],
    check: Check::State(inv_701),
    note: "`XArray::check`; not of attribute arrays with more than 4096 nodes.",
}];

/// All trees are well formed. What that is, [`sim_kernel::xarray::XArray::check`] says.
pub fn inv_701(shot: &Snapshot) -> Holds {
    let attributes = shot.vms.iter().map(|vm| ("memory attributes", &vm.malformed));
    let caches = shot.inodes.iter().map(|inode| ("a page cache", &inode.malformed));
    let bindings = shot.inodes.iter().flat_map(|inode| &inode.views).map(|view| ("bindings", &view.malformed));
    for (tree, malformed) in attributes.chain(caches).chain(bindings) {
        if let Some(first) = malformed.first() {
            return Err(format!("in the tree of {tree}: {first}"));
        }
    }
    Ok(())
}
