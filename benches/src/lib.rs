//! Models that the benchmarks run, and that tests may run too; and the clock that they are measured by.

pub mod models;

use std::time::Duration;

/// Time that this thread has spent on a processor, by the scheduler's own account: on a shared machine it says what a program costs, which
/// wall-clock time does not.
///
/// # Panics
/// On a host without `/proc/thread-self/schedstat`, which is Linux's.
pub fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a Linux host with schedstat");
    let nanoseconds = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanoseconds.expect("the first number is the time on a processor"))
}
