//! The whole run of all recordings: operations per second through reader, interpreter, simulator and comparison.
//!
//! Recordings are looked for in `$GMEM_TRACES`, beside the repository and in `tests/data`; without any, nothing is measured.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gmem::cli::Backend;
use gmem::replay::{self, Options};
use std::path::PathBuf;
use std::time::Duration;

fn recordings() -> Option<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os("GMEM_TRACES").map(PathBuf::from);
    let places =
        named.into_iter().chain(["../../shared/traces", "../tests/data/traces", "../tests/data"].map(|p| here.join(p)));
    places.into_iter().find(|place| {
        let Ok(entries) = place.read_dir() else { return false };
        entries.flatten().any(|entry| entry.path().extension().is_some_and(|e| e == "jsonl"))
    })
}

fn replay(c: &mut Criterion) {
    let Some(place) = recordings() else {
        eprintln!("no recordings found: nothing to replay");
        return;
    };
    let paths = [place];
    let compare = || {
        let report = replay::compare(&paths, &Options::default(), &|header| gmem::Simulator.executor(header), &|_| ());
        assert_eq!(report.bad_input, [""; 0]);
        assert_eq!(report.total.stage2_agree, report.total.stage2_compared, "the simulator answers like the kernel");
        report.total
    };
    let total = compare();
    let mut group = c.benchmark_group("replay");
    group.throughput(Throughput::Elements(total.operations));
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5));
    group.bench_function("all_recordings", |b| b.iter(compare));
    group.finish();
}

criterion_group!(benches, replay);
criterion_main!(benches);
