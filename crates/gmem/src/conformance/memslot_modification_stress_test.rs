//! `memslot_modification_stress_test`: a slot beside the guest's memory comes and goes, and no vCPU notices.

use super::cases::{anonymous, region, vm_types};
use super::expect::{Failure, equal, ok};
use super::guest::Program;
use super::race::{Findings, Progress, Race};
use super::{Check, Outcome};
use crate::VmFd;
use crate::kvm::process::Process;
use crate::kvm::uapi::*;
use crate::kvm::vm::Vm;
use sim_kernel::{Cx, PAGE_SIZE};
use std::sync::Arc;

const SUITE: &str = "memslot_modification_stress_test";

pub(super) const CHECKS: &[Check] = &[
    Check::test("GM-140", SUITE, "every run of every vCPU ends in a report, never in another exit or an error", runs),
    Check::test("GM-141", SUITE, "every creation and every deletion succeeds", changes),
];

const VCPUS: u64 = 2;
/// Pages that each vCPU writes.
const PAGES: u64 = 4;
const GPA: u64 = 1 << 30;
/// Times that the slot comes and goes.
const CHANGES: u64 = 5;

const PRESENT: &str = "report while the slot was there";
const GONE: &str = "report while it was not";

fn start(
    cx: &Cx<'_>,
    process: &Arc<Process>,
    vm: VmFd,
    disabled: u64,
    findings: &Findings,
) -> Result<Arc<Vm>, Failure> {
    let args = [disabled, 0, 0, 0];
    let quirks = kvm_enable_cap { cap: Cap::DisableQuirks2 as u32, args, ..Default::default() };
    ok("KVM_CAP_DISABLE_QUIRKS2", vm.enable_cap(cx, &quirks))?;
    let size = VCPUS * PAGES * PAGE_SIZE;
    let memory = anonymous(cx, process, size)?;
    ok("slot", vm.set_user_memory_region(cx, region(0, GPA, size, memory.addr().0)))?;
    let dummy = anonymous(cx, process, PAGE_SIZE)?;
    let changes = Progress::new(cx);
    for id in 0..VCPUS {
        let mut vcpu = ok("KVM_CREATE_VCPU", vm.create_vcpu(cx, id))?;
        let mut program = Program::new();
        for page in 0..PAGES {
            let gpa = GPA + (id * PAGES + page) * PAGE_SIZE;
            program.write(gpa, id + 1).expect(gpa, id + 1);
        }
        program.sync(id).jump(0);
        let (changes, saw) = (changes.clone(), findings.clone());
        findings.spawn(cx, "vcpu", move |cx| {
            program.load(cx, &mut vcpu);
            while changes.get() < 2 * CHANGES {
                let report = program.step(cx, &mut vcpu)?;
                equal("the report", report, Some(id))?;
                saw.saw(if changes.get() % 2 == 1 { PRESENT } else { GONE });
            }
            Ok(())
        });
    }
    let inspected = vm.vm();
    findings.spawn(cx, "vmm", move |cx| {
        let change = |size| {
            let slot = region(1, GPA - PAGE_SIZE, size, dummy.addr().0);
            let result = ok(if size > 0 { "creation" } else { "deletion" }, vm.set_user_memory_region(cx, slot));
            changes.advance(cx);
            result
        };
        let results: Vec<_> = (0..CHANGES).flat_map(|_| [change(PAGE_SIZE), change(0)]).collect();
        results.into_iter().collect()
    });
    Ok(inspected)
}

fn stress(judge: fn(&Vm) -> Result<(), Failure>) -> Outcome {
    let mut race = Race::new(24);
    for vm_type in vm_types()? {
        for disabled in [0, KVM_X86_QUIRK_SLOT_ZAP_ALL] {
            race.explore(
                vm_type,
                |cx, process, vm, findings| start(cx, process, vm, disabled, findings),
                |_, _, vm| judge(&vm),
            )
            .map_err(|failure| failure.within(format_args!("quirks disabled: {disabled:#x}")))?;
        }
    }
    race.finish(&[PRESENT, GONE])
}

fn runs() -> Outcome {
    stress(|_| Ok(()))
}

fn changes() -> Outcome {
    // Two swaps make a deletion and one a creation: each counts in the generation, by the number of address spaces.
    stress(|vm| {
        let (slots, generation) = vm.memslots().peek_active(0, |set| (set.iter().count(), set.generation));
        equal("slots that are left", slots, 1)?;
        equal("generation of the slots", generation, (1 + 3 * CHANGES) * u64::from(vm.address_spaces()))
    })
}
