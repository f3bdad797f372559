//! The VMM, as QEMU does it: the launch, a thread for each vCPU, and conversions when the guest asks for them.

use super::guest::{PHASE_PORT, boot_processor, other_processor};
use super::launch::{launch, terminate_td};
use super::layout;
use super::seamcalls::Seamcalls;
use super::{Phase, Platform, Sizes};
use crate::api::{GuestMemfd, Mapping, VcpuFd, VmFd};
use crate::kvm::config::MachineConfig;
use crate::kvm::host::Host;
use crate::kvm::ioctl;
use crate::kvm::process::{Process, Sharing};
use crate::kvm::uapi::{
    KVM_HC_MAP_GPA_RANGE, KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_create_guest_memfd,
    kvm_memory_attributes, kvm_userspace_memory_region2,
};
use crate::kvm::vcpu::ExitInfo;
use crate::linux_guest::{Ends, Program};
use sim_kernel::mm::{Advice, Prot};
use sim_kernel::sched::{Chooser, Config, LogLevel, Random, Sim, Verdict};
use sim_kernel::{Cx, Errno, PAGE_SIZE};
use sim_mmu::Gpa;
use std::ops::Range;
use std::sync::Arc;

/// `KVM_MAP_GPA_RANGE_ENCRYPTED`.
const ENCRYPTED: u64 = 1 << 4;

/// Steps after which a run is given up: a guest of 32 GiB has less.
const STEPS_MAX: u64 = 1 << 34;

/// What a phase did. A vCPU that is late counts for the phase in which the first one is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhaseReport {
    /// The phase.
    pub phase: Phase,
    /// Exits by which the guest asked for a conversion; of W1 and W2, launch ioctls.
    pub exits: u64,
    /// Pages of 4 KiB that were asked to be private; of W1 and W2, that were launched.
    pub to_private: u64,
    /// Pages that were asked to be shared.
    pub to_shared: u64,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// The phases, in order.
    pub phases: Vec<PhaseReport>,
    /// W11 of a TD: what taking it apart took.
    pub teardown: Option<Seamcalls>,
    /// How the tasks ended.
    pub verdict: Verdict,
    /// How each vCPU's code ended: `None` if it did not.
    pub outcomes: Vec<Option<Ends<()>>>,
    /// What made a vCPU's thread stop early.
    pub problems: Vec<String>,
    /// Scheduling points.
    pub steps: u64,
    /// Hash of the event log.
    pub log_digest: u64,
}

impl Report {
    /// Whether every vCPU came to its end.
    pub fn is_complete(&self) -> bool {
        let ended = self.outcomes.iter().all(|outcome| *outcome == Some(Ok(())));
        self.verdict.is_completed() && ended && self.problems.is_empty()
    }
}

/// A slot with its memory.
pub(super) struct Slot {
    gpa: Range<Gpa>,
    pub(super) map: Mapping,
    gmem: GuestMemfd,
}

pub(super) struct Vmm {
    pub(super) process: Arc<Process>,
    pub(super) vm: VmFd,
    slots: Vec<Slot>,
    pub(super) counts: parking_lot::Mutex<Vec<PhaseReport>>,
    problems: parking_lot::Mutex<Vec<String>>,
}

/// Runs a workload under random schedules from a seed.
///
/// # Errors
/// If there can be no such guest, as [`Sizes::check`].
pub fn run(sizes: &Sizes, seed: u64) -> Result<Report, String> {
    sizes.check()?;
    let sizes = *sizes;
    // Shared and private memory at the same time, and what the host needs.
    let machine = MachineConfig {
        memory: 2 * sizes.memory + (512 << 20),
        tdx_contention: sizes.contention,
        tdx_terminate_vm: sizes.terminate,
        tdx_2m: sizes.large_pages,
        gmem_2m_enabled: sizes.large_pages && sizes.platform == Platform::Tdx,
        ..sizes.platform.machine()
    };
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    let config = Config { seed, steps_max: STEPS_MAX, log: LogLevel::Hash, ..Config::default() };
    let ((vmm, vcpus), verdict) = sim.execute(&config, |cx| {
        let process = Host::new(cx, machine).process(cx);
        let program = |id| match id {
            0 => Program::new(move |cpu| boot_processor(sizes.platform.kernel(cpu), sizes)),
            _ => Program::new(move |cpu| other_processor(sizes.platform.kernel(cpu), id, sizes)),
        };
        let (vmm, vcpus) = launch(cx, &process, &sizes, program).expect("a guest of these sizes can be launched");
        let vmm = Arc::new(vmm);
        let mut handles = Vec::new();
        for (number, vcpu) in (0..).zip(vcpus) {
            handles.push(Arc::clone(vcpu.vcpu()));
            let vmm = Arc::clone(&vmm);
            cx.spawn(&format!("vcpu{number}"), move |cx| vmm.vcpu_thread(cx, &vcpu));
        }
        (vmm, handles)
    });
    let (steps, log_digest) = (sim.steps(), sim.log_digest().expect("it was hashed"));
    let (mut outcomes, mut teardown) = (Vec::new(), None);
    if verdict.is_completed() {
        sim.solo(|cx| {
            vmm.vm.vm().check_invariants();
            outcomes = vcpus.iter().map(|vcpu| vcpu.kernel_outcome(cx)).collect();
            drop(vcpus);
            let count = vmm.vm.vm().tdx_arc().map(Seamcalls::begin);
            if sizes.terminate && sizes.platform == Platform::Tdx {
                terminate_td(cx, &vmm.process, &vmm.vm).expect("a TD that ran can be terminated");
            }
            vmm.process.exit(cx);
            teardown = count.map(Seamcalls::end);
        });
    }
    let problems = std::mem::take(&mut *vmm.problems.lock());
    let phases = std::mem::take(&mut *vmm.counts.lock());
    Ok(Report { phases, teardown, verdict, outcomes, problems, steps, log_digest })
}

impl Vmm {
    /// A VM with memory from 0 on, and the firmware's.
    ///
    /// # Errors
    /// As of the system calls.
    pub(super) fn new(cx: &Cx<'_>, process: &Arc<Process>, vm: VmFd, sizes: &Sizes) -> Result<Vmm, Errno> {
        let ranges = [Gpa(0)..Gpa(sizes.memory), layout::firmware(sizes.memory)];
        let slots = (0..).zip(ranges).map(|(number, range)| Slot::new(cx, process, &vm, number, range));
        let slots = slots.collect::<Result<Vec<_>, _>>()?;
        let process = Arc::clone(process);
        Ok(Vmm { process, vm, slots, counts: Default::default(), problems: Default::default() })
    }

    /// The slot of an address, and the offset in it.
    pub(super) fn slot(&self, gpa: Gpa) -> (&Slot, u64) {
        let slot = self.slots.iter().find(|slot| slot.gpa.contains(&gpa)).expect("a guest's own memory");
        (slot, gpa.0 - slot.gpa.start.0)
    }

    /// A vCPU's thread, until its program ends.
    pub(super) fn vcpu_thread(&self, cx: &Cx<'_>, vcpu: &VcpuFd) {
        let mut answer = None;
        loop {
            let run = ioctl::run_answered(cx, &self.process, vcpu.as_raw_fd(), answer);
            let (result, exit) = match run {
                Ok(run) => run,
                Err(errno) => return self.problem(vcpu, &format!("KVM_RUN: {errno}")),
            };
            answer = None;
            match (result, exit) {
                (Ok(()), ExitInfo::Hlt) => return,
                (Ok(()), ExitInfo::Io { port: PHASE_PORT, data, .. }) => self.begins(data),
                (Ok(()), ExitInfo::Hypercall { nr: KVM_HC_MAP_GPA_RANGE, args: [gpa, npages, attributes, _], .. }) => {
                    match self.convert(cx, Gpa(gpa), npages, attributes & ENCRYPTED != 0) {
                        Ok(()) => answer = Some(0),
                        Err(errno) => return self.problem(vcpu, &format!("the conversion of {gpa:#x}: {errno}")),
                    }
                }
                (result, exit) => return self.problem(vcpu, &format!("{exit:?}, {result:?}")),
            }
        }
    }

    /// What made a vCPU's thread stop early.
    pub(super) fn problems(&self) -> Vec<String> {
        self.problems.lock().clone()
    }

    fn problem(&self, vcpu: &VcpuFd, what: &str) {
        self.problems.lock().push(format!("vCPU {}: {what}", vcpu.vcpu().id()));
    }

    fn begins(&self, phase: u32) {
        let phase = Phase::ALL.into_iter().find(|known| *known as u32 == phase).expect("the guest says what there is");
        self.counts.lock().push(PhaseReport { phase, exits: 0, to_private: 0, to_shared: 0 });
    }

    /// Attributes, then the memory that is not used any more.
    fn convert(&self, cx: &Cx<'_>, gpa: Gpa, npages: u64, private: bool) -> Result<(), Errno> {
        {
            let mut counts = self.counts.lock();
            let count = counts.last_mut().expect("the launch was first");
            count.exits += 1;
            *(if private { &mut count.to_private } else { &mut count.to_shared }) += npages;
        }
        let len = npages * PAGE_SIZE;
        let attributes = if private { KVM_MEMORY_ATTRIBUTE_PRIVATE } else { 0 };
        self.vm.set_memory_attributes(cx, kvm_memory_attributes { address: gpa.0, size: len, attributes, flags: 0 })?;
        let (slot, offset) = self.slot(gpa);
        if private {
            slot.map.madvise(cx, offset, len, Advice::Dontneed)
        } else {
            slot.gmem.punch_hole(cx, offset, len)
        }
    }
}

impl Slot {
    fn new(cx: &Cx<'_>, process: &Arc<Process>, vm: &VmFd, number: u32, gpa: Range<Gpa>) -> Result<Slot, Errno> {
        let size = gpa.end.0 - gpa.start.0;
        let map = Mapping::anonymous(cx, process, size, Prot::READ | Prot::WRITE, Sharing::Private)?;
        let gmem = vm.create_guest_memfd(cx, kvm_create_guest_memfd { size, flags: 0, reserved: [0; 6] })?;
        let region = kvm_userspace_memory_region2 {
            slot: number,
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: gpa.start.0,
            memory_size: size,
            userspace_addr: map.addr().0,
            guest_memfd_offset: 0,
            guest_memfd: gmem.as_raw_fd() as u32,
            ..Default::default()
        };
        vm.set_user_memory_region2(cx, region)?;
        let attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE;
        vm.set_memory_attributes(cx, kvm_memory_attributes { address: gpa.start.0, size, attributes, flags: 0 })?;
        Ok(Slot { gpa, map, gmem })
    }
}
