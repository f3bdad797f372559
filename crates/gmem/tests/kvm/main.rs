//! KVM beneath the recordings: races, error paths and lifetimes that one thread of a real kernel never shows.

mod accounting;
mod attacks;
mod charges;
mod create_race;
mod descriptors;
mod dirty_points;
mod dirty_rounds;
mod fallocate_kinds;
mod mmio_cache;
mod mmio_wrap;
mod pending_exit;
mod poison_race;
mod poison_signal;
mod prefault_level;
mod readonly_logging;
mod run_loop;
mod snp;
mod stand_in;
mod td_kernel;
mod tdx;
mod workload;

use gmem::MachineConfig;
use gmem::kvm::host::Host;
use gmem::kvm::ioctl;
use gmem::kvm::process::{Mapped, Process, Sharing};
use gmem::kvm::uapi::*;
use gmem::kvm::vcpu::{GuestInsn, Vcpu};
use gmem::kvm::vm::Vm;
use sim_kernel::fs::RawFd;
use sim_kernel::mm::Prot;
use sim_kernel::sched::{Chooser, Config, Divergence, LogLevel, Ready, Sim, Strategy, TaskId, Verdict};
use sim_kernel::{Cx, Errno, Hva, PAGE_SIZE};
use sim_mmu::Gpa;
use std::sync::Arc;

/// One process with one VM.
#[derive(Clone)]
struct Machine {
    process: Arc<Process>,
    kvm: RawFd,
    fd: RawFd,
    vm: Arc<Vm>,
}

impl Machine {
    fn new(cx: &Cx<'_>, vm_type: u64) -> Machine {
        Machine::with(cx, vm_type, MachineConfig::default())
    }

    fn with(cx: &Cx<'_>, vm_type: u64, config: MachineConfig) -> Machine {
        Machine::on(cx, &Host::new(cx, config), vm_type)
    }

    fn on(cx: &Cx<'_>, host: &Arc<Host>, vm_type: u64) -> Machine {
        let process = host.process(cx);
        let kvm = ioctl::open_kvm(cx, &process).unwrap();
        let fd = ioctl::create_vm(cx, &process, kvm, vm_type).unwrap();
        let vm = ioctl::peek_vm(cx, &process, fd).unwrap();
        Machine { process, kvm, fd, vm }
    }

    fn vcpu(&self, cx: &Cx<'_>, id: u64) -> (RawFd, Arc<Vcpu>) {
        let fd = ioctl::create_vcpu(cx, &self.process, self.fd, id).unwrap();
        (fd, ioctl::peek_vcpu(cx, &self.process, fd).unwrap())
    }

    fn gmem(&self, cx: &Cx<'_>, size: u64, flags: u64) -> RawFd {
        let args = kvm_create_guest_memfd { size, flags, reserved: [0; 6] };
        ioctl::create_guest_memfd(cx, &self.process, self.fd, &args).unwrap()
    }

    fn anonymous(&self, cx: &Cx<'_>, len: u64) -> Hva {
        self.process.mmap(cx, len, Prot::READ | Prot::WRITE, Sharing::Private, Mapped::Anonymous, 2 << 20).unwrap()
    }

    fn slot(&self, cx: &Cx<'_>, slot: u32, flags: u32, gpa: u64, size: u64, hva: Hva) -> Result<(), Errno> {
        let region =
            kvm_userspace_memory_region { slot, flags, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva.0 };
        ioctl::set_user_memory_region(cx, &self.process, self.fd, &region)
    }

    fn gmem_slot(&self, cx: &Cx<'_>, slot: u32, gpa: u64, size: u64, gmem: RawFd) {
        let region = kvm_userspace_memory_region2 {
            slot,
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: gpa,
            memory_size: size,
            guest_memfd: gmem as u32,
            ..Default::default()
        };
        ioctl::set_user_memory_region2(cx, &self.process, self.fd, &region).unwrap();
    }
}

fn read(gpa: u64) -> GuestInsn {
    GuestInsn::Read { gpa: Gpa(gpa) }
}

fn write(gpa: u64) -> GuestInsn {
    GuestInsn::Write { gpa: Gpa(gpa), value: 1 }
}

/// Stays with a task for some steps: reaches windows in which one task must get far while another stands still.
struct Sticky(u64);

impl Strategy for Sticky {
    fn begin(&mut self, seed: u64) {
        self.0 = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    }

    fn pick(&mut self, ready: &Ready<'_>) -> Result<TaskId, Divergence> {
        let mut draw = |n: u64| {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % n
        };
        let stay = ready.runnable.contains(ready.current) && draw(12) != 0;
        let other = draw(u64::from(ready.runnable.len()));
        Ok(if stay { ready.current } else { ready.runnable.nth(other as u32) })
    }
}

/// Runs a set-up and its tasks under many schedules; all must end well, and `after` sees what is left.
fn race<R>(schedules: u64, setup: impl Fn(&Cx<'_>) -> R, after: impl Fn(&Cx<'_>, &R)) {
    let mut sim = Sim::new(Chooser::Custom(Box::new(Sticky(1))));
    for seed in 0..schedules {
        let config = Config { seed, steps_max: 200_000, log: LogLevel::Off, ..Config::default() };
        let (state, verdict) = sim.execute(&config, &setup);
        assert_eq!(verdict, Verdict::Completed, "seed {seed}: {verdict}");
        sim.solo(|cx| after(cx, &state));
    }
}
