//! The hypervisor's side: state of every page for it, pins of what it shares with the host, and what is mapped at EL2 (`pkvm_pgtable`).
//!
//! Simplified: EL2's stage 1 is the set of frames that it maps.

use super::el2::El2;
use super::trace::TraceEvent;
use super::types::PageState;
use sim_kernel::Pfn;
use std::collections::{BTreeMap, BTreeSet};

/// A page in the hypervisor's view.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HypPage {
    pub(super) state: PageState,
    /// Pins, of a page that the host shares.
    pub(super) refcount: u16,
}

impl Default for HypPage {
    /// As zeroed metadata has it: the state is stored so that zero means no page.
    fn default() -> HypPage {
        HypPage { state: PageState::NoPage, refcount: 0 }
    }
}

/// What the hypervisor's lock guards.
#[derive(Debug, Default)]
pub(super) struct HypMmu {
    pub(super) pages: BTreeMap<Pfn, HypPage>,
    /// Frames that EL2 can access.
    pub(super) mapped: BTreeSet<Pfn>,
}

impl HypMmu {
    pub(super) fn page(&self, pfn: Pfn) -> HypPage {
        self.pages.get(&pfn).copied().unwrap_or_default()
    }
}

impl El2<'_> {
    pub(super) fn set_hyp_state(&self, hyp: &mut HypMmu, pfn: Pfn, state: PageState) {
        let old = std::mem::replace(&mut hyp.pages.entry(pfn).or_default().state, state);
        self.record_state("hyp", pfn, old, state);
    }

    pub(super) fn map_el2(&self, hyp: &mut HypMmu, pfn: Pfn) {
        if hyp.mapped.insert(pfn) {
            self.record(TraceEvent::El2Map { pfn, mapped: true });
        }
    }

    pub(super) fn unmap_el2(&self, hyp: &mut HypMmu, pfn: Pfn) {
        if hyp.mapped.remove(&pfn) {
            self.record(TraceEvent::El2Map { pfn, mapped: false });
        }
    }
}
