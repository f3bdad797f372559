//! KVM's races: random schedules per second, with a VM built, checked and destroyed for each.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gmem_benches::models::small_vm::SmallVm;
use gmem_benches::models::{fault_conversion, fault_punch};
use sim_kernel::sched::{Chooser, Config, Random, Sim, Verdict};
use std::time::Duration;

/// Schedules of one measured iteration.
const SCHEDULES: u64 = 200;

fn race(c: &mut Criterion) {
    let mut group = c.benchmark_group("race");
    group.throughput(Throughput::Elements(SCHEDULES));
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    let mut bench = |name: &str, run: &dyn Fn(&mut Sim, &Config)| {
        group.bench_function(name, |b| {
            let mut sim = Sim::new(Chooser::Random(Random::new()));
            let mut seed = 0;
            b.iter(|| {
                for _ in 0..SCHEDULES {
                    seed += 1;
                    run(&mut sim, &Config { seed, ..Config::default() });
                }
            });
        });
    };
    bench("fault_punch", &|sim, config| {
        fault_punch::run(sim, config);
    });
    bench("fault_punch_once", &|sim, config| {
        fault_punch::run_once(sim, config);
    });
    bench("fault_conversion", &|sim, config| {
        fault_conversion::run(sim, config);
    });
    // What every schedule of the above pays before and after its race.
    bench("nothing", &|sim, config| {
        let (small, verdict) = sim.execute(config, SmallVm::new);
        assert_eq!(verdict, Verdict::Completed);
        small.vm.check_invariants();
        sim.solo(|cx| small.destroy(cx));
    });
    group.finish();
}

criterion_group!(benches, race);
criterion_main!(benches);
