//! Confidential machines as their vendors define them: hardware and firmware, no Linux but the hypervisor that is one.
//!
//! [`snp`] is AMD's SEV-SNP, [`tdx`] Intel's TDX module and what lies beneath it, [`pkvm`] Arm's protected KVM. They have little in common that KVM could
//! ask of them, so there is no trait: each is used by its own instructions, and what KVM makes of them is the business of the kind of the VM (`VmKind` in
//! `gmem`). [`BusyOnce`] lets a machine be busy on purpose.

mod access;
mod busy;
pub mod pkvm;
pub mod snp;
pub mod tdx;
mod violation;

pub use access::AccessKind;
pub use busy::{Busy, BusyOnce};
pub use violation::Violation;
