//! Models that the benchmarks run, and that tests may run too.

pub mod models;
