//! `pre_fault_memory_test`: pre-faulting while the slot goes and comes back.
//!
//! For a default VM, a software-protected VM, and private memory of one. The slot has 2 MiB and a page near the end of the guest's
//! addresses. A second thread deletes it and creates it again once the first attempt has ended.

use super::cases::{anonymous, gmem_region, region, set_private, type_name};
use super::expect::{Failure, ensure, equal, ok};
use super::guest::Program;
use super::race::{Findings, Progress, Race};
use super::{Check, Outcome};
use crate::kvm::process::Process;
use crate::kvm::uapi::*;
use crate::{VcpuFd, VmFd};
use sim_kernel::{Cx, Errno, PAGE_SIZE, PMD_SIZE};
use std::sync::Arc;

const SUITE: &str = "pre_fault_memory_test";

const fn test(id: &'static str, title: &'static str, run: fn() -> Outcome) -> Check {
    Check::test(id, SUITE, title, run)
}

pub(super) const CHECKS: &[Check] = &[
    test("GM-100", "each ioctl either makes the rest smaller or fails, never both or neither", progress),
    test("GM-101", "an ioctl that a signal interrupts can be made again", interrupted),
    test("GM-102", "2 MiB of memory are pre-faulted whole in the end", whole),
    test("GM-103", "of two pages with one in the slot, one is done, then ENOENT", one_of_two),
    test("GM-104", "of a page behind the slot nothing is done: ENOENT", behind),
    test("GM-105", "an error while the slot is away is EAGAIN, ENOENT or EFAULT, and goes when it is back", while_away),
    test("GM-106", "afterwards the guest reads every page without an exit", guest_reads),
];

const SLOT: u32 = 10;
const SIZE: u64 = PMD_SIZE + PAGE_SIZE;
const SCHEDULES: u64 = 24;

/// What is pre-faulted: offset in the slot, bytes, and the bytes that cannot be done.
#[derive(Clone, Copy)]
struct Range {
    offset: u64,
    size: u64,
    left: u64,
}

const WHOLE: Range = Range { offset: 0, size: PMD_SIZE, left: 0 };
const ONE_OF_TWO: Range = Range { offset: PMD_SIZE, size: 2 * PAGE_SIZE, left: PAGE_SIZE };
const BEHIND: Range = Range { offset: SIZE, size: PAGE_SIZE, left: PAGE_SIZE };

/// What else goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Besides {
    Nothing,
    Signals,
    GuestReads,
}

/// Which errors an attempt may end with while the slot is away.
const WHILE_AWAY: [Errno; 3] = [Errno::EAGAIN, Errno::ENOENT, Errno::EFAULT];

const FAILED: &str = "error while the slot was away";
const DONE: &str = "done before it went";
const INTERRUPTED: &str = "interrupted";

/// A VM with the slot, and how to make the slot again.
struct Booted {
    vm: Arc<VmFd>,
    vcpu: VcpuFd,
    region: kvm_userspace_memory_region2,
}

fn boot(cx: &Cx<'_>, process: &Arc<Process>, vm: VmFd, private: bool) -> Result<Booted, Failure> {
    let end = (vm.vm().max_gfn().0 + 1) * PAGE_SIZE;
    // A page is left behind the slot, and 2 MiB of it may be one huge page.
    let gpa = (end - SIZE - PAGE_SIZE) & !(PMD_SIZE - 1);
    let memory = anonymous(cx, process, 2 * PMD_SIZE)?;
    let region = if private {
        let args = kvm_create_guest_memfd { size: SIZE, ..Default::default() };
        let file = ok("KVM_CREATE_GUEST_MEMFD", vm.create_guest_memfd(cx, args))?;
        set_private(cx, &vm, gpa, SIZE, true)?;
        gmem_region(SLOT, gpa, SIZE, memory.addr().0, &file, 0)
    } else {
        let region = region(SLOT, gpa, SIZE, memory.addr().0);
        kvm_userspace_memory_region2 {
            slot: region.slot,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
            ..Default::default()
        }
    };
    ok("slot", vm.set_user_memory_region2(cx, region))?;
    let vcpu = ok("KVM_CREATE_VCPU", vm.create_vcpu(cx, 0))?;
    Ok(Booted { vm: Arc::new(vm), vcpu, region })
}

/// Pre-faults a range as the selftest does: the first attempt while the slot may go, then, with the slot back, to the end.
fn pre_fault(
    cx: &Cx<'_>,
    vcpu: &mut VcpuFd,
    base: u64,
    wanted: Range,
    away: &Progress,
    findings: &Findings,
) -> Result<(), Failure> {
    let mut range = kvm_pre_fault_memory { gpa: base + wanted.offset, size: wanted.size, ..Default::default() };
    let end = range.gpa + range.size;
    let mut is_back = false;
    let last = loop {
        let before = range.size;
        let result = vcpu.pre_fault_memory_range(cx, &mut range);
        let smaller = range.size < before;
        let found = format_args!("{result:?} with {:#x} of {before:#x} left", range.size).to_string();
        ensure(smaller != result.is_err(), format_args!("expected either less to do or an error, found {found}"))?;
        equal("the end of the range", range.gpa + range.size, end)?;
        if result == Err(Errno::EINTR) {
            findings.saw(INTERRUPTED);
            cx.clear_signals();
            continue;
        }
        if is_back {
            if result.is_ok() && range.size > 0 {
                continue;
            }
            break result;
        }
        match result {
            Err(errno) => {
                let known = WHILE_AWAY.contains(&errno);
                ensure(known, format_args!("expected one of {WHILE_AWAY:?} while the slot is away, found {errno:?}"))?;
                findings.saw(FAILED);
            }
            Ok(()) => findings.saw(DONE),
        }
        // The other thread makes the slot again; from then on there is one answer.
        away.advance(cx);
        away.wait_for(cx, 2);
        is_back = true;
        if range.size == 0 {
            break Ok(());
        }
    };
    equal("bytes left", range.size, wanted.left)?;
    equal("the last answer", last, if wanted.left == 0 { Ok(()) } else { Err(Errno::ENOENT) })
}

fn pre_faulting(ranges: &'static [Range], besides: Besides, sides: &[&'static str]) -> Outcome {
    let mut race = Race::new(SCHEDULES);
    let cases = [(KVM_X86_DEFAULT_VM, false), (KVM_X86_SW_PROTECTED_VM, false), (KVM_X86_SW_PROTECTED_VM, true)];
    for (vm_type, private) in cases {
        for range in ranges {
            let explored = race.explore(
                vm_type,
                |cx, process, vm, findings| start(cx, boot(cx, process, vm, private)?, *range, besides, findings),
                |_, _, ()| Ok(()),
            );
            let memory = if private { "private" } else { "shared" };
            explored.map_err(|failure| {
                failure.within(format_args!("{memory} memory of a {}, offset {:#x}", type_name(vm_type), range.offset))
            })?;
        }
    }
    race.finish(sides)
}

fn start(cx: &Cx<'_>, booted: Booted, range: Range, besides: Besides, findings: &Findings) -> Result<(), Failure> {
    let Booted { vm, mut vcpu, region } = booted;
    let away = Progress::new(cx);
    let back = away.clone();
    findings.spawn(cx, "slots", move |cx| {
        let deletion = kvm_userspace_memory_region2 { memory_size: 0, ..region };
        ok("deletion", vm.set_user_memory_region2(cx, deletion))?;
        back.wait_for(cx, 1);
        ok("creation", vm.set_user_memory_region2(cx, region))?;
        back.advance(cx);
        Ok(())
    });
    let noted = findings.clone();
    let base = region.guest_phys_addr;
    let task = findings.spawn(cx, "vcpu", move |cx| {
        pre_fault(cx, &mut vcpu, base, range, &away, &noted)?;
        cx.clear_signals();
        if besides != Besides::GuestReads {
            return Ok(());
        }
        let mut program = Program::new();
        for at in (0..SIZE).step_by(PAGE_SIZE as usize) {
            program.expect(base + at, 0);
        }
        program.run_to_halt(cx, &mut vcpu)
    });
    if besides == Besides::Signals {
        findings.spawn(cx, "signals", move |cx| {
            for _ in 0..4 {
                cx.cond_resched();
                cx.send_signal(task);
            }
            Ok(())
        });
    }
    Ok(())
}

fn progress() -> Outcome {
    pre_faulting(&[WHOLE, ONE_OF_TWO, BEHIND], Besides::Nothing, &[DONE, FAILED])
}

fn interrupted() -> Outcome {
    pre_faulting(&[WHOLE, ONE_OF_TWO], Besides::Signals, &[INTERRUPTED])
}

fn whole() -> Outcome {
    pre_faulting(&[WHOLE], Besides::Nothing, &[DONE, FAILED])
}

fn one_of_two() -> Outcome {
    pre_faulting(&[ONE_OF_TWO], Besides::Nothing, &[DONE, FAILED])
}

fn behind() -> Outcome {
    pre_faulting(&[BEHIND], Besides::Nothing, &[FAILED])
}

fn while_away() -> Outcome {
    pre_faulting(&[WHOLE, ONE_OF_TWO, BEHIND], Besides::Nothing, &[FAILED])
}

fn guest_reads() -> Outcome {
    pre_faulting(&[WHOLE], Besides::GuestReads, &[DONE, FAILED])
}
