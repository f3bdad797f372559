//! Rows about the page cache: look-up, insertion, clearing, truncation, and the host's own mappings.

use super::registry::{MutantInfo, row};
use crate::kvm::mutants::*;
use sim_kernel::mutants::{RC_10, RC_37, RC_38, RC_39, RC_41, RC_46, RC_57};
use sim_mmu::mutants::RC_12;

/// The rows.
pub(super) static ROWS: &[MutantInfo] = &[
    row(
        RC_10,
        "F x P",
        "the test that a locked page is still cached",
        "a look-up returns a page that was truncated while it waited for the lock",
        &["INV-104", "INV-101"],
        "races/fault-punch.toml",
    ),
    row(
        RC_11,
        "F x P",
        "the reference that a fault holds until its page is mapped",
        "the page may be freed and used for something else before it is mapped",
        &["INV-105", "INV-203"],
        "races/fault-punch.toml",
    ),
    row(
        RC_12,
        "F x F same gfn",
        "the compare-exchange that installs an entry",
        "two vCPUs install one after the other: an entry is lost, and what hung below it leaks",
        &["INV-206", "MMU-INV-006", "INV-201", "INV-203", "MMU-INV-002", "MMU-INV-007"],
        "races/fault-fault.toml",
    )
    .also(&["R12", "PLAIN_STORE_READLOCK"]),
    row(
        RC_13,
        "F x F",
        "the folio lock around test and clearing",
        "a page is cleared a second time, after the guest wrote to it",
        &["INV-107"],
        "races/fault-fault.toml",
    ),
    row(
        RC_14,
        "F x A",
        "that only clearing makes a page up to date: fallocate does too",
        "the guest sees what was in the host's memory before",
        &["INV-106", "INV-109"],
        "races/fault-allocate.toml",
    ),
    row(
        RC_36,
        "F x H",
        "the test for broken pages in the look-up",
        "the guest maps a broken page again",
        &["INV-211"],
        "races/fault-failure.toml",
    ),
    row(
        RC_37,
        "F x U",
        "taking the winner's page after an insertion that failed",
        "guest and host see different pages",
        &["INV-101", "INV-102"],
        "races/fault-host.toml",
    ),
    row(
        RC_38,
        "U x P",
        "the folio lock while a page is taken out of page tables",
        "the host maps a page that is just being removed",
        &["INV-212"],
        "races/host-punch.toml",
    ),
    row(
        RC_39,
        "U x U",
        "the second look at the entry under the page-table lock",
        "an entry is overwritten and its page leaks",
        &["INV-105"],
        "races/host-host.toml",
    ),
    row(
        RC_41,
        "G x P",
        "the reference of whoever gets a user's page",
        "a page that is in use is freed",
        &["INV-105"],
        "races/first-fault.toml",
    ),
    row(
        RC_43,
        "P x A",
        "invalidate_lock in fallocate",
        "a page appears in the middle of a truncation, which may never end",
        &["INV-103"],
        "races/punch-allocate.toml",
    ),
    row(
        RC_46,
        "A x A, A x F",
        "insertion only where nothing is",
        "two pages for one index",
        &["INV-101"],
        "races/allocate-allocate.toml",
    ),
    row(
        RC_57,
        "i_pages readers x P",
        "the second look at the entry once the reference is there",
        "a reader gets a page that serves another index by now",
        &["INV-101", "INV-105"],
        "races/fault-punch-reuse.toml",
    ),
    row(
        RC_61,
        "E x G",
        "that eviction only drops the cache's own reference",
        "a page that a fault holds is freed",
        &["INV-105", "INV-203"],
        "races/evict-pinned.toml",
    ),
    row(
        RC_64,
        "lookup x hwpoison error path",
        "unlocking a page that turned out broken",
        "the page stays locked for ever, and a hole waits for it",
        &["INV-502", "INV-501"],
        "races/failure-lookup.toml",
    ),
    row(
        RC_65,
        "P range arithmetic",
        "moving and clipping a hole to the slot",
        "the wrong frames are zapped, and pages are freed while they are mapped",
        &["INV-201"],
        "races/punch-offset.toml",
    ),
];
