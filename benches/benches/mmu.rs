//! The workloads of `gmem bench` under criterion, for comparisons between two versions of the code: the machine's MMU, KVM's stage 2, whole
//! VMs, each with its peers. `gmem bench` measures the same in a minute, against the goals and beside a real kernel.
//!
//! Names are goal, way and pages: `P3/npt/4096`. `cargo bench -p gmem-benches --bench mmu -- P3` measures one goal.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gmem::bench::{Case, GOALS, Meter, Size, Timer, Weighing};
use std::time::{Duration, Instant};

/// Criterion as the meter: it decides how often, by the time that passes.
struct Criteria<'a>(&'a mut Criterion);

// What is measured is time.
#[expect(clippy::disallowed_methods)]
fn now() -> Duration {
    static BEGUN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let now = Instant::now();
    now.saturating_duration_since(*BEGUN.get_or_init(|| now))
}

impl Meter for Criteria<'_> {
    fn measure(&mut self, case: Case, body: &mut dyn FnMut(&mut Timer)) {
        let mut group = self.0.benchmark_group(&*case.goal);
        group.throughput(Throughput::Elements(case.elements));
        group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        let name = case.id();
        let name = name.strip_prefix(&*case.goal).and_then(|rest| rest.strip_prefix('/')).unwrap_or(&name);
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let mut timer = Timer::new(now);
                (0..iterations).for_each(|_| body(&mut timer));
                timer.spent()
            });
        });
        group.finish();
        if !case.note.is_empty() {
            println!("{}: {}", case.id(), case.note);
        }
    }

    /// Bytes are no time: `gmem bench P12` weighs.
    fn weigh(&mut self, _: Case, _: &mut Weighing<'_>) {}
}

fn all(c: &mut Criterion) {
    // A goal that no argument names is not even set up.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for goal in GOALS {
        let is_wanted = |arg: &String| arg.split('/').next() == Some(goal.id);
        if wanted.is_empty() || wanted.iter().any(is_wanted) {
            (goal.run)(&mut Criteria(c), &Size::default());
        }
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
