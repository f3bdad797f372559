//! Models that the benchmarks run on every engine.
