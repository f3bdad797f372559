//! What the fuzzing binaries check: one function a target, which takes any bytes and panics if something does not hold.
//!
//! The binaries in `fuzz/fuzz_targets` call these functions under libFuzzer; `tests/corpus.rs` calls them on every file of
//! `fuzz/corpus`, in the ordinary test run. [`gmem::testing::values`] has what generated programs are made of.
//! How to run the binaries, and what was found, is in `docs/fuzzing.md`.

pub mod operations;
pub mod scenario;
pub mod trace;

/// A target: its name, which is that of its binary, its corpus and its dictionary, and what it checks.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 3] =
    [("trace", trace::check), ("scenario", scenario::check), ("operations", operations::check)];
