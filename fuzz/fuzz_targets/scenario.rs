//! Fuzzes [`gmem_fuzz_targets::scenario`]: see there for what must hold, and `docs/fuzzing.md` for the command.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gmem_fuzz_targets::scenario::check(bytes));
