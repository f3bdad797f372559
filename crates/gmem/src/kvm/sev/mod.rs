//! KVM's use of AMD SEV-SNP (`arch/x86/kvm/svm/sev.c`, with what of `arch/x86/virt/svm/sev.c` and of the PSP driver it stands on).
//!
//! The machine is [`sim_coco::snp`]; here is what Linux does with it. [`SevHost`] belongs to the host: RMP wrappers, ASIDs, pages that leaked.
//! [`SevInfo`] belongs to a VM (`struct kvm_sev_info`), [`vcpu::SevEs`] to a vCPU (`struct vcpu_sev_es_state`). A VM that is not of type
//! `KVM_X86_SNP_VM` has none of them.
//!
//! | file | what |
//! |---|---|
//! | `host.rs`, `asid.rs` | `rmpupdate`, `psmash`, firmware pages, leaks; `sev_asid_new` and its recycling |
//! | `ioctl.rs`, `info.rs` | `sev_mem_enc_ioctl`, `sev_guest_init2`, `sev_vm_destroy` |
//! | `launch.rs`, `vmsa.rs` | `snp_launch_start`, `_update`, `_finish`; the VMSA that is measured |
//! | `gmem.rs` | `sev_gmem_make_private`, `sev_gmem_make_shared`, `sev_gmem_invalidate_range`, `sev_gmem_max_mapping_level` |
//! | `fault.rs` | `sev_handle_rmp_fault` |
//! | `protocol/` | what a guest and KVM say to each other through the GHCB, as data and pure functions: both sides use it |
//! | `ghcb.rs`, `msr.rs`, `psc.rs`, `ap.rs`, `guest_request.rs` | `sev_handle_vmgexit` and what guests ask for by it |
//! | `vcpu.rs` | VMCB and VMSA pages, VMRUN |
//! | `check.rs` | what must hold of all this, at the steps that could break it |
//! | `access.rs`, `insn.rs` | not KVM: what the processor does for an SNP guest |
//!
//! Simplified: neither SEV nor SEV-ES guests, no certificates, no interrupts; of the events of a GHCB those of `protocol/ghcb.rs` only, and of the MSR's requests all
//! but AP reset hold; no CPUID of user space's (each register reads as 0, which is what KVM says then); registers of a guest are not in its VMSA but where those of
//! other guests are.

mod access;
mod ap;
mod asid;
mod check;
mod contents;
mod fault;
mod ghcb;
mod gmem;
mod guest_request;
mod host;
mod info;
pub mod insn;
mod ioctl;
mod launch;
mod msr;
pub mod protocol;
mod psc;
#[cfg(test)]
mod tests;
mod vcpu;
mod vmsa;

pub(crate) use fault::RmpFault;
pub use host::{SevHost, open_sev};
pub use info::SevInfo;
pub use ioctl::{SevCmd, SevOp, SnpLaunchFinish, SnpLaunchStart, SnpLaunchUpdate, SnpPageType};
pub(crate) use vcpu::SevState;
pub use vcpu::{MpState, SevEs};
pub use vmsa::initial_vmsa;
