//! Rows about memory attributes and their conversion.

use super::registry::{MutantInfo, row};
use crate::kvm::mutants::*;

/// The rows.
pub(super) static ROWS: &[MutantInfo] = &[
    row(
        RC_27,
        "F x S",
        "the order of sequence and attribute: the attribute is looked at first",
        "a private page is mapped after the conversion to shared, or the other way round",
        &["INV-208"],
        "races/fault-convert.toml",
    )
    .also(&["BUG-20"]),
    row(
        RC_28,
        "F x S",
        "looking at the attribute again",
        "the attribute changed since the exit, and the wrong backing is mapped",
        &["INV-208"],
        "races/fault-convert.toml",
    ),
    row(
        RC_29,
        "F x S",
        "widening an invalidation to the blocks that are converted in part",
        "a huge shared mapping covers a page that is turning private",
        &["INV-208", "INV-209"],
        "races/huge-convert.toml",
    )
    .also(&["BUG-17", "R37", "ATTR_NO_NEIGHBOUR"]),
    row(
        RC_30,
        "F x S",
        "knowing what is mixed before mmu_lock is released",
        "a fault maps a block as a whole that is not uniform any more",
        &["INV-209", "INV-213"],
        "races/huge-convert.toml",
    )
    .also(&["R39", "MIXED_LATE"]),
    row(
        RC_31,
        "F x S",
        "an invalidation that is open while attributes are stored: it ends before",
        "a mapping of the old kind comes back",
        &["INV-208"],
        "races/fault-convert.toml",
    )
    .also(&["R38", "ATTR_NO_SEQ"]),
    row(
        RC_52,
        "C x S",
        "slots_lock in conversions",
        "a new slot takes what is mixed from attributes that are just changing",
        &["INV-209"],
        "races/create-convert.toml",
    ),
    row(
        RC_53,
        "S x S",
        "slots_lock in conversions",
        "two of them interleave page by page",
        &["INV-305", "INV-209", "INV-208"],
        "races/convert-convert.toml",
    ),
    row(
        RC_54,
        "S memory",
        "reserving entries before anything is zapped",
        "storing fails half way: part is converted",
        &["INV-305"],
        "races/convert-without-memory.toml",
    ),
    row(
        RC_55,
        "attribute readers x S",
        "the grace period before nodes of the array are freed",
        "a reader walks a node that was freed",
        &["INV-404"],
        "races/attribute-nodes.toml",
    ),
    row(
        RC_56,
        "bindings readers x C/D",
        "the same for the bindings",
        "a reader walks a node that was freed",
        &["INV-404"],
        "races/binding-nodes.toml",
    ),
];
