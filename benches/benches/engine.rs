//! The engine beside shuttle: random schedules per second of the same model, written once for each.
//!
//! Both run one schedule per seed, with their random scheduler and everything else as it is by default; both check the counter.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gmem_benches::models::mutex_counter::{self, Size};
use sim_kernel::sched::{Chooser, Config, LogLevel, Random, Sim};
use std::time::Duration;

/// Schedules of one measured iteration.
const SCHEDULES: u64 = 500;

/// The same program on shuttle's primitives.
fn shuttle_mutex_counter(size: Size) {
    use shuttle::sync::atomic::{AtomicU64, Ordering};
    use shuttle::sync::{Arc, Mutex};

    let shared = Arc::new((Mutex::new(()), AtomicU64::new(0)));
    let threads: Vec<_> = (0..size.threads)
        .map(|_| {
            let shared = Arc::clone(&shared);
            shuttle::thread::spawn(move || {
                let (lock, counter) = &*shared;
                for _ in 0..size.iterations {
                    let _guard = lock.lock().expect("nobody panics");
                    counter.store(counter.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("nobody panics");
    }
    assert_eq!(shared.1.load(Ordering::SeqCst), size.threads * size.iterations, "an increment was lost");
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("mutex_counter");
    group.throughput(Throughput::Elements(SCHEDULES));
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for size in Size::ALL {
        for (name, log) in [("gmem", LogLevel::Off), ("gmem-hashed", LogLevel::Hash)] {
            group.bench_with_input(BenchmarkId::new(name, size), &size, |b, &size| {
                let mut sim = Sim::new(Chooser::Random(Random::new()));
                let mut seed = 0;
                b.iter(|| {
                    for _ in 0..SCHEDULES {
                        seed += 1;
                        mutex_counter::run(&mut sim, &Config { seed, log, ..Config::default() }, size);
                    }
                });
            });
        }
        group.bench_with_input(BenchmarkId::new("shuttle", size), &size, |b, &size| {
            let mut seed = 0;
            b.iter(|| {
                seed += 1;
                let scheduler = shuttle::scheduler::RandomScheduler::new_from_seed(seed, SCHEDULES as usize);
                let runner = shuttle::Runner::new(scheduler, shuttle::Config::default());
                assert_eq!(runner.run(move || shuttle_mutex_counter(size)), SCHEDULES as usize);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
