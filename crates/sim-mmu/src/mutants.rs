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
/// A table says that its huge page may not be executable before it is linked.
pub const BUG_66: Mutant = Mutant::new(101, "BUG-66");
/// A fault that meets a frozen entry tries again.
pub const BUG_67: Mutant = Mutant::new(122, "BUG-67");
/// Ageing changes an entry by compare-exchange.
pub const BUG_68: Mutant = Mutant::new(102, "BUG-68");
/// A fault that comes while an invalidation of its page is open tries again.
pub const SEQ_ONLY: Mutant = Mutant::new(103, "SEQ_ONLY");
/// So does one during which an invalidation ended.
pub const INPROGRESS_ONLY: Mutant = Mutant::new(104, "INPROGRESS_ONLY");
/// After a yield nothing is done with what was read before.
pub const YIELD_STALE_ITER: Mutant = Mutant::new(105, "YIELD_STALE_ITER");
/// Whoever loses the race to link a table frees its own.
pub const LOST_LINK: Mutant = Mutant::new(106, "LOST_LINK");
/// The entries of a table that was taken out are frozen.
pub const NO_FREEZE_CHILDREN: Mutant = Mutant::new(107, "NO_FREEZE_CHILDREN");
/// A table is freed when nobody can be in it any more.
pub const FREE_NO_RCU: Mutant = Mutant::new(108, "FREE_NO_RCU");
/// The fast path marks a page dirty after it made its entry writable.
pub const MARK_BEFORE_W: Mutant = Mutant::new(109, "MARK_BEFORE_W");
/// The fast path leaves huge leafs of a logged slot alone.
pub const FAST_HUGE_LOG: Mutant = Mutant::new(110, "FAST_HUGE_LOG");
/// A split maps the pages that the huge leaf mapped.
pub const SPLIT_BAD_CHILD: Mutant = Mutant::new(111, "SPLIT_BAD_CHILD");
/// A table is filled before it is linked.
pub const LINK_BEFORE_INIT: Mutant = Mutant::new(112, "LINK_BEFORE_INIT");
/// Recovery makes no huge leaf over mixed attributes.
pub const RECOVER_IGNORES_MIXED: Mutant = Mutant::new(113, "RECOVER_IGNORES_MIXED");
/// Whoever makes a root looks for one again under the lock.
pub const ROOT_NO_RESEARCH: Mutant = Mutant::new(114, "ROOT_NO_RESEARCH");
/// Whoever walks the list of roots takes no reference to one that is on its way out.
pub const ROOT_GET_PLAIN: Mutant = Mutant::new(115, "ROOT_GET_PLAIN");
/// Entries of EPT that say nothing of MMIO suppress #VE.
pub const SVE_DROPPED: Mutant = Mutant::new(116, "SVE_DROPPED");
/// An entry of a mirror is frozen while the external tables are changed.
pub const MIRROR_NO_FREEZE: Mutant = Mutant::new(117, "MIRROR_NO_FREEZE");
/// It gets its old value back if they refuse.
pub const MIRROR_STUCK_FROZEN: Mutant = Mutant::new(118, "MIRROR_STUCK_FROZEN");
/// A fault never puts a large leaf in the place of a table of a mirror.
pub const BUG_57: Mutant = Mutant::new(123, "BUG-57");
/// Recovery flushes before the tables that it took out may be freed.
pub const RECOVER_NO_FLUSH: Mutant = Mutant::new(119, "RECOVER_NO_FLUSH");
/// It ends its RCU read section only then.
pub const RCU_BEFORE_FLUSH: Mutant = Mutant::new(120, "RCU_BEFORE_FLUSH");
/// Pages are collected while no fault is between its mark and its entry.
pub const COLLECT_READLOCK: Mutant = Mutant::new(121, "COLLECT_READLOCK");
