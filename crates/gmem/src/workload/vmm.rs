//! The VMM, as QEMU does it: the launch, a thread for each vCPU, and conversions when the guest asks for them.

use super::guest::{FEATURES, PHASE_PORT, boot_processor, other_processor};
use super::layout;
use super::{Phase, Sizes};
use crate::api::{GuestMemfd, Kvm, Mapping, VcpuFd, VmFd};
use crate::kvm::config::MachineConfig;
use crate::kvm::host::Host;
use crate::kvm::ioctl;
use crate::kvm::process::{Process, Sharing};
use crate::kvm::sev::{
    MpState, SevCmd, SevOp, SnpLaunchFinish, SnpLaunchStart, SnpLaunchUpdate, SnpPageType, open_sev,
};
use crate::kvm::uapi::{
    Cap, KVM_HC_MAP_GPA_RANGE, KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_X86_SNP_VM,
    kvm_create_guest_memfd, kvm_enable_cap, kvm_memory_attributes, kvm_userspace_memory_region2,
};
use crate::kvm::vcpu::ExitInfo;
use crate::linux_guest::{Ends, Kernel, Program};
use sim_kernel::fs::RawFd;
use sim_kernel::mm::{Advice, Prot};
use sim_kernel::sched::{Chooser, Config, LogLevel, Random, Sim, Verdict};
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE};
use sim_mmu::Gpa;
use std::ops::Range;
use std::sync::Arc;

/// `GuestPolicy::USUAL`.
const POLICY: u64 = 0x3_0000;
/// `KVM_MAP_GPA_RANGE_ENCRYPTED`.
const ENCRYPTED: u64 = 1 << 4;

/// Steps after which a run is given up: a guest of 32 GiB has less.
const STEPS_MAX: u64 = 1 << 34;

/// What a phase did. A vCPU that is late counts for the phase in which the first one is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PhaseReport {
    /// The phase.
    pub phase: Phase,
    /// Exits by which the guest asked for a conversion; of W1, launch ioctls.
    pub exits: u64,
    /// Pages of 4 KiB that were asked to be private; of W1, that were launched.
    pub to_private: u64,
    /// Pages that were asked to be shared.
    pub to_shared: u64,
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// The phases, in order.
    pub phases: Vec<PhaseReport>,
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
struct Slot {
    gpa: Range<Gpa>,
    map: Mapping,
    gmem: GuestMemfd,
}

pub(super) struct Vmm {
    process: Arc<Process>,
    vm: VmFd,
    slots: Vec<Slot>,
    counts: parking_lot::Mutex<Vec<PhaseReport>>,
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
    let machine = MachineConfig { snp: true, memory: 2 * sizes.memory + (512 << 20), ..MachineConfig::default() };
    let mut sim = Sim::new(Chooser::Random(Random::new()));
    let config = Config { seed, steps_max: STEPS_MAX, log: LogLevel::Hash, ..Config::default() };
    let ((vmm, vcpus), verdict) = sim.execute(&config, |cx| {
        let process = Host::new(cx, machine).process(cx);
        let program = |id| match id {
            0 => Program::new(move |cpu| boot_processor(Kernel::new(cpu), sizes)),
            _ => Program::new(move |cpu| other_processor(Kernel::new(cpu), id, sizes)),
        };
        let (vmm, vcpus) = Vmm::launch(cx, &process, &sizes, program).expect("a guest of these sizes can be launched");
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
    let mut outcomes = Vec::new();
    if verdict.is_completed() {
        sim.solo(|cx| {
            vmm.vm.vm().check_invariants();
            outcomes = vcpus.iter().map(|vcpu| vcpu.kernel_outcome(cx)).collect();
            drop(vcpus);
            vmm.process.exit(cx);
        });
    }
    let problems = std::mem::take(&mut *vmm.problems.lock());
    let phases = std::mem::take(&mut *vmm.counts.lock());
    Ok(Report { phases, verdict, outcomes, problems, steps, log_digest })
}

impl Vmm {
    /// The VM with its memory and vCPUs, launched.
    pub(super) fn launch(
        cx: &Cx<'_>,
        process: &Arc<Process>,
        sizes: &Sizes,
        program: impl Fn(u32) -> Program,
    ) -> Result<(Vmm, Vec<VcpuFd>), Errno> {
        let vm = Kvm::new(cx, process)?.create_vm_with_type(cx, KVM_X86_SNP_VM)?;
        let mut cap = kvm_enable_cap { cap: Cap::ExitHypercall as u32, flags: 0, args: [0; 4], pad: [0; 64] };
        cap.args[0] = 1 << KVM_HC_MAP_GPA_RANGE;
        vm.enable_cap(cx, &cap)?;
        let sev = open_sev(cx, process)?;
        let command = |op| vm.encrypt_op_sev(cx, &mut SevCmd::new(op, sev));
        command(SevOp::Init2 { vmsa_features: 0, flags: 0, ghcb_version: 2 })?;
        let ranges = [Gpa(0)..Gpa(sizes.memory), layout::firmware(sizes.memory)];
        let slots = (0..).zip(ranges).map(|(number, range)| Slot::new(cx, process, &vm, number, range));
        let slots = slots.collect::<Result<Vec<_>, _>>()?;
        let mut vcpus = Vec::new();
        for id in 0..sizes.vcpus {
            let vcpu = vm.create_vcpu(cx, u64::from(id))?;
            vcpu.vcpu().set_kernel(cx, program(id));
            if id > 0 {
                vcpu.vcpu().set_mp_state(cx, MpState::Halted)?;
            }
            vcpus.push(vcpu);
        }
        command(SevOp::SnpLaunchStart(SnpLaunchStart { policy: POLICY, ..SnpLaunchStart::default() }))?;
        let vmm =
            Vmm { process: Arc::clone(process), vm, slots, counts: Default::default(), problems: Default::default() };
        vmm.launch_pages(cx, sev, sizes)?;
        vmm.vm.encrypt_op_sev(cx, &mut SevCmd::new(SevOp::SnpLaunchFinish(SnpLaunchFinish::default()), sev))?;
        assert_eq!(FEATURES, 1, "INIT2 adds SNP_ACTIVE to no other features");
        Ok((vmm, vcpus))
    }

    /// W1.
    fn launch_pages(&self, cx: &Cx<'_>, sev: RawFd, sizes: &Sizes) -> Result<(), Errno> {
        let firmware = layout::firmware(sizes.memory);
        let mut pieces = vec![(firmware.start, 1024, SnpPageType::NORMAL)];
        pieces.extend(layout::ZERO.map(|(gpa, pages)| (gpa, pages, SnpPageType::ZERO)));
        pieces.extend([
            (layout::SECRETS, 1, SnpPageType::SECRETS),
            (layout::CPUID, 1, SnpPageType::CPUID),
            (layout::HASHES, 1, SnpPageType::NORMAL),
            (layout::UNMEASURED, 1, SnpPageType::UNMEASURED),
        ]);
        let mut count = PhaseReport { phase: Phase::W1, exits: 0, to_private: 0, to_shared: 0 };
        for (gpa, pages, page_type) in pieces {
            let (slot, offset) = self.slot(gpa);
            let uaddr = Hva(slot.map.addr().0 + offset);
            let update = SnpLaunchUpdate { gfn_start: gpa.gfn(), uaddr, len: pages * PAGE_SIZE, page_type, flags: 0 };
            let mut cmd = SevCmd::new(SevOp::SnpLaunchUpdate(update), sev);
            loop {
                self.vm.encrypt_op_sev(cx, &mut cmd)?;
                count.exits += 1;
                match cmd.op {
                    SevOp::SnpLaunchUpdate(left) if left.len > 0 => {}
                    _ => break,
                }
            }
            count.to_private += pages;
        }
        self.counts.lock().push(count);
        Ok(())
    }

    /// The slot of an address, and the offset in it.
    fn slot(&self, gpa: Gpa) -> (&Slot, u64) {
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
                (Ok(()), ExitInfo::Io { port: PHASE_PORT, data }) => self.begins(data),
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
            let count = counts.last_mut().expect("W1 was first");
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
