//! A guest that converts its memory, and the VMM beside it: both sides of the selftest, written down together.

use super::super::cases::{anonymous, gmem_region};
use super::super::expect::{Failure, ensure, equal, ok, word};
use super::super::guest::{Program, unexpected};
use super::super::race::{Findings, Race};
use crate::api::HypercallExit;
use crate::kvm::process::Process;
use crate::kvm::uapi::*;
use crate::{GuestMemfd, Mapping, VcpuExit, VcpuFd, VmFd};
use sim_kernel::{Cx, PAGE_SIZE, PMD_SIZE};
use std::ops::Range;
use std::sync::Arc;

/// Where the guests' memory begins.
pub(super) const GPA: u64 = 4 << 30;
/// Bytes of each vCPU.
pub(super) const AREA: u64 = PMD_SIZE + PAGE_SIZE;
/// vCPUs, each with a thread.
pub(super) const VCPUS: u64 = 2;

/// Attributes of the hypercall, as the selftest has them: set the attribute to shared, or to private; free or allocate, too.
const SET_ATTRIBUTES: u64 = 1 << 0;
const SHARED: u64 = 1 << 1;
const FALLOCATE: u64 = 1 << 2;

/// A pattern that memory is filled with.
pub(super) type Pattern = u8;

/// What a pattern is in the word of a page: its byte, and the page's place, so that pages cannot be mixed up. Pattern 0 is memory that
/// nobody wrote.
fn word_of(pattern: Pattern, offset: u64) -> u64 {
    if pattern == 0 { 0 } else { (u64::from(pattern) << 56) | (offset / PAGE_SIZE) }
}

/// The word of a page that stands for all of it: another one in each page.
fn place(page: u64) -> u64 {
    page * PAGE_SIZE + page * 8 % PAGE_SIZE
}

/// The words of a range of bytes.
fn places(range: Range<u64>) -> impl Iterator<Item = u64> {
    (range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE)).map(place)
}

/// What the VMM does at a report of the guest.
#[derive(Clone, Debug)]
enum HostStep {
    /// Its memory has this pattern.
    Expect(Range<u64>, Pattern),
    /// It writes this pattern.
    Fill(Range<u64>, Pattern),
    /// Nothing.
    Pass,
}

/// One vCPU's program with the VMM's part. Offsets are from the beginning of the vCPU's memory.
#[derive(Clone, Debug)]
pub(super) struct Script {
    base: u64,
    program: Program,
    steps: Vec<HostStep>,
    fallocate: bool,
}

impl Script {
    /// An empty script of the vCPU with this number; `fallocate`: each conversion also allocates or frees.
    pub(super) fn new(vcpu: u64, fallocate: bool) -> Script {
        Script { base: GPA + vcpu * AREA, program: Program::new(), steps: Vec::new(), fallocate }
    }

    pub(super) fn guest_fills(&mut self, range: Range<u64>, pattern: Pattern) -> &mut Script {
        for at in places(range) {
            self.program.write(self.base + at, word_of(pattern, at));
        }
        self
    }

    pub(super) fn guest_expects(&mut self, range: Range<u64>, pattern: Pattern) -> &mut Script {
        for at in places(range) {
            self.program.expect(self.base + at, word_of(pattern, at));
        }
        self
    }

    fn host(&mut self, step: HostStep) -> &mut Script {
        self.program.sync(self.steps.len() as u64);
        self.steps.push(step);
        self
    }

    pub(super) fn host_expects(&mut self, range: Range<u64>, pattern: Pattern) -> &mut Script {
        self.host(HostStep::Expect(range, pattern))
    }

    pub(super) fn host_fills(&mut self, range: Range<u64>, pattern: Pattern) -> &mut Script {
        self.host(HostStep::Fill(range, pattern))
    }

    /// The guest only reports.
    pub(super) fn pass(&mut self) -> &mut Script {
        self.host(HostStep::Pass)
    }

    fn map_gpa_range(&mut self, range: Range<u64>, attributes: u64) -> &mut Script {
        let pages = (range.end - range.start) / PAGE_SIZE;
        self.program.hypercall(KVM_HC_MAP_GPA_RANGE, [self.base + range.start, pages, attributes, 0]);
        self
    }

    fn fallocate(&self) -> u64 {
        if self.fallocate { FALLOCATE } else { 0 }
    }

    pub(super) fn make_private(&mut self, range: Range<u64>) -> &mut Script {
        self.map_gpa_range(range, SET_ATTRIBUTES | self.fallocate())
    }

    pub(super) fn make_shared(&mut self, range: Range<u64>) -> &mut Script {
        self.map_gpa_range(range, SET_ATTRIBUTES | SHARED | self.fallocate())
    }

    /// The guest's private memory is freed; its attributes stay.
    pub(super) fn punch(&mut self, range: Range<u64>) -> &mut Script {
        self.map_gpa_range(range, SHARED | FALLOCATE)
    }

    /// The selftest's steps on one range: shared pattern 0x11, private 0x22, shared again 0x33, then 0x44 by the host.
    pub(super) fn stage(&mut self, range: Range<u64>, outside: Outside) -> &mut Script {
        let whole = 0..AREA;
        self.guest_fills(range.clone(), 0x11).make_private(range.clone());
        self.guest_fills(range.clone(), 0x22).guest_expects(range.clone(), 0x22);
        self.host_expects(range.clone(), 0x11);
        if outside == Outside::Tested {
            self.guest_expects(0..range.start, INITIAL).guest_expects(range.end..AREA, INITIAL);
        }
        self.make_shared(range.clone()).guest_fills(range.clone(), 0x33);
        self.host_expects(range.clone(), 0x33).host_fills(range.clone(), 0x44);
        self.guest_expects(range.clone(), 0x44).guest_fills(range, INITIAL);
        self.map_gpa_range(whole, SET_ATTRIBUTES | SHARED | FALLOCATE)
    }

    /// Runs the script: the vCPU's thread of the VMM.
    fn run(&self, cx: &Cx<'_>, vcpu: &mut VcpuFd, vmm: &Vmm) -> Result<(), Failure> {
        self.program.load(cx, vcpu);
        let mut reports = 0;
        while let Some(step) = self.program.step_with(cx, vcpu, |cx, exit| match exit {
            VcpuExit::Hypercall(call) => vmm.map_gpa_range(cx, &call),
            other => Err(unexpected("expected a hypercall or a report", &other)),
        })? {
            equal("the guest's report", step, reports)?;
            reports += 1;
            self.host_step(cx, vmm, &self.steps[step as usize])?;
        }
        equal("reports", reports as usize, self.steps.len())?;
        // What the VMM answered to the last hypercall.
        equal("rax", ok("KVM_GET_REGS", vcpu.get_regs(cx))?.rax, 0)
    }

    fn host_step(&self, cx: &Cx<'_>, vmm: &Vmm, step: &HostStep) -> Result<(), Failure> {
        let offset = self.base - GPA;
        match step {
            HostStep::Expect(range, pattern) => {
                for at in places(range.clone()) {
                    let found = ok("host read", vmm.shared.read_u64(cx, offset + at))?;
                    word(format_args!("the host reads offset {at:#x}"), found, word_of(*pattern, at))?;
                }
            }
            HostStep::Fill(range, pattern) => {
                for at in places(range.clone()) {
                    ok("host write", vmm.shared.write_u64(cx, offset + at, word_of(*pattern, at)))?;
                }
            }
            HostStep::Pass => {}
        }
        Ok(())
    }
}

/// The pattern of memory that is in no range under test.
pub(super) const INITIAL: Pattern = 0xcc;

/// Whether a stage also reads all pages that it did not convert.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outside {
    Tested,
    Ignored,
}

/// What the threads of the VMM share.
#[derive(Debug)]
pub(super) struct Vmm {
    pub(super) vm: VmFd,
    memory: GuestMemfd,
    shared: Mapping,
    findings: Findings,
}

impl Vmm {
    /// What the VMM does at a hypercall: frees or allocates, sets attributes, and answers 0, which is there already.
    fn map_gpa_range(&self, cx: &Cx<'_>, call: &HypercallExit<'_>) -> Result<(), Failure> {
        let [gpa, pages, attributes, ..] = call.args;
        equal("number of the hypercall", call.nr, KVM_HC_MAP_GPA_RANGE)?;
        let (size, area) = (pages * PAGE_SIZE, GPA..GPA + VCPUS * AREA);
        let inside = gpa.is_multiple_of(PAGE_SIZE) && size > 0 && area.contains(&gpa) && gpa + size <= area.end;
        ensure(inside, format_args!("expected a range of the guest in the hypercall, found {gpa:#x}, {pages} pages"))?;
        equal("the answer before the VMM gave one", *call.ret, 0)?;
        let shared = attributes & SHARED != 0;
        if attributes & FALLOCATE != 0 {
            let offset = gpa - GPA;
            if shared {
                ok("PUNCH_HOLE", self.memory.punch_hole(cx, offset, size))?;
            } else {
                ok("KEEP_SIZE", self.memory.allocate(cx, offset, size))?;
            }
        }
        if attributes & SET_ATTRIBUTES != 0 {
            super::super::cases::set_private(cx, &self.vm, gpa, size, !shared)?;
            self.findings.saw(if shared { TO_SHARED } else { TO_PRIVATE });
        }
        Ok(())
    }
}

pub(super) const TO_PRIVATE: &str = "conversions to private";
pub(super) const TO_SHARED: &str = "conversions to shared";

/// A VM with `slots` slots on one guest_memfd for all vCPUs, with hypercalls that exit.
pub(super) fn boot(
    cx: &Cx<'_>,
    process: &Arc<Process>,
    vm: VmFd,
    slots: u64,
    findings: &Findings,
) -> Result<Vmm, Failure> {
    let args = [1 << KVM_HC_MAP_GPA_RANGE, 0, 0, 0];
    let exits = kvm_enable_cap { cap: Cap::ExitHypercall as u32, args, ..Default::default() };
    ok("KVM_CAP_EXIT_HYPERCALL", vm.enable_cap(cx, &exits))?;
    let size = VCPUS * AREA;
    let args = kvm_create_guest_memfd { size, ..Default::default() };
    let memory = ok("KVM_CREATE_GUEST_MEMFD", vm.create_guest_memfd(cx, args))?;
    let shared = anonymous(cx, process, size)?;
    let each = size / slots;
    for slot in 0..slots {
        let at = slot * each;
        let region = gmem_region(slot as u32, GPA + at, each, shared.addr().0 + at, &memory, at);
        ok("slot", vm.set_user_memory_region2(cx, region))?;
    }
    Ok(Vmm { vm, memory, shared, findings: findings.clone() })
}

impl Vmm {
    /// The VMM is done with the VM: what stays is the file.
    pub(super) fn close_vm(self, cx: &Cx<'_>) -> Result<GuestMemfd, Failure> {
        ok("close of the VM", self.vm.close(cx))?;
        Ok(self.memory)
    }
}

/// Runs a script for each vCPU, for one slot and for two, under so many schedules.
pub(super) fn converting(
    schedules: u64,
    sides: &[&'static str],
    script: impl Fn(u64) -> Script,
) -> Result<String, Failure> {
    let mut race = Race::new(schedules);
    for slots in [1, 2] {
        let explored = race.explore(
            KVM_X86_SW_PROTECTED_VM,
            |cx, process, vm, findings| {
                let vmm = Arc::new(boot(cx, process, vm, slots, findings)?);
                for id in 0..VCPUS {
                    let mut vcpu = ok("KVM_CREATE_VCPU", vmm.vm.create_vcpu(cx, id))?;
                    let (script, vmm) = (script(id), Arc::clone(&vmm));
                    findings.spawn(cx, &format!("vcpu{id}"), move |cx| script.run(cx, &mut vcpu, &vmm));
                }
                Ok(())
            },
            |_, _, ()| Ok(()),
        );
        explored.map_err(|failure| failure.within(format_args!("{slots} slots")))?;
    }
    race.finish(sides)
}
