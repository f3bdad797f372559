//! Rows about MMU notifiers and invalidations that overlap.

use super::registry::{MutantInfo, row};
use crate::kvm::mutants::*;
use sim_mmu::mutants::{RC_34, RC_35};

/// The rows.
pub(super) static ROWS: &[MutantInfo] = &[
    row(
        RC_32,
        "F x N",
        "the retry protocol for pages of user memory",
        "the guest maps a page that the host has dropped",
        &["INV-210", "INV-203"],
        "races/fault-unmap.toml",
    ),
    row(
        RC_33,
        "N x C/D/M",
        "the wait of a change of the slots for open notifiers",
        "the two ends of a notifier see different slots",
        &["INV-301"],
        "races/notifier-delete.toml",
    )
    .also(&["BUG-22"]),
    row(
        RC_34,
        "N x N, N x P, N x S",
        "the count of open invalidations",
        "the end of one ends the other too",
        &["INV-301", "INV-302", "INV-201"],
        "races/notifier-punch.toml",
    ),
    row(
        RC_35,
        "range hull",
        "that only the first of overlapping invalidations forgets the old range",
        "faults do not stay away from the first range any more",
        &["INV-302"],
        "races/notifier-punch.toml",
    )
    .also(&["R06", "RANGE_RESET"]),
];
