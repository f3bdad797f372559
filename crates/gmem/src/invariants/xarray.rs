//! INV-701: the shape of the kernel's index trees (`lib/xarray.c`).

use super::{Invariant, Section};

pub(super) static ROWS: &[Invariant] = &[Invariant {
    id: "INV-701",
    section: Section::Xarray,
    text: "In every linked node of an xarray the counts are those of its slots, it is not empty, parent, offset and shift fit its place, marks \
           are the union of its children's, siblings follow their entry in the same node, and no retry entry is linked.",
    window: "inside the xa_lock, which is within one step",
    when: &[],
    note: "",
}];
