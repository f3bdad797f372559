//! Descriptors and slots: the order of checks, and requests that change nothing.

use super::super::Outcome;
use super::super::cases::{RW, With, each_file, each_type, gmem_region};
use super::super::expect::{errno, ok};
use crate::kvm::process::Sharing;
use crate::kvm::uapi::*;
use sim_kernel::mm::Prot;
use sim_kernel::{Errno, PAGE_SIZE};

const SIZE: u64 = 4 * PAGE_SIZE;

pub(super) fn closed() -> Outcome {
    each_type(|case| {
        let memory = case.create(SIZE, 0)?;
        let region = gmem_region(0, 0, SIZE, 0, &memory, 0);
        ok("close", memory.close(case.cx))?;
        case.refuse_region2("slot with a closed descriptor", region, Errno::EBADF)
    })
}

pub(super) fn identical() -> Outcome {
    each_file(With::Any, 4, |case, memory| {
        let region = gmem_region(0, 0, SIZE, 0, memory, 0);
        case.set_region2("slot", region)?;
        case.refuse_region2("the same again", region, Errno::EINVAL)
    })
}

pub(super) fn overlap_first() -> Outcome {
    each_type(|case| {
        let memory = case.create(SIZE, 0)?;
        case.set_region2("slot", gmem_region(0, 0, SIZE, 0, &memory, 0))?;
        let region = gmem_region(1, PAGE_SIZE, SIZE, 0, &memory, 0);
        let region = kvm_userspace_memory_region2 { guest_memfd: u32::MAX, ..region };
        case.refuse_region2("overlap with descriptor -1", region, Errno::EEXIST)?;
        let beside = kvm_userspace_memory_region2 { guest_phys_addr: SIZE, ..region };
        case.refuse_region2("no overlap with descriptor -1", beside, Errno::EBADF)
    })
}

pub(super) fn double_delete() -> Outcome {
    each_file(With::Any, 4, |case, memory| {
        case.set_region2("slot", gmem_region(0, 0, SIZE, 0, memory, 0))?;
        let deletion = gmem_region(0, 0, 0, 0, memory, 0);
        case.set_region2("deletion", deletion)?;
        case.refuse_region2("second deletion", deletion, Errno::EINVAL)
    })
}

pub(super) fn executable() -> Outcome {
    each_file(With::Any, 4, |case, memory| {
        let result = memory.mmap(case.cx, SIZE, RW | Prot::EXEC, Sharing::Shared, 0);
        errno("mmap with PROT_EXEC", result, Errno::EPERM)
    })
}

pub(super) fn change_size() -> Outcome {
    each_file(With::Any, 4, |case, memory| {
        let result = memory.fallocate(case.cx, 0, 0, SIZE as i64);
        errno("fallocate with mode 0", result, Errno::EOPNOTSUPP)
    })
}
