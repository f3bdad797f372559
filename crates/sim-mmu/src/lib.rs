//! The two-level MMU of x86: the machine's (guest paging, EPT and NPT, walks, TLBs) and KVM's (the TDP MMU, the invalidation protocol).
//!
//! The machine is in [`guest_paging`], [`walker`], [`tlb`] and [`processor`]: a [`Processor`] translates a guest's accesses, and reads tables
//! through [`WalkMemory`].
//!
//! The crate knows no VM and no vCPU: what it must know of memslots it asks through [`SlotView`], and TLBs are flushed through
//! [`RemoteFlush`].

mod addr;
mod fault;
mod flush;
pub mod guest_paging;
mod invalidate;
pub mod mutants;
pub mod processor;
mod spte;
mod stage2;
mod tdp;
pub mod tlb;
pub mod walker;

pub use addr::{Gfn, GfnRange, Gpa, LEVEL_BITS, Level, PT_ENTRIES};
pub use fault::{NoSlot, RetPf, SlotView, TdpFault};
pub use flush::{FlushNeeded, RemoteFlush};
pub use guest_paging::{GuestMode, Gva};
pub use invalidate::{Invalidation, MmuInvalidate};
pub use processor::Processor;
pub use spte::{Access, MEMSLOT_GEN_UPDATE_IN_PROGRESS, MMIO_SPTE_GEN_MASK, Spte, SpteState};
pub use stage2::{SpteMasks, Stage2Kind};
pub use tdp::{
    Age, ExternalChange, ExternalTable, ExternalTables, KVM_TDP_MMU_SPTE_CHANGED, LeafInfo, MayYield, MmuLock,
    PageStats, Root, RootFilter, Stage2Fault, TdpConfig, TdpMmu, Translation,
};
pub use tlb::Tlb;
pub use walker::{Ept, Npt, Stage2Format, WalkMemory, Walker};
