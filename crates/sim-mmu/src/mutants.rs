//! The rules of this crate that can be switched off, by the ids of the specifications of racing pairs and of real defects. What each
//! takes away and what goes wrong then is told by `gmem::mutants`.

use sim_kernel::Mutant;

/// The end of an invalidation advances the sequence.
pub const RC_04: Mutant = Mutant::new(64, "RC-04");
/// It does so before it counts itself out.
pub const RC_05: Mutant = Mutant::new(65, "RC-05");
/// An entry is installed by compare-exchange.
pub const RC_12: Mutant = Mutant::new(66, "RC-12");
/// Invalidations that overlap in time are counted.
pub const RC_34: Mutant = Mutant::new(67, "RC-34");
/// Only the first of them forgets the old range.
pub const RC_35: Mutant = Mutant::new(68, "RC-35");
/// A walk that yielded starts again at the entry at which it stood.
pub const BUG_61: Mutant = Mutant::new(69, "BUG-61");
/// A zap that yields flushes first what it cleared.
pub const BUG_62: Mutant = Mutant::new(70, "BUG-62");
