//! The Shared EPT of a TD: the direct root of its vCPUs, as the processor walks it for an address with the shared bit.
//!
//! Simplified: no A and D bits, which EPTP_CONTROLS of a TD do not have either; an MMIO entry has the bits of any other VM's, and counts as one without
//! rights that does not suppress `#VE` (`kvm_mmu_set_mmio_spte_value`).

use crate::kvm::vm::{Vm, WeakVm};
use sim_coco::AccessKind;
use sim_coco::tdx::{SharedEpt, SharedWalk};
use sim_kernel::{Cx, Pfn};
use sim_mmu::{Access, Gpa, Level, Root, Spte, WalkMemory};
use std::fmt;
use std::sync::Arc;

/// The tables behind a Shared EPT pointer.
pub(super) struct SharedTables {
    vm: WeakVm,
    root: Pfn,
    level: Level,
}

impl SharedTables {
    /// Those of this root.
    pub(super) fn new(vm: &Arc<Vm>, root: &Root) -> SharedTables {
        SharedTables { vm: Arc::downgrade(vm), root: root.table(), level: root.level() }
    }
}

impl fmt::Debug for SharedTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTables").field("root", &self.root).finish_non_exhaustive()
    }
}

fn access_of(kind: AccessKind) -> Access {
    match kind {
        AccessKind::Read => Access::Read,
        AccessKind::Write => Access::Write,
        AccessKind::Fetch => Access::Exec,
    }
}

impl SharedEpt for SharedTables {
    fn walk(&self, cx: &Cx<'_>, gpa: Gpa, kind: AccessKind) -> SharedWalk {
        let Some(vm) = self.vm.upgrade() else { return SharedWalk::Violation };
        let masks = vm.mmu().masks();
        let (mut table, mut level) = (self.root, self.level);
        loop {
            // The shared bit is a part of the index.
            let entry = Spte(vm.mmu().stage2_entry(cx, table, level, gpa.gfn().index(level)));
            if entry.is_table(level) {
                (table, level) = (entry.pfn(), level.down().expect("a table has a level below"));
                continue;
            }
            if !entry.is_leaf(level) {
                return if masks.is_mmio(entry) { SharedWalk::Ve } else { SharedWalk::Violation };
            }
            if !masks.is_access_allowed(entry, access_of(kind)) {
                return SharedWalk::Violation;
            }
            return SharedWalk::Mapped { pfn: entry.pfn(), level, writable: entry.is_writable() };
        }
    }
}
