//! The kernel's own conformance checklist: what its selftests assert of guest_memfd and memory slots, row by row, against the
//! simulator (`tools/testing/selftests/kvm`).
//!
//! A [`Check`] is one row: an id that never changes, a title, and a function that makes a machine of its own through the public API,
//! does what the row says, and compares. One file for each selftest; [`registry`] is all of them. Rows that cannot exist here are in
//! it too, with the reason.
//!
//! A row with several threads is run under a stated number of random schedules with fixed seeds, so that a check's result, down to
//! the numbers in its reason, is the same on every machine. If the row is about a race, it also fails if one side of it never came.
//!
//! Simplified: a guest is a short program; memory that a selftest fills byte by byte is mostly tested by some words of each page.

mod cases;
mod expect;
mod extras;
mod guest;
mod guest_memfd_test;
mod memslot_modification_stress_test;
mod memslot_perf_test;
mod pre_fault_memory_test;
mod private_mem_conversions_test;
mod private_mem_kvm_exits_test;
mod race;
mod registry;
mod set_memory_region_test;
mod vm_types;

pub use expect::{Failure, Outcome};
pub use registry::{Check, CheckResult, Status, UnknownId, registry, select};
