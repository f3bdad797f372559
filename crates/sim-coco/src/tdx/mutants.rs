//! Rules of the module that can be switched off: the checks that stop an attack, and those that catch a mistake of software.
//!
//! They are looked up once, when the machine is made ([`Tdx::new`](super::Tdx::new)): whoever wants a machine without a rule says so with
//! [`Cx::set_mutants`](sim_kernel::Cx::set_mutants) before. Real modules have all of them.

use sim_kernel::{Cx, Mutant, MutantSet};

/// Mappings are removed, moved and split though they are not blocked.
pub const BLOCKED: Mutant = Mutant::new(337, "TDX-BLOCKED");
/// Tracking is never asked for.
pub const TRACKED: Mutant = Mutant::new(338, "TDX-TRACKED");
/// UNBLOCK does not ask for tracking.
pub const UNBLOCK_TRACKED: Mutant = Mutant::new(339, "TDX-UNBLOCK-TRACKED");
/// VP.ENTER in a new epoch flushes nothing.
pub const EPOCH_FLUSH: Mutant = Mutant::new(340, "TDX-EPOCH-FLUSH");
/// VP.ENTER after another vCPU on the same processor flushes nothing.
pub const LP_FLUSH: Mutant = Mutant::new(341, "TDX-LP-FLUSH");
/// TRACK does not wait for vCPUs of the epoch before.
pub const PREVIOUS_EPOCH: Mutant = Mutant::new(342, "TDX-PREVIOUS-EPOCH");
/// Guests use pages that they have not accepted.
pub const PENDING: Mutant = Mutant::new(343, "TDX-PENDING");
/// ACCEPT zeroes nothing.
pub const ACCEPT_ZEROES: Mutant = Mutant::new(344, "TDX-ACCEPT-ZEROES");
/// ACCEPT of an accepted page zeroes it again.
pub const ACCEPTED_ONCE: Mutant = Mutant::new(345, "TDX-ACCEPTED-ONCE");
/// ACCEPT does not lock the entry.
pub const ENTRY_LOCK: Mutant = Mutant::new(346, "TDX-ENTRY-LOCK");
/// BLOCK and UNBLOCK hold the tree shared only.
pub const TREE_LOCK: Mutant = Mutant::new(347, "TDX-TREE-LOCK");
/// A page that is in use is taken as new.
pub const NDA: Mutant = Mutant::new(348, "TDX-NDA");
/// A page of 2 MiB is taken though parts of it are in use.
pub const RANGE_FREE: Mutant = Mutant::new(349, "TDX-RANGE-FREE");
/// SEPT.REMOVE takes tables that are in use.
pub const SEPT_EMPTY: Mutant = Mutant::new(350, "TDX-SEPT-EMPTY");
/// PROMOTE takes whatever the children are.
pub const PROMOTE_CONDITIONS: Mutant = Mutant::new(351, "TDX-PROMOTE-CONDITIONS");
/// PAGE.ADD reads its source through private KeyIDs.
pub const SOURCE_KEYID: Mutant = Mutant::new(352, "TDX-SOURCE-KEYID");
/// PAGE.ADD is not measured.
pub const MEASURES_ADD: Mutant = Mutant::new(353, "TDX-MEASURES-ADD");
/// A TD reads lines that the host wrote, and what its key makes of another's.
pub const INTEGRITY: Mutant = Mutant::new(354, "TDX-INTEGRITY");
/// RECLAIM takes pages of a TD whose key is in use.
pub const TEARDOWN: Mutant = Mutant::new(355, "TDX-TEARDOWN");
/// RECLAIM takes a TDR of which pages are left.
pub const CHILDREN: Mutant = Mutant::new(356, "TDX-CHILDREN");
/// KEY.FREEID does not ask for CACHE.WB.
pub const WBCACHE: Mutant = Mutant::new(357, "TDX-WBCACHE");
/// VPFLUSHDONE does not ask for VP.FLUSH.
pub const VPFLUSH: Mutant = Mutant::new(358, "TDX-VPFLUSH");
/// VP.ENTER does not look where the vCPU was.
pub const ASSOCIATED: Mutant = Mutant::new(359, "TDX-ASSOCIATED");
/// Faults without progress are never noticed.
pub const ZERO_STEP: Mutant = Mutant::new(360, "TDX-ZERO-STEP");
/// ACCEPT of 4 KiB takes a whole page of 2 MiB that is pending, and zeroes what it was asked for.
pub const ACCEPT_SIZE: Mutant = Mutant::new(361, "TDX-ACCEPT-SIZE");

/// All of them.
pub const ALL: [Mutant; 25] = [
    BLOCKED,
    TRACKED,
    UNBLOCK_TRACKED,
    EPOCH_FLUSH,
    LP_FLUSH,
    PREVIOUS_EPOCH,
    PENDING,
    ACCEPT_ZEROES,
    ACCEPTED_ONCE,
    ENTRY_LOCK,
    TREE_LOCK,
    NDA,
    RANGE_FREE,
    SEPT_EMPTY,
    PROMOTE_CONDITIONS,
    SOURCE_KEYID,
    MEASURES_ADD,
    INTEGRITY,
    TEARDOWN,
    CHILDREN,
    WBCACHE,
    VPFLUSH,
    ASSOCIATED,
    ZERO_STEP,
    ACCEPT_SIZE,
];

/// Those that are on in this simulation.
pub(super) fn chosen(cx: &Cx<'_>) -> MutantSet {
    ALL.into_iter().filter(|mutant| cx.has_mutant(*mutant)).collect()
}
