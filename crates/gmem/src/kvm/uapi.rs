//! The user-space ABI of KVM: structures, flags and numbers as in `include/uapi/linux/kvm.h` of Linux 7.3.
//!
//! Our own definitions, with the names, fields and layout of the `kvm-bindings` crate, so that they exist on every system. The
//! sizes and offsets are asserted at compile time.

#![allow(non_camel_case_types, reason = "the names of the kernel's own header")]

use bytemuck::{Pod, Zeroable};
use std::mem::{offset_of, size_of};

/// `struct kvm_userspace_memory_region`, 32 bytes: a memory slot, first version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct kvm_userspace_memory_region {
    /// Slot number in the low half, address space in the high half.
    pub slot: u32,
    /// [`KVM_MEM_LOG_DIRTY_PAGES`], [`KVM_MEM_READONLY`].
    pub flags: u32,
    /// First guest physical address, in bytes.
    pub guest_phys_addr: u64,
    /// Bytes; 0 deletes the slot.
    pub memory_size: u64,
    /// Host virtual address of the memory.
    pub userspace_addr: u64,
}

/// `struct kvm_userspace_memory_region2`, 160 bytes: a memory slot that may be backed by a guest_memfd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct kvm_userspace_memory_region2 {
    /// Slot number in the low half, address space in the high half.
    pub slot: u32,
    /// [`KVM_MEM_LOG_DIRTY_PAGES`], [`KVM_MEM_READONLY`], [`KVM_MEM_GUEST_MEMFD`].
    pub flags: u32,
    /// First guest physical address, in bytes.
    pub guest_phys_addr: u64,
    /// Bytes; 0 deletes the slot.
    pub memory_size: u64,
    /// Host virtual address of the memory.
    pub userspace_addr: u64,
    /// Offset of the binding in the guest_memfd, in bytes.
    pub guest_memfd_offset: u64,
    /// File descriptor of the guest_memfd.
    pub guest_memfd: u32,
    /// Ignored.
    pub pad1: u32,
    /// Ignored.
    pub pad2: [u64; 14],
}

/// `struct kvm_clear_dirty_log` without its pointer to the bitmap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct kvm_clear_dirty_log {
    /// Address space in the upper 16 bits, slot in the lower.
    pub slot: u32,
    /// Pages.
    pub num_pages: u32,
    /// First page, counted from the slot's start.
    pub first_page: u64,
}

/// `struct kvm_memory_attributes`, 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct kvm_memory_attributes {
    /// First guest physical address, in bytes.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// [`KVM_MEMORY_ATTRIBUTE_PRIVATE`] or 0.
    pub attributes: u64,
    /// Must be 0.
    pub flags: u64,
}

/// `struct kvm_create_guest_memfd`, 64 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct kvm_create_guest_memfd {
    /// Bytes, a multiple of the page size.
    pub size: u64,
    /// [`GUEST_MEMFD_FLAG_MMAP`], [`GUEST_MEMFD_FLAG_INIT_SHARED`].
    pub flags: u64,
    /// Ignored.
    pub reserved: [u64; 6],
}

/// `struct kvm_pre_fault_memory`, 64 bytes; copied back with the part that is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct kvm_pre_fault_memory {
    /// First guest physical address, in bytes.
    pub gpa: u64,
    /// Bytes.
    pub size: u64,
    /// Must be 0.
    pub flags: u64,
    /// Ignored.
    pub padding: [u64; 5],
}

/// `struct kvm_enable_cap`, 104 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct kvm_enable_cap {
    /// Number of the capability.
    pub cap: u32,
    /// Must be 0.
    pub flags: u32,
    /// Arguments of the capability.
    pub args: [u64; 4],
    /// Ignored.
    pub pad: [u8; 64],
}

impl Default for kvm_enable_cap {
    fn default() -> kvm_enable_cap {
        Zeroable::zeroed()
    }
}

const _: () = {
    assert!(size_of::<kvm_userspace_memory_region>() == 32);
    assert!(size_of::<kvm_userspace_memory_region2>() == 160);
    assert!(offset_of!(kvm_userspace_memory_region2, guest_memfd_offset) == 32);
    assert!(offset_of!(kvm_userspace_memory_region2, guest_memfd) == 40);
    assert!(offset_of!(kvm_userspace_memory_region2, pad2) == 48);
    assert!(size_of::<kvm_memory_attributes>() == 32);
    assert!(size_of::<kvm_create_guest_memfd>() == 64);
    assert!(size_of::<kvm_pre_fault_memory>() == 64);
    assert!(size_of::<kvm_enable_cap>() == 104);
};

/// The slot logs which pages were written.
pub const KVM_MEM_LOG_DIRTY_PAGES: u32 = 1 << 0;
/// Guest writes to the slot become MMIO exits.
pub const KVM_MEM_READONLY: u32 = 1 << 1;
/// The slot is bound to a guest_memfd.
pub const KVM_MEM_GUEST_MEMFD: u32 = 1 << 2;
/// Internal: stand-in of a slot that is being deleted or moved.
pub const KVM_MEMSLOT_INVALID: u32 = 1 << 16;
/// Internal: shared faults use the guest_memfd too, because it can be mapped by the host.
pub const KVM_MEMSLOT_GMEM_ONLY: u32 = 1 << 17;

/// The file may be mapped by the host.
pub const GUEST_MEMFD_FLAG_MMAP: u64 = 1 << 0;
/// The file's memory is shared, so that the host may touch it.
pub const GUEST_MEMFD_FLAG_INIT_SHARED: u64 = 1 << 1;

/// The guest's pages are private.
pub const KVM_MEMORY_ATTRIBUTE_PRIVATE: u64 = 1 << 3;
/// The access that ended in a memory-fault exit was private.
pub const KVM_MEMORY_EXIT_FLAG_PRIVATE: u64 = 1 << 3;

/// Ordinary VMs.
pub const KVM_X86_DEFAULT_VM: u64 = 0;
/// `KVM_VM_TYPE_ARM_PROTECTED`: of a VM on arm64.
pub const KVM_VM_TYPE_ARM_PROTECTED: u64 = 1 << 31;
/// `KVM_VM_TYPE_ARM_IPA_SIZE_MASK`.
pub const KVM_VM_TYPE_ARM_IPA_SIZE_MASK: u64 = 0xff;
/// VMs with private memory that only software protects: for testing.
pub const KVM_X86_SW_PROTECTED_VM: u64 = 1;

/// VMs that AMD SEV-SNP protects.
pub const KVM_X86_SNP_VM: u64 = 4;
/// VMs that Intel TDX protects.
pub const KVM_X86_TDX_VM: u64 = 5;

/// Memory slots that user space may use, per address space.
pub const KVM_USER_MEM_SLOTS: u32 = 32764;
/// Most pages of one user slot.
pub const KVM_MEM_MAX_NR_PAGES: u64 = (1 << 31) - 1;
/// Bit of a memslot generation: an update is in progress.
pub const KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS: u64 = 1 << 63;
/// Most vCPUs of a VM that a kernel can be built for (`CONFIG_KVM_MAX_NR_VCPUS`).
pub const KVM_MAX_VCPUS: u64 = 4096;
/// `KVM_VCPU_ID_RATIO`: ids go up to so many times the number of vCPUs.
pub const KVM_VCPU_ID_RATIO: u64 = 4;

/// Exit reasons (`kvm_run.exit_reason`).
pub mod exit {
    /// Nothing was said.
    pub const KVM_EXIT_UNKNOWN: u32 = 0;
    /// An access to an I/O port.
    pub const KVM_EXIT_IO: u32 = 2;
    /// A hypercall that user space handles.
    pub const KVM_EXIT_HYPERCALL: u32 = 3;
    /// The guest halted (in the simulator: its program ended).
    pub const KVM_EXIT_HLT: u32 = 5;
    /// Memory-mapped I/O.
    pub const KVM_EXIT_MMIO: u32 = 6;
    /// The guest shut down.
    pub const KVM_EXIT_SHUTDOWN: u32 = 8;
    /// The processor did not enter the guest.
    pub const KVM_EXIT_FAIL_ENTRY: u32 = 9;
    /// A signal is pending.
    pub const KVM_EXIT_INTR: u32 = 10;
    /// KVM could not go on.
    pub const KVM_EXIT_INTERNAL_ERROR: u32 = 17;
    /// Something happened to the whole guest.
    pub const KVM_EXIT_SYSTEM_EVENT: u32 = 24;
    /// An access that user space has to resolve.
    pub const KVM_EXIT_MEMORY_FAULT: u32 = 39;
    /// A guest wants certificates beside an attestation report.
    pub const KVM_EXIT_SNP_REQ_CERTS: u32 = 43;
}

/// Emulation failed (`kvm_run.internal.suberror`).
pub const KVM_INTERNAL_ERROR_EMULATION: u32 = 1;
/// Delivering an event to the guest touched what has to be emulated (`kvm_run.internal.suberror`).
pub const KVM_INTERNAL_ERROR_DELIVERY_EV: u32 = 3;
/// The guest left for a reason that KVM knows nothing of (`kvm_run.internal.suberror`).
pub const KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: u32 = 4;

/// `KVM_EXIT_SYSTEM_EVENT`: an SEV guest ended itself.
pub const KVM_SYSTEM_EVENT_SEV_TERM: u32 = 6;
/// `KVM_EXIT_SYSTEM_EVENT`: a TD ended itself.
pub const KVM_SYSTEM_EVENT_TDX_FATAL: u32 = 7;
/// `KVM_SYSTEM_EVENT_RESET`.
pub const KVM_SYSTEM_EVENT_RESET: u32 = 2;
/// `KVM_EXIT_FAIL_ENTRY`: the processor found the guest's state invalid.
pub const SVM_EXIT_ERR: u64 = u64::MAX;

/// The hypercall by which a guest asks for a conversion.
pub const KVM_HC_MAP_GPA_RANGE: u64 = 12;
/// What a guest is told, negative, of a hypercall that there is not.
pub const KVM_ENOSYS: i64 = 1000;

/// `KVM_CAP_DISABLE_QUIRKS2`'s bit: deleting a slot does not zap everything.
pub const KVM_X86_QUIRK_SLOT_ZAP_ALL: u64 = 1 << 7;

/// `fallocate` keeps the file size.
pub const FALLOC_FL_KEEP_SIZE: u32 = 1;
/// `fallocate` frees the range.
pub const FALLOC_FL_PUNCH_HOLE: u32 = 2;

macro_rules! caps {
    ($($name:ident = $number:literal, $doc:literal;)*) => {
        /// Capabilities that `KVM_CHECK_EXTENSION` and `KVM_ENABLE_CAP` name, with the names of kvm-ioctls.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u32)]
        pub enum Cap { $(#[doc = $doc] $name = $number,)* }

        impl Cap {
            /// Every capability that the simulator knows.
            pub const ALL: &'static [Cap] = &[$(Cap::$name,)*];

            /// The capability with this number.
            pub fn from_number(number: u64) -> Option<Cap> {
                match number { $($number => Some(Cap::$name),)* _ => None }
            }
        }
    };
}

caps! {
    UserMemory = 3, "`KVM_CAP_USER_MEMORY`";
    NrMemslots = 10, "`KVM_CAP_NR_MEMSLOTS`";
    SyncMmu = 16, "`KVM_CAP_SYNC_MMU`: the MMU follows changes of the host mapping";
    MaxVcpus = 66, "`KVM_CAP_MAX_VCPUS`";
    ReadonlyMem = 81, "`KVM_CAP_READONLY_MEM`";
    EnableCapVm = 98, "`KVM_CAP_ENABLE_CAP_VM`";
    MultiAddressSpace = 118, "`KVM_CAP_MULTI_ADDRESS_SPACE`";
    ManualDirtyLogProtect2 = 168, "`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`";
    ExitHypercall = 201, "`KVM_CAP_EXIT_HYPERCALL`";
    DisableQuirks2 = 213, "`KVM_CAP_DISABLE_QUIRKS2`";
    UserMemory2 = 231, "`KVM_CAP_USER_MEMORY2`";
    MemoryFaultInfo = 232, "`KVM_CAP_MEMORY_FAULT_INFO`";
    MemoryAttributes = 233, "`KVM_CAP_MEMORY_ATTRIBUTES`";
    GuestMemfd = 234, "`KVM_CAP_GUEST_MEMFD`";
    VmTypes = 235, "`KVM_CAP_VM_TYPES`";
    PreFaultMemory = 236, "`KVM_CAP_PRE_FAULT_MEMORY`";
    GuestMemfdFlags = 244, "`KVM_CAP_GUEST_MEMFD_FLAGS`";
}
