//! AMD SEV-SNP: the reverse map table (RMP), the instructions and checks that it brings, memory under keys, and the firmware of the
//! secure processor, as AMD's manuals define them (APM volume 2 §15.34 to 15.36, volume 3; SEV-SNP firmware ABI).
//!
//! [`Snp`] is the machine. The host's software calls its instructions ([`Snp::rmpupdate`], [`Snp::psmash`]) and the firmware's commands
//! (`snp_...`, by the names of the ABI); a guest's processor calls [`Snp::pvalidate`] and its like, and accesses memory through
//! [`Snp::guest_read`] and [`Snp::guest_write`], or asks [`Snp::check_guest`] as a part of a step of its own. Translations are the
//! caller's: everything here takes the frame that they gave.
//!
//! No Linux is in it: who retries, who splits mappings, and what KVM answers is elsewhere. What is simplified is in the files; where public documents are
//! silent, [`SnpConfig`] has the choice (`OP-...`). Invariants (`SNP-INV-...`) are in [`invariants`] and as assertions. Checks, and the places
//! where the hardware decides a race, can be switched off ([`mutants`]).
//!
//! Every instruction and command is a scheduling point, announced on the bytes of the frames that it concerns ([`sim_kernel::mm::PhysMem::object`]), because an access
//! and an operation on the entry of its page do not commute.

mod access;
mod check;
mod cipher;
mod config;
mod entry;
mod fail;
pub mod firmware;
mod guest;
pub mod invariants;
mod layout;
mod lock;
mod machine;
mod memory;
pub mod mutants;
mod psmash;
mod pvalidate;
mod rmp;
mod rmpadjust;
mod rmpquery;
mod rmpread;
mod rmpupdate;
mod state;
mod tlb;
mod types;
mod vmrun;
pub mod vmsa;

pub use check::HostSnpAccess;
pub use cipher::{BlockNumber, MemoryKey};
pub use config::{PermsOrder, ResizeRule, SnpConfig};
pub use entry::{RmpEntry, RmpReadout, RmpUpdate};
pub use fail::{GuestFault, HostFault, NpfError, PfError, RmpFail, VC_PAGE_NOT_VALIDATED};
pub use guest::{GuestCpu, GuestKind, PageOperand, SnpAccess};
pub use layout::{RmpLayout, RmpUnusable, RstEntry, SegmentedRmp};
pub use machine::{CpuId, Snp};
pub use memory::{EncryptedMemory, KeyPath, PageBytes};
pub use pvalidate::{Pvalidated, pvalidate_inputs};
pub use rmp::Rmp;
pub use rmpadjust::RmpAdjust;
pub use rmpquery::RmpQueried;
pub use state::PageState;
pub use types::{Asid, Gva, RmpSize, Spa, Vmpl, VmplPerms};
pub use vmrun::{Gp0, InGuest, Vmrun, VmrunFail};
pub use vmsa::SevFeatures;
