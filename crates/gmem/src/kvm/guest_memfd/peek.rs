//! What a guest_memfd shows checkers of its bindings: no scheduling points.

use super::GmemFile;
use crate::kvm::memslots::Memslot;
use sim_kernel::Pgoff;
use sim_kernel::xarray::{NodeShape, XaViolation};
use std::sync::Arc;

impl GmemFile {
    /// What is wrong with the structure of the bindings (INV-701).
    pub fn check_bindings(&self) -> Vec<XaViolation> {
        self.bindings.check()
    }

    /// The nodes of the bindings, parents before children, without scheduling points: for reports.
    pub fn bindings_shape(&self) -> impl Iterator<Item = NodeShape> {
        self.bindings.shape()
    }

    /// Every binding, as first and last page and the slot's handle, without scheduling points: for checkers.
    pub(crate) fn peek_bindings(&self) -> Vec<(Pgoff, Pgoff, u32)> {
        let mut found = Vec::new();
        let mut from = Some(0);
        while let Some((first, last, handle)) = from.and_then(|from| self.bindings.peek_entry(from, u64::MAX)) {
            found.push((Pgoff(first), Pgoff(last), handle.0));
            from = last.checked_add(1);
        }
        found
    }

    /// The slots that the bindings name, for checkers.
    pub(crate) fn peek_slots(&self) -> Vec<Arc<Memslot>> {
        self.slots.lock().values().cloned().collect()
    }

    /// The slot that owns a page of the file, without a scheduling point: for checkers.
    pub fn peek_binding(&self, index: Pgoff) -> Option<u32> {
        self.bindings.peek(index.0).map(|handle| handle.0)
    }
}
