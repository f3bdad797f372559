//! Rows about memory slots: publication, deletion, binding.

use super::registry::{MutantInfo, row};
use crate::kvm::mutants::*;

/// The rows.
pub(super) static ROWS: &[MutantInfo] = &[
    row(
        RC_19,
        "F x C",
        "the order of binding and publication: a slot is published first",
        "a fault finds a slot that its file does not know",
        &["INV-304", "INV-603"],
        "races/fault-create.toml",
    ),
    row(
        RC_20,
        "F x D",
        "the wait for everybody who may use the old slots",
        "a fault maps through a slot that was zapped and freed",
        &["INV-204", "INV-401"],
        "races/fault-delete.toml",
    ),
    row(
        RC_21,
        "F x D",
        "the INVALID step with its own wait before the zap",
        "a vCPU maps through the old slot between zap and removal",
        &["INV-204"],
        "races/fault-delete.toml",
    )
    .also(&["R41", "DELETE_ZAP_BEFORE_SYNC"]),
    row(
        RC_22,
        "F x D",
        "trying again where a slot is INVALID",
        "the guest gets an MMIO exit for memory that still exists",
        &["INV-604"],
        "races/fault-delete.toml",
    )
    .also(&["R42", "INVALID_AS_NOSLOT"]),
    row(
        RC_23,
        "prefault x D",
        "giving up where a slot is INVALID",
        "the pre-fault tries again inside SRCU, and the deletion waits for SRCU",
        &["INV-501"],
        "races/prefault-delete.toml",
    )
    .also(&["BUG-25"]),
    row(
        RC_24,
        "F x D (quirk on)",
        "the test under mmu_lock that the root is still in use",
        "a mapping is added to a root that is being taken apart",
        &["INV-205"],
        "races/fault-delete-other.toml",
    )
    .also(&["BUG-65", "R45", "ROOT_NO_RECHECK"]),
    row(
        RC_25,
        "F cache x M/D",
        "the generation of a vCPU's cached slot",
        "a slot that was freed is used",
        &["INV-401"],
        "races/fault-delete.toml",
    ),
    row(
        RC_26,
        "MMIO SPTE x C",
        "the generation of MMIO entries",
        "the memory of a new slot goes on acting as MMIO",
        &["INV-207"],
        "races/mmio-create.toml",
    )
    .also(&["R65", "MMIO_GEN_IGNORED"]),
    row(
        RC_42,
        "P x P, P x C, P x D",
        "invalidate_lock around a hole",
        "bindings change between the two ends of its invalidation",
        &["INV-301", "INV-303"],
        "races/punch-delete.toml",
    ),
    row(
        RC_44,
        "P x D",
        "the order of unbinding and freeing: a slot is freed first",
        "a hole goes through the bindings to a slot that was freed",
        &["INV-401"],
        "races/punch-delete.toml",
    ),
    row(
        RC_47,
        "C x C same gmem",
        "the test for overlapping bindings",
        "two slots own one page of a file",
        &["INV-303"],
        "races/create-create.toml",
    ),
    row(
        RC_49,
        "C x R",
        "the reference to the file while a slot is made",
        "nothing alone: the release takes slots_lock, which the request holds throughout. With RC-50 off as well, the view is released while a slot is bound to it (INV-402)",
        &[],
        "races/create-close.toml",
    ),
    row(
        RC_60,
        "swap x SRCU",
        "that slots_arch_lock is released before the wait for vCPUs",
        "a vCPU in SRCU waits for slots_arch_lock, whose holder waits for SRCU",
        &["INV-501"],
        "races/first-run-create.toml",
    ),
    row(
        RC_66,
        "binding bounds",
        "unsigned addition of a binding's offset and size",
        "the sum wraps and a slot is bound to pages after the end of its file",
        &["INV-306"],
        "versions/bind-past-the-end.toml",
    )
    .also(&["BUG-07"]),
];
