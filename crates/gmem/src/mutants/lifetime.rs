//! Rows about who keeps what alive: files, views, VMs, and the order of their ends.

use super::registry::{MutantInfo, row};
use crate::kvm::mutants::*;
use sim_kernel::mutants::{RC_18, RC_40, RC_59};

/// The rows.
pub(super) static ROWS: &[MutantInfo] = &[
    row(
        RC_15,
        "F x R",
        "taking a file only if it is not being released",
        "a look-up resurrects a file that is on its way out",
        &["INV-110", "INV-402"],
        "races/fault-release.toml",
    )
    .also(&["R64", "GMEM_DEAD_FILE"]),
    row(
        RC_17,
        "F x R",
        "the zap in the release",
        "mappings survive their file, and its pages are freed",
        &["INV-201", "INV-303"],
        "races/fault-release.toml",
    ),
    row(
        RC_18,
        "F x R",
        "that only the last reference releases",
        "the view is released under a look-up",
        &["INV-402"],
        "races/fault-release.toml",
    ),
    row(
        RC_40,
        "U x R",
        "the reference of an area to its file",
        "the view is released while it is mapped",
        &["INV-402", "INV-403"],
        "races/host-release.toml",
    ),
    row(
        RC_45,
        "H x R",
        "invalidate_lock in the handling of a broken page",
        "the view is released under its hands",
        &["INV-402", "INV-301"],
        "races/failure-release.toml",
    ),
    row(
        RC_50,
        "D x R",
        "slots_lock in the release",
        "a deletion erases bindings of a view that was released, or the release meets a slot that was freed",
        &["INV-402", "INV-303", "INV-401"],
        "races/delete-close.toml",
    ),
    row(
        RC_51,
        "D x R",
        "unbinding a file whose last reference is gone",
        "the bindings remain, and the release goes through them to a slot that was freed",
        &["INV-401"],
        "races/delete-close.toml",
    )
    .also(&["BUG-01"]),
    row(
        RC_58,
        "R/V",
        "the reference of a guest_memfd to its VM",
        "the VM dies while its guest_memfd is open",
        &["INV-407", "INV-405"],
        "races/close-vm.toml",
    ),
    row(
        RC_59,
        "put under lock",
        "putting off the release after a last put in the kernel",
        "the release takes slots_lock, which the task holds already",
        &["INV-505", "INV-501"],
        "races/create-close.toml",
    ),
    row(
        RC_62,
        "H x P",
        "nothing: the order of locks that Linux has. Off where the machine says so",
        "a failing page waits for invalidate_lock with the page locked, a hole the other way round",
        &["INV-501"],
        "races/failure-punch.toml",
    ),
];
