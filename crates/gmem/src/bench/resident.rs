//! What a resident page costs (P12): a guest whose memory is all there, and nothing else.
//!
//! A VM over one guest_memfd, every page of which is allocated and mapped by `KVM_PRE_FAULT_MEMORY`, page by page through the fault path; no
//! page has contents. What is stored for each is the frame, the entry of stage 2, the slot of the page cache, and, for private memory, the
//! memory attribute. Whoever calls measures: nothing here looks at the host's memory or at a clock.

use super::{Case, Meter, Size};
use crate::api::Kvm;
use crate::kvm::config::MachineConfig;
use crate::kvm::host::Host;
use crate::kvm::uapi::*;
use sim_kernel::PAGE_SIZE;
use sim_kernel::sched::run_native;

/// Where the slot begins: aligned to every size of pages.
const BASE: u64 = 1 << 40;
/// Frames for everything but the guest's memory: a 64th of it for tables, and some.
const SPARE: u64 = 64 << 20;

/// Whose memory it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ResidentMemory {
    /// An ordinary VM's: guest_memfd for everything, no attributes.
    Shared,
    /// A software-protected VM's, every page private.
    Private,
}

/// Builds the VM with `bytes` of memory, calls `before`, populates the memory, and calls `after` with the number of pages that are mapped.
/// Then everything is taken down again.
///
/// # Panics
/// If a call fails, or a page is missing at the end.
///
/// ```
/// use gmem::bench::{ResidentMemory, populate};
/// let mut pages = 0;
/// populate(ResidentMemory::Private, 8 << 20, || (), |n| pages = n);
/// assert_eq!(pages, 2048);
/// ```
pub fn populate(memory: ResidentMemory, bytes: u64, before: impl FnOnce(), after: impl FnOnce(u64)) {
    let config = MachineConfig { memory: bytes + bytes / 64 + SPARE, maxphyaddr: 46, ..MachineConfig::default() };
    run_native(|cx| {
        let process = Host::new(cx, config).process(cx);
        let (kind, flags) = match memory {
            ResidentMemory::Shared => (KVM_X86_DEFAULT_VM, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED),
            ResidentMemory::Private => (KVM_X86_SW_PROTECTED_VM, 0),
        };
        let kvm = Kvm::new(cx, &process).expect("/dev/kvm");
        let vm = kvm.create_vm_with_type(cx, kind).expect("KVM_CREATE_VM");
        let args = kvm_create_guest_memfd { size: bytes, flags, ..Default::default() };
        let gmem = vm.create_guest_memfd(cx, args).expect("KVM_CREATE_GUEST_MEMFD");
        let region = kvm_userspace_memory_region2 {
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: BASE,
            memory_size: bytes,
            guest_memfd: gmem.as_raw_fd() as u32,
            ..Default::default()
        };
        vm.set_user_memory_region2(cx, region).expect("KVM_SET_USER_MEMORY_REGION2");
        let mut vcpu = vm.create_vcpu(cx, 0).expect("KVM_CREATE_VCPU");
        before();
        if memory == ResidentMemory::Private {
            let attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE;
            let private = kvm_memory_attributes { address: BASE, size: bytes, attributes, flags: 0 };
            vm.set_memory_attributes(cx, private).expect("KVM_SET_MEMORY_ATTRIBUTES");
        }
        let mut range = kvm_pre_fault_memory { gpa: BASE, size: bytes, ..Default::default() };
        vcpu.pre_fault_memory_range(cx, &mut range).expect("KVM_PRE_FAULT_MEMORY");
        assert_eq!(range.size, 0, "everything was populated");
        let mapped = vm.vm().mmu().pages().leafs[0];
        assert_eq!(mapped, bytes / PAGE_SIZE, "every page is mapped by a leaf of its own");
        after(mapped);
        drop((vcpu, gmem, vm, kvm));
        process.exit(cx);
    });
}

/// P12: the memory of both kinds of VM. The checker's counts are part of it: they are never off.
pub(super) fn p12(meter: &mut dyn Meter, size: &Size) {
    let sizes = match size.guest {
        Some(bytes) => vec![bytes],
        None => size.of(vec![64 << 20, 1 << 30, 4 << 30], vec![8 << 20]),
    };
    for bytes in sizes {
        for (name, memory) in [("shared", ResidentMemory::Shared), ("private", ResidentMemory::Private)] {
            let pages = bytes / PAGE_SIZE;
            let case = Case::new("P12", name, pages, "page", pages).at_most(48.0);
            meter.weigh(case, &mut |before, after| {
                populate(memory, bytes, before, |mapped| {
                    assert_eq!(mapped, pages, "everything is there");
                    after();
                });
            });
        }
    }
}
