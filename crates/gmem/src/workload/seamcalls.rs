//! What KVM asks of the TDX module meanwhile.

use crate::kvm::tdx::KvmTdx;
use sim_coco::tdx::Leaf;
use std::sync::Arc;

/// Leaves by which memory leaves a TD.
const LEAVES: [(Leaf, &str); 7] = [
    (Leaf::MemRangeBlock, "MEM.RANGE.BLOCK"),
    (Leaf::MemTrack, "MEM.TRACK"),
    (Leaf::MemPageRemove, "MEM.PAGE.REMOVE"),
    (Leaf::PhymemPageWbinvd, "PHYMEM.PAGE.WBINVD"),
    (Leaf::PhymemPageReclaim, "PHYMEM.PAGE.RECLAIM"),
    (Leaf::VpFlush, "VP.FLUSH"),
    (Leaf::PhymemCacheWb, "PHYMEM.CACHE.WB"),
];

/// SEAMCALLs, by leaf, and how often all vCPUs were called out of the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seamcalls {
    counts: [u64; LEAVES.len()],
    /// Times that all vCPUs were called out of the guest.
    pub kicks: u64,
}

/// A count that has begun.
pub(super) struct Counting {
    tdx: Arc<KvmTdx>,
    before: Seamcalls,
}

impl Seamcalls {
    fn now(tdx: &KvmTdx) -> Seamcalls {
        Seamcalls { counts: LEAVES.map(|(leaf, _)| tdx.host().calls(leaf)), kicks: tdx.kicks() }
    }

    pub(super) fn begin(tdx: Arc<KvmTdx>) -> Counting {
        Counting { before: Seamcalls::now(&tdx), tdx }
    }

    pub(super) fn end(counting: Counting) -> Seamcalls {
        let after = Seamcalls::now(&counting.tdx);
        let counts = std::array::from_fn(|i| after.counts[i] - counting.before.counts[i]);
        Seamcalls { counts, kicks: after.kicks - counting.before.kicks }
    }

    /// How often this leaf was called, if it is one that is counted.
    pub fn of(&self, leaf: Leaf) -> Option<u64> {
        LEAVES.iter().position(|(counted, _)| *counted == leaf).map(|at| self.counts[at])
    }

    /// Each leaf by its name.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> {
        LEAVES.into_iter().map(|(_, name)| name).zip(self.counts)
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }
}
