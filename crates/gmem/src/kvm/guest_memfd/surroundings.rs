//! Looks at a file before and after a hole is punched, for the invariants about holes. Nothing of the kernel.

use super::GmemInode;
use sim_kernel::{Pfn, Pgoff};
use std::ops::Range;

/// What INV-103 and INV-108 need to know of a file before a hole is punched: the pages of the hole, of a large one the first, and
/// its neighbours. A frame is the same page while its generation is the same.
pub(super) struct Surroundings {
    hole: Vec<(Pgoff, Pfn, u32)>,
    beside: [Option<(Pgoff, Pfn, u32)>; 2],
}

impl Surroundings {
    /// Pages of a hole that are looked at.
    const MOST: usize = 64;

    pub(super) fn of(inode: &GmemInode, pages: &Range<u64>) -> Surroundings {
        let page = |index: Pgoff, pfn: Pfn| (index, pfn, inode.host.phys.generation(pfn));
        let at = |index: u64| inode.mapping.peek(Pgoff(index)).map(|pfn| page(Pgoff(index), pfn));
        let hole = inode.mapping.peek_range(pages.clone(), Self::MOST);
        Surroundings {
            hole: hole.into_iter().map(|(index, pfn)| page(index, pfn)).collect(),
            beside: [pages.start.checked_sub(1).and_then(at), at(pages.end)],
        }
    }

    fn is_there(inode: &GmemInode, &(index, pfn, generation): &(Pgoff, Pfn, u32)) -> bool {
        inode.mapping.peek(index) == Some(pfn) && inode.host.phys.generation(pfn) == generation
    }

    pub(super) fn check(&self, inode: &GmemInode) {
        for page @ (index, pfn, _) in &self.hole {
            assert!(
                !Self::is_there(inode, page),
                "INV-103: {pfn:?} is still at {index:?} after a hole was punched there"
            );
        }
        for page @ (index, pfn, _) in self.beside.iter().flatten() {
            assert!(
                Self::is_there(inode, page),
                "INV-108: {pfn:?} at {index:?} went away with a hole that was punched beside it"
            );
        }
    }
}
