//! A deterministic simulator of Linux KVM's guest_memfd: API, scenarios, traces and the `gmem` command.
//!
//! Code that drives KVM through `kvm-ioctls` drives this simulator with the same calls, see [`api`]. Boot a VM with private memory,
//! write to it, convert it, and take it away to see a memory-fault exit:
//!
//! ```
//! use gmem::uapi::*;
//! use gmem::{Errno, Gpa, GuestInsn, Kvm, Machine, MachineConfig, Mapping, Prot, Sharing, VcpuExit};
//!
//! # fn main() -> Result<(), Errno> {
//! Machine::new(MachineConfig::default()).run(|cx, process| {
//!     let vm = Kvm::new(cx, process)?.create_vm_with_type(cx, KVM_X86_SW_PROTECTED_VM)?;
//!     let private = vm.create_guest_memfd(cx, kvm_create_guest_memfd { size: 0x4000, ..Default::default() })?;
//!     let shared = Mapping::anonymous(cx, process, 0x4000, Prot::READ | Prot::WRITE, Sharing::Private)?;
//!     vm.set_user_memory_region2(cx, kvm_userspace_memory_region2 {
//!         flags: KVM_MEM_GUEST_MEMFD,
//!         memory_size: 0x4000,
//!         userspace_addr: shared.addr().0,
//!         guest_memfd: private.as_raw_fd() as u32,
//!         ..Default::default()
//!     })?;
//!     let attributes = |attributes| kvm_memory_attributes { address: 0, size: 0x4000, attributes, flags: 0 };
//!
//!     // A private write goes to the guest_memfd; the VMM's own mapping does not show it.
//!     vm.set_memory_attributes(cx, attributes(KVM_MEMORY_ATTRIBUTE_PRIVATE))?;
//!     let mut vcpu = vm.create_vcpu(cx, 0)?;
//!     vcpu.load_program(cx, &[GuestInsn::Write { gpa: Gpa(0x1000), value: 7 }]);
//!     assert!(matches!(vcpu.run(cx)?, VcpuExit::Hlt));
//!     assert_eq!(shared.read_u32(cx, 0x1000), Ok(0));
//!
//!     // After the conversion the same address is the VMM's memory.
//!     vm.set_memory_attributes(cx, attributes(0))?;
//!     vcpu.load_program(cx, &[GuestInsn::Read { gpa: Gpa(0x1000) }]);
//!     assert!(matches!(vcpu.run(cx)?, VcpuExit::Hlt));
//!     assert_eq!(vcpu.get_regs(cx)?.rbx, 0);
//!
//!     // Private again, but its memory is gone with the file: the VMM is asked.
//!     vm.set_memory_attributes(cx, attributes(KVM_MEMORY_ATTRIBUTE_PRIVATE))?;
//!     private.close(cx)?;
//!     vcpu.load_program(cx, &[GuestInsn::Read { gpa: Gpa(0x1000) }]);
//!     match vcpu.run(cx)? {
//!         VcpuExit::MemoryFault { flags, gpa, size } => {
//!             assert_eq!((flags, gpa, size), (KVM_MEMORY_EXIT_FLAG_PRIVATE, 0x1000, 0x1000));
//!         }
//!         other => panic!("{other:?}"),
//!     }
//!     Ok(())
//! })
//! # }
//! ```
//!
//! With several tasks, [`Machine::explore_random`] interleaves them under a seed and can replay what it found.

pub mod api;
pub mod attack;
mod backend;
pub mod bench;
pub mod cli;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod compare;
pub mod conformance;
mod demo;
pub mod explore;
pub mod facts;
pub mod interp;
pub mod invariants;
pub mod kinds;
pub mod kvm;
pub mod linux_guest;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod live;
pub mod mutants;
pub mod ops;
pub mod record;
pub mod replay;
pub mod runner;
pub mod scenario;
mod source;
mod status;
pub mod testing;
pub mod trace;
pub mod visual;
pub mod workload;

pub use api::{Execution, GuestMemfd, HypercallExit, Kvm, Machine, Mapping, VcpuExit, VcpuFd, VmFd};
pub use backend::Simulator;
pub use kvm::config::{KernelVersion, MachineConfig, SnpCpuid, Thp};
pub use kvm::kernel::KernelInsn;
pub use kvm::process::{Process, Sharing};
pub use kvm::sev::insn::SnpInsn;
pub use kvm::uapi::{self, Cap};
pub use kvm::vcpu::{CpuMode, DescriptorTable, ExitInfo, GuestContext, GuestInsn, GuestRegs, SpecialRegisters};
pub use sim_kernel::mm::{Advice, Prot, Signal};
pub use sim_kernel::{Cx, Errno};
pub use sim_mmu::{Gpa, Gva, Stage2Kind};
pub use status::Status;
