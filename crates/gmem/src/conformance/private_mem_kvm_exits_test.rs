//! `private_mem_kvm_exits_test`: private accesses that only user space can resolve.

use super::cases::{anonymous, gmem_region, on_vm, region, set_private};
use super::expect::{Failure, equal, ok};
use super::guest::{Program, REPORT, unexpected};
use super::race::Race;
use super::{Check, Outcome};
use crate::kvm::uapi::*;
use crate::{ExitInfo, VcpuExit, VcpuFd};
use sim_kernel::{Errno, PAGE_SIZE};
use sim_mmu::Gpa;

const SUITE: &str = "private_mem_kvm_exits_test";

pub(super) const CHECKS: &[Check] = &[
    Check::test(
        "GM-130",
        SUITE,
        "the slot of a private page that the guest reads in a loop is deleted: EFAULT with a memory fault",
        slot_deleted,
    ),
    Check::test("GM-131", SUITE, "its flags say private, its address and size are the page's", fault_after_delete),
    Check::test(
        "GM-132",
        SUITE,
        "a private access to a slot without a guest_memfd: EFAULT with a memory fault of the page, private",
        not_private,
    ),
];

const GPA: u64 = 1 << 32;
const SLOT: u32 = 10;
const FAULT: ExitInfo = ExitInfo::MemoryFault { flags: KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa: Gpa(GPA), size: PAGE_SIZE };

/// A guest reads a private page until its slot is deleted; `judge` looks at how the run ended.
fn deleting(judge: fn(&VcpuFd) -> Result<(), Failure>) -> Outcome {
    let mut race = Race::new(120);
    race.explore(
        KVM_X86_SW_PROTECTED_VM,
        |cx, process, vm, findings| {
            let args = kvm_create_guest_memfd { size: PAGE_SIZE, ..Default::default() };
            let memory = ok("KVM_CREATE_GUEST_MEMFD", vm.create_guest_memfd(cx, args))?;
            let shared = anonymous(cx, process, PAGE_SIZE)?;
            let region = gmem_region(SLOT, GPA, PAGE_SIZE, shared.addr().0, &memory, 0);
            ok("slot", vm.set_user_memory_region2(cx, region))?;
            set_private(cx, &vm, GPA, PAGE_SIZE, true)?;
            let mut vcpu = ok("KVM_CREATE_VCPU", vm.create_vcpu(cx, 0))?;
            let mut program = Program::new();
            program.read(GPA).report();
            let again = program.here();
            program.read(GPA).jump(again);
            program.load(cx, &mut vcpu);
            findings.spawn(cx, "vmm", move |cx| {
                let deletion = kvm_userspace_memory_region2 { memory_size: 0, ..region };
                ok("deletion", vm.set_user_memory_region2(cx, deletion))
            });
            let saw = findings.clone();
            findings.spawn(cx, "vcpu", move |cx| {
                let mut side = "slot deleted before the first read";
                loop {
                    match ok("KVM_RUN", vcpu.run(cx))? {
                        VcpuExit::IoOut(REPORT, _) => side = "slot deleted under the loop",
                        VcpuExit::MemoryFault { .. } => break,
                        other => return Err(unexpected("expected a memory fault", &other)),
                    }
                }
                saw.saw(side);
                judge(&vcpu)
            });
            Ok(())
        },
        |_, _, ()| Ok(()),
    )?;
    race.finish(&["slot deleted before the first read", "slot deleted under the loop"])
}

fn slot_deleted() -> Outcome {
    deleting(|vcpu| equal("errno", vcpu.last_errno(), Some(Errno::EFAULT)))
}

fn fault_after_delete() -> Outcome {
    deleting(|vcpu| equal("the exit", vcpu.exit_info(), FAULT))
}

fn not_private() -> Outcome {
    on_vm(KVM_X86_SW_PROTECTED_VM, |case| {
        let memory = case.anonymous(PAGE_SIZE)?;
        ok("slot", case.vm.set_user_memory_region(case.cx, region(SLOT, GPA, PAGE_SIZE, memory.addr().0)))?;
        case.set_private(GPA, PAGE_SIZE, true)?;
        let mut vcpu = ok("KVM_CREATE_VCPU", case.vm.create_vcpu(case.cx, 0))?;
        let mut program = Program::new();
        program.read(GPA).load(case.cx, &mut vcpu);
        ok("KVM_RUN", vcpu.run(case.cx))?;
        equal("the exit", vcpu.exit_info(), FAULT)?;
        equal("errno", vcpu.last_errno(), Some(Errno::EFAULT))?;
        Ok("software-protected VM".to_string())
    })
}
