//! KVM's ioctls, with the arguments of the trace language.

use kvm_bindings::{
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_create_guest_memfd, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1, kvm_enable_cap, kvm_memory_attributes, kvm_pre_fault_memory,
    kvm_userspace_memory_region, kvm_userspace_memory_region2,
};

use crate::memory::Buffer;
use crate::process::check;
use crate::{Process, Result, maps};

/// `_IOC` of KVM (type 0xae): direction, number, size of the argument.
const fn request(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | 0xae << 8 | number
}
const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;

pub(crate) const KVM_GET_API_VERSION: u64 = request(NONE, 0x00, 0);
const KVM_CREATE_VM: u64 = request(NONE, 0x01, 0);
const KVM_CHECK_EXTENSION: u64 = request(NONE, 0x03, 0);
pub(crate) const KVM_GET_VCPU_MMAP_SIZE: u64 = request(NONE, 0x04, 0);
pub(crate) const KVM_GET_SUPPORTED_CPUID: u64 = request(READ | WRITE, 0x05, 8);
const KVM_CREATE_VCPU: u64 = request(NONE, 0x41, 0);
const KVM_GET_DIRTY_LOG: u64 = request(WRITE, 0x42, size_of::<kvm_dirty_log>());
const KVM_SET_USER_MEMORY_REGION: u64 = request(WRITE, 0x46, size_of::<kvm_userspace_memory_region>());
const KVM_SET_USER_MEMORY_REGION2: u64 = request(WRITE, 0x49, size_of::<kvm_userspace_memory_region2>());
pub(crate) const KVM_RUN: u64 = request(NONE, 0x80, 0);
pub(crate) const KVM_GET_REGS: u64 = request(READ, 0x81, size_of::<kvm_bindings::kvm_regs>());
pub(crate) const KVM_SET_REGS: u64 = request(WRITE, 0x82, size_of::<kvm_bindings::kvm_regs>());
pub(crate) const KVM_GET_SREGS: u64 = request(READ, 0x83, size_of::<kvm_bindings::kvm_sregs>());
pub(crate) const KVM_SET_SREGS: u64 = request(WRITE, 0x84, size_of::<kvm_bindings::kvm_sregs>());
pub(crate) const KVM_SET_CPUID2: u64 = request(WRITE, 0x90, 8);
pub(crate) const KVM_SET_MP_STATE: u64 = request(WRITE, 0x99, size_of::<kvm_bindings::kvm_mp_state>());
pub(crate) const KVM_SET_VCPU_EVENTS: u64 = request(WRITE, 0xa0, size_of::<kvm_bindings::kvm_vcpu_events>());
const KVM_ENABLE_CAP: u64 = request(WRITE, 0xa3, size_of::<kvm_enable_cap>());
const KVM_CLEAR_DIRTY_LOG: u64 = request(READ | WRITE, 0xc0, size_of::<kvm_clear_dirty_log>());
const KVM_SET_MEMORY_ATTRIBUTES: u64 = request(WRITE, 0xd2, size_of::<kvm_memory_attributes>());
const KVM_CREATE_GUEST_MEMFD: u64 = request(READ | WRITE, 0xd4, size_of::<kvm_create_guest_memfd>());
const KVM_PRE_FAULT_MEMORY: u64 = request(READ | WRITE, 0xd5, size_of::<kvm_pre_fault_memory>());

/// `KVM_MEM_MAX_NR_PAGES`
const SLOT_PAGES_MAX: u64 = (1 << 31) - 1;

/// An ioctl whose argument is a number.
pub(crate) fn with_number(fd: i32, request: u64, argument: u64) -> Result<u64> {
    // SAFETY: only requests that take no pointer come here.
    check(unsafe { libc::ioctl(fd, request, argument) }.into())
}

/// An ioctl whose argument is a structure of the size that the request says.
pub(crate) fn with_struct<T>(fd: i32, request: u64, argument: &mut T) -> Result<u64> {
    // SAFETY: the structure lives, and is what KVM reads or writes for this request; another driver's descriptor does not know it.
    check(unsafe { libc::ioctl(fd, request, &raw mut *argument) }.into())
}

/// `KVM_SET_USER_MEMORY_REGION`, of any memory.
pub(crate) fn set_region(vm: i32, region: &Region) -> Result<()> {
    let mut argument = kvm_userspace_memory_region {
        slot: region.slot,
        flags: region.flags,
        guest_phys_addr: region.guest_phys_addr,
        memory_size: region.memory_size,
        userspace_addr: region.userspace_addr,
    };
    with_struct(vm, KVM_SET_USER_MEMORY_REGION, &mut argument).map(drop)
}

/// The arguments of `KVM_SET_USER_MEMORY_REGION2`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of struct kvm_userspace_memory_region2")]
pub struct Region {
    pub slot: u32,
    pub flags: u32,
    pub guest_phys_addr: u64,
    pub memory_size: u64,
    pub userspace_addr: u64,
    pub guest_memfd_offset: u64,
    pub guest_memfd: u32,
}

impl Process {
    /// `KVM_CREATE_VM`
    ///
    /// # Errors
    /// KVM's errno, as for all others here.
    pub fn create_vm(&mut self, kind: u64) -> Result<i32> {
        with_number(self.kvm(), KVM_CREATE_VM, kind).map(|fd| fd as i32)
    }

    /// `KVM_CHECK_EXTENSION` on `/dev/kvm` or a VM
    ///
    /// # Errors
    /// KVM's errno.
    pub fn check_extension(&mut self, fd: i32, cap: u64) -> Result<u64> {
        with_number(fd, KVM_CHECK_EXTENSION, cap)
    }

    /// `KVM_CREATE_VCPU`, with CPUID as the host supports, and for the VM's first the code page, or with `paging` what that needs.
    ///
    /// # Errors
    /// KVM's errno.
    pub fn create_vcpu(&mut self, vm: i32, index: u64, paging: bool) -> Result<i32> {
        let vcpu = with_number(vm, KVM_CREATE_VCPU, index)? as i32;
        self.prepare_vcpu(vm, vcpu, paging);
        Ok(vcpu)
    }

    /// `KVM_ENABLE_CAP` with `args[0] = arg`
    ///
    /// # Errors
    /// KVM's errno.
    pub fn enable_cap(&mut self, vm: i32, cap: u32, arg: u64) -> Result<()> {
        let mut argument = kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() };
        with_struct(vm, KVM_ENABLE_CAP, &mut argument).map(drop)
    }

    /// `KVM_CREATE_GUEST_MEMFD`
    ///
    /// # Errors
    /// KVM's errno.
    pub fn create_guest_memfd(&mut self, vm: i32, size: u64, flags: u64) -> Result<i32> {
        let mut argument = kvm_create_guest_memfd { size, flags, ..Default::default() };
        with_struct(vm, KVM_CREATE_GUEST_MEMFD, &mut argument).map(|fd| fd as i32)
    }

    /// `KVM_SET_USER_MEMORY_REGION`: the fields that it has.
    ///
    /// # Errors
    /// KVM's errno; refused if the guest would get memory of the recorder itself, or KVM would take more for the slot than allowed.
    pub fn set_user_memory_region(&mut self, vm: i32, region: &Region) -> Result<()> {
        self.guard_slot("set_user_memory_region", region)?;
        set_region(vm, region)
    }

    /// `KVM_SET_USER_MEMORY_REGION2`
    ///
    /// # Errors
    /// As for [`Process::set_user_memory_region`].
    pub fn set_user_memory_region2(&mut self, vm: i32, region: &Region) -> Result<()> {
        self.guard_slot("set_user_memory_region2", region)?;
        let mut argument = kvm_userspace_memory_region2 {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
            guest_memfd_offset: region.guest_memfd_offset,
            guest_memfd: region.guest_memfd,
            ..Default::default()
        };
        with_struct(vm, KVM_SET_USER_MEMORY_REGION2, &mut argument).map(drop)
    }

    /// Fails if the guest would get memory of the recorder itself, or if what KVM keeps for each page of the slot is more than a call may take:
    /// with shadow paging the reverse map, 8 bytes, and the count of write-protected tables, 2; with any paging two dirty bits, and less
    /// than one for huge pages.
    fn guard_slot(&self, what: &str, region: &Region) -> Result<()> {
        // A slot that goes has no memory, and what KVM refuses for its size alone gets none.
        let pages = region.memory_size / 4096;
        if pages == 0 || pages > SLOT_PAGES_MAX || !region.memory_size.is_multiple_of(4096) {
            return Ok(());
        }
        maps::guard(what, region.userspace_addr, region.memory_size)?;
        let bits = 2 + 1 + if self.shadow_paging { 8 * (8 + 2) } else { 0 };
        self.affordable(what, pages * bits / 8)
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`
    ///
    /// # Errors
    /// KVM's errno.
    pub fn set_memory_attributes(&mut self, vm: i32, gpa: u64, size: u64, attributes: u64, flags: u64) -> Result<()> {
        let mut argument = kvm_memory_attributes { address: gpa, size, attributes, flags };
        with_struct(vm, KVM_SET_MEMORY_ATTRIBUTES, &mut argument).map(drop)
    }

    /// `KVM_PRE_FAULT_MEMORY`: the result, and `gpa` and `size` as KVM left them.
    ///
    /// # Errors
    /// Refused if it may allocate more than allowed; KVM's errno is in the value.
    pub fn pre_fault_memory(&mut self, vcpu: i32, gpa: u64, size: u64, flags: u64) -> Result<(Result<()>, u64, u64)> {
        self.affordable("pre_fault_memory", size)?;
        let mut argument = kvm_pre_fault_memory { gpa, size, flags, ..Default::default() };
        let result = with_struct(vcpu, KVM_PRE_FAULT_MEMORY, &mut argument).map(drop);
        Ok((result, argument.gpa, argument.size))
    }

    /// `KVM_GET_DIRTY_LOG`: the numbers of the bits that are set, below `npages`.
    ///
    /// # Errors
    /// KVM's errno.
    pub fn get_dirty_log(&mut self, vm: i32, slot: u32, npages: u64) -> Result<Vec<u64>> {
        // A slot has less than 2^31 pages, and KVM writes a bit for each, whatever the caller believes.
        const BITMAP: usize = 1 << 28;
        let buffer = Buffer::new(BITMAP + 4096)?;
        let mut argument = kvm_dirty_log {
            slot,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: buffer.pointer() },
        };
        with_struct(vm, KVM_GET_DIRTY_LOG, &mut argument)?;
        let words = npages.div_ceil(64).min(BITMAP as u64 / 8) as usize;
        // SAFETY: the buffer is mapped, readable and larger; nobody writes to it any more.
        let words = unsafe { std::slice::from_raw_parts(buffer.pointer().cast::<u64>(), words) };
        let set = (0u64..)
            .zip(words)
            .filter(|(_, word)| **word != 0)
            .flat_map(|(i, word)| (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| i * 64 + bit));
        Ok(set.filter(|bit| *bit < npages).collect())
    }

    /// `KVM_CLEAR_DIRTY_LOG` with a bitmap in which these bits are set.
    ///
    /// # Errors
    /// KVM's errno.
    pub fn clear_dirty_log(&mut self, vm: i32, slot: u32, first: u64, npages: u32, bits: &[u64]) -> Result<()> {
        // KVM reads a bit for each page; bits beyond are not read, and have no place.
        let bytes = (u64::from(npages).next_multiple_of(64) / 8) as usize;
        let buffer = Buffer::new(bytes.max(8))?;
        for bit in bits.iter().filter(|bit| **bit / 8 < bytes as u64) {
            // SAFETY: the byte is inside the buffer, which nobody else knows.
            unsafe { *buffer.pointer().cast::<u8>().add((bit / 8) as usize) |= 1 << (bit % 8) };
        }
        let mut argument = kvm_clear_dirty_log {
            slot,
            num_pages: npages,
            first_page: first,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: buffer.pointer() },
        };
        with_struct(vm, KVM_CLEAR_DIRTY_LOG, &mut argument).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_the_kernels_numbers() {
        // As strace prints them.
        assert_eq!(KVM_CREATE_VM, 0xae01);
        assert_eq!(KVM_SET_USER_MEMORY_REGION, 0x4020_ae46);
        assert_eq!(KVM_SET_USER_MEMORY_REGION2, 0x40a0_ae49);
        assert_eq!(KVM_GET_DIRTY_LOG, 0x4010_ae42);
        assert_eq!(KVM_CLEAR_DIRTY_LOG, 0xc018_aec0);
        assert_eq!(KVM_CREATE_GUEST_MEMFD, 0xc040_aed4);
        assert_eq!(KVM_SET_MEMORY_ATTRIBUTES, 0x4020_aed2);
        assert_eq!(KVM_PRE_FAULT_MEMORY, 0xc040_aed5);
        assert_eq!(KVM_ENABLE_CAP, 0x4068_aea3);
        assert_eq!(KVM_SET_CPUID2, 0x4008_ae90);
    }
}
