//! The rows: scripts of what each vCPU does.

use super::super::Outcome;
use super::super::cases::on_vm;
use super::super::expect::{Failure, ensure, equal, ok};
use super::super::guest::{Program, unexpected};
use super::super::race::Findings;
use super::script::{AREA, GPA, INITIAL, Outside, Script, TO_PRIVATE, TO_SHARED, VCPUS, Vmm, boot, converting};
use crate::kvm::uapi::*;
use crate::{GuestMemfd, VcpuExit};
use sim_kernel::{Cx, PAGE_SIZE, PMD_SIZE, Pgoff};
use std::ops::Range;

/// The ranges of the selftest that are one page.
const PAGES: [Range<u64>; 3] = [0..PAGE_SIZE, PAGE_SIZE..2 * PAGE_SIZE, PMD_SIZE..PMD_SIZE + PAGE_SIZE];
/// Those of 2 MiB, aligned and not.
const LARGE: [Range<u64>; 2] = [0..PMD_SIZE, PAGE_SIZE..PAGE_SIZE + PMD_SIZE];
const WHOLE: Range<u64> = 0..AREA;
const BOTH_WAYS: [&str; 2] = [TO_PRIVATE, TO_SHARED];

/// First and last page of a range.
fn edges(range: &Range<u64>) -> [Range<u64>; 2] {
    [range.start..range.start + PAGE_SIZE, range.end - PAGE_SIZE..range.end]
}

/// A script after the selftest's beginning: shared memory that host and guest have seen of each other, with [`INITIAL`] in it.
fn begun(vcpu: u64, fallocate: bool) -> Script {
    let mut script = Script::new(vcpu, fallocate);
    script.host_fills(WHOLE, INITIAL).guest_expects(WHOLE, INITIAL);
    script
}

/// A row about each range of one page.
fn each_page(row: impl Fn(&mut Script, Range<u64>)) -> Outcome {
    converting(12, &BOTH_WAYS, |vcpu| {
        let mut script = Script::new(vcpu, false);
        for range in PAGES {
            row(&mut script, range.clone());
            script.make_shared(range);
        }
        script
    })
}

pub(super) fn initial() -> Outcome {
    converting(4, &[], |vcpu| {
        let mut script = Script::new(vcpu, false);
        script.guest_fills(WHOLE, 0xaa).guest_expects(WHOLE, 0xaa).host_expects(WHOLE, 0xaa);
        script
    })
}

pub(super) fn host_writes() -> Outcome {
    converting(4, &[], |vcpu| {
        let mut script = Script::new(vcpu, false);
        script.guest_fills(WHOLE, 0xaa).host_expects(WHOLE, 0xaa);
        script.host_fills(WHOLE, 0xcc).guest_expects(WHOLE, 0xcc);
        script
    })
}

pub(super) fn hypercall() -> Outcome {
    on_vm(KVM_X86_SW_PROTECTED_VM, |case| {
        let args = [1 << KVM_HC_MAP_GPA_RANGE, 0, 0, 0];
        let exits = kvm_enable_cap { cap: Cap::ExitHypercall as u32, args, ..Default::default() };
        ok("KVM_CAP_EXIT_HYPERCALL", case.vm.enable_cap(case.cx, &exits))?;
        let mut vcpu = ok("KVM_CREATE_VCPU", case.vm.create_vcpu(case.cx, 0))?;
        for answer in [0, 5] {
            let mut program = Program::new();
            program.hypercall(KVM_HC_MAP_GPA_RANGE, [GPA, 3, 7, 0]).load(case.cx, &mut vcpu);
            match ok("KVM_RUN", vcpu.run(case.cx))? {
                VcpuExit::Hypercall(call) => {
                    equal("the hypercall", (call.nr, &call.args[..3]), (KVM_HC_MAP_GPA_RANGE, &[GPA, 3, 7][..]))?;
                    equal("the answer before the VMM gave one", *call.ret, 0)?;
                    *call.ret = answer;
                }
                other => return Err(unexpected("expected a hypercall", &other)),
            }
            equal("the next report", program.step(case.cx, &mut vcpu)?, None)?;
            equal("rax", ok("KVM_GET_REGS", vcpu.get_regs(case.cx))?.rax, answer)?;
        }
        Ok("software-protected VM".to_string())
    })
}

pub(super) fn private() -> Outcome {
    each_page(|script, range| {
        script.guest_fills(range.clone(), 0x11).make_private(range.clone()).guest_fills(range.clone(), 0x22);
        script.guest_expects(range.clone(), 0x22).host_expects(range, 0x11);
    })
}

pub(super) fn outside() -> Outcome {
    converting(3, &BOTH_WAYS, |vcpu| {
        let mut script = begun(vcpu, false);
        for range in PAGES {
            script.stage(range, Outside::Tested);
        }
        script
    })
}

pub(super) fn shared_again() -> Outcome {
    each_page(|script, range| {
        script.guest_fills(range.clone(), 0x11).make_private(range.clone()).guest_fills(range.clone(), 0x22);
        script.make_shared(range.clone()).guest_expects(range.clone(), 0x11).guest_fills(range.clone(), 0x33);
        script.host_expects(range, 0x33);
    })
}

pub(super) fn host_to_guest() -> Outcome {
    each_page(|script, range| {
        script.make_private(range.clone()).guest_fills(range.clone(), 0x22).make_shared(range.clone());
        script.guest_fills(range.clone(), 0x33).host_fills(range.clone(), 0x44).guest_expects(range, 0x44);
    })
}

pub(super) fn large() -> Outcome {
    converting(12, &BOTH_WAYS, |vcpu| {
        let mut script = Script::new(vcpu, false);
        for range in LARGE {
            for edge in edges(&range) {
                script.guest_fills(edge, 0x11);
            }
            script.make_private(range.clone());
            for edge in edges(&range) {
                script.guest_fills(edge.clone(), 0x22).guest_expects(edge.clone(), 0x22).host_expects(edge, 0x11);
            }
            script.make_shared(range.clone());
            for edge in edges(&range) {
                script.guest_expects(edge.clone(), 0x11).guest_fills(edge.clone(), 0x33).host_expects(edge, 0x33);
            }
        }
        script
    })
}

pub(super) fn host_keeps() -> Outcome {
    each_page(|script, range| {
        script.guest_fills(range.clone(), 0x11).make_private(range.clone());
        script.guest_fills(range.clone(), 0x22).host_expects(range, 0x11);
    })
}

pub(super) fn with_fallocate() -> Outcome {
    converting(2, &BOTH_WAYS, |vcpu| {
        let mut script = begun(vcpu, true);
        for range in PAGES.into_iter().chain(LARGE) {
            script.stage(range, Outside::Tested);
        }
        script
    })
}

pub(super) fn clean_slate() -> Outcome {
    converting(2, &BOTH_WAYS, |vcpu| {
        let mut script = begun(vcpu, false);
        for range in PAGES.into_iter().chain(LARGE) {
            script.stage(range, Outside::Ignored);
            // Were it not freed, the private memory of the last range would be here.
            script.make_private(WHOLE).guest_expects(WHOLE, 0).make_shared(WHOLE);
        }
        script
    })
}

/// A script of a private area that is freed.
fn punched_area(vcpu: u64) -> Script {
    let mut script = Script::new(vcpu, false);
    script.make_private(WHOLE).guest_fills(WHOLE, 0x22).punch(WHOLE);
    script
}

pub(super) fn fault_in() -> Outcome {
    converting(3, &[TO_PRIVATE], |vcpu| {
        let mut script = punched_area(vcpu);
        script.guest_fills(WHOLE, INITIAL).guest_expects(WHOLE, INITIAL);
        script
    })
}

pub(super) fn punched() -> Outcome {
    converting(2, &[TO_PRIVATE], |vcpu| {
        let mut script = punched_area(vcpu);
        for range in PAGES.into_iter().chain(LARGE) {
            script.guest_fills(WHOLE, INITIAL).punch(range.clone()).guest_expects(range.clone(), 0);
            script.guest_expects(0..range.start, INITIAL).guest_expects(range.end..AREA, INITIAL);
        }
        script
    })
}

pub(super) fn punched_alone() -> Outcome {
    converting(3, &[TO_PRIVATE], |vcpu| {
        let mut script = punched_area(vcpu);
        for range in PAGES.into_iter().chain(LARGE) {
            script.guest_fills(range.clone(), INITIAL).guest_expects(range.clone(), INITIAL);
            script.punch(range.clone()).guest_expects(range, 0);
        }
        script
    })
}

pub(super) fn exits() -> Outcome {
    converting(6, &BOTH_WAYS, |vcpu| {
        let mut script = Script::new(vcpu, false);
        for range in PAGES {
            script.guest_fills(range.clone(), INITIAL).pass().stage(range, Outside::Ignored);
        }
        script
    })
}

/// A row about the file of a VM of which nothing else is open any more, with private memory in it.
fn closed(row: impl Fn(&Cx<'_>, &GuestMemfd) -> Result<(), Failure>) -> Outcome {
    for slots in [1, 2] {
        on_vm(KVM_X86_SW_PROTECTED_VM, |case| {
            let cx = case.cx;
            let vm = ok("KVM_CREATE_VM", case.kvm.create_vm_with_type(cx, case.vm_type))?;
            let vmm: Vmm = boot(cx, case.process, vm, slots, &Findings::default())?;
            super::super::cases::set_private(cx, &vmm.vm, GPA, VCPUS * AREA, true)?;
            let mut vcpu = ok("KVM_CREATE_VCPU", vmm.vm.create_vcpu(cx, 0))?;
            let mut program = Program::new();
            program.write(GPA, 1).write(GPA + VCPUS * AREA - PAGE_SIZE, 2).run_to_halt(cx, &mut vcpu)?;
            let vm = vmm.vm.vm();
            ok("close of the vCPU", vcpu.close(cx))?;
            let memory = vmm.close_vm(cx)?;
            ensure(!vm.is_destroyed(), "expected the guest_memfd to keep its VM")?;
            row(cx, &memory)?;
            ok("close of the guest_memfd", memory.close(cx))?;
            ensure(vm.is_destroyed(), "expected the VM to go with its guest_memfd")
        })?;
    }
    Ok("software-protected VM with one slot and with two".to_string())
}

fn first_page(cx: &Cx<'_>, memory: &GuestMemfd) -> Result<bool, Failure> {
    Ok(ok("the file", memory.inode(cx))?.mapping().peek(Pgoff(0)).is_some())
}

pub(super) fn punch_after_close() -> Outcome {
    closed(|cx, memory| {
        ok("PUNCH_HOLE", memory.punch_hole(cx, 0, memory.size()))?;
        ensure(!first_page(cx, memory)?, "expected the hole to have no page")
    })
}

pub(super) fn allocate_after_close() -> Outcome {
    closed(|cx, memory| {
        ok("PUNCH_HOLE", memory.punch_hole(cx, 0, memory.size()))?;
        ok("KEEP_SIZE", memory.allocate(cx, 0, memory.size()))?;
        ensure(first_page(cx, memory)?, "expected a page where memory was allocated")
    })
}
