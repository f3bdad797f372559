//! What a page fault brings to the MMU and what comes out of it (`struct kvm_page_fault`, `enum RET_PF_*` of
//! `arch/x86/kvm/mmu/mmu_internal.h`), and what the MMU asks the memslot.

use crate::addr::{Gfn, GfnRange, Gpa, Level};
use crate::spte::Access;
use sim_kernel::{Cx, Pfn};

/// A stage-2 fault on its way to a mapping.
#[derive(Clone, Debug)]
pub struct TdpFault {
    /// The faulting address, without shared or C-bit.
    pub gpa: Gpa,
    /// Data write.
    pub write: bool,
    /// Instruction fetch.
    pub exec: bool,
    /// The hardware found a present entry that forbids the access.
    pub present: bool,
    /// The hardware found a reserved bit or a misconfiguration.
    pub rsvd: bool,
    /// Not an access but `KVM_PRE_FAULT_MEMORY`.
    pub prefetch: bool,
    /// The access is to private memory.
    pub is_private: bool,
    /// The frame that was looked up; `None` without a memslot (an MMIO entry is installed).
    pub pfn: Option<Pfn>,
    /// The mapping may be writable.
    pub map_writable: bool,
    /// Largest level that the frame's owner allows.
    pub max_level: Level,
    /// The level at which it is mapped: what mapping decided, 4 KiB before.
    pub goal_level: Level,
    /// `kvm_vcpu_memslots(vcpu)->generation`, all 64 bits; only its low 18 bits are stored.
    pub mmio_generation: u64,
}

impl TdpFault {
    /// A read of this address, of which nothing else is known yet: what differs is said by structure update.
    pub const fn at(gpa: Gpa, is_private: bool) -> TdpFault {
        TdpFault {
            gpa,
            write: false,
            exec: false,
            present: false,
            rsvd: false,
            prefetch: false,
            is_private,
            pfn: None,
            map_writable: false,
            max_level: Level::L1G,
            goal_level: Level::L4K,
            mmio_generation: 0,
        }
    }

    /// The faulting frame.
    #[inline]
    pub const fn gfn(&self) -> Gfn {
        self.gpa.gfn()
    }

    /// How memory is accessed.
    #[inline]
    pub const fn access(&self) -> Access {
        if self.write {
            Access::Write
        } else if self.exec {
            Access::Exec
        } else {
            Access::Read
        }
    }
}

/// `RET_PF_*`: how a fault was handled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum RetPf {
    /// Internal: not decided yet.
    Continue = 0,
    /// Let the guest access again.
    Retry = 1,
    /// Emulate the instruction.
    Emulate = 2,
    /// The gfn is write-tracked.
    WriteProtected = 3,
    /// The fast path declined; never leaves the handler.
    Invalid = 4,
    /// A mapping was installed or widened.
    Fixed = 5,
    /// There was nothing to do.
    Spurious = 6,
}

/// What the MMU must know of a memslot.
pub trait SlotView {
    /// The frames of the slot.
    fn range(&self) -> GfnRange;
    /// Whether writes are logged.
    fn is_dirty_logged(&self) -> bool;
    /// `mark_page_dirty_in_slot`.
    fn mark_page_dirty(&self, cx: &Cx<'_>, gfn: Gfn);
    /// Whether `lpage_info` of a level above 4 KiB is not zero for the block of `gfn`.
    fn lpage_disallowed(&self, gfn: Gfn, level: Level) -> bool;
    /// Size of the host's mapping of `gfn` now: for private and guest_memfd-only memory that of the folio (and of the RMP), else
    /// that of the host page table. `fault` is `None` when no fault asks (recovery of huge pages after dirty logging); then
    /// guest_memfd memory answers 4 KiB.
    fn host_level(&self, cx: &Cx<'_>, gfn: Gfn, fault: Option<&TdpFault>) -> Level;
}

/// The memslot of a fault that has none: `map(.., None::<&NoSlot>, ..)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NoSlot {}

impl SlotView for NoSlot {
    fn range(&self) -> GfnRange {
        match *self {}
    }
    fn is_dirty_logged(&self) -> bool {
        match *self {}
    }
    fn mark_page_dirty(&self, _cx: &Cx<'_>, _gfn: Gfn) {
        match *self {}
    }
    fn lpage_disallowed(&self, _gfn: Gfn, _level: Level) -> bool {
        match *self {}
    }
    fn host_level(&self, _cx: &Cx<'_>, _gfn: Gfn, _fault: Option<&TdpFault>) -> Level {
        match *self {}
    }
}
