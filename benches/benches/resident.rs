//! P12: what a resident page of 4 KiB costs, without contents. `cargo bench -p gmem-benches --bench resident [SIZE…]`; sizes are in
//! MiB, 1048576 for a guest of 1 TiB, which takes minutes.

use gmem::resident::{ResidentMemory, populate};
use std::cell::Cell;
use std::time::Instant;

/// Bytes that a page may cost.
const GOAL: f64 = 48.0;

/// Resident bytes of this process (`/proc/self/statm`).
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc is mounted");
    let pages: u64 = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("the second field is RSS");
    pages * 4096
}

/// Time, for the rate.
#[expect(clippy::disallowed_methods, reason = "a benchmark looks at the clock")]
fn now() -> Instant {
    Instant::now()
}

fn main() {
    let sizes: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![64, 1024, 4096] } else { sizes };
    println!("{:>10} {:>8} {:>12} {:>10} {:>8} {:>8}", "MiB", "memory", "RSS MiB", "B/page", "ns/page", "goal");
    for mib in sizes {
        for memory in [ResidentMemory::Shared, ResidentMemory::Private] {
            let (base, begun) = (Cell::new(0), Cell::new(now()));
            let before = || {
                base.set(resident());
                begun.set(now());
            };
            populate(memory, mib << 20, before, |pages| {
                let spent = begun.get().elapsed().as_nanos() as f64 / pages as f64;
                let bytes = resident() - base.get();
                let each = bytes as f64 / pages as f64;
                let name = match memory {
                    ResidentMemory::Shared => "shared",
                    ResidentMemory::Private => "private",
                };
                let verdict = if each <= GOAL { "met" } else { "missed" };
                println!("{mib:>10} {name:>8} {:>12} {each:>10.1} {spent:>8.0} {verdict:>8}", bytes >> 20);
            });
        }
    }
}
