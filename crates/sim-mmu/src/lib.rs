//! The stage-2 MMU of KVM on x86: entry formats, the TDP MMU, the invalidation protocol, and the hardware's own walk.
//!
//! The crate knows no VM and no vCPU: what it must know of memslots it asks through [`SlotView`], and TLBs are flushed through
//! [`RemoteFlush`].

mod addr;
mod fault;
mod flush;
mod invalidate;
pub mod mutants;
mod spte;
mod stage2;
mod tdp;

pub use addr::{Gfn, GfnRange, Gpa, LEVEL_BITS, Level, PT_ENTRIES};
pub use fault::{NoSlot, RetPf, SlotView, TdpFault};
pub use flush::{FlushNeeded, RemoteFlush};
pub use invalidate::{Invalidation, MmuInvalidate};
pub use spte::{Access, MEMSLOT_GEN_UPDATE_IN_PROGRESS, MMIO_SPTE_GEN_MASK, Spte, SpteState};
pub use stage2::{SpteMasks, Stage2Kind};
pub use tdp::{
    KVM_TDP_MMU_SPTE_CHANGED, LeafInfo, MayYield, MmuLock, PageStats, Root, RootFilter, Stage2Fault, TdpConfig, TdpMmu,
    Translation,
};
