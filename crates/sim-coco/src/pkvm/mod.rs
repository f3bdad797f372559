//! The hypervisor of protected KVM (pKVM) on Arm, as Linux 7.3 has it at EL2: who owns a page, the stage 2 of the host and of guests, and the calls that change
//! them (`arch/arm64/kvm/hyp/nvhe/{mem_protect,pkvm,hyp-main}.c`, `arch/arm64/kvm/hyp/pgtable.c`).
//!
//! [`Pkvm`] is the machine. The host calls it ([`Pkvm::host_call`]) and accesses memory under its stage 2 ([`Pkvm::host_access`]); a guest does the same on a processor
//! where a vCPU of it is loaded ([`Pkvm::guest_hvc`], [`Pkvm::guest_access`]). What leaves a guest is a value for whoever plays the host.
//!
//! There is no encryption: a page is kept from the host by being absent from its stage 2, which is an identity that is filled lazily, and has annotations where the host has
//! no page. Translations stay in TLBs until maintenance removes them. What KVM does at EL1, its records, pins and exits, is elsewhere; what is simplified is in the files.
//!
//! Invariants (`PKVM-INV-...`) are in [`invariants`]; rules can be switched off ([`mutants`]); what happened is recorded for checkers of Arm's stage-2 discipline
//! ([`Pkvm::trace`]).
//!
//! Every lock of the hypervisor is a lock of the simulation, and every write of a descriptor, every TLBI and every access is a step, announced on the bytes of the frames that it
//! concerns ([`sim_kernel::mm::PhysMem::object`]), and what a guest translates on the guest's address.

mod access;
mod config;
mod donate;
mod el2;
mod guest;
mod guest_share;
mod hcall;
mod host;
mod host_fault;
mod hvc;
mod hyp;
mod hyp_share;
pub mod invariants;
mod lifecycle;
mod machine;
mod memcache;
pub mod mutants;
mod np_guest;
mod pgtable;
mod pte;
mod tlb;
mod trace;
mod types;
mod vcpu;
mod view;
mod vm;

pub use access::{AbortKind, GuestAbort, GuestStop, HostAbort, Touch};
pub use config::{MemRegion, PkvmConfig};
pub use el2::El2;
pub use hcall::{Band, CallFail, HostCall};
pub use host_fault::{HostContext, HostOutcome};
pub use hvc::{HvcResult, SMCCC_INVALID_PARAMETER, SMCCC_NOT_SUPPORTED, SMCCC_SUCCESS, func};
pub use machine::Pkvm;
pub use memcache::Memcache;
pub use pte::{Pte, S2Level};
pub use tlb::TlbEntry;
pub use trace::{Tlbi, TraceEvent, TraceRecord};
pub use types::{CpuId, Handle, Owner, Pa, PageState, Prot, Vmid};
pub use view::{GuestView, HostView, HypView, Ownership, PageView};
pub use vm::{HostKvm, HostVcpu, HypVcpu, HypVm};
