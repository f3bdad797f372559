//! The kernel of an SNP guest or a TD: how Linux changes the state of its pages, accepts memory, starts and stops its processors, and leaves for another kernel
//! (`arch/x86/coco/sev/core.c`, `arch/x86/boot/startup/sev-startup.c`, `arch/x86/coco/tdx/tdx.c`, `drivers/firmware/efi/unaccepted_memory.c`).
//!
//! It is not KVM: it is what KVM has to get along with, and what a hypervisor that cheats has to get past. Its code is asynchronous Rust, in which each
//! instruction is awaited ([`Cpu`]); whoever runs it, a vCPU or a test, takes one instruction at a time and comes back with the result ([`Program`]). So between any two
//! instructions everything else may happen, and what processors of a guest share is in the guest's memory, where everybody sees them use it.
//!
//! | file | what |
//! |---|---|
//! | `cpu.rs` | instructions, and programs made of them |
//! | `ghcb.rs` | both protocols from the guest's side: negotiation, registration, requests |
//! | `page_state.rs` | private to shared and back: the order of PVALIDATE and request, lists and what is checked of them, PVALIDATE with its fall-back |
//! | `accept.rs` | unaccepted memory: bitmap, guard unit, two processors at one unit |
//! | `ap.rs` | VMSAs of other processors |
//! | `kexec.rs` | everything back to private before the jump |
//! | `td.rs` | TDX: ACCEPT, MapGPA, `#VE` |
//!
//! Simplified: page tables are not there: an access says itself whether its mapping has the C-bit, and a change of mappings is an instruction of its own.
//! No SVSM, no interrupts; allocations are the caller's.

mod accept;
mod ap;
mod cpu;
mod ghcb;
mod kexec;
mod page_state;
mod td;
#[cfg(test)]
mod tests;

pub use accept::Unaccepted;
pub use ap::{ApStarted, ApStopped, Vmsa};
pub use cpu::{Cpu, Ends, Insn, Place, Program, SigBus, TdFatal, Terminated, Trap, Vc};
pub use ghcb::{CcVendor, Kernel};
pub(crate) use ghcb::{Refused, Request};
