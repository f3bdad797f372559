//! Slots that move and go under a running guest, with and without `KVM_X86_QUIRK_SLOT_ZAP_ALL`.
//!
//! Each row runs for every VM type and, where the quirk can be turned off, both ways, under many schedules.

use super::super::Outcome;
use super::super::cases::{anonymous, region, vm_types};
use super::super::expect::{Failure, ensure, equal, ok};
use super::super::guest::{Program, REPORT, unexpected};
use super::super::race::{Findings, Progress, Race};
use super::REGION;
use crate::kvm::process::Process;
use crate::kvm::uapi::*;
use crate::{ExitInfo, GuestInsn, VcpuExit, VcpuFd, VmFd};
use sim_kernel::{Cx, PAGE_SIZE};
use sim_mmu::Gpa;
use std::sync::Arc;

/// Where the guest reads.
const X: u64 = 0xc000_0000;
/// Where the guest's code is.
const CODE: u64 = 0x10_0000;
const CODE_SLOT: u32 = 0;
const SLOT: u32 = 10;
/// What the VMM answers to a read where no memory is.
const MMIO: u64 = 0xbeef_0001;
/// Schedules of each case.
const SCHEDULES: u64 = 60;

/// Both settings of the quirk, as a mask of what is disabled.
const QUIRKS: [u64; 2] = [0, KVM_X86_QUIRK_SLOT_ZAP_ALL];

/// A VM with memory for code and at [`X`].
struct Booted {
    vm: Arc<VmFd>,
    memory: crate::Mapping,
    vcpu: VcpuFd,
}

fn boot(cx: &Cx<'_>, process: &Arc<Process>, vm: VmFd, disabled: u64) -> Result<Booted, Failure> {
    let args = [disabled, 0, 0, 0];
    ok(
        "KVM_CAP_DISABLE_QUIRKS2",
        vm.enable_cap(cx, &kvm_enable_cap { cap: Cap::DisableQuirks2 as u32, args, ..Default::default() }),
    )?;
    let code = anonymous(cx, process, PAGE_SIZE)?;
    ok("slot of the code", vm.set_user_memory_region(cx, region(CODE_SLOT, CODE, PAGE_SIZE, code.addr().0)))?;
    let memory = anonymous(cx, process, REGION)?;
    ok("slot", vm.set_user_memory_region(cx, region(SLOT, X, REGION, memory.addr().0)))?;
    let mut vcpu = ok("KVM_CREATE_VCPU", vm.create_vcpu(cx, 0))?;
    vcpu.set_code_page(cx, Some(Gpa(CODE)));
    Ok(Booted { vm: Arc::new(vm), memory, vcpu })
}

/// Runs a race for every VM type and both settings of the quirk.
fn each_quirk(
    sides: &[&'static str],
    setup: impl Fn(&Cx<'_>, &Arc<Process>, Booted, &Findings) -> Result<(), Failure>,
) -> Outcome {
    let mut race = Race::new(SCHEDULES);
    for vm_type in vm_types()? {
        for disabled in QUIRKS {
            let explored = race.explore(
                vm_type,
                |cx, process, vm, findings| setup(cx, process, boot(cx, process, vm, disabled)?, findings),
                |_, _, ()| Ok(()),
            );
            explored.map_err(|failure| failure.within(format_args!("quirks disabled: {disabled:#x}")))?;
        }
    }
    race.finish(sides)
}

/// Runs to the next report and returns its value; a read of [`X`] where no memory is gets [`MMIO`], and is counted.
fn next_report(cx: &Cx<'_>, vcpu: &mut VcpuFd, exits: &mut u64) -> Result<Option<u64>, Failure> {
    loop {
        match ok("KVM_RUN", vcpu.run(cx))? {
            VcpuExit::IoOut(REPORT, data) => {
                return Ok(Some(data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))));
            }
            VcpuExit::MmioRead(X, data) if data.len() == 8 => {
                data.copy_from_slice(&MMIO.to_le_bytes());
                *exits += 1;
            }
            VcpuExit::Hlt => return Ok(None),
            other => return Err(unexpected("expected a report or a read of eight bytes at X", &other)),
        }
    }
}

fn move_slot(cx: &Cx<'_>, vm: &VmFd, gpa: u64, hva: u64) -> Result<(), Failure> {
    let what = format_args!("the slot moves to {gpa:#x}");
    ok(what, vm.set_user_memory_region(cx, region(SLOT, gpa, REGION, hva)))
}

/// Where the mover is: before the move, between the moves, after them.
const BEFORE: &str = "read before the move";
const BETWEEN: &str = "read while the slot was away";
const AFTER: &str = "read after it came back";

/// The guest reads and reports until it reads 1. The slot moves one page down, so that X is in its second page; the host stores 2
/// and then 1 in the first; the slot moves back.
fn moving(judge: fn(u64, u64) -> Result<(), Failure>) -> Outcome {
    each_quirk(&[BEFORE, BETWEEN, AFTER], move |cx, _, booted, findings| {
        let Booted { vm, memory, mut vcpu } = booted;
        let mut program = Program::new();
        let again = program.here();
        program.read(X).report().push(GuestInsn::JumpEqual { value: 1, to: again + 4 }).jump(again);
        program.load(cx, &mut vcpu);
        let started = Progress::new(cx);
        let place = Progress::new(cx);

        let (mover, at) = (started.clone(), place.clone());
        findings.spawn(cx, "vmm", move |cx| {
            mover.wait_for(cx, 1);
            at.advance(cx);
            move_slot(cx, &vm, X - PAGE_SIZE, memory.addr().0)?;
            ok("host write", memory.write_u64(cx, 0, 2))?;
            ok("host write", memory.write_u64(cx, 0, 1))?;
            at.advance(cx);
            move_slot(cx, &vm, X, memory.addr().0)
        });
        let saw = findings.clone();
        findings.spawn(cx, "vcpu", move |cx| {
            let mut exits = 0;
            loop {
                let before = place.get();
                let report = next_report(cx, &mut vcpu, &mut exits)?;
                let Some(value) = report else { return Ok(()) };
                saw.saw([BEFORE, BETWEEN, AFTER][before as usize]);
                judge(value, exits)?;
                started.advance(cx);
            }
        });
        Ok(())
    })
}

pub(super) fn values() -> Outcome {
    moving(|value, _| {
        let allowed = [0, 1, MMIO].contains(&value);
        ensure(allowed, format_args!("the guest reads X: expected 0, 1 or the answer to an exit, found {value:#x}"))
    })
}

pub(super) fn exits() -> Outcome {
    // Any other exit than a read of eight bytes at X fails in `next_report`; a value other than 0 and 1 must be from one.
    moving(|value, exits| {
        ensure(value != MMIO || exits > 0, "expected an exit before the guest read the VMM's answer, found none")
    })
}

pub(super) fn restored() -> Outcome {
    each_quirk(&["spin begun before the slot was back", "spin begun after"], |cx, _, booted, findings| {
        let Booted { vm, memory, mut vcpu } = booted;
        let done = Progress::new(cx);
        let is_done = done.clone();
        let hva = memory.addr().0;
        findings.spawn(cx, "vmm", move |cx| {
            move_slot(cx, &vm, X - PAGE_SIZE, hva)?;
            ok("host write", memory.write_u64(cx, 0, 1))?;
            move_slot(cx, &vm, X, hva)?;
            done.advance(cx);
            Ok(())
        });
        let saw = findings.clone();
        findings.spawn(cx, "vcpu", move |cx| {
            let back = is_done.get() == 1;
            saw.saw(if back { "spin begun after" } else { "spin begun before the slot was back" });
            // The second page of the memory is 0: what the guest sees while the slot is away, unless it has to ask the VMM.
            let mut program = Program::new();
            let again = program.here();
            program.read(X).push(GuestInsn::JumpEqual { value: 1, to: again + 3 }).jump(again).report();
            program.load(cx, &mut vcpu);
            let mut exits = 0;
            equal("what ended the spin", next_report(cx, &mut vcpu, &mut exits)?, Some(1))?;
            is_done.wait_for(cx, 1);
            program.load(cx, &mut vcpu);
            let mut exits = 0;
            equal("what the guest reads after the slot came back", next_report(cx, &mut vcpu, &mut exits)?, Some(1))?;
            equal("its exits", exits, 0)
        });
        Ok(())
    })
}

/// How far a deletion is followed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum To {
    Deleted,
    Recreated,
    NoCode,
}

/// The guest spins until it reads something new, reports, and again; the VMM deletes the slot, creates it, deletes it, and deletes
/// the slot of the code.
fn deleting(to: To) -> Outcome {
    let mut sides = vec!["slot deleted before the vCPU ran", "slot deleted under the vCPU"];
    if to == To::NoCode {
        sides.retain(|side| side.ends_with("under the vCPU"));
    }
    each_quirk(&sides, move |cx, _, booted, findings| {
        let Booted { vm, memory, mut vcpu } = booted;
        let hva = memory.addr().0;
        let mut program = Program::new();
        program.spin_while(X, 0).report();
        if to >= To::Recreated {
            program.spin_while(X, MMIO).report();
        }
        if to == To::NoCode {
            program.spin_while(X, 0).report();
            let last = program.here();
            program.jump(last);
        }
        let last = program.here() - 1;
        program.load(cx, &mut vcpu);

        let reports = Progress::new(cx);
        let reported = reports.clone();
        let deletions = Progress::new(cx);
        let deleted = deletions.clone();
        findings.spawn(cx, "vmm", move |cx| {
            let delete = |slot| ok("deletion", vm.set_user_memory_region(cx, region(slot, 0, 0, 0)));
            delete(SLOT)?;
            deletions.advance(cx);
            if to >= To::Recreated {
                reported.wait_for(cx, 1);
                ok("creation", vm.set_user_memory_region(cx, region(SLOT, X, REGION, hva)))?;
            }
            if to == To::NoCode {
                reported.wait_for(cx, 2);
                delete(SLOT)?;
                reported.wait_for(cx, 3);
                delete(CODE_SLOT)?;
            }
            Ok(())
        });
        let saw = findings.clone();
        findings.spawn(cx, "vcpu", move |cx| {
            let gone = deleted.get() == 1;
            saw.saw(if gone { "slot deleted before the vCPU ran" } else { "slot deleted under the vCPU" });
            let mut exits = 0;
            let mut expect = |cx: &Cx<'_>, vcpu: &mut VcpuFd, value: u64| {
                equal("what the guest reports", next_report(cx, vcpu, &mut exits)?, Some(value & 0xffff_ffff))?;
                reports.advance(cx);
                Ok(())
            };
            expect(cx, &mut vcpu, MMIO)?;
            if to >= To::Recreated {
                expect(cx, &mut vcpu, 0)?;
            }
            if to < To::NoCode {
                return Ok(());
            }
            expect(cx, &mut vcpu, MMIO)?;
            match ok("KVM_RUN", vcpu.run(cx))? {
                VcpuExit::Shutdown => Ok(()),
                VcpuExit::InternalError => {
                    equal("rip", ok("KVM_GET_REGS", vcpu.get_regs(cx))?.rip, last)?;
                    let suberror = KVM_INTERNAL_ERROR_EMULATION;
                    equal("the exit", vcpu.exit_info(), ExitInfo::InternalError { suberror, gpa: None, reason: None })
                }
                other => Err(unexpected("expected a shutdown or an internal error", &other)),
            }
        });
        Ok(())
    })
}

pub(super) fn deleted() -> Outcome {
    deleting(To::Deleted)
}

pub(super) fn recreated() -> Outcome {
    deleting(To::Recreated)
}

pub(super) fn code_deleted() -> Outcome {
    deleting(To::NoCode)
}
