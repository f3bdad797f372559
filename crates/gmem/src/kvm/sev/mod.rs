//! KVM's use of AMD SEV-SNP (`arch/x86/kvm/svm/sev.c`).
//!
//! [`protocol`] is what a guest and KVM say to each other through the GHCB, as data and pure functions: both sides use it.

pub mod protocol;
