//! A deterministic simulator of Linux KVM's guest_memfd: API, scenarios, traces and the `gmem` command.

mod backend;
pub mod cli;
mod demo;
pub mod interp;
pub mod kvm;
pub mod ops;
pub mod replay;
pub mod runner;
pub mod scenario;
mod status;
pub mod trace;

pub use backend::Simulator;
pub use kvm::config::{KernelVersion, MachineConfig};
pub use sim_mmu::Stage2Kind;
pub use status::Status;
