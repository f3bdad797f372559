//! Rows about what vCPUs' TLBs hold, and the protocol by which they let go of it.

use super::registry::{MutantInfo, row};
use crate::kvm::mutants::*;

/// The rows.
pub(super) static ROWS: &[MutantInfo] = &[
    row(
        RC_09,
        "any zap x T",
        "the order of mode and requests at entry: a vCPU looks for requests first",
        "it enters with a translation whose flush it has missed, and whoever zapped does not know",
        &["MMU-INV-034", "INV-203", "INV-201"],
        "races/access-punch.toml",
    )
    .also(&["R49", "DEKKER_BROKEN"]),
    row(
        MODE_NO_FENCE,
        "any zap x T",
        "the barrier between a vCPU's mode and its look for requests",
        "with store buffers (`--memory-model tso`) both sides look before either is seen: nobody kicks the vCPU, and it uses a page that was freed",
        &["MMU-INV-026", "INV-203", "INV-201", "INV-202"],
        "races/access-punch.toml",
    )
    .under_tso(),
    row(
        WAIT_ONLY_IN_GUEST,
        "any zap x T, kicked",
        "waiting for a vCPU that somebody else has kicked",
        "a page is freed while the guest is about to use it",
        &["MMU-INV-026", "MMU-INV-033", "INV-203", "INV-201"],
        "mmu/access-punch-kick.toml",
    )
    .also(&["R50"]),
    row(
        ROOTLOAD_NO_FLUSH,
        "D x T (quirk on)",
        "the flush at the load of a root",
        "under the same ASID the translations of the old tree go on",
        &["MMU-INV-031", "MMU-INV-026", "INV-203", "INV-201"],
        "mmu/access-delete-all.toml",
    )
    .also(&["R54"]),
    row(
        OBSOLETE_LATE,
        "D x N x T (quirk on)",
        "asking vCPUs to drop invalid roots in the section that made them invalid",
        "a notifier zaps in an invalid root, where no flush is owed, and a vCPU still runs on it",
        &["MMU-INV-035", "INV-203", "INV-201"],
        "mmu/access-drop-delete.toml",
    )
    .also(&["R44"]),
    row(
        CLEAR_AFTER_ACT,
        "L x T (PML)",
        "the order in which a request is taken and served: it is served first",
        "a request that comes in between is taken for the one that was served: the processor does not log, or the vCPU stays on its root",
        &["MMU-INV-040", "MMU-INV-035"],
        "mmu/enable-pml.toml",
    )
    .also(&["R51"]),
];
