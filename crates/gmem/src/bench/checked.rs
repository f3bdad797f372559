//! A simulated VM with everything watched (P11): every assertion, the contents oracle, and the full log of events.

use super::vm::BenchVm;
use super::{Case, Meter, Size};
use crate::MachineConfig;
use crate::kvm::host::Host;
use crate::kvm::uapi::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use sim_kernel::sched::{Config, LogLevel, Sim};

/// P11: accesses that hit, and faults.
pub(super) fn p11(meter: &mut dyn Meter, size: &Size) {
    const ACCESSES: u64 = 1024;
    let pages = size.of(512, 64);
    for (name, fault_name, log) in [
        ("access, full log", "fault, full log", LogLevel::Full),
        ("access, hash of the log", "fault, hash of the log", LogLevel::Hash),
        ("access, no log", "fault, no log", LogLevel::Off),
    ] {
        let limit = |case: Case, limit| if log == LogLevel::Full { case.at_most(limit) } else { case };
        let mut sim = Sim::sequential();
        // A fresh execution for each call, so that no log grows without end.
        let case = Case::new("P11", name, 16, "access", ACCESSES);
        meter.measure(limit(case, 1e9 / 3e6), &mut |timer| {
            sim.execute(&Config { log, ..Config::default() }, |cx| {
                let process = Host::new(cx, MachineConfig::default()).process(cx);
                let mut vm = BenchVm::private(cx, &process, 16);
                vm.convert(cx, 16, KVM_MEMORY_ATTRIBUTE_PRIVATE);
                vm.load_writes(cx, 0..16, 1);
                vm.run(cx);
                vm.load_writes(cx, 0..16, ACCESSES / 16);
                timer.time(|| vm.run(cx));
                vm.close(cx);
                process.exit(cx);
            });
        });
        let case = Case::new("P11", fault_name, pages, "fault", pages);
        meter.measure(limit(case, 1e9 / 100e3), &mut |timer| {
            sim.execute(&Config { log, ..Config::default() }, |cx| {
                let process = Host::new(cx, MachineConfig::default()).process(cx);
                let mut vm = BenchVm::private(cx, &process, pages);
                vm.convert(cx, pages, KVM_MEMORY_ATTRIBUTE_PRIVATE);
                vm.load_writes(cx, 0..pages, 1);
                timer.time(|| vm.run(cx));
                vm.close(cx);
                process.exit(cx);
            });
        });
    }
}
