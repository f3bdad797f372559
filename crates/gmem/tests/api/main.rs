//! The public API: what each method answers to good and bad input, one module for each handle.

mod conformance;
mod gmem_file;
mod guest;
mod lifetime;
mod machine;
mod mapping;
mod process;
mod structures;
mod system;
mod vcpu;
mod vm;

use gmem::uapi::*;
use gmem::{Cx, Gpa, GuestInsn, GuestMemfd, Kvm, Machine, MachineConfig, Mapping, Process, Prot, Sharing, VmFd};
use std::sync::Arc;

/// Bytes of slot 0, which begins at 0.
const SIZE: u64 = 0x8000;

/// Runs the body alone on a machine of the recordings.
fn on_machine<R>(body: impl FnOnce(&Cx<'_>, &Arc<Process>) -> R) -> R {
    Machine::new(MachineConfig::default()).run(body)
}

/// A VM with private memory, without slots.
fn protected(cx: &Cx<'_>, process: &Arc<Process>) -> VmFd {
    Kvm::new(cx, process).unwrap().create_vm_with_type(cx, KVM_X86_SW_PROTECTED_VM).unwrap()
}

/// A private slot 0 with memory of both kinds.
fn booted(cx: &Cx<'_>, process: &Arc<Process>) -> (VmFd, GuestMemfd, Mapping) {
    let vm = protected(cx, process);
    let memory = vm.create_guest_memfd(cx, gmem_args(SIZE)).unwrap();
    let shared = anonymous(cx, process, SIZE);
    vm.set_user_memory_region2(cx, region2(&memory, &shared)).unwrap();
    vm.set_memory_attributes(cx, attributes(KVM_MEMORY_ATTRIBUTE_PRIVATE)).unwrap();
    (vm, memory, shared)
}

fn anonymous(cx: &Cx<'_>, process: &Arc<Process>, len: u64) -> Mapping {
    Mapping::anonymous(cx, process, len, Prot::READ | Prot::WRITE, Sharing::Private).unwrap()
}

fn gmem_args(size: u64) -> kvm_create_guest_memfd {
    kvm_create_guest_memfd { size, ..Default::default() }
}

fn region2(memory: &GuestMemfd, shared: &Mapping) -> kvm_userspace_memory_region2 {
    kvm_userspace_memory_region2 {
        flags: KVM_MEM_GUEST_MEMFD,
        memory_size: memory.size(),
        userspace_addr: shared.addr().0,
        guest_memfd: memory.as_raw_fd() as u32,
        ..Default::default()
    }
}

fn region(shared: &Mapping) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region { memory_size: shared.len(), userspace_addr: shared.addr().0, ..Default::default() }
}

fn attributes(attributes: u64) -> kvm_memory_attributes {
    kvm_memory_attributes { address: 0, size: SIZE, attributes, flags: 0 }
}

fn read(gpa: u64) -> GuestInsn {
    GuestInsn::Read { gpa: Gpa(gpa) }
}

fn write(gpa: u64, value: u32) -> GuestInsn {
    GuestInsn::Write { gpa: Gpa(gpa), value }
}
