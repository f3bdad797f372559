//! KVM: VMs, vCPUs, memory slots, memory attributes, guest_memfd and the fault path (`virt/kvm/`, `arch/x86/kvm/`).
//!
//! One file per mechanism, named after what kernel people search for. Locks carry the kernel's names and are taken in its order:
//! `vcpu->mutex`, `slots_lock`, `slots_arch_lock`, `mmap_lock`, `invalidate_lock`, folio lock, `mn_invalidate_lock`, `mmu_lock`.
//!
//! What is absent: nested virtualisation and shadow paging, SMM beyond the second address space, interrupts, devices.

pub mod attributes;
mod check;
pub mod config;
mod cpu;
mod dirty_log;
mod emulate;
mod exception;
mod fault;
pub mod guest;
pub mod guest_memfd;
mod guest_walk;
pub mod host;
mod hva;
pub mod ioctl;
pub mod kernel;
pub mod lpage_info;
pub mod memslots;
pub mod mutants;
mod notifier;
mod prefault;
pub mod process;
mod run;
mod set_memory_region;
pub mod sev;
pub mod slot_sets;
pub mod tdx;
pub mod uapi;
pub mod vcpu;
pub mod versions;
pub mod vm;
mod x86_ops;
