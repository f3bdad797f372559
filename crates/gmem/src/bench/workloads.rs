//! A whole VM, on the host's own threads: private faults (P5), remote flushes (P8), conversions (P9), dirty logging (P10).
//!
//! No event log, no observers; assertions are on, as always.

use super::vm::BenchVm;
use super::{Case, Meter, Size};
use crate::kvm::uapi::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use crate::{ExitInfo, Machine, MachineConfig};
use sim_mmu::RemoteFlush;
use std::sync::{Arc, Barrier};

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

/// P8, KVM's part: everybody is asked to flush. Vcpus outside do so before they enter again; one in the guest must come out first.
pub(super) fn p8(meter: &mut dyn Meter, _size: &Size) {
    const FLUSHES: u64 = 256;
    const VCPUS: usize = 64;
    Machine::run_native(MachineConfig::default(), |cx, process| {
        let vm = BenchVm::mapped(cx, process, 512);
        let vcpus = vm.more_vcpus(cx, VCPUS - 1);
        let case = Case::new("P8", "remote flush, 64 vCPUs outside", 0, "flush", FLUSHES).at_most(1000.0);
        meter.measure(case, &mut |timer| {
            timer.time(|| (0..FLUSHES).for_each(|_| vm.vm().flush_remote_tlbs(cx)));
        });
        vcpus.into_iter().for_each(|vcpu| vcpu.close(cx).expect("close"));
        vm.close(cx);
    });
    let case = Case::new("P8", "remote flush, one vCPU in the guest", 0, "flush", FLUSHES).parallel();
    meter.measure(case, &mut |timer| {
        Machine::run_native(MachineConfig::default(), |cx, process| {
            let mut vm = BenchVm::mapped(cx, process, 512);
            vm.set_first_word(cx, 0);
            vm.load_wait(cx);
            let vcpu = vm.vcpu();
            let (begun, ended) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
            let theirs = (Arc::clone(&begun), Arc::clone(&ended));
            cx.spawn("vcpu", move |cx| {
                theirs.0.wait();
                let (result, exit) = vcpu.run(cx);
                assert_eq!((result, exit), (Ok(()), ExitInfo::Hlt));
                drop(vcpu);
                theirs.1.wait();
            });
            begun.wait();
            timer.time(|| (0..FLUSHES).for_each(|_| vm.vm().flush_remote_tlbs(cx)));
            vm.set_first_word(cx, 1);
            ended.wait();
            vm.close(cx);
        });
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
