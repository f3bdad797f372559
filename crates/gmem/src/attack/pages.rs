//! Frames of the host that steps name.

use super::step::PageName;
use sim_kernel::Pfn;
use sim_kernel::mm::PhysMem;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Names, and the frames that they came to mean.
pub(super) struct Pages {
    phys: Arc<PhysMem>,
    heads: BTreeMap<String, Pfn>,
}

impl Pages {
    pub(super) fn new(phys: &Arc<PhysMem>) -> Pages {
        Pages { phys: Arc::clone(phys), heads: BTreeMap::new() }
    }

    /// The frame; the first time that a name is used it is a new one, at the head of 2 MiB that are all its own.
    pub(super) fn frame(&mut self, page: &PageName) -> Pfn {
        let phys = &self.phys;
        let new = || phys.alloc_huge_zeroed().expect("no attack needs more pages than the machine has");
        *self.heads.entry(page.name.clone()).or_insert_with(new) + page.offset
    }
}
