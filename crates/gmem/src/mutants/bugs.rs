//! Real defects of the past that are no row of the racing pairs.

use super::registry::{MutantInfo, row};
use crate::kvm::mutants::*;
use sim_mmu::mutants::{BUG_61, BUG_62};

/// The rows.
pub(super) static ROWS: &[MutantInfo] = &[
    row(
        BUG_02,
        "slot flags",
        "that a slot keeps its guest_memfd",
        "a request without the flag replaces the slot, and the file's bindings name the old one",
        &["INV-310", "INV-401"],
        "versions/slot-loses-guest-memfd.toml",
    ),
    row(
        BUG_03,
        "D x R x H",
        "invalidate_lock while a file is unbound that is on its way out",
        "bindings change between the two ends of an invalidation",
        &["INV-301"],
        "races/delete-close-failure.toml",
    ),
    row(
        BUG_05,
        "C failure",
        "binding only when nothing can fail any more, and unbinding if it does",
        "the slot is freed and stays bound",
        &["INV-401"],
        "races/bind-and-fail.toml",
    ),
    row(
        BUG_06,
        "C memory",
        "failing a request whose binding cannot be stored",
        "the slot is there and the file does not know it",
        &["INV-603", "INV-303"],
        "races/bind-without-memory.toml",
    ),
    row(
        BUG_10,
        "lookup x hwpoison error path",
        "putting the reference to a page that turned out broken",
        "the reference leaks",
        &["INV-105"],
        "races/failure-lookup.toml",
    ),
    row(
        BUG_18,
        "S x geometry",
        "that only blocks inside the slot are classified",
        "metadata are read after their end",
        &["INV-209"],
        "races/convert-small-slot.toml",
    ),
    row(
        BUG_21,
        "F x P",
        "comparing guest frames in the retry test: host addresses are compared",
        "an invalidation of private memory never matches",
        &["INV-201"],
        "races/fault-punch.toml",
    ),
    row(
        BUG_27,
        "prefault x D (quirk on)",
        "dropping a root that is not used any more",
        "the pre-fault tries again for ever",
        &["INV-506"],
        "races/prefault-delete-other.toml",
    ),
    row(
        BUG_61,
        "zap x N (quirk on)",
        "starting again at the entry at which the walk yielded",
        "the entry is left out, and what hangs below it leaks",
        &["MMU-INV-004", "MMU-INV-007"],
        "races/zap-roots-yield.toml",
    ),
    row(
        BUG_62,
        "zap x T",
        "flushing before a zap yields",
        "the guest ends an access to a page that was freed meanwhile",
        &["MMU-INV-026", "MMU-INV-031", "INV-203", "INV-202"],
        "races/access-punch-yield.toml",
    )
    .also(&["R09", "YIELD_NO_FLUSH"]),
    row(
        BUG_63,
        "P x D (quirk on)",
        "zapping in roots that are on their way out too",
        "a page is freed while such a root maps it",
        &["INV-201", "INV-203"],
        "races/punch-delete-other.toml",
    )
    .also(&["R46", "NOTIFIER_SKIPS_INVALID"]),
];
