//! Faults on one thread and on two (P13): in VMs of their own, which share nothing, and in one VM, which have `mmu_lock` and the page cache
//! in common.

use super::vm::BenchVm;
use super::{Case, Meter, Size};
use crate::kvm::uapi::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use crate::{ExitInfo, Machine, MachineConfig};
use std::sync::{Arc, Barrier, Mutex};

/// P13.
pub(super) fn p13(meter: &mut dyn Meter, size: &Size) {
    let pages = size.of(4096, 64);
    for (name, threads) in [("a VM of its own, one thread", 1), ("a VM of its own, two threads", 2)] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.expect("a pool of two threads");
        // Ready, then done: the first thread has the timer, and the others work between two meetings with it.
        let ready = Barrier::new(threads);
        let case = Case::new("P13", name, pages, "fault", pages * threads as u64).parallel();
        meter.measure(case, &mut |timer| {
            let timer = Mutex::new(timer);
            pool.broadcast(|thread| {
                Machine::run_native(MachineConfig::default(), |cx, process| {
                    let mut vm = BenchVm::private(cx, process, pages);
                    vm.convert(cx, pages, KVM_MEMORY_ATTRIBUTE_PRIVATE);
                    vm.load_writes(cx, 0..pages, 1);
                    ready.wait();
                    let mut work = || {
                        vm.run(cx);
                        ready.wait();
                    };
                    if thread.index() == 0 {
                        timer.lock().expect("nobody panics with it").time(work);
                    } else {
                        work();
                    }
                    vm.close(cx);
                });
            });
        });
    }
    for (name, count) in [("one VM, one vCPU", 1), ("one VM, two vCPUs", 2)] {
        let case = Case::new("P13", name, pages, "fault", pages).parallel();
        meter.measure(case, &mut |timer| {
            Machine::run_native(MachineConfig::default(), |cx, process| {
                let vm = BenchVm::private(cx, process, pages);
                vm.convert(cx, pages, KVM_MEMORY_ATTRIBUTE_PRIVATE);
                let vcpus = vm.more_vcpus(cx, count);
                let (ready, done) = (Arc::new(Barrier::new(count + 1)), Arc::new(Barrier::new(count + 1)));
                for vcpu in &vcpus {
                    let (vcpu, ready, done) = (Arc::clone(vcpu.vcpu()), Arc::clone(&ready), Arc::clone(&done));
                    cx.spawn("vcpu", move |cx| {
                        ready.wait();
                        let (result, exit) = vcpu.run(cx);
                        done.wait();
                        assert_eq!((result, exit), (Ok(()), ExitInfo::Hlt));
                    });
                }
                ready.wait();
                timer.time(|| done.wait());
                vcpus.into_iter().for_each(|vcpu| vcpu.close(cx).expect("close"));
                vm.close(cx);
            });
        });
    }
}
