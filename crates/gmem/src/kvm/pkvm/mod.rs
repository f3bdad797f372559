//! KVM's side of pKVM: VMs on an Arm host that is not trusted with their memory (`arch/arm64/kvm/{pkvm,mmu,arm}.c`).
//!
//! On a machine with [`MachineConfig::pkvm`](crate::MachineConfig::pkvm) the hypervisor ([`sim_coco::pkvm`]) is beneath everything: the host's own accesses go through a stage 2, and so all VMs
//! are its VMs. One of type 0 is not protected: the host shares pages with it and takes them back. One of type `KVM_VM_TYPE_ARM_PROTECTED` is: the host pins pages, donates them, and
//! sees them again when the VM is gone. KVM knows what it mapped by records of its own only.
//!
//! | file | what |
//! |---|---|
//! | `host.rs` | the hypervisor of a host, calls to it, and the host's accesses that it stops |
//! | `vm.rs` | what KVM has of a VM: handle, creation at the first run, teardown |
//! | `vcpu.rs` | the same of a vCPU; its list of pages for tables |
//! | `mappings.rs` | the records of what is mapped, and all that is done through them (`pkvm_pgtable_stage2_*`) |
//! | `abort.rs` | faults of guests: protected ones by pins, others by memory slots and guest_memfds |
//! | `mmio.rs` | accesses to what is no memory |
//! | `run.rs` | `KVM_RUN` on arm64 |
//! | `guest.rs` | what a guest's program does on an Arm processor |
//! | `cap.rs` | what `KVM_CHECK_EXTENSION` says on arm64, and which slots there can be |
//! | `gmem.rs` | the proposed use of guest_memfd, which 7.3 does not have |
//! | `check.rs` | what must hold of records and pages (PKVM-INV-012, PKVM-INV-015) |
//!
//! Simplified: a vCPU's thread stays on its physical processor while it is in `KVM_RUN`; each thread has one of its own. Guests' stage 1 is off, their exceptions end them
//! (as a kernel that panics and asks PSCI to reset), their code is not fetched. No interrupts, timers, registers of the system, MTE and nested virtualisation.

mod abort;
mod cap;
mod check;
mod gmem;
mod guest;
mod host;
mod mappings;
mod mmio;
mod run;
mod vcpu;
mod vm;

pub(super) use cap::{SlotChange, check_extension};
pub use gmem::GmemSharing;
pub use host::PkvmHost;
pub(crate) use host::{PKVM_GUEST_HVC, PKVM_HOST_CALL};
pub use mappings::Mapping;
pub use vcpu::PkvmVcpu;
pub use vm::KvmPkvm;
