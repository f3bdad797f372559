//! Rows about the sequence of invalidations that faults hold their look-ups against, and about the flush of TLBs.

use super::registry::{MutantInfo, row};
use crate::kvm::mutants::*;
use sim_mmu::mutants::{RC_04, RC_05};

/// The rows.
pub(super) static ROWS: &[MutantInfo] = &[
    row(
        RC_01,
        "F x P",
        "the test of the sequence under mmu_lock",
        "a fault found its page, a hole frees it, the fault maps it nevertheless",
        &["INV-201", "INV-203"],
        "races/fault-punch.toml",
    )
    .also(&["R01", "STALE_CHECK_SKIPPED"]),
    row(
        RC_02,
        "F x P",
        "the order of sequence and look-up: the sequence is taken after the page was found",
        "a hole between look-up and sequence goes unnoticed",
        &["INV-201", "INV-203"],
        "races/fault-punch.toml",
    )
    .also(&["R05", "SEQ_LATE"]),
    row(
        RC_03,
        "F x P",
        "an invalidation that is open until the pages are gone: it ends after the zap",
        "a fault between zap and truncation maps a page that is about to go",
        &["INV-201"],
        "races/fault-punch.toml",
    ),
    row(
        RC_04,
        "F x P",
        "the new sequence at the end of an invalidation",
        "a fault that began before the hole and maps after it sees nothing",
        &["INV-201"],
        "races/fault-punch.toml",
    ),
    row(
        RC_05,
        "F x P",
        "the order of sequence and count at the end of an invalidation",
        "nothing on x86, where the test that decides holds mmu_lock, under which both change",
        &[],
        "races/fault-punch.toml",
    )
    .also(&["R04", "END_ORDER_SWAPPED"]),
    row(
        RC_06,
        "F x P",
        "the order of announcement and zap: a range is announced after it was zapped",
        "the zap releases mmu_lock on its way and a fault maps again what was zapped",
        &["INV-302", "INV-201"],
        "races/fault-punch-two.toml",
    ),
    row(
        RC_07,
        "F x P",
        "the order of zap and truncation: pages go first",
        "the guest uses pages that were freed",
        &["INV-201", "INV-202"],
        "races/access-punch.toml",
    ),
    row(
        RC_08,
        "P x T",
        "the flush of TLBs before mmu_lock is released",
        "the guest goes on using a page that was freed: its TLB still has it",
        &["INV-203", "INV-201", "INV-202", "MMU-INV-026", "MMU-INV-031"],
        "races/access-punch.toml",
    )
    .also(&["R08", "FLUSH_MISSING"]),
];
