//! Rows that are repeated: for every VM type that the host supports, and for every set of creation flags that such a VM offers.

use super::expect::{Failure, Outcome, ensure, errno, ok};
use crate::kvm::process::{Process, Sharing};
use crate::kvm::uapi::*;
use crate::{GuestMemfd, Kvm, Machine, MachineConfig, Mapping, VmFd};
use sim_kernel::mm::Prot;
use sim_kernel::{Cx, Errno, PAGE_SIZE};
use std::sync::Arc;

/// Read and write.
pub(super) const RW: Prot = Prot::READ.union(Prot::WRITE);

/// One repetition: a process on a new host, with a VM.
pub(super) struct Case<'a, 't> {
    pub(super) cx: &'a Cx<'t>,
    pub(super) process: &'a Arc<Process>,
    pub(super) kvm: &'a Kvm,
    pub(super) vm: VmFd,
    /// `KVM_CREATE_VM`'s argument.
    pub(super) vm_type: u64,
}

/// What a VM type is called in reasons.
pub(super) fn type_name(vm_type: u64) -> &'static str {
    match vm_type {
        KVM_X86_DEFAULT_VM => "default VM",
        KVM_X86_SW_PROTECTED_VM => "software-protected VM",
        _ => "VM of another type",
    }
}

/// What a set of creation flags is called in reasons.
fn flags_name(flags: u64) -> String {
    let names = [(GUEST_MEMFD_FLAG_MMAP, "MMAP"), (GUEST_MEMFD_FLAG_INIT_SHARED, "INIT_SHARED")];
    let names: Vec<&str> = names.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name).collect();
    if names.is_empty() { "no flags".to_string() } else { names.join("|") }
}

/// Runs `body` on a host of its own, with `/dev/kvm` open.
pub(super) fn on_host<R>(body: impl FnOnce(&Cx<'_>, &Arc<Process>, &Kvm) -> Result<R, Failure>) -> Result<R, Failure> {
    on_machine(&MachineConfig::default(), body)
}

/// As [`on_host`], with a machine of this configuration.
fn on_machine<R>(
    config: &MachineConfig,
    body: impl FnOnce(&Cx<'_>, &Arc<Process>, &Kvm) -> Result<R, Failure>,
) -> Result<R, Failure> {
    Machine::new(config.clone()).run(|cx, process| {
        let kvm = ok("open of /dev/kvm", Kvm::new(cx, process))?;
        body(cx, process, &kvm)
    })
}

/// The VM types of `KVM_CAP_VM_TYPES`. Rows are repeated for each: were one of the two gone, they would hold of nothing.
pub(super) fn vm_types() -> Result<Vec<u64>, Failure> {
    let types = on_host(|cx, _, kvm| Ok(kvm.check_extension_int(cx, Cap::VmTypes)))?;
    for vm_type in [KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM] {
        let name = type_name(vm_type);
        ensure(types & (1 << vm_type) != 0, format_args!("KVM_CAP_VM_TYPES: expected a {name}, found {types:#x}"))?;
    }
    Ok((0..32).filter(|bit| types & (1 << bit) != 0).collect())
}

/// Runs `body` with a VM of this type.
pub(super) fn on_vm<R>(vm_type: u64, body: impl FnOnce(&Case<'_, '_>) -> Result<R, Failure>) -> Result<R, Failure> {
    on_vm_of(&MachineConfig::default(), vm_type, body)
}

/// As [`on_vm`], with a machine of this configuration.
fn on_vm_of<R>(
    config: &MachineConfig,
    vm_type: u64,
    body: impl FnOnce(&Case<'_, '_>) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let result = on_machine(config, |cx, process, kvm| {
        let vm = ok("KVM_CREATE_VM", kvm.create_vm_with_type(cx, vm_type))?;
        body(&Case { cx, process, kvm, vm, vm_type })
    });
    result.map_err(|failure| failure.within(type_name(vm_type)))
}

/// Repeats `body` for every VM type.
pub(super) fn each_type(body: impl Fn(&Case<'_, '_>) -> Result<(), Failure>) -> Outcome {
    let types = vm_types()?;
    for &vm_type in &types {
        on_vm(vm_type, &body)?;
    }
    Ok(types.into_iter().map(type_name).collect::<Vec<_>>().join(", "))
}

/// Which creation flags a row is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum With {
    /// All that the VM offers.
    Any,
    /// Files that the host may map.
    Mmap,
    /// Files that the host may map and touch.
    SharedMmap,
    /// Files that the host may map but not touch.
    PrivateMmap,
    /// Files that the host may not map.
    NoMmap,
}

impl With {
    fn includes(self, flags: u64) -> bool {
        let (mmap, shared) = (flags & GUEST_MEMFD_FLAG_MMAP != 0, flags & GUEST_MEMFD_FLAG_INIT_SHARED != 0);
        match self {
            With::Any => true,
            With::Mmap => mmap,
            With::SharedMmap => mmap && shared,
            With::PrivateMmap => mmap && !shared,
            With::NoMmap => !mmap,
        }
    }
}

/// Repeats `body` for every VM type and the creation flags under test, each with a new file of so many pages.
pub(super) fn each_file(
    with: With,
    pages: u64,
    body: impl Fn(&Case<'_, '_>, &GuestMemfd) -> Result<(), Failure>,
) -> Outcome {
    each_flags(with, |case, flags| body(case, &case.create(pages * PAGE_SIZE, flags)?))
}

/// As [`each_file`], without a file.
pub(super) fn each_flags(with: With, body: impl Fn(&Case<'_, '_>, u64) -> Result<(), Failure>) -> Outcome {
    each_flags_of(&MachineConfig::default(), with, body)
}

/// As [`each_flags`], with machines of this configuration.
pub(super) fn each_flags_of(
    config: &MachineConfig,
    with: With,
    body: impl Fn(&Case<'_, '_>, u64) -> Result<(), Failure>,
) -> Outcome {
    let mut done = Vec::new();
    for vm_type in vm_types()? {
        let offered = on_vm(vm_type, |case| Ok(case.offered_flags()))?;
        let tested = [0, GUEST_MEMFD_FLAG_MMAP, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED];
        for flags in tested.into_iter().filter(|flags| flags & !offered == 0 && with.includes(*flags)) {
            let in_case = |case: &Case<'_, '_>| body(case, flags).map_err(|failure| failure.within(flags_name(flags)));
            on_vm_of(config, vm_type, in_case)?;
            done.push(format!("{} with {}", type_name(vm_type), flags_name(flags)));
        }
    }
    if done.is_empty() {
        return Err(Failure::new("expected a VM type that offers the flags of this row, found none"));
    }
    Ok(done.join(", "))
}

impl Case<'_, '_> {
    /// `KVM_CAP_GUEST_MEMFD_FLAGS` of the VM.
    pub(super) fn offered_flags(&self) -> u64 {
        self.vm.check_extension_int(self.cx, Cap::GuestMemfdFlags).max(0) as u64
    }

    /// A guest_memfd, which must come into being.
    pub(super) fn create(&self, size: u64, flags: u64) -> Result<GuestMemfd, Failure> {
        ok("KVM_CREATE_GUEST_MEMFD", self.try_create(size, flags))
    }

    pub(super) fn try_create(&self, size: u64, flags: u64) -> Result<GuestMemfd, Errno> {
        self.vm.create_guest_memfd(self.cx, kvm_create_guest_memfd { size, flags, ..Default::default() })
    }

    /// A shared mapping of a file's beginning.
    pub(super) fn map(&self, memory: &GuestMemfd, len: u64) -> Result<Mapping, Failure> {
        ok("mmap of the guest_memfd", memory.mmap(self.cx, len, RW, Sharing::Shared, 0))
    }

    /// Memory of the VMM.
    pub(super) fn anonymous(&self, len: u64) -> Result<Mapping, Failure> {
        anonymous(self.cx, self.process, len)
    }

    /// A slot that must come into being, or go, or move.
    pub(super) fn set_region2(&self, what: &str, region: kvm_userspace_memory_region2) -> Result<(), Failure> {
        ok(what, self.vm.set_user_memory_region2(self.cx, region))
    }

    /// A slot that must be refused.
    pub(super) fn refuse_region2(
        &self,
        what: impl std::fmt::Display,
        region: kvm_userspace_memory_region2,
        expected: Errno,
    ) -> Result<(), Failure> {
        errno(what, self.vm.set_user_memory_region2(self.cx, region), expected)
    }

    /// Makes guest memory private, or shared.
    pub(super) fn set_private(&self, gpa: u64, size: u64, private: bool) -> Result<(), Failure> {
        set_private(self.cx, &self.vm, gpa, size, private)
    }
}

/// Private anonymous memory of the VMM.
pub(super) fn anonymous(cx: &Cx<'_>, process: &Arc<Process>, len: u64) -> Result<Mapping, Failure> {
    ok("mmap of anonymous memory", Mapping::anonymous(cx, process, len, RW, Sharing::Private))
}

/// Makes guest memory private, or shared.
pub(super) fn set_private(cx: &Cx<'_>, vm: &VmFd, address: u64, size: u64, private: bool) -> Result<(), Failure> {
    let attributes = if private { KVM_MEMORY_ATTRIBUTE_PRIVATE } else { 0 };
    let attributes = kvm_memory_attributes { address, size, attributes, flags: 0 };
    ok("KVM_SET_MEMORY_ATTRIBUTES", vm.set_memory_attributes(cx, attributes))
}

/// A slot with private memory in a guest_memfd, and shared memory at `hva`.
pub(super) fn gmem_region(
    slot: u32,
    gpa: u64,
    size: u64,
    hva: u64,
    memory: &GuestMemfd,
    offset: u64,
) -> kvm_userspace_memory_region2 {
    kvm_userspace_memory_region2 {
        slot,
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: hva,
        guest_memfd_offset: offset,
        guest_memfd: memory.as_raw_fd() as u32,
        ..Default::default()
    }
}

/// A slot with memory of the VMM only.
pub(super) fn region(slot: u32, gpa: u64, size: u64, hva: u64) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: hva,
        ..Default::default()
    }
}
