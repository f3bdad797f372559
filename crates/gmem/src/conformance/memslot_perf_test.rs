//! `memslot_perf_test`: host and guest use the same memory through many slots, while the host drops it and moves slots.
//!
//! Host and guest meet at every report of the guest: what follows a report runs beside what the host does then. Each row runs for a
//! small area, whose slots have a few pages, and for one of two huge pages.

use super::cases::{anonymous, each_type, region, type_name, vm_types};
use super::expect::{Failure, ensure, equal, ok, word};
use super::guest::{Program, REPORT, filled, unexpected};
use super::race::{Findings, Progress, Race};
use super::{Check, Outcome};
use crate::kvm::process::Process;
use crate::kvm::uapi::Cap;
use crate::{Advice, Mapping, VcpuExit, VcpuFd, VmFd};
use sim_kernel::{Cx, PAGE_SIZE, PAGES_PER_PMD};
use std::ops::Range;
use std::sync::Arc;

const SUITE: &str = "memslot_perf_test";

const fn test(id: &'static str, title: &'static str, run: fn() -> Outcome) -> Check {
    Check::test(id, SUITE, title, run)
}

pub(super) const CHECKS: &[Check] = &[
    test(
        "GM-150",
        "the host drops half of the area, at once or in pieces, while the guest writes the other: no exit",
        unmap,
    ),
    test(
        "GM-151",
        "first and last page of each half hold what the guest wrote before they are dropped",
        unmap_verified,
    ),
    test("GM-152", "guest and host write to the same pages in turn and read what the other wrote", read_write),
    test(
        "GM-153",
        "a slot with half of the area the guest writes moves away and back: exits are writes of eight bytes to it",
        move_active,
    ),
    test("GM-154", "a slot beside the area the guest writes moves away and back: no exit", move_inactive),
    test("GM-155", "the area is made of as many slots as there can be, the last one with the remainder", all_slots),
];

const GPA: u64 = 1 << 32;
/// Where a slot goes when it moves away.
const AWAY: u64 = 1 << 34;
const SCHEDULES: u64 = 24;
/// Times that the guest writes both halves.
const ROUNDS: u64 = 3;

/// The area: pages of each half, slots, and the distance of the pages that are used.
#[derive(Clone, Copy)]
struct Area {
    half: u64,
    slots: u64,
    stride: u64,
}

const AREAS: [Area; 2] =
    [Area { half: 8, slots: 4, stride: 1 }, Area { half: PAGES_PER_PMD, slots: 2, stride: PAGES_PER_PMD / 8 }];

impl Area {
    /// Offsets of the used pages of a half; the last page of it is always one.
    fn used(self, half: u64) -> impl Iterator<Item = u64> {
        let pages = (0..self.half).step_by(self.stride as usize).chain([self.half - 1]);
        pages.map(move |page| (half * self.half + page) * PAGE_SIZE)
    }

    fn bytes(self, half: u64) -> Range<u64> {
        half * self.half * PAGE_SIZE..(half + 1) * self.half * PAGE_SIZE
    }

    /// Makes the slots, all of the same size.
    fn boot(self, cx: &Cx<'_>, process: &Arc<Process>, vm: VmFd) -> Result<(VmFd, Mapping, VcpuFd), Failure> {
        let memory = anonymous(cx, process, 2 * self.half * PAGE_SIZE)?;
        let size = 2 * self.half * PAGE_SIZE / self.slots;
        for slot in 0..self.slots {
            let region = region(slot as u32, GPA + slot * size, size, memory.addr().0 + slot * size);
            ok("slot", vm.set_user_memory_region(cx, region))?;
        }
        let vcpu = ok("KVM_CREATE_VCPU", vm.create_vcpu(cx, 0))?;
        Ok((vm, memory, vcpu))
    }
}

/// Runs a row for every VM type and area.
fn each_area(
    sides: &[&'static str],
    setup: impl Fn(&Cx<'_>, &Arc<Process>, VmFd, Area, &Findings) -> Result<(), Failure>,
) -> Outcome {
    let mut race = Race::new(SCHEDULES);
    for vm_type in vm_types()? {
        for area in AREAS {
            race.explore(
                vm_type,
                |cx, process, vm, findings| setup(cx, process, vm, area, findings),
                |_, _, ()| Ok(()),
            )
            .map_err(|failure| failure.within(format_args!("{} pages, {}", 2 * area.half, type_name(vm_type))))?;
        }
    }
    race.finish(sides)
}

/// The guest's side of a meeting for each of its reports: it waits for the host before it goes on.
fn run_guest(
    cx: &Cx<'_>,
    vcpu: &mut VcpuFd,
    program: &Program,
    guest: &Progress,
    host: &Progress,
) -> Result<(), Failure> {
    let mut meetings = 0;
    let result = program.run(cx, vcpu, |_| {
        meetings += 1;
        guest.advance(cx);
        host.wait_for(cx, meetings);
        Ok(())
    });
    // Whatever happened, the host does not wait any longer.
    while guest.get() < 2 * ROUNDS {
        guest.advance(cx);
    }
    result
}

/// What the guest writes in a half in this round.
fn value(half: u64, round: u64) -> u64 {
    filled(0x10 * (half as u8 + 1) + round as u8)
}

/// The guest writes one half and then the other, again and again; the host drops the half that the guest has left.
fn unmapping(verify: bool) -> Outcome {
    const SIDES: [&str; 2] = ["half dropped while the guest wrote", "half dropped before or after"];
    each_area(&SIDES, move |cx, process, vm, area, findings| {
        let (_vm, memory, mut vcpu) = area.boot(cx, process, vm)?;
        let mut program = Program::new();
        for round in 0..ROUNDS {
            for half in 0..2 {
                for at in area.used(half) {
                    program.write(GPA + at, value(half, round));
                }
                program.sync(2 * round + half);
            }
        }
        let (guest, host) = (Progress::new(cx), Progress::new(cx));
        let (guest_seen, host_seen) = (guest.clone(), host.clone());
        let saw = findings.clone();
        findings.spawn(cx, "host", move |cx| {
            let drop_half = |step: u64| {
                let (half, round) = (step % 2, step / 2);
                let bytes = area.bytes(half);
                let pages = [bytes.start, bytes.end - PAGE_SIZE];
                for at in pages.into_iter().filter(|_| verify) {
                    let found = ok("host read", memory.read_u64(cx, at))?;
                    word(format_args!("offset {at:#x} in round {round}"), found, value(half, round))?;
                }
                // Whole, in two pieces, in pieces of a page.
                let piece = [area.half, area.half / 2, area.stride][round as usize % 3] * PAGE_SIZE;
                let before = guest_seen.get();
                for at in bytes.step_by(piece as usize) {
                    ok("MADV_DONTNEED", memory.madvise(cx, at, piece, Advice::Dontneed))?;
                }
                saw.saw(SIDES[usize::from(guest_seen.get() != before || before == 2 * ROUNDS)]);
                Ok(())
            };
            let mut result = Ok(());
            for step in 0..2 * ROUNDS {
                guest_seen.wait_for(cx, step + 1);
                host_seen.advance(cx);
                result = result.and_then(|()| drop_half(step));
            }
            result
        });
        findings.spawn(cx, "vcpu", move |cx| run_guest(cx, &mut vcpu, &program, &guest, &host));
        Ok(())
    })
}

fn unmap() -> Outcome {
    unmapping(false)
}

fn unmap_verified() -> Outcome {
    unmapping(true)
}

fn read_write() -> Outcome {
    each_area(&[], |cx, process, vm, area, findings| {
        let (_vm, memory, mut vcpu) = area.boot(cx, process, vm)?;
        let used = move || area.used(0).chain(area.used(1));
        let mut program = Program::new();
        for round in 0..ROUNDS {
            for at in used() {
                program.write(GPA + at, value(0, round));
            }
            program.sync(round);
            program.sync(round);
            for at in used() {
                program.expect(GPA + at + PAGE_SIZE / 2, value(1, round));
            }
        }
        let (guest, host) = (Progress::new(cx), Progress::new(cx));
        let (guest_seen, host_seen) = (guest.clone(), host.clone());
        findings.spawn(cx, "host", move |cx| {
            let exchange = |round: u64| {
                for at in used() {
                    let found = ok("host read", memory.read_u64(cx, at))?;
                    word(format_args!("offset {at:#x} in round {round}"), found, value(0, round))?;
                    ok("host write", memory.write_u64(cx, at + PAGE_SIZE / 2, value(1, round)))?;
                }
                Ok(())
            };
            let mut result = Ok(());
            for round in 0..ROUNDS {
                guest_seen.wait_for(cx, 2 * round + 1);
                result = result.and_then(|()| exchange(round));
                host_seen.advance(cx);
                guest_seen.wait_for(cx, 2 * round + 2);
                host_seen.advance(cx);
            }
            result
        });
        findings.spawn(cx, "vcpu", move |cx| run_guest(cx, &mut vcpu, &program, &guest, &host));
        Ok(())
    })
}

const EXIT: &str = "write that exited";
const NO_EXIT: &str = "round without an exit";

/// The last slot moves away and back while the guest writes the pages before it, and with `active` also half of its own.
fn moving(active: bool, sides: &[&'static str]) -> Outcome {
    each_area(sides, move |cx, process, vm, area, findings| {
        let (vm, memory, mut vcpu) = area.boot(cx, process, vm)?;
        let size = 2 * area.half * PAGE_SIZE / area.slots;
        let slot = GPA + 2 * area.half * PAGE_SIZE - size;
        let end = if active { slot + size / 2 } else { slot };
        let mut program = Program::new();
        for gpa in (end - size..end).step_by((area.stride * PAGE_SIZE) as usize) {
            program.write(gpa, 1);
        }
        program.report().jump(0);
        let done = Progress::new(cx);
        let is_done = done.clone();
        findings.spawn(cx, "host", move |cx| {
            let hva = memory.addr().0 + (slot - GPA);
            let go = |gpa| ok("move", vm.set_user_memory_region(cx, region(area.slots as u32 - 1, gpa, size, hva)));
            let mut result = Ok(());
            for _ in 0..ROUNDS {
                result = result.and_then(|()| go(AWAY)).and_then(|()| go(slot));
            }
            done.advance(cx);
            result
        });
        let saw = findings.clone();
        findings.spawn(cx, "vcpu", move |cx| {
            program.load(cx, &mut vcpu);
            let mut exits = 0;
            while is_done.get() == 0 {
                match ok("KVM_RUN", vcpu.run(cx))? {
                    VcpuExit::IoOut(REPORT, _) => {
                        if exits == 0 {
                            saw.saw(NO_EXIT);
                        }
                        exits = 0;
                    }
                    VcpuExit::MmioWrite(gpa, data) if active && data.len() == 8 && (slot..end).contains(&gpa) => {
                        exits += 1;
                        saw.saw(EXIT);
                    }
                    other => return Err(unexpected("expected a report, or a write to the slot that moves", &other)),
                }
            }
            Ok(())
        });
        Ok(())
    })
}

fn move_active() -> Outcome {
    moving(true, &[EXIT, NO_EXIT])
}

fn move_inactive() -> Outcome {
    moving(false, &[NO_EXIT])
}

fn all_slots() -> Outcome {
    each_type(|case| {
        let max = case.vm.check_extension_int(case.cx, Cap::NrMemslots).max(0) as u64;
        ensure(max > 1, format_args!("KVM_CAP_NR_MEMSLOTS: expected more than 1, found {max}"))?;
        // Three pages a slot, and some that do not divide.
        let (each, rest) = (3, max - 1);
        let total = each * max + rest;
        let memory = case.anonymous(total * PAGE_SIZE)?;
        for slot in 0..max {
            let pages = if slot == max - 1 { each + rest } else { each };
            let at = slot * each * PAGE_SIZE;
            let slot = region(slot as u32, GPA + at, pages * PAGE_SIZE, memory.addr().0 + at);
            ok(format_args!("slot {}", slot.slot), case.vm.set_user_memory_region(case.cx, slot))?;
        }
        let mut vcpu = ok("KVM_CREATE_VCPU", case.vm.create_vcpu(case.cx, 0))?;
        let mut program = Program::new();
        let pages = [0, each - 1, each, each * (max - 1), total - 1];
        for page in pages {
            program.write(GPA + page * PAGE_SIZE, page + 1);
        }
        program.run_to_halt(case.cx, &mut vcpu)?;
        for page in pages {
            let found = ok("host read", memory.read_u64(case.cx, page * PAGE_SIZE))?;
            equal(format_args!("page {page}"), found, page + 1)?;
        }
        Ok(())
    })
}
