//! The protocol of the guest-hypervisor communication block (GHCB) for SNP guests, version 2: layouts, codes, and the rules by which KVM reads what a
//! guest wrote. Nothing here touches a VM: requests are values, and memory that the guest can change is behind [`psc::PscBuffer`].
//!
//! | file | what |
//! |---|---|
//! | `ghcb.rs` | the page: fields, valid bitmap, scratch area, which request is malformed and why |
//! | `msr.rs` | requests that fit into the GHCB MSR |
//! | `psc.rs` | the list of a page-state change, and KVM's walk through it |
//! | `ap.rs` | requests to create and destroy vCPUs |
//!
//! Simplified: of the events, those that concern memory and vCPUs of SNP guests; neither string I/O nor instructions that KVM emulates.

pub mod ap;
pub mod ghcb;
pub mod msr;
pub mod psc;
