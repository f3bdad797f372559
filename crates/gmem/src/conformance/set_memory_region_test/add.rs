//! Which flags, slot numbers, descriptors and file offsets a new slot may have.

use super::super::Outcome;
use super::super::cases::{Case, each_type, gmem_region, region, type_name};
use super::super::expect::{Failure, ensure, errno, ok};
use super::REGION;
use crate::kvm::uapi::*;
use sim_kernel::{Errno, PAGE_SIZE};

const GPA: u64 = 1 << 32;

pub(super) fn v1_flags() -> Outcome {
    each_type(|case| {
        for flag in (0..32).map(|bit| 1 << bit).filter(|flag| flag & (KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY) == 0)
        {
            let region = kvm_userspace_memory_region { flags: flag, ..region(0, 0, REGION, 0) };
            let result = case.vm.set_user_memory_region(case.cx, region);
            errno(format_args!("version 1 with flags {flag:#x}"), result, Errno::EINVAL)?;
        }
        Ok(())
    })
}

pub(super) fn v2_flags() -> Outcome {
    each_type(|case| {
        let known = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD;
        for flag in (0..32).map(|bit| 1 << bit).filter(|flag| flag & known == 0) {
            let region = kvm_userspace_memory_region2 { flags: flag, memory_size: REGION, ..Default::default() };
            case.refuse_region2(format_args!("version 2 with flags {flag:#x}"), region, Errno::EINVAL)?;
        }
        Ok(())
    })
}

/// A slot with a valid guest_memfd and one flag more; without the flag it is accepted.
fn gmem_with(flag: u32) -> Outcome {
    each_type(|case| {
        let memory = case.create(REGION, 0)?;
        let region = gmem_region(0, 0, REGION, 0, &memory, 0);
        let flags = region.flags | flag;
        case.refuse_region2(
            format_args!("flags {flags:#x}"),
            kvm_userspace_memory_region2 { flags, ..region },
            Errno::EINVAL,
        )?;
        case.set_region2("the same without the flag", region)
    })
}

pub(super) fn gmem_dirty() -> Outcome {
    gmem_with(KVM_MEM_LOG_DIRTY_PAGES)
}

pub(super) fn gmem_readonly() -> Outcome {
    gmem_with(KVM_MEM_READONLY)
}

pub(super) fn nr_memslots() -> Outcome {
    each_type(|case| {
        let max = case.vm.check_extension_int(case.cx, Cap::NrMemslots);
        ensure(max > 0, format_args!("KVM_CAP_NR_MEMSLOTS: expected a positive number, found {max}"))
    })
}

/// Creates every slot there can be, and returns the number of the first that there cannot.
fn fill_slots(case: &Case<'_, '_>) -> Result<(u32, u64), Failure> {
    let max = case.vm.check_extension_int(case.cx, Cap::NrMemslots).max(0) as u32;
    ensure(max > 0, "KVM_CAP_NR_MEMSLOTS: expected a positive number")?;
    let memory = case.anonymous((u64::from(max) + 1) * REGION)?;
    for slot in 0..max {
        let at = u64::from(slot) * REGION;
        let result = case.vm.set_user_memory_region(case.cx, region(slot, at, REGION, memory.addr().0 + at));
        ok(format_args!("slot {slot}"), result)?;
    }
    Ok((max, memory.addr().0 + u64::from(max) * REGION))
}

pub(super) fn add_max() -> Outcome {
    each_type(|case| {
        let (max, _) = fill_slots(case)?;
        let found = case.vm.vm().memslots().peek_active(0, |set| set.iter().count());
        ensure(found == max as usize, format_args!("expected {max} slots, found {found}"))
    })
}

pub(super) fn add_one_more() -> Outcome {
    each_type(|case| {
        let (max, hva) = fill_slots(case)?;
        let last = region(max, u64::from(max) * REGION, REGION, hva);
        errno(format_args!("slot {max}"), case.vm.set_user_memory_region(case.cx, last), Errno::EINVAL)
    })
}

/// A slot whose guest_memfd is this descriptor.
fn private_fd(case: &Case<'_, '_>, what: &str, fd: i32) -> Result<(), Failure> {
    let region = kvm_userspace_memory_region2 {
        slot: 10,
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: GPA,
        memory_size: REGION,
        guest_memfd: fd as u32,
        ..Default::default()
    };
    case.refuse_region2(what, region, Errno::EINVAL)
}

pub(super) fn private_kvm() -> Outcome {
    each_type(|case| private_fd(case, "/dev/kvm", case.kvm.as_raw_fd()))
}

pub(super) fn private_vm() -> Outcome {
    each_type(|case| private_fd(case, "the VM", case.vm.as_raw_fd()))
}

pub(super) fn private_memfd() -> Outcome {
    each_type(|case| {
        let fd = ok("memfd_create", case.process.memfd_create(case.cx, REGION, 0))?;
        private_fd(case, "a memfd", fd)
    })
}

/// A row about a second VM of the same type, with a guest_memfd of its own.
fn second_vm(row: impl Fn(&Case<'_, '_>, Case<'_, '_>) -> Result<(), Failure>) -> Outcome {
    each_type(|case| {
        let vm = ok("KVM_CREATE_VM", case.kvm.create_vm_with_type(case.cx, case.vm_type))?;
        let second = Case { cx: case.cx, process: case.process, kvm: case.kvm, vm, vm_type: case.vm_type };
        row(case, second).map_err(|failure| failure.within(format_args!("second {}", type_name(case.vm_type))))
    })
}

pub(super) fn private_foreign() -> Outcome {
    second_vm(|case, second| {
        let memory = second.create(REGION, 0)?;
        case.refuse_region2("a foreign guest_memfd", gmem_region(10, GPA, REGION, 0, &memory, 0), Errno::EINVAL)
    })
}

pub(super) fn private_own() -> Outcome {
    second_vm(|_, second| {
        let memory = second.create(REGION, 0)?;
        second.set_region2("the VM's own guest_memfd", gmem_region(10, GPA, REGION, 0, &memory, 0))
    })
}

pub(super) fn private_close() -> Outcome {
    second_vm(|_, second| {
        let memory = second.create(REGION, 0)?;
        second.set_region2("slot", gmem_region(10, GPA, REGION, 0, &memory, 0))?;
        let (cx, vm) = (second.cx, second.vm.vm());
        ok("close of the guest_memfd", memory.close(cx))?;
        ensure(!vm.is_destroyed(), "expected the VM to live on after its guest_memfd")?;
        ok("close of the VM", second.vm.close(cx))?;
        ensure(vm.is_destroyed(), "expected the VM to go with its last descriptor")
    })
}

pub(super) fn private_offsets() -> Outcome {
    each_type(|case| {
        let memory = case.create(REGION, 0)?;
        for offset in 1..PAGE_SIZE {
            let region = gmem_region(10, GPA, REGION, 0, &memory, offset);
            case.refuse_region2(format_args!("file offset {offset}"), region, Errno::EINVAL)?;
        }
        Ok(())
    })
}

pub(super) fn private_offset_0() -> Outcome {
    each_type(|case| {
        let memory = case.create(REGION, 0)?;
        case.set_region2("file offset 0", gmem_region(10, GPA, REGION, 0, &memory, 0))
    })
}
