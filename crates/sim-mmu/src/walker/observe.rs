//! Hooks of a walk, as a type: without one they cost nothing.

use crate::addr::Level;

/// Who is told what a walk does.
pub trait WalkObserver {
    /// An entry of a guest's table is read.
    #[inline]
    fn guest_reference(&mut self, _level: Level) {}
    /// An entry of a stage-2 table is read.
    #[inline]
    fn stage2_reference(&mut self, _level: Level) {}
    /// A and D bits are set, in a table of either stage.
    #[inline]
    fn update(&mut self) {}
    /// The walk starts over, because an entry changed between its read and its update.
    #[inline]
    fn restart(&mut self) {}
    /// The acceleration TLB did not have the translation, the architectural one did.
    #[inline]
    fn tlb_hit(&mut self) {}
    /// Neither TLB had it: a walk begins.
    #[inline]
    fn walk(&mut self) {}
}

/// Nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl WalkObserver for NoObserver {}

/// Counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CountReferences {
    /// Entries of guest tables that were read.
    pub guest: u64,
    /// Entries of stage-2 tables that were read.
    pub stage2: u64,
    /// Locked updates of A and D.
    pub updates: u64,
    /// Walks that started over.
    pub restarts: u64,
    /// Hits of the architectural TLB behind the acceleration TLB.
    pub tlb_hits: u64,
    /// Walks.
    pub walks: u64,
}

impl CountReferences {
    /// Entries read, of both stages.
    pub const fn references(&self) -> u64 {
        self.guest + self.stage2
    }
}

impl WalkObserver for CountReferences {
    #[inline]
    fn guest_reference(&mut self, _level: Level) {
        self.guest += 1;
    }
    #[inline]
    fn stage2_reference(&mut self, _level: Level) {
        self.stage2 += 1;
    }
    #[inline]
    fn update(&mut self) {
        self.updates += 1;
    }
    #[inline]
    fn restart(&mut self) {
        self.restarts += 1;
    }
    #[inline]
    fn tlb_hit(&mut self) {
        self.tlb_hits += 1;
    }
    #[inline]
    fn walk(&mut self) {
        self.walks += 1;
    }
}
