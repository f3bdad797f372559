//! KVM's use of SEV-SNP, by the ids of its checklist (`SN-...`): scripts in the language of scenarios, each line with what it must answer, and looks at the
//! RMP in between.

mod launch;
mod psc;
mod psp;
mod races;
mod rmp;
mod runtime;
mod teardown;
mod vcpus;

use gmem::MachineConfig;
use gmem::interp::{Sequential, World};
use gmem::kvm::sev::SevHost;
use gmem::kvm::vm::Vm;
use gmem::scenario::parse_line;
use sim_coco::snp::{PageState, RmpEntry, Snp};
use sim_kernel::{Cx, PAGE_SHIFT, Pfn};
use std::sync::Arc;

/// A machine on which scripts run.
struct Script {
    machine: Sequential,
}

/// One VM with a vCPU and 64 KiB of private memory at 0x200000, from `g0` and `m0`; not launched.
const VM: &str = "
    create_vm vm0 type=snp                                   => ok
    sev_init2 vm0                                            => ok
    create_vcpu vm0 c0                                       => ok
    enable_cap vm0 exit_hypercall 4096                       => ok
    mmap m0 len=64K                                          => ok
    create_guest_memfd vm0 g0 size=64K                       => ok
    set_user_memory_region2 vm0 slot=0 flags=guest_memfd gpa=0x200000 size=64K hva=m0 guest_memfd=g0 => ok
    set_memory_attributes vm0 0x200000 32K private           => ok
    snp_launch_start vm0                                     => ok
";

/// The same, launched; its GHCB is at 0x208000, in shared memory.
const RUNNING: &str = "
    snp_launch_finish vm0                                    => ok
    guest_ghcb_msr c0 0x208012                               => hlt 0x208013
";

impl Script {
    fn new(config: MachineConfig) -> Script {
        Script { machine: Sequential::new(MachineConfig { snp: true, ..config }) }
    }

    /// A machine with a VM that is not launched.
    fn vm() -> Script {
        let mut script = Script::new(MachineConfig::default());
        script.run(VM);
        script
    }

    /// A machine with a VM that runs.
    fn running() -> Script {
        let mut script = Script::vm();
        script.run(RUNNING);
        script
    }

    /// Performs lines; each must answer what it says.
    #[track_caller]
    fn run(&mut self, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let step = parse_line(line).unwrap_or_else(|error| panic!("{line}: {}", error.title));
            let answer = self.machine.with(|cx, world| world.execute(cx, &step.op));
            if let Some(expected) = step.expect {
                expected.check(&answer).unwrap_or_else(|problem| panic!("{line}: {problem}"));
            }
        }
    }

    fn with<R>(&mut self, look: impl FnOnce(&Cx<'_>, &World) -> R) -> R {
        self.machine.with(look)
    }

    fn sev<R>(&mut self, look: impl FnOnce(&Cx<'_>, &Arc<SevHost>) -> R) -> R {
        self.with(|cx, world| look(cx, world.process().host().sev().expect("the machine has SNP")))
    }

    fn snp<R>(&mut self, look: impl FnOnce(&Cx<'_>, &Snp) -> R) -> R {
        self.sev(|cx, sev| look(cx, sev.snp()))
    }

    fn of_vm<R>(&mut self, vm: &str, look: impl FnOnce(&Cx<'_>, &Arc<Vm>) -> R) -> R {
        self.with(|cx, world| look(cx, &world.vm(cx, &vm.into()).expect("the VM is open")))
    }

    /// The frame of the guest_memfd behind a guest address, if there is one.
    fn frame(&mut self, gpa: u64) -> Option<Pfn> {
        self.with(|cx, world| {
            let gmem = gmem::kvm::ioctl::peek_gmem(cx, world.process(), world.fd(&"g0".into())).expect("g0 is open");
            gmem.mapping().peek(sim_kernel::Pgoff((gpa - 0x20_0000) >> PAGE_SHIFT))
        })
    }

    /// What the RMP says of a frame.
    fn entry(&mut self, pfn: Pfn) -> RmpEntry {
        self.snp(|_, snp| snp.rmp().entry(pfn))
    }

    fn state(&mut self, pfn: Pfn) -> PageState {
        self.snp(|_, snp| snp.rmp().state(pfn)).expect("a state that there is")
    }

    /// As [`Script::end`], where something does not hold: what that is.
    fn finding(mut self) -> String {
        let checked = self.with(|cx, world| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| gmem::testing::values::check_and_end(cx, world)))
        });
        *checked.expect_err("something does not hold").downcast::<String>().expect("a message")
    }

    /// The process ends; then nothing is assigned, nothing is left, and what must hold does.
    fn end(mut self) {
        self.with(gmem::testing::values::check_and_end);
    }
}
