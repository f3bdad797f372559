//! What single operations cost on a sequential machine.

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use gmem::kvm::uapi::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use gmem_benches::models::small_vm::{PAGES, SmallVm};
use sim_kernel::sched::Sim;
use std::time::Duration;

fn operations(c: &mut Criterion) {
    let mut group = c.benchmark_group("operation");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));

    let mut sim = Sim::sequential();
    group.bench_function("vm_create_destroy", |b| {
        b.iter(|| {
            // A fresh execution, so that the objects of the last one are forgotten.
            let (small, _) = sim.execute(&Default::default(), SmallVm::new);
            sim.solo(|cx| small.destroy(cx));
        });
    });

    let mut sim = Sim::sequential();
    let small = sim.solo(SmallVm::new);
    group.bench_function("guest_write_mapped", |b| {
        sim.solo(|cx| {
            small.write(cx, 0, 1).0.expect("KVM_RUN");
            b.iter(|| small.write(cx, 0, 1).0.expect("KVM_RUN"));
        });
    });
    group.bench_function("guest_write_fault_and_punch", |b| {
        sim.solo(|cx| {
            b.iter(|| {
                small.write(cx, 0, 1).0.expect("KVM_RUN");
                small.punch(cx, 0, 1);
            });
        });
    });
    group.bench_function("punch_nothing", |b| {
        sim.solo(|cx| {
            small.punch(cx, 0, PAGES);
            b.iter(|| small.punch(cx, 1, 1));
        });
    });
    group.bench_function("punch_page", |b| {
        sim.solo(|cx| {
            b.iter_batched(
                || small.write(cx, 0, 1).0.expect("KVM_RUN"),
                |()| small.punch(cx, 0, 1),
                BatchSize::PerIteration,
            );
        });
    });
    group.bench_function("conversion_there_and_back", |b| {
        sim.solo(|cx| {
            b.iter(|| {
                small.convert(cx, 0, 1, 0);
                small.convert(cx, 0, 1, KVM_MEMORY_ATTRIBUTE_PRIVATE);
            });
        });
    });
    sim.solo(|cx| small.destroy(cx));
    group.finish();
}

criterion_group!(benches, operations);
criterion_main!(benches);
