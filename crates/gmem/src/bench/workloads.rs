//! A whole VM, on the host's own threads: private faults (P5), conversions (P9), dirty logging (P10).
//!
//! No event log, no observers; assertions are on, as always.

use super::vm::BenchVm;
use super::{Case, Meter, Size};
use crate::kvm::uapi::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use crate::{Machine, MachineConfig};

/// P5: pages exist, nothing is mapped; each write of the guest leaves, is mapped, and is made.
pub(super) fn p5(meter: &mut dyn Meter, size: &Size) {
    let pages = size.of(4096, 64);
    Machine::run_native(MachineConfig::default(), |cx, process| {
        let mut vm = BenchVm::private(cx, process, pages);
        vm.allocate(cx);
        let case = Case::new("P5", "private fault", pages, "fault", pages).at_most(400.0);
        meter.measure(case, &mut |timer| {
            // There and back: nothing is mapped, every page is kept.
            vm.convert(cx, pages, 0);
            vm.convert(cx, pages, KVM_MEMORY_ATTRIBUTE_PRIVATE);
            vm.load_writes(cx, 0..pages, 1);
            timer.time(|| vm.run(cx));
        });
        meter.measure(Case::new("P5", "the write alone", pages, "write", pages).peer(), &mut |timer| {
            vm.load_writes(cx, 0..pages, 1);
            timer.time(|| vm.run(cx));
        });
        vm.close(cx);
    });
}

/// P9: 2 MiB, all of it mapped by 4 KiB entries.
pub(super) fn p9(meter: &mut dyn Meter, _size: &Size) {
    const PAGES: u64 = 512;
    Machine::run_native(MachineConfig::default(), |cx, process| {
        let mut vm = BenchVm::private(cx, process, PAGES);
        vm.allocate(cx);
        for (name, from, to) in
            [("to shared", KVM_MEMORY_ATTRIBUTE_PRIVATE, 0), ("to private", 0, KVM_MEMORY_ATTRIBUTE_PRIVATE)]
        {
            meter.measure(Case::new("P9", name, PAGES, "conversion", 1).at_most(25_000.0), &mut |timer| {
                vm.convert(cx, PAGES, from);
                vm.load_writes(cx, 0..PAGES, 1);
                vm.run(cx);
                timer.time(|| vm.convert(cx, PAGES, to));
            });
        }
        vm.close(cx);
    });
}

/// P10: every page of the slot was written since the last round.
pub(super) fn p10(meter: &mut dyn Meter, size: &Size) {
    let pages = size.of(262_144, 512);
    Machine::run_native(MachineConfig::default(), |cx, process| {
        let mut vm = BenchVm::logged(cx, process, pages);
        vm.load_writes(cx, 0..pages, 1);
        vm.run(cx);
        let limit = 10e6 / 262_144.0;
        meter.measure(Case::new("P10", "collect", pages, "page", pages).at_most(limit), &mut |timer| {
            vm.load_writes(cx, 0..pages, 1);
            vm.run(cx);
            let dirty = timer.time(|| vm.dirty_log(cx));
            assert_eq!(dirty, pages, "every page was written");
        });
        meter.measure(Case::new("P10", "write of a protected page", pages, "page", pages), &mut |timer| {
            vm.dirty_log(cx);
            vm.load_writes(cx, 0..pages, 1);
            timer.time(|| vm.run(cx));
        });
        vm.close(cx);
    });
}
