//! What an access or a pre-fault finds: nothing, a broken page, old data, one of two memories.

use super::super::Outcome;
use super::super::cases::{Case, With, each_file, each_type, gmem_region, on_vm, region};
use super::super::expect::{Failure, equal, errno, ok, word};
use super::super::guest::{Program, filled};
use crate::kvm::uapi::*;
use crate::{ExitInfo, GuestMemfd, VcpuFd};
use sim_kernel::{Errno, PAGE_SIZE, PMD_SIZE, Pgoff};
use sim_mmu::Gpa;

const GPA: u64 = 1 << 32;
const SIZE: u64 = 4 * PAGE_SIZE;

pub(super) fn prefault_nothing() -> Outcome {
    each_type(|case| {
        let mut vcpu = ok("KVM_CREATE_VCPU", case.vm.create_vcpu(case.cx, 0))?;
        let asked = kvm_pre_fault_memory { gpa: GPA, ..Default::default() };
        let mut range = asked;
        errno("size 0", vcpu.pre_fault_memory_range(case.cx, &mut range), Errno::EINVAL)?;
        equal("the structure", range, asked)?;
        // One page where memory is, and one where none is: what is left is the other one.
        let memory = case.anonymous(PAGE_SIZE)?;
        ok("slot", case.vm.set_user_memory_region(case.cx, region(0, GPA, PAGE_SIZE, memory.addr().0)))?;
        let mut range = kvm_pre_fault_memory { size: 2 * PAGE_SIZE, ..asked };
        ok("a page of two", vcpu.pre_fault_memory_range(case.cx, &mut range))?;
        equal("what is left", (range.gpa, range.size), (GPA + PAGE_SIZE, PAGE_SIZE))
    })
}

/// Binds the file where every access of the guest is to it, with a vCPU.
fn boot(case: &Case<'_, '_>, memory: &GuestMemfd, size: u64, hva: u64) -> Result<VcpuFd, Failure> {
    case.set_region2("slot", gmem_region(0, GPA, size, hva, memory, 0))?;
    if case.vm.check_extension(case.cx, Cap::MemoryAttributes) {
        case.set_private(GPA, size, true)?;
    }
    ok("KVM_CREATE_VCPU", case.vm.create_vcpu(case.cx, 0))
}

/// A default VM reaches a file only if the host may map it; a protected one does so with the attribute.
fn each_reachable(row: impl Fn(&Case<'_, '_>, &GuestMemfd) -> Result<(), Failure>) -> Outcome {
    let with_mmap = each_file(With::Mmap, 4, &row)?;
    on_vm(KVM_X86_SW_PROTECTED_VM, |case| row(case, &case.create(SIZE, 0)?))?;
    Ok(format!("{with_mmap}, software-protected VM with no flags"))
}

pub(super) fn poison() -> Outcome {
    each_reachable(|case, memory| {
        let mut vcpu = boot(case, memory, SIZE, 0)?;
        let mut program = Program::new();
        program.write(GPA, filled(0x5a)).run_to_halt(case.cx, &mut vcpu)?;
        let broken = ok("the file", memory.inode(case.cx))?.memory_failure(case.cx, Pgoff(0));
        errno("memory_failure", broken, Errno::EBUSY)?;

        let mut read = Program::new();
        read.read(GPA).load(case.cx, &mut vcpu);
        let is_private = case.vm.check_extension(case.cx, Cap::MemoryAttributes);
        let flags = if is_private { KVM_MEMORY_EXIT_FLAG_PRIVATE } else { 0 };
        ok("KVM_RUN", vcpu.run(case.cx))?;
        equal("errno of the access to the broken page", vcpu.last_errno(), Some(Errno::EHWPOISON))?;
        let fault = ExitInfo::MemoryFault { flags, gpa: Gpa(GPA), size: PAGE_SIZE };
        equal("the exit", vcpu.exit_info(), fault)?;

        ok("PUNCH_HOLE", memory.punch_hole(case.cx, 0, PAGE_SIZE))?;
        let mut again = Program::new();
        again.expect(GPA, 0).run_to_halt(case.cx, &mut vcpu)
    })
}

pub(super) fn no_vma() -> Outcome {
    each_type(|case| {
        // Nothing is mapped at 0.
        ok("slot", case.vm.set_user_memory_region(case.cx, region(0, GPA, SIZE, 0)))?;
        let mut vcpu = ok("KVM_CREATE_VCPU", case.vm.create_vcpu(case.cx, 0))?;
        let mut program = Program::new();
        program.read(GPA).load(case.cx, &mut vcpu);
        errno("KVM_RUN", vcpu.run(case.cx), Errno::EFAULT)?;
        equal("the exit", vcpu.exit_info(), ExitInfo::Unknown)
    })
}

pub(super) fn recreated() -> Outcome {
    each_reachable(|case, memory| {
        let mut vcpu = boot(case, memory, SIZE, 0)?;
        let mut program = Program::new();
        program.write(GPA + PAGE_SIZE, filled(0x77)).run_to_halt(case.cx, &mut vcpu)?;
        case.set_region2("deletion", gmem_region(0, GPA, 0, 0, memory, 0))?;
        case.set_region2("the same slot again", gmem_region(0, GPA, SIZE, 0, memory, 0))?;
        let mut again = Program::new();
        again.expect(GPA + PAGE_SIZE, filled(0x77)).run_to_halt(case.cx, &mut vcpu)
    })
}

pub(super) fn odd_pages() -> Outcome {
    on_vm(KVM_X86_SW_PROTECTED_VM, |case| {
        let memory = case.create(PMD_SIZE, 0)?;
        let shared = case.anonymous(PMD_SIZE)?;
        let pages = PMD_SIZE / PAGE_SIZE;
        for page in 0..pages {
            ok("host write", shared.write_u64(case.cx, page * PAGE_SIZE, filled(0x11)))?;
        }
        let mut vcpu = boot(case, &memory, PMD_SIZE, shared.addr().0)?;
        let mut program = Program::new();
        for page in 0..pages {
            program.expect(GPA + page * PAGE_SIZE, 0);
        }
        program.run_to_halt(case.cx, &mut vcpu)?;
        for page in (1..pages).step_by(2) {
            case.set_private(GPA + page * PAGE_SIZE, PAGE_SIZE, false)?;
        }
        // The guest sees its old shared memory there, and what it writes now the host sees in the odd pages only.
        let mut program = Program::new();
        for page in 0..pages {
            let gpa = GPA + page * PAGE_SIZE;
            program.expect(gpa, if page % 2 == 1 { filled(0x11) } else { 0 }).write(gpa, filled(0x22));
        }
        program.run_to_halt(case.cx, &mut vcpu)?;
        for page in 0..pages {
            let found = ok("host read", shared.read_u64(case.cx, page * PAGE_SIZE))?;
            word(format_args!("page {page}"), found, if page % 2 == 1 { filled(0x22) } else { filled(0x11) })?;
        }
        Ok("software-protected VM".to_string())
    })
}
